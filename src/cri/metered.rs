//! Every call is counted, with the code that its client sees: also one that does not get as
//! far as its handler, and one that its client gives up. It has its place in a trace, which
//! its client may have begun, and the recorder has its story, which its error names.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tracing::instrument::Instrumented;
use tracing::{Instrument, Span};

use crate::proto::CRI_DESCRIPTORS;
use crate::telemetry::meters::{Call, name_of};
use crate::telemetry::{METERS, traces};
use crate::trace;
use crate::trace::tee::tee;

/// The message of a status.
const MESSAGE: &str = "grpc-message";
/// So much of a request is read for the recorder.
const RECORDED_BYTES_MAX: usize = 64 << 10;
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
        let request = recorded(request, method, &span);
        Counted { work: self.0.call(request).instrument(span), call }
    }
}

/// The request, which tells the recorder of itself on its way.
fn recorded(request: Request<Body>, method: &'static str, span: &Span) -> Request<Body> {
    if trace::recorder().is_none() {
        return request;
    }
    let span = span.clone();
    request.map(|body| {
        tee(body, RECORDED_BYTES_MAX, move |message| {
            trace::request(&span, || trace::mask::request(method, message));
        })
    })
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
        let Ok(mut answer) = ready!(Pin::new(&mut self.work).poll(context));
        let failure = self.end(code(answer.headers()), Some(answer.headers()));
        if let Some(id) = failure {
            name_story(answer.headers_mut(), &id);
        }
        Poll::Ready(Ok(answer))
    }
}

impl<F> Counted<F> {
    /// Tells everybody of the end. The id of the story that an error is to name.
    fn end(&mut self, code: Code, headers: Option<&HeaderMap>) -> Option<String> {
        let call = self.call.take()?;
        call.end(code);
        let span = self.work.span();
        traces::ended(span, code);
        let status = headers.and_then(Status::from_header_map).filter(|_| code != Code::Ok);
        trace::answered(span, name_of(code), status.as_ref().map(Status::message))
    }
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        // Where it has not ended, its client has gone.
        self.end(Code::Cancelled, None);
    }
}

/// Puts the id of its story behind the message of an error: what the kubelet and operators
/// look for in it stands in front.
fn name_story(headers: &mut HeaderMap, id: &str) {
    // As gRPC has it in a header: a space is escaped, brackets are not.
    let mut message = headers.get(MESSAGE).map(|value| value.as_bytes().to_vec()).unwrap_or_default();
    message.extend_from_slice(format!("%20[trace%20{id}]").as_bytes());
    if let Ok(message) = HeaderValue::from_bytes(&message) {
        headers.insert(MESSAGE, message);
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

    #[test]
    fn an_error_names_its_story_at_the_end() {
        for (message, want) in
            [("", " [trace 1a2b3c]"), ("no \"ä\" at 100%", "no \"ä\" at 100% [trace 1a2b3c]")]
        {
            let mut refused = tonic::Status::not_found(message).into_http::<Body>();
            name_story(refused.headers_mut(), "1a2b3c");
            let status = Status::from_header_map(refused.headers()).expect("a status");
            assert_eq!((status.code(), status.message()), (Code::NotFound, want));
        }
    }
}
