//! What happens to what all pods share: server, keeper, containerd, CNI.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tonic::{Code, Status};

use super::figures::Op;
use super::{SPARING_FROM, Stage};
use crate::harness::{Chance, patient, wait_until};

/// The bridge plugin, which fails for as long as a file says so: before or after the work. Of
/// a pod whose uid another file holds it keeps the address and says that it does not.
pub(super) const BRIDGE: &str = "#!/bin/sh\nreal=${LONGSHORE_TEST_CNI:-/usr/lib/cni}/bridge\n\
    fail() { echo '{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"out of ropes\"}'; exit 1; }\n\
    case \"$(cat {folder}/cni-fails 2>/dev/null)\" in\n\
    *before-$CNI_COMMAND*) fail ;;\n\
    *after-$CNI_COMMAND*) \"$real\" >/dev/null; fail ;;\nesac\n\
    kept=$(cat {folder}/cni-keeps 2>/dev/null)\n\
    case \"$CNI_COMMAND;$CNI_ARGS;\" in *\"DEL;\"*\";K8S_POD_UID=${kept:-none};\"*) exit 0 ;; esac\n\
    exec \"$real\"\n";

/// What is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    KillServer,
    /// At a step of whatever is under way then.
    KillAtStep,
    EndServer,
    KillKeeper,
    KillContainerd,
    StopContainerd,
    KillBoth,
    FailCni,
}

const KINDS: usize = 8;
/// Before the half of the time, and after it.
const ALL: [(Fault, u64); KINDS] = [
    (Fault::KillServer, 5),
    (Fault::KillAtStep, 8),
    (Fault::EndServer, 3),
    (Fault::KillKeeper, 3),
    (Fault::KillContainerd, 3),
    (Fault::StopContainerd, 3),
    (Fault::KillBoth, 2),
    (Fault::FailCni, 4),
];
const SPARING: [(Fault, u64); 3] =
    [(Fault::KillContainerd, 3), (Fault::StopContainerd, 3), (Fault::FailCni, 4)];

/// The most faults of a round.
const FAULTS_MAX: u64 = 3;
/// The most time before a fault, from the beginning of the round or the fault before on.
const DELAY_MS_MAX: u64 = 4_000;
/// How long a step is waited for at which the server shall die.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Whose generator it is.
const FAULTS: u64 = 1_000_000;

/// Codes that are wrong whatever fails: they say something about the object, or the request.
const NEVER: [Code; 6] = [
    Code::NotFound,
    Code::InvalidArgument,
    Code::Unimplemented,
    Code::OutOfRange,
    Code::PermissionDenied,
    Code::DataLoss,
];

/// How often each began and ended.
#[derive(Default)]
pub(super) struct Faults {
    begun: [AtomicU64; KINDS],
    ended: [AtomicU64; KINDS],
}

/// What had ended at some time.
pub(super) struct Mark([u64; KINDS]);

impl Faults {
    /// Remembers what has happened; faults that go on have not.
    pub(super) fn mark(&self) -> Mark {
        Mark(std::array::from_fn(|kind| self.ended[kind].load(Ordering::SeqCst)))
    }

    /// Whether something has been disturbed since `before` that the call needs.
    pub(super) fn excuse(&self, op: Op, before: &Mark, error: &Status) -> bool {
        let disturbed = ALL.iter().any(|(fault, _)| fault.disturbs(op) && self.has_happened(*fault, before));
        disturbed && !NEVER.contains(&error.code())
    }

    /// Whether one has happened since `before`, or goes on.
    pub(super) fn has_happened(&self, fault: Fault, before: &Mark) -> bool {
        self.begun[fault as usize].load(Ordering::SeqCst) > before.0[fault as usize]
    }

    /// Whether any has happened since `before`, or goes on.
    pub(super) fn any_since(&self, before: &Mark) -> bool {
        ALL.iter().any(|(fault, _)| self.has_happened(*fault, before))
    }

    /// Whether neither server nor keeper is being killed right now.
    pub(super) fn spares_server(&self) -> bool {
        let now = self.mark();
        let spare = [Fault::KillContainerd, Fault::StopContainerd, Fault::FailCni];
        ALL.iter().all(|(fault, _)| spare.contains(fault) || !self.has_happened(*fault, &now))
    }

    /// How often containerd has died or dies.
    pub(super) fn containerd_deaths(&self) -> u64 {
        let deaths = |fault: Fault| self.begun[fault as usize].load(Ordering::SeqCst);
        deaths(Fault::KillContainerd) + deaths(Fault::KillBoth)
    }
}

impl Fault {
    /// Whether a call may fail of it.
    fn disturbs(self, op: Op) -> bool {
        match self {
            Fault::FailCni => matches!(op, Op::RunPod | Op::StopPod | Op::RemovePod),
            Fault::KillKeeper => matches!(op, Op::Create | Op::Start | Op::Exec | Op::Reopen | Op::Remove),
            _ => true,
        }
    }
}

