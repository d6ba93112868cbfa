//! Slowly, in the background: what is known is compared with what there is (area REC).
//!
//! ```text
//! pause ─▶ look ──nothing──▶ pause …
//!            └─something─▶ short pause ─▶ look ─▶ what was there both times is repaired
//! ```
//! A look is [`crate::leftovers::look`], the one that `longshore doctor` takes, and the tables
//! beside it. The tables are read first, and the lists of containerd after them: what is in a
//! table has a task by then if it has one at all. What a call is busy with is no deviation: its
//! pod or container has a name from before anything is made until all of it is undone, and is
//! held by who removes it ([`Store::knows`](crate::state::Store::knows), `operation`). Both are
//! asked again at the repair itself.
//!
//! Ends that were missed are taken up at the first look: the repair asks containerd itself.
//! Nothing else is done unless it was seen twice, and nothing to what is not longshore's. What
//! is done is one line in the log, with its cause, and counted.

mod repair;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

use super::{Pods, Recovery};
use crate::containerd::{Link, ProcessStatus};
use crate::error::Result;
use crate::flow;
use crate::leftovers::{self, RemovedBy, Thing, World};
use crate::proto::cri::ContainerState;
use crate::state::{Container, Pod};
use crate::sys;
use crate::telemetry::METERS;
use crate::trace;

/// The first look after a start: what a killed server had asked of containerd is over then.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// Between the two looks.
const CONFIRM_PAUSE: Duration = Duration::from_secs(10);

/// Something that is not as it should be.
#[derive(Clone, Debug)]
enum Deviation {
    /// What belongs to no pod.
    Left(Thing),
    /// A task of what does not run: its id.
    Task(String),
    /// A pod or container whose record is gone: its id.
    Record(String),
    /// A pod without its lease: its id.
    Lease(String),
    /// A pod that runs and whose network namespace is not pinned any more: its id.
    Pin(String),
    /// A record of ours that no table has: its id.
    Creation(String),
}

impl Deviation {
    /// Its kind, and what it is about: the same at both looks.
    fn key(&self) -> (&'static str, String) {
        match self {
            Deviation::Left(thing) => (thing.left.kind, thing.left.name.clone()),
            Deviation::Task(id) => ("ended-task", id.clone()),
            Deviation::Record(id) => ("lost-record", id.clone()),
            Deviation::Lease(id) => ("lost-lease", id.clone()),
            Deviation::Pin(id) => ("lost-namespace", id.clone()),
            Deviation::Creation(id) => ("creation", id.clone()),
        }
    }

    /// What is wrong with it.
    fn why(&self) -> &str {
        match self {
            Deviation::Left(thing) => &thing.why,
            Deviation::Task(_) => "it has a task although it does not run",
            Deviation::Record(_) => "somebody deleted its record in containerd",
            Deviation::Lease(_) => "somebody deleted its lease",
            Deviation::Pin(_) => "somebody unmounted its network namespace",
            Deviation::Creation(_) => "its making failed, and could not be undone then",
        }
    }
}

/// The tables, as they were before containerd was asked.
struct Tables {
    pods: Vec<Arc<Pod>>,
    containers: Vec<Arc<Container>>,
}

impl Pods {
    /// Compares from time to time, until `stop`.
    pub async fn reconcile(self, stop: CancellationToken) {
        let period = Duration::from_secs(self.containers.config.file.server.reconcile_period_s);
        if period.is_zero() {
            return;
        }
        let rounds = async {
            let _ = self.recovery().wait_for(|state| *state == Recovery::Done).await;
            tokio::time::sleep(FIRST_PAUSE.min(period)).await;
            loop {
                if let Err(error) = self.round(CONFIRM_PAUSE.min(period)).await {
                    warn!(%error, "what there is could not be compared; tried again later");
                }
                tokio::time::sleep(period).await;
            }
        };
        tokio::select! {
            () = rounds => {}
            () = stop.cancelled() => {}
        }
    }

    /// Looks, and looks again if something deviates; repairs what was there both times.
    async fn round(&self, pause: Duration) -> Result<()> {
        if !matches!(self.containers.containerd.link(), Link::Up(_)) {
            return Ok(());
        }
        let first: BTreeSet<_> = self.look().await?.iter().map(Deviation::key).collect();
        if first.is_empty() {
            return Ok(());
        }
        debug!(?first, "something deviates; looking again");
        tokio::time::sleep(pause).await;
        let mut again = self.look().await?;
        again.retain(|deviation| first.contains(&deviation.key()));
        if !again.is_empty() {
            self.repair_all(again).instrument(trace::background("repair", "")).await;
        }
        Ok(())
    }

    /// Takes up missed ends, and gives everything else that deviates.
    async fn look(&self) -> Result<Vec<Deviation>> {
        let parts = &self.containers;
        let tables = Tables { pods: parts.store.pods(), containers: parts.store.containers() };
        let world = leftovers::look(&parts.config, Some(&parts.containerd), leftovers::From::Within).await?;
        for _ in 0..parts.images.tend().await? {
            METERS.repaired("image");
        }
        self.take_up_ends(&tables, |id| world.task(id)).await?;
        self.store_again(&tables).await;
        let mut found = self.left(&world);
        found.extend(self.of_tables(&tables, &world));
        found.extend(unpinned(&tables).await?.into_iter().map(Deviation::Pin));
        let creations = world.own_creations().into_iter().filter(|id| !parts.store.knows(id));
        found.extend(creations.map(|id| Deviation::Creation(id.to_owned())));
        Ok(found)
    }

