//! How a node comes to be.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::cni;
use super::containerd::{Containerd, Plugin, search_path};
use super::cri::Cri;
use super::images::REGISTRY;
use super::longshore::Longshore;
use super::node::{Node, Parts};
use super::place::Place;
use super::registry::Registry;
use super::runc;

/// Which CRI server a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Longshore,
    /// containerd's own plugin: what holds for it holds for every server, which is how
    /// the tests themselves are tested.
    BuiltIn,
}

impl Server {
    /// The one that the environment asks for.
    pub(crate) fn from_env() -> Server {
        match std::env::var("LONGSHORE_TEST_SERVER").as_deref() {
            Ok("built-in") => Server::BuiltIn,
            Ok("longshore" | "") | Err(_) => Server::Longshore,
            Ok(other) => panic!("LONGSHORE_TEST_SERVER={other:?} is neither longshore nor built-in"),
        }
    }
}

/// A node to be started.
pub(crate) struct Builder<'a> {
    server: Server,
    settings: Vec<String>,
    list: Option<Value>,
    plugins: Vec<(String, String)>,
    runc: Option<PathBuf>,
    has_containerd: bool,
    uses_plugin_folders: bool,
    /// What is prepared in the place.
    before: Vec<Prepare<'a>>,
    plugin_config: Option<PluginConfig<'a>>,
    environment: Vec<(String, String)>,
}

/// Prepares something in the place.
type Prepare<'a> = Box<dyn FnOnce(&Place) + 'a>;
/// Makes keys and tables of the plugin's configuration, with things in the place.
type PluginConfig<'a> = Box<dyn FnOnce(&Place) -> (String, String) + 'a>;

impl<'a> Builder<'a> {
    pub(crate) fn new(server: Server) -> Builder<'a> {
        Builder {
            server,
            settings: Vec::new(),
            list: Some(cni::bridge()),
            plugins: Vec::new(),
            runc: None,
            has_containerd: true,
            uses_plugin_folders: false,
            before: Vec::new(),
            plugin_config: None,
            environment: Vec::new(),
        }
    }

    /// Lays TOML over longshore's configuration; see [`Place::fill`] for what may stand in
    /// braces.
    pub(crate) fn config(mut self, text: &str) -> Builder<'a> {
        self.settings.push(text.to_owned());
        self
    }

    /// Another CNI network list than [`cni::bridge`].
    pub(crate) fn cni(mut self, list: Value) -> Builder<'a> {
        self.list = Some(list);
        self
    }

    /// No CNI configuration.
    pub(crate) fn no_cni(mut self) -> Builder<'a> {
        self.list = None;
        self
    }

    /// A further CNI plugin, or another one of that name: a script with its `#!`.
    pub(crate) fn plugin(mut self, name: &str, script: &str) -> Builder<'a> {
        self.plugins.push((name.to_owned(), script.to_owned()));
        self
    }

    /// A variable of longshore's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Builder<'a> {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A runc with id-mapped mounts, which this machine's may not have.
    pub(crate) fn id_mapping_runc(mut self) -> Builder<'a> {
        self.runc = Some(runc::with_id_mapped_mounts().to_owned());
        self
    }

    /// containerd is not started; the test does so when it is time.
    pub(crate) fn containerd_absent(mut self) -> Builder<'a> {
        self.has_containerd = false;
        self
    }

    /// longshore works in the folders of containerd's plugin, so that each can take over
    /// the other's pods.
    pub(crate) fn plugin_folders(mut self) -> Builder<'a> {
        self.uses_plugin_folders = true;
        self
    }

    /// A handler `crun`, whose containers are known in the folder `crun`.
    pub(crate) fn crun(self) -> Builder<'a> {
        let handler = "[runtime.handlers.crun.options]\nBinaryName = \"{folder}/crun-here\"\nRoot = \"{folder}/crun\"\n";
        self.config(handler).before(|place| {
            // crun takes no host with controllers in both versions of cgroups: it must not
            // see the second.
            let both = "/sys/fs/cgroup/unified";
            let text = format!(
                "#!/bin/sh\nif [ -d {both} ]; then\n    exec unshare -m sh -c 'umount {both}; exec crun \"$@\"' crun \"$@\"\nfi\nexec crun \"$@\"\n"
            );
            let path = place.path("crun-here");
            std::fs::write(&path, text).expect("a program");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("permissions");
        })
    }

    /// Something that has to be in the node's folder before the server starts.
    pub(crate) fn before(mut self, prepare: impl FnOnce(&Place) + 'a) -> Builder<'a> {
        self.before.push(Box::new(prepare));
        self
    }

    /// Keys of the CRI plugin's own table, and further tables, for its configuration;
    /// `{runtime}` is its id.
    pub(crate) fn plugin_config(mut self, make: impl FnOnce(&Place) -> (String, String) + 'a) -> Builder<'a> {
        self.plugin_config = Some(Box::new(make));
        self
    }

    /// Starts it, and waits until pods can be run, as far as the parts are there.
    pub(crate) async fn start(self) -> Node {
        let place = Arc::new(Place::new());
        self.before.into_iter().for_each(|prepare| prepare(&place));
        cni::prepare(&place, self.list.as_ref(), &self.plugins);
        let registry = Registry::shared();
        let hosts = place.path("certs").join(REGISTRY);
        std::fs::create_dir_all(&hosts).expect("a folder");
        std::fs::write(hosts.join("hosts.toml"), registry.hosts()).expect("a file");

        let mut containerd = Containerd::new(&place, self.runc.clone());
        if let Some(make) = self.plugin_config {
            containerd.more = make(&place);
        }
        let mut settings = self.settings;
        if self.uses_plugin_folders {
            let (root, state) = containerd.plugin_folders();
            let text = format!("root = {root:?}\nstate = {state:?}\n[cni]\ncache_dir = \"/var/lib/cni\"\n");
            settings.insert(0, text);
        }
        let longshore = match self.server {
            Server::BuiltIn => None,
            Server::Longshore => {
                let path = search_path(containerd.binary(), self.runc);
                let mut longshore = Longshore::new(&place, &containerd.socket(), path, &settings);
                longshore.environment = self.environment;
                Some(longshore)
            }
        };
        let cri = match &longshore {
            Some(longshore) => longshore.cri().clone(),
            None => Cri::new(&containerd.socket(), &place),
        };
        // From here on, whatever fails is cleaned up.
        let node = Node::new(Parts { place, containerd, longshore, registry, cri });
        let plugin = if self.server == Server::BuiltIn { Plugin::Enabled } else { Plugin::Disabled };
        if self.has_containerd {
            node.containerd().start_with(plugin).await;
        }
        if self.server == Server::Longshore {
            node.longshore().start().await;
        }
        if self.has_containerd {
            node.wait_until_answers().await;
        }
        if self.has_containerd && self.list.is_some() {
            node.wait_until_network_ready().await;
        }
        node
    }
}
