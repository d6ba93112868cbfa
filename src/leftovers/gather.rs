//! What there is: read from the host first and from containerd last.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;

use super::{From, InContainerd, Kind, OnHost, Place, Record, World, is_pin};
use crate::config::Config;
use crate::containerd::{ContainerRecord, Containerd};
use crate::error::Result;
use crate::flow;
use crate::ids::is_id;
use crate::image::LEASE_PREFIX;
use crate::io::{self, fifo::Fifos};
use crate::network::survey::{self, Attached};
use crate::proto::cri::ContainerState;
use crate::spec::annotations::{KIND_CONTAINER, KIND_LABEL, KIND_SANDBOX};
use crate::state::container::Status;
use crate::state::record::{self, CREATING_LABEL, LEASE_LABEL};
use crate::state::{Paths, checkpoint};
use crate::sys::processes::{self, Process};
use crate::sys::{mountinfo, netns};

/// Between two looks while a server runs: longer than a call that makes or removes something
/// takes between its steps.
const PAUSE: Duration = Duration::from_millis(700);
/// How long the keeper may take to say what it has.
const KEEPER_LIMIT: Duration = Duration::from_secs(3);
/// The most namespaces of containerd that are looked at.
const NAMESPACES_MAX: usize = 64;
/// Folders that CRI servers share.
const SHARED_NETNS_DIRS: [&str; 2] = ["/run/netns", "/var/run/netns"];
const SHARED_CACHE: &str = "/var/lib/cni";

/// Looks at everything; twice while a server runs and something seems to be left.
///
/// # Errors
/// Those of containerd and of the kernel's tables.
pub async fn gather(config: &Config, client: Option<&Containerd>, server_runs: bool) -> Result<World> {
    let from = if server_runs { From::Beside } else { From::Alone };
    let first = look(config, client, from).await?;
    let seen = first.names();
    if !server_runs || seen.is_empty() {
        return Ok(first);
    }
    tokio::time::sleep(PAUSE).await;
    let second = look(config, client, from).await?;
    Ok(World { seen_before: Some(seen), ..second })
}

/// Looks at everything once. What containerd has is not known without a client.
///
/// # Errors
/// Those of containerd and of the kernel's tables.
pub async fn look(config: &Config, client: Option<&Containerd>, from: From) -> Result<World> {
    let file = &config.file;
    let netns_dir = real(&file.cni.netns_dir);
    let place = Place {
        namespace: file.containerd.namespace.clone(),
        has_own_netns_dir: !SHARED_NETNS_DIRS.iter().any(|shared| real(Path::new(shared)) == netns_dir),
        netns_dir,
        has_own_cache: real(&file.cni.cache_dir) != real(Path::new(SHARED_CACHE)),
        collects_garbage: file.cni.gc,
        reconciles: file.server.reconcile_period_s > 0,
    };
    let kept = io::look(&file.state, KEEPER_LIMIT).await.ok().flatten();
    let kept = kept.map(|keeper| keeper.containers.into_iter().map(|io| io.id).collect());
    let paths = Paths::new(&file.root, &file.state);
    let (pins, cache) = (place.netns_dir.clone(), file.cni.cache_dir.clone());
    let mut host = flow::blocking(move || on_host(&paths, &pins, &cache)).await?;
    host.kept = kept.unwrap_or_default();
    let (address, namespace) = (file.containerd.address.clone(), place.namespace.clone());
    host.shims = flow::blocking(move || Ok(shims(&processes::all(), &address, &namespace))).await?;
    let containerd = match client {
        Some(client) => Some(in_containerd(client, config, &host).await?),
        None => None,
    };
    Ok(World {
        place,
        server_runs: from != From::Alone,
        is_within: from == From::Within,
        containerd,
        host,
        seen_before: None,
    })
}

