//! What differs between containerd 1.6, 1.7 and 2.x, as capabilities with a meaning.
//!
//! Asked once a connection; the rest of the crate asks these methods and never the
//! version (VER-01). Plugins are not matched by full names alone, since types were
//! renamed between 1.x and 2.x (VER-09).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::flow::lock;

/// The type of plugins that judge images before they are pulled.
const VERIFIER: &str = "io.containerd.image-verifier.v1";

/// The namespace of containerd's own CRI plugin.
pub const BUILTIN_NAMESPACE: &str = "k8s.io";

/// Plugins that are needed, with what they are for. Their services have these names in all
/// versions; the snapshotter is the configuration's to name.
const NEEDED: [(&str, &str, &str); 8] = [
    ("io.containerd.grpc.v1", "containers", "container records"),
    ("io.containerd.grpc.v1", "content", "content store"),
    ("io.containerd.grpc.v1", "events", "events"),
    ("io.containerd.grpc.v1", "images", "image records"),
    ("io.containerd.grpc.v1", "introspection", "introspection"),
    ("io.containerd.grpc.v1", "leases", "leases"),
    ("io.containerd.grpc.v1", "snapshots", "snapshots"),
    ("io.containerd.grpc.v1", "tasks", "tasks"),
];

/// How a plugin is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PluginState {
    /// At work.
    Loaded,
    /// There, and not loaded: what containerd says of it.
    Failed(String),
    /// Not there, or switched off.
    Absent,
}

/// A plugin of the connected containerd.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    pub(super) kind: String,
    pub(super) id: String,
    pub(super) root: Option<String>,
    pub(super) capabilities: Vec<String>,
    pub(super) is_loaded: bool,
    /// Why it is not.
    pub(super) failure: String,
}

/// What the connected containerd is.
#[derive(Clone, Debug, Default)]
pub struct Capabilities {
    version: String,
    plugins: Vec<Plugin>,
    /// Whether it tells about single plugins (VER-03).
    tells_plugins: bool,
    /// The snapshotters that Transfer has refused to unpack for.
    refused: Arc<Mutex<BTreeSet<String>>>,
}

/// How a snapshotter maps ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdMapping {
    /// Its mounts are id-mapped, as labels of the snapshot say.
    Mounted,
    /// Not here, and files on disk are not to be given other owners instead.
    Refused,
    /// Not at all: files on disk need other owners.
    Absent,
}

impl Capabilities {
    pub(super) fn new(version: String, plugins: Vec<Plugin>, tells_plugins: bool) -> Capabilities {
        Capabilities { version, plugins, tells_plugins, refused: Arc::default() }
    }

    /// How the plugin `id` of the type `kind` is.
    #[must_use]
    pub fn plugin(&self, kind: &str, id: &str) -> PluginState {
        match self.plugins.iter().find(|plugin| plugin.kind == kind && plugin.id == id) {
            Some(plugin) if plugin.is_loaded => PluginState::Loaded,
            Some(plugin) => PluginState::Failed(plugin.failure.clone()),
            None => PluginState::Absent,
        }
    }

    /// How a snapshotter is.
    #[must_use]
    pub fn snapshotter(&self, name: &str) -> PluginState {
        self.plugin("io.containerd.snapshotter.v1", name)
    }

    /// What is needed of containerd, and how it is.
    pub fn needed(&self) -> impl Iterator<Item = (&'static str, PluginState)> {
        let tasks = self.plugin("io.containerd.runtime.v2", "task");
        let services = NEEDED.map(|(kind, id, what)| (what, self.plugin(kind, id)));
        services.into_iter().chain([("shims (tasks, version 2)", tasks)])
    }

    /// Whether this version is one that longshore is tested with: 1.6, 1.7 and 2.x.
    #[must_use]
    pub fn is_supported(&self) -> bool {
        let version = self.semantic_version();
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        matches!((numbers.next(), numbers.next()), (Some(1), Some(6 | 7)) | (Some(2), Some(0..)))
    }

    /// Whether it pulls images by itself, by the hosts.toml of the folder that it is
    /// told (VER-04). That of 1.7 pulls, too, but does not know such a folder and would
    /// pass over the mirrors without a word; it is told by its introspection, which
    /// learned to tell about single plugins in the same release as Transfer that.
    #[must_use]
    pub fn transfers_images(&self) -> bool {
        let has = |kind: &str, id: &str| {
            self.plugins.iter().any(|plugin| plugin.is_loaded && plugin.kind == kind && plugin.id == id)
        };
        self.tells_plugins
            && has("io.containerd.transfer.v1", "local")
            && has("io.containerd.grpc.v1", "transfer")
            && has("io.containerd.grpc.v1", "streaming")
    }

    /// Whether Transfer may unpack for `snapshotter`. Which it does is in the
    /// configuration of its plugin, and introspection does not tell (VER-05): true until
    /// it has refused once.
    #[must_use]
    pub fn may_unpack_by_transfer(&self, snapshotter: &str) -> bool {
        !lock(&self.refused).contains(snapshotter)
    }

