//! The registries of containerd's own configuration (IMG-27, VER-11).
//!
//! A node that changes over keeps what its administrator wrote for containerd's plugin:
//! `registry.config_path`, and the older `registry.mirrors`, `registry.configs`,
//! `registry.auths` and `registry.headers`, in every format and with the files that are
//! imported there. Nothing else of them is read here (`longshore config import` does
//! that). The plugin takes either a `config_path` or mirrors and settings of TLS, and so does
//! this; credentials and headers count with both.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::import::{Files, Generation};

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
struct Registry {
    config_path: String,
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Host>,
    auths: BTreeMap<String, Auth>,
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

#[derive(Clone, Default, Deserialize)]
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
    pub fn read(path: &Path) -> Result<ImportedRegistries, String> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            _ => Self::of(&Files::read(path)?),
        }
    }

    /// A section of one file goes over the same of another as in containerd 2.x: which
    /// one reads them is not known here, and a mirror too many is the lesser mistake.
    fn of(files: &Files) -> Result<ImportedRegistries, String> {
        let mut table = Table::new();
        for (path, entry) in files.merge(Generation::Two).take_below(&["images", "registry"]) {
            insert(&mut table, &path, entry.value);
        }
        // The message would quote the value.
        let mut registry: Registry = Value::Table(table)
            .try_into()
            .map_err(|_| "a key of the registries has a value of the wrong kind".to_owned())?;
        for (endpoint, auth) in std::mem::take(&mut registry.auths) {
            // A URL, of which the host counts.
            let host = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
            let host = host.split('/').next().unwrap_or_default();
            registry.configs.entry(host.to_owned()).or_default().auth = auth;
        }
        // A list is written as in PATH.
        let dirs: Vec<PathBuf> =
            registry.config_path.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect();
        if !dirs.is_empty() {
            // containerd refuses a file that has them beside a config_path.
            registry.mirrors.clear();
            registry.configs.values_mut().for_each(|host| host.tls = Tls::default());
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
            config_dirs: dirs,
            mirrors: registry.mirrors.into_iter().map(|(name, mirror)| (name, mirror.endpoint)).collect(),
            hosts: registry.configs.into_iter().map(|(name, config)| (name, host(config))).collect(),
            headers: registry.headers,
        })
    }
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    let Some((last, folders)) = path.split_last() else { return };
    let mut table = table;
    for folder in folders {
        match table.entry(folder.clone()).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => table = inner,
            // Something else by the same name, which is refused when it is read.
            _ => return,
        }
    }
    table.insert(last.clone(), value);
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

    fn parse(text: &str) -> Result<ImportedRegistries, String> {
        ImportedRegistries::of(&Files::of_text(text)?)
    }

    #[test]
    fn both_formats_are_read_and_nothing_is_printed() {
        let old = parse(OLD).expect("valid");
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
        let new = parse(new).expect("valid");
        assert_eq!(new.config_dirs, [Path::new("/etc/a"), Path::new("/etc/b")]);
        assert_eq!(parse("").expect("valid"), ImportedRegistries::default());
    }

    #[test]
    fn a_config_path_goes_before_mirrors_and_beside_credentials() {
        let both = format!("{OLD}\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/c\"\n");
        let both = parse(&both).expect("valid");
        assert!(both.mirrors.is_empty() && both.config_dirs == [Path::new("/c")]);
        let host = &both.hosts["m.example"];
        assert_eq!((host.ca_file.as_deref(), host.password.as_str()), (None, "hunter2"));
        assert_eq!(both.headers["X-Key"], ["v"]);
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing_and_a_broken_one_its_line() {
        assert_eq!(ImportedRegistries::read(Path::new("/no/such")), Ok(ImportedRegistries::default()));
        let error = parse("a = 1\n[plugins\n").expect_err("broken");
        assert!(error.starts_with("line 2"), "{error}");
        let wrong = "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.x.auth]\npassword = 47";
        let error = parse(wrong).expect_err("wrong");
        assert!(!error.contains("47"), "{error}");
    }

    /// Deprecated twice over, and still in use: by URL, and in files of format 1.
    #[test]
    fn auths_are_of_the_host_of_their_url() {
        let old = "[plugins.cri.registry.auths.\"https://r.example:5000/v2/\"]\nusername = \"u\"\n\
                   [plugins.cri.registry.configs.\"r.example:5000\".tls]\ninsecure_skip_verify = true\n";
        let old = parse(old).expect("valid");
        let host = &old.hosts["r.example:5000"];
        assert_eq!((host.username.as_str(), host.skip_verify), ("u", true));
    }

    #[test]
    fn registries_of_imported_files_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "version = 2\nimports = [\"d/*.toml\"]\n").expect("a file");
        std::fs::create_dir(folder.path().join("d")).expect("a folder");
        std::fs::write(folder.path().join("d/a.toml"), format!("{OLD}\n")).expect("a file");
        let read = ImportedRegistries::read(&path).expect("valid");
        assert_eq!(read.mirrors["docker.io"].len(), 2);
    }
}
