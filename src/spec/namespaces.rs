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
//! | `userns_options` POD | the one that owns the pod's network, pinned; new with host network | pause's | SBX-25, SBX-26, OCI-24 |
//! | `uids`, `gids` of it | `linux.uidMappings`, `gidMappings` | the same | SBX-25 |

use std::path::Path;

use super::Features;
use super::oci::Namespace;
use crate::error::{Context, Result, invalid, precondition};
use crate::proto::cri::{
    ContainerConfig, IdMapping, NamespaceMode, NamespaceOption, PodSandboxConfig, UserNamespace,
};
use crate::sys::userns::{IdMap, IdMaps};

/// The modes of a security context, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// NODE or POD.
    pub network: NamespaceMode,
    /// Any.
    pub pid: NamespaceMode,
    /// NODE or POD.
    pub ipc: NamespaceMode,
    /// The id mappings of a user namespace; none where that is the host's.
    pub user: Option<IdMaps>,
}

impl Modes {
    /// Reads the modes; without options all are POD (SBX-23).
    ///
    /// # Errors
    /// InvalidArgument for a mode or a mapping that makes no sense.
    pub fn of(options: Option<&NamespaceOption>) -> Result<Modes> {
        let default = NamespaceOption::default();
        let options = options.unwrap_or(&default);
        let mode = |what: &str, value: i32| {
            NamespaceMode::try_from(value)
                .map_err(|_| invalid(format!("{what} namespace mode {value} is not known")))
        };
        let modes = Modes {
            user: user_namespace(options.userns_options.as_ref())?,
            network: mode("network", options.network)?,
            pid: mode("pid", options.pid)?,
            ipc: mode("ipc", options.ipc)?,
        };
        for (what, mode) in [("network", modes.network), ("ipc", modes.ipc)] {
            if matches!(mode, NamespaceMode::Container | NamespaceMode::Target) {
                return Err(invalid(format!("{what} namespace mode {} is not possible", mode.as_str_name())));
            }
        }
        Ok(modes)
    }

    /// The modes of a pod.
    ///
    /// # Errors
    /// As for [`Modes::of`].
    pub fn of_pod(pod: &PodSandboxConfig) -> Result<Modes> {
        let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        Modes::of(context.and_then(|context| context.namespace_options.as_ref()))
    }

    /// The modes of a container, whose user namespace must be that of its pod (OCI-24).
    ///
    /// # Errors
    /// As for [`Modes::of`]; InvalidArgument for another user namespace.
    pub fn of_container(pod: &PodSandboxConfig, config: &ContainerConfig) -> Result<Modes> {
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let modes = Modes::of(context.and_then(|context| context.namespace_options.as_ref()))?;
        let pod = Modes::of_pod(pod).context(|| "pod sandbox")?;
        if modes.user != pod.user {
            let shown = |maps: Option<IdMaps>| match maps {
                Some(IdMaps { uids, gids }) => format!("uids {uids}, gids {gids}"),
                None => "none".to_owned(),
            };
            return Err(invalid(format!(
                "the user namespace of the container ({}) is not that of its pod sandbox ({})",
                shown(modes.user),
                shown(pod.user)
            )));
        }
        Ok(modes)
    }

    /// Refuses a pod with a user namespace that `handler` or the kernel could not start.
    ///
    /// # Errors
    /// FailedPrecondition for a runtime that lacks what is needed; InvalidArgument for
    /// namespaces of the host whose file systems the kernel does not let such a pod mount.
    pub fn require_startable(&self, handler: &str, features: Features) -> Result<()> {
        if self.user.is_none() {
            return Ok(());
        }
        let cannot = |what: &str| {
            Err(precondition(format!(
                "the runtime handler {handler:?} has no {what}, for pods with a user namespace"
            )))
        };
        if !features.user_namespaces {
            return cannot("user namespaces with id-mapped mounts");
        }
        if self.host_network() && !features.recursive_read_only {
            return cannot("recursive read-only mounts, which the host's /sys needs (host network)");
        }
        for (what, mode) in [("pid", self.pid), ("ipc", self.ipc)] {
            if mode == NamespaceMode::Node {
                return Err(invalid(format!(
                    "a pod with a user namespace cannot use the host's {what} namespace"
                )));
            }
        }
        Ok(())
    }

