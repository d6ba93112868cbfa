//! Which servers are asked for the images of a registry: `hosts.toml`.
//!
//! In each folder of `image.registry_config_dirs` a registry may have a folder of its
//! own, under its name, with the port as `_port_` or `:port`, or share the folder
//! `_default` (IMG-20). Its `hosts.toml` is read anew for each pull:
//!
//! ```toml
//! server = "https://registry.example.com"   # the upstream, asked last
//!
//! [host."https://mirror.example.com"]       # mirrors, asked in this order (IMG-22)
//!   capabilities = ["pull", "resolve"]
//!   override_path = false
//! ```
//!
//! A key that would change whom we trust or what we tell a server (`ca`, `client`,
//! `skip_verify`, `header`) and is not served stops the pull: going on without it could
//! send a request where it was not meant to go. A file that does not parse stops it too.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use tracing::warn;

use crate::error::{Context, Result, invalid, unimplemented};

/// The largest hosts.toml.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The most servers that one registry has.
const HOSTS_MAX: usize = 64;

/// A server that is asked for images of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `http://host:port` or `https://host:port`.
    pub(super) origin: String,
    /// `host:port`, the port as written.
    pub(super) authority: String,
    /// The root of its API, without a slash at the end: `/v2`.
    pub(super) root: String,
    /// Whether it may say what a tag points at (IMG-24).
    pub(super) resolves: bool,
    /// Whether content comes from it.
    pub(super) pulls: bool,
}

impl Endpoint {
    /// Where the images of `domain` are without any configuration.
    fn upstream(domain: &str) -> Endpoint {
        // Docker Hub's registry has another name than its images.
        let authority = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let scheme = if is_plain(authority) { "http" } else { "https" };
        Endpoint {
            origin: format!("{scheme}://{authority}"),
            authority: authority.to_owned(),
            root: "/v2".to_owned(),
            resolves: true,
            pulls: true,
        }
    }

    /// Whether it serves the images of `domain` on behalf of another (IMG-23).
    pub(super) fn is_mirror_of(&self, domain: &str) -> bool {
        self.authority != domain && (domain, self.authority.as_str()) != ("docker.io", "registry-1.docker.io")
    }
}

/// The servers for `domain` in the order in which they are asked. Blocks.
///
/// # Errors
/// InvalidArgument or Unimplemented for a file that cannot be followed, with its path.
pub(super) fn endpoints(folders: &[PathBuf], domain: &str) -> Result<Vec<Endpoint>> {
    for folder in folders {
        for name in folder_names(domain) {
            let folder = folder.join(name);
            if !folder.is_dir() {
                continue;
            }
            let file = folder.join("hosts.toml");
            let text = match std::fs::metadata(&file) {
                Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                    return Err(invalid(format!("{}: larger than {FILE_BYTES_MAX} bytes", file.display())));
                }
                _ => std::fs::read_to_string(&file),
            };
            return match text {
                Ok(text) => parse(&text, domain).context(|| file.display()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    refuse_certificates(&folder)?;
                    Ok(vec![Endpoint::upstream(domain)])
                }
                Err(error) => Err(error).context(|| file.display()),
            };
        }
    }
    Ok(vec![Endpoint::upstream(domain)])
}

/// The folder with the configuration of the registry `domain`, if there is one.
pub(in crate::image) fn folder_of(folders: &[PathBuf], domain: &str) -> Option<PathBuf> {
    let names = folder_names(domain);
    folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|folder| folder.is_dir())
}

fn folder_names(domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = domain.rsplit_once(':')
        && !port.ends_with(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(domain.to_owned());
    names.push("_default".to_owned());
    names
}

/// Docker's layout of certificates without a hosts.toml (IMG-25).
fn refuse_certificates(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).context(|| format!("list {}", folder.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "crt" || end == "cert" || end == "key") {
            return Err(unimplemented(format!("{}: certificates are not served yet", path.display())));
        }
    }
    Ok(())
}

