use super::super::facts::{ContainerFacts, ImageFacts, NodeFacts, PodFacts};
use super::super::source::line;
use super::*;
use crate::config::{Config, Overrides};
use crate::proto::cri::ContainerConfig;
use crate::spec::{Host, HostDevice, HostMount, ImageConfig, LocalProfile, gather::Gathered};
use serde_json::json;

/// A container of an image with users, on a host that has everything.
fn facts(pod: Value, config: Value) -> Facts {
    let file = Config::load(None, &Overrides::default()).expect("the defaults");
    let handler = file.default_handler().clone();
    let host = Host {
        capabilities: (1 << 41) - 1,
        seccomp: true,
        kernel: (6, 1),
        hostname: "node".into(),
        swap_controller: true,
        hugetlb_controller: true,
        ..Host::default()
    };
    let config: ContainerConfig = serde_json::from_value(config).expect("a container");
    let gathered = Gathered {
        mounts: config
            .mounts
            .iter()
            .map(|mount| HostMount {
                source: mount.host_path.clone().into(),
                shared: true,
                ..HostMount::default()
            })
            .collect(),
        ..Gathered::default()
    };
    let container = ContainerFacts { id: "C".into(), config, pause_pid: 7, target_pid: None, gathered };
    Facts {
        node: NodeFacts {
            handler,
            features: Default::default(),
            host,
            namespace: "k8s.io".into(),
            folders: ("/root".into(), "/state".into()),
            container: file.file.container.clone(),
            sandbox: file.file.sandbox.clone(),
        },
        pod: PodFacts {
            id: "P".into(),
            config: serde_json::from_value(pod).expect("a pod"),
            netns: "/run/netns/x".into(),
        },
        image: ImageFacts {
            config: ImageConfig {
                user: "web".into(),
                env: vec!["PATH=/image".into(), "A=image".into()],
                entrypoint: vec!["/entry".into()],
                cmd: vec!["cmd".into()],
                working_dir: "/work".into(),
                ..ImageConfig::default()
            },
            name: "image:1".into(),
            passwd: b"root:x:0:0::/:\nweb:x:33:34::/:\n".to_vec(),
            group: b"root:x:0:\nstaff:x:50:web\n".to_vec(),
        },
        labels: Default::default(),
        subject: Subject::Container(Box::new(container)),
    }
}

fn container(facts: &mut Facts) -> &mut ContainerFacts {
    match &mut facts.subject {
        Subject::Container(container) => container,
        Subject::Pause(_) => panic!("a container"),
    }
}

/// The note of the first leaf below `pointer` whose value is `value`.
fn note(facts: &Facts, pointer: &str, value: Value) -> String {
    let (_, origins) = explained(facts).expect("it translates");
    let found = origins.iter().find(|origin| origin.pointer.starts_with(pointer) && origin.value == value);
    let known: Vec<String> = origins
        .iter()
        .filter(|origin| origin.pointer.starts_with(pointer))
        .map(|origin| format!("{} = {}", origin.pointer, origin.value))
        .collect();
    line(&found.unwrap_or_else(|| panic!("{pointer} = {value} is not in {known:?}")).sources)
}

