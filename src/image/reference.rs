//! Image references: `registry/path:tag` and `registry/path@digest`, normalised.
//!
//! What is written short is completed as everywhere (IMG-01): no registry means
//! `docker.io`, a single name there is below `library/`, neither tag nor digest means
//! `:latest`; with both a tag and a digest the digest counts. The grammar is that of
//! the distribution project, which containerd uses, so that a name that longshore
//! writes is the name that every other client of containerd reads.

use std::fmt;

use super::digest::is_digest;
use crate::error::{Error, Result, invalid};

/// The longest path of a repository, in bytes.
const PATH_BYTES_MAX: usize = 255;
/// The longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

/// A normalised reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reference {
    domain: String,
    path: String,
    object: Object,
}

/// What of the repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Object {
    /// What a tag points at now.
    Tag(String),
    /// One manifest for ever.
    Digest(String),
}

impl Reference {
    /// Parses and completes `text`.
    ///
    /// # Errors
    /// InvalidArgument, with what is wrong.
    pub(super) fn parse(text: &str) -> Result<Reference> {
        let parts = Parts::parse(text)?;
        let object = match (parts.tag, parts.digest) {
            (_, Some(digest)) => Object::Digest(digest.to_owned()),
            (Some(tag), None) => Object::Tag(tag.to_owned()),
            (None, None) => Object::Tag("latest".to_owned()),
        };
        Ok(Reference { domain: parts.domain.to_owned(), path: parts.path, object })
    }

