//! The kernel: what it can, and its limits.

use std::path::Path;

use super::finding::Finding;
use crate::config::Config;
use crate::spec::{Host, gather};
use crate::sys::apparmor::Support;
use crate::sys::mountinfo;

const SUBJECT: &str = "kernel";
/// Fewer inotify instances run out on a node with many pods: each container that watches
/// files takes one.
const INOTIFY_INSTANCES_MIN: u64 = 512;
/// The same for watched files.
const INOTIFY_WATCHES_MIN: u64 = 65536;
/// Fewer open files of one process are too few for the server, the keeper and containerd.
const OPEN_FILES_MIN: u64 = 65536;

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) host: Host,
    /// Controllers of cgroups, of whichever version.
    pub(super) controllers: Vec<String>,
    pub(super) has_systemd: bool,
    release: String,
    file_systems: Vec<String>,
    has_psi: bool,
    ipv4_forwarding: Option<bool>,
    ipv6_forwarding: Option<bool>,
    /// Whether what crosses a bridge is filtered; `None` without the module.
    bridge_filters: Option<bool>,
    inotify_instances: Option<u64>,
    inotify_watches: Option<u64>,
    open_files: Option<u64>,
}

pub(super) fn gather() -> Facts {
    let read = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let number = |path: &str| read(path)?.parse::<u64>().ok();
    let flag = |path: &str| number(path).map(|value| value != 0);
    let unified = read("/sys/fs/cgroup/cgroup.controllers");
    let mounted = || {
        let all = mountinfo::cgroups().unwrap_or_default().into_iter();
        let names = all.flat_map(|mount| mount.controllers);
        names.filter(|name| !name.contains('=') && name != "rw" && name != "xattr").collect()
    };
    let controllers = match &unified {
        Some(text) => text.split_whitespace().map(str::to_owned).collect(),
        None => mounted(),
    };
    Facts {
        host: gather::host(false),
        controllers,
        has_systemd: Path::new("/run/systemd/system").is_dir(),
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        file_systems: read("/proc/filesystems")
            .map(|text| {
                text.lines().filter_map(|line| Some(line.split_whitespace().last()?.into())).collect()
            })
            .unwrap_or_default(),
        has_psi: Path::new("/proc/pressure/cpu").exists(),
        ipv4_forwarding: flag("/proc/sys/net/ipv4/ip_forward"),
        ipv6_forwarding: flag("/proc/sys/net/ipv6/conf/all/forwarding"),
        bridge_filters: flag("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
        inotify_watches: number("/proc/sys/fs/inotify/max_user_watches"),
        open_files: number("/proc/sys/fs/nr_open"),
    }
}

pub(super) fn compare(facts: &Facts, config: &Config, has_bridge: bool) -> Vec<Finding> {
    let mut findings = vec![abilities(facts)];
    let snapshotters = config.handlers.iter().map(|handler| handler.snapshotter.as_str());
    if snapshotters.into_iter().any(|name| name == "overlayfs") {
        findings.push(overlay(facts));
    }
    findings.push(security(facts, config));
    findings.extend(network(facts, has_bridge));
    findings.push(limits(facts));
    findings
}

fn abilities(facts: &Facts) -> Finding {
    let kernel = facts.host.kernel;
    let can = |name: &str, has: bool| format!("{name} {}", if has { "yes" } else { "no" });
    let all = [
        can("user namespaces", facts.host.user_namespaces),
        // mount_setattr(2); of overlays, so that images need no copy.
        can("id-mapped mounts", kernel >= (5, 12)),
        can("of overlayfs too", kernel >= (5, 19)),
        can("seccomp", facts.host.seccomp),
        can("pressure (PSI)", facts.has_psi),
    ];
    let what = format!("{}: {}", facts.release, all.join(", "));
    match facts.host.seccomp {
        true => Finding::ok(SUBJECT, what),
        false => Finding::note(SUBJECT, what, "pods that ask for a seccomp profile are refused"),
    }
}

fn overlay(facts: &Facts) -> Finding {
    match facts.file_systems.iter().any(|name| name == "overlay") {
        true => Finding::ok(SUBJECT, "overlayfs is there"),
        false => Finding::note(
            SUBJECT,
            "overlayfs is not loaded",
            "`modprobe overlay`, and a line `overlay` in /etc/modules-load.d/; else choose another snapshotter",
        ),
    }
}

fn security(facts: &Facts, config: &Config) -> Finding {
    let apparmor = match (config.file.container.disable_apparmor, facts.host.apparmor) {
        (true, _) | (_, Support::Disabled) => "AppArmor switched off by the configuration",
        (_, Support::InForce) => "AppArmor in force",
        (_, Support::Absent) => "no AppArmor",
        (_, Support::NoParser) => "AppArmor without its parser",
    };
    let selinux = match (config.file.sandbox.enable_selinux, facts.host.selinux.is_some()) {
        (true, true) => "SELinux in force, labels are set",
        (false, true) => "SELinux in force, labels are not set",
        (_, false) => "no SELinux",
    };
    let what = format!("{apparmor}; {selinux}");
    if !config.file.container.disable_apparmor && facts.host.apparmor == Support::NoParser {
        let advice = "install the package apparmor: without it nothing is confined, and who asks is refused";
        return Finding::note(SUBJECT, what, advice);
    }
    match (config.file.sandbox.enable_selinux, facts.host.selinux.is_some()) {
        (true, false) => Finding::note(SUBJECT, what, "sandbox.enable_selinux has no effect here"),
        (false, true) => Finding::note(SUBJECT, what, "sandbox.enable_selinux = true sets the pods' labels"),
        _ => Finding::ok(SUBJECT, what),
    }
}

fn network(facts: &Facts, has_bridge: bool) -> Vec<Finding> {
    let state = |value: Option<bool>| match value {
        Some(true) => "on",
        Some(false) => "off",
        None => "not there",
    };
    let (v4, v6) = (facts.ipv4_forwarding, facts.ipv6_forwarding);
    let what = format!("forwarding: IPv4 {}, IPv6 {}", state(v4), state(v6));
    let mut findings = vec![match v4 == Some(true) || v6 == Some(true) {
        true => Finding::ok(SUBJECT, what),
        false => Finding::note(
            SUBJECT,
            what,
            "`sysctl -w net.ipv4.ip_forward=1` (IPv6: net.ipv6.conf.all.forwarding): pods reach nobody else \
             otherwise, unless the network add-on sees to it",
        ),
    }];
    if has_bridge {
        let what = format!("bridge-nf-call-iptables: {}", state(facts.bridge_filters));
        findings.push(match facts.bridge_filters {
            Some(true) => Finding::ok(SUBJECT, what),
            _ => Finding::note(
                SUBJECT,
                what,
                "a bridge with kube-proxy's iptables needs it: `modprobe br_netfilter`, `sysctl -w \
                 net.bridge.bridge-nf-call-iptables=1`",
            ),
        });
    }
    findings
}

fn limits(facts: &Facts) -> Finding {
    let all = [
        ("fs.inotify.max_user_instances", facts.inotify_instances, INOTIFY_INSTANCES_MIN),
        ("fs.inotify.max_user_watches", facts.inotify_watches, INOTIFY_WATCHES_MIN),
        ("fs.nr_open", facts.open_files, OPEN_FILES_MIN),
    ];
    let known = all.iter().filter_map(|(name, value, _)| Some(format!("{name} {}", (*value)?)));
    let what = known.collect::<Vec<_>>().join(", ");
    let low = all.iter().filter(|(_, value, least)| value.is_some_and(|value| value < *least));
    let advice: Vec<String> = low.map(|(name, _, least)| format!("sysctl -w {name}={least}")).collect();
    match advice.is_empty() {
        true => Finding::ok(SUBJECT, what),
        false => {
            Finding::note(SUBJECT, what, &format!("few for a node with many pods: {}", advice.join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Overrides;

    fn facts() -> Facts {
        Facts {
            host: Host { seccomp: true, kernel: (6, 1), user_namespaces: true, ..Host::default() },
            release: "6.1.0".into(),
            file_systems: vec!["overlay".into()],
            ipv4_forwarding: Some(true),
            bridge_filters: Some(true),
            inotify_instances: Some(8192),
            inotify_watches: Some(1 << 20),
            open_files: Some(1 << 20),
            ..Facts::default()
        }
    }

    fn found(facts: &Facts, text: &str) -> Vec<Finding> {
        let config = Config::from_text(text, Path::new("x"), &Overrides::default()).expect("valid");
        compare(facts, &config, true)
    }

    #[test]
    fn a_usual_node_is_fine() {
        let found = found(&facts(), "");
        assert!(found.iter().all(|line| line.verdict == Verdict::Ok), "{found:?}");
    }

    #[test]
    fn what_is_missing_is_noted_with_what_to_do() {
        let notes = |change: fn(&mut Facts), text: &str| {
            let mut facts = facts();
            change(&mut facts);
            let mut notes = found(&facts, text);
            notes.retain(|line| line.verdict == Verdict::Note);
            assert_eq!(notes.len(), 1, "{notes:?}");
            notes.remove(0).advice.expect("advice")
        };
        assert!(notes(|f| f.file_systems.clear(), "").contains("modprobe overlay"));
        assert!(notes(|f| f.ipv4_forwarding = Some(false), "").contains("ip_forward=1"));
        assert!(notes(|f| f.bridge_filters = None, "").contains("br_netfilter"));
        assert!(notes(|f| f.inotify_instances = Some(128), "").contains("max_user_instances=512"));
        assert!(notes(|f| f.host.apparmor = Support::NoParser, "").contains("package apparmor"));
        assert!(notes(|_| {}, "[sandbox]\nenable_selinux = true\n").contains("no effect"));
        assert!(notes(|f| f.host.seccomp = false, "").contains("refused"));
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let facts = gather();
        assert!(!facts.release.is_empty() && !facts.file_systems.is_empty());
    }
}
