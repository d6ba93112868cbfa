//! A pod's attachment to its networks: making, removing and checking it.
//!
//! Each network's intent is in the cache before its first plugin runs, and its file goes
//! when DEL has succeeded. So there is always a file for what may have to be removed,
//! and removal asks the files first: the configuration that was true at ADD, whatever
//! has become of it since (CNI-09, SBX-43).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use tracing::{debug, warn};

use super::cni::cache::{Entry, Found};
use super::cni::config::{LOOPBACK_NAME, Network as CniNetwork, NetworkList};
use super::cni::result::{CniResult, merge};
use super::cni::{self, Endpoint, capability};
use super::{Attachment, Inner, Network, PodNetwork};
use crate::error::{Collected, Context, Error, Result, internal, invalid, not_found, unknown};
use crate::flow::{self, Disk, Stage, on_disk};
use crate::sys;

/// What the removal after a failed ADD may take (CNI-24).
const CLEANUP_LIMIT: Duration = Duration::from_secs(60);

/// One network to be removed.
struct Removal {
    list: NetworkList,
    endpoint: Endpoint,
    previous: Option<serde_json::Value>,
    /// Its file in the cache; None where there is none.
    file: Option<CacheFile>,
}

enum CacheFile {
    Entry(Box<Entry>),
    Broken(PathBuf),
}

impl Network {
    /// Attaches `pod` to the networks of its handler: ADD of all, at the same time unless
    /// configured otherwise, the results in the order of the configuration (CNI-14).
    ///
    /// If one fails, or none gives the pod an address (CNI-18), DEL of all follows, within
    /// a limit of its own, and the first error is returned (SBX-06).
    ///
    /// # Errors
    /// The plugins'; FailedPrecondition without a configuration; InvalidArgument for what
    /// the pod's configuration has wrong (CNI-13).
    pub async fn attach(&self, pod: &PodNetwork, stage: &Stage) -> Result<Attachment> {
        let inner = &self.0;
        let networks = inner.networks(&pod.handler)?;
        let all: Vec<&CniNetwork> = inner.loopback.iter().chain(networks.iter()).collect();
        let netns = pod
            .netns
            .as_deref()
            .and_then(Path::to_str)
            .ok_or_else(|| internal("a pod without a network namespace cannot be attached"))?;
        let endpoints = endpoints(pod, netns, &all)?;
        let attached = match inner.add(netns, &all, endpoints, stage).await {
            Ok(attached) => return Ok(attached),
            Err(error) => error,
        };
        stage.set("CNI DEL after a failed CNI ADD");
        let limit = CLEANUP_LIMIT.min(inner.limit);
        let cleanup = inner.detach(pod, limit);
        if let Err(error) = flow::limited(CLEANUP_LIMIT, "removal after a failed CNI ADD", cleanup).await {
            warn!(sandbox = pod.id, %error, "what a failed CNI ADD left could not be removed");
        }
        // The namespace's random name would make each retry's event another one (ERR-10).
        Err(Error::new(attached.kind(), attached.message().replace(netns, "the pod's network namespace")))
    }

    /// Detaches `pod` from all networks that it was attached to: DEL with the
    /// configuration of its ADD, or with the loaded one if that is not known. Without any
    /// there is nothing to do. A namespace that is gone is no obstacle (SBX-41); what was
    /// detached before is fine, and a failed call may be repeated.
    ///
    /// # Errors
    /// Those of all networks, the first one first (CNI-21).
    pub async fn detach(&self, pod: &PodNetwork) -> Result<()> {
        self.0.detach(pod, self.0.limit).await
    }

    /// Ends plugins that a killed server has left running for a pod: a DEL of this server is
    /// not to overtake its ADD. The caller has none running for that pod.
    ///
    /// # Errors
    /// DeadlineExceeded if one does not end.
    pub async fn end_strays(&self, id: &str) -> Result<()> {
        cni::stray::end_all(id).await
    }

    /// Whether ADD of a network has succeeded for the pod `id`, and DEL has not since.
    ///
    /// # Errors
    /// Those of the cache.
    pub async fn is_attached(&self, id: &str) -> Result<bool> {
        let (cache, id) = (self.0.cache.clone(), id.to_owned());
        let found = on_disk(Disk::Cni, move || cache.of(&id)).await?;
        Ok(found.iter().any(|found| match found {
            Found::Entry(entry) => entry.network_name != LOOPBACK_NAME && entry.result.is_some(),
            Found::Broken { .. } => false,
        }))
    }

    /// Asks the plugins whether `pod`'s networks are still as they left them.
    ///
    /// # Errors
    /// The plugins'; NotFound if no attachment is known.
    pub async fn check(&self, pod: &PodNetwork) -> Result<()> {
        let inner = &self.0;
        let (cache, id) = (inner.cache.clone(), pod.id.clone());
        let found = on_disk(Disk::Cni, move || cache.of(&id)).await?;
        let netns = pod.netns.as_deref().and_then(Path::to_str).unwrap_or_default();
        let mut is_known = false;
        for found in found {
            let Found::Entry(entry) = found else { continue };
            is_known = true;
            if !inner.has_plugin_for(&entry.network_name) {
                continue;
            }
            let list = NetworkList::parse(&entry.config).context(|| cached(&entry))?;
            cni::check(&inner.plugins, &list, &entry.endpoint(netns), entry.result.as_ref(), inner.limit)
                .await?;
        }
        if is_known { Ok(()) } else { Err(not_found(format!("no CNI attachment of {:?} is known", pod.id))) }
    }

