//! What a kubelet does to a pod that is as it shall be.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use longshore::proto::cri::{ContainerStatsFilter, LinuxContainerResources};
use tonic::Code;

use super::figures::Op;
use super::model::Kind;
use super::work::Worker;
use crate::harness::Chance;
use crate::harness::images::REGISTRY;

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// ExecSync, with the code and the output that it has.
    Probe,
    /// ExecSync that takes longer than it may.
    ProbeTooLong,
    /// Statuses of the pod and all its containers.
    Look,
    /// A container is stopped and another one made.
    Restart,
    /// The pod is removed as the kubelet does it, and another one made.
    Replace,
    /// The same without asking its containers first.
    ReplaceHard,
    /// The pod is removed, and none made for now.
    Remove,
    /// A log is rotated.
    Rotate,
    Stats,
    Update,
    /// An image is pulled, or removed.
    Image,
    /// A call is made twice at the same time.
    Twice,
    /// The client goes away in the middle of a call, and comes back.
    GiveUp,
    /// A container takes more memory than it may.
    Memory,
    KillProcess,
    KillShim,
    KillPause,
    DeleteTask,
}

const STEPS: [(Step, u64); 18] = [
    (Step::Probe, 22),
    (Step::ProbeTooLong, 2),
    (Step::Look, 12),
    (Step::Restart, 8),
    (Step::Replace, 7),
    (Step::ReplaceHard, 4),
    (Step::Remove, 3),
    (Step::Rotate, 7),
    (Step::Stats, 8),
    (Step::Update, 4),
    (Step::Image, 6),
    (Step::Twice, 3),
    (Step::GiveUp, 5),
    (Step::Memory, 1),
    (Step::KillProcess, 4),
    (Step::KillShim, 2),
    (Step::KillPause, 2),
    (Step::DeleteTask, 2),
];

impl Step {
    pub(super) fn draw(chance: &mut Chance) -> Step {
        chance.pick(&STEPS)
    }
}

