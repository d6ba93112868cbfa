//! `hosts.toml`, as containerd defines it (IMG-21).
//!
//! ```toml
//! server = "https://registry.example.com"   # the upstream, asked last
//!
//! [host."https://mirror.example.com"]       # mirrors, asked in this order (IMG-22)
//!   capabilities = ["pull", "resolve"]      # what it is asked for; all by default
//!   override_path = false                   # whether the URL's path is the whole root
//!   skip_verify = false                     # whether any certificate is good
//!   ca = "ca.pem"                           # also a list
//!   client = [["cert.pem", "key.pem"]]      # also "both.pem" or a list of such
//!   dial_timeout = "3s"
//!   [host."https://mirror.example.com".header]
//!     x-key = "value"                       # also a list
//! ```
//!
//! The keys of a host at the top of the file are the upstream's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use toml::de::{DeTable, DeValue};
use tracing::warn;

use super::super::trust::{ClientPair, Trust};
use super::{Endpoint, pem, port};
use crate::error::{Context, Error, Result, invalid};

/// The most servers that one registry has.
const HOSTS_MAX: usize = 64;

/// The servers that the file `text`, which lies in `folder`, names for `domain`.
///
/// # Errors
/// InvalidArgument with line or key.
pub(super) fn parse(text: &str, domain: &str, folder: &Path) -> Result<Vec<Endpoint>> {
    let root = DeTable::parse(text).map_err(|error| {
        let before = |end: usize| text.bytes().take(end).filter(|byte| *byte == b'\n').count();
        let line = error.span().map(|span| before(span.start) + 1);
        invalid(format!("line {}: {}", line.unwrap_or(1), error.message().replace('\n', " ")))
    })?;
    let root = root.get_ref();
    let mut server = String::new();
    let mut mirrors = Vec::new();
    for (key, value) in root {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("server", DeValue::String(url)) => server = url.to_string(),
            ("host", DeValue::Table(hosts)) => {
                for (url, table) in hosts {
                    let DeValue::Table(table) = table.get_ref() else {
                        return Err(invalid(format!("host.{:?} must be a table", url.get_ref())));
                    };
                    mirrors.push((url.span().start, url.get_ref().to_string(), table));
                }
            }
            ("server" | "host", _) => return Err(wrong_type(key.get_ref())),
            _ => {}
        }
    }
    if mirrors.len() > HOSTS_MAX {
        return Err(invalid(format!("{} hosts are more than {HOSTS_MAX}", mirrors.len())));
    }
    mirrors.sort_by_key(|(place, ..)| *place);
    let mut endpoints = Vec::with_capacity(mirrors.len() + 1);
    for (_, url, table) in mirrors {
        let settings = Settings::read(table, folder).and_then(|settings| settings.endpoint(&url));
        endpoints.push(settings.context(|| format!("host.{url:?}"))?);
    }
    let settings = Settings::read(root, folder)?;
    let upstream = if server.is_empty() {
        let Settings { resolves, pulls, headers, trust, .. } = settings;
        Endpoint { resolves, pulls, headers, ..Endpoint::upstream(domain, trust) }
    } else {
        settings.endpoint(&server).context(|| "server")?
    };
    // Often the upstream is named as its own mirror: it need not be asked twice.
    if !endpoints.contains(&upstream) {
        endpoints.push(upstream);
    }
    Ok(endpoints)
}

fn wrong_type(key: &str) -> Error {
    invalid(format!("{key} is of the wrong type"))
}

struct Settings {
    resolves: bool,
    pulls: bool,
    overrides_path: bool,
    headers: HeaderMap,
    trust: Trust,
    /// Whether anything about TLS is said.
    says_tls: bool,
}

