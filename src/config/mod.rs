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
pub use telemetry::{MetricsAddress, TracesConfig};

/// The lowest limit of how fast containers log, where there is one.
const LOG_RATE_MIN: u64 = 1 << 10;

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
    pub metrics: Option<MetricsAddress>,
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
        Config::validate(file).map_err(|Problem { key, message }| {
            let line = locate::line_of_key(text, &key).map(|line| format!(":{line}")).unwrap_or_default();
            ConfigError(format!("{name}{line}: {key}: {message}"))
        })
    }

    fn validate(file: File) -> Result<Config, Problem> {
        if file.version != 1 {
            return Err(problem("version", "must be 1"));
        }
        absolute_paths(&file)?;
        let log = log_config(&file.log)?;
        let ip_preference = match file.cni.ip_preference.as_str() {
            "ipv4" => IpPreference::Ipv4,
            "ipv6" => IpPreference::Ipv6,
            "cni" => IpPreference::Cni,
            _ => return Err(problem("cni.ip_preference", "must be \"ipv4\", \"ipv6\" or \"cni\"")),
        };
        let loopback = match file.cni.loopback.as_str() {
            "internal" => Loopback::Internal,
            "plugin" => Loopback::Plugin,
            _ => return Err(problem("cni.loopback", "must be \"internal\" or \"plugin\"")),
        };
        let restrict_oom_score_adj = match file.sandbox.restrict_oom_score_adj.as_str() {
            "yes" => true,
            "no" => false,
            "auto" => !crate::sys::process::has_cap_sys_resource(),
            _ => {
                return Err(problem("sandbox.restrict_oom_score_adj", "must be \"yes\", \"no\" or \"auto\""));
            }
        };
        let unpacking = match file.image.unpack.as_str() {
            "auto" => Unpacking::Auto,
            "containerd" => Unpacking::Containerd,
            _ => return Err(problem("image.unpack", "must be \"auto\" or \"containerd\"")),
        };
        let driver = match file.runtime.cgroup_driver.as_str() {
            "systemd" => CgroupDriver::Systemd,
            "cgroupfs" => CgroupDriver::Cgroupfs,
            "auto" if Path::new("/run/systemd/system").is_dir() => CgroupDriver::Systemd,
            "auto" => CgroupDriver::Cgroupfs,
            _ => {
                return Err(problem(
                    "runtime.cgroup_driver",
                    "must be \"systemd\", \"cgroupfs\" or \"auto\"",
                ));
            }
        };
        let puller = match file.image.puller.as_str() {
            "auto" => Puller::Auto,
            "client" => Puller::Client,
            "transfer" => Puller::Transfer,
            _ => return Err(problem("image.puller", "must be \"auto\", \"client\" or \"transfer\"")),
        };
        bounds(&file)?;
        let handlers = file
            .runtime
            .handlers
            .iter()
            .map(|(name, typed)| Handler::new(name, typed, &file.image.snapshotter, driver))
            .collect::<Result<Vec<_>, _>>()?;
        let (block_io, rdt) = classes(&file.container)?;
        let metrics = telemetry::metrics_address(&file.metrics.address)?;
        let traces = telemetry::traces(&file.traces)?;
        let trace = telemetry::trace(&file.trace)?;
        let default_handler = file.runtime.default.clone();
        if !handlers.iter().any(|handler| handler.name == default_handler) {
            return Err(problem(
                "runtime.default",
                format!("there is no handler {default_handler:?} below runtime.handlers"),
            ));
        }
        Ok(Config {
            log,
            handlers,
            default_handler,
            ip_preference,
            loopback,
            restrict_oom_score_adj,
            proxies: Proxies::default(),
            imported: ImportedRegistries::default(),
            puller,
            unpacking,
            block_io,
            rdt,
            metrics,
            traces,
            trace,
            file,
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

fn log_config(typed: &file::Log) -> Result<LogConfig, Problem> {
    if !["error", "warn", "info", "debug", "trace"].contains(&typed.level.as_str()) {
        return Err(problem("log.level", "must be error, warn, info, debug or trace"));
    }
    let format = match typed.format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => return Err(problem("log.format", "must be \"text\" or \"json\"")),
    };
    Ok(LogConfig { level: typed.level.clone(), format })
}

/// Reads the files of classes (OCI-45).
fn classes(section: &file::ContainerSection) -> Result<(Option<BlockIoClasses>, RdtClasses), Problem> {
    let given = |path: &'_ PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    let block_io = given(&section.blockio_config_file)
        .map(|path| BlockIoClasses::read(&path))
        .transpose()
        .map_err(|wrong| problem("container.blockio_config_file", wrong))?;
    let rdt = given(&section.rdt_config_file)
        .map(|path| rdt::read(&path))
        .transpose()
        .map_err(|wrong| problem("container.rdt_config_file", wrong))?;
    Ok((block_io, rdt.unwrap_or_default()))
}

fn absolute_paths(file: &File) -> Result<(), Problem> {
    let singles = [
        ("root", &file.root),
        ("state", &file.state),
        ("server.listen", &file.server.listen),
        ("containerd.address", &file.containerd.address),
        ("cni.conf_dir", &file.cni.conf_dir),
        ("cni.cache_dir", &file.cni.cache_dir),
        ("cni.netns_dir", &file.cni.netns_dir),
        ("image.verifier_dir", &file.image.verifier_dir),
    ];
    let lists = file
        .cni
        .bin_dirs
        .iter()
        .map(|path| ("cni.bin_dirs", path))
        .chain(file.image.registry_config_dirs.iter().map(|path| ("image.registry_config_dirs", path)))
        .chain(file.container.cdi_spec_dirs.iter().map(|path| ("container.cdi_spec_dirs", path)));
    for (key, path) in singles.into_iter().chain(lists) {
        if !path.is_absolute() {
            return Err(problem(key, format!("{path:?} must be an absolute path")));
        }
    }
    if file.root == file.state {
        return Err(problem("state", "must be another folder than root"));
    }
    // A Unix socket's address has 108 bytes, the last one NUL.
    for (key, path) in
        [("server.listen", &file.server.listen), ("containerd.address", &file.containerd.address)]
    {
        if path.as_os_str().len() > 107 {
            return Err(problem(key, "a socket's path has at most 107 bytes"));
        }
    }
    Ok(())
}

fn bounds(file: &File) -> Result<(), Problem> {
    if file.containerd.namespace.is_empty()
        || !file.containerd.namespace.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
    {
        return Err(problem("containerd.namespace", "must be letters, digits, '.', '_' and '-'"));
    }
    if file.server.runtime_name.is_empty() {
        return Err(problem("server.runtime_name", "must not be empty (SVC-05)"));
    }
    if file.image.snapshotter.is_empty() {
        return Err(problem("image.snapshotter", "must not be empty"));
    }
    let unset = file.container.unset_seccomp_profile.as_str();
    let is_local = unset.strip_prefix("localhost/").is_some_and(|path| Path::new(path).is_absolute());
    if !["", "RuntimeDefault"].contains(&unset) && !is_local {
        return Err(problem(
            "container.unset_seccomp_profile",
            "must be empty, \"RuntimeDefault\" or \"localhost/\" and an absolute path",
        ));
    }
    let stream = &file.stream;
    if stream.tls_cert_file.as_os_str().is_empty() != stream.tls_key_file.as_os_str().is_empty() {
        return Err(problem("stream.tls_cert_file", "goes with stream.tls_key_file: both or neither"));
    }
    if stream.tls_self_signed && !stream.tls_cert_file.as_os_str().is_empty() {
        return Err(problem("stream.tls_self_signed", "excludes stream.tls_cert_file: one certificate"));
    }
    if (1..LOG_RATE_MIN).contains(&file.container.log_bytes_per_second_max) {
        return Err(problem("container.log_bytes_per_second_max", "must be 0 or at least 1024"));
    }
    if !(2..=1024).contains(&file.sandbox.selinux_category_range) {
        return Err(problem("sandbox.selinux_category_range", "must be 2 to 1024"));
    }
    let positive = [
        ("stream.idle_timeout_s", file.stream.idle_timeout_s),
        ("stream.creation_timeout_s", file.stream.creation_timeout_s),
        ("containerd.call_timeout_s", file.containerd.call_timeout_s),
        ("cni.timeout_s", file.cni.timeout_s),
        ("sandbox.start_timeout_s", file.sandbox.start_timeout_s),
        ("sandbox.shm_bytes", file.sandbox.shm_bytes),
        ("image.max_concurrent_downloads", file.image.max_concurrent_downloads as u64),
    ];
    for (key, value) in positive {
        if value == 0 {
            return Err(problem(key, "must be at least 1"));
        }
    }
    Ok(())
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
