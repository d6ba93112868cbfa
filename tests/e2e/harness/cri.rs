//! A client of a CRI server: the generated clients, and the calls that tests make most.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore::proto::cri;
use longshore::proto::cri::image_service_client::ImageServiceClient;
use longshore::proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::place::Place;
use super::pod::PodBuilder;
use super::{CgroupDriver, patient, wait_until};

/// The limit of every call, as the kubelet has one.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// The largest message that the kubelet takes.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A client. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cri {
    channel: Channel,
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    /// Where pods put their logs.
    logs: PathBuf,
    /// The name of its node.
    node: String,
    pods: AtomicU32,
    /// Ids of images by reference, of those that are there.
    images: Mutex<HashMap<String, String>>,
}

impl fmt::Debug for Cri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cri").field(&self.shared.socket).finish()
    }
}

impl Cri {
    /// A client of the server at `socket`; its pods have their logs and cgroups in `place`.
    pub(crate) fn new(socket: &Path, place: &Place) -> Cri {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an address");
        let shared = Shared {
            socket: socket.to_owned(),
            logs: place.path("logs"),
            node: place.name(),
            pods: AtomicU32::new(0),
            images: Mutex::default(),
        };
        Cri { channel: endpoint.timeout(patient(CALL_LIMIT)).connect_lazy(), shared: Arc::new(shared) }
    }

    /// The server's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// Where pods have their logs unless they ask for another place.
    pub(crate) fn logs(&self) -> &Path {
        &self.shared.logs
    }

    /// The cgroup of a pod, as the kubelet names it.
    pub(crate) fn cgroup_parent(&self, uid: &str) -> String {
        CgroupDriver::from_env().of_pod(&self.shared.node, uid)
    }

    /// The connection, for calls that no client has.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// RuntimeService.
    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// ImageService.
    pub(crate) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A pod to be run; see [`PodBuilder`] for what it is without further words.
    pub(crate) fn pod(&self, name: &str) -> PodBuilder {
        let number = self.shared.pods.fetch_add(1, Ordering::Relaxed);
        PodBuilder::new(self, name, &format!("uid-{number}"))
    }

    pub(crate) async fn version(&self) -> Result<cri::VersionResponse, Status> {
        self.runtime().version(cri::VersionRequest::default()).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn status(&self, verbose: bool) -> Result<cri::StatusResponse, Status> {
        self.runtime().status(cri::StatusRequest { verbose }).await.map(tonic::Response::into_inner)
    }

    /// Whether a condition of Status is true; no if there is none of that name.
    pub(crate) async fn condition(&self, name: &str) -> Result<bool, Status> {
        let status = self.status(false).await?.status.unwrap_or_default();
        Ok(status.conditions.iter().any(|condition| condition.r#type == name && condition.status))
    }

    /// Waits until the server answers at all.
    pub(crate) async fn wait_until_answers(&self) {
        wait_until("the CRI server", async || self.version().await.is_ok()).await;
    }

    /// Waits until pods can be run.
    pub(crate) async fn wait_until_network_ready(&self) {
        wait_until("NetworkReady", async || self.condition("NetworkReady").await.unwrap_or(false)).await;
    }

    /// ListMetricDescriptors.
    pub(crate) async fn metric_descriptors(&self) -> Result<Vec<cri::MetricDescriptor>, Status> {
        let request = cri::ListMetricDescriptorsRequest {};
        Ok(self.runtime().list_metric_descriptors(request).await?.into_inner().descriptors)
    }

    /// ListPodSandboxMetrics.
    pub(crate) async fn pod_metrics(&self) -> Result<Vec<cri::PodSandboxMetrics>, Status> {
        let request = cri::ListPodSandboxMetricsRequest {};
        Ok(self.runtime().list_pod_sandbox_metrics(request).await?.into_inner().pod_metrics)
    }

    /// All pods.
    pub(crate) async fn pods(&self) -> Result<Vec<cri::PodSandbox>, Status> {
        self.list_pods(None).await
    }

    /// ListPodSandbox.
    pub(crate) async fn list_pods(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, Status> {
        let request = cri::ListPodSandboxRequest { filter };
        Ok(self.runtime().list_pod_sandbox(request).await?.into_inner().items)
    }

    /// All containers.
    pub(crate) async fn containers(&self) -> Result<Vec<cri::Container>, Status> {
        self.list_containers(None).await
    }

    /// ListContainers.
    pub(crate) async fn list_containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest { filter };
        Ok(self.runtime().list_containers(request).await?.into_inner().containers)
    }

    /// PodSandboxStatus by an id that need not exist.
    pub(crate) async fn pod_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<cri::PodSandboxStatusResponse, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        self.runtime().pod_sandbox_status(request).await.map(tonic::Response::into_inner)
    }

    /// StopPodSandbox by an id that need not exist.
    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox by an id that need not exist.
    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().remove_pod_sandbox(request).await.map(drop)
    }

    /// ContainerStatus by an id that need not exist.
    pub(crate) async fn container_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<cri::ContainerStatusResponse, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        self.runtime().container_status(request).await.map(tonic::Response::into_inner)
    }

