//! A container: metadata that never changes, and a status that is watched.
//!
//! ```text
//!            start                exit
//! CREATED ───────────▶ RUNNING ─────────▶ EXITED ──▶ (removed)
//!    │ start failed: EXITED, code 128, StartError       ▲
//!    └──────────────────────────────────────────────────┘
//! UNKNOWN: the status file could not be read; only stop and remove are allowed (REC-10).
//! ```
//! One function changes a status ([`Container::change`]): it writes the file, then
//! publishes. `starting` and `removing` are marks of this process alone.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Mutex, watch};
use tracing::error;

use super::checkpoint::{self, StatusFile};
use super::record::ContainerMetadata;
use crate::containerd::Exit;
use crate::error::{Context, Result, precondition};
use crate::events::{Step, Told};
use crate::flow::{Disk, on_disk};
use crate::ids::{ContainerId, PodId};
use crate::proto::cri::{ContainerResources, ContainerState, LinuxContainerResources};
use crate::spec::oci::User;

/// Exit code of a container that never started (CTR-15).
pub const START_ERROR_CODE: i32 = 128;
/// Exit code where the true one is lost (CTR-20).
pub const UNKNOWN_CODE: i32 = 255;

/// A container's status. Times in nanoseconds since the epoch, 0 for not yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Pid on the host while running.
    pub pid: u32,
    /// Time of creation.
    pub created_at: i64,
    /// Time of start.
    pub started_at: i64,
    /// Time of the end.
    pub finished_at: i64,
    /// Exit code.
    pub exit_code: i32,
    /// Reason, where the exit code does not say it.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// Limits in force.
    pub resources: LinuxContainerResources,
    /// A start is under way.
    pub starting: bool,
    /// A removal is under way.
    pub removing: bool,
    /// The status file could not be read.
    pub unknown: bool,
}

impl Status {
    /// The CRI state (CTR-19).
    #[must_use]
    pub fn state(&self) -> ContainerState {
        if self.unknown {
            ContainerState::ContainerUnknown
        } else if self.finished_at != 0 {
            ContainerState::ContainerExited
        } else if self.started_at != 0 {
            ContainerState::ContainerRunning
        } else if self.created_at != 0 {
            ContainerState::ContainerCreated
        } else {
            ContainerState::ContainerUnknown
        }
    }

    /// The reason that the kubelet reads (CTR-20).
    #[must_use]
    pub fn shown_reason(&self) -> String {
        if self.state() != ContainerState::ContainerExited || !self.reason.is_empty() {
            return self.reason.clone();
        }
        if self.exit_code == 0 { "Completed".into() } else { "Error".into() }
    }

    /// The state's name for errors.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        self.state().as_str_name()
    }
}

impl From<&Status> for StatusFile {
    fn from(status: &Status) -> StatusFile {
        StatusFile {
            pid: status.pid,
            created_at: status.created_at,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            resources: Some(ContainerResources { linux: Some(status.resources.clone()), windows: None }),
            boot_id: checkpoint::boot_id(),
            ..StatusFile::default()
        }
    }
}

impl From<StatusFile> for Status {
    fn from(file: StatusFile) -> Status {
        Status {
            pid: file.pid,
            created_at: file.created_at,
            started_at: file.started_at,
            finished_at: file.finished_at,
            exit_code: file.exit_code,
            reason: file.reason,
            message: file.message,
            resources: file.resources.and_then(|resources| resources.linux).unwrap_or_default(),
            ..Status::default()
        }
    }
}

/// A container.
pub struct Container {
    /// Id.
    pub id: ContainerId,
    /// Its pod.
    pub pod_id: PodId,
    /// Metadata as recorded.
    pub metadata: Arc<ContainerMetadata>,
    /// Who its first process is.
    pub user: User,
    /// Held by whoever starts or removes the container.
    pub operation: Mutex<()>,
    /// What subscribers know of it.
    pub told: Told,
    /// Its first process as the spec has it, JSON, once somebody has asked for it: nothing
    /// changes it, and probes ask every few seconds (EXE-06).
    pub process: OnceLock<Box<[u8]>>,
    status: watch::Sender<Status>,
    /// Serialises changes: compute, write, publish. It has the end that is stored but not shown
    /// yet: whatever is written meanwhile must not take it from the file.
    changing: Mutex<Option<(Exit, String)>>,
    dir: PathBuf,
    /// What the file had that we do not know.
    extra: serde_json::Map<String, serde_json::Value>,
    /// Whether the stop signal was sent (CTR-34).
    stop_sent: AtomicBool,
    /// Whether it was sent SIGKILL from here.
    kill_sent: AtomicBool,
    /// Whether a status is shown that the file does not have.
    is_unsaved: AtomicBool,
    /// Whether a failed start could not be undone: the process may run.
    has_left_task: AtomicBool,
    /// Whether it is not known yet if the last server has started it.
    is_unsettled: AtomicBool,
}

