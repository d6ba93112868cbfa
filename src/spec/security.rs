//! Capabilities, seccomp, masked and read-only paths; how profiles are asked for.
//!
//! | CRI | OCI | rule |
//! |---|---|---|
//! | `capabilities.add`, `drop` | `process.capabilities`: bounding, effective, permitted | OCI-11 … OCI-14 |
//! | `capabilities.add_ambient` | also inheritable and ambient | OCI-15 |
//! | `privileged` | all capabilities, no seccomp, no AppArmor, nothing masked | OCI-16 |
//! | `masked_paths`, `readonly_paths` | the same, instead of any default | OCI-17 |
//! | `seccomp`, else `seccomp_profile_path` | `linux.seccomp` | OCI-18, OCI-19 |
//! | `no_new_privs` | `process.noNewPrivileges` | OCI-08 |

use serde_json::Value;

use super::oci::Capabilities;
use super::seccomp::{default_profile, node_profile};
use super::{Host, LocalProfile};
use crate::error::{Result, invalid, precondition};
use crate::proto::cri::security_profile::ProfileType;
use crate::proto::cri::{Capability, SecurityProfile};

/// What a container has without asking (OCI-11).
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The kernel's capabilities by number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The names of the bits of a capability mask.
#[must_use]
pub fn names_of(mask: u64) -> Vec<String> {
    (0..NAMES.len()).filter(|bit| mask & (1 << bit) != 0).map(|bit| NAMES[bit].to_owned()).collect()
}

/// The capability sets of a container, from those of the base spec or the default ones.
#[must_use]
pub fn capabilities(
    start: Capabilities,
    asked: Option<&Capability>,
    privileged: bool,
    host: &Host,
) -> Capabilities {
    // Nothing is ambient, and inheritable only what a base spec says (CVE-2022-24769).
    let mut sets = Capabilities { ambient: Vec::new(), ..start };
    let empty = Capability::default();
    let asked = asked.unwrap_or(&empty);
    let has_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("all"));
    // ALL goes first in either list, then the single names (OCI-13).
    if has_all(&asked.add_capabilities) {
        set_all(&mut sets, names_of(host.capabilities));
    }
    if has_all(&asked.drop_capabilities) {
        set_all(&mut sets, Vec::new());
    }
    let ambient = single(&asked.add_ambient_capabilities);
    for name in single(&asked.add_capabilities).iter().chain(&ambient) {
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            if !set.contains(name) {
                set.push(name.clone());
            }
        }
    }
    let dropped = single(&asked.drop_capabilities);
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.retain(|name| !dropped.contains(name));
    }
    if privileged {
        set_all(&mut sets, names_of(host.capabilities));
    }
    for name in ambient {
        if sets.permitted.contains(&name) && !dropped.contains(&name) {
            for set in [&mut sets.inheritable, &mut sets.ambient] {
                if !set.contains(&name) {
                    set.push(name.clone());
                }
            }
        }
    }
    sets
}

/// The names of a list but ALL, as the kernel writes them (OCI-12).
fn single(list: &[String]) -> Vec<String> {
    let canonical = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    list.iter().filter(|name| !name.eq_ignore_ascii_case("all")).map(canonical).collect()
}

fn set_all(sets: &mut Capabilities, names: Vec<String>) {
    sets.inheritable.retain(|name| names.contains(name));
    sets.bounding.clone_from(&names);
    sets.effective.clone_from(&names);
    sets.permitted = names;
}

/// Which profile is asked for, after the deprecated text fields were understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// None given.
    Unset,
    /// The runtime's own.
    Default,
    /// None wanted.
    Unconfined,
    /// The node's, by path (seccomp) or name (AppArmor).
    Localhost(String),
}

impl Profile {
    /// This one, or where there is none the one of `container.unset_seccomp_profile`.
    #[must_use]
    pub fn or_unset(self, configured: &str) -> Profile {
        match (self, configured.strip_prefix("localhost/")) {
            (Profile::Unset, Some(path)) => Profile::Localhost(path.to_owned()),
            (Profile::Unset, None) if configured == "RuntimeDefault" => Profile::Default,
            (other, _) => other,
        }
    }
}

