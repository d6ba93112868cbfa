//! What containerd tells: exits, OOM kills, changed images, and that it is back.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

use super::{Pods, Recovery};
use crate::containerd::{BUILTIN_NAMESPACE, Event};
use crate::error::Result;
use crate::flow::lock;
use crate::proto::cri::ContainerState;
use crate::state::Pod;
use crate::trace;
use std::sync::Arc;

/// How many early exits are remembered: more pods are not made at the same time.
const EARLY_EXITS_MAX: usize = 1024;
/// When lost shims are looked for after the start: containerd takes a moment to give up
/// the calls of a killed server.
const LOST_SHIM_PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(2), Duration::from_secs(10)];
/// Pause between attempts to recover while containerd answers.
const RECOVER_PAUSE: Duration = Duration::from_millis(500);

impl Pods {
    /// Handles events until `stop`. The first connection recovers (area REC), later ones
    /// compare (REC-18).
    pub async fn follow(self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = stop.cancelled() => None,
            };
            match event {
                None => return,
                Some(Event::Connected) => self.connected(&stop).await,
                Some(Event::Exit { container_id, process_id, exit }) if container_id == process_id => {
                    self.process_exited(&container_id, exit);
                }
                Some(Event::Exit { .. }) => {} // an exec process (CTR-45)
                Some(Event::OutOfMemory { container_id }) => {
                    if let Ok(container) = self.containers.store.container(&container_id) {
                        self.containers.out_of_memory(&container).await;
                    }
                }
                Some(Event::Image { name }) => {
                    if let Err(error) = self.containers.images.refresh(&name).await {
                        debug!(image = name, %error, "a changed image was not read");
                    }
                }
            }
        }
    }

    async fn connected(&self, stop: &CancellationToken) {
        loop {
            if let Some(reason) = self.refusal() {
                warn!(reason, "this containerd is not used");
                self.recovery.send_replace(Recovery::Refused(reason));
                return;
            }
            let is_known = *self.recovery.borrow() == Recovery::Done;
            let done = if is_known {
                // It may be another containerd, with other runtimes.
                let compared = async { tokio::join!(self.compare_all(), self.containers.learn_features()).0 };
                compared.instrument(trace::background("compare", "")).await
            } else {
                self.load(stop).instrument(trace::background("recover", "")).await
            };
            match done {
                Ok(()) => return,
                // Gone again: the next connection starts over.
                Err(error)
                    if matches!(self.containers.containerd.link(), crate::containerd::Link::Down(_)) =>
                {
                    debug!(%error, "containerd went away during recovery");
                    return;
                }
                Err(error) => warn!(%error, "recovery failed; trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(RECOVER_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Addresses and the like of pods that are not there any more (CNI-23). Before calls
    /// are served: a pod made meanwhile would not be in the list of the living.
    async fn collect_network_garbage(&self) {
        let live: Vec<String> = self.containers.store.pods().iter().map(|pod| pod.id.to_string()).collect();
        if let Err(error) = self.network.collect_garbage(&live).await {
            warn!(%error, "the CNI plugins' garbage was not all collected");
        }
    }

    /// Loads everything; from then on calls are served.
    async fn load(&self, stop: &CancellationToken) -> Result<()> {
        let (known, ()) = tokio::join!(self.recover(), self.containers.learn_features());
        let known = known?;
        if self.containers.config.file.cni.gc {
            self.collect_network_garbage().await;
        }
        self.recovery.send_replace(Recovery::Done);
        tokio::spawn(self.clone().end_lost_shims(known, stop.clone()));
        Ok(())
    }

    /// Shims that containerd lost when the last server was killed in the middle of a call.
    /// Only those of pods and containers of then, and only while these do not run.
    async fn end_lost_shims(self, known: HashSet<String>, stop: CancellationToken) {
        let store = &self.containers.store;
        let is_lost = |id: &str| {
            let pod_runs = || store.pod(id).is_ok_and(|pod| pod.status().ready);
            let container_may_run = || {
                store
                    .container(id)
                    .is_ok_and(|container| container.state() != ContainerState::ContainerExited)
            };
            !pod_runs() && !container_may_run()
        };
        for pause in LOST_SHIM_PAUSES {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            for id in known.iter().filter(|id| is_lost(id)) {
                if let Err(error) = self.containers.containerd.end_lost_shim(id).await {
                    debug!(%error, "a lost shim could not be looked for");
                }
            }
        }
    }

    /// Why the connected containerd must not be used: its own CRI plugin has the same
    /// namespace (COX-01, COX-02).
    fn refusal(&self) -> Option<String> {
        let section = &self.containers.config.file.containerd;
        let is_active =
            self.containers.containerd.capabilities().is_ok_and(|known| known.builtin_cri_active());
        (is_active && section.namespace == BUILTIN_NAMESPACE && !section.allow_builtin_cri).then(|| {
            format!(
                "containerd's own CRI plugin is active in namespace {BUILTIN_NAMESPACE:?}. Either switch it off in \
                 containerd's configuration (disabled_plugins = [\"io.containerd.grpc.v1.cri\"]; on 2.x also \
                 \"io.containerd.cri.v1.images\" and \"io.containerd.cri.v1.runtime\") and restart containerd, or \
                 give longshore another namespace (--namespace)"
            )
        })
    }

    fn process_exited(&self, id: &str, exit: crate::containerd::Exit) {
        if let Ok(container) = self.containers.store.container(id) {
            self.containers.exited(container, exit);
        } else if let Ok(pod) = self.containers.store.pod(id) {
            self.pause_exited(&pod);
        } else {
            let mut early = lock(&self.early_exits);
            if early.len() < EARLY_EXITS_MAX {
                early.insert(id.to_owned(), ());
            }
        }
    }

    /// Pause ended before its pod was in the table.
    pub(super) fn take_early_exit(&self, pod: &Arc<Pod>) {
        let exited = {
            let mut early = lock(&self.early_exits);
            let exited = early.remove(pod.id.as_str()).is_some();
            if early.len() >= EARLY_EXITS_MAX / 2 {
                early.clear(); // ids of others in this namespace
            }
            exited
        };
        if exited {
            self.pause_exited(pod);
        }
    }

    /// Pause is gone: the pod is NOTREADY at once, its containers go on (SBX-49).
    pub(super) fn pause_exited(&self, pod: &Arc<Pod>) {
        if !pod.status().ready {
            return; // stopping
        }
        info!(pod = %pod.id, "pause exited");
        pod.change(|status| {
            status.ready = false;
            status.pid = 0;
        });
        self.containers.tell_pod(pod);
        let (this, pod) = (self.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = this.containers.discard_task(pod.id.as_str()).await {
                debug!(pod = %pod.id, %error, "the task of an exited pause was not deleted");
            }
        });
    }
}
