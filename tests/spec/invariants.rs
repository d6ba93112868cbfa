//! What must hold of a spec, whatever was asked for.

use std::collections::BTreeSet;

use longshore::proto::cri::security_profile::ProfileType;
use longshore::proto::cri::{LinuxContainerSecurityContext, NamespaceMode};
use longshore::spec::oci::{Capabilities, Process, Spec};
use longshore::spec::paths::{clean, depth};
use longshore::spec::security::{DEFAULT_CAPABILITIES, names_of};

use crate::translation::{Case, ID, PAUSE_PID};

/// Fails with what does not hold.
pub(crate) fn check(case: &Case) {
    let specs = case.translate();
    for spec in [&specs.pause, &specs.container].into_iter().flatten() {
        let json = longshore::spec::to_json(spec);
        assert_eq!(longshore::spec::parse(&json, "x").as_ref(), Ok(spec), "a spec is what its JSON says");
    }
    for error in [specs.pause.as_ref().err(), specs.container.as_ref().err()].into_iter().flatten() {
        assert!(!error.message().is_empty() && !error.is_not_found(), "{error:?}");
    }
    if let Ok(spec) = &specs.pause {
        pause(case, spec);
    }
    if let Ok(spec) = &specs.container {
        container(case, spec);
    }
}

fn pause(case: &Case, spec: &Spec) {
    let process = spec.process.clone().unwrap_or_default();
    assert!(process.no_new_privileges && spec.root.as_ref().is_some_and(|root| root.readonly));
    assert_eq!(process.capabilities.unwrap_or_default().bounding, DEFAULT_CAPABILITIES);
    let linux = spec.linux.clone().unwrap_or_default();
    assert!(linux.cgroups_path.ends_with(ID), "{:?}", linux.cgroups_path);
    assert!(linux.masked_paths.contains(&"/proc/kcore".to_owned()));
    let context = case.pod.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
    let sys = spec.mounts.iter().filter(|mount| mount.destination == "/sys");
    let is_writable = sys.flat_map(|mount| &mount.options).any(|option| option == "rw");
    assert!(!is_writable || context.privileged, "/sys of a pause container is writable");
    for (key, value) in case.pod.linux.iter().flat_map(|linux| &linux.sysctls) {
        assert_eq!(linux.sysctl.get(key), Some(value), "sysctl {key:?}");
    }
}

fn container(case: &Case, spec: &Spec) {
    let linux = case.config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let process = spec.process.clone().unwrap_or_default();
    if context.privileged {
        let pod = case.pod.linux.clone().unwrap_or_default().security_context.unwrap_or_default();
        assert!(pod.privileged, "a privileged container in a pod that is not");
    } else {
        capabilities(case, &context, &process.capabilities.clone().unwrap_or_default());
        devices(case, spec);
        paths(&context, spec);
        filter(&context, spec);
    }
    mounts(case, &context, spec);
    command(case, &process);
    namespaces(&context, spec);
    assert_eq!(process.no_new_privileges, context.no_new_privs);
    assert_eq!(process.terminal, case.config.tty);
    assert!(!context.readonly_rootfs || spec.root.as_ref().is_some_and(|root| root.readonly));
    let asked = linux.resources.is_some();
    assert!(!asked || process.oom_score_adj.is_some_and(|adj| (-1000..=1000).contains(&adj)));
    assert!(spec.linux.as_ref().is_some_and(|linux| linux.cgroups_path.ends_with(ID)));
    for group in &context.supplemental_groups {
        assert!(process.user.additional_gids.iter().any(|gid| i64::from(*gid) == *group), "group {group}");
    }
    assert!(process.user.additional_gids.is_sorted());
}

/// OCI-11 … OCI-15: what was not asked for is not there.
fn capabilities(case: &Case, context: &LinuxContainerSecurityContext, sets: &Capabilities) {
    let asked = context.capabilities.clone().unwrap_or_default();
    let canonical = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    let names = |list: &[String]| list.iter().map(canonical).collect::<BTreeSet<String>>();
    let is_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("all"));
    let ambient = names(&asked.add_ambient_capabilities);
    let mut may = names(&asked.add_capabilities);
    may.extend(ambient.iter().cloned());
    if is_all(&asked.add_capabilities) {
        may.extend(names_of(case.host.capabilities));
    }
    if !is_all(&asked.drop_capabilities) {
        let base = case.base_spec.as_ref();
        let list = base.map(|base| base["process"]["capabilities"].clone());
        match list {
            Some(list) => may.extend(
                list["bounding"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|name| name.as_str())
                    .map(str::to_owned),
            ),
            None => may.extend(DEFAULT_CAPABILITIES.map(str::to_owned)),
        }
    }
    for set in [&sets.bounding, &sets.effective, &sets.permitted] {
        let more: Vec<_> = set.iter().filter(|name| !may.contains(*name)).collect();
        assert!(more.is_empty(), "not asked for: {more:?}");
    }
    let dropped: Vec<String> = asked
        .drop_capabilities
        .iter()
        .filter(|name| !name.eq_ignore_ascii_case("all"))
        .map(canonical)
        .collect();
    let all = [&sets.bounding, &sets.effective, &sets.permitted, &sets.inheritable, &sets.ambient];
    for set in all {
        assert!(!set.iter().any(|name| dropped.contains(name)), "dropped: {dropped:?}, there: {set:?}");
    }
    assert!(sets.ambient.iter().all(|name| ambient.contains(name)), "ambient: {:?}", sets.ambient);
}