/// The profile of a security profile message, or of the text field that it replaced.
///
/// # Errors
/// InvalidArgument for an unknown type, Localhost without a reference, a reference
/// without Localhost, a text of no known form.
pub fn profile(what: &str, given: Option<&SecurityProfile>, text: &str) -> Result<Profile> {
    let Some(given) = given else {
        return match text {
            "" => Ok(Profile::Unset),
            "unconfined" => Ok(Profile::Unconfined),
            "runtime/default" | "docker/default" => Ok(Profile::Default),
            _ => match text.strip_prefix("localhost/") {
                Some(reference) if !reference.is_empty() => Ok(Profile::Localhost(reference.to_owned())),
                _ => Err(invalid(format!("{what} profile {text:?} has no known form"))),
            },
        };
    };
    let reference = given.localhost_ref.as_str();
    match ProfileType::try_from(given.profile_type) {
        Ok(ProfileType::Localhost) if reference.is_empty() => {
            Err(invalid(format!("{what} profile: Localhost needs a localhost_ref")))
        }
        Ok(ProfileType::Localhost) => {
            // Kubelets before 1.19 left their prefix in.
            Ok(Profile::Localhost(reference.strip_prefix("localhost/").unwrap_or(reference).to_owned()))
        }
        Ok(_) if !reference.is_empty() => {
            Err(invalid(format!("{what} profile: localhost_ref {reference:?} is only for Localhost")))
        }
        Ok(ProfileType::RuntimeDefault) => Ok(Profile::Default),
        Ok(ProfileType::Unconfined) => Ok(Profile::Unconfined),
        Err(_) => Err(invalid(format!("{what} profile type {} is not known", given.profile_type))),
    }
}

/// The seccomp profile that a security context asks for. A privileged one has no filter,
/// whatever profile its message names.
///
/// # Errors
/// Those of [`profile`].
pub fn seccomp_profile(given: Option<&SecurityProfile>, text: &str, privileged: bool) -> Result<Profile> {
    if privileged && given.is_some() {
        return Ok(Profile::Unconfined);
    }
    let profile = profile("seccomp", given, text)?;
    Ok(if privileged { Profile::Unconfined } else { profile })
}

