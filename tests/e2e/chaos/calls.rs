//! The calls: what each needs, what it does, and how a kubelet goes on after it.

use longshore::proto::cri::{ContainerState, LinuxContainerResources};
use tonic::Status;

use crate::harness::images::{BUSYBOX, Image, REGISTRY};
use crate::harness::{Container, Node, Pod};

/// A call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    RunPodSandbox,
    CreateContainer,
    StartContainer,
    StopContainer,
    RemoveContainer,
    StopPodSandbox,
    RemovePodSandbox,
    PullImage,
    RemoveImage,
    ExecSync,
    UpdateContainerResources,
}

/// What a call is made with.
pub(super) struct Scene {
    pod: Option<Pod>,
    container: Option<Container>,
}

impl Scene {
    fn pod(&self) -> &Pod {
        self.pod.as_ref().expect("this call has a pod")
    }

    fn container(&self) -> &Container {
        self.container.as_ref().expect("this call has a container")
    }
}

/// Ends with a code of its own when it is asked to.
const SCRIPT: &str = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
const SHARES: i64 = 512;

fn image() -> String {
    format!("{REGISTRY}/chaos:1")
}

impl Call {
    /// What the node needs once.
    pub(super) async fn provide(self, node: &Node) {
        node.ensure_image(BUSYBOX).await.expect("an image");
        let layered = Image::empty().file("a", b"first").file("b", b"second");
        node.registry().push("chaos:1", &layered);
    }

    /// What is there before the call.
    pub(super) async fn prepare(self, node: &Node) -> Scene {
        let mut scene = Scene { pod: None, container: None };
        match self {
            Call::RunPodSandbox | Call::PullImage => return scene,
            Call::RemoveImage => {
                node.pull(&image()).await.expect("pulled");
                return scene;
            }
            _ => {}
        }
        let pod = node.pod("p").run().await.expect("a pod");
        let container = async || pod.container("c").sh(SCRIPT).create().await.expect("created");
        let running = async || {
            let container = container().await;
            container.start().await.expect("started");
            container.wait_log("ready").await;
            container
        };
        scene.container = match self {
            Call::CreateContainer => None,
            Call::StartContainer => Some(container().await),
            Call::RemoveContainer | Call::RemovePodSandbox => {
                let container = running().await;
                container.stop(10).await.expect("stopped");
                Some(container)
            }
            _ => Some(running().await),
        };
        if self == Call::RemovePodSandbox {
            pod.stop().await.expect("stopped");
        }
        scene.pod = Some(pod);
        scene
    }

    /// The call itself.
    pub(super) async fn act(self, node: &Node, scene: &Scene) -> Result<(), Status> {
        match self {
            Call::RunPodSandbox => node.pod("p").run().await.map(drop),
            Call::CreateContainer => scene.pod().container("c").sh(SCRIPT).create().await.map(drop),
            Call::StartContainer => scene.container().start().await,
            Call::StopContainer => scene.container().stop(10).await,
            Call::RemoveContainer => scene.container().remove().await,
            Call::StopPodSandbox => scene.pod().stop().await,
            Call::RemovePodSandbox => scene.pod().remove().await,
            Call::PullImage => node.pull(&image()).await.map(drop),
            Call::RemoveImage => node.remove_image(&image()).await,
            Call::ExecSync => scene.container().exec(["echo", "inside"]).await.map(drop),
            Call::UpdateContainerResources => scene.container().update(shares()).await,
        }
    }