/// Reads folders and tables of the kernel. Blocks.
fn on_host(paths: &Paths, netns_dir: &Path, cache: &Path) -> Result<OnHost> {
    let mut host = OnHost::default();
    for base in paths.all() {
        host.folders.extend(folders_of_ids(&base));
    }
    host.image_volumes.extend(folders_of_ids(&paths.image_volumes()));
    for (folder, id) in folders_of_ids(&paths.root().join("containers")) {
        let Ok(file) = checkpoint::read(&folder) else { continue };
        if Status::from(file).state() == ContainerState::ContainerExited {
            host.ended.insert(id.clone());
        }
        host.with_status.insert(id);
    }
    for (folder, id) in folders_of_ids(&paths.state().join("containers")) {
        for set in names_in(&folder.join("io")) {
            let set = folder.join("io").join(set);
            let processes = Fifos::found_in(&set).into_keys();
            host.fifos.extend(processes.map(|process| (set.clone(), id.clone(), process)));
        }
    }
    let (root, state) = (real(paths.root()), real(paths.state()));
    for mount in mountinfo::read()? {
        let Some(below) = [&root, &state].into_iter().find_map(|base| mount.path.strip_prefix(base).ok())
        else {
            continue;
        };
        let is_itself = below.as_os_str().is_empty();
        if is_itself || mount.path.starts_with(netns_dir) {
            continue;
        }
        let parts = below.components().filter_map(|part| part.as_os_str().to_str());
        let id = parts.into_iter().find(|part| is_id(part)).map(str::to_owned);
        host.mounts.push((mount.path, id));
    }
    let pins = names_in(netns_dir).into_iter().map(|name| netns_dir.join(name));
    host.pins = pins.filter(|path| is_pin(path)).collect();
    host.attachments = survey::attachments(cache, is_id)?;
    for attached in &mut host.attachments {
        attached.netns = real(&attached.netns);
    }
    Ok(host)
}

