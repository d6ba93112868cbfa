//! Registries that believe a token server.

use longshore::error::{Error, Kind, Result};
use longshore::proto::cri::AuthConfig;

use crate::bench::must_be_clean;
use crate::certificate::Authority;
use crate::fixture::{self, Image};
use crate::http::answer;
use crate::node::Node;
use crate::proxy::{Fault, Proxy, When};
use crate::registry::{Access, Registry, Settings};
use crate::server::Canned;
use crate::tokens::{Rules, SERVICE, Tokens};

const USER: &str = "ada";
const PASSWORD: &str = "correct horse & battery + 100%";
const GUEST: &str = "grace";
const IDENTITY: &str = "identity-of-ada/+=&";

/// A registry with the images `public:1` and `private:1`, behind a proxy.
struct Guarded {
    node: Node,
    registry: Registry,
    proxy: Proxy,
    tokens: Tokens,
    image: Image,
}

fn rules() -> Rules {
    Rules {
        users: vec![(USER, PASSWORD)],
        guests: vec![(GUEST, PASSWORD)],
        identities: vec![IDENTITY],
        public: vec!["public"],
        ..Rules::default()
    }
}

impl Guarded {
    async fn start(rules: Rules) -> Option<Guarded> {
        let tokens = Tokens::start(rules).await?;
        let registry = Registry::with(&Settings { access: Access::of(&tokens), ..Settings::default() })?;
        let (node, proxy) = (Node::start().await?, Proxy::start(&registry.address).await);
        let layers = (0..4).map(|_| fixture::random(1000)).collect();
        let image = fixture::image(layers);
        registry.push("public", "1", &image);
        registry.push("private", "1", &image);
        Some(Guarded { node, registry, proxy, tokens, image })
    }

    async fn pull(&self, repository: &str, auth: AuthConfig) -> Result<String> {
        self.node.pull_with(&self.proxy.name(&format!("{repository}:1")), auth).await
    }

    /// It works, and is as if nothing had been pulled afterwards.
    async fn must_pull(&self, repository: &str, auth: AuthConfig) {
        assert_eq!(self.pull(repository, auth).await, Ok(self.image.id()), "{:?}", self.tokens.asked());
        self.node.images.remove(&self.image.id()).await.expect("removed");
    }

    async fn must_refuse(&self, repository: &str, auth: AuthConfig) -> Error {
        let before = self.tokens.asked().len();
        let error = self.pull(repository, auth).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Unknown, "{error}");
        let message = error.message();
        assert!(message.contains("401") && message.to_lowercase().contains("unauthorized"), "{message}");
        assert!(message.contains(&self.proxy.name(repository)), "{message}");
        assert!(self.tokens.asked().len() - before <= 3, "it is not asked again and again");
        self.must_be_clean(&error);
        error
    }

    fn must_be_clean(&self, error: &Error) {
        let tokens = self.tokens.tokens();
        let tokens = tokens.iter().flat_map(|token| token.split('.')).filter(|part| !part.is_empty());
        let secrets: Vec<&str> = tokens.chain([PASSWORD, IDENTITY]).collect();
        must_be_clean(error, &secrets);
    }
}

fn login(name: &str, password: &str) -> AuthConfig {
    AuthConfig { username: name.into(), password: password.into(), ..Default::default() }
}

fn identity(token: &str) -> AuthConfig {
    AuthConfig { identity_token: token.into(), ..Default::default() }
}

#[tokio::test]
async fn anyone_pulls_what_is_public_with_one_token() {
    let Some(guarded) = Guarded::start(rules()).await else { return };
    assert_eq!(guarded.node.pull(&guarded.proxy.name("public:1")).await, Ok(guarded.image.id()));
    let asked = guarded.tokens.asked();
    assert_eq!(asked.len(), 1, "for manifest, config and four layers: {asked:?}");
    assert_eq!((asked[0].method.as_str(), asked[0].user.as_str()), ("GET", ""));
    assert_eq!(asked[0].scope, "repository:public:pull");
    assert!(guarded.tokens.told().contains(&format!("service={}", SERVICE.replace(' ', "%20"))));
    assert!(!guarded.tokens.told().to_lowercase().contains("authorization"));
    // Another repository is another scope.
    guarded.must_refuse("private", AuthConfig::default()).await;
    assert!(guarded.tokens.asked()[1..].iter().all(|asked| asked.scope == "repository:private:pull"));
}

