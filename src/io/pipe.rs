//! The server's ends of a process's FIFOs, where a client talks with it: pieces of bytes
//! out of the one, pieces into the other.
//!
//! What is read stays where it was read to until it is sent: a piece is a part of the
//! buffer. A stream that floods gets a larger pipe, as in the keeper. Nothing is read ahead
//! of the client: one that does not take its output holds up its own process, as a
//! terminal does (EXE-16 says when that ends).

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::pipe::fcntl_setpipe_size;
use tokio::io::Interest;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fifo;
use super::session::{self, Gone, Incoming, Outgoing};
use crate::error::{Context, Result};

/// Room for a read when a new buffer is begun.
const BUFFER_BYTES: usize = 256 << 10;
/// A buffer with less room left is not read into any more.
const ROOM_BYTES: usize = 64 << 10;
/// A stream that brings as much at once is busy and gets a larger pipe.
const BUSY_BYTES: usize = 32 << 10;
/// The size of a busy stream's pipe, which is what the kernel allows everybody.
const PIPE_BYTES: usize = 1 << 20;
/// What may come after the time limit of a process that has ended: more than it can have
/// left in all the pipes between it and here.
const LATE_BYTES_MAX: usize = 4 << 20;
/// Pauses while a shim has not opened its end yet, doubled each time up to the second.
const OPEN_PAUSES: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(50));

/// The reading end of a process's output.
pub struct OutputPipe {
    /// `None` after the end.
    fd: Option<Receiver>,
    buffer: BytesMut,
    is_large: bool,
}

/// The writing end of a process's input.
pub struct InputPipe {
    fd: Sender,
    is_large: bool,
}

/// The end of a process, as those who move its output have to know it.
#[derive(Debug)]
pub struct ProcessEnd {
    token: CancellationToken,
    at: OnceLock<Instant>,
    /// How long its output is waited for after it (EXE-05).
    drain_limit: Duration,
}

impl OutputPipe {
    /// Opens a FIFO for reading. `started` says that its writer has come before.
    ///
    /// # Errors
    /// Those of the file system, naming the path.
    pub fn open(path: &Path, started: bool) -> Result<OutputPipe> {
        let (fd, _) = fifo::open_reader(path, started)?;
        let fd = Receiver::from_owned_fd(fd).context(|| format!("open FIFO {path:?}"))?;
        Ok(OutputPipe { fd: Some(fd), buffer: BytesMut::new(), is_large: false })
    }

