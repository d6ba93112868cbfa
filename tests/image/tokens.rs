//! A token server: answers who may pull what with signed tokens that docker-registry
//! believes, and remembers who asked.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::certificate::{Authority, Pair};
use crate::http::{self, Head};

/// Whom docker-registry believes.
pub(crate) const ISSUER: &str = "test issuer";
/// What docker-registry calls itself; with a space, for the sake of queries.
pub(crate) const SERVICE: &str = "test registry";

/// What the server knows, and how it behaves.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Users who may pull everything, with their passwords.
    pub(crate) users: Vec<(&'static str, &'static str)>,
    /// Users whom it knows, but who may pull only what is public.
    pub(crate) guests: Vec<(&'static str, &'static str)>,
    /// Identity tokens of users who may pull everything.
    pub(crate) identities: Vec<&'static str>,
    /// Repositories that everyone may pull.
    pub(crate) public: Vec<&'static str>,
    /// Whether it understands GET (Docker's own protocol).
    pub(crate) gets: bool,
    /// Whether it understands POST (OAuth 2).
    pub(crate) posts: bool,
    /// How long it says that tokens are good.
    pub(crate) expires_in: Option<i64>,
    /// How many of the first tokens are past their time already.
    pub(crate) stale: usize,
    /// How it calls the token in its answer.
    pub(crate) key: &'static str,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            users: Vec::new(),
            guests: Vec::new(),
            identities: Vec::new(),
            public: Vec::new(),
            gets: true,
            posts: true,
            expires_in: Some(300),
            stale: 0,
            key: "token",
        }
    }
}

/// One who asked for a token.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) scope: String,
    /// The kind of credentials of a POST.
    pub(crate) grant_type: String,
    /// Who it is; empty for nobody.
    pub(crate) user: String,
    pub(crate) is_granted: bool,
}

pub(crate) struct Tokens {
    pub(crate) address: String,
    inner: Arc<Inner>,
    authority: Authority,
    task: JoinHandle<()>,
}

struct Inner {
    rules: Rules,
    signer: Pair,
    asked: Mutex<Vec<Asked>>,
    /// Requests as they came, and the tokens.
    told: Mutex<String>,
    tokens: Mutex<Vec<String>>,
}

/// What a request says, wherever it says it.
struct Words(Vec<(String, String)>);

impl Tokens {
    /// Starts one; none without openssl.
    pub(crate) async fn start(rules: Rules) -> Option<Tokens> {
        let authority = Authority::new()?;
        let signer = authority.signer();
        let (asked, told, tokens) = (Mutex::default(), Mutex::default(), Mutex::default());
        let inner = Arc::new(Inner { rules, signer, asked, told, tokens });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let address = listener.local_addr().expect("address").to_string();
        let shared = inner.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = shared.clone();
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let Some(head) = Head::read(&mut stream).await else { return };
                    let Some(body) = http::body(&head, &mut stream).await else { return };
                    let answer = tokio::task::spawn_blocking(move || inner.answer(&head, &body));
                    let _ = stream.write_all(&answer.await.expect("no panic")).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Some(Tokens { address, inner, authority, task })
    }

    /// A token that nobody asked for.
    pub(crate) fn mint(&self, scope: &str) -> String {
        self.inner.token("a minter", SERVICE, scope)
    }

