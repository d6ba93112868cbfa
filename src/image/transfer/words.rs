//! What the kubelet needs to know of a transfer's error, read from Go's and containerd's
//! words: errors of registries come as one text, for the server that seemed to matter
//! most.

use crate::containerd::TransferRequest;
use crate::error::{Error, Kind, not_found, precondition, unimplemented, unknown};
use crate::image::registry::{REFUSED, UNAVAILABLE};

/// A transfer's error as the kubelet is to see it, with `masked` over its words.
pub(super) fn explained(error: Error, masked: &dyn Fn(String) -> String) -> Error {
    if TransferRequest::is_unpack_refused(&error) {
        return error;
    }
    let text = masked(without_secrets(error.message()));
    let has = |words: &str| text.contains(words);
    if has("image verifier") && has("blocked pull of") {
        return unknown(format!("{REFUSED}{text}"));
    }
    if has("dial tcp") || has("TLS handshake timeout") {
        return unknown(format!("{UNAVAILABLE}{text}"));
    }
    if has("no match for platform") {
        return precondition(format!("no matching platform: {text}"));
    }
    if has("schema 1 image manifests") || has("docker.distribution.manifest.v1+") {
        return unimplemented(text);
    }
    match error.kind() {
        // Of all that can be missing, only the image itself is what the kubelet asked for.
        Kind::NotFound if has("failed to resolve image") => not_found(text),
        kind @ (Kind::Unavailable | Kind::DeadlineExceeded | Kind::Canceled | Kind::ResourceExhausted) => {
            Error::new(kind, text)
        }
        _ => unknown(text),
    }
}

/// `text` with its URLs cut down to what is no secret: without a user, and without a
/// query, in which storage servers are given signatures (IMG-19).
fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("://") {
        let (before, url) = rest.split_at(begin + 3);
        clean.push_str(before);
        let end = url.find(|c: char| c.is_whitespace() || "\"'`<>".contains(c)).unwrap_or(url.len());
        let (url, after) = url.split_at(end);
        let (url, query) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let host_end = url.find('/').unwrap_or(url.len());
        let begin = url[..host_end].rfind('@').map_or(0, |at| at + 1);
        clean.push_str(&url[begin..]);
        // What stands after the URL in the sentence, and not in it.
        let sentence = query.len() - query.trim_end_matches([':', ',', ';', '.', ')']).len();
        clean.push_str(&query[query.len() - sentence..]);
        rest = after;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::invalid;

    #[test]
    fn what_the_kubelet_must_know_is_read_from_the_words() {
        let plain = |text: String| text;
        let resolve = |end: &str| format!("containerd's Transfer.Transfer: failed to resolve image: {end}");
        for (kind, text, want, begins) in [
            (
                Kind::Unknown,
                resolve(
                    "failed to do request: Head \"http://[::1]:1/v2/a/manifests/1\": dial tcp [::1]:1: connect: connection refused",
                ),
                Kind::Unknown,
                "RegistryUnavailable: containerd's",
            ),
            (Kind::NotFound, resolve("r.io/a:1: not found"), Kind::NotFound, "containerd's"),
            (Kind::NotFound, "lease does not exist: not found".to_owned(), Kind::Unknown, "lease"),
            (
                Kind::NotFound,
                "no match for platform in manifest: not found".to_owned(),
                Kind::FailedPrecondition,
                "no matching platform: ",
            ),
            (
                Kind::Unknown,
                "image verifier bindir blocked pull of r.io/a:1 with digest sha256:1 for reason: no"
                    .to_owned(),
                Kind::Unknown,
                "SignatureValidationFailed: image verifier",
            ),
            (
                Kind::InvalidArgument,
                "schema 1 image manifests are no longer supported".to_owned(),
                Kind::Unimplemented,
                "schema 1",
            ),
            (Kind::FailedPrecondition, "unexpected commit digest".to_owned(), Kind::Unknown, "unexpected"),
            (Kind::Unavailable, "containerd does not answer".to_owned(), Kind::Unavailable, "containerd"),
        ] {
            let error = explained(Error::new(kind, text.clone()), &plain);
            assert_eq!(error.kind(), want, "{text}");
            assert!(error.message().starts_with(begins), "{error}");
        }
    }

    #[test]
    fn urls_lose_what_may_be_secret() {
        for (text, want) in [
            ("no URL: a@b?c", "no URL: a@b?c"),
            ("Get \"https://u:p@r.io/v2/a?ns=x&token=s\": EOF", "Get \"https://r.io/v2/a\": EOF"),
            (
                "from GET request to https://s3.example/b/c?X-Sig=1: 403 Forbidden",
                "from GET request to https://s3.example/b/c: 403 Forbidden",
            ),
            ("https://r.io/v2/a: not found", "https://r.io/v2/a: not found"),
            ("http://a?x http://b@c:5#d", "http://a http://c:5"),
            ("https://r.io/a@sha256:1?s (x)", "https://r.io/a@sha256:1 (x)"),
        ] {
            assert_eq!(without_secrets(text), want);
        }
        let echo = invalid("server message: no user ann with hunter2");
        let masked = explained(echo, &|text| text.replace("hunter2", "<masked>"));
        assert!(!masked.message().contains("hunter2"));
    }
}
