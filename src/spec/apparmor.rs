//! AppArmor: which profile a container runs under, and the text of the default one.
//!
//! | CRI | OCI | rule |
//! |---|---|---|
//! | `apparmor`, else `apparmor_profile` | `process.apparmorProfile` | OCI-19 |
//! | – of a privileged container | none, but one of the node's if it is asked for | OCI-16 |
//!
//! A pod's own setting is of no account: the kubelet gives every container its own, and
//! pause has none (SBX-10).

use std::fmt::Write;

use super::Host;
use super::security::Profile;
use crate::error::{Error, Result, precondition};
use crate::proto::cri::LinuxContainerSecurityContext;
use crate::sys::apparmor::Support;

/// The name of the default profile: that which containerd's plugin gives its own.
pub const DEFAULT: &str = "cri-containerd.apparmor.d";

/// The profile that a container asks for.
///
/// # Errors
/// InvalidArgument for one of no known form.
pub fn asked(context: &LinuxContainerSecurityContext) -> Result<Profile> {
    #[allow(deprecated)] // older kubelets still send the text form
    let text = &context.apparmor_profile;
    super::security::profile("AppArmor", context.apparmor.as_ref(), text)
}

/// The profile's name for a spec; empty for none.
///
/// # Errors
/// FailedPrecondition when a profile is asked for that cannot be in force here.
pub fn name(profile: &Profile, privileged: bool, host: &Host) -> Result<String> {
    if host.apparmor != Support::InForce {
        return match profile {
            Profile::Unset | Profile::Unconfined => Ok(String::new()),
            Profile::Default => Err(refused("an AppArmor profile", host.apparmor)),
            Profile::Localhost(name) => Err(refused(&format!("AppArmor profile {name:?}"), host.apparmor)),
        };
    }
    let name = match profile {
        Profile::Unconfined => return Ok(String::new()),
        Profile::Unset | Profile::Default if privileged => return Ok(String::new()),
        Profile::Unset | Profile::Default => DEFAULT,
        Profile::Localhost(name) => name,
    };
    if !is_loaded(name, host) {
        return Err(precondition(format!("AppArmor profile {name:?} is not loaded on this host")));
    }
    Ok(name.to_owned())
}

fn refused(what: &str, support: Support) -> Error {
    let why = match support {
        Support::NoParser => {
            "this host has no /sbin/apparmor_parser, without which none is used: install the package apparmor"
        }
        Support::Disabled => "the configuration of longshore says container.disable_apparmor",
        Support::InForce | Support::Absent => "AppArmor is not in force on this host",
    };
    precondition(format!("{what} is asked for, but {why}"))
}

/// Whether the default profile is what a container gets, and is not loaded yet.
#[must_use]
pub fn lacks_default(profile: &Profile, privileged: bool, host: &Host) -> bool {
    host.apparmor == Support::InForce
        && matches!(profile, Profile::Unset | Profile::Default)
        && !privileged
        && !is_loaded(DEFAULT, host)
}

fn is_loaded(name: &str, host: &Host) -> bool {
    host.apparmor_profiles.iter().any(|loaded| loaded == name)
}

/// What the default profile depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// The file that says which kernel the rules were written for, if there is one.
    pub abi: Option<&'static str>,
    /// Profiles besides `unconfined` of those who send containers their signals.
    pub senders: Vec<String>,
}

/// The rules of that kernel are in force and no newer ones, which would have to be granted.
pub const ABI: &str = "abi/3.0";
/// OCI runtimes with profiles of their own in distributions.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// The text of the default profile, for apparmor_parser.
///
/// Containers are held by namespaces, capabilities and cgroups; this is a second fence
/// around what is the kernel's: nobody mounts, and of /proc and /sys only that can be
/// written which is the container's own, whatever is masked or mounted read-only there.
#[must_use]
pub fn default_profile(around: &Around) -> String {
    let mut text =
        String::from("# The default profile of containers, made by longshore when it is missing.\n");
    if let Some(abi) = around.abi {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "abi <{abi}>,");
    }
    let _ = writeln!(text, "profile {DEFAULT} flags=(attach_disconnected, mediate_deleted) {{");
    let mut rules = |comment: &str, rules: &[String]| {
        let _ = writeln!(text, "  # {comment}");
        for rule in rules {
            let _ = writeln!(text, "  {rule},");
        }
    };
    let plain = |rules: &[&str]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
    rules("What is left to others to limit.", &plain(&["capability", "file", "network", "umount"]));
    rules("Who may look inside is for their own profile to say.", &plain(&["ptrace (readby, tracedby)"]));
    rules(
        "Among themselves.",
        &[format!("ptrace (read, trace) peer={DEFAULT}"), format!("signal peer={DEFAULT}")],
    );
    let senders = around.senders.iter().map(String::as_str).filter(|name| is_plain(name));
    let mut senders: Vec<&str> = ["unconfined"].into_iter().chain(RUNTIMES).chain(senders).collect();
    senders.dedup();
    let from = |peer: &&str| format!("signal (receive) peer={peer}");
    rules("From those who stop them.", &senders.iter().map(from).collect::<Vec<_>>());
    rules("Not into anything that is mounted on.", &plain(&["deny mount"]));
    rules(
        "Of /proc only processes and shared memory's limits.",
        &[
            "deny /proc/* w".to_owned(),
            // Names of processes begin with a digit.
            format!("deny /proc/{}/** w", others("sys", "0-9")),
            format!("deny /proc/sys/{}/** w", others("kernel", "")),
            format!("deny /proc/sys/kernel/{}{{,/**}} w", others("shm", "")),
            "deny /proc/{kcore,sysrq-trigger} rwklx".to_owned(),
        ],
    );
    rules(
        "Of /sys only cgroups, and some of it not even to be read.",
        &[
            format!("deny /sys/{}/** wklx", others("fs", "")),
            format!("deny /sys/fs/{}/** wklx", others("cgroup", "")),
            "deny /sys/{devices/virtual/powercap,firmware,kernel/security}/** rwklx".to_owned(),
        ],
    );
    text.push_str("}\n");
    text
}

