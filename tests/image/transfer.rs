//! Pulls by containerd's Transfer service, where it has one that reads hosts.toml (2.x).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use longshore::containerd::{
    ContentInfo, Descriptor, ImageRecord, TransferPlatform, TransferProgress, TransferRequest,
};
use longshore::error::{Kind, Result};
use longshore::proto::cri;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::fixture::{self, PLATFORM};
use crate::node::{LIMIT, Node};
use crate::proxy::Proxy;
use crate::registry::{Access, PASSWORD, Registry, Settings, USER};

const TRANSFER: &str = "puller = \"transfer\"";

/// A node with lines of configuration; none, after saying why, where containerd does not
/// pull by itself.
async fn start(settings: &str) -> Option<Node> {
    let node = Node::with(settings).await?;
    if !transfers(&node) {
        eprintln!("skipped: this containerd has no Transfer service that reads hosts.toml");
        return None;
    }
    Some(node)
}

fn transfers(node: &Node) -> bool {
    node.containerd.capabilities().expect("connected").transfers_images()
}

impl Node {
    /// What containerd has logged.
    fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("containerd.log")).expect("a log")
    }

    /// Sets the image verifier: a shell script.
    fn verify_by(&self, script: &str) {
        let folder = self.path().join("verifiers");
        std::fs::create_dir_all(&folder).expect("folder");
        let file = folder.join("verifier");
        std::fs::write(&file, format!("#!/bin/sh\ncat >/dev/null\n{script}\n")).expect("file");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    }

    async fn log_in(&self, reference: &str, user: &str, password: &str, server: &str) -> Result<String> {
        let auth = cri::AuthConfig {
            username: user.into(),
            password: password.into(),
            server_address: server.into(),
            ..Default::default()
        };
        self.pull_as(reference, Some(auth), "overlayfs").await
    }

    /// Records with their labels and targets, content with its labels, snapshots.
    async fn everything(&self) -> (Vec<String>, BTreeMap<String, BTreeMap<String, String>>, Vec<String>) {
        let mut records = Vec::new();
        for name in self.ctr_list(&["images", "ls", "-q"]) {
            let record = self.containerd.image(&name).await.expect("recorded");
            let labels: BTreeMap<_, _> = record.labels.into_iter().collect();
            records.push(format!(
                "{name} {labels:?} {} {} {}",
                record.target.digest, record.target.media_type, record.target.size
            ));
        }
        let mut content = BTreeMap::new();
        for digest in self.ctr_list(&["content", "ls", "-q"]) {
            let ContentInfo { labels, .. } = self.containerd.content_info(&digest).await.expect("there");
            content.insert(digest, labels.into_iter().collect());
        }
        let mut snapshots = self.snapshots().await;
        snapshots.sort();
        (records, content, snapshots)
    }
}

