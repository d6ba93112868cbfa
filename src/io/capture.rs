//! The output of an exec process, kept in memory up to a limit (EXE-03).
//!
//! The FIFOs are opened for reading before the process is made, so that its shim's open
//! does not wait (VER-13). Nobody writes at first; the end is a hang-up, which the kernel
//! tells only after a writer has come and gone. What is beyond the limit is read and thrown
//! away, so that the process does not block; memory grows only with what is kept.

use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;

use tokio::io::Interest;
use tokio::net::unix::pipe::Receiver;

use super::fifo::{self, Fifos};
use crate::error::{Context, Result};

/// What one read takes at most, which is a pipe's usual size.
const READ_BYTES: usize = 64 << 10;
/// Reads of what is still in a FIFO at a stop: as much as the largest pipe holds.
const LAST_READS_MAX: usize = 16;

/// The output of a process that is read.
pub struct Capture {
    stdout: Channel,
    stderr: Channel,
}

/// What a process has put out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// Standard error, likewise.
    pub stderr: Vec<u8>,
    /// Whether both came to their ends; otherwise something still holds them open.
    pub is_complete: bool,
    /// Bytes of both that were thrown away.
    pub discarded_bytes: u64,
}

struct Channel {
    /// `None` after the end.
    fd: Option<Receiver>,
    kept: Kept,
}

struct Kept {
    bytes: Vec<u8>,
    bytes_max: usize,
    discarded_bytes: u64,
}

impl Capture {
    /// Opens the FIFOs for reading, and keeps up to `bytes_max` of each. Opening a FIFO
    /// does not wait, but a file system might: for a few short calls only.
    ///
    /// # Errors
    /// Those of the file system, naming the path.
    pub fn open(fifos: &Fifos, bytes_max: usize) -> Result<Capture> {
        Ok(Capture {
            stdout: Channel::open(fifos.stdout.as_deref(), bytes_max)?,
            stderr: Channel::open(fifos.stderr.as_deref(), bytes_max)?,
        })
    }

    /// Reads until both streams have ended.
    pub async fn read_to_end(self) -> Output {
        self.read_until(std::future::pending()).await
    }

    /// Reads until both streams have ended or `stop` is ready, and gives what came until
    /// then: a child of the process may hold the streams open for ever (EXE-05).
    pub async fn read_until(mut self, stop: impl Future<Output = ()>) -> Output {
        tokio::select! {
            () = async { tokio::join!(self.stdout.read(), self.stderr.read()); } => {}
            () = stop => {}
        }
        // What had come at that moment belongs to it.
        for Channel { fd, kept } in [&mut self.stdout, &mut self.stderr] {
            if fd.as_ref().is_some_and(|fd| kept.take_waiting(fd)) {
                *fd = None;
            }
        }
        let (stdout, stderr) = (self.stdout, self.stderr);
        Output {
            is_complete: stdout.fd.is_none() && stderr.fd.is_none(),
            discarded_bytes: stdout.kept.discarded_bytes + stderr.kept.discarded_bytes,
            stdout: stdout.kept.bytes,
            stderr: stderr.kept.bytes,
        }
    }
}

impl Channel {
    fn open(path: Option<&Path>, bytes_max: usize) -> Result<Channel> {
        let open = |path| -> Result<_> {
            let (fd, _) = fifo::open_reader(path, false)?;
            Receiver::from_owned_fd(fd).context(|| format!("open FIFO {path:?}"))
        };
        let fd = path.map(open).transpose()?;
        Ok(Channel { fd, kept: Kept { bytes: Vec::new(), bytes_max, discarded_bytes: 0 } })
    }

