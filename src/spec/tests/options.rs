//! What keys of the configuration change in a spec.

use super::*;
use crate::proto::cri::LinuxContainerConfig;
use crate::spec::defaults::{MASKED, READONLY, texts};

/// The spec of a container under `settings`, with host devices and a privileged pod.
fn spec(settings: &str, context: LinuxContainerSecurityContext) -> Spec {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f.toml");
    std::fs::write(&path, settings).expect("a file");
    let config = Config::load(Some(&path), &Overrides::default()).expect("valid");
    let pod = PodSandboxConfig {
        linux: Some(crate::proto::cri::LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { privileged: true, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
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
    let gathered = gather::Gathered {
        devices: vec![device("/dev/asked")],
        host_devices: vec![device("/dev/host")],
        ..gather::Gathered::default()
    };
    let asked = ContainerConfig {
        command: vec!["x".into()],
        linux: Some(LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    };
    container(&ContainerInput {
        id: "c",
        config: &asked,
        pod_id: "p",
        pod: &pod,
        pause_pid: 1,
        target_pid: None,
        image: (&ImageConfig::default(), "i"),
        accounts: &Accounts::default(),
        namespace: "k8s.io",
        handler: config.default_handler(),
        features: Features::default(),
        host: &host(),
        files: &PodFiles::default(),
        gathered: &gathered,
        options: &config.file.container,
    })
    .expect("a spec")
}

/// OCI-16: a handler of virtual machines keeps the host's devices out, and may let all be
/// used that find their way in.
#[test]
fn privileged_without_host_devices_may_still_use_all() {
    let privileged = || LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let of = |settings: &str, context| {
        let linux = spec(&format!("[runtime.handlers.runc]\n{settings}"), context).linux.expect("linux");
        let paths: Vec<String> = linux.devices.into_iter().map(|device| device.path).collect();
        let rules = linux.resources.expect("limits").devices;
        (paths, rules == [devices::allow_all()])
    };
    let (asked, host) = ("/dev/asked".to_owned(), "/dev/host".to_owned());
    let without = "privileged_without_host_devices = true\n";
    let all = format!("{without}privileged_without_host_devices_all_devices_allowed = true\n");
    assert_eq!(of("", privileged()), (vec![asked.clone(), host], true));
    assert_eq!(of(without, privileged()), (vec![asked.clone()], false));
    assert_eq!(of(&all, privileged()), (vec![asked.clone()], true));
    assert_eq!(of(&all, LinuxContainerSecurityContext::default()), (vec![asked], false));
}

/// OCI-17: with `disable_proc_mount` what the kubelet says does not count.
#[test]
fn proc_paths_can_be_kept_from_the_kubelet() {
    let asked = |privileged| LinuxContainerSecurityContext {
        privileged,
        masked_paths: vec!["/proc/mine".into()],
        ..Default::default()
    };
    let masked = |settings: &str, privileged| {
        let linux = spec(settings, asked(privileged)).linux.expect("linux");
        (linux.masked_paths, linux.readonly_paths)
    };
    let disabled = "[container]\ndisable_proc_mount = true\n";
    assert_eq!(masked("", false), (vec!["/proc/mine".into()], vec![]));
    assert_eq!(masked(disabled, false), (texts(&MASKED), texts(&READONLY)));
    assert_eq!(masked(disabled, true), (vec![], vec![]));
    let folder = tempfile::tempdir().expect("a folder");
    let base = folder.path().join("base.json");
    std::fs::write(&base, r#"{"linux":{"maskedPaths":["/proc/base"]}}"#).expect("a file");
    let with_base = format!("{disabled}[runtime.handlers.runc]\nbase_runtime_spec = {base:?}\n");
    assert_eq!(masked(&with_base, false), (vec!["/proc/base".into()], vec![]));
    assert_eq!(masked(&with_base, true), (vec![], vec![]));
}

/// OCI-18, SBX-10: the profile of containers and pods that ask for none.
#[test]
fn an_unset_seccomp_profile_is_the_configured_one() {
    use security::Profile;
    let local = Profile::Localhost("/p.json".into());
    for (configured, want) in
        [("", Profile::Unset), ("RuntimeDefault", Profile::Default), ("localhost//p.json", local)]
    {
        assert_eq!(Profile::Unset.or_unset(configured), want);
        assert_eq!(Profile::Unconfined.or_unset(configured), Profile::Unconfined);
        assert_eq!(pause_seccomp(&PodSandboxConfig::default(), configured), Ok(want));
    }
}
