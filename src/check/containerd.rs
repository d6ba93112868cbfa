//! containerd: whether it answers, which one it is, and whether it has what is needed.

use std::path::Path;

use super::LIMIT;
use super::finding::Finding;
use crate::config::Config;
use crate::containerd::{Capabilities, Containerd, PluginState};
use crate::error::Result;
use crate::flow;
use crate::sys::socket::{self, Address};

const SUBJECT: &str = "containerd";
/// The key of a snapshot that nobody has.
const NO_SNAPSHOT: &str = "longshore-check";

pub(super) struct Facts {
    pub(super) client: Containerd,
    /// What it can do, or why it does not say.
    known: Result<Capabilities, String>,
    /// The process that listens.
    pub(super) pid: Option<u32>,
    /// The snapshotters of the handlers, and why one does not answer.
    snapshotters: Vec<(String, Result<(), String>)>,
}

impl Facts {
    pub(super) fn answers(&self) -> bool {
        self.known.is_ok()
    }

    pub(super) fn builtin_active(&self) -> bool {
        self.known.as_ref().is_ok_and(Capabilities::builtin_cri_active)
    }
}

pub(super) async fn gather(config: &Config) -> Result<Facts> {
    let section = &config.file.containerd;
    let client = Containerd::new(&section.address, &section.namespace, LIMIT)?;
    // The first call shows whether anybody is there at all.
    let known = match client.version(LIMIT).await {
        Ok(_) => client.introspect().await,
        Err(error) => Err(error),
    };
    let mut snapshotters = Vec::new();
    if known.is_ok() {
        for name in names_of_snapshotters(config) {
            let answer = match client.snapshot(&name, NO_SNAPSHOT).await {
                Err(error) if !error.is_not_found() => Err(error.message().to_owned()),
                _ => Ok(()),
            };
            snapshotters.push((name, answer));
        }
    }
    let address = section.address.clone();
    let pid = flow::blocking(move || Ok(listener(&address))).await?;
    let known = known.map_err(|error| reason(error.message()).to_owned());
    Ok(Facts { client, known, pid, snapshotters })
}

/// What the transport says, without what was asked of whom.
fn reason(message: &str) -> &str {
    message.split_once("containerd does not answer: ").map_or(message, |(_, reason)| reason)
}

fn names_of_snapshotters(config: &Config) -> Vec<String> {
    let mut names = vec![config.file.image.snapshotter.clone()];
    names.extend(config.handlers.iter().map(|handler| handler.snapshotter.clone()));
    names.sort();
    names.dedup();
    names
}

/// The process that listens at a socket, or made it for the one that does.
pub(super) fn listener(socket: &Path) -> Option<u32> {
    let address = Address::of(socket).ok()?;
    let stream = std::os::unix::net::UnixStream::connect(address.path()).ok()?;
    socket::peer(&stream).ok()?.pid
}

pub(super) fn compare(facts: &Facts, config: &Config) -> Vec<Finding> {
    let (address, namespace) = (&config.file.containerd.address, &config.file.containerd.namespace);
    let known = match &facts.known {
        Ok(known) => known,
        Err(reason) => return vec![silent(address, reason)],
    };
    let version = known.raw_version();
    let answers = format!("{version} answers at {}, namespace {namespace}", address.display());
    let mut findings = vec![match known.is_supported() {
        true => Finding::ok(SUBJECT, answers),
        false => {
            Finding::problem(SUBJECT, format!("{answers}: not supported"), "use containerd 1.6, 1.7 or 2.x")
        }
    }];
    let missing: Vec<_> = known.needed().filter(|(_, state)| *state != PluginState::Loaded).collect();
    for (what, state) in &missing {
        findings.push(not_loaded(what, state));
    }
    if missing.is_empty() {
        let needed: Vec<_> = known.needed().map(|(what, _)| what).collect();
        findings.push(Finding::ok(SUBJECT, format!("has what is needed: {}", needed.join(", "))));
    }
    for (name, answer) in &facts.snapshotters {
        findings.push(match (known.snapshotter(name), answer) {
            (PluginState::Loaded, Ok(())) => Finding::ok(SUBJECT, format!("snapshotter {name} answers")),
            (PluginState::Loaded, Err(why)) => Finding::problem(
                SUBJECT,
                format!("snapshotter {name} does not work: {why}"),
                "look at its own log; a proxy snapshotter is a process of its own",
            ),
            (PluginState::Failed(why), _) => Finding::problem(
                SUBJECT,
                format!("snapshotter {name} is not loaded: {why}"),
                "mend what containerd says, or choose another one with image.snapshotter",
            ),
            (PluginState::Absent, _) => Finding::problem(
                SUBJECT,
                format!("there is no snapshotter {name}"),
                &format!(
                    "image.snapshotter and runtime.handlers.*.snapshotter name one of these: {}",
                    known.snapshotters().collect::<Vec<_>>().join(", ")
                ),
            ),
        });
    }
    findings
}

fn silent(address: &Path, reason: &str) -> Finding {
    let advice = match address.exists() {
        true => "is it running, and not stuck? `systemctl status containerd`",
        false => "there is no such socket: start containerd, or name its socket with containerd.address",
    };
    Finding::problem(SUBJECT, format!("does not answer at {}: {reason}", address.display()), advice)
}

fn not_loaded(what: &str, state: &PluginState) -> Finding {
    match state {
        PluginState::Failed(why) => Finding::problem(
            SUBJECT,
            format!("{what}: the plugin is not loaded: {why}"),
            "mend what containerd says and restart it",
        ),
        _ => Finding::problem(
            SUBJECT,
            format!("{what}: there is no such plugin"),
            "take it out of disabled_plugins in containerd's configuration and restart it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::config::Overrides;

    fn config() -> Config {
        Config::from_text("", std::path::Path::new("x"), &Overrides::default()).expect("defaults")
    }

    fn facts(known: Result<Capabilities, String>) -> Facts {
        let client = Containerd::new("/no/socket".as_ref(), "k8s.io", LIMIT).expect("a client");
        Facts { client, known, pid: None, snapshotters: vec![("overlayfs".into(), Ok(()))] }
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_the_only_thing_to_say() {
        let found = compare(&facts(Err("no such file".into())), &config());
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Problem));
        assert!(found[0].what.contains("/run/containerd/containerd.sock"), "{found:?}");
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let found = compare(&facts(Ok(Capabilities::default())), &config());
        for part in ["not supported", "leases", "tasks", "events", "no snapshotter overlayfs"] {
            assert!(found.iter().any(|line| line.what.contains(part)), "{part}: {found:?}");
        }
    }
}
