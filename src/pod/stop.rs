//! StopPodSandbox.

use std::sync::Arc;

use tracing::{info, warn};

use super::Pods;
use crate::error::{Collected, Context, Result};
use crate::flow;
use crate::network::netns;
use crate::state::Pod;
use crate::state::pod::Status;
use crate::sys;
use crate::telemetry::traces;
use crate::trace;

impl Pods {
    /// Stops a pod: kills its containers, then pause while the network is torn down
    /// (SBX-38, design D6). Any number of times, in any state; unknown ids are fine
    /// (SBX-37).
    ///
    /// # Errors
    /// What could not be stopped; a later call goes on from there (SBX-40).
    pub async fn stop(&self, id: &str) -> Result<()> {
        let pod = match self.containers.store.pod(id) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let this = self.clone();
        self.containers
            .flow
            .detach(async move {
                let _operation = trace::wait(trace::OTHERS, pod.operation.lock()).await;
                this.stop_pod(&pod).await
            })
            .await
    }

    /// Stops a pod; the caller holds its operation.
    pub(super) async fn stop_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        let stopped = self.take_down(pod).await;
        stopped.map_err(|error| error.context(format!("stop pod sandbox {}", pod.id)))?;
        if !pod.status().stopped {
            info!(pod = %pod.id, "pod sandbox stopped");
        }
        pod.change(|status| *status = Status { ready: false, pid: 0, network_gone: true, stopped: true });
        self.containers.tell_pod(pod);
        Ok(())
    }

    async fn take_down(&self, pod: &Arc<Pod>) -> Result<()> {
        // The kubelet has stopped them with grace before; this is the end (SBX-39).
        let containers = self.containers.store.containers_of(pod);
        let kills = containers.iter().map(|container| self.containers.stop_container(container, 0));
        let mut errors = Collected::default();
        let killed = async { Ok(futures_util::future::join_all(kills).await) };
        for killed in traces::stage("kill containers", killed).await? {
            errors.push(killed);
        }
        errors.finish()?;
        let (pause, network) = tokio::join!(
            traces::stage("stop pause", self.stop_pause(pod)),
            traces::stage("cni", self.detach(pod)),
        );
        let mut errors = Collected::default();
        errors.push(pause);
        errors.push(network);
        errors.push(self.unmount_state(pod).await);
        errors.push(self.containers.remove_image_volumes(&pod.id).await.context(|| "image volumes"));
        errors.finish()
    }

    async fn stop_pause(&self, pod: &Pod) -> Result<()> {
        self.containers.discard_task(pod.id.as_str()).await.context(|| "pause")?;
        pod.change(|status| {
            status.ready = false;
            status.pid = 0;
        });
        self.containers.tell_pod(pod);
        Ok(())
    }

    /// CNI DEL, then the namespace goes. A failing DEL counts only if the pod ever had a
    /// network, or a part of it (SBX-42); the namespace then stays for the next attempt.
    async fn detach(&self, pod: &Pod) -> Result<()> {
        let Some(mut network) = self.network_of(pod) else { return Ok(()) };
        if pod.status().stopped {
            return Ok(());
        }
        let alive = match &pod.netns {
            Some(path) => netns::is_alive(path).await,
            None => false,
        };
        if !alive {
            network.netns = None; // SBX-41: DEL still frees the address
        }
        if !pod.had_network() {
            // It was cut off, perhaps with its server.
            self.network.end_strays(pod.id.as_str()).await.context(|| "network")?;
        }
        if let Err(error) = self.network.detach(&network).await {
            if pod.had_network() || self.network.is_attached(pod.id.as_str()).await? {
                return Err(error.context("network"));
            }
            warn!(pod = %pod.id, %error, "a network that was never complete could not be torn down");
        }
        match &pod.netns {
            Some(path) => netns::remove(path).await.context(|| "network namespace"),
            None => Ok(()),
        }
    }

    /// Unmounts the pod's shm and the pin of its user namespace.
    async fn unmount_state(&self, pod: &Pod) -> Result<()> {
        let folder = self.containers.paths.pod_state(&pod.id);
        let what = format!("unmount what is in {folder:?}");
        flow::blocking(move || sys::mount::unmount_below(&folder).context(|| what)).await
    }
}
