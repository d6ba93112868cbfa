//! What a worker wants, what it was told, and what therefore may and may not be.

use std::collections::BTreeSet;
use std::path::PathBuf;

use longshore::proto::cri::{ContainerState, ContainerStatus, PodSandboxStatus};

use crate::harness::images::BUSYBOX;
use crate::harness::{Chance, Container, ContainerBuilder, Pod, PodBuilder};

/// Whose generator the pods have.
const PODS: u64 = 2_000_000;
/// What SIGKILL is told as, and what nobody knows.
pub(super) const KILLED: i32 = 137;
pub(super) const UNKNOWN: i32 = 255;
/// How runc's own first process ends that gets SIGTERM before it has become the container's:
/// Go cannot die of a signal as process 1, and exits with this.
pub(super) const EARLY_TERM: i32 = 2;
/// What is told of a start that failed.
pub(super) const START_ERROR: i32 = 128;
/// What runc's own process 1 ends with when the program that made it is gone: where containerd
/// dies, its shim gives up what it was asked for, and with it a creation that has not ended.
pub(super) const CUT_OFF: i32 = 1;

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Runs until SIGTERM, and ends with this code.
    Obeys(i32),
    /// Runs until SIGKILL.
    Ignores,
    /// Ends by itself a little later.
    Ends(i32),
}

impl Kind {
    fn script(self) -> String {
        match self {
            Kind::Obeys(code) => {
                format!("trap 'exit {code}' TERM; echo ready; while :; do sleep 1000 & wait; done")
            }
            Kind::Ignores => "trap '' TERM; echo ready; while :; do sleep 1000; done".to_owned(),
            Kind::Ends(code) => format!("echo ready; sleep 5; exit {code}"),
        }
    }
}

/// A container that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Want {
    pub(super) name: String,
    pub(super) kind: Kind,
    has_volume: bool,
}

/// A pod that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) host_network: bool,
    pub(super) crun: bool,
    pub(super) containers: Vec<Want>,
}

impl Wanted {
    /// What pod `generation` of a slot shall be.
    pub(super) fn draw(seed: u64, worker: u64, slot: u64, generation: u64, has_crun: bool) -> Wanted {
        let mut chance = Chance::of(seed, PODS + worker * 1_000 + slot, generation);
        let number = chance.pick(&[(1, 6), (2, 3), (3, 1)]);
        let mut one = |number: u64| {
            let code = chance.below(100) as i32;
            let kind = chance.pick(&[
                (Kind::Obeys(0), 4),
                (Kind::Obeys(code), 3),
                (Kind::Ignores, 1),
                (Kind::Ends(code), 2),
            ]);
            Want { name: format!("c{number}"), kind, has_volume: chance.one_in(10) }
        };
        let containers = (0..number).map(&mut one).collect();
        Wanted { host_network: chance.one_in(6), crun: chance.one_in(5) && has_crun, containers }
    }

    /// The pod as it is asked for.
    pub(super) fn dress(&self, builder: PodBuilder) -> PodBuilder {
        let builder = if self.host_network { builder.host_network() } else { builder };
        if self.crun { builder.handler("crun") } else { builder }
    }
}

impl Want {
    /// The container as it is asked for.
    pub(super) fn dress(&self, builder: ContainerBuilder) -> ContainerBuilder {
        let builder = builder.sh(&self.kind.script()).env("SOAK", &self.name);
        if self.has_volume { builder.image_volume(BUSYBOX, "/image") } else { builder }
    }
}

/// A container that there is.
pub(super) struct Known {
    pub(super) container: Container,
    pub(super) kind: Kind,
    pub(super) attempt: u32,
    pub(super) is_started: bool,
    /// Its codes, if it has ended by now; it must not have where there are none.
    pub(super) may_end: BTreeSet<i32>,
    /// It was told that it has ended.
    pub(super) has_ended: bool,
    /// It was seen that it minds signals.
    pub(super) is_ready: bool,
    /// How often containerd had died when it was created.
    pub(super) containerd_deaths: u64,
    /// What was told last.
    pub(super) seen: Option<ContainerStatus>,
}