    /// Remembers, for this connection, that Transfer does not unpack for `snapshotter`.
    pub fn transfer_refused(&self, snapshotter: &str) {
        lock(&self.refused).insert(snapshotter.to_owned());
    }

    /// The ids of the plugins by which Transfer has images judged (IMG-39). `bindir`,
    /// which calls programs in a folder, is loaded everywhere from 1.7 on; introspection
    /// does not tell the folder, nor whether there is anything in it.
    pub fn image_verifiers(&self) -> impl Iterator<Item = &str> {
        self.plugins
            .iter()
            .filter(|plugin| plugin.is_loaded && plugin.kind == VERIFIER)
            .map(|plugin| plugin.id.as_str())
    }

    /// The version as containerd says it: `1.6.20~ds1`, `v2.1.9+ds1`, …
    #[must_use]
    pub fn raw_version(&self) -> &str {
        &self.version
    }

    /// The version as a semantic version, which the kubelet parses (SVC-05).
    #[must_use]
    pub fn semantic_version(&self) -> String {
        semantic_version(&self.version)
    }

    /// Whether the built-in CRI plugin runs in this containerd (COX-02).
    #[must_use]
    pub fn builtin_cri_active(&self) -> bool {
        self.plugins.iter().any(|plugin| {
            plugin.is_loaded
                && ((plugin.kind == "io.containerd.grpc.v1" && plugin.id == "cri")
                    || (plugin.kind == "io.containerd.cri.v1" && plugin.id == "runtime"))
        })
    }

    /// Its plugins by type and id: "ok", or what containerd says of one that is not loaded.
    #[must_use]
    pub fn plugin_states(&self) -> BTreeMap<String, &str> {
        self.plugins
            .iter()
            .map(|plugin| {
                let text = if plugin.is_loaded { "ok" } else { plugin.failure.as_str() };
                (format!("{}.{}", plugin.kind, plugin.id), text)
            })
            .collect()
    }

    /// Names of the loaded snapshotters.
    pub fn snapshotters(&self) -> impl Iterator<Item = &str> {
        self.plugins
            .iter()
            .filter(|plugin| plugin.is_loaded && plugin.kind == "io.containerd.snapshotter.v1")
            .map(|plugin| plugin.id.as_str())
    }

    /// The folder of a snapshotter (VER-12): what it says itself, or where containerd
    /// keeps the data of a plugin of that name.
    #[must_use]
    pub fn snapshotter_root(&self, snapshotter: &str) -> Option<String> {
        let of = |id: &str| {
            self.plugins
                .iter()
                .find(|plugin| plugin.kind == "io.containerd.snapshotter.v1" && plugin.id == id)
        };
        if let Some(root) = of(snapshotter).and_then(|plugin| plugin.root.clone()) {
            return Some(root);
        }
        // Proxy snapshotters: beside one that tells.
        let (known, root) = self.plugins.iter().find_map(|plugin| {
            (plugin.kind == "io.containerd.snapshotter.v1")
                .then(|| plugin.root.as_deref().map(|root| (plugin.id.as_str(), root)))
                .flatten()
        })?;
        let base = root.strip_suffix(&format!("io.containerd.snapshotter.v1.{known}"))?;
        Some(format!("{base}io.containerd.snapshotter.v1.{snapshotter}"))
    }

    /// The folder of the content store, if it tells.
    #[must_use]
    pub fn content_root(&self) -> Option<&str> {
        let mut plugins = self.plugins.iter();
        plugins.find(|plugin| plugin.kind == "io.containerd.content.v1" && plugin.is_loaded)?.root.as_deref()
    }

    /// How a snapshotter maps ids: from 2.0 on overlayfs does where the kernel has id-mapped
    /// mounts of overlays (5.19). Otherwise it says that owners are only to be changed on
    /// disk if its configuration has `slow_chown`; older ones do not know either.
    #[must_use]
    pub fn id_mapping_of(&self, snapshotter: &str) -> IdMapping {
        let has = |capability: &str| {
            self.plugins.iter().any(|plugin| {
                plugin.kind == "io.containerd.snapshotter.v1"
                    && plugin.id == snapshotter
                    && plugin.capabilities.iter().any(|known| known == capability)
            })
        };
        match (has("remap-ids"), has("only-remap-ids")) {
            (true, _) => IdMapping::Mounted,
            (false, true) => IdMapping::Refused,
            (false, false) => IdMapping::Absent,
        }
    }
}

