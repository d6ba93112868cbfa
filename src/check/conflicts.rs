//! Other servers of the same pods: containerd's own plugin, and who the kubelet speaks to.

use std::path::Path;

use super::Mode;
use super::finding::{Finding, counted, some_of};
use super::kubelet::Kubelet;
use crate::config::Config;
use crate::containerd::BUILTIN_NAMESPACE;

const SUBJECT: &str = "conflicts";

const SWITCH_OFF: &str = "switch it off in containerd's configuration and restart containerd: disabled_plugins = \
     [\"io.containerd.grpc.v1.cri\"]; on 2.x also \"io.containerd.cri.v1.images\" and \
     \"io.containerd.cri.v1.runtime\". Or give longshore another namespace (--namespace)";

pub(super) struct Facts<'a> {
    pub(super) config: &'a Config,
    pub(super) mode: Mode,
    /// Whether containerd's own CRI plugin is at work, if that is known.
    pub(super) builtin_active: Option<bool>,
    pub(super) kubelet: &'a Kubelet,
    /// Pods of the namespace that this longshore has nothing of.
    pub(super) foreign: Vec<String>,
}

pub(super) fn compare(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = plugin(facts).into_iter().collect();
    findings.extend(pods(facts));
    findings.extend(kubelet(facts));
    findings
}

fn shares(facts: &Facts<'_>) -> bool {
    facts.builtin_active == Some(true) && facts.config.file.containerd.namespace == BUILTIN_NAMESPACE
}

fn plugin(facts: &Facts<'_>) -> Option<Finding> {
    let section = &facts.config.file.containerd;
    if !facts.builtin_active? {
        return Some(Finding::ok(SUBJECT, "containerd's own CRI plugin is not active"));
    }
    if !shares(facts) {
        let what = format!(
            "containerd's own CRI plugin is active in {BUILTIN_NAMESPACE}; longshore works in {} beside it",
            section.namespace
        );
        return Some(Finding::ok(SUBJECT, what));
    }
    let user = match &facts.kubelet.endpoint {
        Some(endpoint) if is_socket(endpoint, &section.address) => {
            format!("; the kubelet{} uses it", pid_of(facts.kubelet))
        }
        _ => String::new(),
    };
    let what =
        format!("containerd's own CRI plugin is active in the same namespace, {BUILTIN_NAMESPACE}{user}");
    Some(match section.allow_builtin_cri {
        true => Finding::note(SUBJECT, what, "containerd.allow_builtin_cri allows it: the two fight"),
        false => Finding::problem(SUBJECT, format!("{what}: the server refuses to start"), SWITCH_OFF),
    })
}

fn pods(facts: &Facts<'_>) -> Option<Finding> {
    if facts.foreign.is_empty() {
        return None;
    }
    let namespace = &facts.config.file.containerd.namespace;
    let count = counted(facts.foreign.len(), "pod");
    let what =
        format!("{count} in namespace {namespace} not made by this longshore: {}", some_of(&facts.foreign));
    Some(match shares(facts) {
        true => Finding::problem(
            SUBJECT,
            format!("{what}: those of containerd's own plugin, which serves them"),
            "they stay as they are as long as that plugin is active",
        ),
        false => Finding::note(
            SUBJECT,
            what,
            "the server takes them over at its next start; for what their maker has of them on disk, root \
             and state must name its folders (docs/config-import.md)",
        ),
    })
}

fn kubelet(facts: &Facts<'_>) -> Option<Finding> {
    let kubelet = facts.kubelet;
    let endpoint = kubelet.endpoint.as_deref()?;
    let listen = &facts.config.file.server.listen;
    let who = format!("the kubelet{}", pid_of(kubelet));
    Some(if is_socket(endpoint, listen) {
        Finding::ok(SUBJECT, format!("{who} uses longshore's socket, {}", listen.display()))
    } else {
        let what = format!("{who} uses another CRI server: {endpoint}");
        let advice = format!("containerRuntimeEndpoint: unix://{}", listen.display());
        match facts.mode {
            Mode::Check => Finding::note(SUBJECT, what, &format!("once longshore runs: {advice}")),
            Mode::Doctor => {
                Finding::note(SUBJECT, what, &format!("for longshore to get its calls: {advice}"))
            }
        }
    })
}

fn pid_of(kubelet: &Kubelet) -> String {
    kubelet.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Whether an endpoint, a URL or a path, is that socket.
fn is_socket(endpoint: &str, socket: &Path) -> bool {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path == socket || real(path) == real(socket)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Overrides;

    fn found(text: &str, builtin_active: bool, kubelet: &Kubelet, foreign: &[&str]) -> Vec<Finding> {
        let config = Config::from_text(text, Path::new("x"), &Overrides::default()).expect("valid");
        let foreign = foreign.iter().map(ToString::to_string).collect();
        let builtin_active = Some(builtin_active);
        compare(&Facts { config: &config, mode: Mode::Check, builtin_active, kubelet, foreign })
    }

    fn verdicts(found: &[Finding]) -> Vec<Verdict> {
        found.iter().map(|finding| finding.verdict).collect()
    }

    /// COX-01, COX-02.
    #[test]
    fn the_plugin_in_the_same_namespace_is_a_problem_and_beside_it_none() {
        let none = Kubelet::default();
        assert_eq!(verdicts(&found("", false, &none, &[])), [Verdict::Ok]);
        let same = found("", true, &none, &["web"]);
        assert_eq!(verdicts(&same), [Verdict::Problem, Verdict::Problem]);
        assert!(same[1].what.contains("web") && same[1].what.contains("not made by this longshore"));
        let beside = found("[containerd]\nnamespace = \"try\"\n", true, &none, &[]);
        assert_eq!(verdicts(&beside), [Verdict::Ok]);
        let allowed = found("[containerd]\nallow_builtin_cri = true\n", true, &none, &[]);
        assert_eq!(verdicts(&allowed), [Verdict::Note]);
    }

    #[test]
    fn pods_of_before_are_taken_over_where_the_plugin_is_off() {
        assert_eq!(verdicts(&found("", false, &Kubelet::default(), &["a"])), [Verdict::Ok, Verdict::Note]);
    }

    #[test]
    fn it_is_told_whom_the_kubelet_uses() {
        let with =
            |endpoint: &str| Kubelet { endpoint: Some(endpoint.into()), pid: Some(7), ..Kubelet::default() };
        let ours = found("", false, &with("unix:///run/longshore/longshore.sock"), &[]);
        assert_eq!(verdicts(&ours), [Verdict::Ok, Verdict::Ok]);
        let theirs = found("", true, &with("/run/containerd/containerd.sock"), &[]);
        assert_eq!(verdicts(&theirs), [Verdict::Problem, Verdict::Note]);
        assert!(theirs[0].what.contains("process 7"), "{theirs:?}");
    }
}