    /// The registry as in the name, with its port: `docker.io`, `localhost:5000`.
    pub(super) fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Tag or digest.
    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// The reference of a certain manifest in the same repository.
    pub(super) fn with_digest(&self, digest: &str) -> Reference {
        Reference { object: Object::Digest(digest.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Object::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Object::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

/// Where a name of an image record belongs in the CRI's lists (IMG-07).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listing {
    Tag(String),
    Digest(String),
    /// An id, a name with neither, or no reference at all.
    Nowhere,
}

pub(super) fn listing(name: &str) -> Listing {
    // An id reads as the tag of a repository "sha256".
    let parts = if is_digest(name) { None } else { Parts::parse(name).ok() };
    let Some(parts) = parts else { return Listing::Nowhere };
    let tag = parts.tag.map(|tag| format!(":{tag}")).unwrap_or_default();
    let repository = format!("{}/{}", parts.domain, parts.path);
    match parts.digest {
        Some(digest) => Listing::Digest(format!("{repository}{tag}@{digest}")),
        None if !tag.is_empty() => Listing::Tag(format!("{repository}{tag}")),
        None => Listing::Nowhere,
    }
}

struct Parts<'a> {
    domain: &'a str,
    path: String,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn parse(text: &'a str) -> Result<Parts<'a>> {
        let wrong = |why: &str| -> Error { invalid(format!("image reference {text:?}: {why}")) };
        if text.is_empty() {
            return Err(wrong("is empty"));
        }
        if text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong("64 hexadecimal digits are an id, not a name"));
        }
        let (domain, rest) = split_domain(text);
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if let Some(digest) = digest
            && !is_digest(digest)
        {
            return Err(wrong("what stands after '@' is not a digest"));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(wrong("the tag is not valid"));
        }
        if path.bytes().any(|c| c.is_ascii_uppercase()) {
            return Err(wrong("the repository name must be lowercase"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(wrong("the repository name is not valid"));
        }
        // The grammar reads what is no host name as the first part of the path.
        if !is_domain(domain) && !is_path_component(domain) {
            return Err(wrong("the registry is not a host name"));
        }
        let library = domain == DOCKER_HUB && !path.contains('/');
        let path = if library { format!("library/{path}") } else { path.to_owned() };
        if path.len() > PATH_BYTES_MAX {
            return Err(wrong("the repository name is longer than 255 bytes"));
        }
        Ok(Parts { domain, path, tag, digest })
    }
}

const DOCKER_HUB: &str = "docker.io";

/// The registry, and what stands after it: the first part is a registry if it looks
/// like a host and not like the first folder of a path.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some(("index.docker.io", rest)) => (DOCKER_HUB, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, text),
    }
}

/// A host name, an IPv4 address or an IPv6 address in brackets, with or without a port.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.is_empty() || !address.bytes().all(|c| c.is_ascii_hexdigit() || c == b':') {
                    return false;
                }
                (None, port.strip_prefix(':').or(if port.is_empty() { None } else { Some("") }))
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    host.is_none_or(|host| host.split('.').all(is_host_label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit()))
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Lowercase words, separated by a dot, one or two underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(|c| is_word(*c)) || !bytes.last().is_some_and(|c| is_word(*c)) {
        return false;
    }
    bytes.split(|c| is_word(*c)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|c| *c == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|c| is_word(c) || c == b'.' || c == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_are_completed() {
        let digest = format!("sha256:{HEX}");
        for (text, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.2", "docker.io/library/busybox:1.2"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/a", "docker.io/library/a:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b__c.d--e_f", "localhost:5000/a/b__c.d--e_f:latest"),
            ("LOCAL/a", "LOCAL/a:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[fe80::1]/a", "[fe80::1]/a:latest"),
            ("under_score.example/a", "under_score.example/a:latest"),
            (&format!("a@{digest}"), &format!("docker.io/library/a@{digest}")),
            (&format!("r.io/a:1@{digest}"), &format!("r.io/a@{digest}")),
            (&format!("a:{}", "t".repeat(128)), &format!("docker.io/library/a:{}", "t".repeat(128))),
        ] {
            let reference = Reference::parse(text).expect(text);
            assert_eq!(reference.to_string(), want);
            assert_eq!(Reference::parse(want), Ok(reference), "{want} is its own normal form");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            " busybox",
            "Busybox",
            "a/B",
            "a:",
            "a:-1",
            "a@",
            "a@sha256:12",
            "a@md5:0123456789abcdef0123456789abcdef",
            &format!("a@sha256:{}", HEX.to_uppercase()),
            HEX,
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            "r.io:x/a",
            "r.io:/a",
            "-r.io/a",
            "[::1/a",
            "[]:1/a",
            "[::1]x/a",
            "under_score.example:5000/a",
            "https://r.io/a",
            "r.io/a?b",
            "r.io/a:t/b",
            &format!("a:{}", "t".repeat(129)),
            &"a".repeat(256),
        ] {
            let error = Reference::parse(text).expect_err(text);
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn names_are_listed_by_what_they_say_themselves() {
        let digest = format!("sha256:{HEX}");
        assert_eq!(listing("r.io/a:1"), Listing::Tag("r.io/a:1".into()));
        assert_eq!(listing(&format!("r.io/a@{digest}")), Listing::Digest(format!("r.io/a@{digest}")));
        assert_eq!(listing("foo:1"), Listing::Tag("docker.io/library/foo:1".into()));
        for nowhere in [digest.as_str(), "r.io/a", HEX, "what is this"] {
            assert_eq!(listing(nowhere), Listing::Nowhere, "{nowhere}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = Reference::parse(&text);
            let _ = listing(&text);
        }

        #[test]
        fn a_normal_form_is_stable(text in "[a-zA-Z0-9._:/@\\[\\]-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                let normal = reference.to_string();
                prop_assert_eq!(Reference::parse(&normal), Ok(reference));
            }
        }

        #[test]
        fn what_is_put_together_by_the_grammar_parses(
            domain in "([a-z0-9]{1,8}(-[a-z0-9]{1,4})?\\.){1,2}[a-z]{2,4}(:[0-9]{1,5})?",
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3}|/)[a-z0-9]{1,8}){0,4}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}",
        ) {
            let text = format!("{domain}/{path}:{tag}");
            let reference = Reference::parse(&text).expect("valid");
            prop_assert_eq!(reference.domain(), domain);
            // docker.io can come out of the generator in theory: it is then completed.
            prop_assert!(reference.path().ends_with(&path));
            prop_assert_eq!(reference.object(), &Object::Tag(tag));
        }
    }
}
