//! ExecSync.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use super::START_LIMIT;
use super::ending::is_unanswered;
use crate::container::Containers;
use crate::containerd::{ExecRequest, Exit};
use crate::error::{Context, Result, canceled, deadline, invalid, unavailable};
use crate::flow::Place;
use crate::ids::random_hex;
use crate::io::capture::{Capture, Output};
use crate::io::fifo::{Fifos, Wanted};
use crate::proto::cri::{ExecSyncRequest, ExecSyncResponse};
use crate::spec;
use crate::spec::oci::Process;
use crate::state::Container;

/// Room for exit code and framing in an answer of at most 16 MiB (EXE-03).
const ANSWER_BYTES_MAX: usize = (16 << 20) - 4096;

impl Containers {
    /// Runs a command in a container and gives its output and exit code.
    ///
    /// The process is cleaned up on a task of its own: neither a time-out nor a client
    /// that goes away leaves it behind (EXE-07, EXE-09).
    ///
    /// # Errors
    /// InvalidArgument without a command; FailedPrecondition unless the container runs;
    /// DeadlineExceeded after the time-out; the runtime's text when it does not start.
    pub async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
        let container = self.store.container(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(invalid("no command is given"));
        }
        container.require_running()?;
        // A probe while containerd is away is to leave nothing that would wait for it.
        self.containerd.capabilities()?;
        let limit = u64::try_from(request.timeout).ok().filter(|limit| *limit > 0).map(Duration::from_secs);
        let (this, command) = (self.clone(), request.cmd);
        let (abandoned, gone) = oneshot::channel::<()>();
        let run = self.flow.detach(async move { this.exec_tracked(&container, command, limit, gone).await });
        let answer = run.await;
        drop(abandoned); // dropped earlier when the client goes away
        answer
    }

    async fn exec_tracked(
        &self,
        container: &Arc<Container>,
        command: Vec<String>,
        limit: Option<Duration>,
        gone: oneshot::Receiver<()>,
    ) -> Result<ExecSyncResponse> {
        let exec_id = random_hex::<32>();
        let wanted = Wanted { stdin: false, stdout: true, stderr: true };
        let fifos = self.make_fifos(container.id.as_str(), &exec_id, wanted).await?;
        let exec = Exec { containers: self, container, exec_id: &exec_id, fifos: &fifos };
        let result = match exec.create(command, gone).await {
            Ok(created) => {
                let result = exec.run(created, limit).await;
                self.end_exec(container, &exec_id, &fifos).await;
                result
            }
            Err(error) => {
                // What containerd does not answer for is looked at when it does.
                match is_unanswered(&error) {
                    true => self.end_exec_later(container, &exec_id, &fifos),
                    false => drop(self.end_exec(container, &exec_id, &fifos).await),
                }
                Err(error)
            }
        };
        result.map_err(|error| error.context(format!("exec in container {}", container.id)))
    }

    /// The container's own process with other arguments (EXE-06), as JSON.
    pub(super) async fn exec_spec(
        &self,
        container: &Container,
        args: Vec<String>,
        tty: bool,
    ) -> Result<Vec<u8>> {
        let mut process = self.process_of(container).await?;
        process.args = args;
        process.terminal = tty;
        if tty {
            spec::process::set(&mut process.env, "TERM=xterm".to_owned());
        }
        serde_json::to_vec(&process)
            .map_err(|error| crate::error::internal(error.to_string()))
            .context(|| "process of the exec")
    }

    /// The container's own process; containerd is asked for it once.
    async fn process_of(&self, container: &Container) -> Result<Process> {
        let broken = |error: serde_json::Error| crate::error::internal(error.to_string());
        if let Some(json) = container.process.get() {
            return serde_json::from_slice(json).map_err(broken);
        }
        let id = container.id.as_str();
        let record = self.containerd.container(id).await?;
        let process = spec::parse(&record.spec, id)?.process.unwrap_or_default();
        let json = serde_json::to_vec(&process).map_err(broken)?;
        container.process.get_or_init(|| json.into());
        Ok(process)
    }
}

/// An exec process, which must not be left behind.
struct Exec<'a> {
    containers: &'a Containers,
    container: &'a Arc<Container>,
    exec_id: &'a str,
    fifos: &'a Fifos,
}

/// What is known of a process that was created.
struct Created {
    capture: Capture,
    place: Place,
    gone: oneshot::Receiver<()>,
}

