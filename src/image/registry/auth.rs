//! How a pull answers a registry that asks who it is.
//!
//! The first request of a pull says nothing, or what the same caller's earlier pull of
//! this repository was given. A challenge is answered once for all requests that meet
//! it at the same time; the answer is kept for what it is good for: this server, this
//! scope, these credentials. Other credentials never get it (IMG-33), and no other host
//! does (IMG-18).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

use super::cause::Cause;
use super::challenge::{Challenge, challenges};
use super::client::Client;
use super::credentials::{Credentials, Secret};
use super::hosts::Endpoint;
use super::token::{Token, TokenRequest};
use super::words::printable;
use crate::flow::{Keyed, lock};

/// The most answers that are kept.
const TOKENS_MAX: usize = 256;
/// How long user and password are sent without being asked for again.
const BASIC_LIFE: Duration = Duration::from_secs(600);
/// Before its end a token is not used any more: the request has to arrive.
const MARGIN: Duration = Duration::from_secs(2);

/// The answers of all pulls. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Tokens {
    known: Arc<Mutex<HashMap<String, Token>>>,
    /// Challenges that are being answered.
    turns: Keyed,
}

/// Answers the challenges to one pull.
pub(super) struct Authorizer {
    pub(super) credentials: Credentials,
    /// What it needs: `repository:PATH:pull`.
    pub(super) scope: String,
    pub(super) tokens: Tokens,
}

/// A challenge.
pub(super) struct Asked<'a> {
    /// Who asks who we are.
    pub(super) endpoint: &'a Endpoint,
    /// How it is spoken to.
    pub(super) client: &'a Client,
    /// Its answer's headers.
    pub(super) headers: &'a HeaderMap,
    /// Whether it is spoken to in the clear.
    pub(super) is_plain: bool,
    /// How long a token server may take.
    pub(super) limit: Duration,
}

impl Authorizer {
    fn key(&self, endpoint: &Endpoint) -> String {
        let Authorizer { credentials, scope, .. } = self;
        // Nobody in particular may be somebody by the configuration.
        let who = if credentials.are_absent() { "configured" } else { credentials.fingerprint() };
        format!("{} {scope} {who}", endpoint.origin)
    }

    /// Who asks: who pulls, else who is configured.
    fn secret<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a Secret> {
        let configured = endpoint.secret.as_ref().filter(|_| self.credentials.are_absent());
        self.credentials.for_host(&endpoint.authority).or(configured)
    }

    /// What is said to `endpoint` without being asked.
    pub(super) fn known(&self, endpoint: &Endpoint) -> Option<HeaderValue> {
        let known = lock(&self.tokens.known);
        let token = known.get(&self.key(endpoint))?;
        (token.expires > Instant::now() + MARGIN).then(|| token.header.clone())
    }

    /// The answer to a challenge; `refused` is what was said before.
    ///
    /// # Errors
    /// Unauthorized if there is nothing (else) to be said.
    pub(super) async fn answer(
        &self,
        asked: &Asked<'_>,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Cause> {
        let &Asked { endpoint, client, headers, is_plain, limit } = asked;
        let key = self.key(endpoint);
        let _turn = self.tokens.turns.lock(key.as_str()).await;
        // Another request of this pull got one meanwhile.
        if let Some(known) = self.known(endpoint).filter(|known| Some(known) != refused) {
            return Ok(known);
        }
        lock(&self.tokens.known).remove(&key);
        let secret = self.secret(endpoint);
        let list = challenges(headers);
        let of = |scheme: &str| list.iter().find(|challenge| challenge.scheme == scheme);
        let token = match (of("bearer"), of("basic")) {
            (Some(challenge), _) => match secret {
                Some(Secret::Registry(token)) => {
                    Token { header: bearer(token)?, expires: Instant::now() + BASIC_LIFE }
                }
                _ => {
                    let request = TokenRequest {
                        client,
                        challenge,
                        scope: &self.scope,
                        secret,
                        headers: &endpoint.headers,
                        is_plain,
                        stall_limit: limit,
                    };
                    request.get().await?
                }
            },
            (None, Some(_)) => Token {
                header: secret.and_then(Secret::basic).ok_or_else(|| self.nothing("user and password"))?,
                expires: Instant::now() + BASIC_LIFE,
            },
            (None, None) => return Err(unknown_schemes(&list)),
        };
        if Some(&token.header) == refused {
            return Err(Cause::Unauthorized("refuses the credentials (401 Unauthorized)".into()));
        }
        self.keep(key, &token);
        Ok(token.header)
    }

    /// Why what was said last is not taken.
    pub(super) fn refused(&self, endpoint: &Endpoint) -> Cause {
        let who = match self.secret(endpoint) {
            Some(_) => "the credentials",
            None => "anonymous access",
        };
        Cause::Unauthorized(format!("refuses {who} (401 Unauthorized)"))
    }

    fn nothing(&self, wanted: &str) -> Cause {
        Cause::Unauthorized(format!("asks for {wanted} (401 Unauthorized), and none were given for it"))
    }

    fn keep(&self, key: String, token: &Token) {
        let mut known = lock(&self.tokens.known);
        let now = Instant::now();
        known.retain(|_, token| token.expires > now);
        if known.len() >= TOKENS_MAX {
            // Asking again costs one request.
            known.clear();
        }
        known.insert(key, token.clone());
    }
}

fn bearer(token: &str) -> Result<HeaderValue, Cause> {
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Cause::Unauthorized("the registry token cannot be sent".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn unknown_schemes(list: &[Challenge]) -> Cause {
    let schemes: Vec<&str> = list.iter().map(|challenge| challenge.scheme.as_str()).collect();
    let schemes = if schemes.is_empty() { "none".to_owned() } else { printable(&schemes.join(", ")) };
    Cause::Unauthorized(format!(
        "answered 401 Unauthorized and knows no way to authenticate that longshore does ({schemes})"
    ))
}
