//! What belongs to no pod, and who removes it (`crate::leftovers` finds it).

use super::finding::{Finding, counted};
use crate::leftovers::{RemovedBy, Thing, World};

const SUBJECT: &str = "leftovers";

pub(crate) fn compare(world: &World) -> Vec<Finding> {
    if !world.is_complete() {
        return Vec::new();
    }
    let things = world.things();
    if things.is_empty() {
        return vec![Finding::ok(SUBJECT, summary(world))];
    }
    things.into_iter().map(|thing| told(thing, world.server())).collect()
}

fn summary(world: &World) -> String {
    let (namespace, pods, containers) = world.count();
    let (pods, containers) = (counted(pods, "pod"), counted(containers, "container"));
    format!("none: everything belongs to one of {pods} and {containers} in {namespace}")
}

/// What the server or the kubelet removes is no problem before it runs. While it runs, it has
/// not removed it, unless it looks after that from time to time.
fn told(thing: Thing, (server_runs, reconciles): (bool, bool)) -> Finding {
    let Thing { left, why, advice, .. } = thing;
    let whose = if left.ours { "" } else { ", of longshore or another CRI server" };
    let what = format!("{} {}{whose}: {why}", left.kind, left.name);
    let advice = match left.removed_by {
        RemovedBy::Server if reconciles => {
            "the server removes it, at the latest after server.reconcile_period_s".to_owned()
        }
        RemovedBy::Server => "the server removes it at its next start".to_owned(),
        RemovedBy::Kubelet => "the kubelet removes it, as soon as it asks the server".to_owned(),
        RemovedBy::Nobody => format!("nobody removes it by himself: {advice}"),
    };
    let stays = match left.removed_by {
        RemovedBy::Server => server_runs && !reconciles,
        RemovedBy::Kubelet => false,
        RemovedBy::Nobody => true,
    };
    let finding = match left.ours && stays {
        true => Finding::problem(SUBJECT, what, &advice),
        false => Finding::note(SUBJECT, what, &advice),
    };
    finding.of_leftover(left)
}
