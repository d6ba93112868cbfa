//! Pod networks: namespaces ([`netns`]) and the CNI plugins that fill them.
//!
//! A [`Network`] is the node's: which configurations there are, for which handlers, and
//! whether pods can be attached now. Its verbs for one pod are in `attach.rs`:
//! [`Network::attach`], [`Network::detach`], [`Network::check`].
//!
//! ```text
//! conf dir ──load, watch──▶ networks ──attach──▶ ADD ──▶ cache (config, args, result)
//!                                                          │
//!                            netns gone, config gone ──▶ detach ──▶ DEL
//! ```

mod attach;
mod cni;
pub mod forward;
pub mod netns;
pub mod survey;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::{Config, IpPreference, Loopback};
use crate::error::{Context, Error, Result, internal, invalid, precondition};
use crate::flow::{self, lock};
use crate::proto::cri::PodSandboxConfig;
use cni::cache::Cache;
use cni::config::{Network as CniNetwork, NetworkList};
use cni::invoke::Plugins;
use cni::template;
use cni::watch::ConfDir;

/// How long an answer of STATUS is good for; the kubelet asks every few seconds and each
/// answer costs a process for each plugin (CNI-22).
const STATUS_GOOD_FOR: Duration = Duration::from_secs(10);

/// The same for a bad one: recovery should be seen soon.
const STATUS_BAD_FOR: Duration = Duration::from_secs(3);

/// What a plugin may take for STATUS.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// The name of the file that is made from the template: the built-in plugin's.
const GENERATED_FILE: &str = "10-containerd-net.conflist";

/// Bytes of the largest template.
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;

/// The pod networks of the node; a handle that is cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    /// The one of the configuration first, then those of handlers with their own.
    directories: Vec<Arc<ConfDir>>,
    default_handler: String,
    plugins: Plugins,
    cache: Cache,
    /// The loopback network, where a plugin serves it.
    loopback: Option<CniNetwork>,
    has_ipv6: bool,
    ip_preference: IpPreference,
    is_serial: bool,
    /// What a plugin may take.
    limit: Duration,
    template: PathBuf,
    /// Held by who asks the plugins for it.
    asking: Mutex<()>,
    status: std::sync::Mutex<Option<KnownStatus>>,
}

/// An answer of STATUS.
#[derive(Clone)]
struct KnownStatus {
    networks: Arc<[CniNetwork]>,
    until: Instant,
    result: Result<()>,
}

/// A pod, as far as its network goes.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// The sandbox's id.
    pub id: String,
    /// The runtime handler that the pod asked for; empty for the default one.
    pub handler: String,
    /// Path of the network namespace; None if it is known to be gone.
    pub netns: Option<PathBuf>,
    /// The sandbox's configuration.
    pub config: Arc<PodSandboxConfig>,
}

/// What an attached pod has got.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// The pod's addresses, the preferred one first (CNI-18, CNI-19); never empty.
    pub ips: Vec<std::net::IpAddr>,
    /// `CNIResult` of the sandbox record.
    pub result: Value,
}

impl Network {
    /// Loads the configurations of `config`'s directory and of those of handlers with
    /// their own. That there are none, or that they are wrong, is remembered, not an
    /// error: they may come later. Reads files.
    #[must_use]
    pub fn new(config: &Config) -> Network {
        let cni = &config.file.cni;
        let mut directories = vec![Arc::new(ConfDir::new("", &cni.conf_dir, cni.max_conf_num))];
        for handler in &config.handlers {
            if let Some((directory, max)) = &handler.cni {
                let max = if *max == 0 { cni.max_conf_num } else { *max };
                directories.push(Arc::new(ConfDir::new(&handler.name, directory, max)));
            }
        }
        Network(Arc::new(Inner {
            directories,
            default_handler: config.default_handler.clone(),
            plugins: Plugins::new(&cni.bin_dirs),
            cache: Cache::new(&cni.cache_dir),
            loopback: (config.loopback == Loopback::Plugin).then(CniNetwork::loopback),
            has_ipv6: std::path::Path::new("/proc/net/if_inet6").exists(),
            ip_preference: config.ip_preference,
            is_serial: cni.serial,
            limit: Duration::from_secs(cni.timeout_s),
            template: PathBuf::from(&cni.conf_template),
            asking: Mutex::default(),
            status: std::sync::Mutex::default(),
        }))
    }