/// Each case: pod, container, where, which value, what it comes from.
#[test]
fn every_group_of_fields_has_its_origin() {
    let context = |context: Value| json!({ "linux": { "security_context": context } });
    let limits = |limits: Value| json!({ "linux": { "resources": limits } });
    let none = || json!({});
    let privileged_pod = || context(json!({ "privileged": true }));
    let user = "container linux.security_context.run_as_user";
    for (pod, config, pointer, value, want) in [
        // The user: of the container, of the image, by its files.
        (
            none(),
            context(json!({ "run_as_user": { "value": 1000 } })),
            "/process/user/uid",
            json!(1000),
            user,
        ),
        (none(), context(json!({ "run_as_user": {} })), "/process/user/uid", json!(0), user),
        (none(), none(), "/process/user/uid", json!(33), "image /etc/passwd + image User"),
        (none(), none(), "/process/user/gid", json!(34), "image /etc/passwd + image User"),
        (none(), none(), "/process/user/additionalGids", json!(50), "image /etc/group + image User"),
        (
            none(),
            context(json!({ "run_as_username": "web" })),
            "/process/user/uid",
            json!(33),
            "container linux.security_context.run_as_username + image /etc/passwd",
        ),
        (
            none(),
            context(json!({ "supplemental_groups": [9] })),
            "/process/user/additionalGids",
            json!(9),
            "container linux.security_context.supplemental_groups[0]",
        ),
        // The command.
        (none(), json!({ "command": ["/own"] }), "/process/args/0", json!("/own"), "container command[0]"),
        (none(), none(), "/process/args/0", json!("/entry"), "image Entrypoint[0]"),
        (none(), none(), "/process/args/1", json!("cmd"), "image Cmd[0]"),
        (none(), json!({ "args": ["a"] }), "/process/args/1", json!("a"), "container args[0]"),
        (none(), json!({ "working_dir": "/w" }), "/process/cwd", json!("/w"), "container working_dir"),
        (none(), none(), "/process/cwd", json!("/work"), "image WorkingDir"),
        // The environment.
        (none(), none(), "/process/env", json!("PATH=/image"), "image Env[PATH]"),
        (none(), none(), "/process/env", json!("HOSTNAME=node"), "host: name"),
        (json!({ "hostname": "pod" }), none(), "/process/env", json!("HOSTNAME=pod"), "pod hostname"),
        (
            none(),
            json!({ "envs": [{ "key": "A", "value": "own" }] }),
            "/process/env",
            json!("A=own"),
            "container envs[A]",
        ),
        (none(), json!({ "tty": true }), "/process/env", json!("TERM=xterm"), "container tty"),
        (none(), json!({ "tty": true }), "/process/terminal", json!(true), "container tty"),
        // Security.
        (
            none(),
            context(json!({ "capabilities": { "add_capabilities": ["NET_ADMIN"] } })),
            "/process/capabilities/bounding",
            json!("CAP_NET_ADMIN"),
            "container linux.security_context.capabilities.add_capabilities[0]",
        ),
        (none(), none(), "/process/capabilities/bounding", json!("CAP_CHOWN"), "default"),
        (
            none(),
            context(json!({ "no_new_privs": true })),
            "/process/noNewPrivileges",
            json!(true),
            "container linux.security_context.no_new_privs",
        ),
        (
            none(),
            context(json!({ "readonly_rootfs": true })),
            "/root/readonly",
            json!(true),
            "container linux.security_context.readonly_rootfs",
        ),
        (
            none(),
            context(json!({ "masked_paths": ["/proc/x"] })),
            "/linux/maskedPaths",
            json!("/proc/x"),
            "container linux.security_context.masked_paths[0]",
        ),
        (
            privileged_pod(),
            context(json!({ "privileged": true })),
            "/process/capabilities/bounding",
            json!("CAP_BPF"),
            "container linux.security_context.privileged + host: capabilities of the kernel",
        ),
        (
            privileged_pod(),
            context(json!({ "privileged": true })),
            "/linux/resources/devices/0/allow",
            json!(true),
            "container linux.security_context.privileged",
        ),
        (
            none(),
            context(json!({ "seccomp": {} })),
            "/linux/seccomp/defaultAction",
            json!("SCMP_ACT_ERRNO"),
            "container linux.security_context.seccomp",
        ),
        // Limits.
        (
            none(),
            limits(json!({ "cpu_shares": 512 })),
            "/linux/resources/cpu/shares",
            json!(512),
            "container linux.resources.cpu_shares",
        ),
        (
            none(),
            limits(json!({ "memory_limit_in_bytes": 4096 })),
            "/linux/resources/memory/limit",
            json!(4096),
            "container linux.resources.memory_limit_in_bytes",
        ),
        (
            none(),
            limits(json!({ "memory_limit_in_bytes": 4096 })),
            "/linux/resources/memory/swap",
            json!(4096),
            "container linux.resources.memory_limit_in_bytes + host: swap can be limited",
        ),
        (
            none(),
            limits(json!({ "hugepage_limits": [{ "page_size": "2MB", "limit": 3 }] })),
            "/linux/resources/hugepageLimits",
            json!("2MB"),
            "container linux.resources.hugepage_limits[0].page_size + host: huge pages can be limited",
        ),
        (
            none(),
            limits(json!({ "unified": { "memory.high": "1" } })),
            "/linux/resources/unified",
            json!("1"),
            "container linux.resources.unified[memory.high]",
        ),
        (
            none(),
            limits(json!({ "oom_score_adj": -5 })),
            "/process/oomScoreAdj",
            json!(-5),
            "container linux.resources.oom_score_adj",
        ),
        (none(), none(), "/linux/resources/devices/0/allow", json!(false), "default"),
        // The cgroup.
        (
            json!({ "linux": { "cgroup_parent": "/kubepods/x" } }),
            none(),
            "/linux/cgroupsPath",
            json!("/kubepods/x/C"),
            "pod linux.cgroup_parent + server: id of the container",
        ),
        (
            none(),
            none(),
            "/linux/cgroupsPath",
            json!("/k8s.io/C"),
            "handler options.SystemdCgroup + config containerd.namespace + server: id of the container",
        ),
        // Namespaces.
        (none(), none(), "/linux/namespaces", json!("/proc/7/ns/net"), "server: pid of the pod's pause"),
        (
            none(),
            context(json!({ "namespace_options": { "pid": 1 } })),
            "/linux/namespaces",
            json!("pid"),
            "container linux.security_context.namespace_options.pid",
        ),
        // Mounts.
        (none(), none(), "/mounts", json!("/proc"), "default"),
        (none(), none(), "/mounts", json!("/root/sandboxes/P/hosts"), "config root + server: id of the pod"),
        (
            none(),
            json!({ "mounts": [{ "container_path": "/m", "host_path": "/h", "readonly": true }] }),
            "/mounts",
            json!("/h"),
            "container mounts[0].host_path",
        ),
        (
            none(),
            json!({ "mounts": [{ "container_path": "/m", "host_path": "/h", "propagation": 2 }] }),
            "/linux/rootfsPropagation",
            json!("rshared"),
            "container mounts[0].propagation",
        ),
        (
            none(),
            json!({ "mounts": [{ "container_path": "/m", "host_path": "/h", "propagation": 2 }] }),
            "/mounts",
            json!("/m"),
            "container mounts[0].container_path",
        ),
        // Annotations.
        (json!({ "metadata": { "name": "n" } }), none(), "/annotations", json!("n"), "pod metadata.name"),
        (none(), none(), "/annotations", json!("image:1"), "image name"),
        (
            none(),
            json!({ "metadata": { "name": "c" } }),
            "/annotations",
            json!("c"),
            "container metadata.name",
        ),
    ] {
        assert_eq!(
            note(&facts(pod.clone(), config.clone()), pointer, value),
            want,
            "{pod} {config} {pointer}"
        );
    }
}

