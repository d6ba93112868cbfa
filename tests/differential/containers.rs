//! Generated containers.

use longshore::proto::cri::{
    Capability, CdiDevice, ContainerConfig, ContainerMetadata, Device, IdMapping, ImageSpec, KeyValue,
    LinuxContainerConfig, LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig,
};

use crate::pods::{annotation, groups, id, label, options, profile, resources, selinux, text_profile};
use crate::random::Random;
use crate::world::World;

/// Stands for the id of a container of the same pod that runs.
pub(crate) const TARGET: &str = "{target}";
/// Stands for the id of an image, before its reference.
pub(crate) const IMAGE_ID: &str = "{id-of}";

/// A container of `pod`, which has a container that runs, or none.
pub(crate) fn container(
    random: &mut Random,
    world: &World,
    pod: &PodSandboxConfig,
    number: usize,
    has_target: bool,
) -> ContainerConfig {
    let (command, args) = command(random);
    let image = random.maybe(99, |random| image(random, world));
    ContainerConfig {
        metadata: random.maybe(98, |random| ContainerMetadata {
            name: random.pick(&[
                format!("c{number}"),
                format!("c{number}"),
                format!("c{number} ünï"),
                format!("c_{number}"),
            ]),
            attempt: random.pick(&[0, 1, u32::MAX]),
        }),
        image,
        command,
        args,
        working_dir: random.word(&[
            "",
            "",
            "",
            "/",
            "/tmp",
            "/not/there",
            "relative",
            "/tmp/../tmp/",
            "/data",
        ]),
        envs: random.some(6, env),
        mounts: random.some(4, |random| mount(random, world)),
        devices: random.some(3, |random| device(random, world)),
        labels: random.some(4, label).into_iter().collect(),
        annotations: random.some(4, annotation).into_iter().collect(),
        log_path: random.pick(&[
            format!("c{number}/0.log"),
            format!("c{number}.log"),
            String::new(),
            format!("/c{number}.log"),
            format!("a//b/../c{number}.log"),
        ]),
        stdin: random.chance(10),
        stdin_once: random.chance(10),
        tty: random.chance(20),
        linux: random.maybe(96, |random| LinuxContainerConfig {
            resources: random.maybe(70, resources),
            security_context: random.maybe(92, |random| context(random, world, pod, has_target)),
        }),
        windows: None,
        cdi_devices: random
            .maybe(1, |_| vec![CdiDevice { name: "vendor.com/none=0".into() }])
            .unwrap_or_default(),
        stop_signal: if random.chance(3) {
            random.pick(&[-1, 66, 99])
        } else {
            random.pick(&[0, 0, 0, 1, 5, 12, 19, 23, 35, 38, 51, 65])
        },
    }
}

/// One that is likely to start, as far as `config` allows.
pub(crate) fn tame(config: &mut ContainerConfig) {
    config.command = vec!["/bin/sleep".into()];
    config.args = vec!["1000".into()];
    let plain = |path: &str| ["/mnt", "/etc/", "/own/"].iter().any(|start| path.starts_with(start));
    config.mounts.retain(|mount| plain(&mount.container_path));
    config
        .envs
        .retain(|pair| !pair.key.is_empty() && !pair.key.contains(['=', '\0']) && !pair.value.contains(&0));
    config.working_dir = "/tmp".into();
    if let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
        resources.cpuset_cpus.clear();
        resources.cpuset_mems.clear();
        resources.hugepage_limits.clear();
        resources.unified.clear();
        (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes) = (256 << 20, 0);
        (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) = (100_000, 50_000, 512);
        resources.oom_score_adj = resources.oom_score_adj.clamp(0, 1000);
    }
}

fn command(random: &mut Random) -> (Vec<String>, Vec<String>) {
    let list = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    match random.below(12) {
        0..=3 => (list(&["/bin/sleep", "1000"]), vec![]),
        4 | 5 => (list(&["/bin/sleep"]), list(&["1000"])),
        6 => (vec![], list(&["sleep 1000"])),
        7 | 8 => (vec![], vec![]),
        9 => (list(&[""]), vec![]),
        10 => (list(&["/not/there"]), list(&["", "ünï", "a b"])),
        _ => (list(&["sh", "-c", "exit 3"]), vec![]),
    }
}

