//! Generated pods.

use longshore::proto::cri::{
    DnsConfig, IdMapping, Int64Value, LinuxContainerResources, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, RunPodSandboxRequest, SeLinuxOption, SecurityProfile, UserNamespace,
    WindowsPodSandboxConfig,
};

use crate::random::Random;
use crate::world::World;

/// A pod; `number` makes its name the only one.
pub(crate) fn pod(random: &mut Random, world: &World, number: usize) -> RunPodSandboxRequest {
    let handler = if random.chance(3) {
        "not-there".to_owned()
    } else {
        random.word(&["", "", "", "runc", "base", "open", "open"])
    };
    RunPodSandboxRequest {
        config: random.maybe(99, |random| config(random, world, number)),
        runtime_handler: handler,
    }
}

fn config(random: &mut Random, world: &World, number: usize) -> PodSandboxConfig {
    let linux = random.maybe(96, |random| linux(random, world, number));
    let is_host_network = linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref()?.namespace_options.as_ref())
        .is_some_and(|options| options.network == NamespaceMode::Node as i32);
    let hostname = match random.below(20) {
        0 => "x".repeat(63),
        1 if random.chance(30) => "h".repeat(65),
        2 => "ünï".to_owned(),
        3 | 4 => String::new(),
        _ => format!("pod-{number}"),
    };
    let log_directory = match random.below(20) {
        0 => String::new(),
        1 => format!("{{logs}}//{number}/../{number}/"),
        _ => format!("{{logs}}/{number}"),
    };
    PodSandboxConfig {
        metadata: random.maybe(98, |random| PodSandboxMetadata {
            name: random.pick(&[
                format!("pod-{number}"),
                format!("pod-{number}"),
                "ünï pod".into(),
                String::new(),
            ]),
            uid: format!("uid-{number}"),
            namespace: random.word(&["default", "default", "kube-system", ""]),
            attempt: random.pick(&[0, 0, 1, u32::MAX]),
        }),
        hostname: if is_host_network && random.chance(96) { String::new() } else { hostname },
        log_directory,
        dns_config: random.maybe(60, dns),
        port_mappings: random.some(2, port),
        labels: random.some(4, label).into_iter().collect(),
        annotations: random.some(4, annotation).into_iter().collect(),
        linux,
        windows: random.maybe(2, |_| WindowsPodSandboxConfig::default()),
    }
}

fn dns(random: &mut Random) -> DnsConfig {
    let list = |random: &mut Random, words: &[&str]| random.some(3, |random| random.word(words));
    DnsConfig {
        servers: list(random, &["10.0.0.10", "fd00::10", "", "not an address"]),
        searches: list(random, &["svc.cluster.local", ".", "a b"]),
        options: list(random, &["ndots:5", "edns0", ""]),
    }
}

fn port(random: &mut Random) -> PortMapping {
    PortMapping {
        protocol: random.pick(&[0, 1, 2]),
        container_port: random.pick(&[0, 80, 70_000, -1]),
        // No port of the host: two servers would want the same.
        host_port: random.pick(&[0, -1]),
        host_ip: random.word(&["", "127.0.0.1", "nowhere"]),
    }
}

pub(crate) fn label(random: &mut Random) -> (String, String) {
    let key = random.word(&[
        "app",
        "app.kubernetes.io/name",
        "ünï",
        "with space",
        "io.kubernetes.pod.name",
        "quote\"d",
        "maker",
        "long",
    ]);
    let special = random.chance(6);
    let key = if special {
        random.word(&["containerd.io/gc.root", "io.cri-containerd.kind", "io.cri-containerd.x", "", "k"])
    } else {
        key
    };
    let value = if special && key == "k" { "v".repeat(4100) } else { random.text() };
    (key, value)
}

