//! SELinux labels of pods and containers.
//!
//! | CRI | OCI | rule |
//! |---|---|---|
//! | pod `selinux_options` | `process.selinuxLabel`, `linux.mountLabel` of pause: the policy's for containers, with user, role, type and level laid over | SBX-33 |
//! | container `selinux_options`, without any those of the pod's label | the same of a container | OCI-20 |
//! | no `level` | a pair of categories that no other has | SBX-33 |
//! | `privileged` | no `process.selinuxLabel`; the record keeps it | OCI-16 |
//! | `mounts.selinux_relabel`, the pod's own files, volumes of the image | relabelled with the mount label | OCI-33 |
//! | handlers of Kata | the type that the policy has for virtual machines | |
//!
//! A label is `user:role:type`, or `user:role:type:level`, where the level may have colons.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::mounts::PodFiles;
use super::oci::{Linux, Process, Spec};
use super::{HostMount, paths};
use crate::error::{Result, invalid, precondition};
use crate::proto::cri::{self, SeLinuxOption};

/// The labels that the policy has for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Of processes.
    pub process: String,
    /// Of files.
    pub file: String,
    /// Of processes that are virtual machines; empty for those of processes.
    pub kvm_process: String,
}

impl Policy {
    /// Reads the policy's file, `lxc_contexts`: `key = "value"` lines, comments with `#` or `;`.
    #[must_use]
    pub fn parse(text: &str) -> Policy {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
        let values: BTreeMap<&str, &str> = lines
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
            .collect();
        let of = |key: &str| values.get(key).copied().unwrap_or_default().to_owned();
        Policy { process: of("process"), file: of("file"), kvm_process: of("kvm_process") }
    }

    /// Whether a container whose options are `options` needs categories of its own.
    #[must_use]
    pub fn needs_level(&self, options: &Options) -> bool {
        self.is_usable() && options.level.is_empty() && !level_of(&self.process).is_empty()
    }

    fn is_usable(&self) -> bool {
        !self.process.is_empty() && !self.file.is_empty()
    }
}

/// What is laid over the policy's labels; empty texts lay nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl Options {
    /// Of a request. The shape of the level is checked also where SELinux is off.
    ///
    /// # Errors
    /// InvalidArgument for a level of no known shape.
    pub fn of(given: Option<&SeLinuxOption>) -> Result<Options> {
        let Some(given) = given else { return Ok(Options::default()) };
        if !is_level(&given.level) {
            return Err(invalid(format!("SELinux level {:?} has no known form", given.level)));
        }
        Ok(Options {
            user: given.user.clone(),
            role: given.role.clone(),
            kind: given.r#type.clone(),
            level: given.level.clone(),
        })
    }

    /// Those that make another container like one with `label`.
    ///
    /// # Errors
    /// FailedPrecondition for a text that is no label.
    pub fn of_label(label: &str) -> Result<Options> {
        if label.is_empty() {
            return Ok(Options::default());
        }
        let Parts { user, role, kind, level } = Parts::of(label)?;
        if user.is_empty() || role.is_empty() || kind.is_empty() {
            return Ok(Options::default());
        }
        Ok(Options { user: user.into(), role: role.into(), kind: kind.into(), level: level.into() })
    }

    /// Whether nothing is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Options::default()
    }
}

/// The labels of a pod or container; empty without SELinux.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Of its processes.
    pub process: String,
    /// Of its files.
    pub mount: String,
}

/// Lays `options` over the policy's labels; `level` is used where [`Policy::needs_level`].
///
/// # Errors
/// FailedPrecondition for a policy whose labels are none.
pub fn labels(policy: &Policy, options: &Options, level: &str) -> Result<Labels> {
    if !policy.is_usable() {
        return Ok(Labels { process: String::new(), mount: policy.file.clone() });
    }
    let (mut process, mut mount) = (Parts::of(&policy.process)?, Parts::of(&policy.file)?);
    if !process.level.is_empty() && options.level.is_empty() {
        (process.level, mount.level) = (level, level);
    }
    lay(&options.role, &mut process.role);
    lay(&options.kind, &mut process.kind);
    for label in [&mut process, &mut mount] {
        lay(&options.user, &mut label.user);
        lay(&options.level, &mut label.level);
    }
    Ok(Labels { process: process.text(), mount: mount.text() })
}

