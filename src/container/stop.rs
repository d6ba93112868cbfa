//! StopContainer.
//!
//! Nothing here runs detached: a client that goes away while the grace period runs ends
//! the wait, and no SIGKILL follows (CTR-37). Every call has a timer of its own, so a
//! second one with a shorter grace does not wait for the first (CTR-35). A server that stops
//! does not wait for grace periods: the client asks the next one.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info};

use super::Containers;
use crate::error::{Kind, Result, deadline, unavailable};
use crate::proto::cri::ContainerState;
use crate::spec::process::signal_number;
use crate::state::Container;
use crate::trace;

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// How long a container may live after SIGKILL: a process in the kernel cannot die before
/// it comes back.
const KILL_LIMIT: Duration = Duration::from_secs(110);
/// SIGKILL is sent again in this rhythm (CTR-34).
const KILL_AGAIN: Duration = Duration::from_secs(10);

impl Containers {
    /// Stops a container: its stop signal, `grace_s` seconds, then SIGKILL; without grace
    /// SIGKILL at once. Returns when the exit is recorded (CTR-36). Unknown and ended
    /// containers are fine (CTR-31).
    ///
    /// # Errors
    /// DeadlineExceeded when it survives SIGKILL; Unavailable when the server stops; those of
    /// containerd.
    pub async fn stop(&self, id: &str, grace_s: i64) -> Result<()> {
        let container = match self.store.container(id) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let stopped = tokio::select! {
            biased;
            stopped = self.stop_container(&container, grace_s) => stopped,
            () = self.flow.stopping() => Err(unavailable("the server is stopping")),
        };
        stopped.map_err(|error| error.context(format!("stop container {id}")))
    }

    pub(crate) async fn stop_container(&self, container: &Arc<Container>, grace_s: i64) -> Result<()> {
        // A start that is under way ends first: it is bounded.
        let mut status = container.watch();
        let started = status.wait_for(|status| !status.starting);
        let _ = trace::wait("the start that is under way", started).await;
        match container.state() {
            // Whoever is told that it has stopped takes down its volumes and its network.
            ContainerState::ContainerExited if container.has_left_task() => {
                return self.discard_left_task(container).await;
            }
            ContainerState::ContainerCreated | ContainerState::ContainerExited => return Ok(()),
            ContainerState::ContainerRunning | ContainerState::ContainerUnknown => {}
        }
        if let Ok(grace) = u64::try_from(grace_s)
            && grace > 0
        {
            if container.mark_stop_sent() {
                let signal = stop_signal(container);
                debug!(container = %container.id, signal, "stop signal");
                if let Err(error) = self.signal(container, signal).await {
                    container.unmark_stop_sent();
                    return Err(error);
                }
            }
            let ended = tokio::time::timeout(Duration::from_secs(grace), container.ended());
            if trace::wait("the end of the process after its stop signal", ended).await.is_ok() {
                return Ok(());
            }
            info!(container = %container.id, grace_s, "grace period over, sending SIGKILL");
        }
        self.kill_container(container).await
    }

    /// SIGKILL, again and again, until the exit is recorded.
    async fn kill_container(&self, container: &Arc<Container>) -> Result<()> {
        let end = tokio::time::Instant::now() + KILL_LIMIT;
        container.mark_kill_sent();
        while tokio::time::Instant::now() < end {
            self.signal(container, SIGKILL).await?;
            let ended = tokio::time::timeout(KILL_AGAIN, container.ended());
            if trace::wait("the end of the process after SIGKILL", ended).await.is_ok() {
                return Ok(());
            }
            self.compare(container).await?;
        }
        Err(deadline(format!("it still runs {} s after SIGKILL", KILL_LIMIT.as_secs())))
    }

    /// Sends a signal to the main process. That the process or the task is gone is fine:
    /// the exit is recorded then, or was lost and is made up (CTR-38).
    async fn signal(&self, container: &Arc<Container>, signal: u32) -> Result<()> {
        match self.containerd.kill(container.id.as_str(), "", signal, false).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => self.settle(container).await,
            // runc says so of a process that has just ended.
            Err(error)
                if error.kind() == Kind::Unknown && error.message().contains("process already finished") =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The process is gone: its exit is on the way, or its task is gone as well.
    async fn settle(&self, container: &Arc<Container>) -> Result<()> {
        match self.containerd.process(container.id.as_str(), "").await {
            Ok(process) if process.status == crate::containerd::ProcessStatus::Stopped => {
                self.exited(container.clone(), process.exit);
            }
            Err(error) if error.is_not_found() => self.lost(container).await,
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        Ok(())
    }
}

/// The number of a container's stop signal (CTR-33).
fn stop_signal(container: &Container) -> u32 {
    signal_number(&container.metadata.stop_signal).unwrap_or(SIGTERM)
}
