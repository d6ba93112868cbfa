//! RunPodSandbox.
//!
//! ```text
//! name ─▶ image ─▶ lease ─▶ record ─▶ netns ─┬─▶ CNI ADD ─▶ record updated ──────────┬─▶ READY
//!                                            └─▶ files, snapshot ─▶ task ─▶ started ──┘
//! ```
//! The record, which names the network namespace, is written before anything outside is
//! acquired: after SIGKILL the next start rolls back what still has the creating label
//! (SBX-03, design D5). Network and pause container are made at the same time where the
//! handler allows it (D6); whichever fails, the other is waited for, then all is undone.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tracing::{error, info};

use super::{Pods, files};
use crate::config::{Config, Handler, NetworkOrder};
use crate::container::labels::{self, Labelled};
use crate::container::remove_folder;
use crate::containerd::{ContainerRecord, ContainerUpdate, Mount, TaskRequest};
use crate::error::{Context, Result, invalid};
use crate::flow::{Disk, Stage, Undo, on_disk};
use crate::ids::{self, PodId};
use crate::image::Image;
use crate::network::{Attachment, PodNetwork, netns};
use crate::proto::cri::{NamespaceMode, PodSandboxConfig, RunPodSandboxRequest};
use crate::spec::{self, Modes, PauseInput, annotations, gather};
use crate::state::Pod;
use crate::state::pod::{Status, UNTRUSTED_HANDLER, is_untrusted};
use crate::state::record::{self, CREATING_LABEL, LEASE_LABEL, SandboxMetadata};
use crate::telemetry::METERS;
use crate::trace;

/// A pod that is being made.
struct Creation {
    metadata: SandboxMetadata,
    id: PodId,
    config: Arc<PodSandboxConfig>,
    handler: Handler,
    modes: Modes,
    netns: Option<PathBuf>,
    labels: HashMap<String, String>,
    selinux: Labelled,
    image: Arc<Image>,
}

impl Pods {
    /// Makes a pod sandbox and gives its id. A retry with an equal request joins the call
    /// that still runs (NAM-04).
    ///
    /// # Errors
    /// InvalidArgument and Unimplemented for a request that cannot be met, before anything
    /// is taken; AlreadyExists for a name in use; else what failed. Everything is undone;
    /// if that fails, the pod stays listed as NOTREADY (SBX-05).
    pub async fn run(&self, request: RunPodSandboxRequest) -> Result<PodId> {
        let encoded: Arc<[u8]> = request.encode_to_vec().into();
        let config = request.config.ok_or_else(|| invalid("no pod sandbox config is given"))?;
        let metadata =
            config.metadata.as_ref().ok_or_else(|| invalid("the pod sandbox config has no metadata"))?;
        let handler = choose_handler(&self.containers.config, &config, &request.runtime_handler)?;
        let modes = Modes::of_pod(&config)?;
        modes.require_startable(&handler.name, self.containers.features_of(&handler))?;
        labels::asked_by_pod(&config)?;
        files::check(&config)?;
        let name = ids::pod_name(metadata);
        let (this, key) = (self.clone(), name.clone());
        self.running
            .run(
                &self.containers.flow,
                &key,
                encoded,
                |stage| async move {
                    this.make(config, request.runtime_handler, handler, modes, name, stage).await
                },
                // An unclaimed pod is kept: the kubelet finds it in its list (NAM-05).
                |_| {},
            )
            .await
    }

    async fn make(
        &self,
        config: PodSandboxConfig,
        asked_handler: String,
        handler: Handler,
        modes: Modes,
        name: String,
        stage: Stage,
    ) -> Result<PodId> {
        let id = PodId::random();
        trace::about(|about| {
            about.pod_id = id.to_string();
            let names = config.metadata.as_ref().map(|it| format!("{}/{}", it.namespace, it.name));
            about.pod = names.unwrap_or_default();
        });
        self.containers.store.reserve(&name, id.as_str())?;
        let made = self.prepare(&id, config, asked_handler, handler, modes, &name, &stage).await;
        let made = match made {
            Ok(creation) => self.build(creation, &stage).await,
            Err(error) => {
                self.containers.store.release(&name, id.as_str());
                Err(error)
            }
        };
        made.map_err(|error| error.context(format!("run pod sandbox {name:?}")))
    }

