//! CreateContainer.
//!
//! The container record in containerd is made last: it is the point at which the
//! container exists. What is made before is held by the pod's lease (the snapshot) or
//! lies in folders under the container's id; a crash in between leaves things that the
//! next start recognises by their missing record (design D5).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use tracing::info;

use super::files::remove_folder;
use super::labels::{self, Labelled};
use super::{Containers, image_volumes, log, volumes};
use crate::config::Handler;
use crate::containerd::ContainerRecord;
use crate::error::{Context, Error, Kind, Result, invalid, precondition};
use crate::flow::{Disk, Stage, Undo, on_disk};
use crate::ids::{self, ContainerId};
use crate::image::Image;
use crate::points;
use crate::proto::cri::{ContainerConfig, ContainerState, CreateContainerRequest};
use crate::spec::{self, ContainerInput, Modes, Spec, annotations, gather, mounts, process, selinux};
use crate::state::container::{Status, now};
use crate::state::record::{self, ContainerMetadata};
use crate::state::{Container, Pod};
use crate::sys::userns::IdMaps;
use crate::telemetry::traces;
use crate::trace;

/// What is missing here is no object that the kubelet asked for (ERR-12).
pub(super) fn inner(error: Error) -> Error {
    if error.is_not_found() { error.with_kind(Kind::FailedPrecondition) } else { error }
}

/// Puts what was being done in front, but behind a word that the kubelet looks for at the
/// beginning (ERR-09).
fn named(error: Error, what: &str) -> Error {
    for word in [mounts::IMAGE_VOLUME_FAILED, mounts::RRO_UNSUPPORTED] {
        if let Some(rest) = error.message().strip_prefix(word) {
            return Error::new(error.kind(), format!("{word}: {what}{rest}"));
        }
    }
    error.context(what)
}

/// What a creation works with.
struct Creation {
    id: ContainerId,
    pod: Arc<Pod>,
    config: ContainerConfig,
    /// Where its log is; empty for none.
    log_path: String,
    /// The mappings of the user namespace.
    maps: Option<IdMaps>,
    image: Arc<Image>,
    /// The images of `mounts`, where these are image volumes.
    volume_images: Vec<Option<Arc<Image>>>,
    handler: Handler,
    target_pid: Option<u32>,
    labels: Labelled,
    /// Names of CDI devices.
    devices: Vec<String>,
}

impl Containers {
    /// Creates a container in a READY pod and gives its id. A retry with an equal request
    /// joins the call that still runs (NAM-04).
    ///
    /// # Errors
    /// NotFound for an unknown pod, AlreadyExists for a name in use, InvalidArgument and
    /// FailedPrecondition for a request that cannot be met; nothing is left then.
    pub async fn create(&self, request: CreateContainerRequest) -> Result<ContainerId> {
        let pod = self.store.pod(&request.pod_sandbox_id)?;
        let encoded: Arc<[u8]> = request.encode_to_vec().into();
        let config = request.config.ok_or_else(|| invalid("no container config is given"))?;
        let metadata =
            config.metadata.as_ref().ok_or_else(|| invalid("the container config has no metadata"))?;
        if request.sandbox_config.as_ref().is_none_or(|config| config.metadata.is_none()) {
            return Err(invalid("the pod sandbox config has no metadata"));
        }
        pod.require_ready()?;
        process::check_stop_signal(&config)?;
        let modes = Modes::of_container(&pod.config, &config)?;
        let features = self.features_of(self.handler_of(&pod)?);
        mounts::check(&config.mounts, features)?;
        labels::asked_by_container(&config, &pod)?;
        let pod_metadata = pod.config.metadata.clone().unwrap_or_default();
        let name = ids::container_name(metadata, &pod_metadata);
        let (this, key) = (self.clone(), name.clone());
        let abandoned = {
            let this = self.clone();
            move |id: ContainerId| this.remove_abandoned(id)
        };
        self.creating
            .run(
                &self.flow,
                &key,
                encoded,
                |stage| async move { this.make(pod, config, modes, name, stage).await },
                abandoned,
            )
            .await
    }

    async fn make(
        &self,
        pod: Arc<Pod>,
        config: ContainerConfig,
        modes: Modes,
        name: String,
        stage: Stage,
    ) -> Result<ContainerId> {
        let id = ContainerId::random();
        let snapshotter = self.handler_of(&pod)?.snapshotter.clone();
        trace::about(|about| {
            about.container_id = id.to_string();
            about.container = config.metadata.as_ref().map(|it| it.name.clone()).unwrap_or_default();
            about.pod_id = pod.id.to_string();
            about.pod = pod.kubernetes_name();
        });
        self.store.reserve(&name, id.as_str())?;
        let mut undo = Undo::default();
        {
            let (store, name, id) = (self.store.clone(), name.clone(), id.clone());
            undo.push("name reservation", move || async move {
                store.release(&name, id.as_str());
                Ok(())
            });
        }
        let made = async {
            let creation = self.prepare(id.clone(), pod, config, modes)?;
            self.build(creation, &name, &stage, &mut undo).await
        }
        .await;
        match made {
            Ok(container) => {
                undo.disarm();
                info!(container = %id, pod = %container.pod_id, name, "container created");
                Ok(id)
            }
            Err(error) => {
                let error = named(error, &format!("create container {name:?}"));
                match undo.run().await {
                    Ok(()) => Err(error),
                    Err(left) => {
                        tracing::error!(container = %id, error = %left, "a failed creation could not be undone");
                        if let Err(unmarked) = self.leave_failed(id, snapshotter).await {
                            tracing::error!(error = %unmarked, "the next start may list it");
                        }
                        Err(error)
                    }
                }
            }
        }
    }

