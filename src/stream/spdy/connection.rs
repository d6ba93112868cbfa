//! The task of a connection.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::{Connection, Limits};
use crate::stream::handle;

/// Serves a client on a connection that was upgraded to SPDY/3.1.
pub fn serve<T>(io: T, limits: Limits) -> Connection
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (handle, held) = handle::handle();
    let (_sender, streams) = mpsc::channel(limits.streams_max.max(1));
    drop(io);
    held.gone.cancel();
    Connection { streams, handle }
}
