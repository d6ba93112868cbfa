//! The kubelet's credentials for a pull (IMG-17, IMG-18).
//!
//! They are parsed once, where they enter, and never printed: neither they nor what is
//! derived from them has a `Debug` that shows anything.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use prost::Message;

use crate::error::{Result, invalid};
use crate::image::digest;
use crate::proto::{MASKED, cri};

/// Shorter secrets are not looked for in other people's words: they would be found
/// everywhere.
const SECRET_BYTES_MIN: usize = 4;

/// Who asks a registry.
#[derive(Clone, Default)]
pub(in crate::image) struct Credentials {
    secret: Option<Secret>,
    /// The only host that they are for; none for every host of the pull that asks.
    host: Option<String>,
    /// Equal for equal credentials, and tells nothing of them.
    fingerprint: String,
    is_absent: bool,
}

/// What is known of who asks.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::image) enum Secret {
    /// A user.
    Password {
        /// Its name.
        user: String,
        /// Its password.
        password: String,
    },
    /// A refresh token, good for tokens of the registry's token server.
    Identity(String),
    /// A token for the registry itself.
    Registry(String),
}

impl Credentials {
    /// Those of a pull request; none means anonymous. The first form that is filled
    /// counts: user and password, identity token, `auth`, registry token.
    ///
    /// # Errors
    /// InvalidArgument for an `auth` or `server_address` that cannot be read, without
    /// what it says.
    pub(in crate::image) fn new(auth: Option<&cri::AuthConfig>) -> Result<Credentials> {
        let Some(auth) = auth else {
            return Ok(Credentials { is_absent: true, ..Credentials::default() });
        };
        let secret = Secret::of(auth)?;
        let host = match auth.server_address.as_str() {
            "" => None,
            address => Some(
                host_of(address)
                    .ok_or_else(|| invalid("the credentials' server_address is neither a URL nor a host"))?,
            ),
        };
        let fingerprint = secret.as_ref().map(|_| digest::of(&auth.encode_to_vec())).unwrap_or_default();
        Ok(Credentials { secret, host, fingerprint, is_absent: false })
    }

    /// What may be said to the server at `authority`.
    pub(in crate::image) fn for_host(&self, authority: &str) -> Option<&Secret> {
        let is_for =
            |host: &String| host == authority || (host == "docker.io" && authority == "registry-1.docker.io");
        if self.host.as_ref().is_none_or(is_for) { self.secret.as_ref() } else { None }
    }

    /// Equal for equal credentials.
    pub(in crate::image) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether none were given, not even empty ones.
    pub(in crate::image) fn are_absent(&self) -> bool {
        self.is_absent
    }

    /// Whether they are a token for the registry itself.
    pub(in crate::image) fn is_registry_token(&self) -> bool {
        matches!(self.secret, Some(Secret::Registry(_)))
    }

    /// `text` without what is secret in it.
    pub(in crate::image) fn masked(&self, text: String) -> String {
        let secrets = match &self.secret {
            None => return text,
            Some(Secret::Password { user, password }) => {
                [password.clone(), STANDARD.encode(format!("{user}:{password}"))]
            }
            Some(Secret::Identity(token) | Secret::Registry(token)) => [token.clone(), String::new()],
        };
        let secrets = secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN);
        secrets.fold(text, |text, secret| text.replace(secret.as_str(), MASKED))
    }
}

impl Secret {
    /// The first form that is filled, if any is.
    ///
    /// # Errors
    /// InvalidArgument for an `auth` that cannot be read, without what it says.
    pub(super) fn of(auth: &cri::AuthConfig) -> Result<Option<Secret>> {
        Ok(if !auth.username.is_empty() {
            Some(Secret::Password { user: auth.username.clone(), password: auth.password.clone() })
        } else if !auth.identity_token.is_empty() {
            Some(Secret::Identity(auth.identity_token.clone()))
        } else if !auth.auth.is_empty() {
            Some(
                basic(&auth.auth).ok_or_else(|| {
                    invalid("the credentials' auth is not the base64 form of user:password")
                })?,
            )
        } else if !auth.registry_token.is_empty() {
            Some(Secret::Registry(auth.registry_token.clone()))
        } else {
            None
        })
    }

