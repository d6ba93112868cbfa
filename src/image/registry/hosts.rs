//! Which servers are asked for the images of a registry.
//!
//! In each folder of `image.registry_config_dirs` a registry may have a folder of its
//! own, under its name, with the port as `_port_` or `:port`, or share the folder
//! `_default` (IMG-20). The first folder that is found decides. Its `hosts.toml`
//! ([`file`]) is read anew for each pull; without one its certificates count (Docker's
//! layout, IMG-25): `*.crt` are authorities, `*.cert` with `*.key` pairs of a client.
//!
//! A registry without a folder is as containerd's older configuration has it
//! ([`imported`]), if that says anything of registries.
//!
//! A file that does not parse, or names a certificate that cannot be read, stops the
//! pull: going on without it could send a request where it was not meant to go.

mod file;
mod imported;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderMap;

use super::credentials::Secret;
use super::trust::{ClientPair, Pem, Trust};
use crate::config::ImportedRegistries;
use crate::error::{Context, Result, invalid};

/// The largest hosts.toml.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most registries of one folder that are looked at where all are.
const REGISTRIES_MAX: usize = 1024;

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
    /// Whether it is spoken to in the clear if it does not speak TLS.
    pub(super) falls_back: bool,
    /// What is sent along with each request to it. The values are secrets.
    pub(super) headers: HeaderMap,
    /// Who asks it where a pull does not say it.
    pub(super) secret: Option<Secret>,
    /// Whom it must convince, and who we are.
    pub(super) trust: Arc<Trust>,
}

impl Endpoint {
    /// Where the images of `domain` are when no URL says so (IMG-23).
    ///
    /// A loopback host with a port that says nothing is tried with TLS first, whatever
    /// its certificate, and then in the clear.
    fn upstream(domain: &str, trust: Trust) -> Endpoint {
        // Docker Hub's registry has another name than its images.
        let authority = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
        let (scheme, falls_back, skips) = match (is_loopback(authority), port(authority)) {
            (false, _) => ("https", false, false),
            (true, Some(80)) => ("http", false, false),
            (true, None | Some(443)) => ("https", false, true),
            (true, Some(_)) => ("https", true, true),
        };
        Endpoint {
            origin: format!("{scheme}://{authority}"),
            authority: authority.to_owned(),
            root: "/v2".to_owned(),
            resolves: true,
            pulls: true,
            falls_back,
            headers: HeaderMap::new(),
            secret: None,
            trust: Arc::new(Trust { skip_verify: trust.skip_verify || skips, ..trust }),
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
/// InvalidArgument for a file that cannot be followed, with its path.
pub(super) fn endpoints(
    folders: &[PathBuf],
    imported: &ImportedRegistries,
    domain: &str,
) -> Result<Vec<Endpoint>> {
    let endpoints = match folder_of(folders, domain) {
        Some(folder) => endpoints_in(&folder, domain)?,
        None => match imported::endpoints(imported, domain)? {
            Some(endpoints) => return Ok(endpoints),
            None => vec![Endpoint::upstream(domain, Trust::default())],
        },
    };
    endpoints.into_iter().map(|endpoint| imported::complete(imported, endpoint)).collect()
}

fn endpoints_in(folder: &Path, domain: &str) -> Result<Vec<Endpoint>> {
    let path = folder.join("hosts.toml");
    match read(&path, FILE_BYTES_MAX) {
        Ok(text) if !text.is_empty() => {
            let text = String::from_utf8(text).map_err(|_| invalid("it is not UTF-8"));
            text.and_then(|text| file::parse(&text, domain, folder)).context(|| path.display())
        }
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(vec![Endpoint::upstream(domain, certificates_in(folder)?)]),
    }
}

/// Who asks the host `authority` where a pull does not say it, and containerd's configuration
/// does.
///
/// # Errors
/// InvalidArgument for what is no credentials.
pub(super) fn known_secret(imported: &ImportedRegistries, authority: &str) -> Result<Option<Secret>> {
    imported::known_secret(imported, authority)
}

/// The folder with the configuration of the registry `domain`, if there is one.
pub(super) fn folder_of(folders: &[PathBuf], domain: &str) -> Option<PathBuf> {
    let names = folder_names(domain);
    folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|folder| folder.is_dir())
}

/// Reads the `hosts.toml` of every registry, as a pull would: for [`super::read_hosts_files`].
pub(in crate::image) fn read_all(folders: &[PathBuf]) -> Vec<(PathBuf, Result<usize>)> {
    let mut read_files = Vec::new();
    for base in folders {
        let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
        let mut registries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        registries.sort();
        for folder in registries.into_iter().filter(|folder| folder.is_dir()).take(REGISTRIES_MAX) {
            let path = folder.join("hosts.toml");
            let text = match read(&path, FILE_BYTES_MAX) {
                Err(error) if error.is_not_found() => continue,
                text => text.and_then(|text| String::from_utf8(text).map_err(|_| invalid("it is not UTF-8"))),
            };
            let domain = folder.file_name().unwrap_or_default().to_string_lossy();
            let servers = text.and_then(|text| file::parse(&text, &domain, &folder)).map(|found| found.len());
            read_files.push((path, servers));
        }
    }
    read_files
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

/// A whole file of at most `bytes_max` bytes.
///
/// # Errors
/// NotFound if there is none; InvalidArgument if it cannot be read; both with its path.
fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let is_too_large = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > bytes_max);
    if is_too_large {
        return Err(invalid(format!("{}: larger than {bytes_max} bytes", path.display())));
    }
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => crate::error::not_found(format!("{} is not there", path.display())),
        _ => invalid(format!("{}: {}", path.display(), crate::error::Error::from(error))),
    })
}

