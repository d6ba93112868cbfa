//! Registries that want user and password, and who is told them.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use longshore::error::{Error, Kind, Result};
use longshore::proto::cri::AuthConfig;

use crate::bench::must_be_clean;
use crate::fixture::{self, Image};
use crate::http::answer;
use crate::node::Node;
use crate::proxy::{Fault, Proxy, When};
use crate::registry::{Access, PASSWORD, Registry, Settings, USER};
use crate::server::Canned;

/// A password that is not the right one.
const WRONG: &str = "wrong-horse-battery";

/// A registry that only [`USER`] may pull from, behind a proxy, with one image as `a:1`.
struct Private {
    node: Node,
    registry: Registry,
    proxy: Proxy,
    image: Image,
}

impl Private {
    async fn start() -> Option<Private> {
        let registry = Registry::with(&Settings { access: Access::Password, ..Settings::default() })?;
        let (node, proxy) = (Node::start().await?, Proxy::start(&registry.address).await);
        let image = fixture::unique();
        registry.push("a", "1", &image);
        Some(Private { node, registry, proxy, image })
    }

    async fn pull(&self, auth: AuthConfig) -> Result<String> {
        self.node.pull_with(&self.proxy.name("a:1"), auth).await
    }

    /// It works, and is as if nothing had been pulled afterwards.
    async fn must_pull(&self, auth: AuthConfig) {
        assert_eq!(self.pull(auth).await, Ok(self.image.id()));
        self.node.images.remove(&self.image.id()).await.expect("removed");
    }

    /// The registry refuses, and nothing secret is in the error.
    async fn must_refuse(&self, auth: AuthConfig) -> Error {
        let error = self.pull(auth).await.expect_err("refused");
        self.must_be_refusal(&error);
        error
    }

    fn must_be_refusal(&self, error: &Error) {
        assert_eq!(error.kind(), Kind::Unknown, "{error}");
        let message = error.message();
        assert!(message.contains("401") && message.to_lowercase().contains("unauthorized"), "{message}");
        assert!(message.contains(&self.proxy.name("a:1")), "{message}");
        must_be_clean(error, &[PASSWORD, WRONG, &STANDARD.encode(format!("{USER}:{PASSWORD}"))]);
    }
}

/// A user's name and password.
fn login(name: &str, password: &str) -> AuthConfig {
    AuthConfig { username: name.into(), password: password.into(), ..Default::default() }
}

/// The same as docker's configuration file has it.
fn encoded(text: &str) -> AuthConfig {
    AuthConfig { auth: STANDARD.encode(text), ..Default::default() }
}

#[tokio::test]
async fn a_user_is_told_to_a_registry_that_asks_and_not_before() {
    let Some(private) = Private::start().await else { return };
    private.must_pull(login(USER, PASSWORD)).await;
    let seen = private.proxy.seen("");
    assert_eq!(seen[0].head.header("authorization"), None, "nobody had asked");
    // Once asked it is told at once.
    let asked = seen.iter().filter(|seen| seen.head.header("authorization").is_none()).count();
    assert_eq!(asked, 1, "{}", private.proxy.told());
    for auth in [
        encoded(&format!("{USER}:{PASSWORD}")),
        encoded(&format!("{USER}:{PASSWORD}\0\0")),
        AuthConfig { auth: "ignored".into(), ..login(USER, PASSWORD) },
    ] {
        private.must_pull(auth).await;
    }
    private.node.must_have_no_image().await;
}