fn parse(text: &str, domain: &str) -> Result<Vec<Endpoint>> {
    let root = DeTable::parse(text).map_err(|error| {
        let before = |end: usize| text.bytes().take(end).filter(|byte| *byte == b'\n').count();
        let line = error.span().map(|span| before(span.start) + 1);
        invalid(format!("line {}: {}", line.unwrap_or(1), error.message().replace('\n', " ")))
    })?;
    let root = root.get_ref();
    // The upstream's own keys stand at the top.
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
            ("server" | "host", _) => return Err(invalid(format!("{} is of the wrong type", key.get_ref()))),
            _ => {}
        }
    }
    if mirrors.len() > HOSTS_MAX {
        return Err(invalid(format!("{} hosts are more than {HOSTS_MAX}", mirrors.len())));
    }
    mirrors.sort_by_key(|(place, ..)| *place);
    let mut endpoints = Vec::with_capacity(mirrors.len() + 1);
    for (_, url, table) in mirrors {
        endpoints.push(endpoint(&url, table).context(|| format!("host.{url:?}"))?);
    }
    endpoints.push(if server.is_empty() {
        let settings = Settings::read(root)?;
        Endpoint { resolves: settings.resolves, pulls: settings.pulls, ..Endpoint::upstream(domain) }
    } else {
        endpoint(&server, root).context(|| "server")?
    });
    Ok(endpoints)
}

fn endpoint(url: &str, table: &DeTable<'_>) -> Result<Endpoint> {
    let settings = Settings::read(table)?;
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
        if settings.overrides_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
    Ok(Endpoint {
        origin: format!("{scheme}://{authority}"),
        authority: authority.to_string(),
        root,
        resolves: settings.resolves,
        pulls: settings.pulls,
    })
}

struct Settings {
    resolves: bool,
    pulls: bool,
    overrides_path: bool,
}

impl Settings {
    fn read(table: &DeTable<'_>) -> Result<Settings> {
        let mut settings = Settings { resolves: true, pulls: true, overrides_path: false };
        for (key, value) in table {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("server" | "host", _) => {}
                ("capabilities", DeValue::Array(list)) if !list.is_empty() => {
                    (settings.resolves, settings.pulls) = (false, false);
                    for capability in list {
                        let name = match capability.get_ref() {
                            DeValue::String(name) => name.to_ascii_lowercase(),
                            _ => return Err(invalid("capabilities must be strings")),
                        };
                        match name.as_str() {
                            "pull" => settings.pulls = true,
                            "resolve" => settings.resolves = true,
                            "push" | "referrers" => {}
                            _ => return Err(invalid(format!("{name:?} is not a capability"))),
                        }
                    }
                }
                ("capabilities", DeValue::Array(_)) => {}
                ("override_path", DeValue::Boolean(overrides)) => settings.overrides_path = *overrides,
                ("skip_verify", DeValue::Boolean(false)) => {}
                ("ca" | "client" | "skip_verify" | "header", _) => {
                    return Err(unimplemented(format!("{:?} is not served yet", key.get_ref())));
                }
                ("capabilities" | "override_path", _) => {
                    return Err(invalid(format!("{} is of the wrong type", key.get_ref())));
                }
                (other, _) => warn!(key = other, "a key of hosts.toml has no effect"),
            }
        }
        Ok(settings)
    }
}