    /// Whether `/sys` is that of the host: where the network is, a user namespace cannot
    /// mount one (SBX-28).
    #[must_use]
    pub fn host_sys(&self) -> bool {
        self.user.is_some() && self.host_network()
    }

    /// Whether the pod uses the host's network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.network == NamespaceMode::Node
    }
}

/// Reads user namespace options by the rules of SBX-25.
fn user_namespace(options: Option<&UserNamespace>) -> Result<Option<IdMaps>> {
    let Some(options) = options else { return Ok(None) };
    match NamespaceMode::try_from(options.mode) {
        Ok(NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => Err(invalid("user namespace mode NODE takes no id mappings")),
        Ok(NamespaceMode::Pod) => {
            let maps = maps(&options.uids, &options.gids).context(|| "user namespace")?;
            if maps.to_host(0, 0).is_none() {
                return Err(invalid("the mappings of a user namespace must map container id 0"));
            }
            Ok(Some(maps))
        }
        Ok(mode) => Err(invalid(format!("user namespace mode {} is not possible", mode.as_str_name()))),
        Err(_) => Err(invalid(format!("user namespace mode {} is not known", options.mode))),
    }
}

/// Mappings of which there is one each.
///
/// # Errors
/// InvalidArgument for more or fewer, and for one that is none.
pub fn maps(uids: &[IdMapping], gids: &[IdMapping]) -> Result<IdMaps> {
    let one = |what: &str, mappings: &[IdMapping]| match mappings {
        [one] => IdMap::new(one.container_id, one.host_id, one.length).context(|| format!("{what} mapping")),
        list => Err(invalid(format!("exactly one {what} mapping is possible, not {}", list.len()))),
    };
    Ok(IdMaps { uids: one("uid", uids)?, gids: one("gid", gids)? })
}

/// Puts a namespace in the place of the one of its kind, or at the end.
fn set(list: &mut Vec<Namespace>, kind: &str, path: String) {
    match list.iter_mut().find(|namespace| namespace.kind == kind) {
        Some(known) => known.path = path,
        None => list.push(Namespace { kind: kind.to_owned(), path }),
    }
}

/// The namespaces of a pause container, from the usual ones; `netns` is the pod's pinned
/// network namespace, and `user` the pinned user namespace that owns it.
#[must_use]
pub fn of_pause(
    start: Vec<Namespace>,
    modes: Modes,
    netns: Option<&Path>,
    user: Option<&Path>,
) -> Vec<Namespace> {
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
    if modes.user.is_some() {
        set(&mut list, "user", user.map(Path::to_string_lossy).unwrap_or_default().into_owned());
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
    if modes.user.is_some() {
        set(&mut list, "user", of("user", pause));
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
        assert_eq!(kinds(&of_pause(start(), modes, None, None)), ["mount"]);
        let own = Modes::of(None).expect("valid");
        assert_eq!(
            kinds(&of_pause(start(), own, Some(Path::new("/n")), None)),
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

    fn mapping(container_id: u32, length: u32) -> IdMapping {
        IdMapping { host_id: 1000, container_id, length }
    }

    fn with_user(mode: NamespaceMode, uids: Vec<IdMapping>) -> NamespaceOption {
        let gids = uids.clone();
        let userns_options = Some(UserNamespace { mode: mode as i32, uids, gids });
        NamespaceOption { userns_options, ..Default::default() }
    }

    /// SBX-25.
    #[test]
    fn user_namespaces_follow_the_rules() {
        let ask = |mode: NamespaceMode, uids: Vec<IdMapping>| {
            Modes::of(Some(&with_user(mode, uids))).map(|modes| modes.user).map_err(|error| error.kind())
        };
        let (node, pod) = (NamespaceMode::Node, NamespaceMode::Pod);
        assert_eq!(ask(node, vec![]), Ok(None));
        let map = IdMap::new(0, 1000, 65536).expect("a mapping");
        assert_eq!(ask(pod, vec![mapping(0, 65536)]), Ok(Some(IdMaps { uids: map, gids: map })));
        for (mode, mappings) in [
            (node, vec![mapping(0, 1)]),
            (NamespaceMode::Container, vec![]),
            (NamespaceMode::Target, vec![]),
            (pod, vec![]),
            (pod, vec![mapping(1, 9)]),
            (pod, vec![mapping(0, 0)]),
            (pod, vec![mapping(0, u32::MAX)]),
            (pod, vec![mapping(0, 9), mapping(9, 9)]),
        ] {
            assert_eq!(ask(mode, mappings.clone()), Err(Kind::InvalidArgument), "{mode:?} {mappings:?}");
        }
        let mut uneven = with_user(pod, vec![mapping(0, 9)]);
        uneven.userns_options.as_mut().expect("options").gids.clear();
        assert!(Modes::of(Some(&uneven)).is_err());
    }

    /// SBX-26, OCI-24.
    #[test]
    fn pause_has_the_pinned_user_namespace_and_containers_have_pauses() {
        let find = |list: Vec<Namespace>| {
            list.into_iter().find(|namespace| namespace.kind == "user").map(|found| found.path)
        };
        let modes = Modes::of(Some(&with_user(NamespaceMode::Pod, vec![mapping(0, 9)]))).expect("valid");
        let (netns, user) = (Path::new("/n"), Path::new("/u"));
        assert_eq!(find(of_pause(start(), modes, Some(netns), Some(user))), Some("/u".into()));
        let host = Modes { network: NamespaceMode::Node, ..modes };
        assert_eq!(find(of_pause(start(), host, None, None)), Some(String::new()));
        assert_eq!(
            of_container(start(), modes, 7, None, false).map(find),
            Ok(Some("/proc/7/ns/user".into()))
        );
        let without = Modes::of(None).expect("valid");
        assert_eq!(find(of_pause(start(), without, Some(netns), None)), None);
        assert_eq!(of_container(start(), without, 7, None, false).map(find), Ok(None));
    }

    /// SVC-18.
    #[test]
    fn a_pod_that_could_not_start_is_refused_before() {
        let modes = Modes::of(Some(&with_user(NamespaceMode::Pod, vec![mapping(0, 9)]))).expect("valid");
        let all = Features {
            user_namespaces: true,
            recursive_read_only: true,
            id_mapped_mounts: true,
            ..Features::default()
        };
        let kind = |modes: Modes, features| {
            modes.require_startable("h", features).map_err(|error| error.kind()).err()
        };
        let node = NamespaceMode::Node;
        let host_network = Modes { network: node, ..modes };
        assert_eq!((kind(modes, all), kind(host_network, all)), (None, None));
        assert_eq!(kind(modes, Features::default()), Some(Kind::FailedPrecondition));
        let no_rro = Features { recursive_read_only: false, ..all };
        assert_eq!((kind(modes, no_rro), kind(host_network, no_rro)), (None, Some(Kind::FailedPrecondition)));
        for modes in [Modes { pid: node, ..modes }, Modes { ipc: node, ..modes }] {
            assert_eq!(kind(modes, all), Some(Kind::InvalidArgument));
            assert_eq!(kind(Modes { user: None, ..modes }, Features::default()), None);
        }
    }

    /// OCI-24.
    #[test]
    fn a_containers_user_namespace_is_its_pods() {
        let ask = |pod: Option<NamespaceOption>, container: Option<NamespaceOption>| {
            let mut pod_config = PodSandboxConfig::default();
            let context = &mut pod_config.linux.get_or_insert_default().security_context;
            context.get_or_insert_default().namespace_options = pod;
            let mut config = ContainerConfig::default();
            let context = &mut config.linux.get_or_insert_default().security_context;
            context.get_or_insert_default().namespace_options = container;
            Modes::of_container(&pod_config, &config).map_err(|error| error.kind())
        };
        let with = |length| Some(with_user(NamespaceMode::Pod, vec![mapping(0, length)]));
        assert!(ask(with(9), with(9)).is_ok() && ask(None, None).is_ok());
        assert!(ask(None, Some(with_user(NamespaceMode::Node, vec![]))).is_ok(), "NODE is as nothing");
        for (pod, container) in [(with(9), with(8)), (with(9), None), (None, with(9))] {
            assert_eq!(ask(pod, container), Err(Kind::InvalidArgument));
        }
    }
}