impl Settings {
    fn read(table: &DeTable<'_>, folder: &Path) -> Result<Settings> {
        let mut settings = Settings {
            resolves: true,
            pulls: true,
            overrides_path: false,
            headers: HeaderMap::new(),
            trust: Trust::default(),
            says_tls: false,
        };
        for (key, value) in table {
            let (key, value) = (key.get_ref().as_ref(), value.get_ref());
            match (key, value) {
                ("server" | "host", _) => {}
                ("capabilities", DeValue::Array(_)) => settings.capabilities(&strings(key, value)?)?,
                ("override_path", DeValue::Boolean(overrides)) => settings.overrides_path = *overrides,
                ("skip_verify", DeValue::Boolean(skip)) => {
                    (settings.trust.skip_verify, settings.says_tls) = (*skip, true);
                }
                ("ca", _) => {
                    let files = strings(key, value)?;
                    let files = files.iter().map(|file| pem(&folder.join(file)));
                    settings.trust.authorities = files.collect::<Result<_>>().context(|| key)?;
                    settings.says_tls = true;
                }
                ("client", _) => {
                    settings.trust.client = pairs(value, folder).context(|| key)?;
                    settings.says_tls = true;
                }
                ("header", DeValue::Table(table)) => settings.headers = headers(table)?,
                ("dial_timeout", DeValue::String(text)) => {
                    let limit = duration(text)
                        .ok_or_else(|| invalid(format!("dial_timeout: {text:?} is not a duration")))?;
                    settings.trust.connect_limit = Some(limit);
                }
                ("capabilities" | "override_path" | "skip_verify" | "header" | "dial_timeout", _) => {
                    return Err(wrong_type(key));
                }
                (other, _) => warn!(key = other, "a key of hosts.toml has no effect"),
            }
        }
        Ok(settings)
    }

    fn capabilities(&mut self, names: &[String]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        (self.resolves, self.pulls) = (false, false);
        for name in names {
            match name.to_ascii_lowercase().as_str() {
                "pull" => self.pulls = true,
                "resolve" => self.resolves = true,
                "push" | "referrers" => {}
                _ => return Err(invalid(format!("{name:?} is not a capability"))),
            }
        }
        Ok(())
    }

    fn endpoint(self, url: &str) -> Result<Endpoint> {
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let uri: http::Uri = url.parse().map_err(|_| invalid("it is not a URL"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(invalid("it is not a URL"));
        };
        if !matches!(scheme, "http" | "https") {
            return Err(invalid("it is neither http nor https"));
        }
        if authority.as_str().contains('@') {
            return Err(invalid("a URL may not hold credentials"));
        }
        let path = uri.path().trim_end_matches('/');
        let root =
            if self.overrides_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
        // Where http comes with settings of TLS, containerd tries TLS first.
        let falls_back = scheme == "http" && self.says_tls && port(authority.as_str()) != Some(80);
        let scheme = if falls_back { "https" } else { scheme };
        Ok(Endpoint {
            origin: format!("{scheme}://{authority}"),
            authority: authority.to_string(),
            root,
            resolves: self.resolves,
            pulls: self.pulls,
            falls_back,
            headers: self.headers,
            secret: None,
            trust: Arc::new(self.trust),
        })
    }
}

/// One string or a list of them.
fn strings(key: &str, value: &DeValue<'_>) -> Result<Vec<String>> {
    let string = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(text.to_string()),
        _ => Err(invalid(format!("{key} must be strings"))),
    };
    match value {
        DeValue::Array(list) => list.iter().map(|item| string(item.get_ref())).collect(),
        one => Ok(vec![string(one)?]),
    }
}

/// Certificates of ours: files that hold both parts, or pairs of files.
fn pairs(value: &DeValue<'_>, folder: &Path) -> Result<Vec<ClientPair>> {
    let pair = |value: &DeValue<'_>| {
        let files = strings("client", value)?;
        let (certificate, key) = match (value, files.as_slice()) {
            (DeValue::String(_), [both]) => (both, both),
            (_, [certificate, key]) => (certificate, key),
            _ => return Err(invalid("a pair has two files")),
        };
        Ok(ClientPair { certificate: pem(&folder.join(certificate))?, key: pem(&folder.join(key))? })
    };
    match value {
        DeValue::Array(list) => list.iter().map(|item| pair(item.get_ref())).collect(),
        one => Ok(vec![pair(one)?]),
    }
}

fn headers(table: &DeTable<'_>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let name = name.get_ref().as_ref();
        let parsed: HeaderName =
            name.parse().map_err(|_| invalid(format!("{name:?} is not the name of a header")))?;
        for text in strings(name, value.get_ref())? {
            // The value stays out of the error: it may be a secret.
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| invalid(format!("the value of header {name:?} cannot be sent")))?;
            value.set_sensitive(true);
            headers.append(parsed.clone(), value);
        }
    }
    Ok(headers)
}

