//! Namespaces of pause containers and containers.
//!
//! | CRI | pause | container | rule |
//! |---|---|---|---|
//! | `network` NODE | none, and no UTS | the host's, by pause | SBX-21, OCI-21 |
//! | `network` POD | the pod's pinned one | pause's | OCI-21, OCI-25 |
//! | `ipc` NODE / POD | none / new | pause's | SBX-22, OCI-21 |
//! | `pid` NODE | none | none | SBX-22, OCI-22 |
//! | `pid` POD, CONTAINER, TARGET | new | pause's, new, the target's | OCI-22 |
//! | – | – | cgroup: new on v2 unless privileged | OCI-23 |
//! | `userns_options` POD | refused until it is built | | SBX-25 |

use std::path::Path;

use super::oci::Namespace;
use crate::error::{Result, invalid, unimplemented};
use crate::proto::cri::{NamespaceMode, NamespaceOption, UserNamespace};

/// The modes of a security context, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// NODE or POD.
    pub network: NamespaceMode,
    /// Any.
    pub pid: NamespaceMode,
    /// NODE or POD.
    pub ipc: NamespaceMode,
}

impl Modes {
    /// Reads the modes; without options all are POD (SBX-23).
    ///
    /// # Errors
    /// InvalidArgument for a mode that makes no sense; Unimplemented for user namespaces.
    pub fn of(options: Option<&NamespaceOption>) -> Result<Modes> {
        let default = NamespaceOption::default();
        let options = options.unwrap_or(&default);
        let mode = |what: &str, value: i32| {
            NamespaceMode::try_from(value)
                .map_err(|_| invalid(format!("{what} namespace mode {value} is not known")))
        };
        let modes = Modes {
            network: mode("network", options.network)?,
            pid: mode("pid", options.pid)?,
            ipc: mode("ipc", options.ipc)?,
        };
        for (what, mode) in [("network", modes.network), ("ipc", modes.ipc)] {
            if matches!(mode, NamespaceMode::Container | NamespaceMode::Target) {
                return Err(invalid(format!("{what} namespace mode {} is not possible", mode.as_str_name())));
            }
        }
        user_namespace(options.userns_options.as_ref())?;
        Ok(modes)
    }

    /// Whether the pod uses the host's network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.network == NamespaceMode::Node
    }
}

