//! Shims that do not answer when the server starts.
//!
//! A shim opens the FIFOs of an exec process when it starts it, and waits for somebody at
//! the other ends, who was the server. One that is killed just then leaves a shim that
//! answers nothing for half a minute, neither for this container nor for the others of its
//! pod: so the next server opens these FIFOs before it asks anything. A shim may also be
//! stopped, or starved by a busy machine. containerd then tells a task without state and
//! without FIFOs, which says nothing: what was running is taken for running until the shim
//! has answered, and nothing of it is touched.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::{info, warn};

use super::Pods;
use super::recover::{names_in, note_start};
use crate::containerd::{ContainerRecord, Process, ProcessStatus};
use crate::error::Result;
use crate::flow;
use crate::io::fifo::Fifos;
use crate::proto::cri::ContainerState;
use crate::state::{Container, Pod};

/// How often a task whose shim has not answered is asked for before the server serves.
const ATTEMPTS: usize = 3;
/// How long, at most, all of that may take.
const ATTEMPTS_LIMIT: Duration = Duration::from_secs(4);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// Folders of a container with FIFOs of exec processes, by exec id, and the ends of theirs
/// that are held.
pub(super) type Held = Vec<(PathBuf, HashMap<String, Fifos>, Vec<OwnedFd>)>;

/// Whether a task's process runs, as far as is known.
pub(super) fn may_run(task: &Process) -> bool {
    !matches!(task.status, ProcessStatus::Stopped | ProcessStatus::Created)
}

impl Pods {
    /// Opens the server's ends of the FIFOs of all exec processes that the last server has
    /// left, so that no shim waits for it.
    pub(super) async fn hold_execs(&self, records: &[ContainerRecord]) -> HashMap<String, Held> {
        let paths = &self.containers.paths;
        let folders: Vec<(String, PathBuf)> = records
            .iter()
            .map(|record| (record.id.clone(), paths.container_state(&record.id.clone().into()).join("io")))
            .collect();
        let hold = move || Ok(folders.into_iter().map(|(id, io)| (hold(&id, &io), id)).collect());
        let held: Vec<(Held, String)> = flow::blocking(hold).await.unwrap_or_default();
        held.into_iter().map(|(held, id)| (id, held)).collect()
    }

    /// All tasks; those whose shims did not answer were asked for again.
    ///
    /// # Errors
    /// Those of containerd.
    pub(super) async fn known_tasks(&self) -> Result<HashMap<String, Process>> {
        let containerd = &self.containers.containerd;
        let mut tasks: HashMap<String, Process> = containerd
            .list_tasks()
            .await?
            .into_iter()
            .map(|task| (task.container_id.clone(), task))
            .collect();
        let end = tokio::time::Instant::now() + ATTEMPTS_LIMIT;
        for _ in 0..ATTEMPTS {
            let unknown = tasks.values().filter(|task| task.status == ProcessStatus::Unknown);
            let ids: Vec<String> = unknown.map(|task| task.container_id.clone()).collect();
            if ids.is_empty() {
                break;
            }
            warn!(tasks = ids.len(), "shims do not answer; asking again");
            let asked = join_all(ids.iter().map(|id| containerd.process(id, "")));
            let Ok(answers) = tokio::time::timeout_at(end, asked).await else { break };
            for (id, answer) in ids.into_iter().zip(answers) {
                match answer {
                    Ok(task) => _ = tasks.insert(id, task),
                    Err(error) if error.is_not_found() => _ = tasks.remove(&id),
                    Err(_) => {}
                }
            }
        }
        Ok(tasks)
    }

    /// Waits until a pod's shim answers, and notes that pause does not run, if so.
    pub(super) async fn settle_pod(self, pod: Arc<Pod>) {
        let task = self.settled(pod.id.as_str()).await;
        match task.filter(may_run) {
            Some(task) => pod.change(|status| status.pid = if status.ready { task.pid } else { status.pid }),
            None => self.pause_exited(&pod),
        }
    }

    /// Waits until the shim of a container that was running answers, and goes on with it.
    pub(super) async fn settle_container(self, container: Arc<Container>, held: Held) {
        let task = self.settled(container.id.as_str()).await;
        self.take_up(container, task.as_ref(), held).await;
    }

    /// The same for one whose start may have been cut off (REC-08, REC-09).
    pub(super) async fn settle_created(self, container: Arc<Container>, held: Held) {
        let task = self.settled(container.id.as_str()).await;
        let noted = container.change(|status| {
            let is_created = status.state() == ContainerState::ContainerCreated && !status.starting;
            Ok(is_created && note_start(status, task.as_ref()))
        });
        let noted = noted.await;
        container.mark_unsettled(false);
        match noted {
            Ok(true) => {
                self.containers.tell(&container);
                self.take_up(container, task.as_ref(), held).await;
            }
            Ok(false) => {
                if let Err(error) = self.discard_idle_task(container.id.as_str()).await {
                    warn!(container = %container.id, %error, "a left-over task was not deleted");
                }
            }
            Err(error) => {
                warn!(container = %container.id, %error, "the start of a container could not be stored");
            }
        }
    }

    /// A task, once its shim has answered; `None` if there is none any more.
    async fn settled(&self, id: &str) -> Option<Process> {
        loop {
            match self.containers.containerd.process(id, "").await {
                Ok(task) if task.status != ProcessStatus::Unknown => {
                    info!(id, "the shim answers again");
                    return Some(task);
                }
                Err(error) if error.is_not_found() => return None,
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// Holds the FIFOs of exec processes below `io`: all but those of the container itself.
fn hold(container_id: &str, io: &Path) -> Held {
    let folders = names_in(io).into_iter().map(|name| io.join(name));
    let folders = folders.map(|folder| (Fifos::found_in(&folder), folder));
    let execs = folders.filter(|(fifos, _)| !fifos.contains_key(container_id));
    execs
        .map(|(fifos, folder)| {
            let ends = fifos.values().flat_map(Fifos::hold).collect();
            (folder, fifos, ends)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::fifo::Wanted;

    /// REC-14.
    #[test]
    fn the_containers_own_streams_are_never_taken_for_those_of_an_exec() {
        let state = tempfile::tempdir().expect("a folder");
        let all = Wanted { stdin: true, stdout: true, stderr: true };
        Fifos::make(state.path(), "c", "c", all).expect("made");
        let exec = Fifos::make(state.path(), "c", "e", all).expect("made");
        let held = hold("c", &state.path().join("containers/c/io"));
        let [(folder, fifos, ends)] = &held[..] else { panic!("one folder: {held:?}") };
        assert_eq!((fifos.len(), fifos.get("e"), ends.len()), (1, Some(&exec), 3));
        assert_eq!(exec.stdout.as_deref().and_then(Path::parent), Some(&**folder));
        // Whoever opens the other ends waits for nobody.
        let writer = std::fs::File::options().write(true).open(exec.stdout.expect("wanted"));
        writer.expect("somebody reads");
        std::fs::File::open(exec.stdin.expect("wanted")).expect("somebody writes");
        assert!(hold("c", &state.path().join("none")).is_empty());
    }
}