#[tokio::test]
async fn a_user_pulls_what_is_private_whatever_the_token_server_speaks() {
    for (gets, posts, key) in [(true, true, "token"), (true, false, "access_token"), (false, true, "token")] {
        let Some(guarded) = Guarded::start(Rules { gets, posts, key, ..rules() }).await else { return };
        guarded.must_pull("private", login(USER, PASSWORD)).await;
        let granted = guarded.tokens.asked().into_iter().filter(|asked| asked.is_granted);
        let granted: Vec<_> = granted.collect();
        assert_eq!(granted.len(), 1, "{granted:?}");
        assert_eq!((granted[0].user.as_str(), granted[0].scope.as_str()), (USER, "repository:private:pull"));
        guarded.must_refuse("private", login(USER, "wrong")).await;
        guarded.must_refuse("private", login("eve", PASSWORD)).await;
        guarded.must_refuse("private", login(GUEST, PASSWORD)).await;
        // Nobody in particular has nothing to put into a form.
        if gets {
            guarded.must_refuse("private", AuthConfig::default()).await;
        }
        guarded.node.must_have_no_image().await;
        // The password is told to the token server alone.
        assert!(guarded.proxy.seen("").iter().all(|seen| {
            seen.head.header("authorization").is_none_or(|value| value.starts_with("Bearer "))
        }));
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let Some(guarded) = Guarded::start(rules()).await else { return };
    guarded.must_pull("private", identity(IDENTITY)).await;
    let asked = guarded.tokens.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((asked[0].method.as_str(), asked[0].grant_type.as_str()), ("POST", "refresh_token"));
    guarded.must_refuse("private", identity("another-identity")).await;
    assert!(!guarded.proxy.told().contains(IDENTITY));
    let Some(old) = Guarded::start(Rules { posts: false, ..rules() }).await else { return };
    let error = old.pull("private", identity(IDENTITY)).await.expect_err("no such thing there");
    assert!(error.message().contains(&old.tokens.address), "{error}");
    old.must_be_clean(&error);
    old.node.must_have_no_image().await;
}

#[tokio::test]
async fn a_registry_token_is_taken_as_it_is() {
    let Some(guarded) = Guarded::start(rules()).await else { return };
    let token = guarded.tokens.mint("repository:private:pull");
    let registry = |token: &str| AuthConfig { registry_token: token.into(), ..Default::default() };
    guarded.must_pull("private", registry(&token)).await;
    guarded.must_refuse("private", registry("nonsense")).await;
    guarded.must_refuse("private", registry(&guarded.tokens.mint("repository:public:pull"))).await;
    assert_eq!(guarded.tokens.asked().len(), 0);
    let error = guarded.pull("private", registry("not\na header")).await.expect_err("cannot be sent");
    guarded.must_be_clean(&error);
    guarded.node.must_have_no_image().await;
}

#[tokio::test]
async fn a_token_that_ends_is_replaced() {
    // Past its time from the start: the registry refuses it, and another is asked for.
    let Some(guarded) = Guarded::start(Rules { stale: 1, ..rules() }).await else { return };
    guarded.must_pull("private", login(USER, PASSWORD)).await;
    assert_eq!(guarded.tokens.tokens().len(), 2);
    // In the middle of a pull: the registry says so for a layer.
    let layer = guarded.image.layers[2].digest();
    let challenge = format!(
        "Bearer realm=\"{}\",service=\"{SERVICE}\",scope=\"repository:public:pull\",error=\"invalid_token\"",
        guarded.tokens.realm()
    );
    let refusal = answer("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"");
    guarded.proxy.when(&layer, When::First(1), [Fault::Say(refusal)]);
    guarded.must_pull("public", AuthConfig::default()).await;
    assert_eq!(guarded.tokens.tokens().len(), 4);
    // One that is never good enough is given up.
    let Some(never) = Guarded::start(Rules { stale: usize::MAX, ..rules() }).await else { return };
    never.must_refuse("private", login(USER, PASSWORD)).await;
    never.node.must_have_no_image().await;
}

#[tokio::test]
async fn a_token_serves_for_as_long_as_it_says() {
    for (expires_in, most) in [(None, 1), (Some(1), 8), (Some(0), 8), (Some(-5), 8), (Some(i64::MAX), 1)] {
        let Some(guarded) = Guarded::start(Rules { expires_in, ..rules() }).await else { return };
        guarded.must_pull("private", login(USER, PASSWORD)).await;
        let asked = guarded.tokens.asked().len();
        assert!((1..=most).contains(&asked), "{expires_in:?}: {asked}");
    }
}

#[tokio::test]
async fn many_pulls_at_once_ask_for_one_token_each() {
    let Some(guarded) = Guarded::start(rules()).await else { return };
    let mut images = Vec::new();
    for tag in 0..4 {
        let image = fixture::image((0..3).map(|_| fixture::random(1000)).collect());
        guarded.registry.push("private", &tag.to_string(), &image);
        images.push(image);
    }
    let pulls = images.iter().enumerate().map(async |(tag, image)| {
        let name = guarded.proxy.name(&format!("private:{tag}"));
        assert_eq!(guarded.node.pull_with(&name, login(USER, PASSWORD)).await, Ok(image.id()));
    });
    // One with other credentials among them gets none of it.
    let refused = guarded.pull("private", login(USER, "wrong"));
    let (_, refused) = tokio::join!(futures_util::future::join_all(pulls), refused);
    guarded.must_be_clean(&refused.expect_err("refused"));
    let granted = guarded.tokens.asked().iter().filter(|asked| asked.is_granted).count();
    assert!((1..=4).contains(&granted), "{granted}");
}

#[tokio::test]
async fn tokens_are_told_to_nobody_else() {
    let Some(guarded) = Guarded::start(rules()).await else { return };
    let data: Vec<(String, Vec<u8>)> =
        guarded.image.layers.iter().map(|layer| (layer.digest(), layer.data.clone())).collect();
    let storage = Canned::start(move |line| {
        let found = data.iter().find(|(digest, _)| line.contains(digest));
        found.map_or_else(|| answer("404 Not Found", &[], b""), |(_, data)| answer("200 OK", &[], data))
    })
    .await;
    for layer in &guarded.image.layers {
        let location = format!("http://{}/{}", storage.address, layer.digest());
        let redirect = answer("307 Temporary Redirect", &[("Location", &location)], b"");
        guarded.proxy.when(&layer.digest(), When::Always, [Fault::Say(redirect)]);
    }
    guarded.must_pull("private", login(USER, PASSWORD)).await;
    // A second server of the same registry has to ask for itself.
    let open = Canned::start(|_| answer("404 Not Found", &[], b"")).await;
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]", guarded.proxy.address, open.address);
    guarded.node.configure_registry("registry.example", &hosts);
    let pulled = guarded.node.pull_with("registry.example/private:1", login(USER, PASSWORD)).await;
    assert_eq!(pulled, Ok(guarded.image.id()));
    for told in [storage.requests().concat(), open.requests().concat()] {
        assert!(!told.is_empty() && !told.to_lowercase().contains("authorization"), "{told}");
    }
}

#[tokio::test]
async fn a_password_is_not_sent_in_the_clear_for_a_registry_that_is_not() {
    let (Some(authority), Some(tokens)) = (Authority::new(), Tokens::start(rules()).await) else { return };
    let settings =
        Settings { tls: Some(authority.server()), access: Access::of(&tokens), ..Settings::default() };
    let (Some(node), Some(registry)) = (Node::start().await, Registry::with(&settings)) else { return };
    let image = fixture::unique();
    registry.push("public", "1", &image);
    let ca = authority.certificate();
    let hosts = format!("server = \"https://{}\"\nca = \"{}\"", registry.address, ca.display());
    node.configure_registry(&registry.address, &hosts);
    // The token server speaks no TLS.
    for auth in [login(USER, PASSWORD), identity(IDENTITY)] {
        let error = node.pull_with(&registry.name("public:1"), auth).await.expect_err("in the clear");
        assert!(error.message().contains(&tokens.address), "{error}");
        must_be_clean(&error, &[PASSWORD, IDENTITY]);
    }
    assert_eq!(tokens.told(), "");
    // Who has nothing to hide may ask.
    assert_eq!(node.pull(&registry.name("public:1")).await, Ok(image.id()));
}

#[tokio::test]
async fn a_token_server_that_fails_is_named() {
    let Some(node) = Node::start().await else { return };
    let endless = Canned::start(|_| answer("200 OK", &[], &vec![b' '; 4 << 20])).await;
    let strange = Canned::start(|line| match line.split(['/', '?', ' ']).nth(2) {
        Some("html") => answer("200 OK", &[], b"<html>token-secret</html>"),
        Some("empty") => answer("200 OK", &[], b"{}"),
        Some("null") => answer("200 OK", &[], br#"{"token":null}"#),
        Some("newline") => answer("200 OK", &[], br#"{"token":"token-secret\r\nHost: x"}"#),
        Some("forbidden") => answer("403 Forbidden", &[], br#"{"details":"token-secret"}"#),
        Some("broken") => answer("500 Internal Server Error", &[], b""),
        Some("loop") => answer("302 Found", &[("Location", "/loop?token-secret")], b""),
        _ => answer("404 Not Found", &[], b""),
    })
    .await;
    let realms = ["html", "empty", "null", "newline", "forbidden", "broken", "loop", "nothing"]
        .map(|path| (format!("http://{}/{path}?key=token-secret", strange.address), strange.address.clone()));
    let others = [
        (format!("http://{}/", endless.address), endless.address.clone()),
        ("http://127.0.0.1:1/token?key=token-secret".to_owned(), "127.0.0.1:1".to_owned()),
        ("http://user:token-secret@127.0.0.1:1/".to_owned(), String::new()),
        ("file:///etc/passwd".to_owned(), String::new()),
        ("nonsense".to_owned(), String::new()),
        (String::new(), String::new()),
    ];
    let pulls = realms.into_iter().chain(others).map(|(realm, address)| {
        let node = &node;
        async move {
            let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
            let server =
                Canned::start(move |_| answer("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b""))
                    .await;
            let name = format!("{}/a:1", server.address);
            let error = node.pull_with(&name, login(USER, PASSWORD)).await.expect_err(&realm);
            assert!(
                error.message().contains(&name) && error.message().contains(&address),
                "{realm}: {error}"
            );
            must_be_clean(&error, &[PASSWORD, "token-secret"]);
        }
    });
    futures_util::future::join_all(pulls).await;
    node.must_have_no_image().await;
}