/// A file of certificates or keys that the configuration names.
fn pem(path: &Path) -> Result<Pem> {
    let data = read(path, FILE_BYTES_MAX)
        // What the configuration names must be there.
        .map_err(|error| error.with_kind(crate::error::Kind::InvalidArgument))?;
    Ok(Pem { path: path.to_owned(), data })
}

/// Docker's layout of certificates without a hosts.toml (IMG-25).
fn certificates_in(folder: &Path) -> Result<Trust> {
    let entries = std::fs::read_dir(folder).context(|| format!("list {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut trust = Trust::default();
    for path in paths.iter().filter(|path| path.is_file()) {
        match path.extension().and_then(|end| end.to_str()) {
            Some("crt") => trust.authorities.push(pem(path)?),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = if key.is_file() { pem(&key)? } else { pem(path)? };
                trust.client.push(ClientPair { certificate: pem(path)?, key });
            }
            _ => {}
        }
    }
    Ok(trust)
}

/// Whether a host is this machine itself.
pub(super) fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn port(authority: &str) -> Option<u16> {
    authority.parse::<http::uri::Authority>().ok()?.port_u16()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::fs;

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        for (domain, origin, falls_back, skips) in [
            ("docker.io", "https://registry-1.docker.io", false, false),
            ("r.io:5000", "https://r.io:5000", false, false),
            ("localhost:5000", "https://localhost:5000", true, true),
            ("127.0.0.1:80", "http://127.0.0.1:80", false, false),
            ("[::1]:5000", "https://[::1]:5000", true, true),
            ("localhost", "https://localhost", false, true),
            ("127.0.0.1:443", "https://127.0.0.1:443", false, true),
        ] {
            let endpoints = endpoints(&[], &ImportedRegistries::default(), domain).expect("no files");
            let [endpoint] = endpoints.as_slice() else { panic!("{domain}: {endpoints:?}") };
            assert_eq!(
                (endpoint.origin.as_str(), endpoint.falls_back, endpoint.trust.skip_verify),
                (origin, falls_back, skips)
            );
            assert!(!endpoint.is_mirror_of(domain), "{domain}");
        }
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
        let origin = |domain: &str| {
            endpoints(&dirs, &ImportedRegistries::default(), domain).expect("valid").remove(0).origin
        };
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
    fn mistakes_name_the_file() {
        let folder = tempfile::tempdir().expect("folder");
        let own = folder.path().join("r.io");
        fs::create_dir(&own).expect("folder");
        let file = own.join("hosts.toml");
        for (text, want) in [("a = 1\n[b", "line 2"), ("ca = \"none.pem\"", "none.pem is not there")] {
            fs::write(&file, text).expect("file");
            let error = endpoints(&[folder.path().to_owned()], &ImportedRegistries::default(), "r.io")
                .expect_err(text);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.message().starts_with(file.to_str().expect("UTF-8")), "{error}");
            assert!(error.message().contains(want), "{error}");
        }
    }

    #[test]
    fn certificates_without_a_hosts_toml_are_dockers() {
        let folder = tempfile::tempdir().expect("folder");
        let own = folder.path().join("r.io");
        fs::create_dir(&own).expect("folder");
        let upstream = || {
            endpoints(&[folder.path().to_owned()], &ImportedRegistries::default(), "r.io")
                .expect("valid")
                .remove(0)
        };
        assert_eq!(*upstream().trust, Trust::default());
        for name in ["ca.crt", "a.cert", "a.key", "b.cert", "hosts.toml"] {
            fs::write(own.join(name), if name == "hosts.toml" { "" } else { name }).expect("file");
        }
        let trust = upstream().trust;
        let pairs: Vec<_> =
            trust.client.iter().map(|pair| (&*pair.certificate.data, &*pair.key.data)).collect();
        assert_eq!(trust.authorities[0].data, b"ca.crt");
        assert_eq!(pairs, [(&b"a.cert"[..], &b"a.key"[..]), (b"b.cert", b"b.cert")]);
    }
}
