//! SPDY/3.1, the server side of it that streaming clients of Kubernetes need.

mod batch;
mod connection;
mod dictionary;
mod frame;
mod header;
mod open;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::io::session::{Incoming, Outgoing};

pub use super::Handle;
pub use connection::serve;
pub use header::Headers;

/// What a client may have of us.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The connection ends when no byte has moved in any direction for this long (STM-05).
    pub idle: Duration,
    /// A stream whose data nobody here has taken for this long is reset, if it keeps data of
    /// other streams waiting behind its own. None waits for ever.
    pub stuck: Option<Duration>,
    /// Streams open at a time; more are refused.
    pub streams_max: usize,
    /// Bytes of a header block, unpacked.
    pub header_bytes_max: usize,
    /// Bytes that wait in one stream for somebody here to take them.
    pub buffered_bytes_max: usize,
    /// Bytes that wait in all streams of a connection together.
    pub all_buffered_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(4 * 60 * 60),
            stuck: None,
            streams_max: 1000,
            header_bytes_max: 16 << 10,
            buffered_bytes_max: 1 << 20,
            all_buffered_bytes_max: 64 << 20,
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    streams: mpsc::Receiver<Stream>,
    handle: Handle,
}

/// A stream that the client has opened and has its reply for.
#[derive(Debug)]
pub struct Stream {
    /// Its number on the wire.
    pub id: u32,
    /// What the client says of it.
    pub headers: Headers,
    /// What the client sends; ends with its FIN, with a reset and with the connection.
    pub incoming: Incoming,
    /// What the client gets. Dropping it sends FIN after all that was sent before.
    pub outgoing: Outgoing,
    /// The stream as a whole.
    pub control: Control,
}

/// A stream as a whole, apart from its two directions.
#[derive(Clone, Debug)]
pub struct Control {
    id: u32,
    resets: mpsc::WeakUnboundedSender<u32>,
    over: CancellationToken,
}

impl Connection {
    /// The next stream of the client; none when the connection is over.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// The hold on the connection.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Control {
    /// Resets the stream, and this one only: both directions end. What was sent before is
    /// written first, as far as the client takes it.
    pub fn reset(&self) {
        if let Some(resets) = self.resets.upgrade() {
            // Fails when the connection is over, and the stream with it.
            let _ = resets.send(self.id);
        }
    }

    /// Cancelled when the stream has been reset by either side or the connection is over;
    /// not when its directions end in order.
    #[must_use]
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }
}

#[cfg(test)]
pub(super) mod tests;
