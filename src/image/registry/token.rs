//! Tokens of a registry's token server, by the protocols of Docker's registries.
//!
//! A user asks with GET and basic authentication, nobody in particular with GET alone,
//! an identity token is turned into one with POST (OAuth 2). Where a server does not
//! know one way for users, the other is tried.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use serde::Deserialize;
use tokio::time::Instant;

use super::body::collect;
use super::cause::Cause;
use super::challenge::Challenge;
use super::client::{Ask, Client};
use super::credentials::Secret;
use super::words::refusal;

/// The largest answer of a token server.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// How long a token is good of which the server does not say it.
const LIFE_DEFAULT_S: u64 = 60;
/// The longest that a token is kept.
const LIFE_MAX_S: u64 = 24 * 3600;

/// A header that a registry takes.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) expires: Instant,
}

/// A request for a token.
pub(super) struct TokenRequest<'a> {
    pub(super) client: &'a Client,
    pub(super) challenge: &'a Challenge,
    /// What is asked for where the challenge does not say it.
    pub(super) scope: &'a str,
    pub(super) secret: Option<&'a Secret>,
    /// What the configuration sends along to the registry.
    pub(super) headers: &'a HeaderMap,
    /// Whether the registry itself is spoken to in the clear.
    pub(super) is_plain: bool,
    pub(super) stall_limit: Duration,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: i64,
}

impl TokenRequest<'_> {
    /// Gets the token.
    pub(super) async fn get(&self) -> Result<Token, Cause> {
        let realm = self.realm()?;
        let server = realm.authority().map(ToString::to_string).unwrap_or_default();
        let told = |cause: Cause| at_server(&server, cause);
        if self.secret.is_some() && realm.scheme_str() == Some("http") && !self.is_plain {
            return Err(Cause::Unauthorized(format!(
                "wants the credentials to be sent in the clear to the token server {server}"
            )));
        }
        let post = matches!(self.secret, Some(Secret::Identity(_)));
        let mut answered = if post { self.post(&realm).await } else { self.ask(&realm).await };
        if let (Err(Refusal::Status(404 | 405, _)), Some(Secret::Password { .. })) = (&answered, self.secret)
        {
            answered = self.post(&realm).await;
        }
        let answer = answered.map_err(|refusal| told(refusal.cause()))?;
        let text = if answer.token.is_empty() { &answer.access_token } else { &answer.token };
        if text.is_empty() {
            return Err(told(Cause::Failed("gives no token".into())));
        }
        let mut header = HeaderValue::try_from(format!("Bearer {text}"))
            .map_err(|_| told(Cause::Failed("gives a token that cannot be sent".into())))?;
        header.set_sensitive(true);
        let life_s = match u64::try_from(answer.expires_in) {
            Ok(0) | Err(_) => LIFE_DEFAULT_S,
            Ok(seconds) => seconds.min(LIFE_MAX_S),
        };
        Ok(Token { header, expires: Instant::now() + Duration::from_secs(life_s) })
    }

    fn realm(&self) -> Result<Uri, Cause> {
        let wrong = || Cause::Failed("asks for a token without saying from where".into());
        let realm: Uri = self.challenge.get("realm").ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
        let is_usable = matches!(realm.scheme_str(), Some("http" | "https"))
            && realm.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        if is_usable { Ok(realm) } else { Err(wrong()) }
    }

    fn scopes(&self) -> Vec<&str> {
        let scopes: Vec<&str> = self.challenge.get("scope").unwrap_or_default().split_whitespace().collect();
        if scopes.is_empty() { vec![self.scope] } else { scopes }
    }

    async fn ask(&self, realm: &Uri) -> Result<Answer, Refusal> {
        let mut form = Form::default();
        if let Some(service) = self.challenge.get("service") {
            form.add("service", service);
        }
        for scope in self.scopes() {
            form.add("scope", scope);
        }
        if let Some(Secret::Password { user, .. }) = self.secret {
            form.add("account", user);
        }
        let separator = if realm.query().is_some() { '&' } else { '?' };
        let uri = format!("{realm}{separator}{}", form.0);
        let uri = uri.parse().map_err(|_| Cause::Failed("asks for a token at no URL".into()))?;
        self.send(Method::GET, uri, None, self.secret.and_then(Secret::basic)).await
    }

    async fn post(&self, realm: &Uri) -> Result<Answer, Refusal> {
        let mut form = Form::default();
        match self.secret {
            Some(Secret::Identity(token)) => {
                form.add("grant_type", "refresh_token");
                form.add("refresh_token", token);
            }
            Some(Secret::Password { user, password }) => {
                form.add("grant_type", "password");
                form.add("username", user);
                form.add("password", password);
            }
            Some(Secret::Registry(_)) | None => {}
        }
        form.add("service", self.challenge.get("service").unwrap_or_default());
        form.add("client_id", "longshore");
        form.add("scope", &self.scopes().join(" "));
        self.send(Method::POST, realm.clone(), Some(form.0), None).await
    }

    async fn send(
        &self,
        method: Method,
        uri: Uri,
        form: Option<String>,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Refusal> {
        let ask = Ask {
            method,
            uri,
            headers: self.headers,
            authorization: authorization.as_ref(),
            accept: "application/json",
            offset: 0,
            form,
            is_verified: false,
            stall_limit: self.stall_limit,
        };
        let response = self.client.send(&ask).await?.response;
        let status = response.status();
        if !status.is_success() {
            return Err(Refusal::Status(status.as_u16(), refusal(response).await));
        }
        let data = collect(response.into_body(), ANSWER_BYTES_MAX, self.stall_limit).await?;
        // The reader's own words could quote the token.
        serde_json::from_slice(&data).map_err(|_| Cause::Failed("gives no token".into()).into())
    }
}