impl Worker {
    /// Does it. What it needs is there before, so that it does not matter what was before.
    pub(super) async fn step(&mut self, slot: usize, step: Step, chance: &mut Chance) {
        let number = chance.below(1_000);
        if step == Step::Remove && self.slots[slot].pod.is_none() {
            return;
        }
        self.ensure(slot).await;
        // Boxed: together they would need more stack than a thread has.
        let work: LocalBoxFuture<'_, ()> = match step {
            Step::Probe => Box::pin(self.probe(slot, number, chance)),
            Step::ProbeTooLong => Box::pin(self.probe_too_long(slot, number)),
            Step::Look => Box::pin(self.look(slot)),
            Step::Restart => Box::pin(self.restart(slot, number, chance)),
            Step::Replace | Step::ReplaceHard | Step::Remove => Box::pin(self.replace(slot, step)),
            Step::Rotate => Box::pin(self.rotate(slot, number)),
            Step::Stats => Box::pin(self.stats(slot)),
            Step::Update => Box::pin(self.update(slot, number)),
            Step::Image => Box::pin(self.image(chance)),
            Step::Twice => Box::pin(self.twice(slot, number)),
            Step::GiveUp => Box::pin(self.give_up(slot, number, chance)),
            Step::Memory => Box::pin(self.memory(slot)),
            Step::KillProcess => Box::pin(self.kill_process(slot, number, chance)),
            Step::KillShim => Box::pin(self.kill_shim(slot)),
            Step::KillPause => Box::pin(self.kill_pause(slot)),
            Step::DeleteTask => Box::pin(self.delete_task(slot, number)),
        };
        work.await;
    }

    /// The pod is removed, and another one made if that is wanted now.
    async fn replace(&mut self, slot: usize, step: Step) {
        if step != Step::ReplaceHard {
            self.stop_containers(slot).await;
        }
        self.remove_pod(slot).await;
        self.next_pod(slot);
        if step != Step::Remove {
            self.ensure(slot).await;
        }
    }

    async fn probe(&mut self, slot: usize, number: u64, chance: &mut Chance) {
        let code = chance.below(100) as i32;
        let Some(known) = self.pod(slot).running(number) else { return };
        let (container, stage) = (known.container.clone(), self.stage.clone());
        let script = format!("echo $SOAK; echo {number} >&2; exit {code}");
        let answer = stage
            .done(Op::Exec, &container.id, async || container.exec(["/bin/sh", "-c", &script]).await)
            .await;
        let name = &container.config.metadata.as_ref().expect("metadata").name;
        let said = (answer.exit_code, &*answer.stdout, &*answer.stderr);
        let want = (code, format!("{name}\n").into_bytes(), format!("{number}\n").into_bytes());
        assert_eq!(said, (want.0, &*want.1, &*want.2), "what a probe said");
    }

    async fn probe_too_long(&mut self, slot: usize, number: u64) {
        let Some(known) = self.pod(slot).running(number) else { return };
        let (container, stage) = (known.container.clone(), self.stage.clone());
        let before = stage.faults.mark();
        let told = container.exec_timeout(["sleep", "30"], 1).await;
        match told {
            Err(error) if error.code() == Code::DeadlineExceeded => stage.figures.done(Op::Exec),
            Err(error) if stage.faults.excuse(Op::Exec, &before, &error) => {
                stage.figures.excused(Op::Exec, error.code());
            }
            other => panic!("a probe that takes longer than it may: {other:?}"),
        }
    }

    /// Looks at everything.
    pub(super) async fn look(&mut self, slot: usize) {
        self.check_pod(slot).await;
        for number in 0..self.pod(slot).containers.len() {
            self.check_container(slot, number).await;
        }
    }

    pub(super) async fn stop_containers(&mut self, slot: usize) {
        for number in 0..self.pod(slot).containers.len() {
            if let Some(known) = &self.pod(slot).containers[number] {
                let grace = if known.kind == Kind::Ignores { 1 } else { 30 };
                self.stop_container(slot, number, grace).await;
            }
        }
    }

    async fn restart(&mut self, slot: usize, number: u64, chance: &mut Chance) {
        let at = number as usize % self.pod(slot).containers.len();
        let is_obeying = matches!(self.known(slot, at).kind, Kind::Obeys(_));
        let grace = if chance.one_in(4) {
            0
        } else if is_obeying {
            30
        } else {
            1
        };
        self.stop_container(slot, at, grace).await;
        self.ensure_container(slot, at).await;
    }

    /// As the kubelet does: renamed, then reopened (LOG-16).
    async fn rotate(&mut self, slot: usize, number: u64) {
        let Some(known) = self.pod(slot).running(number) else { return };
        let container = known.container.clone();
        known.is_ready |= container.log().await.contains("ready");
        let old = container.log_path().with_extension("old");
        std::fs::rename(container.log_path(), &old).expect("a running container has a log");
        let stage = self.stage.clone();
        stage.done(Op::Reopen, &container.id, async || container.reopen_log().await).await;
        assert!(container.log_path().exists(), "the log is there again");
        std::fs::remove_file(old).expect("removed");
    }

    async fn stats(&mut self, slot: usize) {
        let (stage, cri) = (self.stage.clone(), self.cri().clone());
        let id = self.pod(slot).pod.id.clone();
        let stats = stage.done(Op::Stats, &id, async || cri.pod_stats(&id).await).await;
        assert_eq!(stats.attributes.map(|told| told.id), Some(id.clone()));
        let filter = ContainerStatsFilter { pod_sandbox_id: id.clone(), ..Default::default() };
        let list =
            stage.done(Op::Stats, &id, async || cri.list_container_stats(Some(filter.clone())).await).await;
        assert_eq!(list.len(), self.pod(slot).containers.len(), "figures of all containers: {list:?}");
    }

    async fn update(&mut self, slot: usize, number: u64) {
        let Some(known) = self.pod(slot).running(number) else { return };
        let (container, stage) = (known.container.clone(), self.stage.clone());
        let shares = 100 + number.cast_signed();
        let resources = LinuxContainerResources { cpu_shares: shares, ..Default::default() };
        stage.done(Op::Update, &container.id, async || container.update(resources.clone()).await).await;
        let status = stage.done(Op::Status, &container.id, async || container.status().await).await;
        let told = status.resources.and_then(|told| told.linux).map(|told| told.cpu_shares);
        assert_eq!(told, Some(shares), "what was updated");
    }

    async fn image(&mut self, chance: &mut Chance) {
        let (stage, cri) = (self.stage.clone(), self.cri().clone());
        let name = format!("{REGISTRY}/soak-{}-{}:1", self.number, chance.below(super::IMAGES));
        let is_there = if chance.below(3) > 0 {
            if chance.one_in(4) {
                let pull = tokio::time::timeout(Duration::from_millis(chance.below(60)), cri.pull(&name));
                stage.figures.done(if pull.await.is_ok() { Op::Pull } else { Op::GiveUp });
            }
            Some(stage.done(Op::Pull, &name, async || cri.pull(&name).await).await)
        } else {
            stage.done(Op::RemoveImage, &name, async || cri.remove_image(&name).await).await;
            None
        };
        let told = stage.done(Op::ImageStatus, &name, async || cri.image(&name).await).await;
        assert_eq!(told.map(|image| image.id), is_there, "{name}");
    }

    /// A kubelet that was restarted asks for what it has asked for.
    async fn twice(&mut self, slot: usize, number: u64) {
        let at = number as usize % self.pod(slot).containers.len();
        let container = self.known(slot, at).container.clone();
        let known = self.known(slot, at);
        known.may_end_with(&[super::model::EARLY_TERM]);
        match known.kind {
            Kind::Obeys(code) => known.may_end_with(&[code, super::model::KILLED]),
            _ => known.may_end_with(&[super::model::KILLED]),
        }
        let stage = self.stage.clone();
        let stop = || stage.done(Op::Stop, &container.id, async || container.stop(1).await);
        tokio::join!(stop(), stop());
        self.check_container(slot, at).await;
        assert!(self.known(slot, at).has_ended, "both have answered");
        let remove = || stage.done(Op::Remove, &container.id, async || container.remove().await);
        tokio::join!(remove(), remove());
        self.pod(slot).containers[at] = None;
        self.ensure_container(slot, at).await;
    }

    /// Calls whose client goes away. What it began goes on; it asks again.
    async fn give_up(&mut self, slot: usize, number: u64, chance: &mut Chance) {
        let after = Duration::from_millis(5 + chance.below(250));
        let stage = self.stage.clone();
        stage.figures.done(Op::GiveUp);
        let at = number as usize % self.pod(slot).containers.len();
        let container = self.known(slot, at).container.clone();
        match chance.below(4) {
            0 => {
                let given_up = tokio::time::timeout(after, container.exec(["sleep", "5"])).await;
                assert!(!matches!(given_up, Ok(Ok(_))), "it takes longer");
            }
            1 => {
                let known = self.known(slot, at);
                known.may_end_with(&[super::model::KILLED, super::model::EARLY_TERM]);
                if let Kind::Obeys(code) = known.kind {
                    known.may_end_with(&[code]);
                }
                let _ = tokio::time::timeout(after, container.stop(1)).await;
                self.stop_container(slot, at, 1).await;
                self.ensure_container(slot, at).await;
            }
            2 => {
                self.pod(slot).may_be_notready = true;
                for known in self.pod(slot).containers.iter_mut().flatten() {
                    known.may_end_with(&[super::model::KILLED]);
                }
                let pod = self.pod(slot).pod.clone();
                let _ = tokio::time::timeout(after, pod.stop()).await;
                self.remove_pod(slot).await;
                self.next_pod(slot);
            }
            _ => {
                self.remove_pod(slot).await;
                self.next_pod(slot);
                self.run_and_give_up(slot, after).await;
            }
        }
    }

    /// RunPodSandbox, given up, and asked again as it was: there is one pod then.
    async fn run_and_give_up(&mut self, slot: usize, after: Duration) {
        let stage = self.stage.clone();
        let (builder, _) = self.builder(slot);
        // Who asks again may get the answer to the first question.
        let before = stage.faults.mark();
        let _ = tokio::time::timeout(after, builder.run()).await;
        // The kubelet looks, finds nothing yet or the pod, and may ask for it.
        if self.look_for_pod(slot).await {
            return;
        }
        match builder.run().await {
            Ok(_) => {}
            // It was made between the question and this.
            Err(error) if error.code() == Code::AlreadyExists => {}
            Err(error) => {
                assert!(stage.faults.excuse(Op::RunPod, &before, &error), "asked again: {error:?}");
                stage.figures.excused(Op::RunPod, error.code());
            }
        }
        if !self.look_for_pod(slot).await {
            self.run_pod(slot).await;
        }
    }
}
