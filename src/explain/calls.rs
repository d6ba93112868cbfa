//! The calls that a request becomes, in order.
//!
//! What is said here is what `src/pod/run.rs`, `src/container/create.rs` and `start.rs` do; an
//! end-to-end test compares it with the calls that a server made.

use std::fmt;

use serde::Serialize;

use crate::config::{Handler, NetworkOrder};
use crate::network::survey::Chosen;
use crate::proto::cri::{ContainerConfig, NamespaceMode, PodSandboxConfig};
use crate::spec::{self, Modes};

/// Who is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Whom {
    /// containerd, over gRPC.
    Containerd,
    /// A CNI plugin.
    Cni,
    /// The kernel: files, mounts, namespaces.
    Kernel,
    /// The keeper, which has the output.
    Keeper,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// The call of the CRI that it is part of.
    pub cri: &'static str,
    /// Who is called.
    pub whom: Whom,
    /// What is called.
    pub call: String,
    /// With what.
    pub about: String,
    /// The step that it is part of: all calls of one are made at the same time.
    pub step: usize,
    /// Within a step, the calls of one lane are made after each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<&'static str>,
    /// Only as long as it is not known: once for each image while a server runs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub once: bool,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whom = match self.whom {
            Whom::Containerd => "containerd",
            Whom::Cni => "cni",
            Whom::Kernel => "kernel",
            Whom::Keeper => "keeper",
        };
        write!(f, "{whom:<10}  {:<20}  {}", self.call, self.about)?;
        if self.once {
            f.write_str(" (only the first time)")?;
        }
        match self.lane {
            Some(lane) => write!(f, " [{lane}]"),
            None => Ok(()),
        }
    }
}

/// What is written down of calls, in order.
struct Calls {
    cri: &'static str,
    step: usize,
    lane: Option<&'static str>,
    list: Vec<Call>,
}

impl Calls {
    fn of(cri: &'static str) -> Calls {
        Calls { cri, step: 0, lane: None, list: Vec::new() }
    }

    /// What follows is made when all before it is.
    fn then(&mut self) -> &mut Calls {
        (self.step, self.lane) = (self.step + 1, None);
        self
    }

    /// What follows is made in a lane of its own of this step.
    fn lane(&mut self, lane: &'static str) -> &mut Calls {
        self.lane = Some(lane);
        self
    }

    fn add(&mut self, whom: Whom, call: &str, about: impl Into<String>) {
        let Calls { cri, step, lane, .. } = *self;
        let (call, about) = (call.to_owned(), about.into());
        self.list.push(Call { cri, whom, call, about, step, lane, once: false });
    }

    fn containerd(&mut self, call: &str, about: impl Into<String>) {
        self.add(Whom::Containerd, call, about);
    }

    /// Reading the users of an image, which the server remembers.
    fn accounts(&mut self, image: &str) {
        let from = self.list.len();
        self.containerd("Leases.Create", format!("to read the users of {image}"));
        self.containerd("Leases.AddResource", "its layers");
        self.containerd("Snapshots.Stat", "whether they are unpacked");
        self.containerd("Snapshots.View", "its layers, for /etc/passwd and /etc/group");
        self.containerd("Snapshots.Remove", "the view");
        self.containerd("Leases.Delete", "that of the reading");
        self.list[from..].iter_mut().for_each(|call| call.once = true);
    }
}

/// The calls of RunPodSandbox, where the pause image is on the node.
#[must_use]
pub fn of_pod(
    pod: &PodSandboxConfig,
    modes: Modes,
    handler: &Handler,
    pause_image: &str,
    networks: &[Chosen],
) -> Vec<Call> {
    let mut calls = Calls::of("RunPodSandbox");
    calls.then().lane("users").accounts(pause_image);
    calls.then().containerd("Leases.Create", "the pod's, which holds its snapshots");
    calls.containerd("Containers.Create", "the record of pause, with its spec");
    calls.then();
    if !modes.host_network() {
        let what = if modes.user.is_some() { "user and network namespace" } else { "network namespace" };
        calls.add(Whom::Kernel, "unshare", format!("a {what}, pinned"));
    }
    calls.containerd("Snapshots.Prepare", "the root file system of pause");
    calls.lane("files").add(Whom::Kernel, "write", "hostname, hosts, resolv.conf");
    if modes.ipc != NamespaceMode::Node {
        calls.add(Whom::Kernel, "mount", "shm as tmpfs");
    }
    calls.then().lane("network");
    if !modes.host_network() {
        for network in networks {
            for plugin in &network.plugins {
                calls.add(Whom::Cni, "ADD", format!("plugin {plugin} of network {:?}", network.name));
            }
        }
    }
    calls.containerd("Containers.Update", "the record, with what CNI gave");
    if handler.network == NetworkOrder::First || spec::sysctls_need_network(pod) {
        calls.then();
    }
    calls.lane("task").containerd("Tasks.Create", "pause: the shim starts, the OCI runtime creates");
    calls.containerd("Tasks.Start", "pause");
    calls.list
}

/// The calls of CreateContainer and StartContainer, where the image is unpacked; `missing` are
/// the host paths of mounts that are not there.
#[must_use]
pub fn of_container(config: &ContainerConfig, image: &str, is_mapped: bool, missing: &[String]) -> Vec<Call> {
    let mut calls = Calls::of("CreateContainer");
    for given in config.mounts.iter().filter(|given| given.image.is_some()) {
        let about = format!("the image volume at {}", given.container_path);
        calls.then().containerd("Snapshots.View", about.clone());
        calls.then().add(Whom::Kernel, "mount", about);
    }
    let with = if is_mapped { ", mapped for the user namespace" } else { "" };
    calls.then().containerd("Snapshots.Prepare", format!("the root file system{with}"));
    for path in missing {
        calls.add(Whom::Kernel, "mkdir", format!("{path}, which is missing"));
    }
    calls.lane("users").accounts(image);
    calls.then().containerd("Containers.Create", "the record, with the spec");
    calls.cri = "StartContainer";
    calls.then().add(Whom::Keeper, "add", "the FIFOs of the output, and its log");
    calls.containerd("Snapshots.Mounts", "the root file system");
    calls.then().containerd("Tasks.Create", "by the pod's shim, with the OCI runtime");
    calls.then().containerd("Tasks.Start", "the first process");
    calls.list
}