    /// The next piece, never empty; none at the end. Nothing is lost when this is dropped.
    pub async fn next(&mut self) -> Option<Bytes> {
        while let Some(fd) = &self.fd {
            // Refused only while the runtime is being shut down.
            let ready = fd.ready(Interest::READABLE).await.ok()?;
            if self.buffer.capacity() - self.buffer.len() < ROOM_BYTES {
                self.buffer.reserve(BUFFER_BYTES);
            }
            match fd.try_read_buf(&mut self.buffer) {
                Ok(0) if ready.is_read_closed() => self.fd = None,
                // The last writer has just gone: the hang-up is about to be told.
                Ok(0) => tokio::task::yield_now().await,
                Ok(count) => {
                    if count >= BUSY_BYTES && !self.is_large {
                        self.is_large = true;
                        enlarge(fd);
                    }
                    return Some(self.buffer.split().freeze());
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => self.fd = None,
            }
        }
        None
    }

    /// Moves everything to `to` until the end of the stream; a stream that a child of the
    /// process holds open ends for us soon after the process (EXE-05). Without anybody to
    /// take it the output is thrown away, so that the process does not block (EXE-16).
    ///
    /// The limit after the end of the process counts while nothing comes. What the client
    /// takes its time for is not cut off; a child that goes on talking is.
    pub async fn forward(mut self, mut to: Option<Outgoing>, gone: &CancellationToken, end: &ProcessEnd) {
        let mut patience = end.drain_limit;
        let mut late_bytes = 0;
        loop {
            let asked = Instant::now();
            let piece = tokio::select! {
                biased;
                piece = self.next() => piece,
                () = end.passed(patience) => return,
            };
            let Some(piece) = piece else { return };
            if let Some(at) = end.at.get() {
                patience = patience.saturating_sub((*at).max(asked).elapsed());
                if at.elapsed() > end.drain_limit {
                    late_bytes += piece.len();
                }
            }
            if let Some(client) = &to {
                let sent = tokio::select! {
                    sent = client.send(piece) => sent,
                    () = gone.cancelled() => Err(Gone),
                };
                if sent == Err(Gone) {
                    to = None;
                }
            }
            if late_bytes > LATE_BYTES_MAX {
                return;
            }
        }
    }
}

impl InputPipe {
    /// Opens a FIFO for writing as soon as somebody reads it: a shim does some time after
    /// it has started the process.
    ///
    /// # Errors
    /// Those of the file system, naming the path.
    pub async fn open(path: &Path) -> Result<InputPipe> {
        let mut pause = OPEN_PAUSES.0;
        loop {
            if let Some(pipe) = InputPipe::open_now(path)? {
                return Ok(pipe);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(OPEN_PAUSES.1);
        }
    }

    /// Opens a FIFO for writing; `None` if nobody reads it (any more).
    ///
    /// # Errors
    /// Those of the file system, naming the path.
    pub fn open_now(path: &Path) -> Result<Option<InputPipe>> {
        let Some(fd) = fifo::open_to_reader(path)? else { return Ok(None) };
        let fd: OwnedFd = fd;
        let fd = Sender::from_owned_fd(fd).context(|| format!("open FIFO {path:?}"))?;
        Ok(Some(InputPipe { fd, is_large: false }))
    }

    /// Writes all that the client sends until its end.
    ///
    /// # Errors
    /// [`Gone`] when the process does not read any more; what is left is the client's.
    pub async fn feed(&mut self, from: &mut Incoming) -> Result<(), Gone> {
        loop {
            let pieces = from.next_all().await;
            if pieces.is_empty() {
                return Ok(());
            }
            let bytes: usize = pieces.iter().map(Bytes::len).sum();
            if bytes >= BUSY_BYTES / 2 && !self.is_large {
                self.is_large = true;
                enlarge(&self.fd);
            }
            session::write_pieces(&mut self.fd, &pieces).await.map_err(|_| Gone)?;
        }
    }
}

impl ProcessEnd {
    /// Of a process that has not ended.
    #[must_use]
    pub fn new(drain_limit: Duration) -> ProcessEnd {
        ProcessEnd { token: CancellationToken::new(), at: OnceLock::new(), drain_limit }
    }

    /// Tells that the process has ended now.
    pub fn tell(&self) {
        let _ = self.at.set(Instant::now());
        self.token.cancel();
    }

    async fn passed(&self, patience: Duration) {
        self.token.cancelled().await;
        tokio::time::sleep(patience).await;
    }
}

/// Where that is refused the usual size has to do.
fn enlarge(fd: impl AsFd) {
    let _ = fcntl_setpipe_size(fd, PIPE_BYTES);
}

#[cfg(test)]
mod tests {
    use super::super::fifo::{Fifos, Wanted};
    use super::super::session;
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;

    fn fifo(state: &Path) -> PathBuf {
        let wanted = Wanted { stdin: true, ..Wanted::default() };
        Fifos::make(state, "c1", "e1", wanted).expect("made").stdin.expect("wanted")
    }

    /// As a shim opens it.
    fn shim(path: &Path) -> (File, File) {
        let writer = File::options().write(true).open(path).expect("somebody reads");
        (writer, File::open(path).expect("somebody writes"))
    }

    fn end() -> ProcessEnd {
        ProcessEnd::new(Duration::from_secs(5))
    }

