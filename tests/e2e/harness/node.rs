//! The node: everything that a test has, and its end.

use std::ops::Deref;
use std::sync::Arc;

use super::builder::{Builder, Server};
use super::containerd::{Containerd, Version};
use super::cri::Cri;
use super::leaks::{self, Traces};
use super::longshore::Longshore;
use super::place::Place;
use super::process::tail;
use super::procfs;
use super::registry::Registry;

/// A node with a server under test. Derefs to a client of that server.
///
/// A test ends with [`Node::finish`]; one that panics drops the node, which cleans up.
pub(crate) struct Node {
    parts: Parts,
}

/// What a node is made of. The place goes last: it removes what the others left.
pub(crate) struct Parts {
    pub(crate) cri: Cri,
    pub(crate) longshore: Option<Longshore>,
    pub(crate) containerd: Containerd,
    pub(crate) registry: Arc<Registry>,
    pub(crate) place: Arc<Place>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Node {
        Node { parts }
    }

    /// Starts one with the server that the environment asks for.
    pub(crate) async fn start() -> Node {
        Node::with(Server::from_env()).start().await
    }

    /// One to be started with that server.
    pub(crate) fn with<'a>(server: Server) -> Builder<'a> {
        Builder::new(server)
    }

    /// The server, where it is longshore.
    pub(crate) fn longshore(&self) -> &Longshore {
        self.parts.longshore.as_ref().expect("longshore is the server of this node")
    }

    /// containerd.
    pub(crate) fn containerd(&self) -> &Containerd {
        &self.parts.containerd
    }

    /// containerd's version.
    pub(crate) fn containerd_version(&self) -> &Version {
        self.parts.containerd.version()
    }

    /// The registry, to put images into.
    pub(crate) fn registry(&self) -> &Registry {
        &self.parts.registry
    }

    /// Folder, bridge, subnet.
    pub(crate) fn place(&self) -> &Place {
        &self.parts.place
    }

    /// A client of the server under test.
    pub(crate) fn cri(&self) -> &Cri {
        &self.parts.cri
    }

    /// Whether the server is containerd's plugin.
    pub(crate) fn is_built_in(&self) -> bool {
        self.parts.longshore.is_none()
    }

    /// Memory that the server under test has in RAM; the plugin's is containerd's.
    pub(crate) fn rss_kib(&self) -> u64 {
        match &self.parts.longshore {
            Some(longshore) => longshore.rss_kib(),
            None => procfs::status_kib(self.parts.containerd.pid(), "VmRSS"),
        }
    }

    /// Stops everything; nothing may be left of what the test made. Pods are the test's
    /// to remove.
    pub(crate) async fn finish(self) {
        let traces = self.traces();
        if self.parts.containerd.is_started() {
            leaks::assert_none("with all pods removed", async || self.leftovers().await).await;
        }
        if let Some(longshore) = &self.parts.longshore
            && longshore.is_started()
        {
            longshore.terminate().await;
        }
        leaks::assert_none("after the end of the server", async || traces.of_the_server()).await;
        if self.parts.containerd.is_started() {
            self.parts.containerd.terminate().await;
        }
        leaks::assert_none("after the end of containerd", async || traces.at_the_end()).await;
    }

    /// With all pods removed nothing may be left of them; `what` says of what.
    pub(crate) async fn assert_nothing_left(&self, what: &str) {
        leaks::assert_none(what, async || self.leftovers().await).await;
    }

    /// What there is of pods now: on the machine, and in containerd.
    pub(crate) async fn leftovers(&self) -> Vec<String> {
        let mut found = self.traces().on_the_machine();
        found.extend(leaks::in_containerd(&self.parts.containerd).await);
        found
    }

    fn traces(&self) -> Traces<'_> {
        let place = &*self.parts.place;
        match &self.parts.longshore {
            Some(longshore) => Traces {
                place,
                folders: longshore.folders(),
                netns: longshore.netns_dir(),
                cni_cache: longshore.cni_cache(),
            },
            None => {
                let (root, state) = self.parts.containerd.plugin_folders();
                let netns = state.join("netns");
                Traces { place, folders: (root, state), netns, cni_cache: "/var/lib/cni".into() }
            }
        }
    }
}

impl Deref for Node {
    type Target = Cri;

    fn deref(&self) -> &Cri {
        &self.parts.cri
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(longshore) = &self.parts.longshore {
            eprintln!("---- the end of longshore's log\n{}", tail(&longshore.log(), 60));
        }
        eprintln!("---- the end of containerd's log\n{}", tail(&self.parts.containerd.log(), 20));
    }
}