    /// Resolves what the request names.
    fn prepare(
        &self,
        id: ContainerId,
        pod: Arc<Pod>,
        mut config: ContainerConfig,
        modes: Modes,
    ) -> Result<Creation> {
        let handler = self.handler_of(&pod)?.clone();
        let log_path = log::path(&pod.config.log_directory, &config.log_path)?;
        let reference = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        if reference.is_empty() {
            return Err(invalid("the container config names no image"));
        }
        let image = self.images.find(reference).ok_or_else(|| {
            // Not NotFound: that would read as "the pod is gone" (ERR-12).
            precondition(format!("image {reference:?} is not on this node"))
        })?;
        let volume_images = image_volumes::resolve(&self.images, &mut config.mounts)?;
        let devices = self.cdi.asked(&config)?;
        let target_pid = spec::pid_target(&config).map(|target| self.target_pid(&pod, target)).transpose()?;
        let labels = self.labelled(&labels::asked_by_container(&config, &pod)?)?;
        let maps = modes.user;
        Ok(Creation {
            id,
            pod,
            config,
            log_path,
            maps,
            image,
            volume_images,
            handler,
            target_pid,
            labels,
            devices,
        })
    }

    /// The pid of the container whose pid namespace is joined (OCI-22).
    pub(super) fn target_pid(&self, pod: &Pod, target: &str) -> Result<u32> {
        let container =
            self.store.container(target).map_err(|error| error.with_kind(Kind::InvalidArgument))?;
        let status = container.status();
        if container.pod_id != pod.id {
            return Err(invalid(format!("target container {target:?} is in another pod sandbox")));
        }
        if status.state() != ContainerState::ContainerRunning {
            return Err(precondition(format!("target container {target:?} is not running")));
        }
        Ok(status.pid)
    }

    async fn build(
        &self,
        creation: Creation,
        name: &str,
        stage: &Stage,
        undo: &mut Undo,
    ) -> Result<Arc<Container>> {
        let Creation { id, pod, config, image, handler, .. } = &creation;
        let (root, state) = (self.paths.container_root(id), self.paths.container_state(id));
        for folder in [&root, &state] {
            let folder = folder.clone();
            undo.push("folders", move || async move { remove_folder(&folder).await });
        }
        let snapshotter = handler.snapshotter.as_str();
        let mut image_volumes = Vec::new();
        if creation.volume_images.iter().any(Option::is_some) {
            stage.set("mounting image volumes");
            let mounted = self.image_volumes(pod, &config.mounts, &creation.volume_images, snapshotter);
            image_volumes = traces::stage("image volumes", mounted).await?;
        }
        stage.set("preparing the root file system");
        {
            let (containerd, snapshotter, id) = (self.containerd.clone(), snapshotter.to_owned(), id.clone());
            undo.push("snapshot", move || async move {
                containerd.remove_snapshot(&snapshotter, id.as_str()).await
            });
        }
        let maps = creation.maps.as_ref();
        let snapshot = self.snapshot(id.as_str(), image, snapshotter, pod.id.as_str(), maps);
        let gathered = self.gather(&creation, image_volumes, &root, &state);
        let accounts = self.images.accounts(image, snapshotter);
        // All are waited for: containerd would go on with a call that is given up, and make
        // what nobody removes.
        let (mounts, gathered, accounts) = tokio::join!(
            traces::stage("snapshot", snapshot),
            traces::stage("gather", gathered),
            traces::stage("accounts", accounts),
        );
        let (mounts, gathered, accounts) = (mounts?, gathered?, accounts?);
        if !gathered.volumes.is_empty() {
            stage.set("copying the image's volumes");
            let copied = volumes::copy_up(&state, &mounts, &gathered.volumes, creation.maps);
            traces::stage("copy up volumes", copied).await?;
        }
        stage.set("translating");
        let host = traces::stage("look at the host", self.host_now(config, pod.status().pid)).await?;
        let image_name = annotations::image_name(config, image.name());
        let files = self.paths.pod_files(&pod.id, &pod.config, config);
        let mut oci = spec::container(&ContainerInput {
            id: id.as_str(),
            config,
            pod_id: pod.id.as_str(),
            pod: &pod.config,
            pause_pid: pod.status().pid,
            target_pid: creation.target_pid,
            image: (&image.config, image_name),
            accounts: &accounts,
            handler,
            namespace: &self.config.file.containerd.namespace,
            features: self.features_of(handler),
            host: &host,
            files: &files,
            gathered: &gathered,
            options: &self.config.file.container,
        })?;
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let privileged = context.is_some_and(|context| context.privileged);
        self.label(&mut oci, &creation.labels, &handler.shim, privileged)?;
        stage.set("labelling");
        let paths = selinux::to_relabel(&config.mounts, &gathered.mounts, &files, &gathered.volumes);
        traces::stage("label", self.relabel(paths, &creation.labels)).await?;
        stage.set("recording");
        {
            let (containerd, id) = (self.containerd.clone(), id.clone());
            // It may be there though containerd's answer is an error, or none.
            undo.push("record", move || async move { containerd.delete_container(id.as_str()).await });
        }
        let container = traces::stage("record", self.record(&creation, name, &oci, &root)).await?;
        self.store.add_container(container.clone());
        self.tell(&container);
        Ok(container)
    }