    /// Keeps the configurations up to date until `stop` (CNI-07, CNI-08).
    pub async fn watch(self, stop: CancellationToken) {
        let watching = self.0.directories.iter().map(|directory| directory.clone().watch(stop.clone()));
        futures_util::future::join_all(watching).await;
    }

    /// Loads all configurations anew. Reads files: not for async threads.
    pub fn reload(&self) {
        self.0.directories.iter().for_each(|directory| directory.reload());
    }

    /// Whether pods can be attached now: the NetworkReady condition.
    ///
    /// # Errors
    /// What is wrong, with directory, file or plugin. FailedPrecondition without a
    /// configuration; the plugin's error if one answers STATUS with it (CNI-22).
    ///
    /// Plugins that are being asked go on being asked when the caller does not wait for them.
    pub async fn ready(&self) -> Result<()> {
        let networks = self.0.networks("")?;
        if !networks.iter().any(|network| network.list.version >= cni::Version::WITH_STATUS) {
            return Ok(());
        }
        let this = self.clone();
        let asked = tokio::spawn(async move { this.0.ask_status(networks).await }.in_current_span());
        asked.await.unwrap_or_else(|error| Err(internal(format!("a bug in longshore: {error}"))))
    }

    /// What the plugins of the networks that are loaded now have answered last, if they ever have.
    #[must_use]
    pub fn last_status(&self) -> Option<Result<()>> {
        let networks = self.0.networks("").ok()?;
        self.0.known_status(&networks).map(|known| known.result)
    }

    /// How the last load of each directory went, by handler; empty for the one of all
    /// handlers without their own.
    #[must_use]
    pub fn load_status(&self) -> Vec<(String, Result<(), String>)> {
        let status = |directory: &Arc<ConfDir>| {
            (directory.handler.clone(), directory.loaded().networks.clone().map(drop))
        };
        self.0.directories.iter().map(status).collect()
    }

    /// The loaded networks, in the form of the built-in plugin's verbose status.
    #[must_use]
    pub fn describe(&self) -> Value {
        let inner = &self.0;
        let directory = inner.directory("");
        let loaded = directory.loaded();
        let networks = loaded.networks.as_deref().unwrap_or_default();
        let networks: Vec<Value> = inner
            .loopback
            .iter()
            .chain(networks)
            .map(|CniNetwork { list, interface, .. }| {
                let plugins: Vec<Value> = list.plugins.iter().map(cni::config::Plugin::describe).collect();
                let config = json!({
                    "Name": list.name,
                    "CNIVersion": list.version_text,
                    "Plugins": plugins,
                    "Source": String::from_utf8_lossy(&list.bytes),
                });
                json!({ "Config": config, "IFName": interface })
            })
            .collect();
        json!({
            "PluginDirs": inner.plugins.directories(),
            "PluginConfDir": directory.directory,
            "PluginMaxConfNum": directory.max,
            "Prefix": "eth",
            "Networks": networks,
        })
    }

    /// UpdateRuntimeConfig (SVC-25): makes a configuration from the configured template
    /// for the pod addresses `pod_cidr`, a comma separated list. Does nothing without a
    /// template, without addresses, or if a valid configuration is loaded.
    ///
    /// # Errors
    /// InvalidArgument if an address range or the template is wrong; the file system's.
    pub async fn write_from_template(&self, pod_cidr: &str) -> Result<()> {
        if pod_cidr.trim().is_empty() {
            return Ok(());
        }
        let values = values(pod_cidr)?;
        if self.0.template.as_os_str().is_empty() {
            return Ok(());
        }
        let this = self.clone();
        flow::blocking(move || {
            let inner = &this.0;
            let directory = &inner.directories[0];
            directory.reload();
            if directory.loaded().networks.is_ok() {
                return Ok(());
            }
            generate(&inner.template, &values, &directory.directory)
                .context(|| format!("make a network configuration from template {:?}", inner.template))?;
            directory.reload();
            Ok(())
        })
        .await
    }
}