fn folders_of_ids(base: &Path) -> Vec<(PathBuf, String)> {
    let names = names_in(base).into_iter().filter(|name| is_id(name));
    names.map(|name| (base.join(&name), name)).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// `path` as the kernel has it. One that is gone is in its real folder.
fn real(path: &Path) -> PathBuf {
    let of_parent = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    // What is mounted at a pin is no link: only its folder can lead elsewhere.
    let whole = if netns::is_alive(path) { None } else { path.canonicalize().ok() };
    whole.or_else(of_parent).unwrap_or_else(|| path.to_owned())
}

/// Shims that were started for this containerd and namespace.
fn shims(processes: &[Process], address: &Path, namespace: &str) -> Vec<(u32, String)> {
    let address = real(address);
    let is_ours = |process: &&Process| {
        process.program().starts_with("containerd-shim")
            && process.flag("namespace") == Some(namespace)
            && process.flag("address").is_some_and(|its| real(Path::new(its)) == address)
    };
    let ours = processes.iter().filter(is_ours);
    ours.filter_map(|process| Some((process.pid, process.flag("id")?.to_owned()))).collect()
}

async fn in_containerd(client: &Containerd, config: &Config, host: &OnHost) -> Result<InContainerd> {
    let snapshots = containers_snapshots(client, config).await;
    let tasks = client.list_tasks().await?.into_iter().map(|task| (task.container_id, task.status));
    let mut found = InContainerd { tasks: tasks.collect(), ..InContainerd::default() };
    for lease in client.list_leases().await? {
        if lease.labels.contains_key(LEASE_LABEL) {
            found.pod_leases.insert(lease.id.clone());
        } else if lease.id.starts_with(LEASE_PREFIX) {
            found.image_leases.insert(lease.id.clone());
        }
        if is_id(&lease.id) {
            found.leases.insert(lease.id);
        }
    }
    // One at a time: all specs together take megabytes.
    let each = |record: ContainerRecord| {
        let read = read(&record);
        if !read.netns.as_os_str().is_empty() {
            found.netns.insert(read.netns.clone());
        } else if read.kind == Kind::Other || read.wrong.is_some() {
            found.netns.extend(netns_of(&record));
        }
        found.records.push(read);
    };
    client.each_container(&[], each).await?;
    // More is asked only where something seems to be left.
    let known: BTreeSet<&str> = found.records.iter().map(|record| record.id.as_str()).collect();
    if snapshots.iter().any(|key| !known.contains(key.as_str())) {
        let asked = found.pod_leases.iter().map(|lease| async move {
            // It may have gone meanwhile.
            let held = client.leased_snapshots(lease).await.unwrap_or_default();
            held.into_iter().map(|(snapshotter, key)| (lease.clone(), snapshotter, key)).collect::<Vec<_>>()
        });
        let held = join_all(asked).await.into_iter().flatten();
        let is_left = |(_, _, key): &(_, _, String)| snapshots.contains(key) && !known.contains(key.as_str());
        found.snapshots = held.filter(is_left).collect();
    }
    let is_unknown = |attached: &Attached| !known.contains(attached.id.as_str());
    if host.attachments.iter().any(is_unknown) || host.pins.iter().any(|pin| !found.netns.contains(pin)) {
        let own = &config.file.containerd.namespace;
        let others = client.list_namespaces().await?.into_iter().filter(|other| other != own);
        for other in others.take(NAMESPACES_MAX) {
            for record in client.in_namespace(&other)?.list_containers(&[]).await? {
                found.netns.extend(netns_of(&record));
                found.ids_elsewhere.insert(record.id);
            }
        }
    }
    Ok(found)
}

/// Keys of snapshots that are named as those of containers, of all that handlers use.
async fn containers_snapshots(client: &Containerd, config: &Config) -> BTreeSet<String> {
    let snapshotters: BTreeSet<&str> =
        config.handlers.iter().map(|handler| handler.snapshotter.as_str()).collect();
    let lists = join_all(snapshotters.into_iter().map(|name| client.list_snapshots(name))).await;
    // One that is not there has none.
    let all = lists.into_iter().flat_map(Result::unwrap_or_default).map(|snapshot| snapshot.name);
    all.filter(|key| is_id(key)).collect()
}

/// What a record says: of its own, and by its spec.
fn netns_of(record: &ContainerRecord) -> BTreeSet<PathBuf> {
    let spec: serde_json::Value = serde_json::from_slice(&record.spec).unwrap_or_default();
    let namespaces = spec["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
    let of_spec = namespaces.iter().filter(|namespace| namespace["type"] == "network");
    let of_spec = of_spec.filter_map(|namespace| namespace["path"].as_str());
    let own = record::sandbox_metadata(record).map(|metadata| metadata.netns_path).unwrap_or_default();
    let all = of_spec.chain([own.as_str()]).filter(|path| path.starts_with('/'));
    all.map(|path| real(Path::new(path))).collect()
}

fn read(record: &ContainerRecord) -> Record {
    let kind = match record.labels.get(KIND_LABEL).map(String::as_str) {
        Some(KIND_SANDBOX) => Kind::Pod,
        Some(KIND_CONTAINER) => Kind::Container,
        _ => Kind::Other,
    };
    let mut found = Record {
        id: record.id.clone(),
        kind,
        is_creating: record.labels.get(CREATING_LABEL).is_some_and(|value| value == "true"),
        ..Record::default()
    };
    let wrong = |error: crate::error::Error| Some(error.message().to_owned());
    match kind {
        Kind::Pod => match record::sandbox_metadata(record) {
            Ok(metadata) => {
                let named = metadata.config.metadata.unwrap_or_default();
                found.title = format!("{}/{}", named.namespace, named.name);
                found.netns = match metadata.netns_path.is_empty() {
                    true => PathBuf::new(),
                    false => real(Path::new(&metadata.netns_path)),
                };
            }
            Err(error) => found.wrong = wrong(error),
        },
        Kind::Container => match record::container_metadata(record) {
            Ok(metadata) => {
                found.title = metadata.config.metadata.unwrap_or_default().name;
                found.pod = metadata.sandbox_id;
            }
            Err(error) => found.wrong = wrong(error),
        },
        Kind::Other => {}
    }
    found
}