    /// Everything that is needed before something is taken.
    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename them
    async fn prepare(
        &self,
        id: &PodId,
        config: PodSandboxConfig,
        asked_handler: String,
        handler: Handler,
        modes: Modes,
        name: &str,
        stage: &Stage,
    ) -> Result<Creation> {
        stage.set("preparing the pause image");
        let image = METERS.pod_stage("image", self.containers.images.pause(&self.containers.flow)).await;
        let image = image.context(|| "pause image")?;
        let netns =
            (!modes.host_network()).then(|| netns::new_path(&self.containers.config.file.cni.netns_dir));
        let selinux = self.containers.labelled(&labels::asked_by_pod(&config)?)?;
        let metadata = SandboxMetadata {
            id: id.to_string(),
            name: name.to_owned(),
            netns_path: netns.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            runtime_handler: asked_handler,
            process_label: selinux.process().to_owned(),
            config,
            ..SandboxMetadata::default()
        };
        let config = Arc::new(metadata.config.clone());
        let labels =
            annotations::record_labels(&config.labels, &image.config.labels, annotations::KIND_SANDBOX);
        Ok(Creation { metadata, id: id.clone(), config, handler, modes, netns, labels, selinux, image })
    }

    async fn build(&self, mut creation: Creation, stage: &Stage) -> Result<PodId> {
        // What makes the pod known is undone only when everything else was (SBX-05).
        let mut identity = Undo::default();
        let mut resources = Undo::default();
        let built = self.acquire(&mut creation, stage, &mut identity, &mut resources).await;
        let id = creation.id.clone();
        match built {
            Ok((created_at, pid)) => {
                resources.disarm();
                identity.disarm();
                let status = Status { ready: true, pid, ..Status::default() };
                let pod = Arc::new(Pod::new(creation.metadata, created_at, status));
                self.show(&pod);
                self.take_early_exit(&pod);
                let ips = pod.network().ips;
                info!(pod = %id, name = pod.name, ?ips, "pod sandbox ready");
                Ok(id)
            }
            Err(error) => {
                let undone = match resources.run().await {
                    Ok(()) => identity.run().await,
                    Err(left) => {
                        identity.disarm();
                        Err(left)
                    }
                };
                match undone {
                    Ok(()) => self.containers.store.release(&creation.metadata.name, id.as_str()),
                    Err(left) => {
                        error!(pod = %id, error = %left, "a failed pod sandbox could not be undone; it stays as NOTREADY");
                        let pod =
                            Pod::new(creation.metadata, crate::state::container::now(), Status::default());
                        self.show(&Arc::new(pod));
                    }
                }
                Err(error)
            }
        }
    }

    /// Makes a pod visible, and says so before anybody can stop it.
    fn show(&self, pod: &Arc<Pod>) {
        let _operation = pod.operation.try_lock();
        self.containers.store.add_pod(pod.clone());
        self.containers.tell_pod(pod);
    }

    /// Takes everything that a pod needs, and gives its time of creation and pause's pid.
    async fn acquire(
        &self,
        creation: &mut Creation,
        stage: &Stage,
        identity: &mut Undo,
        resources: &mut Undo,
    ) -> Result<(i64, u32)> {
        let containerd = &self.containers.containerd;
        let id = creation.id.clone();
        let snapshotter = creation.handler.snapshotter.clone();
        stage.set("recording");
        let spec = METERS.pod_stage("spec", self.pause_spec(creation)).await?;
        {
            let (containerd, id) = (containerd.clone(), id.clone());
            identity.push("record", move || async move { containerd.delete_container(id.as_str()).await });
        }
        {
            let (containerd, id) = (containerd.clone(), id.clone());
            identity.push("lease", move || async move { containerd.delete_lease(id.as_str(), false).await });
        }
        let lease = HashMap::from([(LEASE_LABEL.to_owned(), creation.metadata.name.clone())]);
        let record = self.record_of(creation, spec);
        let recorded = async {
            let (leased, created_at) = tokio::join!(
                containerd.create_lease(id.as_str(), lease),
                containerd.create_container(record, None),
            );
            leased.and(created_at)
        };
        let created_at = METERS.pod_stage("record", recorded).await?;

        for folder in [self.containers.paths.pod_root(&id), self.containers.paths.pod_state(&id)] {
            resources.push("folders", move || async move { remove_folder(&folder).await });
        }
        let network = self.network_to_make(creation, resources);
        {
            let (containerd, snapshotter, id) = (containerd.clone(), snapshotter.clone(), id.clone());
            resources.push("snapshot", move || async move {
                containerd.remove_snapshot(&snapshotter, id.as_str()).await
            });
        }
        {
            let (containers, config, id) = (self.containers.clone(), creation.config.clone(), id.clone());
            resources.push("task", move || async move {
                containers.discard_task(id.as_str()).await?;
                // A call that ran into its limit may have cost containerd the shim.
                containers.containerd.end_empty_shim(id.as_str()).await?;
                containers.remove_left_cgroup(&config, id.as_str()).await;
                Ok(())
            });
        }
        let pid = self.network_and_task(creation, network, stage).await?;
        Ok((created_at, pid))
    }