    /// Compares every pod and container with containerd's tasks (REC-18): ends that were missed
    /// are taken up, and what a start that failed with containerd has left running is ended.
    pub(super) async fn compare_all(&self) -> Result<()> {
        self.containers.images.load().await?;
        self.containers.remove_failed().await;
        let store = &self.containers.store;
        let tables = Tables { pods: store.pods(), containers: store.containers() };
        let tasks = self.containers.containerd.list_tasks().await?;
        let task = |id: &str| tasks.iter().find(|task| task.container_id == id).map(|task| task.status);
        self.take_up_ends(&tables, task).await?;
        for container in tables.containers.iter().filter(|container| is_idle(container)) {
            // Of one whose shim does not answer nothing is known.
            if task(container.id.as_str()).is_none_or(|status| status == ProcessStatus::Unknown) {
                continue;
            }
            // The shim may be slow: the others are not to wait.
            let (this, container) = (self.clone(), container.clone());
            tokio::spawn(async move {
                match this.discard_idle_task(container.id.as_str()).await {
                    Ok(true) => METERS.repaired("ended-task"),
                    Ok(false) => {}
                    Err(error) => {
                        warn!(container = %container.id, %error, "a left-over task was not deleted")
                    }
                }
            });
        }
        info!("compared with containerd's tasks");
        Ok(())
    }

    /// Takes up the ends of what ran when the tables were read and has no running task.
    async fn take_up_ends(
        &self,
        tables: &Tables,
        task: impl Fn(&str) -> Option<ProcessStatus>,
    ) -> Result<()> {
        let runs = |id: &str| task(id).is_some_and(|status| status != ProcessStatus::Stopped);
        for pod in tables.pods.iter().filter(|pod| pod.status().ready && !runs(pod.id.as_str())) {
            if self.has_ended(pod.id.as_str()).await? && pod.status().ready {
                warn!(pod = %pod.id, "the end of pause was missed");
                METERS.repaired("exit");
                self.pause_exited(pod);
            }
        }
        for container in tables.containers.iter().filter(|container| !runs(container.id.as_str())) {
            if self.containers.compare(container).await? {
                warn!(container = %container.id, "the end of a container was missed");
                METERS.repaired("exit");
            }
        }
        Ok(())
    }

    /// Stores what could not be stored when it came, as long as the disk was full.
    async fn store_again(&self, tables: &Tables) {
        for container in &tables.containers {
            match container.save_again().await {
                Ok(true) => {
                    info!(container = %container.id, "its status is stored now");
                    METERS.repaired("status");
                }
                Ok(false) => {}
                Err(error) => warn!(container = %container.id, %error, "its status cannot be stored yet"),
            }
        }
    }

    /// Whether a task that seems to be gone is.
    async fn has_ended(&self, id: &str) -> Result<bool> {
        match self.containers.containerd.process(id, "").await {
            Ok(process) => Ok(process.status == ProcessStatus::Stopped),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What is left of longshore's, and no call is about to make or remove.
    fn left(&self, world: &World) -> Vec<Deviation> {
        let store = &self.containers.store;
        // These are of what is known; who repairs them asks for more.
        let is_of_known = |thing: &Thing| matches!(thing.left.kind, "fifo" | "shim");
        let is_due = |thing: &Thing| {
            thing.left.ours
                && thing.left.removed_by == RemovedBy::Server
                && (thing.id.is_empty() || !store.knows(&thing.id) || is_of_known(thing))
        };
        world.things().into_iter().filter(is_due).map(Deviation::Left).collect()
    }

    /// What the tables have and containerd has not, or has without need.
    fn of_tables(&self, tables: &Tables, world: &World) -> Vec<Deviation> {
        let has_task = |id: &str| world.task(id).is_some_and(|status| status != ProcessStatus::Unknown);
        let mut found = Vec::new();
        for pod in &tables.pods {
            let id = pod.id.as_str();
            if !world.has_record(id) {
                found.push(Deviation::Record(id.to_owned()));
            } else if !pod.status().ready && has_task(id) {
                found.push(Deviation::Task(id.to_owned()));
            }
            if !world.has_lease(id) {
                found.push(Deviation::Lease(id.to_owned()));
            }
        }
        for container in &tables.containers {
            let id = container.id.as_str();
            if !world.has_record(id) {
                found.push(Deviation::Record(id.to_owned()));
            } else if is_idle(container) && has_task(id) {
                found.push(Deviation::Task(id.to_owned()));
            }
        }
        found
    }
}

/// READY pods whose network namespace is not where it was pinned.
async fn unpinned(tables: &Tables) -> Result<Vec<String>> {
    let pin = |pod: &Arc<Pod>| Some((pod.id.to_string(), pod.netns.clone()?));
    let ready = tables.pods.iter().filter(|pod| pod.status().ready);
    let mut pins: Vec<_> = ready.filter_map(pin).collect();
    flow::blocking(move || {
        pins.retain(|(_, path)| !sys::netns::is_alive(path));
        Ok(pins.into_iter().map(|(id, _)| id).collect())
    })
    .await
}

/// Whether a container does not run, and is not about to.
fn is_idle(container: &Container) -> bool {
    let status = container.status();
    let state = status.state();
    !status.starting && matches!(state, ContainerState::ContainerCreated | ContainerState::ContainerExited)
}
