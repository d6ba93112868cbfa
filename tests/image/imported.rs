//! Registries as containerd's own configuration has them (IMG-27).

use longshore::error::Kind;
use longshore::proto::cri::AuthConfig;
use tempfile::TempDir;

use crate::fixture;
use crate::node::Node;
use crate::registry::{Access, PASSWORD, Registry, Settings, USER};

/// A node beside a containerd that is configured so.
async fn beside(containerd_config: &str) -> Option<Node> {
    let folder: TempDir = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("imported.toml"), containerd_config).expect("file");
    Node::in_folder(folder, "").await
}

/// A mirror for a name, and who asks it where a pull does not say it.
#[tokio::test]
async fn mirrors_and_credentials_of_the_older_form_are_used() {
    let Some(registry) = Registry::with(&Settings { access: Access::Password, ..Settings::default() }) else {
        return;
    };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"] {
        let address = &registry.address;
        let config = format!(
            r#"
            [plugins."{plugin}".registry.mirrors."registry.example:5000"]
              endpoint = ["http://{address}"]
            [plugins."{plugin}".registry.configs."{address}".auth]
              username = "{USER}"
              password = "{PASSWORD}"
            "#
        );
        let Some(node) = beside(&config).await else { return };
        assert_eq!(node.pull("registry.example:5000/a:1").await, Ok(image.id()));
        node.images.remove(&image.id()).await.expect("removed");
        // What a pull says goes before.
        let wrong = AuthConfig { username: USER.into(), password: "wrong".into(), ..Default::default() };
        let error = node.pull_with("registry.example:5000/a:1", wrong).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Unknown);
        assert!(error.message().contains(&format!("http://{address}: ")), "{error}");
        assert!(!error.message().contains(PASSWORD), "{error}");
    }
}

/// A `config_path` counts as long as longshore has no folders of its own; here it has.
#[tokio::test]
async fn a_broken_configuration_of_containerd_stops_nothing() {
    let Some(registry) = Registry::start() else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let Some(node) = beside("[plugins\n").await else { return };
    assert_eq!(node.pull(&registry.name("a:1")).await, Ok(image.id()));
}
