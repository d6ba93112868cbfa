//! The streaming service: messages in both directions beside a call of another service,
//! which is told the stream's id.
//!
//! A stream belongs to a lease, as everything that is made for one piece of work:
//! containerd forgets a stream that nobody closed only when it collects its lease.

use containerd_client::services::v1 as api;
use containerd_client::services::v1::streaming_client::StreamingClient;
use containerd_client::to_any;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Containerd;
use super::error::from_status;
use super::wire::leased;
use crate::error::{Error, Kind, Result, internal, unavailable};
use crate::ids::random_hex;

const CALL: &str = "Streaming.Stream";

/// An open stream; dropping it ends it.
pub(super) struct Stream {
    id: String,
    outgoing: mpsc::Sender<Any>,
    incoming: Streaming<Any>,
}

impl Containerd {
    /// Opens a stream for `what`, which stands in its id.
    ///
    /// # Errors
    /// Unimplemented where there is no such service (1.6); those of containerd.
    pub(super) async fn open_stream(&self, what: &str, lease: &str) -> Result<Stream> {
        let id = format!("longshore-{what}-{}", random_hex::<12>());
        let (outgoing, receiver) = mpsc::channel(4);
        // Before the call: containerd sends not even headers before it has read this.
        let first = to_any(&api::StreamInit { id: id.clone() });
        outgoing.send(first).await.map_err(|_| internal("the stream's channel closed"))?;
        let mut client = StreamingClient::new(self.wire.clone());
        let call = client.stream(leased(ReceiverStream::new(receiver), Some(lease)));
        let incoming = self.unary(CALL, call).await?;
        let mut stream = Stream { id, outgoing, incoming };
        // The first answer says that containerd knows the id from here on.
        match tokio::time::timeout(self.call_timeout, stream.receive()).await {
            Ok(Ok(Some(_))) => Ok(stream),
            Ok(Ok(None)) => Err(unavailable(format!("containerd's {CALL}: ended at once"))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(Kind::DeadlineExceeded, format!("containerd's {CALL}: no answer"))),
        }
    }
}

impl Stream {
    /// What the other call knows the stream by.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The next message; none at the end.
    ///
    /// # Errors
    /// Those of a stream that broke.
    pub(super) async fn receive(&mut self) -> Result<Option<Any>> {
        self.incoming.message().await.map_err(|status| from_status(CALL, &status))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Unavailable if the stream has ended.
    pub(super) async fn send(&self, message: Any) -> Result<()> {
        let sent = self.outgoing.send(message).await;
        sent.map_err(|_| unavailable(format!("containerd's {CALL}: has ended")))
    }
}
