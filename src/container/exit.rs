//! What happens when a container ends.
//!
//! An exit comes as an event, or is found by comparing with containerd's task list after
//! a reconnect (design D10). It is handled once: output drained, OOM found out, task
//! deleted so that its shim ends, then the status says EXITED.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::Containers;
use super::files::remove_folder;
use crate::containerd::{Exit, ProcessStatus};
use crate::error::{Error, Kind, Result};
use crate::flow::lock;
use crate::proto::cri::{ContainerState, NamespaceMode};
use crate::state::Container;
use crate::state::container::{Status, UNKNOWN_CODE, now};
use crate::trace;

/// How long the search for an OOM kill may take.
const OOM_LIMIT: Duration = Duration::from_secs(2);
/// How long deleting a task may take before the exit is shown anyway: more than the 10 s for
/// which shims since containerd 2.2 wait for output that a child holds.
const DELETE_LIMIT: Duration = Duration::from_secs(20);
/// How long the output of a container is waited for of which something may live still.
const SHARED_DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Exit code of a process that got SIGKILL.
const KILLED: u32 = 137;
const SIGKILL: u32 = 9;

impl Containers {
    /// Handles the end of `container`'s main process, unless that is under way already.
    pub fn exited(&self, container: Arc<Container>, exit: Exit) {
        if !lock(&self.exits).insert(container.id.to_string()) {
            return;
        }
        let this = self.clone();
        // Tracked: a server that stops finishes what it has begun to record, and what its
        // last calls wait for.
        let flow = self.flow.clone();
        tokio::spawn(async move {
            let (id, compared) = (container.id.to_string(), container.clone());
            let worker = this.clone();
            let span = trace::background("exit", &id);
            let handled = span.in_scope(|| {
                worker.tell_of(&container);
                flow.conclude(async move { worker.handle_exit(&container, exit).await })
            });
            drop(span);
            let is_stale = handled.await.unwrap_or_else(|error| {
                warn!(container = id, %error, "the exit of a container was not handled");
                false
            });
            lock(&this.exits).remove(&id);
            // Its own end may have come meanwhile, and was taken for the other.
            if is_stale && let Err(error) = this.compare(&compared).await {
                warn!(container = id, %error, "it is not known whether a container has ended");
            }
        });
    }

    /// Remembers that the kernel killed in the container's cgroup for memory (CTR-22). The event
    /// may come after the end, when the cgroup could no longer be asked.
    pub async fn out_of_memory(&self, container: &Container) {
        info!(container = %container.id, "the kernel killed for memory");
        let marked = container
            .change(|status| {
                if status.finished_at == 0 || status.reason.is_empty() {
                    "OOMKilled".clone_into(&mut status.reason);
                }
                Ok(())
            })
            .await;
        if let Err(error) = marked {
            warn!(container = %container.id, %error, "the OOM kill could not be stored");
        }
    }