pub(crate) fn annotation(random: &mut Random) -> (String, String) {
    let (key, value) = random.pick(&[
        ("io.example.one", "1"),
        ("io.example.a/b", "not by the glob"),
        ("io.example/container", "2"),
        ("exact", "3"),
        ("io.ax/y", "4"),
        ("io.dx/y", "5"),
        ("io.kubernetes.cri.sandbox-id", "mine"),
        ("io.kubernetes.cri.image-name", "mine"),
        ("io.kubernetes.cri.sandbox-memory", "mine"),
        ("kubernetes.io/ingress-bandwidth", "10M"),
        ("kubernetes.io/egress-bandwidth", "1"),
        ("io.kubernetes.cri.untrusted-workload", "true"),
        ("io.kubernetes.cri.untrusted-workload", "no"),
        ("", "empty key"),
        ("ünï", "✓"),
    ]);
    let value = if random.chance(20) { random.text() } else { value.to_owned() };
    (key.to_owned(), value)
}

fn linux(random: &mut Random, world: &World, number: usize) -> LinuxPodSandboxConfig {
    let cgroup = &world.cgroup;
    let cgroup_parent = match random.below(20) {
        0 => String::new(),
        1 => format!("{cgroup}//a/.././{number}/"),
        2 => format!("/..{cgroup}/{number}"),
        _ => format!("{cgroup}/{number}"),
    };
    LinuxPodSandboxConfig {
        cgroup_parent,
        security_context: random.maybe(90, |random| context(random, world)),
        sysctls: random.some(2, sysctl).into_iter().collect(),
        overhead: random.maybe(20, resources),
        resources: random.maybe(30, resources),
    }
}

fn sysctl(random: &mut Random) -> (String, String) {
    let (key, value) = random.pick(&[
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "1024"),
        ("net.ipv4.ping_group_range", "1 0"),
        ("net.core.somaxconn", "512"),
        ("kernel.msgmax", "65536"),
        ("kernel/sem", "250 32000 32 128"),
        ("kernel.hostname", "x"),
        ("kernel.msgmni", "32000"),
        ("net.ipv4.tcp_syncookies", "1"),
    ]);
    if random.chance(8) {
        return (random.word(&["vm.swappiness", "nonsense", ""]), "10".to_owned());
    }
    (key.to_owned(), value.to_owned())
}

#[allow(deprecated)] // the text form is still understood
fn context(random: &mut Random, world: &World) -> LinuxSandboxSecurityContext {
    let user = random.maybe(25, id);
    LinuxSandboxSecurityContext {
        namespace_options: random.maybe(85, |random| options(random, false)),
        selinux_options: random.maybe(4, selinux),
        run_as_group: random.maybe(if user.is_some() { 40 } else { 2 }, id),
        run_as_user: user,
        readonly_rootfs: random.chance(20),
        supplemental_groups: groups(random),
        supplemental_groups_policy: if random.chance(2) { 7 } else { random.pick(&[0, 0, 0, 1]) },
        privileged: random.chance(40),
        seccomp: random.maybe(50, |random| profile(random, world)),
        apparmor: random.maybe(6, |random| profile(random, world)),
        seccomp_profile_path: text_profile(random, world),
    }
}

/// Modes as a kubelet sends them, and now and then others.
pub(crate) fn options(random: &mut Random, odd: bool) -> NamespaceOption {
    let percent = if odd { 12 } else { 2 };
    let mode = |random: &mut Random, usual: &[i32]| {
        if random.chance(percent) { random.pick(&[0, 1, 2, 3, 9, -1]) } else { random.pick(usual) }
    };
    NamespaceOption {
        network: mode(random, &[0, 0, 0, 2]),
        pid: mode(random, &[0, 1, 1, 2]),
        ipc: mode(random, &[0, 0, 0, 2]),
        target_id: String::new(),
        userns_options: random.maybe(if odd { 2 } else { 8 }, user_namespace),
    }
}

fn user_namespace(random: &mut Random) -> UserNamespace {
    if random.chance(60) {
        let mapping = vec![IdMapping { host_id: 200_000, container_id: 0, length: 65536 }];
        return UserNamespace { mode: NamespaceMode::Pod as i32, uids: mapping.clone(), gids: mapping };
    }
    let mapping = |random: &mut Random| {
        random.some(2, |random| IdMapping {
            host_id: random.pick(&[0, 100_000]),
            container_id: random.pick(&[0, 0, 1]),
            length: random.pick(&[0, 1, 65536]),
        })
    };
    UserNamespace { mode: random.pick(&[2, 2, 2, 0, 1, 3, 9]), uids: mapping(random), gids: mapping(random) }
}

