//! What a configuration may say, key by key.

use std::path::{Path, PathBuf};

use super::{
    BlockIoClasses, CgroupDriver, Config, File, Handler, ImportedRegistries, IpPreference, LogConfig,
    LogFormat, Loopback, Problem, Proxies, Puller, RdtClasses, Unpacking, file, problem, rdt, telemetry,
};

/// The lowest limit of how fast containers log, where there is one.
const LOG_RATE_MIN: u64 = 1 << 10;

/// The configuration that `file` says.
pub(super) fn config(file: File) -> Result<Config, Problem> {
    if file.version != 1 {
        return Err(problem("version", "must be 1"));
    }
    absolute_paths(&file)?;
    let log = log(&file.log)?;
    let driver = cgroup_driver(&file.runtime.cgroup_driver)?;
    bounds(&file)?;
    let handlers = handlers(&file, driver)?;
    let (block_io, rdt) = classes(&file.container)?;
    Ok(Config {
        log,
        handlers,
        default_handler: file.runtime.default.clone(),
        ip_preference: one_of(
            "cni.ip_preference",
            &file.cni.ip_preference,
            [("ipv4", IpPreference::Ipv4), ("ipv6", IpPreference::Ipv6), ("cni", IpPreference::Cni)],
        )?,
        loopback: one_of(
            "cni.loopback",
            &file.cni.loopback,
            [("internal", Loopback::Internal), ("plugin", Loopback::Plugin)],
        )?,
        restrict_oom_score_adj: one_of(
            "sandbox.restrict_oom_score_adj",
            &file.sandbox.restrict_oom_score_adj,
            [("yes", Some(true)), ("no", Some(false)), ("auto", None)],
        )?
        .unwrap_or_else(|| !crate::sys::process::has_cap_sys_resource()),
        proxies: Proxies::default(),
        imported: ImportedRegistries::default(),
        puller: one_of(
            "image.puller",
            &file.image.puller,
            [("auto", Puller::Auto), ("client", Puller::Client), ("transfer", Puller::Transfer)],
        )?,
        unpacking: one_of(
            "image.unpack",
            &file.image.unpack,
            [("auto", Unpacking::Auto), ("containerd", Unpacking::Containerd)],
        )?,
        block_io,
        rdt,
        metrics: telemetry::listen_address("metrics.address", &file.metrics.address)?,
        page: telemetry::page_address(&file.page.address)?,
        traces: telemetry::traces(&file.traces)?,
        trace: telemetry::trace(&file.trace)?,
        file,
    })
}

/// What the word at `key` stands for.
fn one_of<T, const N: usize>(key: &str, word: &str, words: [(&str, T); N]) -> Result<T, Problem> {
    let quoted: Vec<_> = words.iter().map(|(one, _)| format!("{one:?}")).collect();
    let found = words.into_iter().find(|(one, _)| *one == word);
    found.map(|(_, meaning)| meaning).ok_or_else(|| {
        let (last, others) =
            quoted.split_last().map_or(("", &[][..]), |(last, others)| (last.as_str(), others));
        problem(key, format!("must be {} or {last}", others.join(", ")))
    })
}

fn log(typed: &file::Log) -> Result<LogConfig, Problem> {
    if !["error", "warn", "info", "debug", "trace"].contains(&typed.level.as_str()) {
        return Err(problem("log.level", "must be error, warn, info, debug or trace"));
    }
    let format = one_of("log.format", &typed.format, [("text", LogFormat::Text), ("json", LogFormat::Json)])?;
    Ok(LogConfig { level: typed.level.clone(), format })
}

fn cgroup_driver(typed: &str) -> Result<CgroupDriver, Problem> {
    let words = [
        ("systemd", Some(CgroupDriver::Systemd)),
        ("cgroupfs", Some(CgroupDriver::Cgroupfs)),
        ("auto", None),
    ];
    let driver = one_of("runtime.cgroup_driver", typed, words)?;
    Ok(driver.unwrap_or_else(|| match Path::new("/run/systemd/system").is_dir() {
        true => CgroupDriver::Systemd,
        false => CgroupDriver::Cgroupfs,
    }))
}

/// All handlers; the default one is among them.
fn handlers(file: &File, driver: CgroupDriver) -> Result<Vec<Handler>, Problem> {
    let typed = file.runtime.handlers.iter();
    let handlers = typed
        .map(|(name, typed)| Handler::new(name, typed, &file.image.snapshotter, driver))
        .collect::<Result<Vec<_>, _>>()?;
    let default = &file.runtime.default;
    if !handlers.iter().any(|handler| handler.name == *default) {
        return Err(problem(
            "runtime.default",
            format!("there is no handler {default:?} below runtime.handlers"),
        ));
    }
    Ok(handlers)
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
