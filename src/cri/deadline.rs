//! The deadline that a client gives with its call (`grpc-timeout`): when it passes, the
//! answer is DeadlineExceeded (SVC-33). tonic ends such a call by itself, but as Canceled,
//! which a client sees whenever that answer is faster than its own clock.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

/// A gRPC service whose calls end with their deadlines.
#[derive(Clone, Debug)]
pub struct Deadline<S>(pub S);

impl<S: NamedService> NamedService for Deadline<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limit = given(request.headers());
        let work = self.0.call(request);
        let Some(limit) = limit else { return Box::pin(work) };
        // Counted from here, which is before tonic's own clock starts.
        let work = tokio::time::timeout(limit, work);
        Box::pin(async move {
            work.await.unwrap_or_else(|_| {
                let message = format!("the call was given {limit:?}, which have passed");
                Ok(Status::deadline_exceeded(message).into_http())
            })
        })
    }
}

/// The time that the call has, of the form `<up to 8 digits><H|M|S|m|u|n>`; a broken one is none.
fn given(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().expect("a value"));
        given(&headers)
    }

    #[test]
    fn a_time_is_read_in_every_unit() {
        let hour = Duration::from_secs(3600);
        assert_eq!(of("1H"), Some(hour));
        assert_eq!(of("60M"), Some(hour));
        assert_eq!(of("3600S"), Some(hour));
        assert_eq!(of("3600000m"), Some(hour));
        assert_eq!(of("99999999u"), Some(Duration::from_micros(99_999_999)));
        assert_eq!(of("0n"), Some(Duration::ZERO));
        assert_eq!(given(&HeaderMap::new()), None);
    }

    #[test]
    fn a_broken_time_is_none() {
        for text in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1 S", "1ü"] {
            assert_eq!(of(text), None, "{text:?}");
        }
    }

    /// SVC-33: also where tonic's clock would be first to be asked.
    #[tokio::test]
    async fn a_call_that_takes_longer_is_answered_with_deadline_exceeded() {
        #[derive(Clone)]
        struct Slow;
        impl Service<Request<Body>> for Slow {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, _: Request<Body>) -> Self::Future {
                Box::pin(std::future::pending())
            }
        }
        let request = Request::builder().header("grpc-timeout", "1m").body(Body::empty()).expect("a request");
        let answer = Deadline(Slow).call(request).await.expect("an answer");
        let status = Status::from_header_map(answer.headers()).expect("a status");
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
        assert_eq!(status.message(), "the call was given 1ms, which have passed");
    }
}