/// OCI-40, OCI-41, CTR-08: what was gathered on the host has the origin of who asked for it.
#[test]
fn what_was_gathered_comes_from_who_asked_for_it() {
    let device = |path: &str| HostDevice {
        path: path.into(),
        kind: 'c',
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: 0,
        gid: 0,
        permissions: "rw".into(),
    };
    let mut asked = facts(json!({}), json!({ "devices": [{ "host_path": "/dev/null" }] }));
    container(&mut asked).gathered.devices = vec![device("/dev/null")];
    assert_eq!(note(&asked, "/linux/devices", json!("/dev/null")), "container devices[0].container_path");
    assert_eq!(note(&asked, "/linux/devices/0/major", json!(1)), "container devices[0].host_path");
    let rule = "container devices[0].host_path + container devices[0].permissions";
    assert_eq!(note(&asked, "/linux/resources/devices", json!("rw")), rule);
    container(&mut asked).gathered.volumes = vec![("/v/1".into(), "/data".into())];
    assert_eq!(note(&asked, "/mounts", json!("/v/1")), "image Volumes[0]");
    container(&mut asked).gathered.edits.env = vec!["GPU=1".into()];
    let cdi = "container CDI_devices, and cdi.k8s.io annotations";
    assert_eq!(note(&asked, "/process/env", json!("GPU=1")), cdi);
    container(&mut asked).gathered.classes.rdt = Some("gold".into());
    assert_eq!(note(&asked, "/linux/intelRdt", json!("gold")), "container annotations of classes");
}

