//! Every call is counted, with the code that its client sees: also one that does not get as
//! far as its handler, and one that its client gives up. It has its place in a trace, which
//! its client may have begun.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Request, Response};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tracing::Instrument;
use tracing::instrument::Instrumented;

use crate::proto::CRI_DESCRIPTORS;
use crate::telemetry::meters::Call;
use crate::telemetry::{METERS, traces};

/// The name of all methods that there are not.
const UNKNOWN: &str = "unknown";

/// The methods of the CRI by the path of their calls.
static METHODS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(CRI_DESCRIPTORS).unwrap_or_default();
    let mut methods = HashMap::new();
    for file in set.file {
        let package = file.package().to_owned();
        for service in file.service {
            let path = |method: &str| format!("/{package}.{}/{method}", service.name());
            methods.extend(service.method.iter().map(|it| (path(it.name()), it.name().to_owned())));
        }
    }
    methods
});

/// The method that a path names, as a label: a client cannot make up others.
fn method(path: &str) -> &'static str {
    METHODS.get(path).map_or(UNKNOWN, String::as_str)
}

/// A gRPC service whose calls are counted.
#[derive(Clone, Debug)]
pub struct Metered<S>(pub S);

impl<S: NamedService> NamedService for Metered<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Metered<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Counted<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = method(request.uri().path());
        let call = Some(METERS.cri_call(method));
        let span = traces::incoming(method, request.headers());
        Counted { work: self.0.call(request).instrument(span), call }
    }
}

/// A call that is counted when it ends.
pub struct Counted<F> {
    work: Instrumented<F>,
    call: Option<Call<'static, 1>>,
}

impl<F> Future for Counted<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Unpin,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(answer) = ready!(Pin::new(&mut self.work).poll(context));
        self.end(code(answer.headers()));
        Poll::Ready(Ok(answer))
    }
}

impl<F> Counted<F> {
    fn end(&mut self, code: Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
            traces::ended(self.work.span(), code);
        }
    }
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        // Where it has not ended, its client has gone.
        self.end(Code::Cancelled);
    }
}

/// The code of an answer. One that has a message, or many, tells it behind them.
fn code(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_those_of_both_services() {
        assert_eq!(method("/runtime.v1.RuntimeService/RunPodSandbox"), "RunPodSandbox");
        assert_eq!(method("/runtime.v1.ImageService/PullImage"), "PullImage");
        for path in ["/runtime.v1.ImageService/RunPodSandbox", "/runtime.v1.RuntimeService/X", "", "/"] {
            assert_eq!(method(path), UNKNOWN, "{path:?}");
        }
        assert!(METHODS.len() > 40, "{}", METHODS.len());
    }

    #[test]
    fn codes_are_read_where_there_is_no_message() {
        let refused = tonic::Status::not_found("x").into_http::<Body>();
        assert_eq!(code(refused.headers()), Code::NotFound);
        assert_eq!(code(&HeaderMap::new()), Code::Ok);
    }
}
