//! https, with certificates of the test's own.

use std::path::{Path, PathBuf};

use longshore::error::Kind;

use crate::alone;
use crate::certificate::{Authority, Pair};
use crate::fixture::{self, Image};
use crate::node::Node;
use crate::registry::{Registry, Settings};

/// A registry that speaks TLS, with one image as `a:1`.
struct Secure {
    registry: Registry,
    image: Image,
}

impl Secure {
    /// With `clients` only for clients that have a certificate of that authority.
    fn start(server: Pair, clients: Option<PathBuf>) -> Option<Secure> {
        let registry = Registry::with(&Settings { tls: Some(server), clients, ..Settings::default() })?;
        let image = fixture::unique();
        registry.push("a", "1", &image);
        Some(Secure { registry, image })
    }

    fn name(&self) -> String {
        self.registry.name("a:1")
    }

    /// Its hosts.toml, with `lines` for it.
    fn hosts(&self, lines: &str) -> String {
        format!("server = \"https://{}\"\n{lines}\n", self.registry.address)
    }
}

fn copy(from: &Path, folder: &Path, name: &str) {
    std::fs::copy(from, folder.join(name)).expect("copied");
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_refused() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let Some(secure) = Secure::start(authority.server(), None) else { return };
    node.configure_registry(&secure.registry.address, &secure.hosts(""));
    let error = node.pull(&secure.name()).await.expect_err("not trusted");
    assert_eq!(error.kind(), Kind::Unknown);
    assert!(error.message().contains("TLS: invalid peer certificate"), "{error}");
    assert!(!error.message().contains("RegistryUnavailable"), "it is there: {error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_server_that_the_system_trusts_is_pulled_from() {
    let Some(authority) = Authority::new() else { return };
    let Some(secure) = Secure::start(authority.server(), None) else { return };
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("hosts.toml"), secure.hosts("")).expect("file");
    let certificate = authority.certificate();
    // The system's authorities are read once a process: a process of its own trusts ours.
    let environment = [("SSL_CERT_FILE", certificate.to_str().expect("UTF-8"))];
    let Some(pulled) = alone::pull(&secure.name(), Some(folder.path()), &environment).await else { return };
    assert_eq!(pulled, Ok(secure.image.id()));
}

