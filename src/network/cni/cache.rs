//! libcni's cache: with which configuration and arguments a pod was attached, and the result.
//!
//! One file for each sandbox, network and interface, `<dir>/results/<network>-<id>-<interface>`,
//! in libcni's own format, so that pods can change over between it and us (CNI-20,
//! COX-15). It is what makes DEL independent of the configuration directory, which may
//! be changed, broken or gone by then (CNI-09, SBX-43).
//!
//! An entry is written twice: before ADD without a result, so that after a crash in
//! between DEL knows what was tried, and after ADD with it. Files appear whole, by
//! rename. They are not synced to the disk: what a power failure loses belongs to pods
//! that it ended, and a file that it damaged only means that DEL uses the configuration
//! loaded at that time ([`Found::Broken`]).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::Endpoint;
use crate::error::{Context, Result, invalid};
use crate::points;
use crate::trace;

/// libcni's name of the format.
const KIND: &str = "cniCacheV1";

/// Bytes of the largest entry that is read.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// One attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    kind: String,
    pub(crate) container_id: String,
    /// The network list as JSON.
    #[serde(with = "as_base64")]
    pub(crate) config: Vec<u8>,
    pub(crate) if_name: String,
    pub(crate) network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) netns: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) cni_args: Vec<(String, String)>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Map::is_empty")]
    pub(crate) capability_args: Map<String, Value>,
    /// The result of ADD; None as long as it has not succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Value>,
}

/// What stands in the cache for a sandbox.
pub(crate) enum Found {
    /// A readable entry.
    Entry(Box<Entry>),
    /// A file that cannot be read: its network, interface and path.
    Broken { network: String, interface: String, path: PathBuf },
}

/// The folder of the entries.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    results: PathBuf,
}

impl Entry {
    /// The entry of an attachment that is about to be made.
    pub(crate) fn intent(network: &str, config: &[u8], endpoint: &Endpoint) -> Entry {
        Entry {
            kind: KIND.to_owned(),
            container_id: endpoint.container.clone(),
            config: config.to_vec(),
            if_name: endpoint.interface.clone(),
            network_name: network.to_owned(),
            netns: endpoint.netns.clone(),
            cni_args: endpoint.args.clone(),
            capability_args: endpoint.capability_args.clone(),
            result: None,
        }
    }

    /// What the plugins are to be told at DEL and CHECK: as at ADD, in the namespace `netns`.
    pub(crate) fn endpoint(&self, netns: &str) -> Endpoint {
        Endpoint {
            container: self.container_id.clone(),
            netns: netns.to_owned(),
            interface: self.if_name.clone(),
            args: self.cni_args.clone(),
            capability_args: self.capability_args.clone(),
        }
    }

    fn file_name(&self) -> String {
        format!("{}-{}-{}", self.network_name, self.container_id, self.if_name)
    }

    fn check(self) -> Result<Entry> {
        if self.kind != KIND {
            return Err(invalid(format!("it is of kind {:?}, not {KIND:?}", self.kind)));
        }
        if self.if_name.is_empty() || self.network_name.is_empty() {
            return Err(invalid("it names no interface or no network"));
        }
        Ok(self)
    }
}

impl Cache {
    /// The cache below `directory` (`/var/lib/cni` for most).
    pub(crate) fn new(directory: &Path) -> Cache {
        Cache { results: directory.join("results") }
    }

