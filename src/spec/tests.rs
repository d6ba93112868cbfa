//! The translation against what real built-in plugins recorded: same request, same spec.

mod options;

use std::path::Path;

use super::*;
use crate::config::{Config, Overrides};
use crate::proto::cri::{LinuxContainerSecurityContext, LinuxSandboxSecurityContext, PodSandboxConfig};
use crate::state::record::{ContainerMetadata, SandboxMetadata};
use serde_json::{Value, json};

fn record(version: &str, name: &str) -> Value {
    let path = format!("{}/tests/data/records/{version}/{name}.record.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect("a record is JSON")
}

fn metadata<T: serde::de::DeserializeOwned>(record: &Value, key: &str) -> T {
    serde_json::from_value(record["Extensions"][key]["value"]["Metadata"].clone()).expect("metadata")
}

/// The machine that the records are from: cgroup v1, no AppArmor.
fn host() -> Host {
    Host {
        capabilities: (1 << 41) - 1,
        seccomp: true,
        kernel: (6, 18),
        hostname: "node".into(),
        swap_controller: true,
        restrict_oom_score_adj: true,
        ..Host::default()
    }
}

fn config() -> Config {
    Config::load(None, &Overrides::default()).expect("the defaults")
}

/// Brings specs of both sides to one form: what is the version's or folder's own is left
/// out.
fn comparable(mut spec: Value) -> Value {
    spec.as_object_mut().expect("an object").remove("ociVersion");
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        for mount in mounts {
            if mount["type"] == "bind" {
                let source =
                    mount["source"].as_str().unwrap_or_default().rsplit('/').next().map(str::to_owned);
                mount["source"] = source.into();
            }
        }
    }
    spec
}

#[track_caller]
fn assert_same(ours: &Spec, theirs: &Value) {
    let ours = comparable(serde_json::to_value(ours).expect("JSON"));
    let theirs = comparable(theirs.clone());
    let keys: std::collections::BTreeSet<&String> =
        [&ours, &theirs].into_iter().flat_map(|spec| spec.as_object().expect("an object").keys()).collect();
    for key in keys {
        let (a, b) = (&ours[key.as_str()], &theirs[key.as_str()]);
        assert_eq!(a, b, "field {key:?}: ours, then theirs");
    }
}

#[test]
fn a_pause_container_is_what_the_plugin_makes() {
    let record = record("2.3.4", "sandbox");
    let metadata: SandboxMetadata = metadata(&record, "io.cri-containerd.sandbox.metadata");
    let image = ImageConfig {
        user: "65535:65535".into(),
        entrypoint: vec!["/pause".into()],
        ..ImageConfig::default()
    };
    let files =
        PodFiles { shm: "/s/shm".into(), resolv_conf: "/r/resolv.conf".into(), ..PodFiles::default() };
    // The plugin forgets the pod's supplemental groups for pause; we do not.
    let mut theirs = record["Spec"].clone();
    theirs["process"]["user"]["additionalGids"] = json!([1000, 65535]);
    // What a newer profile of theirs adds to ours: nothing.
    let config = config();
    let ours = pause(&PauseInput {
        id: &metadata.id,
        pod: &metadata.config,
        user_namespace: None,
        netns: Some(Path::new(&metadata.netns_path)),
        image: (&image, "registry.k8s.io/pause:3.10"),
        accounts: &Accounts::default(),
        handler: config.default_handler(),
        namespace: "k8s.io",
        host: &host(),
        files: &files,
        seccomp: None,
        unprivileged: (true, true),
        unset_seccomp: "",
    })
    .expect("a spec");
    assert_same(&ours, &theirs);
}