/// Whether a host is this machine itself and spoken to without TLS (IMG-23).
fn is_plain(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host();
    let is_loopback = host == "localhost"
        || host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    is_loopback && !matches!(authority.port_u16(), None | Some(443))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;
    use std::fs;

    proptest! {
        #[test]
        fn reading_never_panics(text in "[\\[\\]a-z.=\"{}: /\n\u{e9}0-9]{0,80}") {
            let _ = parse(&text, "r.io");
        }
    }

    fn origins(text: &str) -> Vec<String> {
        parse(text, "r.io").expect("valid").into_iter().map(|endpoint| endpoint.origin).collect()
    }

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        for (domain, origin) in [
            ("docker.io", "https://registry-1.docker.io"),
            ("r.io:5000", "https://r.io:5000"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1:80", "http://127.0.0.1:80"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("localhost", "https://localhost"),
            ("127.0.0.1:443", "https://127.0.0.1:443"),
        ] {
            let endpoints = endpoints(&[], domain).expect("no files");
            assert_eq!(endpoints.len(), 1);
            assert_eq!(endpoints[0].origin, origin);
            assert!(!endpoints[0].is_mirror_of(domain), "{domain}");
        }
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
        let endpoints = parse(text, "r.io").expect("valid");
        assert_eq!(
            endpoints.iter().map(|endpoint| endpoint.root.as_str()).collect::<Vec<_>>(),
            ["/v2", "/cache/v2", "/v2", "/v2"]
        );
        assert!(!endpoints[1].resolves && endpoints[1].pulls && endpoints[0].resolves);
        assert!(endpoints[3].is_mirror_of("r.io"));
        let bare = parse("[host.\"https://m.example/api\"]\noverride_path = true", "r.io").expect("valid");
        assert_eq!((bare[0].root.as_str(), bare[1].origin.as_str()), ("/api", "https://r.io"));
    }

    #[test]
    fn what_is_not_served_is_not_passed_over_when_it_matters() {
        for (text, kind) in [
            ("[host.\"https://m\"]\nca = \"x.crt\"", Kind::Unimplemented),
            ("[host.\"https://m\"]\nskip_verify = true", Kind::Unimplemented),
            ("[host.\"https://m\".header]\nx = \"y\"", Kind::Unimplemented),
            ("client = \"x\"", Kind::Unimplemented),
            ("server = \"https://u:p@r.io\"", Kind::InvalidArgument),
            ("server = 7", Kind::InvalidArgument),
            ("server = \"ftp://x\"", Kind::InvalidArgument),
            ("capabilities = [\"fly\"]", Kind::InvalidArgument),
            ("[host", Kind::InvalidArgument),
        ] {
            assert_eq!(parse(text, "r.io").expect_err(text).kind(), kind, "{text}");
        }
        assert_eq!(origins("skip_verify = false\ndial_timeout = \"3s\"\nnew = 1"), ["https://r.io"]);
    }

    #[test]
    fn the_folder_of_a_registry_is_found_under_all_its_names() {
        let folder = tempfile::tempdir().expect("folder");
        let dirs = [folder.path().join("nothing"), folder.path().to_owned()];
        let write = |name: &str, origin: &str| {
            fs::create_dir(folder.path().join(name)).expect("folder");
            fs::write(folder.path().join(name).join("hosts.toml"), format!("server = \"{origin}\""))
                .expect("file");
        };
        let origin = |domain: &str| endpoints(&dirs, domain).expect("valid").remove(0).origin;
        write("_default", "https://default.example");
        assert_eq!(origin("r.io:5000"), "https://default.example");
        write("r.io:5000", "https://colon.example");
        assert_eq!(origin("r.io:5000"), "https://colon.example");
        write("r.io_5000_", "https://underscore.example");
        assert_eq!(origin("r.io:5000"), "https://underscore.example");
        assert_eq!(folder_names("[::1]"), ["[::1]", "_default"]);
        assert_eq!(folder_names("[::1]:5000")[0], "[::1]_5000_");
    }

    #[test]
    fn mistakes_name_the_file_and_certificates_are_not_ignored() {
        let folder = tempfile::tempdir().expect("folder");
        let dirs = [folder.path().to_owned()];
        let own = folder.path().join("r.io");
        fs::create_dir(&own).expect("folder");
        assert_eq!(endpoints(&dirs, "r.io").expect("an empty folder").len(), 1);
        fs::write(own.join("ca.crt"), "").expect("file");
        assert_eq!(endpoints(&dirs, "r.io").expect_err("a CA").kind(), Kind::Unimplemented);
        fs::write(own.join("hosts.toml"), "a = 1\n[b").expect("file");
        let error = endpoints(&dirs, "r.io").expect_err("not TOML");
        assert!(error.message().starts_with(own.join("hosts.toml").to_str().expect("UTF-8")), "{error}");
        assert!(error.message().contains("line 2"), "{error}");
    }
}