#[tokio::test]
async fn an_authority_of_hosts_toml_is_trusted_for_its_server_alone() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let (Some(first), Some(second)) =
        (Secure::start(authority.server(), None), Secure::start(authority.server(), None))
    else {
        return;
    };
    let address = &first.registry.address;
    copy(&authority.certificate(), &node.registry_folder(address), "own.pem");
    let absolute = authority.certificate().display().to_string();
    // A relative path is one in the folder of the file.
    for line in [
        format!("ca = \"{absolute}\""),
        "ca = \"own.pem\"".to_owned(),
        format!("ca = [\"own.pem\", \"{absolute}\"]"),
    ] {
        node.configure_registry(address, &first.hosts(&line));
        assert_eq!(node.pull(&first.name()).await, Ok(first.image.id()), "{line}");
        node.images.remove(&first.name()).await.expect("removed");
    }
    node.configure_registry(&second.registry.address, &second.hosts(""));
    let error = node.pull(&second.name()).await.expect_err("not trusted for this one");
    assert!(error.message().contains("TLS: invalid peer certificate"), "{error}");
    // The file is read anew for each pull, and a connection from before does not count.
    node.configure_registry(address, &first.hosts(""));
    let error = node.pull(&first.name()).await.expect_err("not trusted any more");
    assert!(error.message().contains("TLS: invalid peer certificate"), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_server_need_not_be_verified_if_the_file_says_so() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let Some(secure) = Secure::start(authority.server(), None) else { return };
    let address = &secure.registry.address;
    node.configure_registry(address, &secure.hosts("skip_verify = true"));
    assert_eq!(node.pull(&secure.name()).await, Ok(secure.image.id()));
    // Nor is it the key of another server.
    let other = format!("[host.\"https://{address}\"]\n[host.\"http://127.0.0.1:1\"]\nskip_verify = true");
    node.configure_registry(address, &secure.hosts(&other));
    let error = node.pull(&secure.name()).await.expect_err("verified again");
    assert!(error.message().contains("TLS: invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn a_server_that_wants_to_know_its_clients_gets_their_certificate() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let clients = Some(authority.certificate());
    let Some(secure) = Secure::start(authority.server(), clients) else { return };
    let address = &secure.registry.address;
    let folder = node.registry_folder(address);
    let client = authority.client();
    copy(&authority.certificate(), &folder, "ca.pem");
    copy(&client.certificate, &folder, "own.pem");
    copy(&client.key, &folder, "own.key");
    let read = |path: &Path| std::fs::read_to_string(path).expect("file");
    std::fs::write(folder.join("both.pem"), read(&client.certificate) + &read(&client.key)).expect("file");
    node.configure_registry(address, &secure.hosts("ca = \"ca.pem\""));
    let error = node.pull(&secure.name()).await.expect_err("unknown");
    assert_eq!(error.kind(), Kind::Unknown);
    assert!(error.message().contains("TLS: ") && error.message().contains(address), "{error}");
    node.must_have_no_image().await;
    for line in ["client = [[\"own.pem\", \"own.key\"]]", "client = \"both.pem\"", "client = [\"both.pem\"]"]
    {
        node.configure_registry(address, &secure.hosts(&format!("ca = \"ca.pem\"\n{line}")));
        assert_eq!(node.pull(&secure.name()).await, Ok(secure.image.id()), "{line}");
        node.images.remove(&secure.name()).await.expect("removed");
    }
}

#[tokio::test]
async fn a_folder_of_certificates_is_enough() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let clients = Some(authority.certificate());
    let Some(secure) = Secure::start(authority.server(), clients) else { return };
    // As Docker has it: no hosts.toml (IMG-25).
    let folder = node.registry_folder(&secure.registry.address);
    let client = authority.client();
    copy(&authority.certificate(), &folder, "any.crt");
    copy(&client.certificate, &folder, "own.cert");
    copy(&client.key, &folder, "own.key");
    assert_eq!(node.pull(&secure.name()).await, Ok(secure.image.id()));
}

#[tokio::test]
async fn certificates_that_cannot_be_read_are_named() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let client = authority.client();
    let domain = "registry.example";
    let folder = node.registry_folder(domain);
    std::fs::write(folder.join("empty.pem"), "").expect("file");
    copy(&client.certificate, &folder, "own.pem");
    for (line, file) in [
        ("ca = \"nothing.pem\"", "nothing.pem"),
        ("ca = \"empty.pem\"", "empty.pem"),
        ("client = [[\"own.pem\", \"nothing.key\"]]", "nothing.key"),
        ("client = [[\"own.pem\", \"empty.pem\"]]", "empty.pem"),
        ("client = \"own.pem\"", "own.pem"),
    ] {
        node.configure_registry(domain, &format!("server = \"https://127.0.0.1:1\"\n{line}"));
        let error = node.pull("registry.example/a:1").await.expect_err(line);
        assert!(error.message().contains(folder.join(file).to_str().expect("UTF-8")), "{line}: {error}");
    }
    node.must_have_no_image().await;
}

#[tokio::test]
async fn plain_and_tls_are_not_mistaken_for_each_other() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let (Some(plain), Some(secure)) = (Registry::start(), Secure::start(authority.server(), None)) else {
        return;
    };
    node.configure_registry(&plain.address, &format!("server = \"https://{}\"", plain.address));
    let error = node.pull(&plain.name("a:1")).await.expect_err("no TLS there");
    assert!(error.message().contains(&format!("https://{}: TLS: ", plain.address)), "{error}");
    // Where it is configured as plain it is spoken to so.
    node.configure_registry(
        &secure.registry.address,
        &format!("server = \"http://{}\"", secure.registry.address),
    );
    let error = node.pull(&secure.name()).await.expect_err("TLS there");
    let want = format!("http://{}: answered 400 Bad Request", secure.registry.address);
    assert!(error.message().contains(&want), "{error}");
    node.must_have_no_image().await;
}

#[tokio::test]
async fn a_registry_on_this_machine_is_spoken_to_as_it_speaks() {
    let (Some(node), Some(authority)) = (Node::start().await, Authority::new()) else { return };
    let (Some(plain), Some(secure)) = (Registry::start(), Secure::start(authority.server(), None)) else {
        return;
    };
    // Nothing is configured for either (IMG-23).
    let image = fixture::unique();
    plain.push("a", "1", &image);
    assert_eq!(node.pull(&plain.name("a:1")).await, Ok(image.id()));
    assert_eq!(node.pull(&secure.name()).await, Ok(secure.image.id()));
    // An authority does not make a plain one speak TLS, nor is it in the way.
    node.images.remove(&image.id()).await.expect("removed");
    copy(&authority.certificate(), &node.registry_folder(&plain.address), "any.crt");
    assert_eq!(node.pull(&plain.name("a:1")).await, Ok(image.id()));
}
