//! Several servers for one registry: who is asked for what, and who next.

use std::net::SocketAddr;

use longshore::error::Kind;
use rustix::net::{AddressFamily, SocketType};

use crate::bench::{Bench, Place, must_be_clean};
use crate::fixture;
use crate::http::answer;
use crate::proxy::{Fault, Proxy, When};
use crate::server::Canned;

/// A registry that is nobody's address.
const DOMAIN: &str = "registry.example";

/// hosts.toml for mirrors, each with lines of its own, and an upstream.
fn hosts(mirrors: &[(&str, &str)], upstream: &str) -> String {
    let mirrors = mirrors.iter().map(|(address, lines)| format!("[host.\"http://{address}\"]\n{lines}\n"));
    format!("server = \"http://{upstream}\"\n{}", mirrors.collect::<String>())
}

#[tokio::test]
async fn a_mirror_that_fails_is_followed_by_the_upstream_whatever_it_does() {
    let Some(bench) = Bench::start().await else { return };
    let say = |status: &str| Fault::Say(answer(status, &[("Retry-After", "0")], b""));
    let faults = [
        ("missing", say("404 Not Found")),
        ("forbidden", say("403 Forbidden")),
        ("unauthorized", say("401 Unauthorized")),
        ("busy", say("429 Too Many Requests")),
        ("internal", say("500 Internal Server Error")),
        ("garbage", Fault::Say(b"\0\0\0\n\n".to_vec())),
        ("closed", Fault::Close),
        ("half", Fault::Cut(60)),
        ("other", Fault::Flip(30)),
        ("short", Fault::Shorten(60)),
        ("endless", Fault::Endless),
    ];
    let cases = faults.iter().flat_map(|fault| {
        [Place::Tag, Place::Manifest, Place::Config, Place::Layer].map(|place| (fault, place))
    });
    let pulls = cases.map(|((name, fault), place)| {
        let bench = &bench;
        async move {
            // A question without a body cannot go wrong in the middle of one.
            if place == Place::Tag && !matches!(fault, Fault::Say(_) | Fault::Close) {
                return;
            }
            let repository = format!("{name}/{place:?}").to_lowercase();
            let image = bench.push(&repository);
            bench.proxy.when(&place.line(&repository, &image), When::Always, [fault.clone()]);
            let pulled = bench.node.pull(&format!("{DOMAIN}/{repository}:1")).await;
            assert_eq!(pulled, Ok(image.id()), "{repository}");
        }
    });
    let file = hosts(&[(&bench.proxy.address, "")], &bench.registry.address);
    bench.node.configure_registry(DOMAIN, &file);
    futures_util::future::join_all(pulls).await;
    bench.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn servers_that_all_fail_are_all_named() {
    let Some(bench) = Bench::start().await else { return };
    bench.push("a");
    let broken = answer("500 Internal Server Error", &[], b"<html>secret</html>");
    bench.proxy.when("/v2/a/", When::Always, [Fault::Say(broken)]);
    let file = hosts(&[("127.0.0.1:1", ""), (&bench.proxy.address, "")], "127.0.0.1:2");
    bench.node.configure_registry(DOMAIN, &file);
    let error = bench.node.pull("registry.example/a:1").await.expect_err("nobody has it");
    assert_eq!(error.kind(), Kind::Unknown);
    for part in [
        "registry.example/a:1",
        "http://127.0.0.1:1: Connection refused",
        &format!("http://{}: answered 500 Internal Server Error", bench.proxy.address),
        "http://127.0.0.1:2: Connection refused",
    ] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    assert!(!error.message().contains("RegistryUnavailable"), "one is there: {error}");
    must_be_clean(&error, &[]);
    bench.node.must_have_no_image().await;
}

#[tokio::test]
async fn servers_are_asked_only_for_what_they_can() {
    let Some(bench) = Bench::start().await else { return };
    let image = bench.push("a");
    let proxies = [&bench.registry.address; 4].map(|address| Proxy::start(address));
    let [pushes, pulls, resolves, upstream] =
        <[Proxy; 4]>::try_from(futures_util::future::join_all(proxies).await)
            .unwrap_or_else(|_| unreachable!("four"));
    let file = hosts(
        &[
            (&pushes.address, "capabilities = [\"push\"]"),
            (&pulls.address, "capabilities = [\"pull\"]"),
            (&resolves.address, "capabilities = [\"resolve\"]"),
        ],
        &upstream.address,
    );
    bench.node.configure_registry(DOMAIN, &file);
    assert_eq!(bench.node.pull("registry.example/a:1").await, Ok(image.id()));
    assert_eq!(pushes.count(""), 0);
    assert_eq!(pulls.count("/manifests/1"), 0);
    assert!(pulls.count(&image.manifest.digest()) >= 1 && pulls.count("/blobs/") == 3);
    assert!(resolves.count("/manifests/1") >= 1 && resolves.count("/blobs/") == 0);
    assert_eq!(upstream.count(""), 0);
    // A digest is no question that needs a judge.
    bench.node.images.remove(&image.id()).await.expect("removed");
    let resolved = resolves.count("");
    let by_digest = format!("registry.example/a@{}", image.manifest.digest());
    assert_eq!(bench.node.pull(&by_digest).await, Ok(image.id()));
    assert_eq!((resolves.count(""), upstream.count("")), (resolved, 0));
}

#[tokio::test]
async fn a_mirror_has_its_own_path_and_headers() {
    let Some(bench) = Bench::start().await else { return };
    let image = bench.push("a");
    let deep = Proxy::under(&bench.registry.address, "/cache/hub/api").await;
    let file = hosts(
        &[(
            &format!("{}/cache/hub/api/", deep.address),
            "override_path = true\nheader = { X-Token = \"header-secret\", x-list = [\"1\", \"2\"] }",
        )],
        &bench.proxy.address,
    );
    bench.node.configure_registry(DOMAIN, &file);
    assert_eq!(bench.node.pull("registry.example/a:1").await, Ok(image.id()));
    assert_eq!(bench.proxy.count(""), 0);
    for seen in deep.seen("") {
        assert!(seen.head.line.contains(" /cache/hub/api/a/"), "{}", seen.head.line);
        assert!(seen.head.line.contains("?ns=registry.example"), "{}", seen.head.line);
        let told = seen.head.text().to_lowercase();
        assert!(told.contains("x-token: header-secret\r\n"), "{told}");
        assert!(told.contains("x-list: 1") && told.contains('2'), "{told}");
    }
    // Without a path of its own it is below /v2, and its headers are not anybody else's.
    bench.node.images.remove(&image.id()).await.expect("removed");
    let elsewhere = Canned::start(|_| answer("403 Forbidden", &[], b"")).await;
    let location = format!("http://{}/storage", elsewhere.address.replace("127.0.0.1", "localhost"));
    let redirect = answer("307 Temporary Redirect", &[("Location", &location)], b"");
    bench.proxy.when("/blobs/", When::Always, [Fault::Say(redirect)]);
    let lines = "[header]\nx-token = \"header-secret\"";
    bench.node.configure_registry(DOMAIN, &format!("server = \"http://{}\"\n{lines}", bench.proxy.address));
    let error = bench.node.pull("registry.example/a:1").await.expect_err("forbidden there");
    must_be_clean(&error, &["header-secret"]);
    assert!(bench.proxy.told().contains("header-secret"));
    let told = elsewhere.requests().concat();
    assert!(!told.is_empty() && !told.contains("header-secret"), "{told}");
    bench.node.must_have_no_image().await;
}

#[tokio::test]
async fn a_mirror_that_does_not_accept_connections_is_given_up_in_time() {
    let Some(bench) = Bench::start().await else { return };
    let image = bench.push("a");
    // A queue of connections that nobody accepts, and that is full.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("port");
    rustix::net::listen(&socket, 0).expect("listens");
    let listener = std::net::TcpListener::from(socket);
    let address = listener.local_addr().expect("address");
    let _queue = std::net::TcpStream::connect(address).expect("the queue has one place");
    let full = std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(50));
    assert!(full.is_err(), "the queue is full");
    let file = hosts(&[(&address.to_string(), "dial_timeout = \"100ms\"")], &bench.proxy.address);
    bench.node.configure_registry(DOMAIN, &file);
    assert_eq!(bench.node.pull("registry.example/a:1").await, Ok(image.id()));
    bench.node.images.remove(&image.id()).await.expect("removed");
    let file = hosts(&[], &address.to_string());
    bench.node.configure_registry(DOMAIN, &format!("dial_timeout = \"100ms\"\n{file}"));
    let error = bench.node.pull("registry.example/a:1").await.expect_err("nobody accepts");
    assert!(error.message().starts_with("RegistryUnavailable: "), "{error}");
    assert!(error.message().contains(&format!("http://{address}: ")), "{error}");
    bench.node.must_have_no_image().await;
}