/// Why there is no token.
enum Refusal {
    Status(u16, Cause),
    Other(Cause),
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Refusal {
        Refusal::Other(cause)
    }
}

impl Refusal {
    fn cause(self) -> Cause {
        match self {
            // What it would mean of content, it does not mean of a token.
            Refusal::Status(400 | 401 | 403 | 404, cause) => {
                let status = match &cause {
                    Cause::NotFound => format!("answered {}", StatusCode::NOT_FOUND),
                    other => other.text().to_owned(),
                };
                Cause::Unauthorized(status)
            }
            Refusal::Status(_, cause) | Refusal::Other(cause) => cause,
        }
    }
}

/// Says that it was the token server.
fn at_server(server: &str, cause: Cause) -> Cause {
    let told = |text: String| format!("its token server {server} {text}");
    match cause {
        Cause::NotFound => Cause::Unauthorized(told("does not exist".into())),
        Cause::Unreachable(text) => Cause::Unreachable(told(format!("cannot be reached: {text}"))),
        Cause::NotTls(text) => Cause::Failed(told(text)),
        Cause::Unauthorized(text) => Cause::Unauthorized(told(text)),
        Cause::Busy(text, wait) => Cause::Busy(told(text), wait),
        Cause::Down(text, wait) => Cause::Down(told(text), wait),
        Cause::Broken(text) => Cause::Broken(told(text)),
        Cause::Failed(text) | Cause::Corrupt(text) => Cause::Failed(told(text)),
    }
}

/// `key=value&…`, percent-encoded.
#[derive(Default)]
struct Form(String);

impl Form {
    fn add(&mut self, key: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(key);
        self.0.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    self.0.push(char::from(byte));
                }
                // Writing to a string cannot fail.
                other => drop(write!(self.0, "%{other:02X}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_percent_encoded() {
        let mut form = Form::default();
        form.add("scope", "repository:a/b:pull");
        form.add("password", "p&=+ é");
        assert_eq!(form.0, "scope=repository%3Aa%2Fb%3Apull&password=p%26%3D%2B%20%C3%A9");
    }
}