fn lay<'a>(given: &'a str, to: &mut &'a str) {
    if !given.is_empty() {
        *to = given;
    }
}

/// Puts `labels` into the spec of a pod's pause or of a container.
///
/// # Errors
/// FailedPrecondition for labels that are none.
pub fn put(
    spec: &mut Spec,
    labels: &Labels,
    policy: Option<&Policy>,
    shim: &str,
    privileged: bool,
) -> Result<()> {
    let process = match policy {
        _ if privileged => String::new(),
        Some(policy) if shim.contains("io.containerd.kata") => of_virtual_machine(&labels.process, policy)?,
        _ => labels.process.clone(),
    };
    spec.process.get_or_insert_with(Process::default).selinux_label = process;
    spec.linux.get_or_insert_with(Linux::default).mount_label.clone_from(&labels.mount);
    Ok(())
}

/// The label with the type of virtual machines.
fn of_virtual_machine(label: &str, policy: &Policy) -> Result<String> {
    if label.is_empty() {
        return Ok(String::new());
    }
    let kvm = if policy.kvm_process.is_empty() { &policy.process } else { &policy.kvm_process };
    let kind = Parts::of(kvm)?.kind;
    Ok(Parts { kind, ..Parts::of(label)? }.text())
}

/// What a container's mounts need relabelled: its CRI mounts that ask for it, the pod's own
/// files and the volumes of the image where no CRI mount has their target (OCI-33, OCI-36).
#[must_use]
pub fn to_relabel(
    given: &[cri::Mount],
    gathered: &[HostMount],
    files: &PodFiles,
    volumes: &[(PathBuf, String)],
) -> Vec<PathBuf> {
    let asked = given.iter().zip(gathered).filter(|(mount, _)| mount.selinux_relabel);
    let mut paths: Vec<PathBuf> = asked.map(|(_, host)| host.source.clone()).collect();
    let is_free = |target: &str| {
        let target = paths::clean(target);
        !given.iter().any(|mount| paths::clean(&mount.container_path) == target)
    };
    let own = [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
        ("/dev/shm", &files.shm),
    ];
    // The host's own shm, with host IPC, keeps its label.
    let own = own.into_iter().filter(|(target, path)| is_free(target) && path.as_os_str() != "/dev/shm");
    paths.extend(own.filter(|(_, path)| !path.as_os_str().is_empty()).map(|(_, path)| path.clone()));
    paths.extend(volumes.iter().filter(|(_, target)| is_free(target)).map(|(path, _)| path.clone()));
    paths
}

/// The level of a label; empty for one without.
#[must_use]
pub fn level_of(label: &str) -> &str {
    label.splitn(4, ':').nth(3).unwrap_or_default()
}

/// A label in its parts.
#[derive(Clone, Copy, Debug)]
struct Parts<'a> {
    user: &'a str,
    role: &'a str,
    kind: &'a str,
    level: &'a str,
}

impl<'a> Parts<'a> {
    fn of(label: &'a str) -> Result<Parts<'a>> {
        let mut parts = label.splitn(4, ':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(user), Some(role), Some(kind), level) => {
                Ok(Parts { user, role, kind, level: level.unwrap_or_default() })
            }
            _ => Err(precondition(format!("{label:?} is not an SELinux label"))),
        }
    }

    fn text(self) -> String {
        let Parts { user, role, kind, level } = self;
        if level.is_empty() {
            format!("{user}:{role}:{kind}")
        } else {
            format!("{user}:{role}:{kind}:{level}")
        }
    }
}

