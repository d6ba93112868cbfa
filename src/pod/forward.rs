//! Connections to the ports of a pod, for PortForward.

use tokio::net::TcpStream;

use super::Pods;
use crate::error::{Context, Result, invalid, precondition};
use crate::network::forward;

impl Pods {
    /// Whether ports of the pod can be forwarded now, and its full id (STM-27).
    ///
    /// # Errors
    /// InvalidArgument without an id, NotFound, FailedPrecondition for a pod that is not READY.
    pub fn check_forward(&self, id: &str) -> Result<String> {
        if id.is_empty() {
            return Err(invalid("no pod sandbox id is given"));
        }
        let pod = self.containers.store.pod(id)?;
        pod.require_ready()?;
        Ok(pod.id.to_string())
    }

    /// Connects to `port` of localhost inside the pod's network, which is the host's for
    /// pods on the host's network (STM-32).
    ///
    /// # Errors
    /// As [`Pods::check_forward`]; else why nobody answers.
    pub async fn dial(&self, id: &str, port: u16) -> Result<TcpStream> {
        let pod = self.containers.store.pod(id)?;
        pod.require_ready()?;
        if pod.netns.is_none() && !pod.host_network() {
            return Err(precondition(format!("pod sandbox {id} has no network namespace")));
        }
        forward::connect(pod.netns.as_deref(), port).await.context(|| format!("pod sandbox {id}"))
    }
}
