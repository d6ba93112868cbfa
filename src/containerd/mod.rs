//! containerd's API: the only module that knows it, and the only way to it.
//!
//! One channel, wrapped once ([`wire::Wire`]): namespace, trace span and the place
//! where a recorder of all calls hooks in. Every unary call goes through
//! [`Containerd::unary`]: a deadline, and containerd's errors as ours. One file a
//! service; what differs between containerd versions stands in [`compat`] alone.
//!
//! [`Link`] says whether containerd answers and what it can do. It is kept by
//! [`Containerd::watch`], which holds the event subscription open and notices its end.

mod any;
pub mod compat;
mod containers;
mod content;
mod diff;
mod error;
mod events;
mod images;
mod introspection;
mod leases;
mod namespaces;
mod shims;
mod snapshots;
mod streaming;
mod tasks;
mod transfer;
mod wire;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::transport::Endpoint;

pub use compat::{BUILTIN_NAMESPACE, Capabilities, IdMapping, PluginState};
pub use containers::{ContainerRecord, ContainerUpdate, SPEC_TYPE_URL};
pub use content::{ContentInfo, ContentWriter};
pub use events::Event;
pub use images::ImageRecord;
pub use leases::Lease;
pub use prost_types::Any;
pub use snapshots::{SnapshotInfo, SnapshotKind, SnapshotUsage};
pub use tasks::{ExecRequest, Exit, Process, ProcessStatus, TaskFigures, TaskMetrics, TaskRequest};
pub use transfer::{Credentials, Login, TransferPlatform, TransferProgress, TransferRequest};

use crate::error::{Error, Kind, Result};
use crate::points;
pub use crate::sys::mount::Mount;
use crate::telemetry::METERS;
use wire::Wire;

/// The largest message in either direction, which is containerd's own limit.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Content that containerd stores, and its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: i64,
    /// OCI annotations.
    pub annotations: std::collections::HashMap<String, String>,
}

/// Whether containerd answers.
#[derive(Clone, Debug)]
pub enum Link {
    /// It does, and this is what it can do.
    Up(Arc<Capabilities>),
    /// It does not, and why.
    Down(String),
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Containerd {
    wire: Wire,
    address: Arc<Path>,
    namespace: Arc<str>,
    link: Arc<watch::Sender<Link>>,
    call_timeout: Duration,
}

impl Containerd {
    /// A client of the containerd at `address`, in `namespace`. Connects with the first
    /// call, and again whenever the connection was lost.
    ///
    /// # Errors
    /// InvalidArgument for a namespace that cannot stand in a header.
    pub fn new(address: &Path, namespace: &str, call_timeout: Duration) -> Result<Containerd> {
        let address = Arc::<Path>::from(address);
        let socket = address.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(&*socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://localhost")
            .initial_connection_window_size(1 << 20)
            .initial_stream_window_size(1 << 20)
            .connect_with_connector_lazy(connector);
        Ok(Containerd {
            wire: Wire::new(channel, namespace)?,
            address,
            namespace: namespace.into(),
            link: Arc::new(watch::Sender::new(Link::Down("not connected yet".into()))),
            call_timeout,
        })
    }

    /// The state of the connection.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Follows the state of the connection.
    #[must_use]
    pub fn link_changes(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// What the connected containerd can do.
    ///
    /// # Errors
    /// Unavailable when it does not answer.
    pub fn capabilities(&self) -> Result<Arc<Capabilities>> {
        match &*self.link.borrow() {
            Link::Up(capabilities) => Ok(capabilities.clone()),
            Link::Down(reason) => {
                Err(Error::new(Kind::Unavailable, format!("containerd does not answer: {reason}")))
            }
        }
    }

    /// Sends a call with the usual deadline.
    async fn unary<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        self.unary_within(self.call_timeout, call, work).await
    }

    /// Sends a call with a deadline of its own.
    async fn unary_within<T>(
        &self,
        limit: Duration,
        call: &'static str,
        work: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        points::before(call)?;
        let begun = std::time::Instant::now();
        let meter = METERS.containerd_call(call);
        let answered = tokio::time::timeout(limit, work).await;
        meter.end(match &answered {
            Ok(Ok(_)) => tonic::Code::Ok,
            Ok(Err(status)) => status.code(),
            Err(_) => tonic::Code::DeadlineExceeded,
        });
        let is_ok = matches!(answered, Ok(Ok(_)));
        tracing::debug!(call, elapsed_us = begun.elapsed().as_micros(), is_ok, "containerd");
        points::after(call)?;
        match answered {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(error::from_status(call, &status)),
            Err(_) => Err(Error::new(
                Kind::DeadlineExceeded,
                format!("containerd's {call}: no answer within {} s", limit.as_secs_f32()),
            )),
        }
    }
}

impl From<Descriptor> for containerd_client::types::Descriptor {
    fn from(from: Descriptor) -> Self {
        Self {
            media_type: from.media_type,
            digest: from.digest,
            size: from.size,
            annotations: from.annotations,
        }
    }
}

impl From<containerd_client::types::Descriptor> for Descriptor {
    fn from(from: containerd_client::types::Descriptor) -> Self {
        Self {
            media_type: from.media_type,
            digest: from.digest,
            size: from.size,
            annotations: from.annotations,
        }
    }
}

impl From<Mount> for containerd_client::types::Mount {
    fn from(from: Mount) -> Self {
        Self { r#type: from.kind, source: from.source, target: from.target, options: from.options }
    }
}

impl From<containerd_client::types::Mount> for Mount {
    fn from(from: containerd_client::types::Mount) -> Self {
        Self { kind: from.r#type, source: from.source, target: from.target, options: from.options }
    }
}

fn mounts_from(list: Vec<containerd_client::types::Mount>) -> Vec<Mount> {
    list.into_iter().map(Mount::from).collect()
}

fn mounts_to(list: &[Mount]) -> Vec<containerd_client::types::Mount> {
    list.iter().cloned().map(Into::into).collect()
}

/// Nanoseconds since the epoch; 0 for no time.
fn nanoseconds(time: Option<prost_types::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos)))
}