    /// User and password as basic authentication sends them.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Secret::Password { user, password } = self else { return None };
        let mut header =
            HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASKED)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secret.is_some() { MASKED } else { "anonymous" })
    }
}

/// Reads `user:password` in base64, as a docker configuration has it. Padding of NULs at
/// the end is cut.
fn basic(auth: &str) -> Option<Secret> {
    let decoded = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some(Secret::Password { user: user.to_owned(), password: password.trim_matches('\0').to_owned() })
}

/// The host, with its port, of a URL or of itself. Docker Hub's oldest address means
/// Docker Hub.
fn host_of(address: &str) -> Option<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    host.parse::<http::uri::Authority>().ok()?;
    Some(if host == "index.docker.io" { "docker.io".to_owned() } else { host.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn password(user: &str, password: &str) -> Option<Secret> {
        Some(Secret::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn the_first_form_counts() {
        let auth = |auth: cri::AuthConfig| Credentials::new(Some(&auth)).expect("valid").secret;
        let config = cri::AuthConfig {
            username: "u".into(),
            password: "p:q".into(),
            auth: STANDARD.encode("a:b:c\0\0"),
            identity_token: "i".into(),
            registry_token: "r".into(),
            ..Default::default()
        };
        assert!(auth(config.clone()) == password("u", "p:q"));
        let config = cri::AuthConfig { username: String::new(), ..config };
        assert!(auth(config.clone()) == Some(Secret::Identity("i".into())));
        let config = cri::AuthConfig { identity_token: String::new(), ..config };
        assert!(auth(config.clone()) == password("a", "b:c"));
        let config = cri::AuthConfig { auth: String::new(), ..config };
        assert!(auth(config) == Some(Secret::Registry("r".into())));
        assert!(auth(cri::AuthConfig::default()).is_none());
        assert!(Credentials::new(None).expect("valid").secret.is_none());
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_being_shown() {
        for auth in ["c2VjcmV0", "secret!", "//79"] {
            let config = cri::AuthConfig { auth: auth.into(), ..Default::default() };
            let error = Credentials::new(Some(&config)).expect_err(auth);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(!error.message().contains("secret") && !error.message().contains(auth), "{error}");
        }
    }

    #[test]
    fn a_server_address_limits_them_to_its_host() {
        for (address, host, want) in [
            ("", "any.example", true),
            ("https://r.io", "r.io", true),
            ("https://r.io:5000/v2/", "r.io:5000", true),
            ("r.io", "r.io", true),
            ("https://r.io", "m.example", false),
            ("https://r.io", "r.io:5000", false),
            ("https://index.docker.io/v1/", "registry-1.docker.io", true),
            ("docker.io", "registry-1.docker.io", true),
        ] {
            let config = cri::AuthConfig {
                registry_token: "r".into(),
                server_address: address.into(),
                ..Default::default()
            };
            let credentials = Credentials::new(Some(&config)).expect("valid");
            assert_eq!(credentials.for_host(host).is_some(), want, "{address} and {host}");
        }
        let config = cri::AuthConfig { server_address: "a b".into(), ..Default::default() };
        assert_eq!(Credentials::new(Some(&config)).expect_err("no host").kind(), Kind::InvalidArgument);
    }

    #[test]
    fn they_are_never_shown() {
        let config =
            cri::AuthConfig { username: "user".into(), password: "hunter2".into(), ..Default::default() };
        let credentials = Credentials::new(Some(&config)).expect("valid");
        assert_eq!(format!("{credentials:?}"), MASKED);
        let header = credentials.for_host("r.io").and_then(Secret::basic).expect("basic");
        assert_eq!(format!("{header:?}"), "Sensitive");
        let echo = format!("no user user with hunter2 ({})", STANDARD.encode("user:hunter2"));
        assert_eq!(credentials.masked(echo), "no user user with <masked> (<masked>)");
        assert!(!credentials.fingerprint().contains("hunter2"));
    }
}
