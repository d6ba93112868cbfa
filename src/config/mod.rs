//! The configuration: the file as typed ([`file`]) becomes a validated [`Config`] once.
//!
//! Nothing downstream checks a value again or reads the environment. What is wrong
//! stops the start, naming file, line and key.

mod blockio;
pub mod file;
pub mod import;
mod imported;
mod locate;
mod proxies;
mod rdt;
pub mod runtimes;
mod telemetry;
mod validate;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

pub use blockio::{BlockIoClasses, BlockIoParameters};
pub use file::File;
pub use imported::{ImportedHost, ImportedRegistries};
pub use proxies::Proxies;
pub use rdt::{RdtClass, RdtClasses};
pub use runtimes::{CgroupDriver, Handler, NetworkOrder};
pub use telemetry::{ListenAddress, TracesConfig};

/// A mistake in the configuration: the key and what is wrong with it.
#[derive(Debug)]
pub struct Problem {
    key: String,
    message: String,
}

fn problem(key: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem { key: key.into(), message: message.into() }
}

/// Why a configuration was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Where the file is that the service unit names.
pub const INSTALLED: &str = "/etc/longshore/longshore.toml";

/// The command line's answers, which go over the file's.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`
    pub listen: Option<PathBuf>,
    /// `--containerd`
    pub containerd: Option<PathBuf>,
    /// `--namespace`
    pub namespace: Option<String>,
    /// `--root`
    pub root: Option<PathBuf>,
    /// `--state`
    pub state: Option<PathBuf>,
    /// `--cni-conf-dir`
    pub cni_conf_dir: Option<PathBuf>,
    /// `--cni-bin-dir`, any number
    pub cni_bin_dirs: Vec<PathBuf>,
    /// `--registry-config-dir`, any number
    pub registry_config_dirs: Vec<PathBuf>,
}

/// What the server runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file with the overrides in it, as verbose Status shows it.
    pub file: File,
    /// Logs.
    pub log: LogConfig,
    /// Handlers, the default one under the name that the file gives it.
    pub handlers: Vec<Handler>,
    /// Name of the default handler.
    pub default_handler: String,
    /// Which address of a pod comes first.
    pub ip_preference: IpPreference,
    /// Who brings up `lo`.
    pub loopback: Loopback,
    /// Whether OOM scores are kept at or above the server's own.
    pub restrict_oom_score_adj: bool,
    /// The proxies on the way to registries.
    pub proxies: Proxies,
    /// The registries of containerd's configuration.
    pub imported: ImportedRegistries,
    /// Who pulls images.
    pub puller: Puller,
    /// Who unpacks layers.
    pub unpacking: Unpacking,
    /// The classes of block I/O, where there are any.
    pub block_io: Option<BlockIoClasses>,
    /// Who may choose which class of RDT.
    pub rdt: RdtClasses,
    /// Where the server's own metrics are served; none for nowhere.
    pub metrics: Option<ListenAddress>,
    /// Where the page is served; none where it is not.
    pub page: Option<ListenAddress>,
    /// Where traces are sent; none for nowhere.
    pub traces: Option<TracesConfig>,
    /// The memory of the recorder of calls; none where it is off.
    pub trace: Option<usize>,
}

/// `[log]`, validated.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// error … trace
    pub level: String,
    /// text or JSON
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which address of a pod comes first (CNI-19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpPreference {
    /// The first IPv4 address.
    Ipv4,
    /// The first IPv6 address.
    Ipv6,
    /// The CNI result's own order.
    Cni,
}

/// Who brings up `lo` in a pod (CNI-26).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    /// longshore, with two system calls.
    Internal,
    /// The loopback plugin.
    Plugin,
}

/// Who pulls images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Puller {
    /// containerd where it has verifiers to ask, else longshore (IMG-39).
    Auto,
    /// longshore.
    Client,
    /// containerd's Transfer service.
    Transfer,
}

/// Who unpacks layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacking {
    /// longshore where it can, else containerd.
    Auto,
    /// containerd.
    Containerd,
}