/// A pattern for all names that do not begin with `name`, nor with one of `besides`, a
/// range of characters. The language has no "all but": a name is another one if it ends
/// early, or has another character somewhere.
fn others(name: &str, besides: &str) -> String {
    let patterns: Vec<String> = name
        .char_indices()
        .map(|(at, next)| match &name[..at] {
            "" => format!("[^{next}{besides}/]*"),
            prefix => format!("{prefix}{{,[^{next}/]*}}"),
        })
        .collect();
    format!("{{{}}}", patterns.join(","))
}

/// Whether a profile's name can stand in a rule as it is.
fn is_plain(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "/._-+&:".contains(c);
    !name.is_empty() && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::SecurityProfile;
    use crate::proto::cri::security_profile::ProfileType;

    fn host(loaded: &[&str]) -> Host {
        let apparmor_profiles = loaded.iter().map(ToString::to_string).collect();
        Host { apparmor: Support::InForce, apparmor_profiles, ..Host::default() }
    }

    fn named(name: &str) -> Profile {
        Profile::Localhost(name.into())
    }

    #[test]
    fn who_asks_for_nothing_gets_the_default_and_the_privileged_none() {
        let host = host(&[DEFAULT]);
        for asked in [Profile::Unset, Profile::Default] {
            assert_eq!(name(&asked, false, &host).as_deref(), Ok(DEFAULT));
            assert_eq!(name(&asked, true, &host).as_deref(), Ok(""));
        }
        assert_eq!(name(&Profile::Unconfined, false, &host).as_deref(), Ok(""));
    }

    #[test]
    fn one_of_the_nodes_must_be_loaded_and_counts_for_the_privileged_too() {
        let host = host(&["mine", "mine//child"]);
        for privileged in [false, true] {
            assert_eq!(name(&named("mine"), privileged, &host).as_deref(), Ok("mine"));
            let error = name(&named("min"), privileged, &host).expect_err("it is not loaded");
            assert_eq!(error.message(), "AppArmor profile \"min\" is not loaded on this host");
        }
    }

    #[test]
    fn only_what_gets_the_default_lacks_it() {
        let (without, with) = (host(&[]), host(&[DEFAULT]));
        for asked in [Profile::Unset, Profile::Default] {
            assert!(lacks_default(&asked, false, &without));
            assert!(!lacks_default(&asked, true, &without) && !lacks_default(&asked, false, &with));
        }
        assert!(!lacks_default(&Profile::Unconfined, false, &without));
        assert!(!lacks_default(&named("mine"), false, &without));
        assert!(!lacks_default(&Profile::Default, false, &Host::default()));
    }

    #[test]
    fn where_it_cannot_be_in_force_asking_for_it_is_refused_with_the_reason() {
        for (support, reason) in [
            (Support::Absent, "not in force on this host"),
            (Support::NoParser, "install the package apparmor"),
            (Support::Disabled, "container.disable_apparmor"),
        ] {
            let host = Host { apparmor: support, ..host(&[DEFAULT, "mine"]) };
            for asked in [Profile::Unset, Profile::Unconfined] {
                assert_eq!(name(&asked, false, &host).as_deref(), Ok(""));
            }
            for asked in [Profile::Default, named("mine")] {
                let error = name(&asked, false, &host).expect_err("refused");
                assert!(error.message().contains(reason), "{error}");
            }
        }
    }

    #[test]
    #[allow(deprecated)]
    fn the_text_counts_where_there_is_no_message() {
        let with_text = |text: &str| LinuxContainerSecurityContext {
            apparmor_profile: text.into(),
            ..LinuxContainerSecurityContext::default()
        };
        assert_eq!(asked(&with_text("")), Ok(Profile::Unset));
        assert_eq!(asked(&with_text("localhost/mine")), Ok(named("mine")));
        let profile_type = ProfileType::Localhost as i32;
        let message = SecurityProfile { profile_type, localhost_ref: "localhost/mine".into() };
        let both = LinuxContainerSecurityContext { apparmor: Some(message), ..with_text("nonsense") };
        assert_eq!(asked(&both), Ok(named("mine")));
    }

    #[test]
    fn other_names_are_told_apart_by_their_first_different_character() {
        assert_eq!(others("shm", ""), "{[^s/]*,s{,[^h/]*},sh{,[^m/]*}}");
        assert_eq!(others("sys", "0-9"), "{[^s0-9/]*,s{,[^y/]*},sy{,[^s/]*}}");
    }

    #[test]
    fn the_default_profile_names_who_sends_signals() {
        let senders = vec!["unconfined".into(), "/usr/bin/containerd".into(), "odd name".into()];
        let text = default_profile(&Around { abi: Some(ABI), senders });
        assert!(text.contains("\nabi <abi/3.0>,\nprofile cri-containerd.apparmor.d "), "{text}");
        for peer in ["unconfined", "runc", "crun", "/usr/bin/containerd"] {
            let rule = format!("  signal (receive) peer={peer},\n");
            assert!(text.contains(&rule), "no {rule} in {text}");
        }
        assert!(!text.contains("odd"), "{text}");
        assert!(!default_profile(&Around::default()).contains("abi <"));
    }
}