    /// Writes or replaces `entry`'s file.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, entry: &Entry) -> Result<()> {
        let unfinished =
            self.results.join(format!("{}{}", unfinished_prefix(&entry.container_id), entry.if_name));
        let _step = trace::file("write the CNI cache", &unfinished);
        points::before("write the CNI cache")?;
        let write = || {
            let bytes = serde_json::to_vec(entry).map_err(std::io::Error::other)?;
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = match options.open(&unfinished) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.create_folder()?;
                    options.open(&unfinished)?
                }
                file => file?,
            };
            file.write_all(&bytes)?;
            std::fs::rename(&unfinished, self.results.join(entry.file_name()))
        };
        write().inspect_err(|_| drop(std::fs::remove_file(&unfinished))).context(|| {
            format!("write the attachment to network {:?} in {:?}", entry.network_name, self.results)
        })
    }

    /// Deletes what a write of an attachment of `id` that was cut off has left.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn remove_unfinished(&self, id: &str) -> Result<()> {
        let prefix = unfinished_prefix(id);
        let Ok(entries) = std::fs::read_dir(&self.results) else { return Ok(()) };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                self.remove_path(&entry.path())?;
            }
        }
        Ok(())
    }

    fn create_folder(&self) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.results)
    }

    /// Deletes `entry`'s file, if it is there.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<()> {
        self.remove_path(&self.results.join(entry.file_name()))
    }

    /// Deletes the file of [`Found::Broken`].
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn remove_path(&self, path: &Path) -> Result<()> {
        let _step = trace::file("delete from the CNI cache", path);
        points::before("delete from the CNI cache")?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(|| format!("delete {path:?}"))
            }
            _ => Ok(()),
        }
    }

    /// All attachments of the sandbox `id`, in the order of their interfaces.
    ///
    /// # Errors
    /// If the folder cannot be read; that it is missing is none.
    pub(crate) fn of(&self, id: &str) -> Result<Vec<Found>> {
        let middle = format!("-{id}-");
        let mut found = Vec::new();
        for name in self.names()? {
            let Some((network, interface)) = name.split_once(&middle) else { continue };
            if network.is_empty() || interface.is_empty() {
                continue;
            }
            let path = self.results.join(&name);
            match read(&path) {
                Ok(Some(entry)) if entry.container_id == id => found.push(Found::Entry(Box::new(entry))),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(?path, %error, "an attachment in the CNI cache cannot be read");
                    let (network, interface) = (network.to_owned(), interface.to_owned());
                    found.push(Found::Broken { network, interface, path });
                }
            }
        }
        found.sort_by(|a, b| {
            let order = |name: &str| (name.len(), name.to_owned());
            order(a.interface()).cmp(&order(b.interface()))
        });
        Ok(found)
    }

    /// All readable attachments of all sandboxes, of other users of the cache too.
    ///
    /// # Errors
    /// If the folder cannot be read; that it is missing is none.
    pub(crate) fn all(&self) -> Result<Vec<Entry>> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| read(&self.results.join(name)).ok().flatten()).collect())
    }

    /// All files, of other users of the cache too, with what stands in those that can be read.
    ///
    /// # Errors
    /// If the folder cannot be read; that it is missing is none.
    pub(crate) fn survey(&self) -> Result<Vec<(PathBuf, Option<Entry>)>> {
        let paths = self.names()?.into_iter().map(|name| self.results.join(name));
        Ok(paths.map(|path| (read(&path).ok().flatten(), path)).map(|(entry, path)| (path, entry)).collect())
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.results) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context(|| format!("read the CNI cache {:?}", self.results))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.context(|| format!("read the CNI cache {:?}", self.results))?;
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with('.')
            {
                names.push(name);
            }
        }
        Ok(names)
    }
}

impl Found {
    /// The interface in the pod.
    pub(crate) fn interface(&self) -> &str {
        match self {
            Found::Entry(entry) => &entry.if_name,
            Found::Broken { interface, .. } => interface,
        }
    }
}

/// How files begin that are written and not renamed yet: hidden from us and, since they do
/// not hold the sandbox's id between dashes, from libcni.
fn unfinished_prefix(id: &str) -> String {
    format!(".longshore.{id}.")
}

/// Reads an entry; None if the file has just gone.
fn read(path: &Path) -> Result<Option<Entry>> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let entry: Entry = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    entry.check().map(Some)
}

fn nullable<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// Bytes as base64 text, as Go writes them.
mod as_base64 {
    use super::{Deserialize, Deserializer, Engine, STANDARD, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = Option::<String>::deserialize(from)?.unwrap_or_default();
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// As the built-in plugin of containerd 2.3.4 wrote it, with its indentation.
    const RECORD: &str = r#"{
 "kind": "cniCacheV1",
 "containerId": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
 "config": "eyJjbmlWZXJzaW9uIjoiMS4wLjAiLCJuYW1lIjoiYnJpZGdlIiwicGx1Z2lucyI6W3sidHlwZSI6ImJyaWRnZSJ9LHsidHlwZSI6InBvcnRtYXAiLCJjYXBhYmlsaXRpZXMiOnsicG9ydE1hcHBpbmdzIjp0cnVlfX1dfQo=",
 "ifName": "eth0",
 "networkName": "bridge",
 "netns": "/var/run/netns/cni-4cfb0333-4369-e71d-a748-8f2a7fcddab7",
 "cniArgs": [["K8S_POD_NAME", "web"], ["IgnoreUnknown", "1"]],
 "capabilityArgs": {
  "cgroupPath": "/kubepods/burstable/pod0f3f7a52-9c1b-4c55-8f0a-3d8f5f1f2a11",
  "portMappings": [{"HostPort": 18080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]
 },
 "result": {
  "cniVersion": "1.0.0",
  "interfaces": [{"mac": "2a:2d:56:80:0a:a1", "name": "cni0"}],
  "ips": [{"address": "10.88.4.231/16", "gateway": "10.88.0.1", "interface": 0}]
 }
}"#;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(&directory.path().join("cni"));
        (directory, cache)
    }

    fn entry(network: &str, id: &str, interface: &str) -> Entry {
        let endpoint = Endpoint {
            container: id.to_owned(),
            netns: "/ns".to_owned(),
            interface: interface.to_owned(),
            args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
            capability_args: Map::new(),
        };
        Entry::intent(network, b"{}", &endpoint)
    }

    fn seen(cache: &Cache, id: &str) -> Vec<String> {
        let found = cache.of(id).expect("readable");
        found
            .iter()
            .map(|found| match found {
                Found::Entry(entry) => entry.file_name().replace(id, "ID"),
                Found::Broken { network, interface, .. } => format!("broken {network} {interface}"),
            })
            .collect()
    }