/// Whether `level` is empty or has the shape `s0`, `s0-s1`, with categories `:c1.c5,c7`.
fn is_level(level: &str) -> bool {
    fn sensitivity(text: &str) -> Option<&str> {
        let rest = text.strip_prefix('s')?;
        rest.starts_with(|c: char| c.is_ascii_digit()).then(|| &rest[1..])
    }
    fn is_category(text: &str) -> bool {
        let digits = text.strip_prefix('c').unwrap_or_default();
        (1..=4).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit())
    }
    let is_range = |text: &str| match text.split_once('.') {
        Some((low, high)) => is_category(low) && is_category(high),
        None => is_category(text),
    };
    if level.is_empty() {
        return true;
    }
    let Some(mut rest) = sensitivity(level) else { return false };
    if let Some(high) = rest.strip_prefix('-') {
        match sensitivity(high) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    match rest.strip_prefix(':') {
        Some(categories) => categories.split(',').all(is_range),
        None => rest.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Fedora's targeted policy has it.
    const CONTEXTS: &str = "; comment = \"x\"\n# another\n\nprocess = \"system_u:system_r:container_t:s0\"\n\
        content = \"system_u:object_r:virt_var_lib_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n\
        ro_file=\"system_u:object_r:container_ro_file_t:s0\"\n\
        sandbox_kvm_process = \"system_u:system_r:svirt_qemu_net_t:s0\"\n\
        kvm_process = \"system_u:system_r:container_kvm_t:s0\"\n";

    fn policy() -> Policy {
        Policy::parse(CONTEXTS)
    }

    fn given(user: &str, role: &str, kind: &str, level: &str) -> SeLinuxOption {
        SeLinuxOption { user: user.into(), role: role.into(), r#type: kind.into(), level: level.into() }
    }

    fn of(options: &SeLinuxOption) -> (String, String) {
        let options = Options::of(Some(options)).expect("valid");
        let Labels { process, mount } = labels(&policy(), &options, "s0:c1,c2").expect("labels");
        (process, mount)
    }

    #[test]
    fn the_policys_file_is_read() {
        let policy = policy();
        assert_eq!(policy.process, "system_u:system_r:container_t:s0");
        assert_eq!(policy.file, "system_u:object_r:container_file_t:s0");
        assert_eq!(policy.kvm_process, "system_u:system_r:container_kvm_t:s0");
        assert_eq!(Policy::parse("nothing\n"), Policy::default());
    }

    /// critest asks for several of these.
    #[test]
    fn levels_are_checked_by_their_shape() {
        for good in [
            "",
            "s0",
            "s0-s1",
            "s0:c1",
            "s0-s9:c1.c3,c5",
            "s0:c1,c2",
            "s0:c0.c1023",
            "s1:c9999",
            "s0:c1,c2.c3",
        ] {
            assert!(is_level(good), "{good}");
        }
        for bad in [
            "s",
            "0",
            "s10",
            "s0:",
            "s0:c",
            "s0:c12345",
            "s0:c1,",
            "s0,c1",
            "s0-s",
            "s0-s1:",
            "s0:c1.c2.c3",
            "s0:c1 ",
            "s0,c1,c2",
            "gibberish",
            "s0:c1.",
            "s0\n",
            "s-s0",
        ] {
            assert!(!is_level(bad), "{bad}");
            assert!(Options::of(Some(&given("", "", "", bad))).is_err());
        }
    }

    /// SBX-33: what is not given is the policy's; the file's label takes user and level only.
    #[test]
    fn options_are_laid_over_the_policys_labels() {
        let text = |process: &str, mount: &str| (process.to_owned(), mount.to_owned());
        assert_eq!(
            of(&SeLinuxOption::default()),
            text("system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")
        );
        assert_eq!(
            of(&given("u", "r", "t", "s0:c4,c5")),
            text("u:r:t:s0:c4,c5", "u:object_r:container_file_t:s0:c4,c5")
        );
        assert_eq!(
            of(&given("", "", "spc_t", "")),
            text("system_u:system_r:spc_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")
        );
    }

    /// OCI-20: a container without options of its own is as its pod.
    #[test]
    fn a_container_can_be_like_its_pod() {
        let pod = "u:r:t:s0:c4,c5";
        let options = Options::of_label(pod).expect("a label");
        assert!(!policy().needs_level(&options));
        assert_eq!(labels(&policy(), &options, "").map(|labels| labels.process).as_deref(), Ok(pod));
        assert!(Options::of_label("").is_ok_and(|options| options.is_empty()));
        assert!(Options::of_label("u::t").is_ok_and(|options| options.is_empty()));
        assert!(Options::of_label("nonsense").is_err());
    }

    #[test]
    fn a_policy_without_levels_has_none() {
        let policy = Policy::parse("process = \"u:r:t\"\nfile = \"u:o:f\"\n");
        assert!(!policy.needs_level(&Options::default()));
        let plain = labels(&policy, &Options::default(), "").expect("labels");
        assert_eq!((plain.process.as_str(), plain.mount.as_str()), ("u:r:t", "u:o:f"));
        let none = Policy::parse("file = \"u:o:f\"\n");
        assert!(!none.needs_level(&Options::default()));
        assert_eq!(labels(&none, &Options::default(), "").expect("labels").process, "");
        let broken = Policy::parse("process = \"u\"\nfile = \"u:o:f\"\n");
        assert!(labels(&broken, &Options::default(), "").is_err());
    }

    #[test]
    fn labels_go_into_the_spec() {
        let labels = Labels { process: "u:r:t:s0:c1".into(), mount: "u:o:f:s0:c1".into() };
        let put = |shim: &str, privileged| {
            let mut spec = Spec::default();
            put(&mut spec, &labels, Some(&policy()), shim, privileged).expect("labels");
            let json = serde_json::to_value(&spec).expect("JSON");
            (json["process"]["selinuxLabel"].clone(), json["linux"]["mountLabel"].clone())
        };
        assert_eq!(put("io.containerd.runc.v2", false), ("u:r:t:s0:c1".into(), "u:o:f:s0:c1".into()));
        assert_eq!(put("io.containerd.runc.v2", true).1, "u:o:f:s0:c1");
        assert!(put("io.containerd.runc.v2", true).0.is_null());
        assert_eq!(put("io.containerd.kata-qemu.v2", false).0, "u:r:container_kvm_t:s0:c1");
        let mut spec = Spec::default();
        super::put(&mut spec, &Labels::default(), None, "io.containerd.kata.v2", false).expect("no labels");
        let json = serde_json::to_value(&spec).expect("JSON");
        assert!(json["process"]["selinuxLabel"].is_null() && json["linux"]["mountLabel"].is_null());
    }

    /// OCI-33, OCI-36.
    #[test]
    fn the_pods_files_and_what_asks_are_relabelled() {
        let mount = |target: &str, relabel| cri::Mount {
            container_path: target.into(),
            selinux_relabel: relabel,
            ..Default::default()
        };
        let given = [mount("/a", true), mount("/b", false), mount("//etc/hosts", true)];
        let host = |source: &str| HostMount { source: source.into(), ..Default::default() };
        let gathered = [host("/h/a"), host("/h/b"), host("/h/hosts")];
        let files = |shm: &str| PodFiles {
            hostname: "/p/hostname".into(),
            hosts: "/p/hosts".into(),
            resolv_conf: "/p/resolv.conf".into(),
            shm: shm.into(),
        };
        let volumes = [("/v/1".into(), "/b".to_owned()), ("/v/2".into(), "/c".to_owned())];
        let of = |shm: &str| to_relabel(&given, &gathered, &files(shm), &volumes);
        let want = ["/h/a", "/h/hosts", "/p/hostname", "/p/resolv.conf", "/p/shm", "/v/2"];
        assert_eq!(of("/p/shm"), want.map(PathBuf::from));
        assert!(!of("/dev/shm").contains(&PathBuf::from("/dev/shm")), "the host's");
    }
}
