//! A fault that the server has no part in and nobody repairs: CNI says that an address is
//! free, and keeps it.

use std::time::Duration;

use super::Plan;
use super::model::Wanted;
use super::steps::Step;
use super::work;
use crate::harness::Chance;

/// Within so many steps the pod is removed: soon after the beginning.
const STEPS: u64 = 4;
/// For that it is long enough on a busy machine.
const LENGTH: Duration = Duration::from_secs(20);

/// A small plan with such a pod.
pub(super) fn plan() -> Plan {
    let plan =
        |seed| Plan { seed, length: LENGTH, workers: 2, slots: 3, only_round: None, kept_address: None };
    (1..)
        .map(plan)
        .find_map(|plan| Some(Plan { kept_address: Some(removed_early(&plan)?), ..plan }))
        .expect("one seed in some has such a pod")
}

/// The uid of a pod with a network that one of the first steps removes.
fn removed_early(plan: &Plan) -> Option<String> {
    let steps = (0..plan.workers).flat_map(|worker| (0..STEPS).map(move |number| (worker, number)));
    steps.into_iter().find_map(|(worker, number)| {
        let (slot, step) = work::draw(&mut Chance::of(plan.seed, worker, number), plan.slots);
        let wanted = Wanted::draw(plan.seed, worker, slot as u64, 0, false);
        let is_removed = matches!(step, Step::Replace | Step::ReplaceHard);
        (is_removed && !wanted.host_network).then(|| format!("w{worker}-s{slot}-g0"))
    })
}
