//! Exec: a command whose streams are a client's.
//!
//! ```text
//! client ─▶ session.stdin ──▶ FIFO ─▶ shim ─▶ process
//!        ◀─ session.stdout ◀─ FIFO ◀─ shim ◀─
//! ```
//!
//! Who ends first:
//!
//! | who | what follows |
//! |---|---|
//! | the process | its output is read to the end, for a limited time if a child holds it (EXE-05); then the exit code |
//! | the client's input | the process's input ends (EXE-15); a terminal has no such end and stays as it is |
//! | the client | its process goes on without input, and its output is thrown away (EXE-16); with a terminal that is a hang-up: the shim closes it, and the kernel sends SIGHUP |
//! | the server | the session ends; the next server does as after a client that has gone (REC-14) |
//!
//! containerd's plugin does not end the input of a terminal whose client has gone, and reads
//! no more: the process stays, and blocks as soon as its pipes are full. CRI-O ends the input
//! only without a terminal. Neither kills.

use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{MaybeDone, maybe_done};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::ending::is_unanswered;
use super::{PAUSE, START_LIMIT};
use crate::container::Containers;
use crate::container::terminal::Sizes;
use crate::containerd::{ExecRequest as NewExec, Exit, ProcessStatus};
use crate::error::{Result, canceled, invalid, unavailable};
use crate::ids::random_hex;
use crate::io::fifo::{Fifos, Wanted};
use crate::io::pipe::{InputPipe, OutputPipe, ProcessEnd};
use crate::io::session::{Incoming, Outgoing, Session};
use crate::proto::cri::ExecRequest;
use crate::state::Container;

/// Exec ids of sessions begin with this: a later server tells them from those of ExecSync,
/// whose callers have died with the one that started them.
const ID_PREFIX: &str = "session-";

impl Containers {
    /// Whether a request to exec can be met (EXE-12). The same is asked again when
    /// its client connects.
    ///
    /// # Errors
    /// InvalidArgument; NotFound; FailedPrecondition unless the container runs.
    pub fn check_exec(&self, request: &ExecRequest) -> Result<()> {
        self.exec_target(&request.container_id, &request.cmd).map(drop)
    }

    /// Runs a command in a container with a client's streams, and gives its exit code.
    /// When this returns, all output was handed over and the session's streams have ended;
    /// the status is for the caller to send (STM-18). What was made for the process is
    /// removed after that: the client need not wait for it.
    ///
    /// The process is looked after on a task of its own: the caller may stop waiting.
    ///
    /// # Errors
    /// InvalidArgument, NotFound and FailedPrecondition as [`Containers::check_exec`]; the
    /// runtime's whole text when the process does not start (EXE-08); Unavailable when the
    /// server stops.
    pub async fn exec(
        &self,
        container_id: &str,
        cmd: Vec<String>,
        tty: bool,
        session: Session,
    ) -> Result<i32> {
        let container = self.exec_target(container_id, &cmd)?;
        let this = self.clone();
        let (tell, told) = oneshot::channel();
        let whole = self.flow.detach(async move {
            let done = this.exec_session(&container, cmd, tty, session, tell).await;
            done.map_err(|error| error.context(format!("exec in container {}", container.id)))
        });
        tokio::select! {
            biased;
            Ok(code) = told => Ok(code),
            ended = whole => ended,
        }
    }

    fn exec_target(&self, container_id: &str, cmd: &[String]) -> Result<Arc<Container>> {
        if container_id.is_empty() {
            return Err(invalid("no container id is given"));
        }
        let container = self.store.container(container_id)?;
        if cmd.is_empty() {
            return Err(invalid("no command is given"));
        }
        container.require_running()?;
        self.containerd.capabilities()?;
        Ok(container)
    }

