//! The registries of containerd's own configuration (IMG-27, VER-11).
//!
//! A node that changes over keeps what its administrator wrote for containerd's plugin:
//! `registry.config_path`, and the older `registry.mirrors`, `registry.configs` and
//! `registry.headers`, of format 2 (`io.containerd.grpc.v1.cri`) and 3
//! (`io.containerd.cri.v1.images`). Nothing else of that file is read; its `imports`
//! are not followed. The plugin takes either a `config_path` or the older keys, and so
//! does this.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The largest file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What is said of registries there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportedRegistries {
    /// Folders with one folder a registry.
    pub config_dirs: Vec<PathBuf>,
    /// Endpoints by registry; `*` for all others.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Settings by the host of an endpoint.
    pub hosts: BTreeMap<String, ImportedHost>,
    /// Headers for all registries; the values are secrets.
    pub headers: BTreeMap<String, Vec<String>>,
}

/// Settings of one host.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ImportedHost {
    /// Any certificate is good.
    pub skip_verify: bool,
    /// A file of authorities.
    pub ca_file: Option<PathBuf>,
    /// Our certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// User name; all that follow are secrets.
    pub username: String,
    /// Password.
    pub password: String,
    /// `user:password` in base64.
    pub auth: String,
    /// A refresh token.
    pub identity_token: String,
}

impl fmt::Debug for ImportedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImportedHost")
            .field("skip_verify", &self.skip_verify)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .finish_non_exhaustive()
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    plugins: Plugins,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Plugins {
    #[serde(rename = "io.containerd.grpc.v1.cri")]
    cri: Plugin,
    #[serde(rename = "io.containerd.cri.v1.images")]
    images: Plugin,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Plugin {
    registry: Option<Registry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Registry {
    config_path: String,
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Host>,
    headers: BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Mirror {
    endpoint: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Host {
    auth: Auth,
    tls: Tls,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Tls {
    insecure_skip_verify: bool,
    ca_file: String,
    cert_file: String,
    key_file: String,
}

impl ImportedRegistries {
    /// Reads `path`; nothing where there is no such file.
    ///
    /// # Errors
    /// What is wrong with the file, without quoting it: it can hold passwords.
    pub(super) fn read(path: &Path) -> Result<ImportedRegistries, String> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            _ => {}
        }
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<ImportedRegistries, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].lines().count().max(1));
            format!("line {}: {}", line.unwrap_or(1), error.message().replace('\n', " "))
        })?;
        let registry = file.plugins.images.registry.or(file.plugins.cri.registry).unwrap_or_default();
        // A list is written as in PATH.
        let dirs: Vec<PathBuf> =
            registry.config_path.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect();
        if !dirs.is_empty() {
            return Ok(ImportedRegistries { config_dirs: dirs, ..Default::default() });
        }
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let host = |Host { auth, tls }: Host| ImportedHost {
            skip_verify: tls.insecure_skip_verify,
            ca_file: path(tls.ca_file),
            cert_file: path(tls.cert_file),
            key_file: path(tls.key_file),
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            identity_token: auth.identitytoken,
        };
        Ok(ImportedRegistries {
            config_dirs: Vec::new(),
            mirrors: registry.mirrors.into_iter().map(|(name, mirror)| (name, mirror.endpoint)).collect(),
            hosts: registry.configs.into_iter().map(|(name, config)| (name, host(config))).collect(),
            headers: registry.headers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"
        version = 2
        [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
          endpoint = ["https://m.example", "http://n.example:5000"]
        [plugins."io.containerd.grpc.v1.cri".registry.configs."m.example".tls]
          ca_file = "/ca.pem"
          cert_file = ""
        [plugins."io.containerd.grpc.v1.cri".registry.configs."m.example".auth]
          username = "u"
          password = "hunter2"
        [plugins."io.containerd.grpc.v1.cri".registry.headers]
          X-Key = ["v"]
        [plugins."io.containerd.grpc.v1.cri".containerd]
          snapshotter = "overlayfs"
    "#;

    #[test]
    fn both_formats_are_read_and_nothing_is_printed() {
        let old = ImportedRegistries::parse(OLD).expect("valid");
        assert_eq!(old.mirrors["docker.io"], ["https://m.example", "http://n.example:5000"]);
        let host = &old.hosts["m.example"];
        assert_eq!((host.ca_file.as_deref(), host.cert_file.as_deref()), (Some(Path::new("/ca.pem")), None));
        assert_eq!((host.password.as_str(), &old.headers["X-Key"]), ("hunter2", &vec!["v".to_owned()]));
        assert!(!format!("{old:?}").contains("hunter2"));
        let new = r#"
            version = 3
            [plugins.'io.containerd.cri.v1.images'.registry]
            config_path = "/etc/a:/etc/b"
        "#;
        let new = ImportedRegistries::parse(new).expect("valid");
        assert_eq!(new.config_dirs, [Path::new("/etc/a"), Path::new("/etc/b")]);
        assert_eq!(ImportedRegistries::parse("").expect("valid"), ImportedRegistries::default());
    }

    #[test]
    fn a_config_path_goes_before_the_older_keys() {
        let both = format!("{OLD}\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/c\"\n");
        let both = ImportedRegistries::parse(&both).expect("valid");
        assert!(both.mirrors.is_empty() && both.config_dirs == [Path::new("/c")]);
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing_and_a_broken_one_its_line() {
        assert_eq!(ImportedRegistries::read(Path::new("/no/such")), Ok(ImportedRegistries::default()));
        let error = ImportedRegistries::parse("a = 1\n[plugins\n").expect_err("broken");
        assert!(error.starts_with("line 2"), "{error}");
        let error = ImportedRegistries::parse(
            "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.x.auth]\npassword = 7",
        )
        .expect_err("wrong");
        assert!(!error.contains("7\n"), "{error}");
    }
}