    /// The pod as its network sees it, and the undo of what is made of that: CNI DEL, then
    /// the namespace.
    fn network_to_make(&self, creation: &Creation, resources: &mut Undo) -> Option<PodNetwork> {
        let path = creation.netns.clone()?;
        let network = PodNetwork {
            id: creation.id.to_string(),
            handler: creation.handler.name.clone(),
            netns: Some(path.clone()),
            config: creation.config.clone(),
        };
        {
            let (this, network, path) = (self.clone(), network.clone(), path.clone());
            // One step: a plugin that is asked again later needs the namespace then.
            resources.push("network", move || async move {
                let detached = this.network.detach(&network).await;
                if detached.is_err() && this.network.is_attached(&network.id).await? {
                    return detached;
                }
                netns::remove(&path).await?;
                detached
            });
        }
        Some(network)
    }

    /// The two long poles, at the same time where possible.
    async fn network_and_task(
        &self,
        creation: &mut Creation,
        network: Option<PodNetwork>,
        stage: &Stage,
    ) -> Result<u32> {
        let first =
            creation.handler.network == NetworkOrder::First || spec::sysctls_need_network(&creation.config);
        let mut metadata = std::mem::take(&mut creation.metadata);
        let creation_ref: &Creation = creation;
        // The namespace, and what the task needs besides it.
        stage.set("making the network namespace");
        let (made, rootfs) = tokio::join!(self.make_netns(creation_ref), self.prepare_pause(creation_ref));
        let result = match made.and(rootfs) {
            Err(error) => Err(error),
            Ok(rootfs) => {
                let attach = self.attach_and_record(creation_ref, &mut metadata, network, stage);
                if first {
                    match attach.await {
                        Ok(()) => self.start_pause(creation_ref, rootfs, stage).await,
                        Err(error) => Err(error),
                    }
                } else {
                    // What the network does is the stage that others are told.
                    let silent = Stage::default();
                    let (attached, started) =
                        tokio::join!(attach, self.start_pause(creation_ref, rootfs, &silent));
                    attached.and(started)
                }
            }
        };
        creation.metadata = metadata;
        result
    }

    /// Where the user namespace is pinned that owns the pod's network; none without either.
    /// With host network the OCI runtime makes one.
    fn user_namespace_of(&self, creation: &Creation) -> Option<PathBuf> {
        let has_own = creation.modes.user.is_some() && creation.netns.is_some();
        has_own.then(|| self.containers.paths.pod_user_namespace(&creation.id))
    }

    async fn make_netns(&self, creation: &Creation) -> Result<()> {
        let loopback = self.containers.config.loopback;
        let Some(path) = &creation.netns else { return Ok(()) };
        let made = async {
            match (creation.modes.user, self.user_namespace_of(creation)) {
                (Some(maps), Some(pin)) => netns::create_in_user_namespace(path, &pin, maps, loopback).await,
                _ => netns::create(path, loopback).await,
            }
        };
        METERS.pod_stage("netns", made).await
    }

    /// CNI ADD, and the record with its result and without the creating label.
    async fn attach_and_record(
        &self,
        creation: &Creation,
        metadata: &mut SandboxMetadata,
        network: Option<PodNetwork>,
        stage: &Stage,
    ) -> Result<()> {
        if let Some(network) = network {
            let attached = METERS.pod_stage("cni", self.network.attach(&network, stage)).await;
            let Attachment { ips, result } = attached.context(|| "network")?;
            let mut ips = ips.iter().map(ToString::to_string);
            metadata.ip = ips.next().unwrap_or_default();
            metadata.additional_ips = Some(ips.collect::<Vec<_>>()).filter(|ips| !ips.is_empty());
            metadata.cni_result = result;
        }
        let update = ContainerUpdate {
            extensions: record::sandbox_extension(metadata),
            labels: Some(creation.labels.clone()),
            ..ContainerUpdate::default()
        };
        self.containers.containerd.update_container(creation.id.as_str(), update).await
    }

    /// Files and snapshot of the pause container.
    async fn prepare_pause(&self, creation: &Creation) -> Result<Vec<Mount>> {
        let containers = &self.containers;
        let (id, snapshotter) = (creation.id.as_str(), creation.handler.snapshotter.as_str());
        let request = files::PodFilesRequest {
            id: creation.id.clone(),
            paths: containers.paths.clone(),
            node_name: containers.host.hostname.clone(),
            host_ipc: creation.modes.ipc == NamespaceMode::Node,
            shm_bytes: containers.config.file.sandbox.shm_bytes,
            maps: creation.modes.user,
        };
        let snapshot =
            containers.snapshot(id, &creation.image, snapshotter, id, creation.modes.user.as_ref());
        let (made, rootfs) = tokio::join!(
            METERS.pod_stage("files", files::make(request, creation.config.clone())),
            METERS.pod_stage("snapshot", snapshot),
        );
        made.and(rootfs)
    }

