//! The hold on a client's connection that both transports give out.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

/// A hold on a connection. When the last one is dropped, the connection is closed as by
/// [`Handle::close`]: nothing serves a client that nobody knows any more.
#[derive(Clone, Debug)]
pub struct Handle {
    closing: CancellationToken,
    gone: CancellationToken,
    _held: Arc<DropGuard>,
}

/// What the task of a connection has of its handle.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Cancelled when the connection is to be closed.
    pub(super) closing: CancellationToken,
    /// To be cancelled when it is over.
    pub(super) gone: CancellationToken,
}

/// A handle, and its other side.
pub(super) fn handle() -> (Handle, Held) {
    let held = Held { closing: CancellationToken::new(), gone: CancellationToken::new() };
    let guard = held.closing.clone().drop_guard();
    let handle = Handle { closing: held.closing.clone(), gone: held.gone.clone(), _held: Arc::new(guard) };
    (handle, held)
}

impl Handle {
    /// Closes the connection: everything that was sent before is written, then the client
    /// is told the end. Completes when that is done, or when a client that does not read
    /// has been given up. The connection is closed also if the future is dropped.
    pub async fn close(&self) {
        self.closing.cancel();
        self.gone.cancelled().await;
    }

    /// Cancelled when the connection is over, for whatever reason.
    #[must_use]
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}