fn image(random: &mut Random, world: &World) -> ImageSpec {
    let known = world.image(random);
    let image = match random.below(80) {
        0 => String::new(),
        1 => "registry.test/none:1".to_owned(),
        2 => "not a reference!".to_owned(),
        3..=22 => format!("{IMAGE_ID}{known}"),
        _ => known.clone(),
    };
    ImageSpec {
        image,
        annotations: random.some(2, annotation).into_iter().collect(),
        user_specified_image: random.pick(&[String::new(), known, "what:ever".to_owned()]),
        runtime_handler: random.word(&["", "", "base"]),
        image_ref: random.word(&["", "", "x"]),
    }
}

fn env(random: &mut Random) -> KeyValue {
    let key =
        random.word(&["PATH", "HOSTNAME", "TERM", "A", "B", "EMPTY", "IMAGE", "NO", "BASE", "C", "D", "ünï"]);
    let key = if random.chance(3) { random.word(&["", "K=V", "with space"]) } else { key };
    KeyValue { key, value: random.text().into_bytes() }
}

fn mount(random: &mut Random, world: &World) -> Mount {
    let host_path = match random.below(48) {
        0 => world.path("missing/below"),
        1 => world.path("dangling"),
        2 => world.path("file/below"),
        3 => world.path("folder//inner/../inner/"),
        4 => String::new(),
        5 if random.chance(20) => "relative".to_owned(),
        6 | 7 => world.path("link"),
        8 | 9 => world.path("file"),
        10 => "/dev/null".to_owned(),
        11 => world.path("link/inner"),
        12..=34 => world.path("shared"),
        _ => world.path("folder"),
    };
    let target = match random.below(40) {
        0 => random.word(&["/", "", "relative", "//x/../y//", "/mnt/../mnt/x", "."]),
        1..=3 => random.word(&["/dev", "/dev/", "/proc", "/sys", "/sys/fs/cgroup", "/dev/shm", "/dev/pts"]),
        4..=7 => {
            random.word(&["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "etc/hosts", "/etc//hosts/"])
        }
        8..=10 => random.word(&["/data", "/data/deep", "/rel/volume", "/run/x"]),
        _ => random.word(&["/mnt", "/mnt/a", "/mnt/a/b", "/mnt/b/", "/mnt/c/d/e", "/mnt/ünï x"]),
    };
    if random.chance(12) {
        return image_mount(random, world, target);
    }
    let odd = random.chance(4);
    let propagation = if odd { random.pick(&[7, -1]) } else { random.pick(&[0, 0, 0, 1, 2]) };
    // What is mounted below a shared mount would be seen by all who share it.
    let target = if propagation > 0 { format!("/own/{}", random.below(1_000_000)) } else { target };
    let mapping = || vec![IdMapping { host_id: 0, container_id: 0, length: 65536 }];
    Mount {
        container_path: target,
        host_path,
        readonly: random.chance(40),
        selinux_relabel: random.chance(10),
        propagation,
        uid_mappings: random.maybe(1, |_| mapping()).unwrap_or_default(),
        gid_mappings: random.maybe(1, |_| mapping()).unwrap_or_default(),
        recursive_read_only: random.chance(2),
        image: None,
        image_sub_path: if random.chance(1) { "sub".into() } else { String::new() },
        mount_options: random.maybe(1, |_| vec!["noexec".to_owned()]).unwrap_or_default(),
    }
}

fn image_mount(random: &mut Random, world: &World, target: String) -> Mount {
    let known = random.pick(&world.images);
    let image = match random.below(30) {
        0 => String::new(),
        1 => "registry.test/none:1".to_owned(),
        2..=14 => format!("{IMAGE_ID}{known}"),
        _ => known,
    };
    Mount {
        container_path: target,
        host_path: if random.chance(2) { world.path("folder") } else { String::new() },
        readonly: random.chance(97),
        propagation: if random.chance(5) { 2 } else { 0 },
        image: Some(ImageSpec { image, ..ImageSpec::default() }),
        image_sub_path: random.word(&[
            "",
            "",
            "",
            "",
            "etc",
            "etc",
            "bin/busybox",
            "not/there",
            "../..",
            "/etc",
        ]),
        recursive_read_only: random.chance(5),
        ..Mount::default()
    }
}

fn device(random: &mut Random, world: &World) -> Device {
    let host_path = match random.below(28) {
        0 => world.path("null"),
        1 => world.path("fifo"),
        2 if random.chance(20) => world.path("file"),
        3 => world.path("devices"),
        4 if random.chance(20) => "/dev/not-there".to_owned(),
        5 => "/dev/net".to_owned(),
        6 => "/dev/fuse".to_owned(),
        7 => "/dev/./null".to_owned(),
        _ => random.word(&["/dev/null", "/dev/zero", "/dev/full"]),
    };
    Device {
        container_path: random.word(&["", "/dev/given", "/dev/a/b", "relative"]),
        host_path,
        permissions: if random.chance(5) {
            random.word(&["", "x", "rwmx"])
        } else {
            random.word(&["rwm", "rw", "r", "mrw"])
        },
    }
}

#[allow(deprecated)] // the text forms are still understood
fn context(
    random: &mut Random,
    world: &World,
    pod: &PodSandboxConfig,
    has_target: bool,
) -> LinuxContainerSecurityContext {
    let may_be_privileged = pod
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .is_some_and(|context| context.privileged);
    let paths = |random: &mut Random| {
        random.some(3, |random| {
            random.word(&["/proc/kcore", "/proc/keys", "/sys/firmware", "/not/there", "", "relative"])
        })
    };
    let user = random.maybe(25, id);
    LinuxContainerSecurityContext {
        capabilities: random.maybe(50, |random| Capability {
            add_capabilities: capabilities(random),
            drop_capabilities: capabilities(random),
            add_ambient_capabilities: if random.chance(10) { capabilities(random) } else { vec![] },
        }),
        privileged: random.chance(if may_be_privileged { 35 } else { 2 }),
        namespace_options: namespace_options(random, pod, has_target),
        selinux_options: random.maybe(3, selinux),
        run_as_user: user,
        run_as_group: random.maybe(if user.is_some() { 40 } else { 2 }, id),
        run_as_username: if random.chance(12) {
            let odd = ["nobody-here", "web:staff", "33", "a:b:c", "+33"];
            if random.chance(20) { random.word(&odd) } else { random.word(&["root", "guest"]) }
        } else {
            String::new()
        },
        readonly_rootfs: random.chance(20),
        supplemental_groups: groups(random),
        supplemental_groups_policy: if random.chance(1) { 7 } else { random.pick(&[0, 0, 1]) },
        no_new_privs: random.chance(30),
        masked_paths: paths(random),
        readonly_paths: paths(random),
        seccomp: random.maybe(50, |random| profile(random, world)),
        apparmor: random.maybe(3, |random| profile(random, world)),
        apparmor_profile: if random.chance(3) { text_profile(random, world) } else { String::new() },
        seccomp_profile_path: text_profile(random, world),
    }
}

fn capabilities(random: &mut Random) -> Vec<String> {
    random.some(4, |random| {
        if random.chance(10) {
            random.word(&["CAP_NET_ADMIN", "cap_chown", "BOGUS", "", "CAP_ALL"])
        } else {
            random.word(&[
                "ALL",
                "all",
                "NET_ADMIN",
                "sys_admin",
                "SYS_PTRACE",
                "CHOWN",
                "MKNOD",
                "BPF",
                "SYSLOG",
                "NET_RAW",
            ])
        }
    })
}

/// The pod's own, with any pid mode, as the kubelet does it; or others.
fn namespace_options(
    random: &mut Random,
    pod: &PodSandboxConfig,
    has_target: bool,
) -> Option<NamespaceOption> {
    match random.below(10) {
        0 => return None,
        1 => return Some(options(random, true)),
        _ => {}
    }
    let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let mut given = context.and_then(|context| context.namespace_options.clone()).unwrap_or_default();
    given.pid = random.pick(&[0, 0, 1, 1, 1, 2, 2, 3]);
    if given.pid == NamespaceMode::Target as i32 && !has_target && random.chance(90) {
        given.pid = NamespaceMode::Pod as i32;
    }
    if given.pid == NamespaceMode::Target as i32 {
        given.target_id = random.word(&[TARGET, TARGET, TARGET, TARGET, "", "not-there"]);
    }
    Some(given)
}
