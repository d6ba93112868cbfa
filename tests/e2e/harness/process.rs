//! Child processes that do not outlive the tests.
//!
//! The kernel tells a child of its parent's death (`PR_SET_PDEATHSIG`, by setpriv), and
//! means the thread that started it: so one thread that lives as long as the test process
//! starts them all. Dropping ends a child the gentle way first.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{PAUSE, patient};

/// How long a child may take to end by itself when it is dropped.
const END_LIMIT: Duration = Duration::from_secs(5);
/// How long SIGKILL may take: a thread that waits for a busy disk ends when that answers.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// A running child with its log.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// A command whose process ends with this one.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

impl Process {
    /// Starts a command made by [`command`]; what it prints is appended to the file `log`.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Process {
        let file = File::options().create(true).append(true).open(log).expect("a log file");
        command.stdin(Stdio::null()).stderr(file.try_clone().expect("a descriptor")).stdout(file);
        let child = spawn(command).unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Process { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its id, which stays its own until this is dropped.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> String {
        read_log(&self.log)
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Not waited for yet: the id cannot be another's.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() > end {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends it with SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.signal(Signal::KILL);
        assert!(self.wait(patient(KILL_LIMIT)).await.is_some(), "{} survives SIGKILL", self.name);
    }

    /// Ends it with SIGTERM, which must do within `limit`.
    pub(crate) async fn terminate(mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let ended = self.wait(limit).await;
        ended.unwrap_or_else(|| panic!("{} goes on after SIGTERM:\n{}", self.name, tail(&self.log(), 40)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_alive() {
            return;
        }
        self.signal(Signal::TERM);
        let end = Instant::now() + patient(END_LIMIT);
        while self.is_alive() && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A log as text, whatever is in it.
pub(crate) fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, started) = mpsc::channel();
    let sent = spawner.lock().map(|spawner| spawner.send((command, answer)).is_ok());
    assert!(sent.is_ok_and(|sent| sent), "the thread that starts processes is gone");
    started.recv().expect("the thread answers")
}
