//! The edge to the kubelet: gRPC in, one domain call, gRPC out.

mod deadline;
mod image;
mod inbound;
mod metered;
mod node;
mod runtime;
pub mod status;
mod streams;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use tonic::{Response, Status};
use tracing::{Instrument, debug, info};

pub use self::deadline::Deadline;
use self::inbound::Giants;
pub use self::inbound::Inbound;
pub use self::metered::Metered;
use self::streams::Lists;
use crate::config::Config;
use crate::error::{Result, internal, unavailable};
use crate::pod::{Pods, Recovery};
use crate::proto::cri::image_service_server::ImageServiceServer;
use crate::proto::cri::runtime_service_server::RuntimeServiceServer;
use crate::stats::Stats;
use crate::stream::Streaming;

/// The largest request (SVC-08).
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Both services of the CRI.
#[derive(Clone)]
pub struct Cri {
    pods: Pods,
    stats: Stats,
    streaming: Streaming,
    config: Arc<Config>,
    node: Arc<node::Node>,
    giants: Giants,
    lists: Lists,
}

impl Cri {
    /// The services over `pods`; `streaming` serves what Exec, Attach and PortForward give
    /// the URLs of.
    #[must_use]
    pub fn new(pods: Pods, streaming: Streaming) -> Cri {
        let config = pods.containers.config.clone();
        let stats = Stats::new(pods.clone());
        Cri {
            pods,
            stats,
            streaming,
            config,
            node: Arc::default(),
            giants: Giants::default(),
            lists: Lists::default(),
        }
    }

    /// The RuntimeService.
    #[must_use]
    pub fn runtime_server(&self) -> Metered<Deadline<Inbound<RuntimeServiceServer<Cri>>>> {
        let server = RuntimeServiceServer::new(self.clone());
        let server = server.max_decoding_message_size(REQUEST_BYTES_MAX);
        let server = server.max_encoding_message_size(usize::MAX);
        Metered(Deadline(Inbound::new(server, &self.giants)))
    }

    /// The ImageService.
    #[must_use]
    pub fn image_server(&self) -> Metered<Deadline<Inbound<ImageServiceServer<Cri>>>> {
        let server = ImageServiceServer::new(self.clone());
        let server = server.max_decoding_message_size(REQUEST_BYTES_MAX);
        let server = server.max_encoding_message_size(usize::MAX);
        Metered(Deadline(Inbound::new(server, &self.giants)))
    }

    /// Fails before everything is known (SVC-07).
    fn require_recovered(&self) -> Result<()> {
        match &*self.pods.recovery().borrow() {
            Recovery::Done => Ok(()),
            Recovery::Pending => {
                self.pods.containers.containerd.capabilities()?;
                Err(unavailable("the server is starting: pods and containers are being loaded"))
            }
            Recovery::Refused(reason) => Err(unavailable(reason.clone())),
        }
    }

    /// Serves one call that needs everything known.
    async fn serve<T>(
        &self,
        call: &'static str,
        object: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Response<T>, Status> {
        let gated = async {
            self.require_recovered()?;
            self.pods.containers.tell_of_object(object);
            work.await
        };
        answer(call, object, gated).await
    }
}

/// Runs a call in its span; a panic in it is an error of this call alone (SVC-11).
async fn answer<T>(
    call: &'static str,
    object: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<Response<T>, Status> {
    let span = tracing::info_span!("cri", call, object);
    let begun = Instant::now();
    async {
        let result = AssertUnwindSafe(work)
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(internal(format!("a bug in longshore: {call} panicked"))));
        let milliseconds = begun.elapsed().as_millis();
        match &result {
            Ok(_) => debug!(milliseconds, "served"),
            Err(error) => info!(milliseconds, kind = ?error.kind(), %error, "refused"),
        }
        result.map(Response::new).map_err(|error| status::of(&error))
    }
    .instrument(span)
    .await
}
