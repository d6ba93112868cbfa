//! Pulls that do not succeed, and what they leave: nothing.

use longshore::error::Kind;
use serde_json::json;

use crate::fixture;
use crate::http::answer;
use crate::node::Node;
use crate::proxy::{Fault, Proxy, When};
use crate::registry::Registry;
use crate::server::Canned;

#[tokio::test]
async fn a_reference_that_is_none_is_refused() {
    let Some(node) = Node::start().await else { return };
    let error = node.pull("Not/A Reference").await.expect_err("invalid");
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn a_missing_tag_or_repository_is_not_found() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    registry.push("a", "1", &fixture::unique());
    for rest in ["a:2", "b:1"] {
        let error = node.pull(&registry.name(rest)).await.expect_err(rest);
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        let want = format!("resolve {0}/{rest}: http://{0}: not found", registry.address);
        assert!(error.message().ends_with(&want), "{error}");
    }
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_unavailable() {
    let Some(node) = Node::start().await else { return };
    let error = node.pull("127.0.0.1:1/a:1").await.expect_err("nobody listens");
    assert_eq!(error.kind(), Kind::Unknown);
    assert!(error.message().starts_with("RegistryUnavailable: pull image \"127.0.0.1:1/a:1\": "), "{error}");
    assert!(error.message().contains("https://127.0.0.1:1: Connection refused (tried 5 times)"), "{error}");
    let error = node.pull("registry.invalid/a:1").await.expect_err("no such name");
    assert!(error.message().starts_with("RegistryUnavailable: "), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn an_image_for_other_platforms_names_them_and_ours() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let other = fixture::image_for("s390x", json!({}), vec![fixture::file("a", "b")]);
    let index = fixture::index(&[("linux/s390x", &other), ("windows/amd64", &other)]);
    registry.push_index("a", "1", &index, &[&other]);
    let error = node.pull(&registry.name("a:1")).await.expect_err("no match");
    assert!(error.message().contains("linux/s390x, windows/amd64"), "{error}");
    assert!(error.message().contains(&format!("this node runs linux/{}", fixture::PLATFORM)), "{error}");
    assert!(error.message().contains(&registry.name("a:1")), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_leaves_nothing() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    for (name, of_layer) in [("layer", true), ("config", false)] {
        for (how, bytes) in [("same-size", 0), ("longer", 5)] {
            let image = fixture::unique();
            let blob = if of_layer { &image.layers[1] } else { &image.config };
            let repository = format!("{name}/{how}");
            registry.push(&repository, "1", &image);
            let wrong = vec![b'x'; blob.data.len() + bytes];
            std::fs::write(registry.blob_file(&blob.digest()), wrong).expect("file");
            let error = node.pull(&registry.name(&format!("{repository}:1"))).await.expect_err("corrupt");
            assert_eq!(error.kind(), Kind::Unknown, "{error}");
            assert!(error.message().contains(&blob.digest()), "{error}");
            assert!(error.message().contains(&registry.address), "{error}");
            node.must_have_no_image().await;
        }
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_config_says_leaves_nothing() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let (layer, _) = fixture::file("a", "b");
    let image = fixture::image(vec![(layer, fixture::digest(b"something else"))]);
    registry.push("a", "1", &image);
    let error = node.pull(&registry.name("a:1")).await.expect_err("wrong diff id");
    assert!(error.message().contains(&fixture::digest(b"something else")), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_stops_and_leaves_nothing() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::image(vec![fixture::random(100_000), fixture::random(100_000)]);
    registry.push("a", "1", &image);
    let gate =
        Proxy::that_stops(&registry.address, &format!("blobs/{}", image.layers[1].digest()), 50_000).await;
    let name = format!("{}/a:1", gate.address);
    {
        let mut pull = Box::pin(node.pull(&name));
        tokio::select! {
            _ = &mut pull => panic!("the gate is closed"),
            () = gate.reached() => {}
        }
        // Should this process die, containerd takes the lease by itself.
        let leases = node.containerd.list_leases().await.expect("leases");
        let expiry: jiff::Timestamp = leases[0].labels["containerd.io/gc.expire"].parse().expect("RFC 3339");
        let hours = expiry.duration_since(jiff::Timestamp::now()).as_hours();
        assert_eq!((leases.len(), hours), (1, 23));
    }
    node.must_have_no_image().await;
    // It can be pulled afterwards.
    gate.open();
    assert_eq!(node.pull(&name).await, Ok(image.id()));
    node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_server_that_sends_nothing_any_more_fails_the_pull() {
    let Some(node) = Node::with("pull_progress_timeout_s = 1").await else { return };
    let Some(registry) = Registry::start() else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let proxy = Proxy::start(&registry.address).await;
    proxy.when(&format!("blobs/{}", image.layers[0].digest()), When::Always, [Fault::Silence]);
    let error = node.pull(&proxy.name("a:1")).await.expect_err("stuck");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let want = format!(
        "no registry sent a byte for 1 s (image.pull_progress_timeout_s): layer {}",
        image.layers[0].digest()
    );
    assert!(error.message().contains(&want), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_registry_that_wants_credentials_is_named() {
    let Some(node) = Node::start().await else { return };
    let server = Canned::start(|_| {
        let challenge = [("WWW-Authenticate", "Bearer realm=\"http://secret.example/token\"")];
        answer("401 Unauthorized", &challenge, b"")
    })
    .await;
    let error = node.pull(&format!("{}/a:1", server.address)).await.expect_err("private");
    assert_eq!(error.kind(), Kind::Unknown);
    let want = format!("http://{}: its token server secret.example", server.address);
    assert!(error.message().contains(&want), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn schema_1_is_refused_by_name() {
    let Some(node) = Node::start().await else { return };
    let server = Canned::start(|_| {
        let headers = [("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")];
        answer("200 OK", &headers, b"{\"schemaVersion\":1}")
    })
    .await;
    let error = node.pull(&format!("{}/a:1", server.address)).await.expect_err("schema 1");
    assert_eq!(error.kind(), Kind::Unimplemented);
    assert!(error.message().contains("schema 1"), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_server_without_digest_headers_and_with_redirects_is_understood() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    // Storage on another host: the registry's own blobs, reached by redirects.
    let storage = format!("http://{}/v2/a/blobs/", registry.address.replace("127.0.0.1", "localhost"));
    let manifest = image.manifest.data.clone();
    let server = Canned::start(move |line| match line.split_once("/blobs/") {
        Some((_, rest)) => {
            let digest = rest.split(' ').next().unwrap_or_default();
            answer(
                "307 Temporary Redirect",
                &[("Location", &format!("{storage}{digest}?signature=secret"))],
                b"",
            )
        }
        None => answer("200 OK", &[("Content-Type", "application/json")], &manifest),
    })
    .await;
    let id = node.pull(&format!("{}/a:1", server.address)).await.expect("pulled");
    assert_eq!(id, image.id());
    let record = node.containerd.image(&format!("{}/a:1", server.address)).await.expect("recorded");
    assert_eq!(
        (record.target.media_type, record.target.digest),
        (fixture::MANIFEST.into(), image.manifest.digest())
    );
    assert!(server.requests().iter().all(|head| !head.to_lowercase().contains("authorization")));
}

#[tokio::test]
async fn endless_redirects_and_endless_manifests_end() {
    let Some(node) = Node::start().await else { return };
    let server = Canned::start(|line| {
        if line.contains("/v2/turn/") {
            return answer("302 Found", &[("Location", "/v2/turn/manifests/1?token=secret")], b"");
        }
        if line.contains("/v2/large/") && line.starts_with("GET") {
            return answer("200 OK", &[], &vec![b'x'; 5 << 20]);
        }
        if line.contains("/v2/broken/") {
            let body = br#"{"errors":[{"code":"UNKNOWN","message":"disk full"}]}"#;
            return answer("500 Internal Server Error", &[], body);
        }
        answer("200 OK", &[], b"")
    })
    .await;
    for (repository, want) in [
        ("turn", "redirects more than"),
        ("large", "sends more than 4194304 bytes"),
        ("broken", "answered 500 Internal Server Error"),
    ] {
        let name = format!("{}/{repository}:1", server.address);
        let error = node.pull(&name).await.expect_err(repository);
        assert!(error.message().contains(want), "{error}");
        assert!(!error.message().contains("secret"), "{error}");
    }
    node.must_have_no_image().await;
}