impl Config {
    /// Reads `path` (without one: the defaults), lays `overrides` over it and validates.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
        let Some(path) = path else {
            return Config::from_text("", Path::new("(defaults)"), overrides).map(Config::in_environment);
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError(format!("configuration {}: {error}", path.display())))?;
        Config::from_text(&text, path, overrides).map(Config::in_environment)
    }

    /// With what is said elsewhere.
    fn in_environment(self) -> Config {
        let path = &self.file.image.containerd_config;
        let imported = match ImportedRegistries::read(path) {
            Ok(imported) => imported,
            Err(error) => {
                // containerd itself does not start with it, and there is another message.
                warn!(?path, error, "the registries of containerd's configuration are not known");
                ImportedRegistries::default()
            }
        };
        Config { proxies: Proxies::of_environment(), imported, ..self }
    }

    /// Folders with one folder a registry, as configured here, by containerd's own
    /// configuration, or by default (IMG-20).
    #[must_use]
    pub fn registry_dirs(&self) -> Vec<PathBuf> {
        let own = &self.file.image.registry_config_dirs;
        if *own == file::Image::default().registry_config_dirs && !self.imported.config_dirs.is_empty() {
            return self.imported.config_dirs.clone();
        }
        own.clone()
    }

    /// As [`Config::load`], of a text that is called `path`; without what is said elsewhere.
    ///
    /// # Errors
    /// What is wrong, with file, line and key.
    pub fn from_text(text: &str, path: &Path, overrides: &Overrides) -> Result<Config, ConfigError> {
        let name = path.display();
        let mut file: File = toml::from_str(text).map_err(|error| {
            let place = locate::describe(text, error.span());
            ConfigError(format!("{name}{place}: {}", error.message().replace('\n', " ")))
        })?;
        overrides.lay_over(&mut file);
        validate::config(file).map_err(|Problem { key, message }| {
            let line = locate::line_of_key(text, &key).map(|line| format!(":{line}")).unwrap_or_default();
            ConfigError(format!("{name}{line}: {key}: {message}"))
        })
    }

    /// The handler of a pod that asks for `name`, the default one for an empty name (SBX-11).
    #[must_use]
    pub fn handler(&self, name: &str) -> Option<&Handler> {
        let name = if name.is_empty() { &self.default_handler } else { name };
        self.handlers.iter().find(|handler| handler.name == name)
    }

    /// The default handler.
    ///
    /// # Panics
    /// Never: validation makes sure that it exists.
    #[must_use]
    pub fn default_handler(&self) -> &Handler {
        self.handler("").expect("the default handler was validated")
    }

    /// How long a pull may wait for a byte; none for as long as it takes (IMG-31).
    #[must_use]
    pub fn pull_progress_limit(&self) -> Option<Duration> {
        let limit_s = self.file.image.pull_progress_timeout_s;
        (limit_s > 0).then(|| Duration::from_secs(limit_s))
    }

    /// The limit of containerd calls that have none of their own.
    #[must_use]
    pub fn call_timeout(&self) -> Duration {
        Duration::from_secs(self.file.containerd.call_timeout_s)
    }
}