    /// ContainerStats by an id that need not exist.
    pub(crate) async fn container_stats(&self, id: &str) -> Result<cri::ContainerStats, Status> {
        let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
        Ok(self.runtime().container_stats(request).await?.into_inner().stats.unwrap_or_default())
    }

    /// ListContainerStats.
    pub(crate) async fn list_container_stats(
        &self,
        filter: Option<cri::ContainerStatsFilter>,
    ) -> Result<Vec<cri::ContainerStats>, Status> {
        let request = cri::ListContainerStatsRequest { filter };
        Ok(self.runtime().list_container_stats(request).await?.into_inner().stats)
    }

    /// PodSandboxStats by an id that need not exist.
    pub(crate) async fn pod_stats(&self, id: &str) -> Result<cri::PodSandboxStats, Status> {
        let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        Ok(self.runtime().pod_sandbox_stats(request).await?.into_inner().stats.unwrap_or_default())
    }

    /// ListPodSandboxStats.
    pub(crate) async fn list_pod_stats(
        &self,
        filter: Option<cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, Status> {
        let request = cri::ListPodSandboxStatsRequest { filter };
        Ok(self.runtime().list_pod_sandbox_stats(request).await?.into_inner().stats)
    }

    /// Stops and removes all pods, with all their containers.
    pub(crate) async fn remove_all(&self) {
        for pod in self.pods().await.expect("pods are listed") {
            self.stop_pod(&pod.id).await.expect("a pod is stopped");
            self.remove_pod(&pod.id).await.expect("a pod is removed");
        }
    }

    /// PullImage; gives what it returns, the image's id.
    pub(crate) async fn pull(&self, reference: &str) -> Result<String, Status> {
        let request = cri::PullImageRequest { image: Some(image_spec(reference)), ..Default::default() };
        Ok(self.images().pull_image(request).await?.into_inner().image_ref)
    }

    /// ImageStatus.
    pub(crate) async fn image(&self, name: &str) -> Result<Option<cri::Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(name)), verbose: false };
        Ok(self.images().image_status(request).await?.into_inner().image)
    }

    /// ListImages.
    pub(crate) async fn list_images(&self) -> Result<Vec<cri::Image>, Status> {
        Ok(self.images().list_images(cri::ListImagesRequest::default()).await?.into_inner().images)
    }

    /// RemoveImage.
    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), Status> {
        self.shared.images.lock().expect("no panic").remove(name);
        let request = cri::RemoveImageRequest { image: Some(image_spec(name)) };
        self.images().remove_image(request).await.map(drop)
    }

    /// Pulls an image unless it is there; gives its id. Asks the server once.
    pub(crate) async fn ensure_image(&self, reference: &str) -> Result<String, Status> {
        let known = self.shared.images.lock().expect("no panic").get(reference).cloned();
        if let Some(id) = known {
            return Ok(id);
        }
        let id = match self.image(reference).await? {
            Some(image) => image.id,
            None => self.pull(reference).await?,
        };
        self.shared.images.lock().expect("no panic").insert(reference.to_owned(), id.clone());
        Ok(id)
    }
}

/// An image by a name, as a client gives it.
pub(crate) fn image_spec(name: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: name.to_owned(), user_specified_image: name.to_owned(), ..Default::default() }
}
