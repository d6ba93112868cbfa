//! Calls about what is not there.

use longshore::proto::cri::*;
use tonic::Code;

use super::{UNKNOWN, code, is_plugin_before};
use crate::harness::Node;

/// ERR-01, ERR-02, ERR-03.
#[tokio::test]
async fn unknown_ids_are_not_found_or_fine_by_the_call() {
    let node = Node::start().await;
    let (mut runtime, id) = (node.runtime(), || UNKNOWN.to_owned());
    // The plugin of 1.6 is alone with NotFound for what is to be stopped.
    if !is_plugin_before(&node, 1, 7) {
        let stop = StopContainerRequest { container_id: id(), timeout: 0 };
        assert_eq!(code(runtime.stop_container(stop).await), Code::Ok);
        assert_eq!(code(node.stop_pod(UNKNOWN).await), Code::Ok);
    }
    let fine = [
        code(runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }).await),
        code(runtime.remove_container(RemoveContainerRequest { container_id: id() }).await),
        code(node.remove_image("registry.test/no-such:1").await),
        code(node.remove_image(&format!("sha256:{UNKNOWN}")).await),
    ];
    assert_eq!(fine, [Code::Ok; 4]);
    let exec = ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 1 };
    let update = UpdateContainerResourcesRequest {
        container_id: id(),
        linux: Some(LinuxContainerResources { cpu_shares: 10, ..Default::default() }),
        ..Default::default()
    };
    let not_found = [
        code(node.pod_status(UNKNOWN, false).await),
        code(node.container_status(UNKNOWN, true).await),
        code(runtime.start_container(StartContainerRequest { container_id: id() }).await),
        code(runtime.reopen_container_log(ReopenContainerLogRequest { container_id: id() }).await),
        code(runtime.exec_sync(exec).await),
        code(runtime.update_container_resources(update).await),
    ];
    assert_eq!(not_found, [Code::NotFound; 6]);
    assert!(node.image("registry.test/no-such:1").await.expect("asked").is_none());
    node.finish().await;
}
