//! Limits, as the kernel has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use longshore::proto::cri::{HugepageLimit, LinuxContainerResources};

use super::{cgroup_of, pause_pid, pid};
use crate::harness::Node;

const MIB: i64 = 1 << 20;

fn unified(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn limits() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 96 * MIB,
        cpuset_cpus: "1".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        unified: unified(&[("memory.high", "50331648"), ("pids.max", "50")]),
        ..Default::default()
    }
}

fn read(cgroup: &Path, file: &str) -> String {
    let path = cgroup.join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}

fn assert_files(cgroup: &Path, files: &[(&str, &str)]) {
    for (file, value) in files {
        assert_eq!(read(cgroup, file), *value, "{file}");
    }
}

/// How much more than others it gets of a busy processor; 100 is the usual.
fn weight(cgroup: &Path) -> u32 {
    read(cgroup, "cpu.weight").parse().expect("a number")
}

async fn cgroup(container: &crate::harness::Container) -> PathBuf {
    cgroup_of(pid(container).await)
}

/// OCI-43, OCI-44, SBX-09.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn limits_are_what_the_kernel_has() {
    let node = Node::start().await;
    let pod = node.pod("limits").run().await.expect("a pod");
    let container = pod.container("c").forever().resources(|asked| *asked = limits()).run().await;
    let container = container.expect("a container");
    let found = cgroup(&container).await;
    assert_files(
        &found,
        &[
            ("cpu.max", "50000 100000"),
            ("memory.max", "67108864"),
            // v2 counts swap alone.
            ("memory.swap.max", "33554432"),
            ("memory.high", "50331648"),
            ("cpuset.cpus", "1"),
            ("cpuset.mems", "0"),
            ("hugetlb.2MB.max", "4194304"),
            ("pids.max", "50"),
        ],
    );
    assert!((2..100).contains(&weight(&found)), "{}", weight(&found));
    assert_eq!(weight(&cgroup_of(pause_pid(&pod).await)), 1);

    // Memory without a word about swap: none. Without limits: none either.
    let only_memory = |asked: &mut LinuxContainerResources| asked.memory_limit_in_bytes = 32 * MIB;
    let container = pod.container("memory").forever().resources(only_memory).run().await;
    let found = cgroup(&container.expect("a container")).await;
    assert_files(&found, &[("memory.max", "33554432"), ("memory.swap.max", "0"), ("cpu.max", "max 100000")]);
    let free = pod.container("free").forever().run().await.expect("a container");
    let found = cgroup(&free).await;
    assert_files(&found, &[("memory.max", "max"), ("memory.swap.max", "max"), ("cpu.max", "max 100000")]);
    node.remove_all().await;
    node.finish().await;
}

/// RES-01, RES-03.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn an_update_changes_what_runs_and_what_is_to_run() {
    let node = Node::start().await;
    let pod = node.pod("update").run().await.expect("a pod");
    let container = pod.container("c").forever().resources(|asked| *asked = limits());
    let (running, created) = (container.clone().run().await, container.attempt(1).create().await);
    let (running, created) = (running.expect("a container"), created.expect("a container"));
    let before = weight(&cgroup(&running).await);
    let update = LinuxContainerResources {
        cpu_shares: 2048,
        cpu_quota: 20_000,
        memory_limit_in_bytes: 128 * MIB,
        cpuset_cpus: "0-1".into(),
        unified: unified(&[("memory.low", "1048576")]),
        ..Default::default()
    };
    for container in [&running, &created] {
        container.update(update.clone()).await.expect("updated");
    }
    created.start().await.expect("started");
    for container in [&running, &created] {
        let found = cgroup(container).await;
        assert_files(
            &found,
            &[
                ("cpu.max", "20000 100000"),
                ("memory.max", "134217728"),
                ("memory.swap.max", "0"),
                ("memory.low", "1048576"),
                ("cpuset.cpus", "0-1"),
                // Not in the update.
                ("memory.high", "50331648"),
                ("cpuset.mems", "0"),
                ("hugetlb.2MB.max", "4194304"),
                ("pids.max", "50"),
            ],
        );
        assert!(weight(&found) > before, "{} after {before}", weight(&found));
        let told = container.status().await.expect("a status").resources.expect("limits").linux;
        let told = told.expect("limits");
        assert_eq!((told.cpu_shares, told.cpu_quota, told.cpu_period), (2048, 20_000, 100_000));
        assert_eq!((told.memory_limit_in_bytes, told.cpuset_cpus.as_str()), (128 * MIB, "0-1"));
        assert_eq!(told.unified.len(), 3, "{:?}", told.unified);
    }
    node.remove_all().await;
    node.finish().await;
}

/// RES-02: the kernel refuses a processor that is not there, and what was before stays.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn an_update_that_is_refused_changes_nothing() {
    let node = Node::start().await;
    let pod = node.pod("refused").run().await.expect("a pod");
    let container = pod.container("c").forever().resources(|asked| *asked = limits()).run().await;
    let container = container.expect("a container");
    let before = container.status().await.expect("a status").resources;
    let impossible = LinuxContainerResources { cpuset_cpus: "700".into(), ..Default::default() };
    let error = container.update(impossible).await.expect_err("there are not so many processors");
    assert!(error.message().contains(&container.id), "{error}");
    assert_files(&cgroup(&container).await, &[("cpuset.cpus", "1"), ("cpu.max", "50000 100000")]);
    assert_eq!(container.status().await.expect("a status").resources, before);
    assert_eq!(container.info().await["runtimeSpec"]["linux"]["resources"]["cpu"]["cpus"], "1");
    // A key that no kernel has is an error of the start, not something that is left out.
    let unknown = |asked: &mut LinuxContainerResources| asked.unified = unified(&[("memory.none", "1")]);
    let error = pod.container("unified").forever().resources(unknown).run().await.expect_err("no such file");
    assert!(error.message().contains("memory.none"), "{error}");
    node.remove_all().await;
    node.finish().await;
}

/// OCI-40: v2 has no files for devices, but a program in the kernel.
#[tokio::test]
#[ignore = "needs cgroup v2, systemd and AppArmor: make test-vm"]
async fn devices_are_guarded_also_after_an_update() {
    let node = Node::start().await;
    let pod = node.pod("devices").run().await.expect("a pod");
    let container = pod.container("c").forever().run().await.expect("a container");
    // The kernel's log: root could read it, but the container was not given it.
    container.sh("mknod /tmp/kmsg c 1 11 && echo x > /dev/null && head -c 1 /dev/zero > /dev/null").await;
    for _ in 0..2 {
        let opened = container.exec(["head", "-c", "1", "/tmp/kmsg"]).await.expect("it runs");
        let said = String::from_utf8_lossy(&opened.stderr).into_owned();
        assert!(opened.exit_code != 0 && said.contains("not permitted"), "{said}");
        let update = LinuxContainerResources { cpu_quota: 60_000, ..Default::default() };
        container.update(update).await.expect("updated");
        container.sh("echo x > /dev/null && head -c 1 /dev/zero > /dev/null").await;
    }
    node.remove_all().await;
    node.finish().await;
}
