//! One-time tokens: what ties a URL to the request that it was given for (STM-03, STM-04).
//!
//! Whoever has a token may run what it stands for, once. It is never logged.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use crate::error::{Result, exhausted, internal};
use crate::flow::lock;

/// How long a token is good for.
const LIFETIME: Duration = Duration::from_secs(60);
/// How many tokens may wait to be used.
const TOKENS_MAX: usize = 1000;
/// Random bytes of a token. Peers have six, of eight characters: enough for a minute, but
/// more costs nothing.
const TOKEN_BYTES: usize = 18;

/// Requests that wait for their clients.
pub(super) struct Tokens<T>(Mutex<HashMap<String, (Instant, T)>>);

impl<T> Default for Tokens<T> {
    fn default() -> Tokens<T> {
        Tokens(Mutex::default())
    }
}

impl<T> Tokens<T> {
    /// Keeps `request` for whoever comes with the token that is returned.
    ///
    /// # Errors
    /// ResourceExhausted when too many wait.
    pub(super) fn insert(&self, request: T) -> Result<String> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| internal(format!("no random bytes: {error}")))?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let now = Instant::now();
        let mut waiting = lock(&self.0);
        if waiting.len() >= TOKENS_MAX {
            waiting.retain(|_, (until, _)| *until > now);
        }
        if waiting.len() >= TOKENS_MAX {
            return Err(exhausted(format!("{TOKENS_MAX} streaming requests wait for their clients already")));
        }
        waiting.insert(token.clone(), (now + LIFETIME, request));
        Ok(token)
    }

    /// Keeps `request` for whoever comes with `token`.
    #[cfg(test)]
    pub(super) fn put(&self, token: &str, request: T) {
        lock(&self.0).insert(token.to_owned(), (Instant::now() + LIFETIME, request));
    }

    /// Takes the request of `token`: the second time there is none.
    pub(super) fn take(&self, token: &str) -> Option<T> {
        let (until, request) = lock(&self.0).remove(token)?;
        (until > Instant::now()).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let token = tokens.insert(1).expect("room");
        assert_eq!(tokens.take("other"), None);
        assert_eq!((tokens.take(&token), tokens.take(&token)), (Some(1), None));
        let token = tokens.insert(2).expect("room");
        tokio::time::advance(LIFETIME + Duration::from_secs(1)).await;
        assert_eq!(tokens.take(&token), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait_and_old_ones_make_room() {
        let tokens = Tokens::default();
        for number in 0..TOKENS_MAX {
            tokens.insert(number).expect("room");
        }
        assert_eq!(tokens.insert(0).map_err(|error| error.kind()), Err(Kind::ResourceExhausted));
        tokio::time::advance(LIFETIME + Duration::from_secs(1)).await;
        assert!(tokens.insert(0).is_ok());
    }

    #[test]
    fn tokens_fit_into_a_path_and_differ() {
        let tokens = Tokens::default();
        let all: std::collections::HashSet<String> =
            (0..100).map(|_| tokens.insert(()).expect("room")).collect();
        assert_eq!(all.len(), 100);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(all.iter().all(|token| token.len() >= 8 && token.chars().all(is_plain)));
    }
}