    /// Records an end; true if it is not that of the process that runs now.
    async fn handle_exit(&self, container: &Container, mut exit: Exit) -> Result<bool> {
        let was_starting = container.status().starting;
        let mut status = container.watch();
        // A start that is under way records itself first.
        let _ = status.wait_for(|status| !status.starting).await;
        let before = container.status();
        if before.finished_at != 0 {
            return self.discard_task(container.id.as_str()).await.map(|()| false);
        }
        if before.state() == ContainerState::ContainerCreated {
            return self.discard_unstarted(container).await.map(|()| false);
        }
        // What has ended may have been made and discarded before the start.
        let may_be_stale = was_starting || exit.at < before.started_at;
        if may_be_stale && let Ok(process) = self.containerd.process(container.id.as_str(), "").await {
            match process.status {
                ProcessStatus::Running => return Ok(true),
                ProcessStatus::Stopped => exit = process.exit,
                _ => {}
            }
        }
        if exit.at == 0 {
            exit.at = now();
        }
        // The event of an OOM kill may be late; SIGKILL from here needs no other reason.
        let is_unexplained = exit.code == KILLED && before.reason.is_empty() && !container.is_kill_sent();
        let oom = is_unexplained && self.was_oom_killed(container).await;
        // First the file: once the task is gone nobody else knows the code.
        let reason = if oom { "OOMKilled" } else { "" };
        let stored = container.store_end(exit, reason).await;
        // All of the container's processes are dead: those of a pid namespace with its first,
        // the others by the shim before it told of the end (CTR-39). What they have written is
        // waited for before the deletion, since a shim that is asked to delete gives up what it
        // has not passed on within 2 s.
        let deleted = if owns_pid_namespace(container) {
            self.drain(container).await;
            self.show_end(container, exit, reason, stored).await;
            self.delete_exited(container).await
        } else {
            // Whom the shim could not kill dies with the deletion, which is not to wait for
            // output that somebody outside holds.
            let _ = tokio::time::timeout(SHARED_DRAIN_LIMIT, self.drain(container)).await;
            let (deleted, ()) = tokio::join!(self.delete_exited(container), self.drain(container));
            self.show_end(container, exit, reason, stored).await;
            deleted
        };
        self.close_output(container).await;
        deleted.map(|()| false)
    }

    /// Waits until all output of an ended container is in its log, for a limited time.
    pub(crate) async fn drain(&self, container: &Container) {
        let limit = Duration::from_secs(self.config.file.container.exit_drain_timeout_s);
        match self.keeper.drained(container.id.as_str(), limit).await {
            Ok(true) => {}
            Ok(false) => {
                warn!(container = %container.id, "output was still open at the end of the drain limit")
            }
            Err(error) => warn!(container = %container.id, %error, "the output was not drained"),
        }
    }

    /// Deletes the task of a container that never ran: it has no end (REC-09). Who starts it now,
    /// or finds out whether it was started, has a task of its own.
    async fn discard_unstarted(&self, container: &Container) -> Result<()> {
        let Ok(_operation) = container.operation.try_lock() else { return Ok(()) };
        if container.is_unsettled() || container.state() != ContainerState::ContainerCreated {
            return Ok(());
        }
        self.discard_task(container.id.as_str()).await
    }

    async fn show_end(&self, container: &Container, exit: Exit, reason: &str, stored: Option<Status>) {
        container.end(exit, reason, stored).await;
        self.tell(container);
        let reason = container.status().shown_reason();
        info!(container = %container.id, code = exit.code, reason, "container exited");
    }

    /// Asks the cgroup, since the event may be late or lost (CTR-21).
    async fn was_oom_killed(&self, container: &Container) -> bool {
        let asked = tokio::time::timeout(OOM_LIMIT, self.containerd.oom_kills(container.id.as_str())).await;
        match asked {
            Ok(Ok(kills)) => kills > 0,
            Ok(Err(error)) => {
                debug!(container = %container.id, %error, "no memory metrics at the exit");
                false
            }
            Err(_) => false,
        }
    }

    async fn delete_exited(&self, container: &Container) -> Result<()> {
        let id = container.id.as_str();
        let deleted = async {
            let _only = self.deleting.lock(id).await;
            self.delete_task(id).await
        };
        match tokio::time::timeout(DELETE_LIMIT, deleted).await {
            Ok(result) => result,
            Err(_) => Err(crate::error::deadline(format!("the task of {id} was not deleted in time"))),
        }
    }

    /// Forgets the output of an ended container and removes its FIFOs.
    pub(crate) async fn close_output(&self, container: &Container) {
        if let Err(error) = self.keeper.remove(container.id.as_str()).await {
            warn!(container = %container.id, %error, "the output could not be closed");
        }
        let fifos = self.paths.container_state(&container.id).join("io");
        if let Err(error) = remove_folder(&fifos).await {
            warn!(container = %container.id, %error, "the FIFOs could not be removed");
        }
    }

