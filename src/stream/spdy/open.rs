//! The state of one stream.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::io::session::{Drain, Feed};
use crate::stream::inlet::Inlet;
use crate::stream::ready::Signal;

/// A stream that is open in at least one direction.
pub(super) struct Open {
    /// From the client.
    pub(super) inlet: Inlet,
    /// The client sends nothing any more.
    pub(super) has_ended: bool,
    /// Bytes that went on to who reads them, and that the client was not told of.
    pub(super) credit: usize,
    /// To the client; none when our FIN is sent, or the client wants nothing.
    pub(super) drain: Option<Drain>,
    /// What is left of a piece, or had no window.
    pub(super) pending: Option<Bytes>,
    /// What was sent without the client having made room for it again.
    pub(super) used: i64,
    /// To be reset when what was sent is written.
    pub(super) is_resetting: bool,
    /// It stands in line for the writer.
    pub(super) in_line: bool,
    pub(super) over: CancellationToken,
    pub(super) signal: Signal,
}

impl Open {
    pub(super) fn new(feed: Feed, drain: Option<Drain>, signal: Signal, over: CancellationToken) -> Self {
        Self {
            inlet: Inlet::new(feed),
            has_ended: false,
            credit: 0,
            drain,
            pending: None,
            used: 0,
            is_resetting: false,
            in_line: false,
            over,
            signal,
        }
    }

    /// The client's last frame was received.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
        self.inlet.end();
    }

    /// The client has reset it: what it sent before still goes to who reads it.
    pub(super) fn reset_by_client(&mut self) {
        self.end();
        self.drain = None;
        self.pending = None;
        self.over.cancel();
    }

    /// Nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.has_ended && self.drain.is_none() && self.inlet.waiting() == 0
    }
}