/// `MAJOR.MINOR.PATCH` of whatever a build calls itself; 0.0.0 if there is nothing.
pub(super) fn semantic_version(raw: &str) -> String {
    let mut numbers = raw
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()
        .unwrap_or_default()
        .split('.')
        .map(|part| part.parse::<u64>().unwrap_or(0))
        .chain(std::iter::repeat(0));
    let mut next = || numbers.next().unwrap_or(0);
    format!("{}.{}.{}", next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_become_semantic() {
        for (raw, want) in [
            ("1.6.20~ds1", "1.6.20"),
            ("v2.3.4", "2.3.4"),
            ("2.1.9+ds1", "2.1.9"),
            ("1.7", "1.7.0"),
            ("", "0.0.0"),
            ("dev", "0.0.0"),
        ] {
            assert_eq!(semantic_version(raw), want, "{raw}");
        }
    }

    #[test]
    fn known_versions_are_supported() {
        let is_supported =
            |version: &str| Capabilities::new(version.into(), Vec::new(), false).is_supported();
        for version in ["1.6.20~ds1", "v1.7.24", "2.0.0", "v2.3.4"] {
            assert!(is_supported(version), "{version}");
        }
        for version in ["1.5.9", "1.8.0", "3.0.0", "", "0.9.1"] {
            assert!(!is_supported(version), "{version}");
        }
    }

    #[test]
    fn a_plugin_that_failed_says_why() {
        let mut failed = plugin("io.containerd.snapshotter.v1", "zfs", None);
        (failed.is_loaded, failed.failure) = (false, "skip plugin".into());
        let known = Capabilities::new("2.0.0".into(), vec![failed], true);
        assert_eq!(known.snapshotter("zfs"), PluginState::Failed("skip plugin".into()));
        assert_eq!(known.snapshotter("overlayfs"), PluginState::Absent);
        let told = [("io.containerd.snapshotter.v1.zfs".to_owned(), "skip plugin")];
        assert_eq!(known.plugin_states(), told.into());
        assert!(known.needed().all(|(_, state)| state == PluginState::Absent));
    }

    fn plugin(kind: &str, id: &str, root: Option<&str>) -> Plugin {
        Plugin {
            kind: kind.into(),
            id: id.into(),
            root: root.map(Into::into),
            capabilities: Vec::new(),
            is_loaded: true,
            failure: String::new(),
        }
    }

    #[test]
    fn a_proxy_snapshotter_without_a_root_is_beside_the_others() {
        let capabilities = Capabilities::new(
            "2.1.9".into(),
            vec![
                plugin("io.containerd.snapshotter.v1", "stargz", None),
                plugin(
                    "io.containerd.snapshotter.v1",
                    "overlayfs",
                    Some("/d/io.containerd.snapshotter.v1.overlayfs"),
                ),
            ],
            true,
        );
        assert_eq!(
            capabilities.snapshotter_root("stargz").as_deref(),
            Some("/d/io.containerd.snapshotter.v1.stargz")
        );
    }

    #[test]
    fn a_snapshotter_tells_how_it_maps_ids() {
        let with = |capabilities: &[&str]| {
            let mut overlay = plugin("io.containerd.snapshotter.v1", "overlayfs", None);
            overlay.capabilities = capabilities.iter().map(ToString::to_string).collect();
            Capabilities::new(String::new(), vec![overlay], true).id_mapping_of("overlayfs")
        };
        assert_eq!(with(&["remap-ids", "only-remap-ids", "rebase"]), IdMapping::Mounted);
        assert_eq!(with(&["only-remap-ids"]), IdMapping::Refused);
        assert_eq!(with(&[]), IdMapping::Absent, "1.6, 1.7, slow_chown");
        assert_eq!(Capabilities::default().id_mapping_of("overlayfs"), IdMapping::Absent);
    }

    #[test]
    fn the_builtin_plugin_is_found_under_both_names() {
        let with = |kind, id| Capabilities::new(String::new(), vec![plugin(kind, id, None)], false);
        let old = with("io.containerd.grpc.v1", "cri");
        let new = with("io.containerd.cri.v1", "runtime");
        let off = with("io.containerd.cri.v1", "images");
        assert!(old.builtin_cri_active() && new.builtin_cri_active() && !off.builtin_cri_active());
    }

    #[test]
    fn transfer_is_usable_where_all_of_it_is_there_and_it_reads_hosts_toml() {
        let all = [
            ("io.containerd.transfer.v1", "local"),
            ("io.containerd.grpc.v1", "transfer"),
            ("io.containerd.grpc.v1", "streaming"),
        ];
        let plugins: Vec<Plugin> = all.iter().map(|(kind, id)| plugin(kind, id, None)).collect();
        let with = |plugins: &[Plugin], tells| Capabilities::new(String::new(), plugins.to_vec(), tells);
        assert!(with(&plugins, true).transfers_images());
        assert!(!with(&plugins, false).transfers_images(), "1.7");
        assert!(!with(&plugins[1..], true).transfers_images());
        let mut broken = plugins.clone();
        broken[0].is_loaded = false;
        assert!(!with(&broken, true).transfers_images());
    }

    #[test]
    fn what_transfer_refused_once_is_remembered() {
        let capabilities = Capabilities::default();
        assert!(capabilities.may_unpack_by_transfer("native"));
        capabilities.clone().transfer_refused("native");
        assert!(!capabilities.may_unpack_by_transfer("native"));
        assert!(capabilities.may_unpack_by_transfer("overlayfs"));
    }
}
