//! Pod sandboxes: one verb, one file.

mod events;
mod files;
mod forward;
mod list;
mod reconcile;
mod recover;
mod remove;
mod run;
mod settle;
mod status;
mod stop;
mod update;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

pub use run::choose_handler;

use crate::container::Containers;
use crate::flow::Joins;
use crate::ids::PodId;
use crate::network::{Network, PodNetwork};
use crate::state::Pod;

/// Everything that the verbs of pods need. Cheap to clone.
#[derive(Clone)]
pub struct Pods(Arc<Inner>);

/// The parts.
pub struct Inner {
    /// The verbs of containers, and the parts that pods share with them.
    pub containers: Containers,
    /// Pod networks.
    pub network: Network,
    /// Pods being made, by name.
    running: Joins<PodId>,
    /// Pause processes that ended before their pod was in the table.
    early_exits: Mutex<HashMap<String, ()>>,
    /// Whether everything is known (SVC-07).
    recovery: watch::Sender<Recovery>,
}

/// How far the start is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Not everything is known yet.
    Pending,
    /// Everything is known; calls are served.
    Done,
    /// This containerd must not be used, and why.
    Refused(String),
}

impl std::ops::Deref for Pods {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Pods {
    /// Puts the parts together.
    #[must_use]
    pub fn new(containers: Containers, network: Network) -> Pods {
        Pods(Arc::new(Inner {
            containers,
            network,
            running: Joins::default(),
            early_exits: Mutex::default(),
            recovery: watch::Sender::new(Recovery::Pending),
        }))
    }

    /// How far the start is, now and later.
    #[must_use]
    pub fn recovery(&self) -> watch::Receiver<Recovery> {
        self.recovery.subscribe()
    }

    /// The pod as the network sees it; none with host network.
    fn network_of(&self, pod: &Pod) -> Option<PodNetwork> {
        (!pod.host_network()).then(|| PodNetwork {
            id: pod.id.to_string(),
            handler: pod.handler.clone(),
            netns: pod.netns.clone(),
            config: pod.config.clone(),
        })
    }
}
