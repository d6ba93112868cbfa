//! A proxy before containerd's socket: slow, failing, or not telling of events, as a test
//! wants it. What it does not change comes from the real containerd.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::task::{JoinHandle, JoinSet};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::ServiceExt;

use super::place::Place;

/// The call that events come by.
const EVENTS: &str = "Events/Subscribe";

/// What happens to calls.
#[derive(Clone, Debug, Default)]
struct Rules {
    delay: Duration,
    /// The end of a path, and what is answered.
    failure: Option<(String, Code, String)>,
    hides_events: bool,
}

/// The proxy; it ends when it is dropped.
pub(crate) struct Proxy {
    socket: PathBuf,
    target: String,
    rules: Arc<Mutex<Rules>>,
    serving: Mutex<JoinHandle<()>>,
}

impl Proxy {
    /// What makes longshore use it.
    pub(crate) const CONFIG: &str = "[containerd]\naddress = \"{folder}/p.sock\"\n";

    /// One in a place whose containerd may not be there yet.
    pub(crate) fn before(place: &Place) -> Proxy {
        let (socket, target) = (place.path("p.sock"), format!("unix://{}", place.text("c.sock")));
        let rules = Arc::<Mutex<Rules>>::default();
        let serving = Mutex::new(serve(&socket, &target, rules.clone()));
        Proxy { socket, target, rules, serving }
    }

    /// Each call takes so much longer.
    pub(crate) fn delay(&self, delay: Duration) {
        self.change(|rules| rules.delay = delay);
    }

    /// Calls whose path ends so fail; none from the next change on.
    pub(crate) fn fail(&self, call: &str, code: Code, message: &str) {
        self.change(|rules| rules.failure = Some((call.to_owned(), code, message.to_owned())));
    }

    /// All calls go through again.
    pub(crate) fn heal(&self) {
        self.change(|rules| *rules = Rules::default());
    }

    /// Events do not come through any more, and nobody is told.
    pub(crate) fn hide_events(&self) {
        self.change(|rules| rules.hides_events = true);
    }

    /// Cuts all connections; the socket is another one from now on.
    pub(crate) fn replace(&self) {
        let mut serving = self.serving.lock().expect("no panic");
        serving.abort();
        let _ = std::fs::remove_file(&self.socket);
        *serving = serve(&self.socket, &self.target, self.rules.clone());
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().expect("no panic"));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.lock().expect("no panic").abort();
    }
}

fn serve(socket: &Path, target: &str, rules: Arc<Mutex<Rules>>) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("a socket");
    let target = target.to_owned();
    tokio::spawn(async move {
        // Dropped with this task, and with it all connections.
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let channel = Endpoint::from_shared(target.clone()).expect("an address").connect_lazy();
            let rules = rules.clone();
            connections.spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let (channel, rules) = (channel.clone(), rules.clone());
                    async move { Ok::<_, Infallible>(pass(request, channel, &rules).await) }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

async fn pass(request: Request<Incoming>, channel: Channel, rules: &Arc<Mutex<Rules>>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let now = rules.lock().expect("no panic").clone();
    tokio::time::sleep(now.delay).await;
    if let Some((_, code, message)) = now.failure.filter(|(end, ..)| path.ends_with(end.as_str())) {
        return Status::new(code, message).into_http();
    }
    let answer = channel.oneshot(request.map(Body::new)).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Status::unavailable(error.to_string()).into_http(),
    };
    if !path.ends_with(EVENTS) {
        return answer;
    }
    let rules = rules.clone();
    answer.map(|body| {
        // One message a piece.
        let pieces = body.into_data_stream().filter_map(move |piece| {
            let is_hidden = rules.lock().expect("no panic").hides_events;
            std::future::ready((!is_hidden).then(|| piece.map(Frame::data)))
        });
        Body::new(StreamBody::new(pieces))
    })
}
