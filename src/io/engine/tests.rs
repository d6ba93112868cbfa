//! The engine with real FIFOs, files and a writer that opens them as the runc shim does.

mod ends;
mod halt;
mod loss;
mod reopen;
mod streams;
mod twice;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::io::fifo::{Fifos, Wanted};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Both ends of a FIFO, as the shim opens them: first for writing, then for reading.
struct Shim {
    writer: File,
    _reader: File,
}

impl Shim {
    fn open(path: &Option<PathBuf>) -> Shim {
        let path = path.as_ref().expect("wanted");
        let writer = File::options().write(true).open(path).expect("somebody reads");
        Shim { writer, _reader: File::open(path).expect("somebody writes") }
    }

    fn write(&mut self, text: impl AsRef<[u8]>) {
        self.writer.write_all(text.as_ref()).expect("the FIFO takes it");
    }
}

/// A folder with FIFOs and a log, and an engine.
struct Scene {
    folder: tempfile::TempDir,
    engine: Engine,
}

impl Scene {
    fn new() -> Scene {
        Scene::with_workers(2)
    }

    fn with_workers(workers: usize) -> Scene {
        let engine = Engine::start(workers).expect("started");
        Scene { folder: tempfile::tempdir().expect("a folder"), engine }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("pods/c1/0.log")
    }

    fn io(&self, id: &str) -> ContainerIo {
        let wanted = Wanted { stdin: true, stdout: true, stderr: true };
        let fifos = Fifos::make(self.folder.path(), id, id, wanted).expect("made");
        ContainerIo {
            id: id.into(),
            stdin: None,
            stdout: fifos.stdout,
            stderr: fifos.stderr,
            log_path: Some(self.folder.path().join(format!("pods/{id}/0.log"))),
            log_root: None,
            line_bytes_max: 64,
            bytes_per_second_max: 0,
            started: false,
        }
    }

    /// Waits for a state of a container.
    fn wait(&self, id: &str, is_so: impl Fn(&KeptIo) -> bool) -> KeptIo {
        let end = Instant::now() + LIMIT;
        loop {
            let kept = self.engine.get(id).expect("it is known");
            if is_so(&kept) {
                return kept;
            }
            let rest = Timespec::try_from(end.saturating_duration_since(Instant::now())).expect("it fits");
            let mut fds = [PollFd::from_borrowed_fd(self.engine.changed(), PollFlags::IN)];
            assert!(poll(&mut fds, Some(&rest)).expect("polled") > 0, "it is still {kept:?}");
            rustix::io::read(self.engine.changed(), &mut [0; 8]).expect("it was readable");
        }
    }

    fn drained(&self, id: &str) -> KeptIo {
        self.wait(id, |kept| kept.is_drained)
    }
}

/// An entry of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    time: String,
    stream: String,
    tag: String,
    content: Vec<u8>,
}

/// All entries of a file, which has nothing else in it.
fn entries(path: &Path) -> Vec<Entry> {
    let bytes = std::fs::read(path).expect("the log is there");
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "{path:?} ends in an entry");
    let lines = bytes.split_inclusive(|&byte| byte == b'\n');
    lines
        .map(|line| {
            let mut fields = line[..line.len() - 1].splitn(4, |&byte| byte == b' ');
            let mut text = || String::from_utf8(fields.next().expect("a field").to_vec()).expect("text");
            let (time, stream, tag) = (text(), text(), text());
            assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == 30, "{time}");
            assert!(
                ["stdout", "stderr"].contains(&&*stream) && ["P", "F"].contains(&&*tag),
                "{stream} {tag}"
            );
            Entry { time, stream, tag, content: fields.next().expect("a content").to_vec() }
        })
        .collect()
}

/// Entries without their times.
fn shown(path: &Path) -> Vec<String> {
    let text =
        |entry: Entry| format!("{} {} {}", entry.stream, entry.tag, String::from_utf8_lossy(&entry.content));
    entries(path).into_iter().map(text).collect()
}
