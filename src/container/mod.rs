//! Containers: one verb, one file.

mod apparmor;
mod attach;
mod create;
mod events;
mod exec;
mod exit;
pub(crate) mod failed;
pub mod features;
mod files;
mod image_volumes;
pub(crate) mod labels;
mod list;
mod log;
mod remove;
mod snapshot;
mod start;
mod status;
mod stop;
mod terminal;
mod update;
mod volumes;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

pub use files::remove_folder;
pub use status::{runtime_options, user_of, verbose_info};

use crate::cdi::Cdi;
use crate::config::{Config, Handler};
use crate::containerd::Containerd;
use crate::error::{Result, precondition};
use crate::events::Events;
use crate::flow::{Flow, Joins, Keyed, Places};
use crate::ids::{ContainerId, is_id};
use crate::image::Images;
use crate::io::Keeper;
use crate::spec::{Features, Host};
use crate::state::{Container, Paths, Pod, Store};
use crate::trace;

/// Exec processes of one pod that are started at a time: its shim starts them one after the
/// other, and a StopContainer waits there behind them.
pub const EXEC_STARTS: usize = 4;

/// Everything that the verbs of containers need. Cheap to clone.
#[derive(Clone)]
pub struct Containers(Arc<Inner>);

/// The parts.
pub struct Inner {
    /// The configuration.
    pub config: Arc<Config>,
    /// containerd.
    pub containerd: Containerd,
    /// Images.
    pub images: Images,
    /// Devices of vendors.
    pub cdi: Cdi,
    /// Container output.
    pub keeper: Keeper,
    /// Tables.
    pub store: Arc<Store>,
    /// What subscribers are told.
    pub events: Events,
    /// Folders.
    pub paths: Paths,
    /// Facts of the host.
    pub host: Host,
    /// What the handlers' runtimes can, by handler name.
    pub features: Mutex<HashMap<String, Features>>,
    /// Work that must not be cut off.
    pub flow: Flow,
    /// Creations under way, by container name.
    pub creating: Joins<ContainerId>,
    /// Containers whose creation failed and could not be undone, with their snapshotters.
    pub failed: Mutex<HashMap<ContainerId, String>>,
    /// Ids of containers whose exit is being handled.
    pub exits: Mutex<HashSet<String>>,
    /// Held, by id, by whoever deletes a task.
    pub deleting: Keyed,
    /// Taken, by pod, by whoever starts an exec process.
    pub starting_execs: Places<EXEC_STARTS>,
    /// Held, by pod, by whoever mounts or unmounts image volumes.
    pub mounting: Keyed,
}

impl std::ops::Deref for Containers {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Containers {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Inner) -> Containers {
        Containers(Arc::new(parts))
    }

    /// The handler of a pod, which must still be configured.
    ///
    /// # Errors
    /// FailedPrecondition naming the handler.
    pub fn handler_of(&self, pod: &Pod) -> Result<&Handler> {
        let name = pod.handler_name();
        self.config.handler(name).ok_or_else(|| {
            precondition(format!(
                "runtime handler {name:?} of pod sandbox {} is not configured any more",
                pod.id
            ))
        })
    }

    /// Tells the recorder that the present call is about `container`.
    pub(crate) fn tell_of(&self, container: &Container) {
        trace::about(|about| {
            let metadata = container.metadata.config.metadata.as_ref();
            about.container = metadata.map(|it| it.name.clone()).unwrap_or_default();
            about.container_id = container.id.to_string();
            about.pod_id = container.pod_id.to_string();
            let pod = self.store.pod(container.pod_id.as_str());
            about.pod = pod.map(|pod| pod.kubernetes_name()).unwrap_or_default();
        });
    }

    /// Tells the recorder whose pod or container has this id.
    pub(crate) fn tell_of_object(&self, id: &str) {
        if trace::recorder().is_none() || !is_id(id) {
            return;
        }
        if let Ok(container) = self.store.container(id) {
            self.tell_of(&container);
        } else if let Ok(pod) = self.store.pod(id) {
            trace::about(|about| {
                about.pod_id = pod.id.to_string();
                about.pod = pod.kubernetes_name();
            });
        }
    }
}
