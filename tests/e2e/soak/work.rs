//! A kubelet for some pods: it sees to it that what it wants is there, and that what it does
//! not know any more after an error is looked up, removed and made again.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use longshore::proto::cri::{
    ContainerFilter, ContainerState, ContainerStatus, PodSandboxFilter, RemoveContainerRequest,
    StopContainerRequest,
};
use tonic::Code;

use super::Stage;
use super::figures::Op;
use super::model::{CUT_OFF, EARLY_TERM, KILLED, Kind, Known, KnownPod, START_ERROR, UNKNOWN, Wanted};
use super::steps::Step;
use crate::harness::{Chance, Cri, Pod, PodBuilder, patient};

/// Steps of each worker in a round.
const STEPS_OF_ROUND: u64 = 6;
/// How long something may take that happens by itself, while nothing is disturbed.
const LIMIT: Duration = Duration::from_secs(90);
/// How often it is looked at.
const PAUSE: Duration = Duration::from_millis(150);
/// The label of a worker's slot.
const SLOT: &str = "soak-slot";

/// A place for a pod.
pub(super) struct Slot {
    number: u64,
    /// How many pods with other uids were here before.
    generation: u64,
    /// The attempt of the next sandbox.
    attempt: u32,
    pub(super) pod: Option<KnownPod>,
}

/// A kubelet.
pub(super) struct Worker {
    pub(super) number: u64,
    pub(super) stage: Arc<Stage>,
    pub(super) slots: Vec<Slot>,
}

/// What is done next, and to which slot.
pub(super) fn draw(chance: &mut Chance, slots: u64) -> (usize, Step) {
    (chance.below(slots) as usize, Step::draw(chance))
}

impl Worker {
    pub(super) fn new(number: u64, stage: &Arc<Stage>) -> Worker {
        let slots = (0..stage.plan.slots).map(|number| Slot { number, generation: 0, attempt: 0, pod: None });
        Worker { number, stage: stage.clone(), slots: slots.collect() }
    }

    /// Some steps.
    pub(super) async fn round(&mut self, round: u64) {
        for number in round * STEPS_OF_ROUND..(round + 1) * STEPS_OF_ROUND {
            let mut chance = Chance::of(self.stage.plan.seed, self.number, number);
            let (slot, step) = draw(&mut chance, self.stage.plan.slots);
            let pause = Duration::from_millis(chance.below(1_000));
            let done = AssertUnwindSafe(self.step(slot, step, &mut chance)).catch_unwind().await;
            if let Err(panic) = done {
                let why = panic.downcast_ref::<String>().map_or("see above", String::as_str);
                let at = self.stage.begun.elapsed().as_secs();
                let who = format!("worker {}, step {number}", self.number);
                panic!("{who}, {step:?} of slot {slot}, after {at} s: {why}");
            }
            tokio::time::sleep(pause).await;
        }
    }

    pub(super) fn cri(&self) -> &Cri {
        self.stage.node.cri()
    }

    fn key(&self, slot: usize) -> String {
        format!("w{}-s{}", self.number, self.slots[slot].number)
    }

    fn uid(&self, slot: usize) -> String {
        format!("{}-g{}", self.key(slot), self.slots[slot].generation)
    }

    /// The pod of a slot, which must be there.
    pub(super) fn pod(&mut self, slot: usize) -> &mut KnownPod {
        self.slots[slot].pod.as_mut().expect("the slot has a pod")
    }

    /// The pod that the slot shall have next.
    pub(super) fn builder(&self, slot: usize) -> (PodBuilder, Wanted) {
        let (plan, place) = (&self.stage.plan, &self.slots[slot]);
        let wanted =
            Wanted::draw(plan.seed, self.number, place.number, place.generation, self.stage.has_crun);
        let key = self.key(slot);
        let builder = self.cri().pod(&key).uid(&self.uid(slot)).attempt(place.attempt).labels([(SLOT, key)]);
        (wanted.dress(builder), wanted)
    }

