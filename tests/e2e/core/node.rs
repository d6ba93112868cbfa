//! What the kubelet asks of the node itself.

use std::collections::BTreeMap;

use crate::harness::Node;

/// SVC-04, SVC-05.
#[tokio::test]
async fn the_version_is_containerds() {
    let node = Node::start().await;
    let version = node.version().await.expect("Version");
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    assert_eq!(version.runtime_name, "containerd");
    let raw = version.runtime_version.trim_start_matches('v').to_owned();
    assert!(raw.starts_with(&node.containerd_version().to_string()), "{raw}");
    node.finish().await;
}

/// SVC-12, SVC-17, SVC-26, SVC-27.
#[tokio::test]
async fn the_status_has_its_conditions_and_the_configuration_when_asked() {
    let node = Node::start().await;
    let brief = node.status(false).await.expect("Status");
    assert!(brief.info.is_empty());
    let conditions = brief.status.expect("a status").conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition.r#type == name).expect("a condition");
        assert!(condition.status, "{condition:?}");
    }
    let verbose = node.status(true).await.expect("Status");
    let config: serde_json::Value = serde_json::from_str(&verbose.info["config"]).expect("JSON");
    assert!(config["stateDir"].as_str().is_some_and(|folder| folder.starts_with("/")), "{config}");
    assert_eq!(verbose.info["lastCNILoadStatus"], "OK");
    serde_json::from_str::<serde_json::Value>(&verbose.info["cniconfig"]).expect("JSON");
    if !node.is_built_in() {
        let plugins: BTreeMap<String, String> =
            serde_json::from_str(&verbose.info["containerdPlugins"]).expect("JSON");
        assert_eq!(plugins["io.containerd.grpc.v1.tasks"], "ok", "{plugins:?}");
        assert!(verbose.info["containerd"].contains(&node.containerd_version().to_string()));
    }
    node.finish().await;
}

/// SVC-04, STA-15: also with no image at all.
#[tokio::test]
async fn the_file_system_of_images_is_told_from_the_start() {
    let node = Node::start().await;
    let info = node.images().image_fs_info(longshore::proto::cri::ImageFsInfoRequest {}).await;
    let file_systems = info.expect("ImageFsInfo").into_inner().image_filesystems;
    assert_eq!(file_systems.len(), 1);
    assert!(file_systems[0].timestamp > 0);
    let place = file_systems[0].fs_id.as_ref().expect("a mount point").mountpoint.clone();
    assert!(std::path::Path::new(&place).is_dir(), "{place}");
    node.finish().await;
}
