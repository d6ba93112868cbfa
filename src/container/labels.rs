//! SELinux labels of what is being made, and of the files that it mounts (SBX-33, OCI-20).

use std::path::PathBuf;

use super::Containers;
use crate::error::Result;
use crate::flow::{Disk, on_disk};
use crate::proto::cri::{ContainerConfig, PodSandboxConfig, SeLinuxOption};
use crate::spec::Spec;
use crate::spec::selinux::{self, Labels, Options, Policy};
use crate::state::levels::Held;
use crate::state::{Levels, Pod};
use crate::sys::relabel;

/// The labels of a pod or container that is being made. Its level is nobody else's as long
/// as this lives; then the table holds it, or nobody does.
#[derive(Debug, Default)]
pub(crate) struct Labelled {
    labels: Labels,
    _held: Option<Held>,
}

impl Labelled {
    /// Lays `options` over the policy's labels; without a policy there are none.
    fn new(policy: Option<&Policy>, levels: &Levels, range: u32, options: &Options) -> Result<Labelled> {
        let Some(policy) = policy else { return Ok(Labelled::default()) };
        if policy.needs_level(options) {
            let held = levels.unique(range)?;
            let labels = selinux::labels(policy, options, held.level())?;
            return Ok(Labelled { labels, _held: Some(held) });
        }
        let labels = selinux::labels(policy, options, "")?;
        let held = levels.hold(selinux::level_of(&labels.process));
        Ok(Labelled { labels, _held: Some(held) })
    }

    /// What the record says of the processes.
    pub(crate) fn process(&self) -> &str {
        &self.labels.process
    }
}

/// What a pod asks for; its shape is checked wherever the server runs.
///
/// # Errors
/// InvalidArgument for a level of no known shape.
pub(crate) fn asked_by_pod(config: &PodSandboxConfig) -> Result<Options> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    Options::of(context.and_then(|context| context.selinux_options.as_ref()))
}

/// The same of a container; one that asks for nothing is as its pod.
///
/// # Errors
/// InvalidArgument for a level of no known shape.
pub(super) fn asked_by_container(config: &ContainerConfig, pod: &Pod) -> Result<Options> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let given: Option<&SeLinuxOption> = context.and_then(|context| context.selinux_options.as_ref());
    let options = Options::of(given)?;
    if options.is_empty() { Options::of_label(&pod.process_label) } else { Ok(options) }
}

impl Containers {
    /// The labels for `options`; none where SELinux is off.
    ///
    /// # Errors
    /// ResourceExhausted when all categories are in use; FailedPrecondition for a policy
    /// that is none.
    pub(crate) fn labelled(&self, options: &Options) -> Result<Labelled> {
        let range = self.config.file.sandbox.selinux_category_range;
        Labelled::new(self.host.selinux.as_ref(), &self.store.levels, range, options)
    }

    /// Puts labels into a spec.
    ///
    /// # Errors
    /// FailedPrecondition for a policy that is none.
    pub(crate) fn label(
        &self,
        spec: &mut Spec,
        labelled: &Labelled,
        shim: &str,
        privileged: bool,
    ) -> Result<()> {
        selinux::put(spec, &labelled.labels, self.host.selinux.as_ref(), shim, privileged)
    }

    /// Gives files the label of what is being made; nothing where SELinux is off.
    ///
    /// # Errors
    /// FailedPrecondition for the host's own folders; the system's.
    pub(super) async fn relabel(&self, paths: Vec<PathBuf>, labelled: &Labelled) -> Result<()> {
        let label = labelled.labels.mount.clone();
        if label.is_empty() {
            return Ok(());
        }
        on_disk(Disk::Host, move || {
            paths.iter().try_for_each(|path| relabel::tree(path, relabel::LABEL, &label))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::{LinuxContainerConfig, LinuxContainerSecurityContext};
    use crate::state::pod::Status;
    use crate::state::record::SandboxMetadata;

    const RANGE: u32 = 2;

    fn policy() -> Policy {
        Policy::parse("process = \"u:r:t:s0\"\nfile = \"u:o:f:s0\"\n")
    }

    fn make(levels: &Levels, options: &Options) -> Result<Labelled> {
        Labelled::new(Some(&policy()), levels, RANGE, options)
    }

    fn pod(label: &str) -> Pod {
        let metadata = SandboxMetadata { process_label: label.into(), ..SandboxMetadata::default() };
        Pod::new(metadata, 0, Status::default())
    }

    fn container(options: Option<SeLinuxOption>) -> ContainerConfig {
        let context = LinuxContainerSecurityContext { selinux_options: options, ..Default::default() };
        let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
        ContainerConfig { linux: Some(linux), ..Default::default() }
    }

    /// SBX-33: with two categories there is one level, which a pod has for itself and its
    /// containers; it is free again when its making fails.
    #[test]
    fn a_pod_shares_its_level_with_its_containers_alone() {
        let levels = Levels::default();
        let first = make(&levels, &Options::default()).expect("free");
        assert_eq!((first.process(), first.labels.mount.as_str()), ("u:r:t:s0:c0,c1", "u:o:f:s0:c0,c1"));
        assert!(make(&levels, &Options::default()).is_err(), "nothing is left");
        for options in [None, Some(SeLinuxOption::default())] {
            let like = asked_by_container(&container(options), &pod(first.process())).expect("valid");
            assert_eq!(make(&levels, &like).expect("shared").labels, first.labels);
        }
        drop(first);
        make(&levels, &Options::default()).expect("free again");
    }

    /// OCI-20: a container's own options replace those of its pod, level and all.
    #[test]
    fn a_containers_own_options_go_before_its_pods() {
        let own = |kind: &str, level: &str| {
            let option = SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() };
            asked_by_container(&container(Some(option)), &pod("u:r:t:s0:c5,c6"))
        };
        let levels = Levels::default();
        let process = |options: &Options| make(&levels, options).map(|made| made.process().to_owned());
        assert_eq!(process(&own("x", "s0:c7").expect("valid")).as_deref(), Ok("u:r:x:s0:c7"));
        assert_eq!(process(&own("x", "").expect("valid")).as_deref(), Ok("u:r:x:s0:c0,c1"));
        assert!(own("", "c7").is_err());
    }

    #[test]
    fn without_a_policy_there_are_no_labels() {
        let off = Labelled::new(None, &Levels::default(), RANGE, &Options::default()).expect("none");
        assert_eq!((off.process(), off.labels.mount.as_str()), ("", ""));
    }
}
