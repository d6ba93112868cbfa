//! A pod sandbox: metadata, network and a status that is watched.
//!
//! ```text
//! (being made) ──▶ READY ──pause exits, or stop──▶ NOTREADY ──▶ (removed)
//! ```
//! A pod whose making failed and could not be undone enters the table as NOTREADY, so
//! that a later stop and remove can finish the job (SBX-05).

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex};

use serde_json::Value;
use tokio::sync::{Mutex, watch};

use super::record::{SandboxMetadata, UpdatedResources};
use crate::error::{Result, precondition};
use crate::events::{Step, Told};
use crate::flow::lock;
use crate::ids::PodId;
use crate::proto::cri::{self, NamespaceMode, PodSandboxConfig, PodSandboxState};

/// Annotation that chooses the handler [`UNTRUSTED_HANDLER`] (SBX-12).
const UNTRUSTED_ANNOTATION: &str = "io.kubernetes.cri.untrusted-workload";
/// The handler of untrusted workloads.
pub const UNTRUSTED_HANDLER: &str = "untrusted";

/// Whether a pod says of itself that it is not to be trusted.
#[must_use]
pub fn is_untrusted(config: &PodSandboxConfig) -> bool {
    config.annotations.get(UNTRUSTED_ANNOTATION).is_some_and(|value| value == "true")
}

/// A pod's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether pause runs.
    pub ready: bool,
    /// Pid of pause; 0 when it does not run.
    pub pid: u32,
    /// The network namespace is gone: no addresses any more (SBX-50).
    pub network_gone: bool,
    /// Everything was torn down by this process; a stop has nothing left to do.
    pub stopped: bool,
}

/// The addresses of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodNetwork {
    /// The pod's first address comes first.
    pub ips: Vec<IpAddr>,
    /// What CNI answered, in go-cni's form.
    pub cni_result: Value,
}

/// A pod sandbox.
pub struct Pod {
    /// Id.
    pub id: PodId,
    /// `name_namespace_uid_attempt`
    pub name: String,
    /// The request.
    pub config: Arc<PodSandboxConfig>,
    /// Handler as asked for; empty for the default one.
    pub handler: String,
    /// The pinned network namespace; none with host network.
    pub netns: Option<PathBuf>,
    /// SELinux label of pause, which containers take over (SBX-33).
    pub process_label: String,
    /// Nanoseconds since the epoch, as containerd recorded it.
    pub created_at: i64,
    /// Held by whoever stops or removes the pod.
    pub operation: Mutex<()>,
    /// What subscribers know of it.
    pub told: Told,
    network: StdMutex<PodNetwork>,
    updated: StdMutex<Option<UpdatedResources>>,
    status: watch::Sender<Status>,
}

impl Pod {
    /// A pod from its record.
    #[must_use]
    pub fn new(metadata: SandboxMetadata, created_at: i64, status: Status) -> Pod {
        let ips = std::iter::once(metadata.ip.as_str())
            .chain(metadata.additional_ips.iter().flatten().map(String::as_str))
            .filter_map(|text| text.parse().ok())
            .collect();
        Pod {
            id: metadata.id.into(),
            name: metadata.name,
            config: Arc::new(metadata.config),
            handler: metadata.runtime_handler,
            netns: Some(metadata.netns_path).filter(|path| !path.is_empty()).map(PathBuf::from),
            process_label: metadata.process_label,
            created_at,
            operation: Mutex::default(),
            told: Told::default(),
            network: StdMutex::new(PodNetwork { ips, cni_result: metadata.cni_result }),
            updated: StdMutex::default(),
            status: watch::Sender::new(status),
        }
    }

    /// The metadata as it is recorded.
    #[must_use]
    pub fn metadata(&self) -> SandboxMetadata {
        let network = lock(&self.network).clone();
        let mut ips = network.ips.iter().map(ToString::to_string);
        SandboxMetadata {
            id: self.id.to_string(),
            name: self.name.clone(),
            config: (*self.config).clone(),
            netns_path: self
                .netns
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            ip: ips.next().unwrap_or_default(),
            additional_ips: Some(ips.collect::<Vec<_>>()).filter(|ips| !ips.is_empty()),
            runtime_handler: self.handler.clone(),
            cni_result: network.cni_result,
            process_label: self.process_label.clone(),
            ..SandboxMetadata::default()
        }
    }

    /// Its name as Kubernetes' tools show it: `namespace/name`.
    #[must_use]
    pub fn kubernetes_name(&self) -> String {
        let metadata = self.config.metadata.as_ref();
        metadata.map(|it| format!("{}/{}", it.namespace, it.name)).unwrap_or_default()
    }

    /// The name of the handler that it runs with; empty for the default one.
    #[must_use]
    pub fn handler_name(&self) -> &str {
        if is_untrusted(&self.config) { UNTRUSTED_HANDLER } else { &self.handler }
    }

    /// The status now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Changes the status.
    pub fn change(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    /// The CRI state now.
    #[must_use]
    pub fn state(&self) -> PodSandboxState {
        if self.status.borrow().ready {
            PodSandboxState::SandboxReady
        } else {
            PodSandboxState::SandboxNotready
        }
    }

    /// The steps of its life so far. Whether one that does not run has ever run is not asked:
    /// it was told when it did.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let state = if self.status.borrow().ready { Step::Started } else { Step::Stopped };
        vec![Step::Created, state]
    }

    /// The status message of PodSandboxStatus.
    #[must_use]
    pub fn cri_status(&self) -> cri::PodSandboxStatus {
        let mut ips = self.network().ips.into_iter().map(|ip| ip.to_string());
        let options = self
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.clone());
        cri::PodSandboxStatus {
            id: self.id.to_string(),
            metadata: self.config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            network: Some(cri::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
            }),
            linux: Some(cri::LinuxPodSandboxStatus {
                // Always there: the kubelet compares the network mode (SBX-52).
                namespaces: Some(cri::Namespace { options: Some(options.unwrap_or_default()) }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.handler.clone(),
        }
    }

    /// Waits until pause does not run any more.
    pub async fn not_ready(&self) {
        let mut status = self.status.subscribe();
        // The sender lives as long as `self`.
        let _ = status.wait_for(|status| !status.ready).await;
    }

    /// The addresses; none after the network was torn down.
    #[must_use]
    pub fn network(&self) -> PodNetwork {
        if self.status.borrow().network_gone {
            return PodNetwork::default();
        }
        lock(&self.network).clone()
    }

    /// Whether the pod ever had a network (SBX-42).
    #[must_use]
    pub fn had_network(&self) -> bool {
        !lock(&self.network).cni_result.is_null()
    }

    /// The resources as they were updated last, if ever (SBX-57).
    #[must_use]
    pub fn updated_resources(&self) -> Option<UpdatedResources> {
        lock(&self.updated).clone()
    }

    /// Remembers updated resources.
    pub fn set_updated_resources(&self, updated: Option<UpdatedResources>) {
        *lock(&self.updated) = updated;
    }

    /// Whether the pod uses the host's network.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespace_mode(|options| options.network) == NamespaceMode::Node as i32
    }

    fn namespace_mode(&self, of: impl Fn(&crate::proto::cri::NamespaceOption) -> i32) -> i32 {
        self.config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.as_ref())
            .map_or(NamespaceMode::Pod as i32, of)
    }

    /// Fails unless the pod is READY (CTR-01, CTR-13).
    ///
    /// # Errors
    /// FailedPrecondition.
    pub fn require_ready(&self) -> Result<()> {
        if self.status.borrow().ready {
            return Ok(());
        }
        Err(precondition(format!("pod sandbox {} is not ready", self.id)))
    }
}