    #[test]
    fn a_file_of_the_built_in_plugin_is_read_and_written_again_alike() {
        let entry: Entry = serde_json::from_str(RECORD).expect("parses");
        assert_eq!(entry.network_name, "bridge");
        assert_eq!(entry.cni_args[0], ("K8S_POD_NAME".to_owned(), "web".to_owned()));
        let list = crate::network::cni::config::NetworkList::parse(&entry.config).expect("a list");
        assert_eq!(list.plugins[1].kind, "portmap");
        let written: Value = serde_json::to_value(&entry).expect("serialises");
        assert_eq!(written, serde_json::from_str::<Value>(RECORD).expect("JSON"));
        // containerd 1.x has no netns in it.
        let older =
            RECORD.replace(" \"netns\": \"/var/run/netns/cni-4cfb0333-4369-e71d-a748-8f2a7fcddab7\",\n", "");
        let entry: Entry = serde_json::from_str(&older).expect("parses");
        assert_eq!(entry.netns, "");
        assert_eq!(
            serde_json::to_value(&entry).expect("serialises"),
            serde_json::from_str::<Value>(&older).expect("JSON")
        );
    }

    #[test]
    fn entries_are_found_by_sandbox_in_the_order_of_interfaces() {
        let (_directory, cache) = cache();
        assert!(cache.of(ID).expect("a missing folder is none").is_empty());
        for interface in ["eth10", "eth2", "lo", "eth0"] {
            cache.write(&entry("a-b", ID, interface)).expect("written");
        }
        cache.write(&entry("a-b", "other", "eth0")).expect("written");
        assert_eq!(seen(&cache, ID), ["a-b-ID-lo", "a-b-ID-eth0", "a-b-ID-eth2", "a-b-ID-eth10"]);
        assert_eq!(cache.all().expect("readable").len(), 5);
        cache.remove(&entry("a-b", ID, "eth2")).expect("removed");
        cache.remove(&entry("a-b", ID, "eth2")).expect("idempotent");
        assert_eq!(seen(&cache, ID).len(), 3);
        assert_eq!(seen(&cache, "other"), ["a-b-ID-eth0"]);
    }

    #[test]
    fn the_intent_is_replaced_by_the_result() {
        let (_directory, cache) = cache();
        let mut entry = entry("net", ID, "eth0");
        cache.write(&entry).expect("written");
        let text = std::fs::read_to_string(cache.results.join(entry.file_name())).expect("the file");
        assert!(!text.contains("result"), "{text}");
        entry.result = Some(serde_json::json!({"cniVersion": "1.0.0"}));
        cache.write(&entry).expect("written");
        let found = cache.of(ID).expect("readable");
        assert!(matches!(&found[..], [Found::Entry(found)] if **found == entry));
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&cache.results.join(entry.file_name())), 0o600);
        assert_eq!(mode(&cache.results), 0o700);
        assert_eq!(std::fs::read_dir(&cache.results).expect("there").count(), 1, "no temporary files");
    }

    #[test]
    fn damaged_files_are_told_apart_from_missing_ones() {
        let (_directory, cache) = cache();
        cache.write(&entry("good", ID, "eth0")).expect("written");
        for (name, text) in [
            (format!("cut-{ID}-eth1"), "{\"kind\":"),
            (
                format!("kind-{ID}-eth2"),
                r#"{"kind":"x","containerId":"","config":"","ifName":"a","networkName":"b"}"#,
            ),
            (format!("zeros-{ID}-eth3"), "\0\0\0"),
            (format!(".tmp-{ID}-eth4"), ""),
            (format!("-{ID}-eth5"), ""),
            ("unrelated".to_owned(), ""),
        ] {
            std::fs::write(cache.results.join(name), text).expect("written");
        }
        assert_eq!(
            seen(&cache, ID),
            ["good-ID-eth0", "broken cut eth1", "broken kind eth2", "broken zeros eth3"]
        );
        assert_eq!(cache.all().expect("readable").len(), 1);
    }

    #[test]
    fn a_write_that_was_cut_off_is_not_seen_and_can_be_removed() {
        let directory = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(directory.path());
        cache.write(&entry("net", ID, "eth0")).expect("written");
        let cut = cache.results.join(format!("{}eth1", unfinished_prefix(ID)));
        let other = cache.results.join(format!("{}eth1", unfinished_prefix("other")));
        for path in [&cut, &other] {
            std::fs::write(path, "{").expect("written");
        }
        assert_eq!(cache.of(ID).expect("readable").len(), 1);
        cache.remove_unfinished(ID).expect("removed");
        assert!(!cut.exists() && other.exists());
        assert_eq!(cache.of(ID).expect("readable").len(), 1);
    }

    #[test]
    fn a_write_that_fails_names_the_network() {
        let directory = tempfile::tempdir().expect("a folder");
        std::fs::write(directory.path().join("results"), "").expect("a file in the way");
        let error = Cache::new(directory.path()).write(&entry("net", ID, "eth0")).expect_err("no folder");
        assert!(error.message().contains("\"net\""), "{error}");
    }
}
