//! Everything that decides a spec, and the translation of it: the one of [`crate::spec`], with
//! what the server lays over it.
//!
//! The server has the same values in hand when it makes a container; here they stand
//! together, so that one of them can be changed and the translation asked again
//! ([`super::origins`]).

use std::path::PathBuf;

use crate::config::{Handler, file};
use crate::error::Result;
use crate::ids::PodId;
use crate::proto::cri::{ContainerConfig, PodSandboxConfig};
use crate::spec::selinux::{self, Labels};
use crate::spec::{
    self, Accounts, ContainerInput, Features, Host, ImageConfig, LocalProfile, Modes, PauseInput, Spec,
    annotations, gather,
};
use crate::state::Paths;

/// Everything that decides the spec of a pause container or of a container.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The server and its node.
    pub node: NodeFacts,
    /// The pod.
    pub pod: PodFacts,
    /// The image.
    pub image: ImageFacts,
    /// SELinux labels; empty without SELinux.
    pub labels: Labels,
    /// Whose spec it is.
    pub subject: Subject,
}

/// The server's configuration, and its node.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The pod's handler.
    pub handler: Handler,
    /// What its OCI runtime can.
    pub features: Features,
    /// The host.
    pub host: Host,
    /// containerd's namespace.
    pub namespace: String,
    /// The folders of the server: `root`, `state`.
    pub folders: (PathBuf, PathBuf),
    /// `[container]`
    pub container: file::ContainerSection,
    /// `[sandbox]`
    pub sandbox: file::Sandbox,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct PodFacts {
    /// Its id.
    pub id: String,
    /// The request.
    pub config: PodSandboxConfig,
    /// Where its network namespace is pinned, if it has one.
    pub netns: PathBuf,
}

/// An image.
#[derive(Clone, Debug, Default)]
pub struct ImageFacts {
    /// What it says of its containers.
    pub config: ImageConfig,
    /// Its name.
    pub name: String,
    /// Its /etc/passwd.
    pub passwd: Vec<u8>,
    /// Its /etc/group.
    pub group: Vec<u8>,
}

/// Whose spec it is.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The pod's pause container, with the seccomp profile of the node that it asks for.
    Pause(Option<LocalProfile>),
    /// A container.
    Container(Box<ContainerFacts>),
}

/// A container.
#[derive(Clone, Debug)]
pub struct ContainerFacts {
    /// Its id.
    pub id: String,
    /// The request.
    pub config: ContainerConfig,
    /// The pid of pause.
    pub pause_pid: u32,
    /// The pid of the container whose pid namespace it joins, if it does.
    pub target_pid: Option<u32>,
    /// What was gathered for it.
    pub gathered: gather::Gathered,
}

impl Facts {
    /// The spec.
    ///
    /// # Errors
    /// Those of the translation.
    pub fn translate(&self) -> Result<Spec> {
        let mut spec = match &self.subject {
            Subject::Pause(seccomp) => self.pause(seccomp.as_ref())?,
            Subject::Container(container) => self.container(container)?,
        };
        let policy = self.node.host.selinux.as_ref();
        selinux::put(&mut spec, &self.labels, policy, &self.node.handler.shim, self.is_privileged())?;
        Ok(spec)
    }

    fn is_privileged(&self) -> bool {
        match &self.subject {
            Subject::Pause(_) => {
                let context =
                    self.pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
                context.is_some_and(|context| context.privileged)
            }
            Subject::Container(container) => {
                let context = container.config.linux.as_ref();
                let context = context.and_then(|linux| linux.security_context.as_ref());
                context.is_some_and(|context| context.privileged)
            }
        }
    }

    fn paths(&self) -> Paths {
        Paths::new(&self.node.folders.0, &self.node.folders.1)
    }

    fn pause(&self, seccomp: Option<&LocalProfile>) -> Result<Spec> {
        let Facts { node, pod, image, .. } = self;
        let (paths, id) = (self.paths(), PodId::from(pod.id.clone()));
        let modes = Modes::of_pod(&pod.config)?;
        let netns = (!modes.host_network()).then_some(pod.netns.as_path());
        let user = netns.and(modes.user).map(|_| paths.pod_user_namespace(&id));
        spec::pause(&PauseInput {
            id: &pod.id,
            pod: &pod.config,
            netns,
            user_namespace: user.as_deref(),
            image: (&image.config, &image.name),
            accounts: &Accounts::parse(&image.passwd, &image.group),
            handler: &node.handler,
            namespace: &node.namespace,
            host: &node.host,
            files: &paths.pause_files(&id, &pod.config),
            seccomp,
            unprivileged: (node.sandbox.unprivileged_ports, node.sandbox.unprivileged_icmp),
            unset_seccomp: &node.container.unset_seccomp_profile,
        })
    }

    fn container(&self, container: &ContainerFacts) -> Result<Spec> {
        let Facts { node, pod, image, .. } = self;
        let ContainerFacts { id, config, pause_pid, target_pid, gathered } = container;
        spec::container(&ContainerInput {
            id,
            config,
            pod_id: &pod.id,
            pod: &pod.config,
            pause_pid: *pause_pid,
            target_pid: *target_pid,
            image: (&image.config, annotations::image_name(config, &image.name)),
            accounts: &Accounts::parse(&image.passwd, &image.group),
            handler: &node.handler,
            namespace: &node.namespace,
            features: node.features,
            host: &node.host,
            files: &self.paths().pod_files(&PodId::from(pod.id.clone()), &pod.config, config),
            gathered,
            options: &node.container,
        })
    }
}
