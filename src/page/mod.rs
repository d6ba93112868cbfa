//! The page: pods, calls as they run, where the time goes, what failed, and where a field of
//! a spec comes from; for a browser.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the page, whole: it asks nobody but this server |
//! | `GET /v1/spec/ID` | the spec of a container or pod as it would be made now, with its origins: an [`explain::Explanation`] |
//! | `GET /v1/…` | what the admin socket answers |
//!
//! Off by default, and read by whoever reaches the socket or is on this host: nothing can be
//! changed here, and no secret passes. A site that a browser on this host visits is not to
//! read it either: it cannot, as another origin, unless it makes a name of its own point here.
//! Therefore only questions to an address or to `localhost` are answered.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::admin::Admin;
use crate::config::Config;
use crate::error::{Result, deadline, internal};
use crate::explain::{self, Explanation, ImageFiles, Node};
use crate::httpd::{Answer, Asked, Handler, answer};
use crate::trace::mask;

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// How long an explanation may take: less than a client may stay.
const EXPLAIN_LIMIT: Duration = Duration::from_secs(8);

/// What is shown.
#[derive(Clone)]
pub struct Page {
    admin: Admin,
    config: Arc<Config>,
    html: Bytes,
    policy: HeaderValue,
    /// One explanation at a time: each asks containerd, and translates many times.
    explaining: Arc<Semaphore>,
}

impl Page {
    /// The page of the server with `config`, which shows what `admin` does.
    ///
    /// # Errors
    /// None in practice: the page's own policy is no header.
    pub fn new(admin: Admin, config: Arc<Config>) -> Result<Page> {
        let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
        // Nothing but what is in the page, and no word to anybody else.
        let policy = format!(
            "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT),
        );
        let policy = HeaderValue::try_from(policy).map_err(|wrong| internal(wrong.to_string()))?;
        let html = HTML.replace("{style}", STYLE).replace("{script}", SCRIPT);
        Ok(Page { admin, config, html: html.into(), policy, explaining: Arc::new(Semaphore::new(1)) })
    }

    /// Answers what is asked of the page.
    #[must_use]
    pub fn handler(self) -> Handler {
        Arc::new(move |asked| {
            let page = self.clone();
            Box::pin(async move { page.secured(asked).await })
        })
    }

    async fn secured(&self, asked: Asked) -> Answer {
        let mut answer = if is_asked_here(asked.headers()) {
            self.answer(&asked).await
        } else {
            answer(StatusCode::FORBIDDEN, "text/plain", "ask for localhost, or for an address\n")
        };
        let headers = answer.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    async fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.uri().path();
        if path == "/" {
            return answer(StatusCode::OK, "text/html; charset=utf-8", self.html.clone());
        }
        match path.strip_prefix("/v1/spec/") {
            Some(id) => match self.spec(id).await {
                Ok(body) => answer(StatusCode::OK, "application/json", body),
                Err(error) if error.is_not_found() => {
                    answer(StatusCode::NOT_FOUND, "text/plain", format!("{error}\n"))
                }
                Err(error) => answer(StatusCode::BAD_GATEWAY, "text/plain", format!("{error}\n")),
            },
            None => self.admin.answer(asked.uri()).await,
        }
    }

    async fn spec(&self, id: &str) -> Result<Bytes> {
        let explained = async {
            // Never closed.
            let _turn = self.explaining.acquire().await;
            let mut node = Node::look(Config::clone(&self.config), ImageFiles::default()).await?;
            let recorded = node.recorded(id).await?;
            explain::explain(&mut node, &recorded.requests, &recorded.ids).await
        };
        let explained = tokio::time::timeout(EXPLAIN_LIMIT, explained).await;
        let explained = explained
            .map_err(|_| deadline(format!("explaining {id:?} took longer than {EXPLAIN_LIMIT:?}")))??;
        masked(&explained)
    }
}

/// An explanation without the secrets that its specs have.
fn masked(explained: &Explanation) -> Result<Bytes> {
    let unwritten = |error: serde_json::Error| internal(error.to_string());
    let mut json = serde_json::to_value(explained).map_err(unwritten)?;
    if let Some(spec) = json.pointer_mut("/pod/spec") {
        mask::value(spec);
    }
    for container in json["containers"].as_array_mut().into_iter().flatten() {
        mask::value(&mut container["spec"]);
    }
    serde_json::to_vec(&json).map(Bytes::from).map_err(unwritten)
}

/// Whether a name that is asked for cannot be another site's.
fn is_asked_here(headers: &HeaderMap) -> bool {
    let Some(Ok(host)) = headers.get(HOST).map(HeaderValue::to_str) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_answered() {
        let is_here = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().expect("a value"));
            is_asked_here(&headers)
        };
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:80", "[::1]:8080", "[::1]"] {
            assert!(is_here(host), "{host}");
        }
        for host in ["", "evil.test", "evil.test:80", "localhost.evil.test", "127.0.0.1.evil.test", "::x"] {
            assert!(!is_here(host), "{host}");
        }
        assert!(!is_asked_here(&HeaderMap::new()));
    }

    #[test]
    fn the_page_asks_nobody_else() {
        for part in [HTML, STYLE, SCRIPT] {
            assert!(!part.contains("http://") && !part.contains("https://") && !part.contains("//cdn"));
        }
        // Where a text became markup, a pod's name could become a script.
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        assert!(HTML.contains("<style>{style}</style>") && HTML.contains("<script>{script}</script>"));
    }
}
