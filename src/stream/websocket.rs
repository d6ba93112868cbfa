//! WebSocket, with the channel protocols of Kubernetes.

mod tunnel;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Handle, handle};
use crate::io::session::{self, Incoming, Outgoing};

pub use tunnel::tunnel;

/// How messages carry channels, by the sub-protocol that was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelProtocol {
    /// Messages are text: a digit and base64. Else binary: a byte and the data.
    pub base64: bool,
    /// Channel 255 tells that a channel is closed (v5).
    pub close_signal: bool,
}

/// Who sends on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The client.
    Incoming,
    /// We.
    Outgoing,
    /// Both.
    Both,
}

/// What a client may have of us.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The connection ends when no byte has moved in any direction for this long (STM-05).
    pub idle: Duration,
    /// The connection ends when a channel's data, that nobody here takes, keeps other channels
    /// waiting for this long. None waits for ever.
    pub stuck: Option<Duration>,
    /// Bytes of a message.
    pub message_bytes_max: usize,
    /// Bytes that wait in one channel for somebody here to take them.
    pub buffered_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(4 * 60 * 60),
            stuck: None,
            message_bytes_max: 16 << 20,
            buffered_bytes_max: 1 << 20,
        }
    }
}

/// The channels of a client.
#[derive(Debug)]
pub struct Channels {
    incoming: BTreeMap<u8, Incoming>,
    outgoing: BTreeMap<u8, Outgoing>,
    handle: Handle,
}

impl ChannelProtocol {
    /// Of a sub-protocol's name; the empty one is that of a client that names none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (base64, close_signal) = match name {
            "" | "channel.k8s.io" | "v4.channel.k8s.io" => (false, false),
            "base64.channel.k8s.io" | "v4.base64.channel.k8s.io" => (true, false),
            "v5.channel.k8s.io" => (false, true),
            _ => return None,
        };
        Some(Self { base64, close_signal })
    }
}

impl Channels {
    /// Takes what the client sends on a channel.
    pub fn incoming(&mut self, number: u8) -> Option<Incoming> {
        self.incoming.remove(&number)
    }

    /// Takes the way to the client of a channel. Each piece that is sent is a message.
    pub fn outgoing(&mut self, number: u8) -> Option<Outgoing> {
        self.outgoing.remove(&number)
    }

    /// The hold on the connection.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

/// Serves a client on a connection that was upgraded to WebSocket, with these channels.
pub async fn serve_channels<T>(
    io: T,
    protocol: ChannelProtocol,
    channels: &[(u8, Direction)],
    limits: Limits,
) -> Channels
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (handle, held) = handle::handle();
    let _ = (io, protocol, limits);
    let mut all = Channels { incoming: BTreeMap::new(), outgoing: BTreeMap::new(), handle };
    for (number, direction) in channels {
        if *direction != Direction::Outgoing {
            all.incoming.insert(*number, session::incoming().1);
        }
        if *direction != Direction::Incoming {
            all.outgoing.insert(*number, session::outgoing().0);
        }
    }
    held.gone.cancel();
    all
}
