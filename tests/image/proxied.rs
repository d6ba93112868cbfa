//! Registries that are reached through the proxies of the environment.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use crate::alone;
use crate::certificate::Authority;
use crate::fixture::{self, Image};
use crate::http::answer;
use crate::proxy::{Fault, Proxy, When};
use crate::registry::{Registry, Settings};

/// An image of a registry that has no address: only the proxy finds it.
const NAME: &str = "registry.example:5000/a:1";

/// A registry with one image, a proxy that leads to it, and a folder for its settings.
struct Behind {
    registry: Registry,
    proxy: Proxy,
    image: Image,
    folder: TempDir,
}

impl Behind {
    async fn start(settings: &Settings) -> Option<Behind> {
        let registry = Registry::with(settings)?;
        let image = fixture::unique();
        registry.push("a", "1", &image);
        let proxy = Proxy::start(&registry.address).await;
        Some(Behind { registry, proxy, image, folder: tempfile::tempdir().expect("folder") })
    }

    /// Its registry speaks no TLS.
    fn is_plain(&self) {
        let hosts = "server = \"http://registry.example:5000\"";
        std::fs::write(self.folder.path().join("hosts.toml"), hosts).expect("file");
    }

    /// As a URL with credentials.
    fn url(&self) -> String {
        format!("http://proxy-user:proxy-secret@{}", self.proxy.address)
    }

    async fn pull(&self, environment: &[(&str, &str)]) -> Option<Result<String, String>> {
        alone::pull(NAME, Some(self.folder.path()), environment).await
    }
}

fn must_be_clean(error: &str) {
    assert!(!error.contains("proxy-secret") && !error.contains("proxy-user"), "{error}");
}

#[tokio::test]
async fn a_plain_registry_is_asked_through_the_proxy() {
    let Some(behind) = Behind::start(&Settings::default()).await else { return };
    behind.is_plain();
    let Some(pulled) = behind.pull(&[("HTTP_PROXY", &behind.url())]).await else { return };
    assert_eq!(pulled, Ok(behind.image.id()));
    let seen = behind.proxy.seen(" http://registry.example:5000/v2/a/");
    assert!(seen.len() >= 5 && seen.len() == behind.proxy.count(""), "{}", behind.proxy.told());
    let login = format!("Basic {}", STANDARD.encode("proxy-user:proxy-secret"));
    for seen in seen {
        assert_eq!(seen.head.header("proxy-authorization"), Some(login.as_str()));
        assert_eq!(seen.head.header("host"), Some("registry.example:5000"));
        assert_eq!(seen.head.header("authorization"), None);
    }
}

#[tokio::test]
async fn a_registry_with_tls_is_reached_through_a_tunnel() {
    let Some(authority) = Authority::new() else { return };
    let settings = Settings { tls: Some(authority.server()), ..Settings::default() };
    let Some(behind) = Behind::start(&settings).await else { return };
    let Some(refused) = behind.pull(&[("https_proxy", &behind.url())]).await else { return };
    let error = refused.expect_err("nobody vouches for it");
    assert!(error.contains("TLS: invalid peer certificate"), "{error}");
    must_be_clean(&error);
    // As Docker has it: no hosts.toml (IMG-25).
    std::fs::copy(authority.certificate(), behind.folder.path().join("any.crt")).expect("copied");
    let Some(pulled) = behind.pull(&[("https_proxy", &behind.url())]).await else { return };
    assert_eq!(pulled, Ok(behind.image.id()));
    let tunnels = behind.proxy.seen("CONNECT registry.example:5000 ");
    assert!(!tunnels.is_empty() && tunnels.len() == behind.proxy.count(""), "{}", behind.proxy.told());
    let login = format!("Basic {}", STANDARD.encode("proxy-user:proxy-secret"));
    for tunnel in tunnels {
        assert_eq!(tunnel.head.header("proxy-authorization"), Some(login.as_str()));
    }
}

#[tokio::test]
async fn some_registries_need_no_proxy() {
    let Some(behind) = Behind::start(&Settings::default()).await else { return };
    behind.is_plain();
    let url = behind.url();
    let all = [("HTTP_PROXY", url.as_str()), ("HTTPS_PROXY", &url)];
    let except = [&all[..], &[("NO_PROXY", "other.example,.example")]].concat();
    let Some(direct) = behind.pull(&except).await else { return };
    let error = direct.expect_err("it has no address");
    assert!(error.starts_with("RegistryUnavailable: ") && error.contains("lookup"), "{error}");
    // What is on this machine is not asked of another one.
    let here = alone::pull(&behind.registry.name("a:1"), None, &all).await.expect("it ran before");
    assert_eq!(here, Ok(behind.image.id()));
    assert_eq!(behind.proxy.count(""), 0);
}

#[tokio::test]
async fn a_proxy_that_fails_is_told_apart_and_its_password_is_not_told() {
    let Some(behind) = Behind::start(&Settings::default()).await else { return };
    let dead = "http://proxy-user:proxy-secret@127.0.0.1:1";
    let refusal =
        answer("407 Proxy Authentication Required", &[("Proxy-Authenticate", "Basic realm=\"p\"")], b"");
    behind.proxy.when("CONNECT ", When::Always, [Fault::Say(refusal)]);
    for (url, want) in [(dead, "Connection refused"), (&behind.url(), "proxy authorization required")] {
        let Some(result) = behind.pull(&[("HTTPS_PROXY", url)]).await else { return };
        let error = result.expect_err(url);
        assert!(error.contains(want) && error.contains("https://registry.example:5000"), "{error}");
        must_be_clean(&error);
    }
}