impl Container {
    /// A container whose status file is in `dir`.
    #[must_use]
    pub fn new(metadata: ContainerMetadata, status: Status, dir: PathBuf, user: User) -> Container {
        Container {
            id: metadata.id.clone().into(),
            pod_id: metadata.sandbox_id.clone().into(),
            metadata: Arc::new(metadata),
            user,
            operation: Mutex::default(),
            told: Told::default(),
            process: OnceLock::new(),
            status: watch::Sender::new(status),
            changing: Mutex::default(),
            dir,
            extra: serde_json::Map::new(),
            stop_sent: AtomicBool::new(false),
            kill_sent: AtomicBool::new(false),
            is_unsaved: AtomicBool::new(false),
            has_left_task: AtomicBool::new(false),
            is_unsettled: AtomicBool::new(false),
        }
    }

    /// Keeps what a status file had of others.
    #[must_use]
    pub fn with_extra(mut self, extra: serde_json::Map<String, serde_json::Value>) -> Container {
        self.extra = extra;
        self
    }

    /// The status now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The CRI state now.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.status.borrow().state()
    }

    /// The status now and later.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The steps of its life so far.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let status = self.status.borrow();
        let mut steps = vec![Step::Created];
        steps.extend((status.started_at != 0).then_some(Step::Started));
        steps.extend((status.finished_at != 0).then_some(Step::Stopped));
        steps
    }

    /// Waits until the container has ended, and everything of its end is recorded.
    pub async fn ended(&self) {
        let mut status = self.status.subscribe();
        // The sender lives as long as `self`.
        let _ = status.wait_for(|status| status.finished_at != 0).await;
    }

    /// Marks the stop signal as sent, and says whether this was the first time.
    pub fn mark_stop_sent(&self) -> bool {
        !self.stop_sent.swap(true, Ordering::Relaxed)
    }

    /// Takes the mark back: the signal could not be sent.
    pub fn unmark_stop_sent(&self) {
        self.stop_sent.store(false, Ordering::Relaxed);
    }

    /// Marks that it is sent SIGKILL from here: its end by that needs no other reason.
    pub fn mark_kill_sent(&self) {
        self.kill_sent.store(true, Ordering::Relaxed);
    }

    /// Marks whether a failed start has left a task that could not be deleted.
    pub fn mark_left_task(&self, left: bool) {
        self.has_left_task.store(left, Ordering::Relaxed);
    }

    /// Marks whether it is not known yet if the last server has started it (REC-08, REC-09).
    pub fn mark_unsettled(&self, unsettled: bool) {
        self.is_unsettled.store(unsettled, Ordering::Relaxed);
    }

    /// Whether somebody is about to find out if it was started.
    pub fn is_unsettled(&self) -> bool {
        self.is_unsettled.load(Ordering::Relaxed)
    }

    /// Whether a process may run although the container is not shown as running.
    pub fn has_left_task(&self) -> bool {
        self.has_left_task.load(Ordering::Relaxed)
    }

    /// Whether it was sent SIGKILL from here.
    pub fn is_kill_sent(&self) -> bool {
        self.kill_sent.load(Ordering::Relaxed)
    }

    /// Changes the status: `change` decides, the file is written, the new status published.
    ///
    /// # Errors
    /// Those of `change` and of the file; nothing is published then.
    pub async fn change<T>(&self, change: impl FnOnce(&mut Status) -> Result<T>) -> Result<T> {
        let end = self.changing.lock().await;
        let mut status = self.status();
        let value = change(&mut status)?;
        let ended = end.as_ref().and_then(|(exit, reason)| ended_by(&status, *exit, reason));
        self.save(ended.as_ref().unwrap_or(&status)).await?;
        self.status.send_replace(status);
        Ok(value)
    }

    /// Changes marks that are not stored.
    ///
    /// # Errors
    /// Those of `change`; nothing is published then.
    pub fn mark(&self, change: impl FnOnce(&mut Status) -> Result<()>) -> Result<()> {
        let mut result = Ok(());
        self.status.send_if_modified(|status| {
            result = change(status);
            result.is_ok()
        });
        result
    }

    /// Stores the end without showing it, before anything that knows of it elsewhere goes:
    /// a server that is killed in between finds it. `exit` must have its time. Gives what
    /// was stored, for [`Container::end`].
    pub async fn store_end(&self, exit: Exit, reason: &str) -> Option<Status> {
        let mut end = self.changing.lock().await;
        let status = ended_by(&self.status(), exit, reason)?;
        match self.save(&status).await {
            Ok(()) => {
                *end = Some((exit, reason.to_owned()));
                Some(status)
            }
            Err(error) => {
                error!(container = %self.id, %error, "the exit could not be stored");
                None
            }
        }
    }

    /// Records the end. The first one counts (CTR-44). It is published even when the file
    /// cannot be written, since somebody may wait for it; the log then says so.
    pub async fn end(&self, exit: Exit, reason: &str, stored: Option<Status>) {
        let mut end = self.changing.lock().await;
        let Some(status) = ended_by(&self.status(), exit, reason) else { return };
        if stored.as_ref() != Some(&status)
            && let Err(error) = self.save(&status).await
        {
            error!(container = %self.id, %error, "the exit could not be stored");
        }
        *end = None;
        self.status.send_replace(status);
    }

    async fn save(&self, status: &Status) -> Result<()> {
        let dir = self.dir.clone();
        let file = StatusFile { extra: self.extra.clone(), ..StatusFile::from(status) };
        let saved = on_disk(Disk::Root, move || checkpoint::write(&dir, &file)).await;
        self.is_unsaved.store(saved.is_err(), Ordering::Relaxed);
        saved.context(|| format!("container {}", self.id))
    }

    /// Stores a status that is shown but could not be stored when it came; false if there is
    /// none such.
    ///
    /// # Errors
    /// Those of the file.
    pub async fn save_again(&self) -> Result<bool> {
        if !self.is_unsaved.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.change(|_| Ok(())).await.map(|()| true)
    }

    /// Fails unless the container is running (EXE-01).
    ///
    /// # Errors
    /// FailedPrecondition naming the state.
    pub fn require_running(&self) -> Result<()> {
        let status = self.status();
        if status.state() == ContainerState::ContainerRunning {
            return Ok(());
        }
        Err(precondition(format!(
            "container {} is not running but in state {}",
            self.id,
            status.state_name()
        )))
    }
}