#[tokio::test]
async fn a_containerd_without_it_is_refused_and_told_what_to_do() {
    let (Some(node), Some(registry)) = (Node::with(TRANSFER).await, Registry::start()) else { return };
    if transfers(&node) {
        return;
    }
    registry.push("a", "1", &fixture::unique());
    let error = node.pull(&registry.name("a:1")).await.expect_err("no Transfer");
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.message().contains("image.puller is \"transfer\""), "{error}");
    assert!(error.message().contains("set it to \"client\" or \"auto\""), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn an_image_is_the_same_as_by_our_own_pull() {
    let (Some(node), Some(own), Some(registry)) =
        (start(TRANSFER).await, Node::with("puller = \"client\"").await, Registry::start())
    else {
        return;
    };
    let (image, other) = (fixture::unique(), fixture::image_for("s390x", json!({}), vec![]));
    let index = fixture::index(&[("linux/s390x", &other), (&format!("linux/{PLATFORM}"), &image)]);
    registry.push_index("a/b", "1", &index, &[&image, &other]);
    let name = registry.name("a/b:1");
    assert_eq!(node.pull(&name).await.expect("pulled"), image.id());
    assert_eq!(own.pull(&name).await.expect("pulled"), image.id());
    assert_eq!(node.everything().await, own.everything().await);
    let shown = node.images.find(&name).expect("listed").to_cri();
    assert_eq!(shown, own.images.find(&name).expect("listed").to_cri());
    node.must_have_no_leftovers().await;
    // It can be started, and stays.
    let found = node.images.find(&name).expect("listed");
    node.collect_garbage().await;
    assert_eq!(node.images.unpacked(&found, "overlayfs", None).await.as_deref(), Ok(&*found.chain_id));
    assert!(node.snapshots().await.contains(&found.chain_id));
    // And by its digest.
    let by_digest = registry.name(&format!("a/b@{}", index.digest()));
    assert_eq!(node.pull(&by_digest).await.expect("pulled again"), image.id());
    assert_eq!(node.images.find(&name).expect("listed").to_cri().repo_digests, [by_digest]);
}

#[tokio::test]
async fn credentials_are_given_to_the_host_that_asks_and_shown_nowhere() {
    let (Some(node), Some(registry)) = (
        start(TRANSFER).await,
        Registry::with(&Settings { access: Access::Password, ..Settings::default() }),
    ) else {
        return;
    };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let name = registry.name("a:1");
    let other = format!("https://other.{}", registry.address);
    for (user, password, server) in
        [("", "", ""), (USER, "wrong-password", ""), (USER, PASSWORD, other.as_str())]
    {
        let error = node.log_in(&name, user, password, server).await.expect_err("private");
        assert_eq!(error.kind(), Kind::Unknown, "{error}");
        assert!(error.message().contains("uthoriz"), "{error}");
        for secret in [PASSWORD, "wrong-password"] {
            assert!(!error.message().contains(secret) && !node.log().contains(secret), "{error}");
        }
    }
    node.must_have_no_image().await;
    let server = format!("http://{}", registry.address);
    assert_eq!(node.log_in(&name, USER, PASSWORD, &server).await, Ok(image.id()));
    assert_eq!(node.log_in(&name, USER, PASSWORD, "").await, Ok(image.id()));
    assert!(!node.log().contains(PASSWORD));
    node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_registry_token_is_refused_since_it_cannot_be_given() {
    let (Some(node), Some(registry)) = (start(TRANSFER).await, Registry::start()) else { return };
    let auth = cri::AuthConfig { registry_token: "hunter2".into(), ..Default::default() };
    let name = registry.name("a:1");
    let error = node.pull_as(&name, Some(auth), "overlayfs").await.expect_err("no way to give it");
    assert_eq!(error.kind(), Kind::Unimplemented);
    assert!(error.message().contains("registry token") && !error.message().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_mirror_of_hosts_toml_is_asked() {
    let (Some(node), Some(registry)) = (start(TRANSFER).await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let gate = Proxy::start(&registry.address).await;
    let hosts = format!(
        "server = \"https://upstream.invalid\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n",
        gate.address
    );
    node.configure_registry("registry.example:5000", &hosts);
    assert_eq!(node.pull("registry.example:5000/a:1").await, Ok(image.id()));
    assert!(gate.count("?ns=registry.example%3A5000 ") >= 4, "HEAD, manifest, config and layers");
    let shown = node.images.find(&image.id()).expect("listed").to_cri();
    assert_eq!(shown.repo_tags, ["registry.example:5000/a:1"]);
    // containerd would go on without a file that it cannot read.
    node.configure_registry("registry.example:5000", "[host");
    let error = node.pull("registry.example:5000/a:1").await.expect_err("no TOML");
    assert!(error.message().contains("hosts.toml"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_and_who_does_not_answer_are_told_apart() {
    let (Some(node), Some(registry)) = (start(TRANSFER).await, Registry::start()) else { return };
    let other = fixture::image_for("s390x", json!({}), vec![]);
    registry.push("a", "1", &other);
    registry.push_index("b", "1", &fixture::index(&[("linux/s390x", &other)]), &[&other]);
    for rest in ["a:2", "c:1"] {
        let error = node.pull(&registry.name(rest)).await.expect_err(rest);
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        assert!(error.message().contains(&registry.name(rest)), "{error}");
    }
    for name in ["127.0.0.1:1/a:1", "registry.invalid/a:1"] {
        let error = node.pull(name).await.expect_err("nobody listens");
        assert_eq!(error.kind(), Kind::Unknown);
        assert!(
            error.message().starts_with(&format!("RegistryUnavailable: pull image {name:?}: ")),
            "{error}"
        );
    }
    for repository in ["b"] {
        let error =
            node.pull(&registry.name(&format!("{repository}:1"))).await.expect_err("another platform");
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert!(error.message().contains("no matching platform"), "{error}");
    }
    node.must_have_no_image().await;
}

#[tokio::test]
async fn what_is_not_what_its_digest_says_leaves_nothing() {
    let (Some(node), Some(registry)) = (start(TRANSFER).await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let layer = &image.layers[1];
    std::fs::write(registry.blob_file(&layer.digest()), vec![b'x'; layer.data.len()]).expect("file");
    let (plain, _) = fixture::file("a", "b");
    registry.push("b", "1", &fixture::image(vec![(plain, fixture::digest(b"something else"))]));
    for rest in ["a:1", "b:1"] {
        let error = node.pull(&registry.name(rest)).await.expect_err("corrupt");
        assert_eq!(error.kind(), Kind::Unknown, "{error}");
        // The collection that the pull asked for has taken everything already.
        assert!(node.ctr_list(&["content", "ls", "-q"]).is_empty());
        node.must_have_no_image().await;
    }
}

/// A node whose registry `registry.example:5000` is a gate that stops in the second layer of
/// the image `registry.example:5000/a:1`. containerd writes a megabyte at a time.
async fn stopped(settings: &str) -> Option<(Node, Registry, Proxy, fixture::Image)> {
    let (node, registry) = (start(settings).await?, Registry::start()?);
    let image = fixture::image(vec![fixture::random(100_000), fixture::random(3_000_000)]);
    registry.push("a", "1", &image);
    let second = format!("blobs/{}", image.layers[1].digest());
    let gate = Proxy::that_stops(&registry.address, &second, 2_000_000).await;
    node.configure_registry("registry.example:5000", &format!("server = \"http://{}\"", gate.address));
    Some((node, registry, gate, image))
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_is_aborted_and_leaves_nothing() {
    let Some((node, _registry, gate, image)) = stopped(TRANSFER).await else { return };
    {
        let mut pull = Box::pin(node.pull("registry.example:5000/a:1"));
        tokio::select! {
            ended = &mut pull => panic!("the gate is closed: {ended:?}"),
            () = gate.reached() => {}
        }
    }
    node.must_have_no_leftovers().await;
    // No other collection was needed.
    assert!(node.ctr_list(&["content", "ls", "-q"]).is_empty());
    node.must_have_no_image().await;
    gate.open();
    assert_eq!(node.pull("registry.example:5000/a:1").await, Ok(image.id()));
    node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn a_server_that_sends_nothing_any_more_fails_the_pull() {
    let settings = format!("{TRANSFER}\npull_progress_timeout_s = 1");
    let Some((node, _registry, _gate, _)) = stopped(&settings).await else { return };
    let error = node.pull("registry.example:5000/a:1").await.expect_err("stuck");
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
    assert!(error.message().contains("no registry sent a byte for 1 s"), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_pull_that_is_aborted_does_not_take_what_another_needs() {
    let Some((node, registry, gate, image)) = stopped(TRANSFER).await else { return };
    // Other credentials: a pull of its own, of the same image.
    let other = fixture::image(vec![fixture::random(10), fixture::random(10)]);
    registry.push("b", "1", &other);
    let mut second = Box::pin(node.log_in("registry.example:5000/a:1", "x", "y", ""));
    {
        let mut first = Box::pin(node.pull("registry.example:5000/a:1"));
        tokio::select! {
            ended = &mut first => panic!("the gate is closed: {ended:?}"),
            ended = &mut second => panic!("the gate is closed: {ended:?}"),
            () = gate.reached() => {}
        }
        // Both wait for the same layer now, or the second will.
        tokio::select! {
            ended = &mut first => panic!("the gate is closed: {ended:?}"),
            ended = &mut second => panic!("the gate is closed: {ended:?}"),
            pulled = node.pull("registry.example:5000/b:1") => assert_eq!(pulled, Ok(other.id())),
        }
    }
    gate.open();
    assert_eq!(second.await, Ok(image.id()));
    node.must_have_no_leftovers().await;
    node.collect_garbage().await;
    let found = node.images.find("registry.example:5000/a:1").expect("listed");
    assert!(node.snapshots().await.contains(&found.chain_id));
}

#[tokio::test]
async fn a_snapshotter_that_it_does_not_unpack_for_is_unpacked_for_here() {
    let (Some(node), Some(registry)) = (start(TRANSFER).await, Registry::start()) else { return };
    for repository in ["a", "b"] {
        let image = fixture::unique();
        registry.push(repository, "1", &image);
        let name = registry.name(&format!("{repository}:1"));
        assert_eq!(node.pull_for(&name, "native").await, Ok(image.id()));
        node.must_have_no_leftovers().await;
        node.collect_garbage().await;
        let chain_id = &node.images.find(&name).expect("listed").chain_id;
        node.containerd.snapshot("native", chain_id).await.expect("unpacked and kept");
        node.containerd.snapshot("overlayfs", chain_id).await.expect_err("not asked for");
        assert_eq!(node.pull(&name).await, Ok(image.id()));
        node.containerd.snapshot("overlayfs", chain_id).await.expect("unpacked");
    }
    // It is asked once a connection.
    assert!(!node.containerd.capabilities().expect("connected").may_unpack_by_transfer("native"));
    assert_eq!(node.log().matches("Unpack configuration not supported").count(), 1);
}

#[tokio::test]
async fn verifiers_are_asked_where_there_are_any() {
    let (Some(node), Some(registry)) = (start("").await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let name = registry.name("a:1");
    let said = node.path().join("said");
    let show = format!("echo \"$@\" >>{}", said.display());
    node.verify_by(&format!("{show}\necho not signed\nexit 1"));
    let error = node.pull(&name).await.expect_err("refused");
    assert_eq!(error.kind(), Kind::Unknown);
    assert!(error.message().starts_with("SignatureValidationFailed: pull image"), "{error}");
    assert!(error.message().contains("not signed"), "{error}");
    node.must_have_no_image().await;
    node.verify_by(&format!("{show}\nexit 0"));
    assert_eq!(node.pull(&name).await, Ok(image.id()));
    let said = std::fs::read_to_string(said).expect("asked");
    let want = format!("-name {name} -digest {} ", image.manifest.digest());
    assert_eq!(said.matches(&want).count(), 2, "{said}");
}

#[tokio::test]
async fn without_verifiers_we_pull_ourselves() {
    let (Some(node), Some(registry)) = (Node::start().await, Registry::start()) else { return };
    let image = fixture::unique();
    registry.push("a", "1", &image);
    let gate = Proxy::start(&registry.address).await;
    node.configure_registry("registry.example:5000", &format!("server = \"http://{}\"", gate.address));
    assert_eq!(node.pull("registry.example:5000/a:1").await, Ok(image.id()));
    assert!(!node.log().contains("registry.example"), "containerd knows nothing of it");
}

#[tokio::test]
async fn the_record_of_a_pull_under_way_is_no_image() {
    let Some(node) = Node::start().await else { return };
    let target = Descriptor {
        media_type: fixture::MANIFEST.into(),
        digest: fixture::digest(b"nothing"),
        size: 7,
        ..Default::default()
    };
    let record = ImageRecord { name: "longshore-image-0123".into(), labels: Default::default(), target };
    node.containerd.put_image(record, None).await.expect("recorded");
    node.images.load().await.expect("loaded");
    node.images.refresh("longshore-image-0123").await.expect("refreshed");
    assert!(node.images.list().is_empty());
    let record = node.containerd.image("longshore-image-0123").await.expect("left alone");
    assert!(record.labels.is_empty());
}

#[tokio::test]
async fn progress_arrives_up_to_the_end() {
    let Some((node, _registry, gate, image)) = stopped(TRANSFER).await else { return };
    node.containerd.create_lease("test", Default::default()).await.expect("lease");
    let hosts_dir = node.path().join("certs.d");
    let platform =
        TransferPlatform { os: "linux".into(), architecture: PLATFORM.into(), ..Default::default() };
    let request = TransferRequest {
        reference: "registry.example:5000/a:1",
        record: "pulled",
        hosts_dir: hosts_dir.to_str(),
        platforms: vec![platform],
        snapshotter: Some("overlayfs"),
        lease: "test",
        ..Default::default()
    };
    let (sender, mut receiver) = mpsc::channel::<TransferProgress>(1);
    let readers = TaskTracker::new();
    let follow = async {
        let mut seen = Vec::new();
        while let Some(told) = receiver.recv().await {
            if told.event == "downloading" {
                gate.open();
            }
            seen.push(told);
        }
        seen
    };
    let both = async { tokio::join!(node.containerd.transfer_image(request, sender, &readers), follow) };
    let (ended, seen) = tokio::time::timeout(LIMIT, both).await.expect("it ends");
    ended.expect("pulled");
    let layer = format!("layer-{}", image.layers[1].digest());
    let size = image.layers[1].data.len() as u64;
    let of_layer: Vec<_> = seen.iter().filter(|told| told.name == layer).collect();
    let downloading = of_layer.iter().find(|told| told.event == "downloading").expect("half of it was there");
    assert!(downloading.current > 0 && downloading.current < size && downloading.total == size);
    assert_eq!(downloading.parents, [format!("manifest-{}", image.manifest.digest())]);
    // 2.3 goes on to tell of the unpacking.
    let is_end = |told: &TransferProgress| ["complete", "extracted"].contains(&told.event.as_str());
    assert!(of_layer.iter().any(|told| is_end(told) && told.current == size), "{seen:?}");
    assert!(seen.iter().any(|told| told.event == "saved" && told.name == "pulled"));
    assert!(seen.iter().any(|told| told.event.starts_with("Completed pull")), "{seen:?}");
    readers.close();
    readers.wait().await;
    assert_eq!(
        node.containerd.image("pulled").await.expect("recorded").target.digest,
        image.manifest.digest()
    );
}

#[tokio::test]
async fn a_transfer_that_is_dropped_says_when_containerd_is_through() {
    let Some((node, _registry, gate, _)) = stopped(TRANSFER).await else { return };
    node.containerd.create_lease("test", Default::default()).await.expect("lease");
    let hosts_dir = node.path().join("certs.d");
    let request = TransferRequest {
        reference: "registry.example:5000/a:1",
        record: "pulled",
        hosts_dir: hosts_dir.to_str(),
        lease: "test",
        ..Default::default()
    };
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let readers = TaskTracker::new();
    tokio::select! {
        ended = node.containerd.transfer_image(request, sender, &readers) => panic!("the gate is closed: {ended:?}"),
        () = gate.reached() => {}
    }
    assert_eq!(readers.len(), 1);
    readers.close();
    tokio::time::timeout(LIMIT, readers.wait()).await.expect("containerd lets go");
    node.containerd.delete_lease("test", true).await.expect("collected");
    node.must_have_no_image().await;
}
