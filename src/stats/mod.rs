//! What pods and containers use: cpu, memory, file systems, network.
