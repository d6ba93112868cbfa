//! exec, attach and port-forward: the HTTP server that the kubelet's proxies connect to.
//!
//! ```text
//! Exec, Attach, PortForward ─▶ checked ─▶ a URL with a one-time token (token)
//!                                              │
//! client ─▶ HTTP (server) ─▶ token taken ─▶ protocol agreed (negotiate) ─▶ 101
//!                                              │
//!               SPDY streams (spdy) or WebSocket channels (websocket)
//!                                              │
//!               remote_command: a Session ─▶ container/exec, attach ─▶ outcome
//!               port_forward: pairs of streams ─▶ pod/forward
//! ```
//! Nothing runs in a container before its client has come (EXE-10).

pub mod certificate;
mod handle;
mod inlet;
mod negotiate;
mod outcome;
mod port_forward;
mod ready;
mod refusals;
mod remote_command;
mod resize;
mod server;
pub mod spdy;
mod token;
pub mod websocket;

use std::sync::Arc;
use std::time::Duration;

pub use handle::Handle;
use refusals::Refusals;
pub use server::Listener;
use token::Tokens;

use crate::config::Config;
use crate::error::{Result, invalid};
use crate::pod::Pods;
use crate::proto::cri::{AttachRequest, ExecRequest, PortForwardRequest};

/// Streams of a client of exec or attach, which needs five: each may keep data waiting.
const STREAMS_MAX: usize = 16;

/// Gives out URLs, and serves those who come with them. Cheap to clone.
#[derive(Clone)]
pub struct Streaming(Arc<Inner>);

struct Inner {
    pods: Pods,
    tokens: Tokens<Request>,
    limits: Limits,
    refusals: Refusals,
    /// `http://ADDRESS:PORT`
    base: String,
}

/// How long clients may take and stay.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Without a byte in either direction (STM-05).
    idle: Duration,
    /// To open the streams that they came for (STM-13).
    creation: Duration,
}

impl Limits {
    fn spdy(&self) -> spdy::Limits {
        spdy::Limits { idle: self.idle, streams_max: STREAMS_MAX, ..spdy::Limits::default() }
    }

    fn websocket(&self) -> websocket::Limits {
        websocket::Limits { idle: self.idle, ..websocket::Limits::default() }
    }
}

/// What a token stands for.
enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Request {
    /// The id of the container or pod.
    fn object(&self) -> &str {
        match self {
            Request::Exec(request) => &request.container_id,
            Request::Attach(request) => &request.container_id,
            Request::PortForward(request) => &request.pod_sandbox_id,
        }
    }
}

impl Streaming {
    /// Binds the address that `config` names, and gives what serves there.
    ///
    /// # Errors
    /// The address cannot be bound; the certificate cannot be read.
    pub async fn bind(config: &Config, pods: Pods) -> Result<(Streaming, Listener)> {
        let section = &config.file.stream;
        let (listener, base) = Listener::bind(section).await?;
        let limits = Limits {
            idle: Duration::from_secs(section.idle_timeout_s),
            creation: Duration::from_secs(section.creation_timeout_s),
        };
        let inner = Inner { pods, tokens: Tokens::default(), limits, refusals: Refusals::default(), base };
        Ok((Streaming(Arc::new(inner)), listener))
    }

    /// Exec: the URL where the command is run for who comes first.
    ///
    /// # Errors
    /// InvalidArgument for streams that do not fit together (EXE-11); NotFound;
    /// FailedPrecondition for a container that does not run; ResourceExhausted.
    pub fn exec(&self, request: ExecRequest) -> Result<String> {
        check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
        self.0.pods.containers.check_exec(&request)?;
        self.url("exec", Request::Exec(request))
    }

    /// Attach: the URL where the container's streams are for who comes first.
    ///
    /// # Errors
    /// As [`Streaming::exec`].
    pub fn attach(&self, request: AttachRequest) -> Result<String> {
        check_streams(request.stdin, request.stdout, request.stderr, request.tty)?;
        self.0.pods.containers.check_attach(&request)?;
        self.url("attach", Request::Attach(request))
    }

    /// PortForward: the URL where the pod's ports are for who comes first.
    ///
    /// # Errors
    /// InvalidArgument for a port that is none; NotFound; FailedPrecondition for a pod
    /// that is not READY; ResourceExhausted.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String> {
        self.0.pods.check_forward(&request.pod_sandbox_id)?;
        if let Some(port) = request.port.iter().find(|port| !(1..=65535).contains(*port)) {
            return Err(invalid(format!("port {port} is not between 1 and 65535")));
        }
        self.url("portforward", Request::PortForward(request))
    }

    fn url(&self, kind: &str, request: Request) -> Result<String> {
        let token = self.0.tokens.insert(request)?;
        Ok(format!("{}/{kind}/{token}", self.0.base))
    }
}

/// EXE-11.
fn check_streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<()> {
    if tty && stderr {
        return Err(invalid(
            "a terminal has no standard error of its own: tty and stderr exclude one another",
        ));
    }
    if !stdin && !stdout && !stderr {
        return Err(invalid("none of stdin, stdout and stderr is wanted"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
