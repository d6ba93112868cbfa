//! What an answer that is no success means, and a registry's own words for it.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, Response, StatusCode};
use hyper::body::Incoming;

use super::body::collect;
use super::cause::Cause;

/// The most bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 4096;
/// The most characters of a server's own words that an error repeats.
const WORDS_MAX: usize = 256;
/// How long an error's body is waited for.
const ERROR_LIMIT: Duration = Duration::from_secs(5);

/// The cause behind an answer that is neither a success nor a challenge.
pub(super) async fn refusal(response: Response<Incoming>) -> Cause {
    let status = response.status();
    if status == StatusCode::NOT_FOUND {
        return Cause::NotFound;
    }
    let wait = retry_after(response.headers(), jiff::Timestamp::now());
    let body = tokio::time::timeout(ERROR_LIMIT, collect(response.into_body(), ERROR_BYTES_MAX, ERROR_LIMIT));
    let words = match body.await {
        Ok(Ok(data)) => words(&data),
        _ => String::new(),
    };
    let text = format!("answered {status}{}{words}", if words.is_empty() { "" } else { ": " });
    match status.as_u16() {
        403 => Cause::Unauthorized(text),
        // What is there of the content has no such rest: it is to be fetched whole.
        416 => Cause::Corrupt(text),
        408 | 429 | 500 => Cause::Busy(text, wait),
        502..=504 => Cause::Down(text, wait),
        _ => Cause::Failed(text),
    }
}

/// How long a server wants to be left alone: seconds, or a time as HTTP writes it.
fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(time.duration_since(now)).unwrap_or_default())
}

/// A registry's own words, from the form that the distribution specification gives errors.
fn words(data: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Item {
        code: String,
        message: String,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(data) else { return String::new() };
    let texts = errors.errors.iter().map(|item| match item.message.as_str() {
        "" => item.code.clone(),
        message => format!("{}: {message}", item.code),
    });
    printable(&texts.collect::<Vec<_>>().join("; "))
}

/// Someone else's text as it may stand in a message of ours.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_repeated_with_bounds() {
        assert_eq!(
            words(br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\ndown","detail":{"x":1}},{"code":"B"}]}"#),
            "TOOMANYREQUESTS: slowdown; B"
        );
        assert_eq!(words(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(1000));
        assert_eq!(words(long.as_bytes()).len(), WORDS_MAX);
    }

    #[test]
    fn a_time_to_wait_is_a_number_or_a_date() {
        let now: jiff::Timestamp = "2026-03-01T10:00:00Z".parse().expect("a time");
        for (text, want) in [
            ("7", Some(7)),
            ("Sun, 01 Mar 2026 10:00:30 GMT", Some(30)),
            ("Sun, 01 Mar 2026 09:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a value"))]);
            assert_eq!(retry_after(&headers, now), want.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
