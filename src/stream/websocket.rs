//! WebSocket, with the channel protocols of Kubernetes.
