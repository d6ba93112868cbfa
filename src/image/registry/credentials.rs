//! The kubelet's credentials for a pull (IMG-17, IMG-18).

use std::fmt;

use crate::error::Result;
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
    /// Those of a pull request; none means anonymous.
    ///
    /// # Errors
    /// None so far.
    pub(in crate::image) fn new(auth: Option<&cri::AuthConfig>) -> Result<Credentials> {
        let Some(auth) = auth else { return Ok(Credentials::default()) };
        let secret = if !auth.username.is_empty() {
            Some(Secret::Password { user: auth.username.clone(), password: auth.password.clone() })
        } else if !auth.identity_token.is_empty() {
            Some(Secret::Identity(auth.identity_token.clone()))
        } else if !auth.registry_token.is_empty() {
            Some(Secret::Registry(auth.registry_token.clone()))
        } else {
            None
        };
        let address = auth.server_address.as_str();
        let address = address.split_once("://").map_or(address, |(_, rest)| rest);
        let host = address.split('/').next().filter(|host| !host.is_empty()).map(str::to_owned);
        Ok(Credentials { secret, host })
    }

    /// What may be said to the server at `authority`.
    pub(in crate::image) fn for_host(&self, authority: &str) -> Option<&Secret> {
        if self.host.as_ref().is_none_or(|host| host == authority) { self.secret.as_ref() } else { None }
    }

    /// Whether they are a token for the registry itself.
    pub(in crate::image) fn is_registry_token(&self) -> bool {
        matches!(self.secret, Some(Secret::Registry(_)))
    }

    /// `text` without what is secret in it.
    pub(in crate::image) fn masked(&self, text: String) -> String {
        match &self.secret {
            Some(
                Secret::Password { password: secret, .. }
                | Secret::Identity(secret)
                | Secret::Registry(secret),
            ) if secret.len() >= SECRET_BYTES_MIN => text.replace(secret.as_str(), MASKED),
            _ => text,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secret.is_some() { MASKED } else { "anonymous" })
    }
}