/// OCI-40: nothing is allowed but what is asked for, or what the base spec allows.
fn devices(case: &Case, spec: &Spec) {
    let linux = spec.linux.clone().unwrap_or_default();
    let rules = linux.resources.unwrap_or_default().devices;
    assert!(rules.first().is_some_and(|rule| !rule.allow && rule.kind.is_empty()), "{rules:?}");
    let allowed: Vec<&String> = rules.iter().filter(|rule| rule.allow).map(|rule| &rule.access).collect();
    let asked: Vec<&String> = case.config.devices.iter().map(|device| &device.permissions).collect();
    assert_eq!(allowed, asked);
    assert_eq!(linux.devices.len(), case.config.devices.len());
}

/// OCI-17.
fn paths(context: &LinuxContainerSecurityContext, spec: &Spec) {
    let linux = spec.linux.clone().unwrap_or_default();
    assert_eq!(
        (linux.masked_paths, linux.readonly_paths),
        (context.masked_paths.clone(), context.readonly_paths.clone())
    );
}

/// OCI-18: who asks for the default filter has one.
fn filter(context: &LinuxContainerSecurityContext, spec: &Spec) {
    let asked = context.seccomp.as_ref().map(|profile| profile.profile_type);
    let filter = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref());
    if asked == Some(ProfileType::RuntimeDefault as i32) {
        assert_eq!(
            filter.map(|filter| &filter["defaultAction"]),
            Some(&serde_json::Value::from("SCMP_ACT_ERRNO"))
        );
    }
    if asked == Some(ProfileType::Localhost as i32) {
        assert!(filter.is_some_and(|filter| filter["defaultAction"].is_string()));
    }
}

/// OCI-26 … OCI-39.
fn mounts(case: &Case, context: &LinuxContainerSecurityContext, spec: &Spec) {
    let has = |option: &str, options: &[String]| options.iter().any(|known| known == option);
    for given in &case.config.mounts {
        let same: Vec<_> =
            spec.mounts.iter().filter(|mount| mount.destination == given.container_path).collect();
        assert!(!same.is_empty(), "{given:?} is missing");
        // With two mounts of one target each has its own.
        let read_only =
            same.iter().filter(|mount| has("ro", &mount.options) || has("rro", &mount.options)).count();
        let asked = case
            .config
            .mounts
            .iter()
            .filter(|other| other.container_path == given.container_path && other.readonly);
        assert!(read_only >= asked.count(), "{given:?} is writable: {same:?}");
        assert!(same.iter().all(|mount| !(has("ro", &mount.options) && has("rw", &mount.options))));
    }
    // The host's /sys stands where a fresh one would, before what is asked for (SBX-28).
    let is_asked = |mount: &&longshore::spec::oci::Mount| mount.kind == "bind" && mount.source != "/sys";
    let binds: Vec<_> = spec.mounts.iter().filter(is_asked).collect();
    let depths: Vec<usize> = binds.iter().map(|mount| depth(&mount.destination)).collect();
    assert!(depths.is_sorted(), "{binds:?}");
    let given: Vec<usize> = case.config.mounts.iter().map(|mount| depth(&mount.container_path)).collect();
    let mut order: Vec<usize> = (0..given.len()).collect();
    order.sort_by_key(|place| given[*place]);
    let want: Vec<&String> = order.iter().map(|place| &case.config.mounts[*place].container_path).collect();
    let mut got = binds.iter().map(|mount| &mount.destination);
    assert!(want.into_iter().all(|target| got.any(|known| known == target)), "given order within a depth");
    let targets: BTreeSet<String> =
        case.config.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    for target in ["/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let count = spec.mounts.iter().filter(|mount| clean(&mount.destination) == target).count();
        let is_base =
            case.base_spec.is_some() || case.image.volumes.iter().any(|volume| clean(volume) == target);
        assert!(targets.contains(target) || is_base || count == 1, "{count} mounts at {target}");
    }
    if !context.privileged {
        let kernel = spec.mounts.iter().filter(|mount| mount.kind == "sysfs" || mount.kind == "cgroup");
        assert!(kernel.flat_map(|mount| &mount.options).all(|option| option != "rw"), "a writable /sys");
    }
}

/// OCI-01 … OCI-03.
fn command(case: &Case, process: &Process) {
    let config = &case.config;
    if config.command.is_empty() {
        assert!(process.args.ends_with(if config.args.is_empty() { &case.image.cmd } else { &config.args }));
    } else {
        assert_eq!(process.args, [config.command.clone(), config.args.clone()].concat());
    }
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<String> = config
        .envs
        .iter()
        .map(|pair| format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)))
        .collect();
    for pair in &given {
        // Of one name the last one counts, wherever it stands.
        let last = |list: &[String]| list.iter().rev().find(|other| name(other) == name(pair)).cloned();
        assert_eq!(last(&process.env), last(&given), "{:?}", process.env);
    }
    assert!(process.env.iter().all(|pair| pair.contains('=')));
    let cwd = if config.working_dir.is_empty() { &case.image.working_dir } else { &config.working_dir };
    assert!(cwd.is_empty() || process.cwd == *cwd);
}

/// OCI-21 … OCI-24.
fn namespaces(context: &LinuxContainerSecurityContext, spec: &Spec) {
    let list = spec.linux.clone().unwrap_or_default().namespaces;
    let path =
        |kind: &str| list.iter().find(|namespace| namespace.kind == kind).map(|found| found.path.as_str());
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        assert_eq!(path(kind), Some(format!("/proc/{PAUSE_PID}/ns/{file}").as_str()));
    }
    let pid = context.namespace_options.as_ref().map_or(0, |options| options.pid);
    if pid == NamespaceMode::Pod as i32 {
        assert_eq!(path("pid"), Some(format!("/proc/{PAUSE_PID}/ns/pid").as_str()));
    }
}
