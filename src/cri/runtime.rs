//! RuntimeService.

use tonic::{Request, Response, Status};

use super::status::unbuilt;
use super::streams::{ListStream, of_events};
use super::{Cri, answer};
use crate::error::invalid;
use crate::proto::cri::runtime_service_server::RuntimeService;
use crate::proto::cri::*;

type Answer<T> = Result<Response<T>, Status>;

/// The name that a pod request is about, for the span.
fn pod_name(config: Option<&PodSandboxConfig>) -> String {
    config
        .and_then(|config| config.metadata.as_ref())
        .map(|metadata| format!("{}/{}", metadata.namespace, metadata.name))
        .unwrap_or_default()
}

#[tonic::async_trait]
impl RuntimeService for Cri {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        answer("Version", "", async { Ok(self.version()) }).await
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let request = request.into_inner();
        let name = pod_name(request.config.as_ref());
        self.serve("RunPodSandbox", &name, async {
            let id = self.pods.run(request).await?;
            Ok(RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.serve("StopPodSandbox", &id, async {
            self.pods.stop(&id).await.map(|()| StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.serve("RemovePodSandbox", &id, async {
            self.pods.remove(&id).await.map(|()| RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let PodSandboxStatusRequest { pod_sandbox_id: id, verbose } = request.into_inner();
        self.serve("PodSandboxStatus", &id, self.pods.status(&id, verbose)).await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let filter = request.into_inner().filter;
        self.serve("ListPodSandbox", "", async {
            Ok(ListPodSandboxResponse { items: self.pods.list(filter.as_ref()) })
        })
        .await
    }

    type StreamPodSandboxesStream = ListStream<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter;
        self.serve("StreamPodSandboxes", "", async {
            let items = self.pods.list(filter.as_ref());
            self.lists.in_messages(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let pod = request.pod_sandbox_id.clone();
        self.serve("CreateContainer", &pod, async {
            let id = self.pods.containers.create(request).await?;
            Ok(CreateContainerResponse { container_id: id.to_string() })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let id = request.into_inner().container_id;
        self.serve("StartContainer", &id, async {
            self.pods.containers.start(&id).await.map(|()| StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let StopContainerRequest { container_id: id, timeout } = request.into_inner();
        self.serve("StopContainer", &id, async {
            self.pods.containers.stop(&id, timeout).await.map(|()| StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.serve("RemoveContainer", &id, async {
            self.pods.containers.remove(&id).await.map(|()| RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let filter = request.into_inner().filter;
        self.serve("ListContainers", "", async {
            Ok(ListContainersResponse { containers: self.pods.containers.list(filter.as_ref()) })
        })
        .await
    }

    type StreamContainersStream = ListStream<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let filter = request.into_inner().filter;
        self.serve("StreamContainers", "", async {
            let items = self.pods.containers.list(filter.as_ref());
            self.lists.in_messages(items, |containers| StreamContainersResponse { containers })
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let ContainerStatusRequest { container_id: id, verbose } = request.into_inner();
        self.serve("ContainerStatus", &id, self.pods.containers.status(&id, verbose)).await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let UpdateContainerResourcesRequest { container_id: id, linux, .. } = request.into_inner();
        self.serve("UpdateContainerResources", &id, async {
            self.pods.containers.update(&id, linux).await.map(|()| UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        self.serve("ReopenContainerLog", &id, async {
            self.pods.containers.reopen_log(&id).await.map(|()| ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        self.serve("ExecSync", &id, self.pods.containers.exec_sync(request)).await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        let url = async { self.streaming.exec(request).map(|url| ExecResponse { url }) };
        self.serve("Exec", &id, url).await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        let url = async { self.streaming.attach(request).map(|url| AttachResponse { url }) };
        self.serve("Attach", &id, url).await
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        let url = async { self.streaming.port_forward(request).map(|url| PortForwardResponse { url }) };
        self.serve("PortForward", &id, url).await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        self.serve("ContainerStats", &id, async {
            let stats = self.stats.container(&id).await?;
            Ok(ContainerStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let filter = request.into_inner().filter;
        self.serve("ListContainerStats", "", async {
            Ok(ListContainerStatsResponse { stats: self.stats.containers(filter.as_ref()).await })
        })
        .await
    }

    type StreamContainerStatsStream = ListStream<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter;
        self.serve("StreamContainerStats", "", async {
            let items = self.stats.containers(filter.as_ref()).await;
            self.lists.in_messages(items, |container_stats| StreamContainerStatsResponse { container_stats })
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.serve("PodSandboxStats", &id, async {
            let stats = self.stats.pod(&id).await?;
            Ok(PodSandboxStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter;
        self.serve("ListPodSandboxStats", "", async {
            Ok(ListPodSandboxStatsResponse { stats: self.stats.pods(filter.as_ref()).await })
        })
        .await
    }

    type StreamPodSandboxStatsStream = ListStream<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter;
        self.serve("StreamPodSandboxStats", "", async {
            let items = self.stats.pods(filter.as_ref()).await;
            self.lists
                .in_messages(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats })
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config;
        answer("UpdateRuntimeConfig", "", async {
            self.update_runtime_config(config).await.map(|()| UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let verbose = request.into_inner().verbose;
        answer("Status", "", async { Ok(self.node_status(verbose).await) }).await
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(unbuilt("CheckpointContainer"))
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        Err(unbuilt("CheckpointPod"))
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        Err(unbuilt("RestorePod"))
    }

    type GetContainerEventsStream = ListStream<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        self.serve("GetContainerEvents", "", async { self.pods.containers.events.subscribe().map(of_events) })
            .await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer("ListMetricDescriptors", "", async {
            Ok(ListMetricDescriptorsResponse { descriptors: self.stats.metric_descriptors() })
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        self.serve("ListPodSandboxMetrics", "", async {
            Ok(ListPodSandboxMetricsResponse { pod_metrics: self.stats.metrics().await })
        })
        .await
    }

    type StreamPodSandboxMetricsStream = ListStream<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        self.serve("StreamPodSandboxMetrics", "", async {
            let items = self.stats.metrics().await;
            self.lists.in_messages(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            })
        })
        .await
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        answer("RuntimeConfig", "", async { Ok(self.runtime_config()) }).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        self.serve("UpdatePodSandboxResources", &id, async {
            self.pods.update_resources(request).await.map(|()| UpdatePodSandboxResourcesResponse {})
        })
        .await
    }
}

/// The reference that an image request is about.
///
/// # Errors
/// InvalidArgument without one.
pub(super) fn image_text(image: Option<&ImageSpec>) -> crate::error::Result<String> {
    image
        .map(|image| image.image.clone())
        .filter(|text| !text.is_empty())
        .ok_or_else(|| invalid("no image is given"))
}
