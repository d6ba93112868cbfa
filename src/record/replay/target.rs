//! The server that a record is played to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::proto::cri;
use crate::proto::cri::image_service_client::ImageServiceClient;
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;
use crate::proto::schema::Method;
use crate::sys::socket::Address;

/// The largest answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A connection to a server of the CRI. Cheap to clone.
#[derive(Clone)]
pub(in crate::record) struct Target {
    channel: Channel,
}

impl Target {
    /// Connects.
    ///
    /// # Errors
    /// Nobody answers there.
    pub(in crate::record) async fn connect(socket: &Path) -> anyhow::Result<Target> {
        // Once by hand: what the library says of a socket that is not there says nothing.
        reach(socket.to_owned()).await.with_context(|| format!("no server answers at {socket:?}"))?;
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| reach(socket.clone()));
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        Ok(Target { channel })
    }

    /// A server in this process, at the other end of `stream`.
    ///
    /// # Errors
    /// It hangs up.
    pub(in crate::record) async fn within(stream: UnixStream) -> anyhow::Result<Target> {
        let mut once = Some(stream);
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = once.take().ok_or(std::io::ErrorKind::ConnectionRefused);
            async move { Ok::<_, std::io::Error>(TokioIo::new(stream?)) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        Ok(Target { channel })
    }

    /// Makes a call; its answers are those of a stream, also where there is one alone.
    pub(in crate::record) async fn call(
        &self,
        method: &Method,
        request: Vec<u8>,
        timeout: Option<&str>,
    ) -> Result<Streaming<Vec<u8>>, Status> {
        let mut client =
            tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(request);
        if let Some(timeout) = timeout.and_then(|timeout| timeout.parse().ok()) {
            request.metadata_mut().insert("grpc-timeout", timeout);
        }
        let path = PathAndQuery::try_from(method.path.as_str())
            .map_err(|error| Status::internal(format!("{}: {error}", method.path)))?;
        Ok(client.server_streaming(request, path, Bytes).await?.into_inner())
    }

    /// Ids of all pods and containers.
    pub(super) async fn objects(&self) -> Result<BTreeSet<String>, Status> {
        let mut runtime =
            RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let pods = runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner().items;
        let all = runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner();
        Ok(pods.into_iter().map(|pod| pod.id).chain(all.containers.into_iter().map(|it| it.id)).collect())
    }

    /// Whether it has an image.
    pub(super) async fn has_image(&self, image: &str) -> Result<bool, Status> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        let answer = ImageServiceClient::new(self.channel.clone()).image_status(request).await?;
        Ok(answer.into_inner().image.is_some())
    }

    /// Stops and removes a pod.
    pub(super) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let mut runtime = RuntimeServiceClient::new(self.channel.clone());
        runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
        runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
        Ok(())
    }
}

async fn reach(socket: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    let address = Address::of(&socket).map_err(std::io::Error::other)?;
    Ok(TokioIo::new(UnixStream::connect(address.path()).await?))
}

/// Messages as they are sent.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
