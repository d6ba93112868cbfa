//! A state folder with a keeper, and a writer that does as a shim does.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longshore::io::fifo::{Fifos, Wanted};
use longshore::io::{ContainerIo, Keeper, KeeperOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How often something is looked at that tells nobody when it changes.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn exe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_longshore"))
}

/// Looks until there is something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(PAUSE);
    }
}

/// A state folder. Its keeper is ended with the value; clients have to go before.
pub(crate) struct Scene {
    pub(crate) folder: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        Scene { folder: tempfile::tempdir().expect("a folder") }
    }

    /// A server's view of the keeper, which is started when first used.
    pub(crate) fn client(&self) -> Keeper {
        self.client_of(exe())
    }

    /// That of a server which is another program.
    pub(crate) fn client_of(&self, exe: PathBuf) -> Keeper {
        let options = KeeperOptions { call_limit: LIMIT, start_limit: LIMIT, ..KeeperOptions::default() };
        Keeper::new(exe, self.folder.path(), options)
    }

    /// Another program that is a keeper as well, as after an upgrade.
    pub(crate) fn other_program(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::copy(exe(), &path).expect("copied");
        path
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("keeper.sock")
    }

    pub(crate) fn connect(&self) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// Who listens at the socket.
    pub(crate) fn process(&self) -> Option<Process> {
        let stream = self.connect().ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).expect("a socket has a peer");
        let pidfd = pidfd_open(peer.pid, PidfdFlags::empty()).ok()?;
        Some(Process { pid: peer.pid, pidfd })
    }

    pub(crate) fn running(&self) -> Process {
        until("a keeper listens", || self.process())
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.folder.path().join("pods").join(id).join("0.log")
    }

    /// FIFOs and a log for all three streams of a container.
    pub(crate) fn io(&self, id: &str) -> ContainerIo {
        let wanted = Wanted { stdin: true, stdout: true, stderr: true };
        let fifos = Fifos::make(self.folder.path(), id, id, wanted).expect("made");
        ContainerIo {
            id: id.to_owned(),
            stdin: fifos.stdin,
            stdout: fifos.stdout,
            stderr: fifos.stderr,
            log_path: Some(self.log(id)),
            log_root: None,
            line_bytes_max: 16 << 10,
            bytes_per_second_max: 0,
            started: false,
        }
    }

    /// What the log holds once it ends with `text`.
    pub(crate) fn logged(&self, id: &str, text: &str) -> Vec<String> {
        until(&format!("{text:?} is in the log of {id}"), || {
            let shown = shown(&self.log(id));
            shown.last().is_some_and(|last| last.ends_with(text)).then_some(shown)
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        while let Some(process) = self.process() {
            process.signal(Signal::KILL);
            process.ended();
        }
    }
}

/// The entries of a log without their times.
pub(crate) fn shown(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|entry| entry.split_once(' ').expect("a time").1.to_owned()).collect()
}

/// A keeper process, whoever started it.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for its end.
    pub(crate) fn ended(&self) {
        let limit = Timespec::try_from(LIMIT).expect("it fits");
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&limit)).expect("polled"), 1, "the keeper has not ended");
    }

    /// Memory that it has now.
    pub(crate) fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

/// Both ends of a FIFO, as the shim opens them: first for writing, then for reading.
pub(crate) struct Shim {
    pub(crate) writer: File,
    _reader: File,
}

impl Shim {
    pub(crate) fn open(path: &Option<PathBuf>) -> Shim {
        let path = path.as_ref().expect("wanted");
        let writer = File::options().write(true).open(path).expect("somebody reads");
        Shim { writer, _reader: File::open(path).expect("somebody writes") }
    }

    /// Those of stdout and stderr.
    pub(crate) fn pair(io: &ContainerIo) -> (Shim, Shim) {
        (Shim::open(&io.stdout), Shim::open(&io.stderr))
    }

    pub(crate) fn write(&mut self, text: impl AsRef<[u8]>) {
        self.writer.write_all(text.as_ref()).expect("the FIFO takes it");
    }
}