impl Exec<'_> {
    async fn create(&self, command: Vec<String>, mut gone: oneshot::Receiver<()>) -> Result<Created> {
        let (containers, id) = (self.containers, self.container.id.as_str());
        let capture = Capture::open(self.fifos, containers.config.file.container.exec_sync_bytes_max)?;
        let request = ExecRequest {
            container_id: id.to_owned(),
            exec_id: self.exec_id.to_owned(),
            stdout: Fifos::to_task(self.fifos.stdout.as_deref()),
            stderr: Fifos::to_task(self.fifos.stderr.as_deref()),
            process: containers.exec_spec(self.container, command, false).await?,
            ..ExecRequest::default()
        };
        let place = tokio::select! {
            place = containers.starting_execs.take(self.container.pod_id.as_str()) => place,
            _ = &mut gone => return Err(canceled("the client went away")),
            () = containers.flow.stopping() => return Err(unavailable("the server is stopping")),
        };
        containers.containerd.create_exec(request).await?;
        Ok(Created { capture, place, gone })
    }

    async fn run(&self, created: Created, limit: Option<Duration>) -> Result<ExecSyncResponse> {
        let (containers, id) = (self.containers, self.container.id.as_str());
        let Created { capture, place, gone } = created;
        containers.containerd.start_process(id, self.exec_id, START_LIMIT).await?;
        drop(place);
        self.end(capture, limit, gone).await
    }

    /// Waits for the end of the process and of its output, or makes one.
    async fn end(
        &self,
        capture: Capture,
        limit: Option<Duration>,
        gone: oneshot::Receiver<()>,
    ) -> Result<ExecSyncResponse> {
        let process = async {
            tokio::select! {
                ended = self.containers.exec_ended(self.container, self.exec_id) => ended.map(Some),
                () = expire(limit) => Ok(None),
                _ = gone => Ok(None),
            }
        };
        tokio::pin!(process);
        let mut ended = None;
        // Output is read while the process runs, or it would block. After the process a
        // child may hold it for ever (EXE-05): what was read until then is kept.
        let drain_s = self.containers.config.file.container.exec_drain_timeout_s;
        let output = capture.read_until(async {
            let how = (&mut process).await;
            let is_over = matches!(how, Ok(Some(_)));
            ended = Some(how);
            tokio::time::sleep(Duration::from_secs(if is_over { drain_s } else { 0 })).await;
        });
        let output = output.await;
        let ended = match ended {
            Some(ended) => ended,
            None => process.await, // output that ended first says nothing about the process
        };
        match ended? {
            Some(exit) => {
                if !output.is_complete {
                    warn!(container = %self.container.id, "a child of an ended exec still holds its output");
                }
                Ok(answer(exit, output))
            }
            None => {
                match self.containers.kill_exec(self.container.id.as_str(), self.exec_id).await {
                    // It is killed once containerd answers.
                    Err(error) if is_unanswered(&error) => {
                        warn!(container = %self.container.id, %error, "a process could not be killed yet");
                    }
                    killed => killed?,
                }
                Err(match limit {
                    Some(limit) => deadline(format!("the command did not end within {} s", limit.as_secs())),
                    None => canceled("the client went away"),
                })
            }
        }
    }
}

async fn expire(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Cuts the two outputs so that they fit into one answer.
fn answer(exit: Exit, output: Output) -> ExecSyncResponse {
    let Output { mut stdout, mut stderr, .. } = output;
    if stdout.len() + stderr.len() > ANSWER_BYTES_MAX {
        let half = ANSWER_BYTES_MAX / 2;
        let stderr_room = half.max(ANSWER_BYTES_MAX.saturating_sub(stdout.len()));
        stderr.truncate(stderr_room);
        stdout.truncate(ANSWER_BYTES_MAX - stderr.len());
    }
    ExecSyncResponse { stdout, stderr, exit_code: i32::try_from(exit.code).unwrap_or(-1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_fits_into_a_message() {
        let output = |out: usize, err: usize| Output {
            stdout: vec![0; out],
            stderr: vec![0; err],
            ..Output::default()
        };
        let cut = |out, err| {
            let answer = answer(Exit { code: 3, at: 0 }, output(out, err));
            (answer.stdout.len(), answer.stderr.len())
        };
        let max = ANSWER_BYTES_MAX;
        assert_eq!(cut(10, 20), (10, 20));
        assert_eq!(cut(max, 0), (max, 0));
        assert_eq!(cut(max, 100), (max - 100, 100));
        assert_eq!(cut(100, max), (100, max - 100));
        assert_eq!(cut(max, max), (max - max / 2, max / 2));
    }
}