    async fn gather(
        &self,
        creation: &Creation,
        image_volumes: Vec<Option<PathBuf>>,
        root: &Path,
        state: &Path,
    ) -> Result<gather::Gathered> {
        let prepared =
            gather::Prepared { volumes_dir: root.join("volumes"), image_volumes, leaves_missing: false };
        let (config, image) = (creation.config.clone(), creation.image.config.clone());
        let (root, state) = (root.to_owned(), state.to_owned());
        let (cdi, devices) = (self.cdi.clone(), creation.devices.clone());
        let (pod, options) = (creation.pod.config.clone(), self.config.clone());
        let features = self.known_features(&creation.handler.name);
        on_disk(Disk::Root, move || {
            [root, state].iter().try_for_each(|folder| {
                points::before("make a folder of a container")?;
                std::fs::create_dir_all(folder).context(|| format!("folder {folder:?}"))
            })
        })
        .await?;
        on_disk(Disk::Host, move || {
            let classes = gather::classes::of(&config, &pod, &options)?;
            let edits = cdi.edits(&devices)?;
            if !edits.net_devices.is_empty() && features.is_some_and(|features| !features.net_devices) {
                return Err(precondition(
                    "a CDI device has network devices, which the runtime handler has not",
                ));
            }
            let gathered = gather::container(&config, &image, &prepared, &options.file.container)?;
            Ok(gather::Gathered { edits, classes, ..gathered })
        })
        .await
    }

    /// Writes the status file, then the record: from then on the container exists.
    async fn record(
        &self,
        creation: &Creation,
        name: &str,
        oci: &Spec,
        root: &Path,
    ) -> Result<Arc<Container>> {
        let Creation { id, pod, config, log_path, image, handler, .. } = creation;
        let process = oci.process.clone().unwrap_or_default();
        let metadata = ContainerMetadata {
            id: id.to_string(),
            name: name.to_owned(),
            sandbox_id: pod.id.to_string(),
            config: config.clone(),
            image_ref: image.id.clone(),
            log_path: log_path.clone(),
            stop_signal: process::stop_signal(config, &image.config)?,
            process_label: creation.labels.process().to_owned(),
            ..ContainerMetadata::default()
        };
        let limits = oci.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        let status = Status {
            created_at: now(),
            resources: spec::resources::reported(&limits, process.oom_score_adj),
            ..Status::default()
        };
        let record = ContainerRecord {
            id: id.to_string(),
            labels: annotations::record_labels(
                &config.labels,
                &image.config.labels,
                annotations::KIND_CONTAINER,
            ),
            image: image.name().to_owned(),
            runtime: handler.shim.clone(),
            runtime_options: handler.options.clone(),
            spec: spec::to_json(oci),
            snapshotter: handler.snapshotter.clone(),
            snapshot_key: id.to_string(),
            extensions: record::container_extension(&metadata),
            created_at: 0,
        };
        let container = Container::new(metadata, status, root.to_owned(), process.user);
        container.change(|_| Ok(())).await?;
        self.containerd.create_container(record, Some(pod.id.as_str())).await?;
        Ok(Arc::new(container))
    }

    /// Removes a container that was made for a client that went away and never came back,
    /// if nobody has started it (NAM-05).
    fn remove_abandoned(&self, id: ContainerId) {
        let this = self.clone();
        tokio::spawn(async move {
            let Ok(container) = this.store.container(id.as_str()) else { return };
            if container.state() != ContainerState::ContainerCreated {
                return;
            }
            info!(container = %id, "removing a container that nobody asked for again");
            if let Err(error) = this.remove(id.as_str()).await {
                tracing::warn!(container = %id, %error, "an abandoned container could not be removed");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ERR-09.
    #[test]
    fn words_that_the_kubelet_reads_stay_at_the_beginning() {
        let of = |message: &str| named(precondition(message), "create container \"c\"").message().to_owned();
        assert_eq!(of("no room"), "create container \"c\": no room");
        assert_eq!(
            of("ImageVolumeMountFailed: mount at \"/a\": no room"),
            "ImageVolumeMountFailed: create container \"c\": mount at \"/a\": no room"
        );
        assert_eq!(of("RROUnsupported: no"), "RROUnsupported: create container \"c\": no");
    }
}