impl Inner {
    async fn ask_status(&self, networks: Arc<[CniNetwork]>) -> Result<()> {
        // Callers at the same time share one round of calls.
        let _asking = self.asking.lock().await;
        if let Some(known) = self.known_status(&networks).filter(|known| Instant::now() < known.until) {
            return known.result;
        }
        let mut result = Ok(());
        for network in networks.iter() {
            result = cni::status(&self.plugins, &network.list, STATUS_LIMIT.min(self.limit)).await;
            if result.is_err() {
                break;
            }
        }
        let good_for = if result.is_ok() { STATUS_GOOD_FOR } else { STATUS_BAD_FOR };
        let until = Instant::now() + good_for;
        *lock(&self.status) = Some(KnownStatus { networks, until, result: result.clone() });
        result
    }

    /// The last answer of these networks.
    fn known_status(&self, networks: &Arc<[CniNetwork]>) -> Option<KnownStatus> {
        lock(&self.status).clone().filter(|known| Arc::ptr_eq(&known.networks, networks))
    }

    /// The directory for pods of `handler`.
    fn directory(&self, handler: &str) -> &Arc<ConfDir> {
        let handler = if handler.is_empty() { &self.default_handler } else { handler };
        let own = self.directories[1..].iter().find(|directory| directory.handler == handler);
        own.unwrap_or(&self.directories[0])
    }

    /// The networks for new pods of `handler`.
    fn networks(&self, handler: &str) -> Result<Arc<[CniNetwork]>> {
        // Operators look for the first words: they are the built-in plugin's.
        let error = |why: &String| -> Error { precondition(format!("cni plugin not initialized: {why}")) };
        self.directory(handler).loaded().networks.as_ref().map_err(error).cloned()
    }
}

/// The template's values for a list of address ranges.
fn values(pod_cidr: &str) -> Result<template::Values> {
    let ranges: Vec<String> = pod_cidr.split(',').map(|range| range.trim().to_owned()).collect();
    let (mut has_ipv4, mut has_ipv6) = (false, false);
    for range in &ranges {
        let address = cni::result::address_of(range)
            .ok_or_else(|| invalid(format!("pod CIDR {range:?} is not an address range")))?;
        has_ipv4 |= address.is_ipv4();
        has_ipv6 |= address.is_ipv6();
    }
    let routes = [(has_ipv4, "0.0.0.0/0"), (has_ipv6, "::/0")];
    Ok(template::Values {
        pod_cidr: ranges[0].clone(),
        pod_cidr_ranges: ranges,
        routes: routes.into_iter().filter(|(has, _)| *has).map(|(_, route)| route.to_owned()).collect(),
    })
}

fn generate(
    template: &std::path::Path,
    values: &template::Values,
    directory: &std::path::Path,
) -> Result<()> {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    let mut text = String::new();
    std::fs::File::open(template)?.take(TEMPLATE_BYTES_MAX).read_to_string(&mut text)?;
    let rendered = template::render(&text, values)?;
    NetworkList::parse(rendered.as_bytes()).context(|| "what it gives")?;
    std::fs::create_dir_all(directory).context(|| format!("create {directory:?}"))?;
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".longshore").tempfile_in(directory)?;
        file.write_all(rendered.as_bytes())?;
        file.as_file().set_permissions(PermissionsExt::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(directory.join(GENERATED_FILE)).map_err(|error| error.error)?;
        std::fs::File::open(directory)?.sync_all()
    };
    write().context(|| format!("write {:?}", directory.join(GENERATED_FILE)))?;
    tracing::info!(?directory, file = GENERATED_FILE, "made a network configuration from the template");
    Ok(())
}

#[cfg(test)]
mod tests;