    /// Gives up what is held for pods that are not there any more (CNI-23): DEL of
    /// abandoned attachments, as they are in the cache, then GC of the networks whose
    /// version has it. `live` are the ids of all sandboxes.
    ///
    /// The plugins and the cache may serve others as well. Therefore an attachment is
    /// abandoned only if it is a pod's, not in `live`, and its namespace is gone.
    ///
    /// # Errors
    /// Those of all plugins, collected.
    pub async fn collect_garbage(&self, live: &[String]) -> Result<()> {
        let inner = &self.0;
        let cache = inner.cache.clone();
        let live: HashSet<String> = live.iter().cloned().collect();
        let (abandoned, valid): (Vec<Entry>, Vec<Entry>) = on_disk(Disk::Cni, move || {
            let entries = cache.all()?.into_iter();
            Ok(entries.partition(|entry| !live.contains(&entry.container_id) && is_abandoned(entry)))
        })
        .await?;
        let mut errors = Collected::default();
        for entry in abandoned {
            let list = NetworkList::parse(&entry.config).context(|| cached(&entry));
            let list = match list {
                Ok(list) if list.disable_gc => continue,
                Ok(list) => list,
                Err(error) => {
                    errors.push(Err(error));
                    continue;
                }
            };
            let (endpoint, previous) = (entry.endpoint(""), entry.result.clone());
            let file = Some(CacheFile::Entry(Box::new(entry)));
            errors.push(inner.remove(Removal { list, endpoint, previous, file }, inner.limit).await);
        }
        let mut done = HashSet::new();
        for directory in &inner.directories {
            let loaded = directory.loaded();
            for CniNetwork { list, .. } in loaded.networks.as_deref().unwrap_or_default() {
                if !done.insert(list.name.clone()) {
                    continue;
                }
                let attachments: Vec<_> = valid
                    .iter()
                    .filter(|entry| entry.network_name == list.name)
                    .map(|entry| (entry.container_id.clone(), entry.if_name.clone()))
                    .collect();
                errors.push(cni::gc(&inner.plugins, list, &attachments, inner.limit).await);
            }
        }
        errors.finish()
    }
}

impl Inner {
    async fn add(
        &self,
        netns: &str,
        networks: &[&CniNetwork],
        endpoints: Vec<Endpoint>,
        stage: &Stage,
    ) -> Result<Attachment> {
        let intents: Vec<Entry> = networks
            .iter()
            .zip(&endpoints)
            .map(|(network, endpoint)| Entry::intent(&network.list.name, &network.list.bytes, endpoint))
            .collect();
        let (cache, written) = (self.cache.clone(), intents.clone());
        on_disk(Disk::Cni, move || written.iter().try_for_each(|entry| cache.write(entry))).await?;

        let one = |((&network, endpoint), entry)| self.add_one(network, endpoint, entry, stage);
        let jobs = networks.iter().zip(&endpoints).zip(intents).map(one);
        let mut results = Vec::with_capacity(networks.len() + 1);
        if self.loopback.is_none() {
            results.push(("lo", CniResult::loopback(netns, self.has_ipv6)));
        }
        if self.is_serial {
            for job in jobs {
                results.push(job.await?);
            }
        } else {
            for result in join_all(jobs).await {
                results.push(result?);
            }
        }
        let merged = merge(&results, self.ip_preference)?;
        if merged.ips.is_empty() {
            return Err(unknown("CNI ADD gave the pod no address on \"eth0\""));
        }
        Ok(Attachment { ips: merged.ips, result: merged.record })
    }

