//! A connection to a keeper: requests out, answers to whom they belong.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::protocol::{self, ANSWER_BYTES_MAX, Request};
use crate::error::{Error, Result, invalid};
use crate::flow::lock;

/// Requests that wait to be written at most; further callers wait.
const QUEUE: usize = 64;

/// Who waits for which answer; `None` once the connection is gone.
type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Value>>>>>>;

/// A connection. Dropping it hangs up.
pub(super) struct Link {
    requests: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    next: AtomicU64,
    closed: CancellationToken,
}

impl Link {
    /// Speaks over `stream`.
    pub(super) fn new(stream: UnixStream) -> Result<Link> {
        stream.set_nonblocking(true)?;
        let (reader, writer) = tokio::net::UnixStream::from_std(stream)?.into_split();
        let (requests, queue) = mpsc::channel(QUEUE);
        let pending = Pending::new(Mutex::new(Some(HashMap::new())));
        let closed = CancellationToken::new();
        tokio::spawn(write(writer, queue, closed.clone()));
        tokio::spawn({
            let (pending, closed) = (pending.clone(), closed.clone());
            async move {
                let ended = tokio::select! {
                    ended = read(reader, &pending) => ended,
                    () = closed.cancelled() => Ok(()),
                };
                if let Err(error) = ended {
                    warn!(%error, "the connection to the log keeper is unusable");
                }
                // Callers see their senders go.
                lock(&pending).take();
                closed.cancel();
            }
        });
        Ok(Link { requests, pending, next: AtomicU64::new(1), closed })
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.closed.is_cancelled()
    }

    /// Is cancelled when the connection ends.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Asks and waits for the answer; `None` if the connection ends before it comes.
    ///
    /// # Errors
    /// If the request is too long.
    pub(super) async fn ask(&self, request: &Request) -> Result<Option<Result<Value>>> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let line = protocol::request_line(seq, request)?;
        let (sender, receiver) = oneshot::channel();
        match &mut *lock(&self.pending) {
            Some(pending) => pending.insert(seq, sender),
            None => return Ok(None),
        };
        let _forget = Forget { pending: &self.pending, seq };
        if self.requests.send(line).await.is_err() {
            return Ok(None);
        }
        Ok(receiver.await.ok())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// Nobody waits any more when the caller goes away.
struct Forget<'a> {
    pending: &'a Pending,
    seq: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(pending) = &mut *lock(self.pending) {
            pending.remove(&self.seq);
        }
    }
}

/// Writes whole requests: a caller that goes away leaves no half one.
async fn write(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, closed: CancellationToken) {
    let all = async {
        while let Some(line) = queue.recv().await {
            if to.write_all(&line).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = closed.cancelled() => {}
    }
    closed.cancel();
}

async fn read(from: OwnedReadHalf, pending: &Pending) -> Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = ANSWER_BYTES_MAX as u64 + 1;
        let count = (&mut from).take(limit).read_until(b'\n', &mut line).await.map_err(Error::from);
        match count {
            // It died, or hung up.
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) if !line.ends_with(b"\n") && line.len() > ANSWER_BYTES_MAX => {
                return Err(invalid(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
            }
            Ok(_) => {}
        }
        let (seq, result) = protocol::read_answer(&line)?;
        let waiting = lock(pending).as_mut().and_then(|pending| pending.remove(&seq));
        if let Some(sender) = waiting {
            let _ = sender.send(result);
        }
    }
}
