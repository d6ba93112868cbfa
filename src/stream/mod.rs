//! exec, attach and port-forward: the HTTP server that the kubelet's proxies connect to.

mod handle;
mod inlet;
mod ready;
pub mod spdy;
pub mod websocket;

pub use handle::Handle;