    /// Everything that is wanted of a slot is there and runs, as far as it does not end by
    /// itself.
    pub(super) fn ensure(&mut self, slot: usize) -> LocalBoxFuture<'_, ()> {
        Box::pin(async move {
            if self.slots[slot].pod.is_none() {
                self.run_pod(slot).await;
            }
            for number in 0..self.pod(slot).containers.len() {
                self.ensure_container(slot, number).await;
            }
        })
    }

    /// RunPodSandbox, until there is a pod.
    pub(super) async fn run_pod(&mut self, slot: usize) {
        let stage = self.stage.clone();
        loop {
            let (builder, _) = self.builder(slot);
            match stage.call(Op::RunPod, &self.uid(slot), builder.run()).await {
                Some(pod) => return self.adopt(slot, pod).await,
                None if self.look_for_pod(slot).await => return,
                None => {}
            }
        }
    }

    /// Looks for what an attempt has left: a pod that is ready is it; others are removed.
    pub(super) async fn look_for_pod(&mut self, slot: usize) -> bool {
        let (stage, uid) = (self.stage.clone(), self.uid(slot));
        let filter = PodSandboxFilter {
            label_selector: [(SLOT.to_owned(), self.key(slot))].into(),
            ..Default::default()
        };
        let found =
            stage.done(Op::ListPods, &uid, async || self.cri().list_pods(Some(filter.clone())).await).await;
        let mut ready = None;
        for item in found {
            let metadata = item.metadata.clone().unwrap_or_default();
            assert_eq!(metadata.uid, uid, "a pod that was removed is back: {item:?}");
            if item.state == 0 && metadata.attempt == self.slots[slot].attempt {
                assert!(ready.replace(item.id).is_none(), "two pods for one attempt");
                continue;
            }
            let id = &item.id;
            stage.done(Op::StopPod, id, async || self.cri().stop_pod(id).await).await;
            stage.done(Op::RemovePod, id, async || self.cri().remove_pod(id).await).await;
            let next = self.slots[slot].attempt.max(metadata.attempt + 1);
            self.slots[slot].attempt = next;
        }
        let Some(id) = ready else { return false };
        let (builder, _) = self.builder(slot);
        let config = builder.request().config.expect("a config");
        self.adopt(slot, Pod { id, config, cri: self.cri().clone() }).await;
        true
    }

    async fn adopt(&mut self, slot: usize, pod: Pod) {
        let (_, wanted) = self.builder(slot);
        self.stage.uids.lock().expect("no panic").insert(pod.id.clone(), self.uid(slot));
        let number = wanted.containers.len();
        self.slots[slot].pod = Some(KnownPod {
            pod,
            wanted,
            containers: std::iter::repeat_with(|| None).take(number).collect(),
            attempts: vec![0; number],
            seen: None,
            may_be_notready: false,
        });
        self.check_pod(slot).await;
    }

    /// PodSandboxStatus, which must be as it is known.
    pub(super) async fn check_pod(&mut self, slot: usize) {
        let pod = self.pod(slot).pod.clone();
        let status = self.stage.done(Op::PodStatus, &pod.id, async || pod.status().await).await;
        self.pod(slot).check(&status);
    }

    /// Container `number` of a slot's pod runs, or has begun to.
    pub(super) fn ensure_container(&mut self, slot: usize, number: usize) -> LocalBoxFuture<'_, ()> {
        Box::pin(self.make_container(slot, number))
    }

    async fn make_container(&mut self, slot: usize, number: usize) {
        if let Some(known) = &self.pod(slot).containers[number] {
            if !known.has_ended && matches!(known.kind, Kind::Ends(_)) {
                self.check_container(slot, number).await;
            }
            if self.pod(slot).containers[number].as_ref().is_some_and(|known| !known.has_ended) {
                return;
            }
            self.remove_container(slot, number).await;
        }
        loop {
            self.create_container(slot, number).await;
            if self.start_container(slot, number).await {
                return;
            }
            self.remove_container(slot, number).await;
        }
    }

    async fn create_container(&mut self, slot: usize, number: usize) {
        let stage = self.stage.clone();
        let want = self.pod(slot).wanted.containers[number].clone();
        loop {
            let (pod, attempt) = (self.pod(slot).pod.clone(), self.pod(slot).attempts[number]);
            let builder = want.dress(pod.container(&want.name)).attempt(attempt);
            let deaths = stage.faults.containerd_deaths();
            if let Some(container) = stage.call(Op::Create, &pod.id, builder.create()).await {
                let may_end = match want.kind {
                    Kind::Ends(code) => BTreeSet::from([code]),
                    _ => BTreeSet::new(),
                };
                self.pod(slot).attempts[number] = attempt + 1;
                self.pod(slot).containers[number] = Some(Known {
                    container,
                    kind: want.kind,
                    attempt,
                    is_started: false,
                    may_end,
                    has_ended: false,
                    is_ready: false,
                    containerd_deaths: deaths,
                    seen: None,
                });
                return;
            }
            self.remove_unknown_containers(slot).await;
        }
    }

    /// Removes containers of the pod that nobody has an answer about.
    pub(super) async fn remove_unknown_containers(&mut self, slot: usize) {
        let (stage, pod) = (self.stage.clone(), self.pod(slot));
        let (pod_id, wanted) = (pod.pod.id.clone(), pod.wanted.containers.clone());
        let known: BTreeSet<String> =
            pod.containers.iter().flatten().map(|known| known.container.id.clone()).collect();
        let filter = ContainerFilter { pod_sandbox_id: pod_id.clone(), ..Default::default() };
        let found = stage
            .done(Op::ListContainers, &pod_id, async || {
                self.cri().list_containers(Some(filter.clone())).await
            })
            .await;
        for item in found.into_iter().filter(|item| !known.contains(&item.id)) {
            let metadata = item.metadata.clone().unwrap_or_default();
            let number = wanted.iter().position(|want| want.name == metadata.name).expect("ours");
            assert_eq!(item.state(), ContainerState::ContainerCreated, "nobody has started {item:?}");
            let id = &item.id;
            self.stop_by_id(id, 0).await;
            self.remove_by_id(id).await;
            let next = self.pod(slot).attempts[number].max(metadata.attempt + 1);
            self.pod(slot).attempts[number] = next;
        }
    }

    /// StartContainer; says whether it has begun to run. One that was cut off is not tried
    /// again: the kubelet makes another container.
    async fn start_container(&mut self, slot: usize, number: usize) -> bool {
        let stage = self.stage.clone();
        let container = self.known(slot, number).container.clone();
        if stage.call(Op::Start, &container.id, container.start()).await.is_some() {
            self.known(slot, number).is_started = true;
            return true;
        }
        // Undone, it is shown as one that failed.
        self.known(slot, number).may_end_with(&[KILLED, UNKNOWN, START_ERROR, CUT_OFF]);
        let status = stage.done(Op::Status, &container.id, async || container.status().await).await;
        let known = self.known(slot, number);
        known.check(&status, stage.faults.containerd_deaths());
        if status.state() != ContainerState::ContainerRunning {
            return false;
        }
        if !matches!(known.kind, Kind::Ends(_)) {
            known.may_end.clear();
        }
        true
    }

    /// A container that must be there.
    pub(super) fn known(&mut self, slot: usize, number: usize) -> &mut Known {
        self.pod(slot).containers[number].as_mut().expect("the pod has this container")
    }

    /// ContainerStatus, which must be as it is known; of one that has ended no process lives.
    pub(super) async fn check_container(&mut self, slot: usize, number: usize) -> ContainerStatus {
        let container = self.known(slot, number).container.clone();
        let status = self.stage.done(Op::Status, &container.id, async || container.status().await).await;
        let deaths = self.stage.faults.containerd_deaths();
        self.known(slot, number).check(&status, deaths);
        status
    }

    /// Waits for the end of a container which must end.
    pub(super) async fn wait_ended(&mut self, slot: usize, number: usize) {
        let mut patience = Patience::new(&self.stage);
        while !self.known(slot, number).has_ended {
            let status = self.check_container(slot, number).await;
            patience.wait(&self.stage, || format!("the end of {status:?}")).await;
        }
    }

    /// Waits until the pod is told to be not ready, which it must be.
    pub(super) async fn wait_notready(&mut self, slot: usize) {
        let mut patience = Patience::new(&self.stage);
        while self.pod(slot).seen.as_ref().is_none_or(|seen| seen.state == 0) {
            self.check_pod(slot).await;
            let id = self.pod(slot).pod.id.clone();
            patience.wait(&self.stage, || format!("NOTREADY of {id}")).await;
        }
    }

    /// StopContainer until it is done, with the end that it must have.
    pub(super) async fn stop_container(&mut self, slot: usize, number: usize, grace: i64) {
        let stage = self.stage.clone();
        let known = self.known(slot, number);
        if known.has_ended {
            return;
        }
        known.is_ready |= known.container.log().await.contains("ready");
        let in_time = grace >= 10 && known.is_ready;
        if !known.is_ready && grace > 0 {
            known.may_end_with(&[EARLY_TERM]);
        }
        match known.kind {
            Kind::Obeys(code) if in_time => known.may_end_with(&[code]),
            Kind::Obeys(code) => known.may_end_with(&[code, KILLED]),
            Kind::Ignores | Kind::Ends(_) => known.may_end_with(&[KILLED]),
        }
        let container = known.container.clone();
        let before = stage.faults.mark();
        let was_started = known.is_started;
        loop {
            let done = stage.call(Op::Stop, &container.id, container.stop(grace)).await.is_some();
            if stage.faults.any_since(&before) {
                // The grace may have passed while nobody could tell the container.
                self.known(slot, number).may_end_with(&[KILLED]);
            }
            if done {
                break;
            }
        }
        let status = self.check_container(slot, number).await;
        let known = self.known(slot, number);
        assert!(known.has_ended || !was_started, "StopContainer has answered: {status:?}");
    }

    pub(super) async fn stop_by_id(&self, id: &str, timeout: i64) {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        let stop = async || self.cri().runtime().stop_container(request.clone()).await;
        self.stage.done(Op::Stop, id, stop).await;
    }

    pub(super) async fn remove_by_id(&self, id: &str) {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        let remove = async || self.cri().runtime().remove_container(request.clone()).await;
        self.stage.done(Op::Remove, id, remove).await;
    }

    /// RemoveContainer of one that does not run.
    pub(super) async fn remove_container(&mut self, slot: usize, number: usize) {
        let Some(known) = self.pod(slot).containers[number].take() else { return };
        let next = known.attempt + 1;
        self.remove_by_id(&known.container.id).await;
        let pod = self.pod(slot);
        pod.attempts[number] = pod.attempts[number].max(next);
    }

    /// StopPodSandbox and RemovePodSandbox; the slot is empty then.
    pub(super) async fn remove_pod(&mut self, slot: usize) {
        let stage = self.stage.clone();
        let pod = self.pod(slot).pod.clone();
        self.pod(slot).may_be_notready = true;
        for known in self.pod(slot).containers.iter_mut().flatten() {
            known.may_end_with(&[KILLED]);
        }
        stage.done(Op::StopPod, &pod.id, async || pod.stop().await).await;
        self.check_pod(slot).await;
        assert_eq!(self.pod(slot).seen.as_ref().map(|seen| seen.state), Some(1), "a stopped pod");
        for number in 0..self.pod(slot).containers.len() {
            if self.pod(slot).containers[number].is_some() {
                let status = self.check_container(slot, number).await;
                let known = self.known(slot, number);
                assert!(known.has_ended || !known.is_started, "its pod is stopped: {status:?}");
            }
        }
        stage.done(Op::RemovePod, &pod.id, async || pod.remove().await).await;
        let before = stage.faults.mark();
        match pod.status().await {
            Err(error) if error.code() == Code::NotFound => {}
            Err(_) if stage.faults.any_since(&before) => {}
            other => panic!("a pod that was removed: {other:?}"),
        }
        self.slots[slot].pod = None;
    }

    /// The next pod of a slot is another one, with another uid.
    pub(super) fn next_pod(&mut self, slot: usize) {
        self.slots[slot].generation += 1;
        self.slots[slot].attempt = 0;
    }

    /// The next pod of a slot is the same, by another sandbox.
    pub(super) fn next_attempt(&mut self, slot: usize) {
        self.slots[slot].attempt += 1;
    }
}

/// The end of waiting; time in which something is disturbed does not count.
pub(super) struct Patience {
    end: Instant,
    mark: super::faults::Mark,
}

impl Patience {
    pub(super) fn new(stage: &Stage) -> Patience {
        Patience { end: Instant::now() + patient(LIMIT), mark: stage.faults.mark() }
    }

    /// Waits a moment, and fails when it has been too long.
    pub(super) async fn wait(&mut self, stage: &Stage, what: impl Fn() -> String) {
        if stage.faults.any_since(&self.mark) {
            *self = Patience::new(stage);
        }
        assert!(Instant::now() < self.end, "waited in vain for {}", what());
        tokio::time::sleep(PAUSE).await;
    }
}