/// The faults of a round, one after the other, if it has any.
pub(super) async fn of_round(stage: &Stage, round: u64) {
    let number = Chance::of(stage.plan.seed, FAULTS, round).below(FAULTS_MAX + 1);
    // The first is always the one that a server must be best prepared for.
    let number = if round == 0 { number.max(1) } else { number };
    for at in round * FAULTS_MAX..round * FAULTS_MAX + number {
        let mut chance = Chance::of(stage.plan.seed, FAULTS + 1, at);
        let delay = Duration::from_millis(chance.below(DELAY_MS_MAX));
        let fault = chance.pick(if round >= SPARING_FROM { &SPARING[..] } else { &ALL[..] });
        let fault = if at == 0 { Fault::KillServer } else { fault };
        tokio::time::sleep(delay).await;
        stage.faults.begun[fault as usize].fetch_add(1, Ordering::SeqCst);
        let begun = Instant::now();
        let disturbance = Disturbance { stage };
        disturbance.disturb(fault, &mut chance).await;
        disturbance.wait_until_well().await;
        stage.faults.ended[fault as usize].fetch_add(1, Ordering::SeqCst);
        stage.figures.fault(fault, begun.elapsed());
    }
}

/// Who disturbs.
struct Disturbance<'a> {
    stage: &'a Stage,
}

impl Disturbance<'_> {
    async fn disturb(&self, fault: Fault, chance: &mut Chance) {
        let (longshore, containerd) = (self.stage.node.longshore(), self.stage.node.containerd());
        let while_away = Duration::from_millis(chance.below(3_000));
        match fault {
            Fault::KillServer => {
                longshore.kill().await;
                tokio::time::sleep(while_away).await;
                longshore.start().await;
            }
            Fault::KillAtStep => {
                let step = chosen(&self.stage.steps, chance);
                let number = 1 + chance.below(2);
                if !self.dies_at(number, step).await {
                    self.stage.figures.note("a step at which the server was to die, but that nothing had");
                    return;
                }
                self.stage.figures.note(&format!("died {step}"));
                tokio::time::sleep(while_away).await;
                longshore.start().await;
            }
            Fault::EndServer => {
                longshore.terminate().await;
                tokio::time::sleep(while_away).await;
                longshore.start().await;
            }
            Fault::KillKeeper => {
                // There is none where no container has run yet.
                let Some(keeper) = longshore.find_keeper() else { return };
                signal(keeper, Signal::KILL);
                tokio::time::sleep(while_away).await;
            }
            Fault::KillContainerd => {
                containerd.kill().await;
                tokio::time::sleep(while_away).await;
                containerd.start().await;
            }
            Fault::StopContainerd => {
                let pid = containerd.pid();
                signal(pid, Signal::STOP);
                tokio::time::sleep(Duration::from_secs(1) + while_away * 2).await;
                signal(pid, Signal::CONT);
            }
            Fault::KillBoth => {
                tokio::join!(longshore.kill(), containerd.kill());
                tokio::time::sleep(while_away).await;
                tokio::join!(longshore.start(), containerd.start());
            }
            Fault::FailCni => {
                let file = self.stage.node.place().path("cni-fails");
                let when = ["before-ADD", "after-ADD", "before-DEL", "after-DEL", "before-ADD before-DEL"];
                std::fs::write(&file, when[chance.below(when.len() as u64) as usize]).expect("a file");
                tokio::time::sleep(Duration::from_secs(2) + while_away * 2).await;
                std::fs::remove_file(&file).expect("removed");
            }
        }
    }

    /// The server dies at the `number`th step from now with this name, if it comes to it soon.
    async fn dies_at(&self, number: u64, step: &str) -> bool {
        let (longshore, points) = (self.stage.node.longshore(), self.stage.node.place().path("points"));
        std::fs::write(points.with_extension("new"), format!("kill {number} {number} {step}"))
            .expect("a file");
        std::fs::rename(points.with_extension("new"), &points).expect("a file");
        let end = Instant::now() + STEP_LIMIT;
        while longshore.is_alive() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::remove_file(&points).expect("it was there");
        if longshore.is_alive() && self.stage.node.version().await.is_ok() {
            return false;
        }
        // It is dead, or has read the order in the last moment.
        longshore.kill().await;
        true
    }

    /// The server is there, and so is containerd; it knows all pods again.
    async fn wait_until_well(&self) {
        let node = &self.stage.node;
        let limit = patient(Duration::from_secs(120));
        let well = wait_until("a node that is well again", async || {
            node.condition("RuntimeReady").await.unwrap_or(false)
                && node.condition("NetworkReady").await.unwrap_or(false)
                && node.pods().await.is_ok()
        });
        tokio::time::timeout(limit, well).await.expect("the node is well again");
    }
}

/// The steps of which this work has one sooner or later, by name.
pub(super) fn steps_of(log: &str) -> BTreeSet<String> {
    log.lines().filter_map(|line| line.split_once(' ')).map(|(_, step)| step.to_owned()).collect()
}

/// One of the steps. That of the same chance is the same, though another run knows more of
/// them, or less.
fn chosen<'a>(steps: &'a BTreeSet<String>, chance: &mut Chance) -> &'a str {
    let salt = chance.below(1 << 30);
    let of_name = |step: &str| step.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    steps
        .iter()
        .max_by_key(|step| Chance::of(salt, of_name(step), 0).below(1 << 30))
        .expect("there are steps")
}

/// Sends a signal to somebody else's process.
pub(super) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
    let _ = kill_process(pid, signal);
}