/// Checks user namespace options by the rules of SBX-25.
fn user_namespace(options: Option<&UserNamespace>) -> Result<()> {
    let Some(options) = options else { return Ok(()) };
    match NamespaceMode::try_from(options.mode) {
        Ok(NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => Ok(()),
        Ok(NamespaceMode::Node) => Err(invalid("user namespace mode NODE takes no id mappings")),
        Ok(NamespaceMode::Pod) => {
            for (what, mappings) in [("uid", &options.uids), ("gid", &options.gids)] {
                match mappings.as_slice() {
                    [one] if one.length > 0 && one.container_id == 0 => {}
                    [_] => return Err(invalid(format!("the {what} mapping must map container id 0"))),
                    _ => return Err(invalid(format!("a user namespace takes exactly one {what} mapping"))),
                }
            }
            Err(unimplemented("pods with a user namespace are not served yet"))
        }
        Ok(mode) => Err(invalid(format!("user namespace mode {} is not possible", mode.as_str_name()))),
        Err(_) => Err(invalid(format!("user namespace mode {} is not known", options.mode))),
    }
}

/// Puts a namespace in the place of the one of its kind, or at the end.
fn set(list: &mut Vec<Namespace>, kind: &str, path: String) {
    match list.iter_mut().find(|namespace| namespace.kind == kind) {
        Some(known) => known.path = path,
        None => list.push(Namespace { kind: kind.to_owned(), path }),
    }
}

/// The namespaces of a pause container, from the usual ones; `netns` is the pod's pinned
/// network namespace.
#[must_use]
pub fn of_pause(start: Vec<Namespace>, modes: Modes, netns: Option<&Path>) -> Vec<Namespace> {
    let mut list = start;
    list.retain(|namespace| match namespace.kind.as_str() {
        "network" | "uts" => !modes.host_network(),
        "pid" => modes.pid != NamespaceMode::Node,
        "ipc" => modes.ipc != NamespaceMode::Node,
        _ => true,
    });
    if let Some(path) = netns.filter(|_| !modes.host_network()) {
        set(&mut list, "network", path.to_string_lossy().into_owned());
    }
    list
}

/// The namespaces of a container, from the usual ones or those of a base spec; `target`
/// is the process whose pid namespace is joined in mode TARGET.
///
/// # Errors
/// InvalidArgument for TARGET without a target.
pub fn of_container(
    start: Vec<Namespace>,
    modes: Modes,
    pause: u32,
    target: Option<u32>,
    new_cgroup: bool,
) -> Result<Vec<Namespace>> {
    let of = |file: &str, pid: u32| format!("/proc/{pid}/ns/{file}");
    let mut list = start;
    if new_cgroup {
        set(&mut list, "cgroup", String::new());
    }
    set(&mut list, "network", of("net", pause));
    set(&mut list, "ipc", of("ipc", pause));
    set(&mut list, "uts", of("uts", pause));
    match (modes.pid, target) {
        (NamespaceMode::Container, _) => {}
        (NamespaceMode::Target, Some(pid)) => set(&mut list, "pid", of("pid", pid)),
        (NamespaceMode::Target, None) => return Err(invalid("pid namespace mode TARGET needs a target_id")),
        // In mode NODE pause is in the host's own.
        (NamespaceMode::Pod | NamespaceMode::Node, _) => set(&mut list, "pid", of("pid", pause)),
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::proto::cri::IdMapping;

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> NamespaceOption {
        NamespaceOption { network: network as i32, pid: pid as i32, ipc: ipc as i32, ..Default::default() }
    }

    fn start() -> Vec<Namespace> {
        crate::spec::defaults::spec(String::new()).linux.map(|linux| linux.namespaces).unwrap_or_default()
    }

    fn kinds(list: &[Namespace]) -> Vec<&str> {
        list.iter().map(|namespace| namespace.kind.as_str()).collect()
    }

    #[test]
    fn host_namespaces_are_left_out_of_pause() {
        let node = NamespaceMode::Node;
        let modes = Modes::of(Some(&options(node, node, node))).expect("valid");
        assert_eq!(kinds(&of_pause(start(), modes, None)), ["mount"]);
        let own = Modes::of(None).expect("valid");
        assert_eq!(
            kinds(&of_pause(start(), own, Some(Path::new("/n")))),
            ["pid", "ipc", "uts", "mount", "network"]
        );
    }

    #[test]
    fn containers_join_pause_or_their_target() {
        let pod = NamespaceMode::Pod;
        let pid_path = |pid: NamespaceMode, target| {
            let modes = Modes::of(Some(&options(pod, pid, pod))).expect("valid");
            of_container(start(), modes, 7, target, false).map(|list| {
                list.into_iter().find(|namespace| namespace.kind == "pid").map(|found| found.path)
            })
        };
        assert_eq!(pid_path(NamespaceMode::Container, None), Ok(Some(String::new())));
        assert_eq!(pid_path(NamespaceMode::Pod, None), Ok(Some("/proc/7/ns/pid".into())));
        assert_eq!(pid_path(NamespaceMode::Target, Some(9)), Ok(Some("/proc/9/ns/pid".into())));
        assert!(pid_path(NamespaceMode::Target, None).is_err());
    }

    #[test]
    fn modes_that_make_no_sense_are_refused() {
        let (pod, container) = (NamespaceMode::Pod, NamespaceMode::Container);
        assert!(Modes::of(Some(&options(container, pod, pod))).is_err());
        assert!(Modes::of(Some(&options(pod, pod, container))).is_err());
        let mut unknown = options(pod, pod, pod);
        unknown.pid = 9;
        assert!(Modes::of(Some(&unknown)).is_err());
    }

    #[test]
    fn user_namespaces_follow_the_rules_before_they_are_refused() {
        let mapping = |container_id: u32, length: u32| IdMapping { host_id: 1000, container_id, length };
        let ask = |mode: NamespaceMode, uids: Vec<IdMapping>| {
            let gids = uids.clone();
            let userns_options = Some(UserNamespace { mode: mode as i32, uids, gids });
            Modes::of(Some(&NamespaceOption { userns_options, ..Default::default() }))
                .map_err(|error| error.kind())
        };
        assert!(ask(NamespaceMode::Node, vec![]).is_ok());
        assert_eq!(ask(NamespaceMode::Node, vec![mapping(0, 1)]).err(), Some(Kind::InvalidArgument));
        assert_eq!(ask(NamespaceMode::Container, vec![]).err(), Some(Kind::InvalidArgument));
        assert_eq!(ask(NamespaceMode::Pod, vec![mapping(1, 9)]).err(), Some(Kind::InvalidArgument));
        assert_eq!(
            ask(NamespaceMode::Pod, vec![mapping(0, 9), mapping(9, 9)]).err(),
            Some(Kind::InvalidArgument)
        );
        assert_eq!(ask(NamespaceMode::Pod, vec![mapping(0, 65536)]).err(), Some(Kind::Unimplemented));
    }
}