pub(crate) fn selinux(random: &mut Random) -> SeLinuxOption {
    SeLinuxOption {
        user: random.word(&["", "system_u"]),
        role: random.word(&["", "system_r"]),
        r#type: random.word(&["", "container_t"]),
        level: random.word(&["", "s0:c1,c2", "nonsense"]),
    }
}

pub(crate) fn id(random: &mut Random) -> Int64Value {
    let usual = random.pick(&[0, 33, 1000, 2000, 4711, 65_534, i64::from(i32::MAX)]);
    let odd = [-1, i64::from(i32::MAX) + 1, i64::from(u32::MAX), i64::MAX, i64::MIN];
    Int64Value { value: if random.chance(2) { random.pick(&odd) } else { usual } }
}

pub(crate) fn groups(random: &mut Random) -> Vec<i64> {
    random.some(4, |random| {
        let odd = random.chance(1);
        if odd {
            random.pick(&[-1, i64::from(u32::MAX) + 2, i64::MAX])
        } else {
            random.pick(&[0, 10, 34, 1000, 1000, 60, 5])
        }
    })
}

pub(crate) fn profile(random: &mut Random, world: &World) -> SecurityProfile {
    let reference = match random.below(20) {
        0 => world.path("profiles/broken.json"),
        1 => world.path("profiles/list.json"),
        2 => world.path("profiles/none.json"),
        3 => String::new(),
        4 => format!("localhost/{}", world.path("profiles/good.json")),
        5 => "relative.json".to_owned(),
        _ => world.path("profiles/good.json"),
    };
    match random.below(12) {
        0..=5 => SecurityProfile { profile_type: 0, localhost_ref: String::new() },
        6..=8 => SecurityProfile { profile_type: 1, localhost_ref: String::new() },
        9 if random.chance(30) => {
            SecurityProfile { profile_type: random.pick(&[0, 1, 9]), localhost_ref: reference }
        }
        _ => SecurityProfile { profile_type: 2, localhost_ref: reference },
    }
}

pub(crate) fn text_profile(random: &mut Random, world: &World) -> String {
    match random.below(48) {
        0 => "runtime/default".to_owned(),
        1 => "docker/default".to_owned(),
        2 => "unconfined".to_owned(),
        3 => format!("localhost/{}", world.path("profiles/good.json")),
        4 => random.word(&["nonsense", "localhost/", "RuntimeDefault"]),
        _ => String::new(),
    }
}

pub(crate) fn resources(random: &mut Random) -> LinuxContainerResources {
    use longshore::proto::cri::HugepageLimit;
    let odd = |random: &mut Random, usual: &[i64], odd: &[i64]| {
        if random.chance(1) { random.pick(odd) } else { random.pick(usual) }
    };
    LinuxContainerResources {
        cpu_period: odd(random, &[0, 0, 100_000, 50_000], &[-1, 1, i64::MAX]),
        cpu_quota: odd(random, &[0, 0, 50_000, -1], &[1, -2, i64::MIN]),
        cpu_shares: odd(random, &[0, 2, 102, 1024, 262_144], &[-1, 1, i64::MAX]),
        memory_limit_in_bytes: odd(random, &[0, 0, 64 << 20, 1 << 30], &[-1, 1, i64::MAX]),
        oom_score_adj: odd(random, &[0, 100, 985, 1000, -998], &[1001, -1001, i64::MAX]),
        cpuset_cpus: random.word(&["", "", "", "0", "0-1", "999", "nonsense"]),
        cpuset_mems: random.word(&["", "", "", "", "0", "77"]),
        hugepage_limits: random.some(3, |random| HugepageLimit {
            page_size: random.word(&["2MB", "1GB", "64KB", "", "nonsense"]),
            limit: random.pick(&[0, 1 << 21, u64::MAX]),
        }),
        unified: random
            .some(2, |random| {
                let key = random.word(&["memory.high", "memory.oom.group", "pids.max", "", "nonsense"]);
                (key, random.word(&["1", "max", ""]))
            })
            .into_iter()
            .collect(),
        memory_swap_limit_in_bytes: odd(random, &[0, 0, 1 << 30, -1], &[1, i64::MIN]),
    }
}
