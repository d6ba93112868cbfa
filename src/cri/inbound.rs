//! How much of large requests is in memory at a time.
//!
//! A request may have 16 MiB, and a client may send many at once; what a call makes of such
//! a request is several times as large. The first part of each comes in at once, which is
//! all of nearly every request and of every StopContainer and Status: these wait for nobody.
//! For the rest of a giant there are a few places, each held until the giant's call has its
//! answer, or has been at work for a while: a pull that takes an hour is not to hold up the
//! others. A giant without one is not read on, and its client's connection holds it back. Who
//! has a place and does not send loses it.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

use crate::flow::lock;

/// What of each request comes in without a place.
const FREE_BYTES: usize = 256 << 10;
/// Giants that come in or are worked on at a time.
const GIANTS: usize = 2;
/// How long a giant may take to come in once it has a place.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a giant's call keeps its place.
const HOLD: Duration = Duration::from_secs(60);

/// The places of giants. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Giants(Arc<Semaphore>);

impl Default for Giants {
    fn default() -> Giants {
        Giants(Arc::new(Semaphore::new(GIANTS)))
    }
}

/// A giant's place, once it has one: held by its body and by its call.
type Place = Arc<Mutex<Option<(OwnedSemaphorePermit, Instant)>>>;

/// A gRPC service whose requests come in within bounds.
#[derive(Clone, Debug)]
pub struct Inbound<S> {
    service: S,
    giants: Giants,
}

impl<S> Inbound<S> {
    pub(super) fn new(service: S, giants: &Giants) -> Inbound<S> {
        Inbound { service, giants: giants.clone() }
    }
}

impl<S: NamedService> NamedService for Inbound<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Inbound<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let place = Place::default();
        let bounded = |body| Body::new(Bounded::new(body, &self.giants, &place));
        let answer = self.service.call(request.map(bounded));
        Box::pin(async move {
            let mut answer = pin!(answer);
            let answered = loop {
                // It may get one later, having waited for it.
                let since = lock(&place).as_ref().map(|(_, since)| *since);
                let end = since.unwrap_or_else(Instant::now) + HOLD;
                match tokio::time::timeout_at(end, answer.as_mut()).await {
                    Ok(answered) => break answered,
                    Err(_) if since.is_some() => {
                        *lock(&place) = None;
                        break answer.await;
                    }
                    Err(_) => {}
                }
            };
            *lock(&place) = None;
            answered
        })
    }
}

/// Where a request stands with its place.
enum Turn {
    /// It needs none so far.
    None,
    Waiting(Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>),
    Has(Pin<Box<Sleep>>),
}

/// A request's body.
struct Bounded {
    body: Body,
    giants: Giants,
    place: Place,
    bytes: usize,
    turn: Turn,
}

impl Bounded {
    fn new(body: Body, giants: &Giants, place: &Place) -> Bounded {
        Bounded { body, giants: giants.clone(), place: place.clone(), bytes: 0, turn: Turn::None }
    }

