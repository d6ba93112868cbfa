//! What the OCI runtimes of the handlers can (SVC-18 … SVC-20).

use std::time::Duration;

use futures_util::future::join_all;
use tracing::{debug, info};

use super::Containers;
use crate::config::Handler;
use crate::containerd::Containerd;
use crate::error::{Context, Result, deadline};
use crate::flow::lock;
use crate::spec::{Features, gather};

/// How long a runtime may take to tell.
const LIMIT: Duration = Duration::from_secs(5);

impl Containers {
    /// What the OCI runtime of a handler can; nothing where it does not tell.
    #[must_use]
    pub fn features_of(&self, handler: &Handler) -> Features {
        self.known_features(&handler.name).unwrap_or_default()
    }

    /// What the OCI runtime of the handler called `name` tells that it can.
    #[must_use]
    pub fn known_features(&self, name: &str) -> Option<Features> {
        lock(&self.features).get(name).copied()
    }

    /// Asks the runtimes of all handlers. One that does not tell is without features
    /// (SVC-19), or has those that it told before.
    pub(crate) async fn learn_features(&self) {
        let asked = self.config.handlers.iter().map(|handler| async move {
            match self.ask(handler).await {
                Ok(features) => Some((handler.name.clone(), features)),
                Err(error) => {
                    info!(handler = handler.name, %error, "the OCI runtime does not tell its features");
                    None
                }
            }
        });
        let told = join_all(asked).await;
        lock(&self.features).extend(told.into_iter().flatten());
    }

    async fn ask(&self, handler: &Handler) -> Result<Features> {
        gather::parse_features(&told(&self.containerd, handler, LIMIT).await?, &self.host)
    }
}

/// What the OCI runtime of a handler says that it can, as the JSON of the runtime spec.
///
/// containerd 2.x has the shim asked, which knows its runtime. Before that there is only the
/// runtime itself, where it is known: runc's shim runs what its options name.
///
/// # Errors
/// If nobody tells, within `limit` each.
pub async fn told(containerd: &Containerd, handler: &Handler, limit: Duration) -> Result<Vec<u8>> {
    let runtime = handler.shim_path.as_deref().unwrap_or(&handler.shim);
    match (containerd.runtime_features(runtime, handler.options.clone(), limit).await, &handler.binary) {
        (Ok(json), _) => Ok(json),
        (Err(error), Some(binary)) => {
            debug!(handler = handler.name, %error, binary, "containerd does not tell; the runtime is asked");
            run(binary, limit).await
        }
        (Err(error), None) => Err(error),
    }
}

/// What `binary features` prints.
///
/// # Errors
/// If it cannot be run, or does not end within `limit`.
pub async fn run(binary: &str, limit: Duration) -> Result<Vec<u8>> {
    let asked = tokio::process::Command::new(binary).arg("features").kill_on_drop(true).output();
    match tokio::time::timeout(limit, asked).await {
        Ok(output) => Ok(output.context(|| format!("{binary} features"))?.stdout),
        Err(_) => Err(deadline(format!("{binary} features: no answer in time"))),
    }
}