    async fn add_one<'a>(
        &self,
        network: &'a CniNetwork,
        endpoint: &Endpoint,
        mut entry: Entry,
        stage: &Stage,
    ) -> Result<(&'a str, CniResult)> {
        let value = cni::add(&self.plugins, &network.list, endpoint, self.limit, stage).await?;
        let result =
            CniResult::read(&value).context(|| format!("CNI ADD of network {:?}", network.list.name))?;
        entry.result = Some(value);
        let cache = self.cache.clone();
        on_disk(Disk::Cni, move || cache.write(&entry)).await?;
        Ok((&network.interface, result))
    }

    async fn detach(&self, pod: &PodNetwork, limit: Duration) -> Result<()> {
        let (cache, id, netns) = (self.cache.clone(), pod.id.clone(), pod.netns.clone());
        let (found, netns) = on_disk(Disk::Cni, move || {
            // Plugins are told that it is gone by an empty path.
            let alive = netns.filter(|path| sys::netns::is_alive(path));
            let netns = alive.and_then(|path| path.into_os_string().into_string().ok());
            cache.remove_unfinished(&id)?;
            Ok((cache.of(&id)?, netns.unwrap_or_default()))
        })
        .await?;
        let mut removals = self.removals(pod, found, &netns);
        let mut errors = Collected::default();
        if self.is_serial {
            while let Some(removal) = removals.pop() {
                errors.push(self.remove(removal, limit).await);
            }
        } else {
            let jobs = removals.into_iter().map(|removal| self.remove(removal, limit));
            for result in join_all(jobs).await {
                errors.push(result);
            }
        }
        errors.finish()
    }

    /// What is to be removed of `pod`, in the order of interfaces.
    fn removals(&self, pod: &PodNetwork, found: Vec<Found>, netns: &str) -> Vec<Removal> {
        let loaded = self.directory(&pod.handler).loaded();
        let networks = loaded.last_good.as_deref().unwrap_or_default();
        let by_config = |network: &CniNetwork, file| Removal {
            list: network.list.clone(),
            endpoint: Endpoint {
                container: pod.id.clone(),
                netns: netns.to_owned(),
                interface: network.interface.clone(),
                args: capability::args(&pod.id, &pod.config),
                capability_args: capability::capability_args_for_removal(&pod.config),
            },
            previous: None,
            file,
        };
        if found.is_empty() {
            debug!(sandbox = pod.id, networks = networks.len(), "no CNI attachment is known");
            return networks.iter().map(|network| by_config(network, None)).collect();
        }
        let mut removals = Vec::new();
        for found in found {
            let (name, interface, file) = match found {
                Found::Entry(entry) => match NetworkList::parse(&entry.config) {
                    Ok(list) => {
                        let (endpoint, previous) = (entry.endpoint(netns), entry.result.clone());
                        removals.push(Removal {
                            list,
                            endpoint,
                            previous,
                            file: Some(CacheFile::Entry(entry)),
                        });
                        continue;
                    }
                    Err(error) => {
                        warn!(sandbox = pod.id, %error, "{}", cached(&entry));
                        (entry.network_name.clone(), entry.if_name.clone(), CacheFile::Entry(entry))
                    }
                },
                Found::Broken { network, interface, path } => (network, interface, CacheFile::Broken(path)),
            };
            // The configuration of the same name is the best guess.
            let known = self.loopback.iter().chain(networks);
            match known.into_iter().find(|known| known.list.name == name && known.interface == interface) {
                Some(network) => removals.push(by_config(network, Some(file))),
                None => {
                    warn!(sandbox = pod.id, network = name, "nothing is known of a network to be removed")
                }
            }
        }
        removals
    }

    /// Whether plugins are called for a network. The loopback network holds nothing
    /// outside of the namespace: where no plugin serves it now, none is needed for what
    /// another server has made.
    fn has_plugin_for(&self, network: &str) -> bool {
        self.loopback.is_some() || network != LOOPBACK_NAME
    }

    async fn remove(&self, removal: Removal, limit: Duration) -> Result<()> {
        let Removal { list, endpoint, previous, file } = removal;
        if self.has_plugin_for(&list.name) {
            cni::del(&self.plugins, &list, &endpoint, previous.as_ref(), limit).await?;
        }
        let cache = self.cache.clone();
        on_disk(Disk::Cni, move || match file {
            None => Ok(()),
            Some(CacheFile::Entry(entry)) => cache.remove(&entry),
            Some(CacheFile::Broken(path)) => cache.remove_path(&path),
        })
        .await
    }
}

/// What plugins are told of `pod` in each of `networks`.
fn endpoints(pod: &PodNetwork, netns: &str, networks: &[&CniNetwork]) -> Result<Vec<Endpoint>> {
    if !cni::is_valid_name(&pod.id) {
        return Err(invalid(format!("sandbox id {:?} cannot be a CNI container id", pod.id)));
    }
    let args = capability::args(&pod.id, &pod.config);
    capability::check_args(&args)?;
    let capability_args = capability::capability_args(&pod.config)?;
    let endpoint = |network: &&CniNetwork| Endpoint {
        container: pod.id.clone(),
        netns: netns.to_owned(),
        interface: network.interface.clone(),
        args: args.clone(),
        capability_args: capability_args.clone(),
    };
    Ok(networks.iter().map(endpoint).collect())
}

fn cached(entry: &Entry) -> String {
    format!("the cached configuration of network {:?} is of no use", entry.network_name)
}

/// Whether an attachment is a pod's whose namespace is gone.
fn is_abandoned(entry: &Entry) -> bool {
    let is_pod = entry.cni_args.iter().any(|(name, _)| name == "K8S_POD_INFRA_CONTAINER_ID");
    let interfaces = entry.result.as_ref().and_then(|result| result["interfaces"].as_array());
    let in_result = interfaces.into_iter().flatten().filter_map(|interface| interface["sandbox"].as_str());
    let mut namespaces = in_result.chain([entry.netns.as_str()]).filter(|path| path.starts_with('/'));
    is_pod && !namespaces.any(|path| sys::netns::is_alive(Path::new(path)))
}