#[tokio::test]
async fn wrong_credentials_and_none_are_refused_without_being_shown() {
    let Some(private) = Private::start().await else { return };
    for auth in [
        AuthConfig::default(),
        login(USER, WRONG),
        login("eve", PASSWORD),
        encoded(&format!("{USER}:{WRONG}")),
        AuthConfig { identity_token: WRONG.into(), ..Default::default() },
        AuthConfig { registry_token: WRONG.into(), ..Default::default() },
    ] {
        let before = private.proxy.count("");
        private.must_refuse(auth).await;
        assert!(private.proxy.count("") - before <= 3, "it is not asked again and again");
    }
    let error = private.node.pull(&private.proxy.name("a:1")).await.expect_err("nobody");
    private.must_be_refusal(&error);
    // What is no text of user and password is refused before anybody is asked.
    let before = private.proxy.count("");
    for auth in ["@@@".to_owned(), STANDARD.encode(WRONG), STANDARD.encode([0xff, 0xfe])] {
        let error = private.pull(AuthConfig { auth: auth.clone(), ..Default::default() }).await;
        let error = error.expect_err("unreadable");
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        must_be_clean(&error, &[WRONG, &auth]);
    }
    assert_eq!(private.proxy.count(""), before);
    private.node.must_have_no_image().await;
}

#[tokio::test]
async fn credentials_for_a_server_are_told_to_no_other() {
    let Some(private) = Private::start().await else { return };
    let address = &private.proxy.address;
    let bound = |server: &str| AuthConfig { server_address: server.into(), ..login(USER, PASSWORD) };
    for server in [
        "other.example",
        "https://other.example/v1/",
        "127.0.0.1",
        "http://127.0.0.1:1",
        &format!("https://other.example/{address}"),
        &format!("{address}.other.example"),
    ] {
        let error = private.pull(bound(server)).await.expect_err(server);
        private.must_be_refusal(&error);
    }
    assert!(!private.proxy.told().to_lowercase().contains("authorization"), "{}", private.proxy.told());
    private.node.must_have_no_image().await;
    for server in [address.clone(), format!("http://{address}"), format!("https://{address}/v1/")] {
        private.must_pull(bound(&server)).await;
    }
}

#[tokio::test]
async fn a_mirror_gets_credentials_only_if_it_asks_and_is_meant() {
    let Some(private) = Private::start().await else { return };
    let Some(open) = Registry::start() else { return };
    open.push("a", "1", &private.image);
    let open = Proxy::start(&open.address).await;
    let name = "registry.example/a:1";
    let mirror = |mirror: &Proxy, upstream: &str| {
        let hosts = format!("server = \"http://{upstream}\"\n[host.\"http://{}\"]", mirror.address);
        private.node.configure_registry("registry.example", &hosts);
    };
    mirror(&open, "127.0.0.1:1");
    assert_eq!(private.node.pull_with(name, login(USER, PASSWORD)).await, Ok(private.image.id()));
    assert!(open.count("") >= 4 && !open.told().to_lowercase().contains("authorization"));
    private.node.images.remove(&private.image.id()).await.expect("removed");
    mirror(&private.proxy, "127.0.0.1:1");
    assert_eq!(private.node.pull_with(name, login(USER, PASSWORD)).await, Ok(private.image.id()));
    private.node.images.remove(&private.image.id()).await.expect("removed");
    // Meant for the upstream alone, the mirror does without them, and the upstream does it.
    let told = private.proxy.told();
    let upstream = Proxy::start(&private.registry.address).await;
    mirror(&private.proxy, &upstream.address);
    let bound = AuthConfig { server_address: upstream.address.clone(), ..login(USER, PASSWORD) };
    assert_eq!(private.node.pull_with(name, bound).await, Ok(private.image.id()));
    let more = private.proxy.told().split_off(told.len());
    assert!(!more.is_empty() && !more.to_lowercase().contains("authorization"), "{more}");
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let Some(private) = Private::start().await else { return };
    let data: Vec<(String, Vec<u8>)> =
        private.image.layers.iter().map(|layer| (layer.digest(), layer.data.clone())).collect();
    let storage = Canned::start(move |line| {
        let found = data.iter().find(|(digest, _)| line.contains(digest));
        found.map_or_else(|| answer("404 Not Found", &[], b""), |(_, data)| answer("200 OK", &[], data))
    })
    .await;
    // The same address under another name, another port, and a host that asks itself.
    let hosts = [storage.address.clone(), storage.address.replace("127.0.0.1", "localhost")];
    for (number, host) in hosts.iter().enumerate() {
        let layer = private.image.layers[number].digest();
        let location = format!("http://{host}/storage/{layer}?signature=secret");
        let redirect = answer("307 Temporary Redirect", &[("Location", &location)], b"");
        private.proxy.when(&layer, When::Always, [Fault::Say(redirect)]);
    }
    private.must_pull(login(USER, PASSWORD)).await;
    assert_eq!(storage.requests().len(), 2);
    let asking = Canned::start(|_| {
        answer("401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"give it to me\"")], b"")
    })
    .await;
    let other = fixture::unique();
    private.registry.push("b", "1", &other);
    let location = format!("http://{}/storage?signature=secret", asking.address);
    let redirect = answer("302 Found", &[("Location", &location)], b"");
    private.proxy.when(&other.config.digest(), When::Always, [Fault::Say(redirect)]);
    let error = private.node.pull_with(&private.proxy.name("b:1"), login(USER, PASSWORD)).await;
    let error = error.expect_err("not for that one");
    must_be_clean(&error, &[PASSWORD]);
    for told in [storage.requests().concat(), asking.requests().concat()] {
        assert!(!told.is_empty() && !told.to_lowercase().contains("authorization"), "{told}");
    }
    private.node.must_have_no_image().await;
}