#[test]
fn a_container_is_what_the_plugin_makes() {
    let record = record("2.3.4", "running");
    let metadata: ContainerMetadata = metadata(&record, "io.cri-containerd.container.metadata");
    let pod: SandboxMetadata =
        self::metadata(&self::record("2.3.4", "sandbox"), "io.cri-containerd.sandbox.metadata");
    let image =
        ImageConfig { env: vec!["PATH=/bin".into()], cmd: vec!["sh".into()], ..ImageConfig::default() };
    let files = PodFiles {
        hostname: "/p/hostname".into(),
        hosts: "/p/hosts".into(),
        resolv_conf: "/p/resolv.conf".into(),
        shm: "/p/shm".into(),
    };
    let gathered = gather::Gathered {
        mounts: vec![HostMount { source: "/srv/data".into(), ..HostMount::default() }],
        devices: vec![HostDevice {
            path: "/dev/fuse".into(),
            kind: 'c',
            major: 10,
            minor: 229,
            mode: 0o600,
            uid: 0,
            gid: 0,
            permissions: "rwm".into(),
        }],
        ..gather::Gathered::default()
    };
    let config = config();
    let ours = container(&ContainerInput {
        id: &metadata.id,
        config: &metadata.config,
        pod_id: &metadata.sandbox_id,
        pod: &pod.config,
        pause_pid: 32289,
        target_pid: None,
        image: (&image, "registry.k8s.io/e2e-test-images/busybox:1.29-2"),
        accounts: &Accounts::default(),
        handler: config.default_handler(),
        namespace: "k8s.io",
        features: Features::default(),
        host: &host(),
        files: &files,
        gathered: &gathered,
        options: &config.file.container,
    })
    .expect("a spec");
    assert_same(&ours, &record["Spec"]);
}

#[test]
fn privileged_needs_a_privileged_pod_and_lifts_everything() {
    let config = config();
    let privileged = LinuxContainerSecurityContext {
        privileged: true,
        masked_paths: vec!["/proc/kcore".into()],
        ..Default::default()
    };
    let container_config = ContainerConfig {
        command: vec!["x".into()],
        linux: Some(crate::proto::cri::LinuxContainerConfig {
            security_context: Some(privileged),
            ..Default::default()
        }),
        ..Default::default()
    };
    let build = |pod: &PodSandboxConfig| {
        container(&ContainerInput {
            id: "c",
            config: &container_config,
            pod_id: "p",
            pod,
            pause_pid: 1,
            target_pid: None,
            image: (&ImageConfig::default(), "i"),
            accounts: &Accounts::default(),
            handler: config.default_handler(),
            namespace: "k8s.io",
            features: Features::default(),
            host: &host(),
            files: &PodFiles::default(),
            gathered: &gather::Gathered::default(),
            options: &config.file.container,
        })
    };
    assert!(build(&PodSandboxConfig::default()).is_err());
    let pod = PodSandboxConfig {
        linux: Some(crate::proto::cri::LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { privileged: true, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let spec = build(&pod).expect("a spec");
    let linux = spec.linux.expect("linux");
    assert!(linux.masked_paths.is_empty() && linux.seccomp.is_none());
    assert_eq!(linux.resources.expect("limits").devices, [devices::allow_all()]);
    let capabilities = spec.process.and_then(|process| process.capabilities).expect("capabilities");
    assert_eq!(capabilities.bounding.len(), 41);
    let sys = spec.mounts.iter().find(|mount| mount.destination == "/sys").expect("sysfs");
    assert!(sys.options.contains(&"rw".to_owned()));
}

#[test]
fn network_sysctls_of_the_pod_wait_for_the_network() {
    let pod = |key: &str| PodSandboxConfig {
        linux: Some(crate::proto::cri::LinuxPodSandboxConfig {
            sysctls: [(key.to_owned(), "1".to_owned())].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(sysctls_need_network(&pod("net.ipv4.conf.eth0.rp_filter")));
    assert!(sysctls_need_network(&pod("net/core/somaxconn")));
    assert!(!sysctls_need_network(&pod("net.ipv4.ping_group_range")));
    assert!(!sysctls_need_network(&pod("kernel.shm_rmid_forced")));
}
