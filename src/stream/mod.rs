//! exec, attach and port-forward: the HTTP server that the kubelet's proxies connect to.

pub mod spdy;
pub mod websocket;
