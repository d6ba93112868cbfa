//! WebSocket, with the channel protocols of Kubernetes.
//!
//! Each message starts with the number of a channel: a byte in binary messages, a digit in
//! text messages whose rest is base64 (STM-23). A client cannot end a channel but by ending
//! the connection, except with the close signal of v5 (STM-26).

mod channels;
mod tunnel;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::Handle;
use crate::io::session::{Incoming, Outgoing};

pub use channels::serve_channels;
pub use tunnel::tunnel;

/// Messages are gathered up to this size before they are written.
const WRITE_BYTES: usize = 128 << 10;

/// What is read at once.
const READ_BYTES: usize = 64 << 10;

/// How messages carry channels, by the sub-protocol that was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelProtocol {
    /// Messages are text: a digit and base64. Else binary: a byte and the data.
    pub base64: bool,
    /// Channel 255 tells that the client has closed a channel (v5).
    pub close_signal: bool,
    /// The first message is an empty one on the lowest channel that we write (STM-24).
    pub greets: bool,
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
    /// The connection ends when no message has moved in any direction for this long (STM-05).
    pub idle: Duration,
    /// The connection ends when data of one channel, that nobody here takes, has kept other
    /// channels waiting for this long. None waits for ever.
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
    /// Of a sub-protocol's name (STM-22); the empty one is that of a client that names none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let (base64, close_signal) = match name {
            "" | "channel.k8s.io" | "v4.channel.k8s.io" => (false, false),
            "base64.channel.k8s.io" | "v4.base64.channel.k8s.io" => (true, false),
            "v5.channel.k8s.io" => (false, true),
            _ => return None,
        };
        Some(Self { base64, close_signal, greets: true })
    }

    /// The same without a greeting, as port-forward has it: there the first message of each
    /// channel is its port (STM-34).
    #[must_use]
    pub fn silent(self) -> Self {
        Self { greets: false, ..self }
    }
}

impl Channels {
    /// Takes what the client sends on a channel.
    pub fn incoming(&mut self, number: u8) -> Option<Incoming> {
        self.incoming.remove(&number)
    }

    /// Takes the way to the client of a channel. Each piece that is sent is a message.
    /// Dropping it tells the client nothing: the protocols have no word for it.
    pub fn outgoing(&mut self, number: u8) -> Option<Outgoing> {
        self.outgoing.remove(&number)
    }

    /// The hold on the connection.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

fn config(message_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
}

#[cfg(test)]
pub(super) mod tests;