/// A duration as Go writes it: `1m30s`, `1.5s`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = &rest[number..];
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let scale = match &unit[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += rest[..number].parse::<f64>().ok()? * scale;
        rest = &unit[end..];
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<Vec<Endpoint>> {
        parse(text, "r.io", Path::new("/nowhere"))
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[\\[\\]a-z.=\"{}: /\n\u{e9}0-9]{0,80}") {
            let _ = parsed(&text);
        }

        #[test]
        fn durations_never_panic(text in "[0-9.hmsuµn]{0,12}") {
            let _ = duration(&text);
        }
    }

    fn origins(text: &str) -> Vec<String> {
        parsed(text).expect("valid").into_iter().map(|endpoint| endpoint.origin).collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_text() {
        let text = r#"
            server = "https://upstream.example"
            [host."https://z.example"]
            [host."http://a.example:81/cache"]
              capabilities = ["pull"]
            [host."m.example/v2/"]
              override_path = true
        "#;
        assert_eq!(
            origins(text),
            ["https://z.example", "http://a.example:81", "https://m.example", "https://upstream.example"]
        );
        let endpoints = parsed(text).expect("valid");
        assert_eq!(
            endpoints.iter().map(|endpoint| endpoint.root.as_str()).collect::<Vec<_>>(),
            ["/v2", "/cache/v2", "/v2", "/v2"]
        );
        assert!(!endpoints[1].resolves && endpoints[1].pulls && endpoints[0].resolves);
        assert!(endpoints[3].is_mirror_of("r.io"));
        let own = parsed("server = \"http://m:1\"\n[host.\"http://m:1\"]").expect("valid");
        assert_eq!(own.len(), 1, "{own:?}");
        let bare = parsed("[host.\"https://m.example/api\"]\noverride_path = true").expect("valid");
        assert_eq!((bare[0].root.as_str(), bare[1].origin.as_str()), ("/api", "https://r.io"));
    }

    #[test]
    fn every_key_of_a_host_counts() {
        let folder = tempfile::tempdir().expect("folder");
        for name in ["ca.pem", "b.pem", "cert.pem", "key.pem"] {
            std::fs::write(folder.path().join(name), name).expect("file");
        }
        let text = r#"
            skip_verify = true
            ca = "ca.pem"
            [host."http://m.example:5000"]
              ca = ["ca.pem", "b.pem"]
              client = [["cert.pem", "key.pem"], "b.pem"]
              dial_timeout = "1m1.5s"
              [host."http://m.example:5000".header]
                x-one = "secret one"
                x-two = ["2", "3"]
        "#;
        let endpoints = parse(text, "r.io", folder.path()).expect("valid");
        let [mirror, upstream] = endpoints.as_slice() else { panic!("{endpoints:?}") };
        assert!(upstream.trust.skip_verify && upstream.trust.authorities.len() == 1);
        // Settings of TLS beside http: TLS is tried first.
        assert_eq!((mirror.origin.as_str(), mirror.falls_back), ("https://m.example:5000", true));
        let names =
            |pem: &super::super::super::trust::Pem| String::from_utf8(pem.data.clone()).expect("UTF-8");
        assert_eq!(mirror.trust.authorities.iter().map(names).collect::<Vec<_>>(), ["ca.pem", "b.pem"]);
        let pairs: Vec<_> =
            mirror.trust.client.iter().map(|pair| (names(&pair.certificate), names(&pair.key))).collect();
        assert_eq!(pairs, [("cert.pem".into(), "key.pem".into()), ("b.pem".to_owned(), "b.pem".to_owned())]);
        assert_eq!(mirror.trust.connect_limit, Some(Duration::from_millis(61_500)));
        assert_eq!(mirror.headers.get_all("x-two").iter().count(), 2);
        assert!(!format!("{mirror:?}").contains("secret one"), "{mirror:?}");
    }

    #[test]
    fn mistakes_are_told_and_not_passed_over() {
        for text in [
            "server = \"https://u:p@r.io\"",
            "server = 7",
            "server = \"ftp://x\"",
            "capabilities = [\"fly\"]",
            "capabilities = \"pull\"",
            "skip_verify = \"yes\"",
            "ca = 1",
            "ca = \"none.pem\"",
            "client = [[\"one\"]]",
            "dial_timeout = \"soon\"",
            "dial_timeout = 3",
            "header = 1",
            "[header]\n\"a b\" = \"x\"",
            "[header]\na = \"x\\ny\"",
            "[host",
            "host.x = 1",
        ] {
            assert_eq!(parsed(text).expect_err(text).kind(), Kind::InvalidArgument, "{text}");
        }
        assert_eq!(origins("skip_verify = false\ndial_timeout = \"3s\"\nnew = 1"), ["https://r.io"]);
    }

    #[test]
    fn durations_are_gos() {
        for (text, want) in
            [("3s", 3000), ("1h", 3_600_000), ("1m30s", 90_000), ("250ms", 250), ("0.5s", 500)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(want)), "{text}");
        }
        for text in ["", "3", "s", "-1s", "0s", "1x", "1..2s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
