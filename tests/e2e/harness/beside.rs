//! A second server on a node's containerd.

use std::sync::Arc;

use super::cni;
use super::containerd::search_path;
use super::cri::Cri;
use super::images::REGISTRY;
use super::longshore::Longshore;
use super::node::Node;
use super::place::Place;

/// longshore in a namespace of its own beside a node's server, on the same containerd.
/// To be dropped before the node.
pub(crate) struct Beside {
    longshore: Longshore,
    _place: Arc<Place>,
}

impl Beside {
    /// Starts one beside `node`'s server, with a network as [`cni::usual`], and waits until
    /// pods can be run.
    pub(crate) async fn start(node: &Node) -> Beside {
        Beside::with(node, "").await
    }

    /// Starts one with further lines of configuration.
    pub(crate) async fn with(node: &Node, lines: &str) -> Beside {
        let place = Arc::new(Place::new());
        cni::prepare(&place, Some(&cni::usual()), &[]);
        let hosts = place.path("certs").join(REGISTRY);
        std::fs::create_dir_all(&hosts).expect("a folder");
        std::fs::write(hosts.join("hosts.toml"), node.registry().hosts()).expect("a file");
        let own = "[containerd]\nnamespace = \"longshore-beside\"\n[log]\nlevel = \"info\"\n";
        let settings = [own.to_owned(), lines.to_owned()];
        let path = search_path(node.containerd().binary(), node.containerd().runc());
        let longshore = Longshore::new(&place, &node.containerd().socket(), path, &settings);
        let beside = Beside { longshore, _place: place };
        beside.longshore.start().await;
        beside.cri().wait_until_network_ready().await;
        beside
    }

    /// A client of it.
    pub(crate) fn cri(&self) -> &Cri {
        self.longshore.cri()
    }

    /// The server itself.
    pub(crate) fn longshore(&self) -> &Longshore {
        &self.longshore
    }

    pub(crate) fn rss_kib(&self) -> u64 {
        self.longshore.rss_kib()
    }

    pub(crate) fn peak_rss_kib(&self) -> u64 {
        self.longshore.peak_rss_kib()
    }

    pub(crate) fn keeper_rss_kib(&self) -> u64 {
        self.longshore.keeper_rss_kib()
    }
}