/// A status after `exit`; none if it had an end before.
fn ended_by(before: &Status, exit: Exit, reason: &str) -> Option<Status> {
    if before.finished_at != 0 {
        return None;
    }
    let mut status = before.clone();
    status.finished_at = if exit.at > 0 { exit.at.max(status.started_at) } else { now() };
    status.exit_code = i32::try_from(exit.code).unwrap_or(UNKNOWN_CODE);
    status.pid = 0;
    status.unknown = false;
    if !reason.is_empty() {
        reason.clone_into(&mut status.reason);
    }
    Some(status)
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(dir: &std::path::Path) -> Container {
        let status = Status { created_at: 1, ..Status::default() };
        Container::new(
            ContainerMetadata { id: "c".into(), ..Default::default() },
            status,
            dir.to_owned(),
            User::default(),
        )
    }

    #[tokio::test]
    async fn states_follow_the_times() {
        let dir = tempfile::tempdir().expect("a folder");
        let container = container(dir.path());
        assert_eq!(container.state(), ContainerState::ContainerCreated);
        container
            .change(|status| {
                status.started_at = 2;
                Ok(())
            })
            .await
            .expect("stored");
        assert_eq!(container.state(), ContainerState::ContainerRunning);
        container.end(Exit { code: 137, at: 3 }, "OOMKilled", None).await;
        container.end(Exit { code: 0, at: 9 }, "", None).await;
        let status = container.status();
        assert_eq!((status.exit_code, status.finished_at), (137, 3));
        assert_eq!(status.shown_reason(), "OOMKilled");
        let stored = Status::from(checkpoint::read(dir.path()).expect("stored"));
        assert_eq!(stored, status);
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_stored_is_not_published() {
        let container = container(std::path::Path::new("/proc/there/is/none"));
        assert!(
            container
                .change(|status| {
                    status.started_at = 2;
                    Ok(())
                })
                .await
                .is_err()
        );
        assert_eq!(container.state(), ContainerState::ContainerCreated);
        container.end(Exit { code: 1, at: 2 }, "", None).await;
        assert_eq!(container.status().shown_reason(), "Error");
    }

    /// What changes between the end and its showing is stored with the end.
    #[tokio::test]
    async fn a_stored_end_stays_in_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let container = container(dir.path());
        let file = || Status::from(checkpoint::read(dir.path()).expect("stored"));
        let exit = Exit { code: 137, at: 3 };
        let stored = container.store_end(exit, "").await;
        assert_eq!((container.state(), file().exit_code), (ContainerState::ContainerCreated, 137));
        let late = |status: &mut Status| {
            "OOMKilled".clone_into(&mut status.reason);
            Ok(())
        };
        container.change(late).await.expect("stored");
        assert_eq!(container.state(), ContainerState::ContainerCreated);
        assert_eq!((file().exit_code, file().finished_at, file().reason.as_str()), (137, 3, "OOMKilled"));
        container.end(exit, "", stored).await;
        assert_eq!((file(), container.status().shown_reason()), (container.status(), "OOMKilled".into()));
    }

    #[tokio::test]
    async fn an_end_before_the_start_is_put_right() {
        let dir = tempfile::tempdir().expect("a folder");
        let container = container(dir.path());
        container
            .change(|status| {
                status.started_at = 10;
                Ok(())
            })
            .await
            .expect("stored");
        container.end(Exit { code: 0, at: 5 }, "", None).await;
        assert_eq!(container.status().finished_at, 10);
        assert_eq!(container.status().shown_reason(), "Completed");
    }
}
