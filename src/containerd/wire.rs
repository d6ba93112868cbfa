//! The one tower layer around the channel: namespace header and span for every call.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::transport::{Channel, Error as TransportError};
use tonic::{Code, Status};
use tower::Service;
use tracing::instrument::Instrumented;
use tracing::{Instrument, Span};

use crate::error::{Result, invalid};
use crate::telemetry::meters::name_of;
use crate::telemetry::traces;
use crate::trace;
use crate::trace::tee::tee;

/// So much of a request is read for the recorder: what names it stands at its beginning.
const RECORDED_BYTES_MAX: usize = 4 << 10;

/// The channel with our headers.
#[derive(Clone)]
pub(super) struct Wire {
    channel: Channel,
    namespace: HeaderValue,
}

impl Wire {
    pub(super) fn new(channel: Channel, namespace: &str) -> Result<Wire> {
        let namespace = HeaderValue::from_str(namespace)
            .map_err(|_| invalid(format!("containerd namespace {namespace:?} cannot be sent")))?;
        Ok(Wire { channel, namespace })
    }

    pub(super) fn namespace(&self) -> &str {
        self.namespace.to_str().unwrap_or_default()
    }
}

impl Service<Request<Body>> for Wire {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert("containerd-namespace", self.namespace.clone());
        let span = tracing::debug_span!("containerd", call = request.uri().path());
        traces::pass_on(&span, request.headers_mut());
        let request = recorded(request, &span);
        Answer(self.channel.call(request).instrument(span))
    }
}

/// The request, which tells the recorder on its way what it is about.
fn recorded(request: Request<Body>, span: &Span) -> Request<Body> {
    if trace::recorder().is_none() || span.is_none() {
        return request;
    }
    let span = span.clone();
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    // `/containerd.services.tasks.v1.Tasks/Create` is Tasks.Create.
    let call = path.rsplit('.').next().unwrap_or(path).replace('/', ".");
    let body = tee(body, RECORDED_BYTES_MAX, move |message| {
        trace::args(&span, || trace::calls::args(&call, message));
    });
    Request::from_parts(parts, body)
}

/// An answer to come, whose code is told to its span.
pub(super) struct Answer(Instrumented<<Channel as Service<Request<Body>>>::Future>);

impl Future for Answer {
    type Output = Result<Response<Body>, TransportError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = ready!(Pin::new(&mut self.0).poll(context));
        match &answered {
            // One that has a message tells its code behind that, and it is nearly always OK.
            Ok(answer) => {
                let status = Status::from_header_map(answer.headers());
                let code = status.as_ref().map_or(Code::Ok, Status::code);
                traces::ended(self.0.span(), code);
                match status.filter(|status| status.code() != Code::Ok) {
                    None => trace::ended(self.0.span()),
                    Some(status) => {
                        let why = format!("{}: {}", name_of(code), status.message());
                        trace::failed(self.0.span(), &why);
                    }
                }
            }
            Err(error) => traces::failed(self.0.span(), &error.to_string()),
        }
        Poll::Ready(answered)
    }
}

/// A request that is made under a lease: what it creates is not collected.
pub(super) fn leased<T>(message: T, lease: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    // Lease ids are our own hexadecimal ids or generated names: always a header value.
    if let Some(value) = lease.and_then(|lease| lease.parse().ok()) {
        request.metadata_mut().insert("containerd-lease", value);
    }
    request
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use http::HeaderMap;
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::server::NamedService;

    use super::*;
    use crate::containerd::Containerd;
    use crate::telemetry::traces::tests::{CALLER, headers, with_traces};

    /// A containerd that keeps the headers of the last call, and refuses it.
    #[derive(Clone, Default)]
    struct Peer(Arc<Mutex<HeaderMap>>);

    impl NamedService for Peer {
        const NAME: &'static str = "containerd.services.version.v1.Version";
    }

    impl Service<Request<Body>> for Peer {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            self.0.lock().expect("no panic").clone_from(request.headers());
            std::future::ready(Ok(tonic::Status::not_found("x").into_http()))
        }
    }

    #[tokio::test]
    async fn containerd_is_told_the_namespace_and_the_trace() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).expect("it listens"));
        let peer = Peer::default();
        let server = tonic::transport::Server::builder().add_service(peer.clone());
        tokio::spawn(server.serve_with_incoming(incoming));
        let containerd = Containerd::new(&socket, "here", Duration::from_secs(30)).expect("a client");
        let ask = async || {
            containerd.version(Duration::from_secs(30)).await.expect_err("it is refused");
            let headers = peer.0.lock().expect("no panic").clone();
            let text = |name: &str| headers.get(name).map(|it| it.to_str().expect("text").to_owned());
            [text("containerd-namespace"), text("traceparent"), text("tracestate")]
        };
        assert_eq!(ask().await, [Some("here".into()), None, None]);
        let _traces = with_traces();
        let mut caller = headers(CALLER);
        caller.insert("tracestate", "vendor=1".parse().expect("a value"));
        let call = traces::incoming("Version", &caller);
        let [_, told, state] = ask().instrument(call).await;
        let told = told.expect("a trace");
        assert_eq!(state.as_deref(), Some("vendor=1"));
        // The caller's trace, and a place of the call's own in it.
        assert_eq!((&told[..36], &told[52..]), (&CALLER[..36], "-01"));
        assert_ne!(told[36..52], CALLER[36..52]);
    }
}