#[tokio::test]
async fn wrong_credentials_get_nothing_from_a_pull_with_right_ones() {
    let Some(private) = Private::start().await else { return };
    let layer = private.image.layers[0].digest();
    private.proxy.when(&layer, When::First(1), [Fault::Stall(10)]);
    let name = private.proxy.name("a:1");
    let bad = async |auth: Option<AuthConfig>| match auth {
        Some(auth) => private.node.pull_with(&name, auth).await,
        None => private.node.pull(&name).await,
    };
    let others = async {
        private.proxy.reached().await;
        // While the good one runs (IMG-33).
        let results =
            tokio::join!(bad(Some(login(USER, WRONG))), bad(Some(login("eve", PASSWORD))), bad(None));
        private.proxy.open();
        [results.0, results.1, results.2]
    };
    let (good, others) = tokio::join!(private.pull(login(USER, PASSWORD)), others);
    assert_eq!(good, Ok(private.image.id()));
    for result in others {
        private.must_be_refusal(&result.expect_err("refused"));
    }
    // And when the image is there already, and all of it could be taken from the store.
    private.must_refuse(login(USER, WRONG)).await;
    private.must_refuse(AuthConfig::default()).await;
    assert_eq!(private.pull(login(USER, PASSWORD)).await, Ok(private.image.id()));
    assert!(private.node.images.find(&name).is_some(), "a refused pull takes nothing away");
}

#[tokio::test]
async fn no_secret_is_in_the_log() {
    let Some(private) = Private::start().await else { return };
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // This thread does all the work of this test.
    let _guard = tracing::subscriber::set_default(subscriber);
    private.must_pull(login(USER, PASSWORD)).await;
    private.must_pull(encoded(&format!("{USER}:{PASSWORD}"))).await;
    private.must_refuse(login(USER, WRONG)).await;
    private.must_refuse(AuthConfig { identity_token: WRONG.into(), ..Default::default() }).await;
    let text = String::from_utf8_lossy(&log.0.lock().expect("lock")).into_owned();
    assert!(text.contains(&private.proxy.address), "the pulls are in it: {text}");
    let (right, wrong) = (format!("{USER}:{PASSWORD}"), format!("{USER}:{WRONG}"));
    for secret in [PASSWORD, WRONG, &STANDARD.encode(right), &STANDARD.encode(wrong)] {
        assert!(!text.contains(secret), "{secret}");
    }
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
