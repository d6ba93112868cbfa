//! A stream of bytes in the binary messages of a WebSocket.

use tokio::io::{AsyncRead, AsyncWrite};

/// The stream of bytes that a client sends and takes in binary messages
/// (`SPDY/3.1+portforward.k8s.io`).
pub fn tunnel<T>(io: T) -> impl AsyncRead + AsyncWrite + Send + Unpin + 'static
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    io
}