/// OCI-18, OCI-48: a profile of the node, and the base spec of a handler.
#[test]
fn files_of_the_node_are_named() {
    let mut asked = facts(json!({}), json!({}));
    asked.node.handler.base_spec = Some(json!({
        "ociVersion": "1.1.0",
        "process": { "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 5, "soft": 4 }] },
        "linux": { "resources": { "pids": { "limit": 9 } } },
    }));
    let base = |pointer: &str| format!("handler base_runtime_spec {pointer}");
    assert_eq!(note(&asked, "/process/rlimits", json!(5)), base("/process/rlimits/0/hard"));
    assert_eq!(note(&asked, "/ociVersion", json!("1.1.0")), base("/ociVersion"));
    assert_eq!(note(&asked, "/linux/resources/pids", json!(9)), base("/linux/resources/pids/limit"));
    let profile = json!({ "profile_type": 2, "localhost_ref": "/p.json" });
    let mut asked = facts(json!({}), json!({ "linux": { "security_context": { "seccomp": profile } } }));
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_owned();
    container(&mut asked).gathered.seccomp = Some(LocalProfile { path: "/p.json".into(), text });
    // The field decides that there is a profile, the file what it says.
    assert_eq!(note(&asked, "/linux/seccomp", json!("SCMP_ACT_ALLOW")), "host: file /p.json");
    asked.node.container.unset_seccomp_profile = "RuntimeDefault".into();
    container(&mut asked).config.linux = None;
    let found = note(&asked, "/linux/seccomp/defaultAction", json!("SCMP_ACT_ERRNO"));
    assert_eq!(found, "config container.unset_seccomp_profile");
}

/// SBX-25: pod and container must say the same of a user namespace; it is the pod's.
#[test]
fn a_user_namespace_is_the_pods() {
    let maps = json!([{ "container_id": 0, "host_id": 100_000, "length": 65536 }]);
    let options = json!({ "userns_options": { "uids": maps, "gids": maps } });
    let context = json!({ "linux": { "security_context": { "namespace_options": options } } });
    let asked = facts(context.clone(), context);
    let field = "pod linux.security_context.namespace_options.userns_options";
    assert_eq!(note(&asked, "/linux/uidMappings", json!(100_000)), format!("{field}.uids[0].host_id"));
    assert_eq!(note(&asked, "/linux/gidMappings", json!(65536)), format!("{field}.gids[0].length"));
    assert_eq!(note(&asked, "/linux/uidMappings/0/containerID", json!(0)), field);
}

/// SBX-08, SBX-24, SBX-31: pause.
#[test]
fn a_pods_pause_has_its_origins() {
    let mut asked = facts(
        json!({
            "hostname": "h",
            "log_directory": "/logs",
            "linux": { "sysctls": { "kernel.sem": "1" }, "resources": { "cpu_shares": 3 } },
        }),
        json!({}),
    );
    asked.subject = Subject::Pause(None);
    asked.node.sandbox.unprivileged_ports = true;
    for (pointer, value, want) in [
        ("/hostname", json!("h"), "pod hostname"),
        ("/linux/namespaces", json!("/run/netns/x"), "server: the pod's network namespace"),
        ("/linux/sysctl", json!("1"), "pod linux.sysctls[kernel.sem]"),
        ("/linux/sysctl", json!("0"), "config sandbox.unprivileged_ports"),
        ("/linux/resources/cpu/shares", json!(2), "default"),
        ("/process/oomScoreAdj", json!(-998), "default"),
        ("/process/args/0", json!("/entry"), "image Entrypoint[0]"),
        ("/annotations/io.kubernetes.cri.sandbox-cpu-shares", json!("3"), "pod linux.resources.cpu_shares"),
        ("/annotations", json!("/logs"), "pod log_directory"),
        ("/mounts", json!("/state/sandboxes/P/shm"), "config state + server: id of the pod"),
    ] {
        assert_eq!(note(&asked, pointer, value), want, "{pointer}");
    }
}