#[tokio::test]
async fn layers_may_be_elsewhere_than_in_the_registry() {
    let Some(bench) = Bench::start().await else { return };
    let (layer, diff_id) = fixture::random(100_000);
    let data = layer.data.clone();
    let elsewhere = Canned::start(move |line| match line.split(' ').nth(1) {
        Some("/layer?signature=secret") => answer("200 OK", &[], &data),
        _ => answer("404 Not Found", &[], b""),
    })
    .await;
    let url = |path: &str| format!("http://{}/{path}", elsewhere.address);
    let foreign = |media_type: &str, urls: Vec<String>| {
        let layer = fixture::Blob { media_type: media_type.into(), data: layer.data.clone(), urls };
        fixture::image(vec![fixture::file("etc/hello", "world"), (layer, diff_id.clone())])
    };
    let oci = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let docker = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for (repository, media_type) in [("oci", oci), ("docker", docker)] {
        let image = foreign(media_type, vec![url("nothing"), url("layer?signature=secret")]);
        bench.registry.push(repository, "1", &image);
        std::fs::remove_file(bench.registry.blob_file(&layer.digest())).expect("not in the registry");
        let pulled = bench.node.pull(&bench.proxy.name(&format!("{repository}:1"))).await;
        assert_eq!(pulled, Ok(image.id()), "{repository}");
        bench.node.images.remove(&image.id()).await.expect("removed");
    }
    // Where those places do not have it, the registry may.
    let image = foreign(oci, vec![url("nothing")]);
    bench.registry.push("both", "1", &image);
    assert_eq!(bench.node.pull(&bench.proxy.name("both:1")).await, Ok(image.id()));
    bench.node.images.remove(&image.id()).await.expect("removed");
    // Nobody has it; and a path on this machine is none.
    let urls = vec![url("nothing?signature=secret"), "file:///etc/passwd".into(), "nonsense".into()];
    let image = foreign(oci, urls);
    bench.registry.push("none", "1", &image);
    std::fs::remove_file(bench.registry.blob_file(&layer.digest())).expect("not in the registry");
    let error = bench.node.pull(&bench.proxy.name("none:1")).await.expect_err("nowhere");
    assert!(error.message().contains(&layer.digest()), "{error}");
    assert!(error.message().contains(&elsewhere.address), "{error}");
    must_be_clean(&error, &["signature"]);
    bench.node.must_have_no_image().await;
}
