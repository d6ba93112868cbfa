//! A collector of traces (OTLP over gRPC) that keeps what it gets as it came.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

/// What stands before each message of gRPC: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<Bytes>>>);

impl Collector {
    /// One that runs as long as the test, and the configuration that names it; of calls that
    /// begin a trace, `sampling_ratio` are told.
    pub(crate) async fn start(sampling_ratio: f64) -> (Collector, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let collector = Collector::default();
        let server = tonic::transport::Server::builder()
            .add_service(collector.clone())
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let config =
            format!("[traces]\nendpoint = \"http://{address}\"\nsampling_ratio = {sampling_ratio:?}\n");
        (collector, config)
    }

    /// The messages so far, encoded.
    pub(crate) fn messages(&self) -> Vec<Bytes> {
        self.0.lock().expect("no panic").clone()
    }
}

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let kept = self.0.clone();
        Box::pin(async move {
            assert!(request.uri().path().ends_with("/Export"), "{}", request.uri());
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            assert_eq!(body.first(), Some(&0), "not compressed");
            kept.lock().expect("no panic").push(body.slice(HEAD_BYTES..));
            // An empty message, and the status OK.
            let trailers =
                [(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))];
            let frames = [
                Ok::<_, tonic::Status>(Frame::data(Bytes::from_static(&[0; HEAD_BYTES]))),
                Ok(Frame::trailers(trailers.into_iter().collect())),
            ];
            let answer = http::Response::builder().header(http::header::CONTENT_TYPE, "application/grpc");
            Ok(answer.body(Body::new(StreamBody::new(tokio_stream::iter(frames)))).expect("an answer"))
        })
    }
}