    async fn exec_session(
        &self,
        container: &Arc<Container>,
        command: Vec<String>,
        tty: bool,
        session: Session,
        tell: oneshot::Sender<i32>,
    ) -> Result<i32> {
        if session.gone.is_cancelled() {
            return Err(canceled("the client went away"));
        }
        let exec_id = format!("{ID_PREFIX}{}", random_hex::<32>());
        // Output that the client does not want is read as well: a process may need somebody
        // who does.
        let wanted = Wanted { stdin: session.stdin.is_some(), stdout: true, stderr: !tty };
        let (fifos, process) = tokio::join!(
            self.make_fifos(container.id.as_str(), &exec_id, wanted),
            self.exec_spec(container, command, tty)
        );
        let fifos = fifos?;
        let exec = Exec { containers: self, container, exec_id: &exec_id, fifos: &fifos, tty };
        let ended = match process {
            Ok(process) => exec.run(process, session).await,
            Err(error) => Err(error),
        };
        if matches!(ended, Ok(None)) {
            return Err(unavailable("the server is stopping"));
        }
        let code = ended.map(|exit| exit.map_or(-1, |exit| i32::try_from(exit.code).unwrap_or(-1)));
        if let Ok(code) = code {
            let _ = tell.send(code);
        }
        self.end_exec(container, &exec_id, &fifos).await;
        code
    }

    /// Looks after a session's process whose server has gone, until it ends (REC-14): its
    /// input ends and its output is thrown away, as after a client that has gone. `false`
    /// if `exec_id` is none of a session, or the process has ended.
    pub(crate) async fn outlast_session(&self, container: &Container, exec_id: &str, fifos: &Fifos) -> bool {
        if !exec_id.starts_with(ID_PREFIX) {
            return false;
        }
        let id = container.id.as_str();
        let is_running = loop {
            match self.containerd.process(id, exec_id).await {
                Ok(process) => {
                    break !matches!(process.status, ProcessStatus::Created | ProcessStatus::Stopped);
                }
                // It is not to be killed because nobody could be asked.
                Err(error) if is_unanswered(&error) => tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = container.ended() => break false,
                },
                Err(_) => break false,
            }
        };
        if !is_running {
            return false;
        }
        debug!(container = id, exec = exec_id, "waiting for the process of a session that has ended");
        let exec = Exec { containers: self, container, exec_id, fifos, tty: fifos.stderr.is_none() };
        let end = ProcessEnd::new(self.exec_drain_limit());
        let never = CancellationToken::new();
        let (stdout, stderr) =
            match (open(fifos.stdout.as_deref(), true), open(fifos.stderr.as_deref(), true)) {
                (Ok(stdout), Ok(stderr)) => (stdout, stderr),
                (Err(error), _) | (_, Err(error)) => {
                    warn!(container = id, %error, "the output of an exec cannot be read");
                    return false;
                }
            };
        let process = async {
            exec.close_stdin().await;
            let ended = self.exec_ended(container, exec_id).await;
            end.tell();
            ended.is_ok()
        };
        let outputs =
            async { tokio::join!(forward(stdout, None, &never, &end), forward(stderr, None, &never, &end)) };
        tokio::join!(process, outputs).0
    }

    fn exec_drain_limit(&self) -> Duration {
        Duration::from_secs(self.config.file.container.exec_drain_timeout_s)
    }
}

fn open(path: Option<&Path>, started: bool) -> Result<Option<OutputPipe>> {
    path.map(|path| OutputPipe::open(path, started)).transpose()
}

async fn forward(pipe: Option<OutputPipe>, to: Option<Outgoing>, gone: &CancellationToken, end: &ProcessEnd) {
    if let Some(pipe) = pipe {
        pipe.forward(to, gone, end).await;
    }
}

/// The process of a session.
struct Exec<'a> {
    containers: &'a Containers,
    container: &'a Container,
    exec_id: &'a str,
    fifos: &'a Fifos,
    tty: bool,
}