    /// What a kubelet does then. It ends with the state that it wanted.
    pub(super) async fn recover(self, node: &Node, scene: Scene) {
        match self {
            Call::RunPodSandbox => another_pod(node).await,
            Call::CreateContainer | Call::StartContainer => another_container(node, scene.pod()).await,
            Call::StopContainer => {
                scene.container().stop(10).await.expect("stopped again");
                assert_ended(scene.container()).await;
            }
            Call::RemoveContainer => {
                scene.container().remove().await.expect("removed again");
                assert_eq!(node.containers().await.expect("containers"), []);
                // Its name is free.
                another_container(node, scene.pod()).await;
            }
            Call::StopPodSandbox => {
                scene.pod().stop().await.expect("stopped again");
                let status = scene.pod().status().await.expect("a status");
                assert_eq!(status.state, 1, "NOTREADY: {status:?}");
                // The kubelet's own way to stop a pod does not ask its containers to end.
                let status = scene.container().status().await.expect("a status");
                assert_eq!(status.state(), ContainerState::ContainerExited, "{status:?}");
                assert_eq!(status.exit_code, 137, "{status:?}");
            }
            Call::RemovePodSandbox => {
                scene.pod().remove().await.expect("removed again");
                assert_eq!(node.pods().await.expect("pods"), []);
                another_pod(node).await;
            }
            Call::PullImage => {
                node.pull(&image()).await.expect("pulled again");
                let found = node.image(&image()).await.expect("an answer").expect("an image");
                assert_eq!(found.repo_tags, [image()]);
                use_image(node).await;
                node.remove_image(&image()).await.expect("removed");
            }
            Call::RemoveImage => {
                node.remove_image(&image()).await.expect("removed again");
                assert_eq!(node.image(&image()).await.expect("an answer"), None);
                node.pull(&image()).await.expect("pulled");
                use_image(node).await;
                node.remove_image(&image()).await.expect("removed");
            }
            Call::ExecSync => {
                assert_eq!(scene.container().sh("echo inside").await, "inside");
                scene.container().stop(10).await.expect("stopped");
                assert_ended(scene.container()).await;
            }
            Call::UpdateContainerResources => {
                scene.container().update(shares()).await.expect("updated again");
                let status = scene.container().status().await.expect("a status");
                let linux = status.resources.and_then(|resources| resources.linux).expect("resources");
                assert_eq!(linux.cpu_shares, SHARES);
            }
        }
    }
}

fn shares() -> LinuxContainerResources {
    LinuxContainerResources { cpu_shares: SHARES, ..Default::default() }
}

/// It has ended as it wanted to.
async fn assert_ended(container: &Container) {
    let status = container.status().await.expect("a status");
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 5), "{status:?}");
}

/// A pod that is ready is kept; others are stopped and removed, and one is run instead.
async fn another_pod(node: &Node) {
    for pod in node.pods().await.expect("pods") {
        if pod.state == 0 {
            let status = node.pod_status(&pod.id, false).await.expect("an answer").status.expect("a status");
            assert!(!status.network.unwrap_or_default().ip.is_empty(), "a ready pod has an address");
        }
        node.stop_pod(&pod.id).await.expect("stopped");
        node.remove_pod(&pod.id).await.expect("removed");
    }
    let pod = node.pod("p").attempt(1).run().await.expect("another");
    let container = pod.container("c").forever().run().await.expect("a container of it");
    assert_eq!(container.sh("echo inside").await, "inside");
    assert!(!pod.ip().await.is_empty());
}

/// What is there of a container is removed, and another attempt runs.
async fn another_container(node: &Node, pod: &Pod) {
    for container in node.containers().await.expect("containers") {
        let status = node.container_status(&container.id, false).await.expect("an answer");
        let status = status.status.expect("a status");
        // The time-out of a container that runs.
        let request = longshore::proto::cri::StopContainerRequest { container_id: container.id, timeout: 10 };
        node.runtime().stop_container(request.clone()).await.expect("stopped");
        let id = request.container_id;
        if status.state() == ContainerState::ContainerRunning {
            let after = node.container_status(&id, false).await.expect("an answer").status.expect("a status");
            assert_eq!(after.exit_code, 5, "{after:?}");
        }
        let request = longshore::proto::cri::RemoveContainerRequest { container_id: id };
        node.runtime().remove_container(request).await.expect("removed");
    }
    let container = pod.container("c").attempt(1).forever().run().await.expect("another");
    assert_eq!(container.sh("echo inside").await, "inside");
}

/// A container can be made of it: what was unpacked is whole.
async fn use_image(node: &Node) {
    let pod = node.pod("p").run().await.expect("a pod");
    let volume = pod.container("c").forever().image_volume(&image(), "/image").run().await;
    match volume {
        Ok(container) => assert_eq!(container.sh("cat /image/a /image/b").await, "firstsecond"),
        Err(error) => panic!("{error:?}"),
    }
    pod.stop().await.expect("stopped");
    pod.remove().await.expect("removed");
}