    /// Kills and deletes the task that a failed start could not delete.
    ///
    /// # Errors
    /// As [`Containers::discard_task`].
    pub(crate) async fn discard_left_task(&self, container: &Container) -> Result<()> {
        self.discard_task(container.id.as_str()).await?;
        container.mark_left_task(false);
        Ok(())
    }

    /// Kills and deletes whatever task there is under `id`; none is fine.
    ///
    /// # Errors
    /// What containerd says when the task does not go.
    pub async fn discard_task(&self, id: &str) -> Result<()> {
        let _only = self.deleting.lock(id).await;
        match self.containerd.process(id, "").await {
            // What containerd can no longer ask, it may still have to forget.
            Err(error) if error.is_not_found() => return self.delete_task(id).await,
            Ok(process) if process.status == ProcessStatus::Stopped => return self.delete_task(id).await,
            Err(error) if error.kind() == Kind::Unavailable => return Err(error),
            _ => {}
        }
        let killed = match self.containerd.kill(id, "", SIGKILL, true).await {
            Err(error) if error.kind() == Kind::Unavailable => return Err(error),
            other => other,
        };
        match tokio::time::timeout(DELETE_LIMIT, self.containerd.wait(id, "")).await {
            Ok(_) => self.delete_task(id).await,
            Err(_) => {
                killed?;
                Err(crate::error::deadline(format!("the task of {id} does not end after SIGKILL")))
            }
        }
    }

    /// Deletes an ended task. The caller holds `deleting`: of two calls at the same time
    /// containerd may end neither the shim of the one nor of the other.
    async fn delete_task(&self, id: &str) -> Result<()> {
        let error = match self.containerd.delete_task(id).await {
            Err(error) if !error.is_not_found() => error,
            _ => return Ok(()),
        };
        match self.containerd.process(id, "").await {
            // The shim may have ended meanwhile, and with it the task.
            Err(gone) if gone.is_not_found() => Ok(()),
            Ok(process) if process.status == ProcessStatus::Stopped && is_forgotten(id, &error) => {
                info!(id, %error, "the OCI runtime has forgotten an ended task: it goes with its shim");
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Compares a container with containerd's task (REC-05 … REC-09, REC-18), and says whether
    /// its end was missed, which is then taken up.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn compare(&self, container: &Arc<Container>) -> Result<bool> {
        let status = container.status();
        if status.state() != ContainerState::ContainerRunning || status.starting {
            return Ok(false);
        }
        let asked = self.containerd.process(container.id.as_str(), "").await;
        // It may have been taken up while that was asked.
        let is_known = container.state() != ContainerState::ContainerRunning;
        if is_known || lock(&self.exits).contains(container.id.as_str()) {
            return Ok(false);
        }
        match asked {
            Ok(process) if process.status == ProcessStatus::Stopped => {
                self.exited(container.clone(), process.exit)
            }
            Ok(_) => return Ok(false),
            Err(error) if error.is_not_found() => self.lost(container).await,
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// The task is gone and nobody saw its end (REC-06).
    pub(crate) async fn lost(&self, container: &Container) {
        if lock(&self.exits).contains(container.id.as_str()) {
            return;
        }
        warn!(container = %container.id, "the task of a running container is gone");
        let code = u32::try_from(UNKNOWN_CODE).unwrap_or_default();
        container.end(Exit { code, at: 0 }, "Unknown", None).await;
        self.tell(container);
        self.close_output(container).await;
    }
}

/// Whether a task could not be deleted because its OCI runtime does not know it any more: one
/// whose deletion was cut off behind its own work, as when containerd dies. Where runc says so
/// the shim understands it. Where crun does, each deletion fails again, but there is nothing
/// left that it could delete.
fn is_forgotten(id: &str, error: &Error) -> bool {
    let text = error.message();
    text.contains("failed to delete task") && text.contains("No such file or directory") && text.contains(id)
}

fn owns_pid_namespace(container: &Container) -> bool {
    container
        .metadata
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.as_ref())
        .is_some_and(|options| options.pid == NamespaceMode::Container as i32)
}