impl Exec<'_> {
    /// Starts the process and talks with it until it has ended; `None` if the server stops
    /// before.
    async fn run(&self, process: Vec<u8>, mut session: Session) -> Result<Option<Exit>> {
        let (containerd, id) = (&self.containers.containerd, self.container.id.as_str());
        let started = CancellationToken::new();
        let sizes = Sizes::new(session.resizes.take().filter(|_| self.tty));
        let resizing = sizes.apply(containerd, (id, self.exec_id), &started);
        let talking = async {
            let stdout = open(self.fifos.stdout.as_deref(), false)?;
            let stderr = open(self.fifos.stderr.as_deref(), false)?;
            let place = tokio::select! {
                place = self.containers.starting_execs.take(self.container.pod_id.as_str()) => place,
                () = session.gone.cancelled() => return Err(canceled("the client went away")),
                () = self.containers.flow.stopping() => return Ok(None),
            };
            containerd.create_exec(self.request(process)).await?;
            let end = ProcessEnd::new(self.containers.exec_drain_limit());
            // Asked for before the start: the end of a short process is known with it.
            let mut process = pin!(maybe_done(async {
                let ended = self.containers.exec_ended(self.container, self.exec_id).await;
                end.tell();
                ended
            }));
            let mut start = pin!(containerd.start_process(id, self.exec_id, START_LIMIT));
            std::future::poll_fn(|cx| {
                let _ = process.as_mut().poll(cx);
                start.as_mut().poll(cx)
            })
            .await?;
            drop(place);
            started.cancel();
            self.talk(session, (stdout, stderr), process, &end).await.transpose()
        };
        tokio::select! {
            ended = talking => ended,
            // It never completes.
            () = resizing => Ok(None),
        }
    }

    fn request(&self, process: Vec<u8>) -> NewExec {
        NewExec {
            container_id: self.container.id.to_string(),
            exec_id: self.exec_id.to_owned(),
            stdin: Fifos::to_task(self.fifos.stdin.as_deref()),
            stdout: Fifos::to_task(self.fifos.stdout.as_deref()),
            stderr: Fifos::to_task(self.fifos.stderr.as_deref()),
            terminal: self.tty,
            process,
        }
    }

    /// Talks with the started process until `process`, its end, and all its output are
    /// there; `None` if the server stops before.
    async fn talk<F: Future<Output = Result<Exit>>>(
        &self,
        session: Session,
        (stdout, stderr): (Option<OutputPipe>, Option<OutputPipe>),
        mut process: Pin<&mut MaybeDone<F>>,
        end: &ProcessEnd,
    ) -> Option<Result<Exit>> {
        let Session { stdin, stdout: to_stdout, stderr: to_stderr, gone, .. } = session;
        let all = async {
            tokio::join!(
                process.as_mut(),
                forward(stdout, to_stdout, &gone, end),
                forward(stderr, to_stderr, &gone, end)
            );
            process.as_mut().take_output()
        };
        tokio::select! {
            ended = all => ended,
            () = self.feed(stdin, &gone) => None,
            () = self.containers.flow.stopping() => None,
        }
    }

    /// Brings the client's input to the process. Never completes.
    async fn feed(&self, stdin: Option<Incoming>, gone: &CancellationToken) {
        if let (Some(mut from), Some(path)) = (stdin, self.fifos.stdin.as_deref()) {
            let fed = async {
                let mut pipe = InputPipe::open(path).await?;
                let is_read = pipe.feed(&mut from).await.is_ok();
                drop(from);
                if is_read && self.tty {
                    std::future::pending::<()>().await;
                }
                Ok(())
            };
            let fed: Result<()> = tokio::select! {
                fed = fed => fed,
                () = gone.cancelled() => Ok(()),
            };
            if let Err(error) = fed {
                warn!(container = %self.container.id, %error, "no input for an exec");
            }
            self.close_stdin().await;
        }
        std::future::pending().await
    }

    /// The shim holds the FIFO open as well, until it is told.
    async fn close_stdin(&self) {
        if self.fifos.stdin.is_none() {
            return;
        }
        let id = self.container.id.as_str();
        if let Err(error) = self.containers.containerd.close_stdin(id, self.exec_id).await {
            debug!(container = id, exec = self.exec_id, %error, "the input of an exec was not closed");
        }
    }
}