impl Overrides {
    fn lay_over(&self, file: &mut File) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                to.clone_from(value);
            }
        }
        set(&mut file.server.listen, &self.listen);
        set(&mut file.containerd.address, &self.containerd);
        set(&mut file.containerd.namespace, &self.namespace);
        set(&mut file.root, &self.root);
        set(&mut file.state, &self.state);
        set(&mut file.cni.conf_dir, &self.cni_conf_dir);
        if !self.cni_bin_dirs.is_empty() {
            file.cni.bin_dirs.clone_from(&self.cni_bin_dirs);
        }
        if !self.registry_config_dirs.is_empty() {
            file.image.registry_config_dirs.clone_from(&self.registry_config_dirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        Config::from_text(text, Path::new("f.toml"), &Overrides::default())
    }

    #[test]
    fn the_defaults_are_valid() {
        let config = load("").expect("defaults");
        assert_eq!(config.default_handler().shim, runtimes::RUNC_SHIM);
        assert_eq!(config.default_handler().network, NetworkOrder::Concurrent);
    }

    #[test]
    fn the_commented_default_file_says_what_the_code_does() {
        let text = include_str!("../../deploy/longshore.toml");
        let typed: File = toml::from_str(text).expect("deploy/longshore.toml parses");
        assert_eq!(typed, File::default());
    }

    #[test]
    fn mistakes_name_file_line_and_key() {
        let cases = [
            ("version = 1\n[cni]\nmax_conf = 2\n", "f.toml:3: cni.max_conf: unknown field"),
            ("\n[server]\nlisten = 7\n", "f.toml:3: server.listen: invalid type: integer `7`"),
            ("[log]\nlevel = \"loud\"\n", "f.toml:2: log.level: must be error"),
            ("[image]\npuller = \"ctr\"\n", "f.toml:2: image.puller: must be \"auto\""),
            (
                "[stream]\ntls_cert_file = \"/c\"\ntls_key_file = \"/k\"\ntls_self_signed = true\n",
                "f.toml:4: stream.tls_self_signed: excludes stream.tls_cert_file",
            ),
            (
                "[container]\nlog_bytes_per_second_max = 10\n",
                "f.toml:2: container.log_bytes_per_second_max: must be 0 or at least 1024",
            ),
            (
                "[metrics]\naddress = \":9464\"\n",
                "f.toml:2: metrics.address: \":9464\" must be unix:// and a path, or an IP address",
            ),
            ("[image]\nunpack = \"x\"\n", "f.toml:2: image.unpack: must be \"auto\""),
            ("root = \"here\"\n", "f.toml:1: root: \"here\" must be an absolute path"),
            ("[runtime]\ndefault = \"kata\"\n", "f.toml:2: runtime.default: there is no handler \"kata\""),
            (
                "[runtime.handlers.runc.options]\nSystemdCgrup = true\n",
                "f.toml:2: runtime.handlers.runc.options.SystemdCgrup: is not an option",
            ),
            (
                "[runtime.handlers.runc]\npod_annotations = [\"a[\"]\n",
                "f.toml:2: runtime.handlers.runc.pod_annotations: \"a[\": a [ is not closed",
            ),
            (
                "[runtime.handlers.runc]\npath = \"shim\"\n",
                "f.toml:2: runtime.handlers.runc.path: \"shim\" must be an absolute path",
            ),
            (
                "[container]\nblockio_config_file = \"/no/such\"\n",
                "f.toml:2: container.blockio_config_file: read \"/no/such\": No such file",
            ),
            ("[cni\n", "f.toml:1"),
        ];
        for (text, want) in cases {
            let error = load(text).expect_err(text).to_string();
            assert!(error.starts_with(want), "{text:?} gave {error:?}, not {want:?}");
        }
    }

    #[test]
    fn handlers_keep_their_options() {
        let config = load(concat!(
            "[runtime.handlers.runc]\n[runtime.handlers.crun.options]\nBinaryName = \"crun\"\nSystemdCgroup = true\n",
            "[runtime.handlers.kata]\ntype = \"io.containerd.kata.v2\"\n",
        ))
        .expect("valid");
        let crun = config.handler("crun").expect("configured");
        assert_eq!((crun.binary.as_deref(), crun.cgroup_driver), (Some("crun"), CgroupDriver::Systemd));
        assert_eq!(
            crun.options.as_ref().map(|any| any.type_url.as_str()),
            Some("containerd.runc.v1.Options")
        );
        let kata = config.handler("kata").expect("configured");
        assert_eq!((kata.network, kata.options.is_none()), (NetworkOrder::First, true));
        assert!(config.handler("nope").is_none());
    }

    /// COX-12.
    #[test]
    fn other_shims_get_the_path_of_their_configuration_or_all_of_it() {
        use prost::Message;
        let options = |text: &str| {
            let config = load(&format!(
                "[runtime]\ndefault = \"vm\"\n[runtime.handlers.vm]\ntype = \"io.containerd.vm.v1\"\n[runtime.handlers.vm.options]\n{text}"
            ))
            .expect("valid");
            let any = config.default_handler().options.clone().expect("options");
            assert_eq!(any.type_url, "runtimeoptions.v1.Options");
            crate::proto::runtimeoptions::Options::decode(any.value.as_slice()).expect("options")
        };
        let path = options("TypeUrl = \"io.vm.options\"\nConfigPath = \"/etc/vm.toml\"\n");
        assert_eq!((path.type_url.as_str(), path.config_path.as_str()), ("io.vm.options", "/etc/vm.toml"));
        assert!(path.config_body.is_empty());
        let body = options("debug = true\ninner = { a = 1 }\n");
        assert!(body.config_path.is_empty());
        let body = String::from_utf8(body.config_body).expect("text");
        assert_eq!(body.parse::<toml::Table>(), "debug = true\ninner = { a = 1 }".parse());
    }

    #[test]
    fn flags_go_over_the_file() {
        let overrides = Overrides {
            listen: Some("/tmp/a.sock".into()),
            cni_bin_dirs: vec!["/b".into()],
            ..Default::default()
        };
        let config =
            Config::from_text("[server]\nlisten = \"/x\"\n", Path::new("f"), &overrides).expect("valid");
        assert_eq!(config.file.server.listen, Path::new("/tmp/a.sock"));
        assert_eq!(config.file.cni.bin_dirs, [PathBuf::from("/b")]);
    }
}