    #[tokio::test]
    async fn everything_reaches_the_client_however_much_it_is() {
        const BYTES: usize = 20 << 20;
        let state = tempfile::tempdir().expect("a folder");
        let path = fifo(state.path());
        let pipe = OutputPipe::open(&path, false).expect("opened");
        let writing = tokio::task::spawn_blocking(move || {
            let (mut writer, _reader) = shim(&path);
            let pattern: Vec<u8> = (0..=250).collect();
            let all: Vec<u8> = pattern.iter().copied().cycle().take(BYTES).collect();
            writer.write_all(&all).expect("written");
        });
        let (out, mut drain) = session::outgoing();
        let (gone, end) = (CancellationToken::new(), end());
        let taken = async {
            let mut count = 0;
            while let Some(piece) = drain.next().await {
                assert!(piece.iter().zip(count..).all(|(byte, at)| usize::from(*byte) == at % 251));
                count += piece.len();
            }
            count
        };
        let ((), count) = tokio::join!(pipe.forward(Some(out), &gone, &end), taken);
        writing.await.expect("no panic");
        assert_eq!(count, BYTES);
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_its_output_holds_up_the_process_until_it_has_gone() {
        /// More than queue and pipe hold.
        const BYTES: usize = 16 << 20;
        let state = tempfile::tempdir().expect("a folder");
        let path = fifo(state.path());
        let pipe = OutputPipe::open(&path, false).expect("opened");
        let mut options = File::options();
        let mut writer = options.write(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("it is read");
        let (out, drain) = session::outgoing();
        let gone = CancellationToken::new();
        let forwarding = tokio::spawn({
            let gone = gone.clone();
            async move { pipe.forward(Some(out), &gone, &end()).await }
        });
        // There is one thread: whoever yields lets the other do all that it can.
        let mut write = async |bytes: usize| {
            let (mut written, mut idle) = (0, 0);
            while written < bytes && idle < 1000 {
                match writer.write(&[b'x'; 64 << 10]) {
                    Ok(count) => (written, idle) = (written + count, 0),
                    Err(_) => {
                        idle += 1;
                        tokio::task::yield_now().await;
                    }
                }
            }
            written
        };
        assert!(write(BYTES).await < BYTES);
        gone.cancel();
        assert!(write(BYTES).await >= BYTES);
        drop(writer);
        forwarding.await.expect("no panic");
        drop(drain);
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_holds_the_output_is_waited_for_as_long_as_allowed() {
        let state = tempfile::tempdir().expect("a folder");
        let path = fifo(state.path());
        let pipe = OutputPipe::open(&path, false).expect("opened");
        let (mut child, _reader) = shim(&path);
        let (out, mut drain) = session::outgoing();
        let (gone, end) = (CancellationToken::new(), end());
        child.write_all(b"all").expect("written");
        end.tell();
        let began = Instant::now();
        pipe.forward(Some(out), &gone, &end).await;
        assert_eq!(began.elapsed().as_secs(), 5);
        assert_eq!(drain.next().await.as_deref(), Some(&b"all"[..]));
        assert_eq!(drain.next().await, None);
    }

    #[tokio::test]
    async fn a_child_that_never_stops_talking_is_cut_off() {
        let state = tempfile::tempdir().expect("a folder");
        let path = fifo(state.path());
        let pipe = OutputPipe::open(&path, false).expect("opened");
        // Before the other end may go: who opens then would wait for ever.
        let (mut writer, reader) = shim(&path);
        drop(reader);
        let child = std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {});
        let end = ProcessEnd::new(Duration::ZERO);
        end.tell();
        pipe.forward(None, &CancellationToken::new(), &end).await;
        child.join().expect("it has noticed");
    }

    #[tokio::test]
    async fn input_waits_for_its_reader_and_ends_with_the_client() {
        let state = tempfile::tempdir().expect("a folder");
        let path = fifo(state.path());
        assert!(InputPipe::open_now(&path).expect("looked").is_none());
        let (feed, mut from) = session::incoming();
        let writing = tokio::spawn({
            let path = path.clone();
            async move {
                let mut pipe = InputPipe::open(&path).await.expect("opened");
                pipe.feed(&mut from).await
            }
        });
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            File::open(path).expect("opened").read_to_end(&mut all).map(|_| all)
        });
        for _ in 0..100 {
            feed.send(vec![b'i'; 32 << 10].into()).await.expect("it is taken");
        }
        drop(feed);
        assert_eq!(writing.await.expect("no panic"), Ok(()));
        assert_eq!(reading.await.expect("no panic").expect("read").len(), 100 * (32 << 10));
    }

    #[tokio::test]
    async fn a_process_that_closes_its_input_is_noticed() {
        let state = tempfile::tempdir().expect("a folder");
        let path = fifo(state.path());
        let reader = fifo::open_reader(&path, false).expect("opened");
        let mut pipe = InputPipe::open_now(&path).expect("looked").expect("somebody reads");
        let (feed, mut from) = session::incoming();
        feed.send(vec![0; 2 << 20].into()).await.expect("there is room");
        let feeding = tokio::spawn(async move { pipe.feed(&mut from).await });
        tokio::task::yield_now().await;
        drop(reader);
        assert_eq!(feeding.await.expect("no panic"), Err(Gone));
    }
}