    /// Where tokens are asked for.
    pub(crate) fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The certificates by which a registry believes the tokens.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.authority.certificate()
    }

    /// Who asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inner.asked.lock().expect("lock").clone()
    }

    /// All that clients told it.
    pub(crate) fn told(&self) -> String {
        self.inner.told.lock().expect("lock").clone()
    }

    /// All tokens that it gave.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.inner.tokens.lock().expect("lock").clone()
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn answer(&self, head: &Head, body: &[u8]) -> Vec<u8> {
        let body = String::from_utf8_lossy(body);
        self.told.lock().expect("lock").push_str(&format!("{}{body}\n", head.text()));
        let (path, query) = head.target().split_once('?').unwrap_or((head.target(), ""));
        let method = head.line.split(' ').next().unwrap_or_default().to_owned();
        let is_post = method == "POST";
        if path != "/token" {
            return http::answer("404 Not Found", &[], b"");
        }
        if !(if is_post { self.rules.posts } else { self.rules.gets }) {
            return http::answer("405 Method Not Allowed", &[], b"");
        }
        let words = Words::read(if is_post { &body } else { query });
        let who = if is_post { self.by_form(&words) } else { self.by_header(head) };
        let scope = words.all("scope").join(" ");
        let user = who.clone().unwrap_or_default();
        let asked = Asked {
            method,
            scope: scope.clone(),
            grant_type: words.one("grant_type").to_owned(),
            user: user.clone(),
            is_granted: who.is_some(),
        };
        self.asked.lock().expect("lock").push(asked);
        if who.is_none() {
            return http::answer("401 Unauthorized", &[], br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
        }
        let token = self.token(&user, words.one("service"), &scope);
        let mut answer = json!({ self.rules.key: token });
        if let Some(seconds) = self.rules.expires_in {
            answer["expires_in"] = json!(seconds);
        }
        http::answer("200 OK", &[("Content-Type", "application/json")], answer.to_string().as_bytes())
    }

    /// The user whom a form means; none for wrong credentials.
    fn by_form(&self, words: &Words) -> Option<String> {
        match words.one("grant_type") {
            "password" => self.user(words.one("username"), words.one("password")),
            "refresh_token" => {
                let token = words.one("refresh_token");
                self.rules.identities.contains(&token).then(|| "an identity".to_owned())
            }
            _ => None,
        }
    }

    /// The user whom a header means, nobody without one; none for wrong credentials.
    fn by_header(&self, head: &Head) -> Option<String> {
        let Some(header) = head.header("authorization") else { return Some(String::new()) };
        let decoded = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (name, password) = text.split_once(':')?;
        self.user(name, password)
    }

    fn user(&self, name: &str, password: &str) -> Option<String> {
        let mut all = self.rules.users.iter().chain(&self.rules.guests);
        all.find(|known| **known == (name, password)).map(|(name, _)| (*name).to_owned())
    }

    fn token(&self, user: &str, service: &str, scope: &str) -> String {
        let may_all = !user.is_empty() && !self.rules.guests.iter().any(|(guest, _)| *guest == user);
        let access = scope.split_whitespace().map(|scope| {
            let mut parts = scope.splitn(3, ':');
            let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let may = kind == "repository" && (may_all || self.rules.public.contains(&name));
            let wants = parts.next().is_some_and(|actions| actions.split(',').any(|action| action == "pull"));
            json!({ "type": kind, "name": name, "actions": if may && wants { vec!["pull"] } else { vec![] } })
        });
        let access: Vec<Value> = access.collect();
        let mut tokens = self.tokens.lock().expect("lock");
        let now = jiff::Timestamp::now().as_second();
        // docker-registry takes a minute for a difference of clocks.
        let end = if tokens.len() < self.rules.stale { now - 120 } else { now + 300 };
        let claims = json!({
            "iss": ISSUER, "sub": user, "aud": service, "exp": end, "nbf": now - 300, "iat": now - 300,
            "jti": tokens.len().to_string(), "access": access,
        });
        let token = sign(&self.signer, &claims);
        tokens.push(token.clone());
        token
    }
}

/// A JSON web token, with the certificate of who signed it.
fn sign(signer: &Pair, claims: &Value) -> String {
    let pem = std::fs::read_to_string(&signer.certificate).expect("certificate");
    let certificate: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [certificate] });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(&header), encode(claims));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(&signer.key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    openssl.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let signature = openssl.wait_with_output().expect("openssl ends");
    assert!(signature.status.success());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.stdout))
}

impl Words {
    /// Reads a query or a form.
    fn read(text: &str) -> Words {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Words(pairs.map(|(key, value)| (decode(key), decode(value))).collect())
    }

    fn all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(other, _)| other == key).map(|(_, value)| value.as_str()).collect()
    }

    fn one(&self, key: &str) -> &str {
        self.all(key).first().copied().unwrap_or_default()
    }
}

/// Undoes the encoding of a query's or a form's value.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = std::str::from_utf8(&tail[..tail.len().min(2)]).unwrap_or_default();
        match (first, u8::from_str_radix(hex, 16)) {
            (b'%', Ok(byte)) => {
                bytes.push(byte);
                rest = &tail[2.min(tail.len())..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
