//! SPDY/3.1, the server side of it that streaming clients of Kubernetes need.
