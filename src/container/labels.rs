//! SELinux labels of what is being made, and of the files that it mounts (SBX-33, OCI-20).

use std::path::PathBuf;

use super::Containers;
use crate::error::Result;
use crate::flow;
use crate::proto::cri::{ContainerConfig, PodSandboxConfig, SeLinuxOption};
use crate::spec::Spec;
use crate::spec::selinux::{self, Labels, Options};
use crate::state::Pod;
use crate::state::levels::Held;
use crate::sys::relabel;

/// The labels of a pod or container that is being made. Its level is nobody else's as long
/// as this lives; then the table holds it, or nobody does.
#[derive(Debug, Default)]
pub(crate) struct Labelled {
    labels: Labels,
    _held: Option<Held>,
}

impl Labelled {
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
        let Some(policy) = &self.host.selinux else { return Ok(Labelled::default()) };
        let levels = &self.store.levels;
        let unique = policy.needs_level(options);
        let held =
            if unique { Some(levels.unique(self.config.file.sandbox.selinux_category_range)?) } else { None };
        let labels = selinux::labels(policy, options, held.as_ref().map_or("", Held::level))?;
        let held = held.unwrap_or_else(|| levels.hold(selinux::level_of(&labels.process)));
        Ok(Labelled { labels, _held: Some(held) })
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
        flow::blocking(move || paths.iter().try_for_each(|path| relabel::tree(path, relabel::LABEL, &label)))
            .await
    }
}