    /// The task: pause runs.
    async fn start_pause(&self, creation: &Creation, rootfs: Vec<Mount>, stage: &Stage) -> Result<u32> {
        let containers = &self.containers;
        let containerd = &containers.containerd;
        let id = creation.id.as_str();
        stage.set("creating the task");
        let limit = Duration::from_secs(containers.config.file.sandbox.start_timeout_s);
        let task = TaskRequest {
            container_id: id.to_owned(),
            rootfs,
            runtime_path: creation.handler.shim_path.clone().unwrap_or_default(),
            ..TaskRequest::default()
        };
        let pid = METERS.pod_stage("pause_create", containerd.create_task(task, limit)).await;
        let pid = pid.context(|| "create the pause task")?;
        stage.set("starting the task");
        let started = METERS.pod_stage("pause_start", containerd.start_process(id, "", limit)).await;
        started.context(|| "start the pause task")?;
        Ok(pid)
    }

    async fn pause_spec(&self, creation: &Creation) -> Result<Vec<u8>> {
        let containers = &self.containers;
        let files = containers.paths.pause_files(&creation.id, &creation.config);
        let accounts = containers.images.accounts(&creation.image, &creation.handler.snapshotter).await?;
        let unset_seccomp = containers.config.file.container.unset_seccomp_profile.as_str();
        let profile = spec::pause_seccomp(&creation.config, unset_seccomp)?;
        let local = on_disk(Disk::Host, move || gather::local_seccomp(&profile)).await?;
        let sandbox = &containers.config.file.sandbox;
        let mut spec = spec::pause(&PauseInput {
            id: creation.id.as_str(),
            pod: &creation.config,
            netns: creation.netns.as_deref(),
            user_namespace: self.user_namespace_of(creation).as_deref(),
            image: (&creation.image.config, creation.image.name()),
            accounts: &accounts,
            handler: &creation.handler,
            namespace: &containers.config.file.containerd.namespace,
            host: &containers.host,
            files: &files,
            seccomp: local.as_ref(),
            unprivileged: (sandbox.unprivileged_ports, sandbox.unprivileged_icmp),
            unset_seccomp,
        })?;
        let linux = creation.config.linux.as_ref();
        let context = linux.and_then(|linux| linux.security_context.as_ref());
        let privileged = context.is_some_and(|context| context.privileged);
        containers.label(&mut spec, &creation.selinux, &creation.handler.shim, privileged)?;
        Ok(spec::to_json(&spec))
    }

    fn record_of(&self, creation: &Creation, spec: Vec<u8>) -> ContainerRecord {
        let mut labels = creation.labels.clone();
        labels.insert(CREATING_LABEL.to_owned(), "true".to_owned());
        ContainerRecord {
            id: creation.id.to_string(),
            labels,
            image: creation.image.name().to_owned(),
            runtime: creation.handler.shim.clone(),
            runtime_options: creation.handler.options.clone(),
            spec,
            snapshotter: creation.handler.snapshotter.clone(),
            snapshot_key: creation.id.to_string(),
            extensions: record::sandbox_extension(&creation.metadata),
            created_at: 0,
        }
    }
}

/// The handler of a pod by name, or by the legacy annotation (SBX-11, SBX-12).
///
/// # Errors
/// InvalidArgument for one that is not configured, and for what an untrusted workload must not
/// ask for.
pub fn choose_handler(node: &Config, config: &PodSandboxConfig, asked: &str) -> Result<Handler> {
    let name = if is_untrusted(config) {
        if !asked.is_empty() && asked != UNTRUSTED_HANDLER {
            return Err(invalid(format!("runtime handler {asked:?} is asked for an untrusted workload")));
        }
        // Privileged it may be: a runtime of virtual machines gives it the guest, not the host.
        let modes = Modes::of_pod(config)?;
        if [modes.network, modes.pid, modes.ipc].contains(&NamespaceMode::Node) {
            return Err(invalid("an untrusted workload cannot use the host's namespaces"));
        }
        UNTRUSTED_HANDLER
    } else {
        asked
    };
    node.handler(name).cloned().ok_or_else(|| invalid(format!("runtime handler {name:?} is not configured")))
}