/// The seccomp section of a spec.
///
/// # Errors
/// FailedPrecondition when a profile is asked for and the kernel has no seccomp;
/// InvalidArgument for a localhost profile that is none.
pub fn seccomp(
    profile: &Profile,
    privileged: bool,
    bounding: &[String],
    local: Option<&LocalProfile>,
    host: &Host,
) -> Result<Option<Value>> {
    if privileged {
        return Ok(None);
    }
    match profile {
        Profile::Unset | Profile::Unconfined => Ok(None),
        _ if !host.seccomp => {
            Err(precondition("a seccomp profile is asked for, but the kernel has no seccomp"))
        }
        Profile::Default => Ok(Some(default_profile(bounding, std::env::consts::ARCH, host.kernel))),
        Profile::Localhost(path) => {
            let local = local.filter(|local| &local.path == path);
            let text = local.map(|local| local.text.as_str()).unwrap_or_default();
            let profile = node_profile(text);
            profile.map(Some).map_err(|error| error.context(format!("seccomp profile {path:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(add: &[&str], drop: &[&str]) -> Capability {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Capability { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() }
    }

    fn start() -> Capabilities {
        crate::spec::defaults::spec(String::new())
            .process
            .and_then(|process| process.capabilities)
            .expect("sets")
    }

    fn host() -> Host {
        Host { capabilities: (1 << 12) | (1 << 21) | 1, seccomp: true, kernel: (6, 1), ..Host::default() }
    }

    #[test]
    fn all_goes_first_and_names_have_any_form() {
        let set = |add: &[&str], drop: &[&str]| {
            capabilities(start(), Some(&asked(add, drop)), false, &host()).bounding
        };
        assert_eq!(set(&[], &["ALL"]), Vec::<String>::new());
        assert_eq!(set(&["chown"], &["all"]), ["CAP_CHOWN"]);
        assert_eq!(set(&["ALL"], &["CAP_SYS_ADMIN"]), ["CAP_CHOWN", "CAP_NET_ADMIN"]);
        let default = set(&["net_admin", "CAP_NET_ADMIN", "MADE_UP"], &["MKNOD"]);
        assert_eq!(default.iter().filter(|name| *name == "CAP_NET_ADMIN").count(), 1);
        assert!(default.contains(&"CAP_MADE_UP".to_owned()) && !default.contains(&"CAP_MKNOD".to_owned()));
    }

    #[test]
    fn inheritable_and_ambient_hold_only_what_is_asked_for() {
        let plain = capabilities(start(), None, false, &host());
        assert!(plain.inheritable.is_empty() && plain.ambient.is_empty());
        let ambient = Capability { add_ambient_capabilities: vec!["net_admin".into()], ..Default::default() };
        let sets = capabilities(start(), Some(&ambient), false, &host());
        assert_eq!(
            (sets.ambient, sets.inheritable),
            (vec!["CAP_NET_ADMIN".into()], vec!["CAP_NET_ADMIN".into()])
        );
        assert!(sets.permitted.contains(&"CAP_NET_ADMIN".to_owned()));
    }

    #[test]
    fn what_is_asked_for_is_laid_over_a_base_spec() {
        let base = Capabilities {
            bounding: vec!["CAP_A".into(), "CAP_B".into()],
            inheritable: vec!["CAP_A".into(), "CAP_B".into()],
            ambient: vec!["CAP_A".into()],
            ..Capabilities::default()
        };
        let sets = capabilities(base.clone(), Some(&asked(&["c"], &["b"])), false, &host());
        assert_eq!(
            (sets.bounding, sets.effective),
            (vec!["CAP_A".into(), "CAP_C".into()], vec!["CAP_C".into()])
        );
        assert_eq!((sets.inheritable, sets.ambient), (vec!["CAP_A".to_owned()], vec![]));
        let sets = capabilities(base, None, true, &host());
        assert_eq!((sets.bounding.len(), sets.inheritable.len()), (3, 0));
    }

    #[test]
    fn profiles_are_read_from_both_forms() {
        let message = |kind: ProfileType, reference: &str| SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: reference.into(),
        };
        let of = |message: SecurityProfile| profile("seccomp", Some(&message), "localhost/ignored");
        assert_eq!(of(message(ProfileType::RuntimeDefault, "")), Ok(Profile::Default));
        assert_eq!(of(message(ProfileType::Localhost, "/p")), Ok(Profile::Localhost("/p".into())));
        assert!(of(message(ProfileType::Localhost, "")).is_err());
        assert!(of(message(ProfileType::Unconfined, "/p")).is_err());
        assert_eq!(profile("seccomp", None, "localhost//p"), Ok(Profile::Localhost("/p".into())));
        assert_eq!(profile("seccomp", None, ""), Ok(Profile::Unset));
        assert!(profile("seccomp", None, "nonsense").is_err());
    }

    #[test]
    fn privileged_has_no_filter_and_everything_else_what_it_asks_for() {
        assert_eq!(seccomp(&Profile::Default, true, &[], None, &host()), Ok(None));
        assert!(seccomp(&Profile::Default, false, &[], None, &host()).is_ok_and(|filter| filter.is_some()));
        let local = LocalProfile { path: "/p".into(), text: "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}".into() };
        let asked = Profile::Localhost("/p".into());
        assert!(seccomp(&asked, false, &[], Some(&local), &host()).is_ok_and(|filter| filter.is_some()));
        let broken = LocalProfile { path: "/p".into(), text: "[]".into() };
        assert!(seccomp(&asked, false, &[], Some(&broken), &host()).is_err());
        let bare = Host { seccomp: false, ..host() };
        assert!(seccomp(&Profile::Default, false, &[], None, &bare).is_err());
    }
}