impl Known {
    /// Holds what is told now against what is known; `deaths`: of containerd so far.
    pub(super) fn check(&mut self, status: &ContainerStatus, deaths: u64) {
        let id = &self.container.id;
        assert_eq!(&status.id, id, "another container is told of");
        assert_eq!(status.metadata, self.container.config.metadata, "metadata of {id}");
        let state = status.state();
        if let Some(seen) = &self.seen {
            assert_eq!(status.created_at, seen.created_at, "time of creation of {id}");
            assert_eq!(status.log_path, seen.log_path, "log path of {id}");
            if seen.started_at != 0 {
                assert_eq!(status.started_at, seen.started_at, "time of the start of {id}");
            }
            if seen.state() == ContainerState::ContainerExited {
                let end = |status: &ContainerStatus| {
                    (status.state, status.exit_code, status.finished_at, status.reason.clone())
                };
                assert_eq!(end(status), end(seen), "the end of {id} has changed");
            }
        }
        match state {
            ContainerState::ContainerCreated => assert!(!self.is_started, "{id} was started: {status:?}"),
            ContainerState::ContainerRunning => {
                assert!(!self.has_ended, "{id} has ended: {status:?}");
                self.is_started = true;
            }
            ContainerState::ContainerExited => {
                assert!(
                    !self.may_end.is_empty(),
                    "{id} ({:?}) should run: {status:?}; its log:\n{}",
                    self.kind,
                    self.log()
                );
                // From 1.7 on containerd forgets what ends while it is down.
                let is_forgotten = status.exit_code == UNKNOWN && deaths > self.containerd_deaths;
                assert!(
                    self.may_end.contains(&status.exit_code) || is_forgotten,
                    "{id} ({:?}) may end with {:?}: {status:?}; its log:\n{}",
                    self.kind,
                    self.may_end,
                    self.log()
                );
                assert!(status.finished_at > 0, "{status:?}");
                self.has_ended = true;
            }
            ContainerState::ContainerUnknown => panic!("{id} has a state that nobody knows: {status:?}"),
        }
        self.seen = Some(status.clone());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.container.log_path()).unwrap_or_else(|error| error.to_string())
    }

    /// It may have ended with one of these codes from now on.
    pub(super) fn may_end_with(&mut self, codes: &[i32]) {
        self.may_end.extend(codes);
    }
}

/// A pod that there is.
pub(super) struct KnownPod {
    pub(super) pod: Pod,
    pub(super) wanted: Wanted,
    /// By the wanted ones.
    pub(super) containers: Vec<Option<Known>>,
    /// The attempts that were made, of each.
    pub(super) attempts: Vec<u32>,
    pub(super) seen: Option<PodSandboxStatus>,
    /// It was harmed, or stopped.
    pub(super) may_be_notready: bool,
}

impl KnownPod {
    /// Holds what is told now against what is known.
    pub(super) fn check(&mut self, status: &PodSandboxStatus) {
        let id = &self.pod.id;
        assert_eq!(&status.id, id, "another pod is told of");
        assert_eq!(status.metadata, self.pod.config.metadata, "metadata of {id}");
        assert!(status.state == 0 || self.may_be_notready, "{id} should be ready: {status:?}");
        if let Some(seen) = &self.seen {
            assert_eq!(status.created_at, seen.created_at, "time of creation of {id}");
            assert!(status.state == 0 || seen.state == status.state || self.may_be_notready);
            assert!(seen.state == 0 || status.state != 0, "{id} was not ready and is again");
            if status.state == 0 {
                assert_eq!(status.network, seen.network, "the address of {id}");
            }
        }
        let has_address = status.network.as_ref().is_some_and(|network| !network.ip.is_empty());
        // The host's is not told.
        assert!(self.wanted.host_network || has_address || status.state != 0, "{status:?}");
        self.seen = Some(status.clone());
    }

    /// The running container with this number, or another one.
    pub(super) fn running(&mut self, number: u64) -> Option<&mut Known> {
        let mut all: Vec<&mut Known> = self
            .containers
            .iter_mut()
            .flatten()
            .filter(|known| !known.has_ended && !matches!(known.kind, Kind::Ends(_)))
            .collect();
        if all.is_empty() {
            return None;
        }
        let at = number as usize % all.len();
        Some(all.swap_remove(at))
    }
}

/// The folder of a container's cgroup, in each hierarchy.
pub(super) fn cgroup_folders(roots: &[PathBuf], uid: &str, id: &str) -> Vec<PathBuf> {
    roots.iter().map(|root| root.join(uid).join(id)).collect()
}