    /// Ready as soon as more may be read.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            match &mut self.turn {
                Turn::None if self.bytes <= FREE_BYTES => return Poll::Ready(Ok(())),
                Turn::None => {
                    let places = self.giants.0.clone();
                    // Never closed.
                    self.turn = Turn::Waiting(Box::pin(async { places.acquire_owned().await.ok() }));
                }
                Turn::Waiting(turn) => {
                    if let Some(permit) = ready!(turn.as_mut().poll(context)) {
                        *lock(&self.place) = Some((permit, Instant::now()));
                    }
                    self.turn = Turn::Has(Box::pin(tokio::time::sleep(LIMIT)));
                }
                Turn::Has(limit) => {
                    if limit.as_mut().poll(context).is_pending() {
                        return Poll::Ready(Ok(()));
                    }
                    let message =
                        format!("a request of more than {FREE_BYTES} bytes took longer than {LIMIT:?}");
                    return Poll::Ready(Err(Status::deadline_exceeded(message)));
                }
            }
        }
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Err(late) = ready!(self.poll_turn(context)) {
            return Poll::Ready(Some(Err(late)));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};

    type Sender = tokio::sync::mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>;

    fn request(giants: &Giants) -> (Sender, Bounded) {
        let (sender, frames) = tokio::sync::mpsc::unbounded_channel();
        let frames = tokio_stream::wrappers::UnboundedReceiverStream::new(frames);
        let body = Body::new(StreamBody::new(frames));
        (sender, Bounded::new(body, giants, &Place::default()))
    }

    fn send(to: &Sender, bytes: usize) {
        to.send(Ok(Frame::data(Bytes::from(vec![0; bytes])))).expect("it is there");
    }

    #[tokio::test]
    async fn a_giant_waits_for_giants_and_others_for_nobody() {
        let giants = Giants::default();
        let mut held = Vec::new();
        for _ in 0..GIANTS {
            let (sender, mut body) = request(&giants);
            send(&sender, FREE_BYTES + 1);
            send(&sender, 1);
            body.frame().await.expect("a frame").expect("data");
            body.frame().await.expect("a frame").expect("data");
            held.push((sender, body));
        }
        let (sender, mut small) = request(&giants);
        send(&sender, FREE_BYTES);
        drop(sender);
        assert_eq!(small.collect_len().await, FREE_BYTES);
        let (sender, mut giant) = request(&giants);
        send(&sender, FREE_BYTES + 1);
        send(&sender, 1);
        drop(sender);
        giant.frame().await.expect("a frame").expect("the free part");
        assert!(futures_util::poll!(std::pin::pin!(giant.frame())).is_pending());
        held.pop();
        giant.frame().await.expect("a frame").expect("its turn has come");
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_call_has_its_answer() {
        let giants = Giants::default();
        let (sender, mut body) = request(&giants);
        let call = body.place.clone();
        send(&sender, FREE_BYTES + 1);
        drop(sender);
        assert_eq!(body.collect_len().await, FREE_BYTES + 1);
        drop(body);
        assert_eq!(giants.0.available_permits(), GIANTS - 1);
        drop(call);
        assert_eq!(giants.0.available_permits(), GIANTS);
    }

    /// Takes requests, and never answers.
    #[derive(Clone)]
    struct Silent;

    impl Service<Request<Body>> for Silent {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            Box::pin(async move {
                request.into_body().collect().await.expect("a body");
                std::future::pending().await
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_long_gives_its_place_back_also_if_it_has_waited_for_it() {
        let giants = Giants::default();
        let mut inbound = Inbound::new(Silent, &giants);
        let calls: Vec<_> = (0..3 * GIANTS)
            .map(|_| {
                let frame = || Ok::<_, Status>(Frame::data(Bytes::from(vec![0; FREE_BYTES + 1])));
                let body = StreamBody::new(tokio_stream::iter([frame(), frame()]));
                tokio::spawn(inbound.call(Request::new(Body::new(body))))
            })
            .collect();
        // So many at a time, each for as long.
        for _ in 0..3 {
            tokio::time::sleep(HOLD * 9 / 10).await;
            assert_eq!(giants.0.available_permits(), 0);
            tokio::time::sleep(HOLD / 10).await;
        }
        tokio::time::sleep(HOLD / 10).await;
        assert_eq!(giants.0.available_permits(), GIANTS);
        calls.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_a_place_and_does_not_send_loses_it() {
        let giants = Giants::default();
        let (sender, mut giant) = request(&giants);
        send(&sender, FREE_BYTES + 1);
        giant.frame().await.expect("a frame").expect("data");
        let error = giant.frame().await.expect("an end").expect_err("nothing comes");
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        drop(giant);
        assert_eq!(giants.0.available_permits(), GIANTS);
    }

    impl Bounded {
        async fn collect_len(&mut self) -> usize {
            let mut bytes = 0;
            while let Some(frame) = self.frame().await {
                bytes += frame.expect("data").data_ref().map_or(0, Bytes::len);
            }
            bytes
        }
    }
}
