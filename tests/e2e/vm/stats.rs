//! Figures that only version 2 has, as the kernel has them (area STA).

use std::path::Path;

use longshore::proto::cri::{ContainerStats, PsiStats, UInt64Value};

use super::{cgroup_of, pid};
use crate::harness::{Node, wait_until};

/// Eats processor time against a limit, and writes past the cache: pressure of all sorts.
const PRESSED: &str = "while :; do dd if=/dev/zero of=/f bs=64k count=16 conv=fsync 2>/dev/null; done";

/// The microseconds of a line of a pressure file.
fn total(cgroup: &Path, resource: &str, kind: &str) -> u64 {
    let path = cgroup.join(format!("{resource}.pressure"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let line = text.lines().find(|line| line.starts_with(kind)).expect("a line");
    line.rsplit_once("total=").expect("a total").1.parse().expect("a number")
}

fn number(cgroup: &Path, file: &str) -> u64 {
    std::fs::read_to_string(cgroup.join(file)).expect("a file").trim().parse().expect("a number")
}

fn of(value: Option<UInt64Value>) -> u64 {
    value.expect("a value").value
}

/// STA-08: nanoseconds, between what the kernel has before and after.
fn assert_pressure(told: Option<PsiStats>, resource: &str, before: [u64; 2], after: [u64; 2]) {
    let told = told.unwrap_or_else(|| panic!("no pressure of {resource}"));
    let [some, full] = [told.some, told.full].map(|data| data.expect("both lines").total);
    for (told, before, after) in [(some, before[0], after[0]), (full, before[1], after[1])] {
        assert!((before * 1000..=after * 1000).contains(&told), "{resource}: {told}: {before} {after} µs");
    }
}

/// STA-03 … STA-09: pressure, swap and processor time of a container that is pressed.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn pressure_and_swap_are_those_of_the_kernel() {
    const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];
    let node = Node::start().await;
    let pod = node.pod("a").run().await.expect("a pod");
    let container = pod.container("pressed").sh(PRESSED).resources(|resources| {
        (resources.cpu_quota, resources.cpu_period) = (10_000, 100_000);
        resources.memory_limit_in_bytes = 64 << 20;
        resources.memory_swap_limit_in_bytes = 96 << 20;
    });
    let container = container.run().await.expect("it runs");
    let cgroup = cgroup_of(pid(&container).await);
    wait_until("some pressure", async || total(&cgroup, "cpu", "some") > 0).await;

    let totals = || RESOURCES.map(|it| ["some", "full"].map(|kind| total(&cgroup, it, kind)));
    let before = totals();
    let stats: ContainerStats = node.container_stats(&container.id).await.expect("stats");
    let after = totals();
    let (cpu, memory) = (stats.cpu.expect("cpu"), stats.memory.expect("memory"));
    let told = [cpu.psi, memory.psi, stats.io.and_then(|io| io.psi)];
    for (index, told) in told.into_iter().enumerate() {
        assert_pressure(told, RESOURCES[index], before[index], after[index]);
    }

    let swap = stats.swap.expect("swap");
    let used = number(&cgroup, "memory.swap.current");
    assert_eq!((of(swap.swap_usage_bytes), used), (0, 0), "nothing is swapped out");
    assert_eq!(of(swap.swap_available_bytes), number(&cgroup, "memory.swap.max"));
    let limit = number(&cgroup, "memory.max");
    assert_eq!(of(memory.available_bytes) + of(memory.working_set_bytes), limit);
    node.remove_all().await;
    node.finish().await;
}