    /// Reads to the end. What was read is kept when this is dropped before.
    async fn read(&mut self) {
        let mut scratch = Vec::new();
        while let Some(fd) = &self.fd {
            // Refused only while the runtime is being shut down.
            let Ok(ready) = fd.ready(Interest::READABLE).await else { return };
            scratch.resize(READ_BYTES, 0);
            match fd.try_read(&mut scratch) {
                Ok(0) if ready.is_read_closed() => self.fd = None,
                // The last writer has just gone: the hang-up is about to be told.
                Ok(0) => tokio::task::yield_now().await,
                Ok(count) => self.kept.take(&scratch[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => self.fd = None,
            }
        }
    }
}

impl Kept {
    /// Takes what is in the FIFO now; whether that was the end.
    fn take_waiting(&mut self, fd: &Receiver) -> bool {
        let mut scratch = vec![0; READ_BYTES];
        for _ in 0..LAST_READS_MAX {
            match rustix::io::read(fd, &mut scratch) {
                Ok(0) => return fifo::is_hung_up(fd),
                Ok(count) => self.take(&scratch[..count]),
                Err(_) => break,
            }
        }
        false
    }

    fn take(&mut self, bytes: &[u8]) {
        let keep = bytes.len().min(self.bytes_max - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..keep]);
        self.discarded_bytes += (bytes.len() - keep) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fifo::Wanted;
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::path::PathBuf;

    /// Both ends of a FIFO, as the shim opens them: first for writing, then for reading.
    struct Shim {
        writer: File,
        _reader: File,
    }

    fn fifos(state: &Path) -> Fifos {
        Fifos::make(state, "c1", "e1", Wanted { stdin: false, stdout: true, stderr: true }).expect("made")
    }

    fn shim(path: &Option<PathBuf>) -> Shim {
        let path = path.as_ref().expect("wanted");
        let writer = File::options().write(true).open(path).expect("somebody reads");
        Shim { writer, _reader: File::open(path).expect("somebody writes") }
    }

    #[tokio::test]
    async fn both_streams_are_read_to_their_ends() {
        let state = tempfile::tempdir().expect("a folder");
        let fifos = fifos(state.path());
        let capture = Capture::open(&fifos, 1 << 20).expect("opened");
        let mut reading = tokio::spawn(capture.read_to_end());
        // Nobody writes yet: that is not the end.
        assert!(!(0..100).any(|_| reading.is_finished()));
        let writing = tokio::task::spawn_blocking(move || {
            let (mut stdout, mut stderr) = (shim(&fifos.stdout), shim(&fifos.stderr));
            stderr.writer.write_all(b"oops").expect("written");
            // More than a pipe holds, and than is read in one turn.
            stdout.writer.write_all(&[b'x'; 900_000]).expect("written");
        });
        let output = (&mut reading).await.expect("no panic");
        writing.await.expect("no panic");
        assert_eq!((output.stdout.len(), &*output.stderr), (900_000, &b"oops"[..]));
        assert!(output.is_complete && output.discarded_bytes == 0);
    }

    #[tokio::test]
    async fn what_is_beyond_the_limit_does_not_block_the_writer() {
        let state = tempfile::tempdir().expect("a folder");
        let fifos = fifos(state.path());
        let capture = Capture::open(&fifos, 1000).expect("opened");
        let writing = tokio::task::spawn_blocking(move || {
            let (mut stdout, _stderr) = (shim(&fifos.stdout), shim(&fifos.stderr));
            stdout.writer.write_all(&[b'x'; 8 << 20]).expect("written");
        });
        let output = capture.read_to_end().await;
        writing.await.expect("no panic");
        assert_eq!((output.stdout.len(), output.discarded_bytes), (1000, (8 << 20) - 1000));
        assert!(output.stdout.capacity() < 4096);
    }

    #[tokio::test]
    async fn a_stop_gives_what_came_before_it() {
        let state = tempfile::tempdir().expect("a folder");
        let fifos = fifos(state.path());
        let capture = Capture::open(&fifos, 1 << 20).expect("opened");
        let (mut stdout, stderr) = (shim(&fifos.stdout), shim(&fifos.stderr));
        stdout.writer.write_all(b"so far").expect("written");
        drop(stderr);
        // A child of the process holds stdout open (EXE-05).
        let output = capture.read_until(std::future::ready(())).await;
        assert_eq!((&*output.stdout, output.is_complete), (&b"so far"[..], false));
        drop(stdout);
    }

    #[tokio::test]
    async fn a_process_without_output_has_an_end() {
        let state = tempfile::tempdir().expect("a folder");
        let fifos = fifos(state.path());
        let capture = Capture::open(&fifos, 10).expect("opened");
        drop((shim(&fifos.stdout), shim(&fifos.stderr)));
        let output = capture.read_to_end().await;
        assert_eq!(output, Output { is_complete: true, ..Output::default() });
        let none = Capture::open(&Fifos::default(), 10).expect("nothing to open");
        assert!(none.read_to_end().await.is_complete);
    }
}
