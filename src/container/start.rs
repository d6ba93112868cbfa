//! StartContainer.
//!
//! The output is opened before the task is made, since the shim waits for a reader; the
//! exit cannot be missed, since events are watched all the time and the handling of an
//! exit waits for the `starting` mark to go (CTR-14).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::Containers;
use crate::containerd::TaskRequest;
use crate::error::{Context, Result, precondition};
use crate::flow;
use crate::io::ContainerIo;
use crate::io::fifo::{Fifos, Wanted};
use crate::proto::cri::ContainerState;
use crate::spec::{self, Modes, paths};
use crate::state::Container;
use crate::state::container::{START_ERROR_CODE, now};
use crate::telemetry::traces;
use crate::trace;

/// The longest that the OCI runtime may take for each of create and start.
const RUNTIME_LIMIT: Duration = Duration::from_secs(110);

impl Containers {
    /// Starts a CREATED container. A failure makes it EXITED with reason StartError
    /// (CTR-15).
    ///
    /// # Errors
    /// NotFound; FailedPrecondition in any other state; the runtime's whole text (CTR-16).
    pub async fn start(&self, id: &str) -> Result<()> {
        let container = self.store.container(id)?;
        container.mark(|status| {
            if status.removing {
                return Err(precondition(format!("container {} is being removed", container.id)));
            }
            if status.starting {
                return Err(precondition(format!("container {} is being started", container.id)));
            }
            if status.state() != ContainerState::ContainerCreated {
                let state = status.state_name();
                return Err(precondition(format!("container {} is in state {state}", container.id)));
            }
            status.starting = true;
            Ok(())
        })?;
        let this = self.clone();
        self.flow
            .detach(async move {
                let _operation = trace::wait(trace::OTHERS, container.operation.lock()).await;
                let started = this.start_task(&container).await;
                // The error of the start is told where it was.
                let finished = async { Ok(this.finish(&container, started).await) };
                traces::stage("store the state", finished).await?
            })
            .await
    }

    /// Records how the start went.
    async fn finish(&self, container: &Arc<Container>, started: Result<u32>) -> Result<()> {
        let started = match started {
            Ok(pid) => {
                let saved = container
                    .change(|status| {
                        status.pid = pid;
                        status.started_at = now();
                        status.starting = false;
                        Ok(())
                    })
                    .await;
                saved.inspect(|()| info!(container = %container.id, pid, "container started"))
            }
            Err(error) => Err(error),
        };
        let Err(error) = started else {
            self.tell(container);
            return Ok(());
        };
        let error = error.context(format!("start container {}", container.id));
        self.undo_start(container).await;
        let failed = |status: &mut crate::state::container::Status| {
            status.pid = 0;
            status.finished_at = now();
            status.exit_code = START_ERROR_CODE;
            "StartError".clone_into(&mut status.reason);
            error.message().clone_into(&mut status.message);
            status.starting = false;
            Ok(())
        };
        if let Err(unsaved) = container.change(failed).await {
            warn!(container = %container.id, error = %unsaved, "the failed start could not be stored");
            container.mark(failed)?;
        }
        self.tell(container);
        Err(error)
    }

    async fn start_task(&self, container: &Arc<Container>) -> Result<u32> {
        let pod = self.store.pod(container.pod_id.as_str())?;
        pod.require_ready()?;
        let handler = self.handler_of(&pod)?;
        let config = &container.metadata.config;
        if let Some(target) = spec::pid_target(config) {
            self.target_pid(&pod, target)?;
        }
        let user = &container.user;
        let maps = Modes::of_pod(&pod.config)?.user;
        let io_owner = maps.and_then(|maps| maps.to_host(user.uid, user.gid));
        let id = container.id.as_str();
        let wanted = Wanted { stdin: config.stdin, stdout: true, stderr: !config.tty };
        let fifos = traces::stage("fifos", self.make_fifos(id, id, wanted)).await?;
        let (opened, rootfs) = tokio::join!(
            traces::stage("log", self.keeper.add(self.output_of(container, &fifos, false))),
            traces::stage("mounts", self.containerd.snapshot_mounts(&handler.snapshotter, id)),
        );
        opened?;
        let rootfs = rootfs.map_err(|error| error.with_kind(crate::error::Kind::FailedPrecondition))?;
        let task = TaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin: Fifos::to_task(fifos.stdin.as_deref()),
            stdout: Fifos::to_task(fifos.stdout.as_deref()),
            stderr: Fifos::to_task(fifos.stderr.as_deref()),
            terminal: config.tty,
            runtime_path: handler.shim_path.clone().unwrap_or_default(),
            options: io_owner.and_then(|owner| handler.options_with_io_owner(owner)),
        };
        let pid = traces::stage("create", self.containerd.create_task(task, RUNTIME_LIMIT)).await?;
        let started = traces::stage("start", self.containerd.start_process(id, "", RUNTIME_LIMIT)).await;
        started.context(|| "start its process")?;
        Ok(pid)
    }

    /// Makes the FIFOs of a process: the container's own, or an exec.
    pub(super) async fn make_fifos(&self, id: &str, process: &str, wanted: Wanted) -> Result<Fifos> {
        let (state, id, process) = (self.paths.state().to_owned(), id.to_owned(), process.to_owned());
        flow::blocking(move || Fifos::make(&state, &id, &process, wanted)).await
    }

    /// How the output of a container is kept; `started` says that its task exists.
    pub(crate) fn output_of(&self, container: &Container, fifos: &Fifos, started: bool) -> ContainerIo {
        let log_path = &container.metadata.log_path;
        let pod = self.store.pod(container.pod_id.as_str()).ok();
        let log_root = pod.map(|pod| PathBuf::from(paths::clean(&pod.config.log_directory)));
        // Records that others have made may have another path.
        let log_root = log_root.filter(|root| Path::new(log_path).starts_with(root));
        ContainerIo {
            id: container.id.to_string(),
            stdin: fifos.stdin.clone(),
            stdout: fifos.stdout.clone(),
            stderr: fifos.stderr.clone(),
            log_path: (!log_path.is_empty()).then(|| log_path.into()),
            log_root,
            line_bytes_max: self.config.file.container.log_line_bytes_max,
            bytes_per_second_max: self.config.file.container.log_bytes_per_second_max,
            started,
        }
    }

    /// Takes back what a failed start has made: task, output, FIFOs.
    async fn undo_start(&self, container: &Container) {
        if let Err(error) = self.discard_task(container.id.as_str()).await {
            warn!(container = %container.id, %error, "the task of a failed start could not be deleted");
            container.mark_left_task(true);
        }
        self.close_output(container).await;
    }
}
