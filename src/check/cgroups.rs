//! Cgroups: the version, the controllers, and the driver, which kubelet and server must have
//! in common.

use super::finding::Finding;
use super::kernel;
use super::kubelet::Kubelet;
use crate::config::{CgroupDriver, Config};

const SUBJECT: &str = "cgroups";
/// Without these the kubelet does not start, or limits nothing.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// Without these there is less.
const WANTED: [&str; 3] = ["cpuset", "hugetlb", "io"];

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    is_v2: bool,
    controllers: Vec<String>,
    /// As it stands in the configuration.
    typed: String,
    /// The drivers in force, by handler.
    drivers: Vec<(String, &'static str)>,
    default_handler: String,
    has_systemd: bool,
    kubelet: Kubelet,
}

pub(super) fn facts(config: &Config, kernel: &kernel::Facts, kubelet: &Kubelet) -> Facts {
    let name = |driver: CgroupDriver| match driver {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs => "cgroupfs",
    };
    Facts {
        is_v2: kernel.host.cgroup_v2,
        controllers: kernel.controllers.clone(),
        typed: config.file.runtime.cgroup_driver.clone(),
        drivers: config.handlers.iter().map(|h| (h.name.clone(), name(h.cgroup_driver))).collect(),
        default_handler: config.default_handler.clone(),
        has_systemd: kernel.has_systemd,
        kubelet: kubelet.clone(),
    }
}

pub(super) fn compare(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![controllers(facts)];
    let default = facts.drivers.iter().find(|(handler, _)| *handler == facts.default_handler);
    let Some((_, driver)) = default else { return findings };
    findings.push(kubelet(facts, driver));
    if *driver == "systemd" && !facts.has_systemd {
        findings.push(Finding::problem(
            SUBJECT,
            "the driver systemd is configured, and systemd does not run here",
            "runtime.cgroup_driver = \"cgroupfs\", and the same for the kubelet",
        ));
    }
    for (handler, other) in facts.drivers.iter().filter(|(_, other)| other != driver) {
        findings.push(Finding::note(
            SUBJECT,
            format!("handler {handler} has the driver {other}, the default handler {driver}"),
            "the kubelet writes the cgroup parents of all pods in one notation: SystemdCgroup should be the same",
        ));
    }
    findings
}

fn controllers(facts: &Facts) -> Finding {
    let version = if facts.is_v2 { "version 2" } else { "version 1" };
    // Version 1 calls it by another name.
    let has = |name: &str| {
        facts.controllers.iter().any(|known| known == name || (name == "io" && known == "blkio"))
    };
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !has(name)).collect();
    let what = format!("{version}, controllers {}", facts.controllers.join(", "));
    if !missing.is_empty() {
        return Finding::problem(
            SUBJECT,
            format!("{what}; {} missing", missing.join(", ")),
            "the kernel's command line may switch them off, or nobody mounts or delegates them",
        );
    }
    let fewer: Vec<&str> = WANTED.into_iter().filter(|name| !has(name)).collect();
    match fewer.is_empty() {
        true => Finding::ok(SUBJECT, what),
        false => Finding::note(
            SUBJECT,
            format!("{what}; without {}", fewer.join(", ")),
            "limits of these are refused or ignored",
        ),
    }
}

fn kubelet(facts: &Facts, driver: &str) -> Finding {
    let how = match facts.typed.as_str() {
        "auto" => "found, by auto".to_owned(),
        _ => "configured".to_owned(),
    };
    let ours = format!("driver {driver} ({how})");
    let kubelet = &facts.kubelet;
    if let Some((path, Err(wrong))) = &kubelet.file {
        let what = format!("{ours}; the kubelet's configuration {} is not read: {wrong}", path.display());
        return Finding::problem(SUBJECT, what, "mend the file, or name another with --kubelet-config");
    }
    match &kubelet.driver {
        Some(theirs) if theirs == driver => Finding::ok(SUBJECT, format!("{ours}, as the kubelet's")),
        Some(theirs) => Finding::problem(
            SUBJECT,
            format!("{ours}, the kubelet's is {theirs}"),
            &format!(
                "make them the same: cgroupDriver: {driver} for the kubelet, or runtime.cgroup_driver = \"{theirs}\". \
                 A kubelet from 1.31 on asks the server and goes by its answer; older ones do not start pods"
            ),
        ),
        None if kubelet.file.is_some() || kubelet.pid.is_some() => Finding::note(
            SUBJECT,
            format!("{ours}; the kubelet's configuration does not say its own"),
            "a kubelet from 1.31 on asks the server; older ones take cgroupfs",
        ),
        None => Finding::ok(SUBJECT, format!("{ours}; there is no kubelet to compare it with")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn facts(driver: Option<&str>) -> Facts {
        Facts {
            is_v2: true,
            controllers: ["cpu", "memory", "pids", "cpuset", "hugetlb", "io"].map(String::from).into(),
            typed: "auto".into(),
            drivers: vec![("runc".into(), "systemd")],
            default_handler: "runc".into(),
            has_systemd: true,
            kubelet: Kubelet {
                pid: driver.map(|_| 7),
                driver: driver.map(String::from),
                ..Kubelet::default()
            },
        }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        compare(facts).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn another_driver_than_the_kubelets_is_a_problem() {
        assert_eq!(verdicts(&facts(Some("systemd"))), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts(&facts(Some("cgroupfs"))), [Verdict::Ok, Verdict::Problem]);
        assert_eq!(verdicts(&facts(None)), [Verdict::Ok, Verdict::Ok]);
        let mut silent = facts(Some("x"));
        silent.kubelet.driver = None;
        assert_eq!(verdicts(&silent), [Verdict::Ok, Verdict::Note]);
        let mut none = facts(None);
        none.has_systemd = false;
        assert_eq!(verdicts(&none), [Verdict::Ok, Verdict::Ok, Verdict::Problem]);
        let mut two = facts(None);
        two.drivers.push(("crun".into(), "cgroupfs"));
        assert_eq!(verdicts(&two), [Verdict::Ok, Verdict::Ok, Verdict::Note]);
    }

    #[test]
    fn controllers_that_are_missing_are_named() {
        let mut fewer = facts(None);
        fewer.controllers.retain(|name| name != "hugetlb");
        assert_eq!(verdicts(&fewer)[0], Verdict::Note);
        fewer.controllers.retain(|name| name != "memory");
        let found = compare(&fewer);
        assert!(
            found[0].verdict == Verdict::Problem && found[0].what.contains("memory missing"),
            "{found:?}"
        );
        let mut old = facts(None);
        old.is_v2 = false;
        old.controllers.retain(|name| name != "io");
        old.controllers.push("blkio".into());
        assert_eq!(verdicts(&old)[0], Verdict::Ok);
    }
}
