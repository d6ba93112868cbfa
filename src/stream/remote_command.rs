//! exec and attach: from a client's streams to a session with the container (STM-12 … STM-26).

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::negotiate::{Agreement, Transport};
use super::outcome::Outcome;
use super::websocket::{ChannelProtocol, Direction};
use super::{Handle, Limits, resize, spdy, websocket};
use crate::error::{Result, canceled, deadline, internal, invalid};
use crate::io::session::{Outgoing, Session};
use crate::pod::Pods;
use crate::proto::cri::{AttachRequest, ExecRequest};

/// Runs a command for a client.
///
/// # Errors
/// The client did not open its streams.
pub(super) async fn exec<T>(
    pods: &Pods,
    request: ExecRequest,
    io: T,
    agreement: Agreement,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    let Opened { session, report } = open(io, agreement, wanted, limits).await?;
    info!(container = container_id, tty, "exec");
    let outcome = tokio::select! {
        ended = pods.containers.exec(&container_id, cmd, tty, session) => match ended {
            Ok(code) => Outcome::of_exit(code),
            Err(error) => Outcome::of_error("error executing command in container", &error),
        },
        () = stop.cancelled() => {
            report.tell(&Outcome::stopping()).await;
            return Ok(());
        }
    };
    debug!(container = container_id, ?outcome, "the exec has ended");
    report.finish(&outcome).await;
    Ok(())
}

/// Attaches a client to a container.
///
/// # Errors
/// The client did not open its streams.
pub(super) async fn attach<T>(
    pods: &Pods,
    request: AttachRequest,
    io: T,
    agreement: Agreement,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    let Opened { session, report } = open(io, agreement, wanted, limits).await?;
    info!(container = container_id, tty, "attached");
    let outcome = tokio::select! {
        ended = pods.containers.attach(&container_id, session) => match ended {
            Ok(()) => Outcome::Success,
            Err(error) => Outcome::of_error("error attaching to container", &error),
        },
        () = stop.cancelled() => {
            report.tell(&Outcome::stopping()).await;
            return Ok(());
        }
    };
    debug!(container = container_id, ?outcome, "detached");
    report.finish(&outcome).await;
    Ok(())
}

/// The streams of a request.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// A client that has opened its streams.
struct Opened {
    session: Session,
    report: Report,
}

/// Where a client learns how it ended.
struct Report {
    error: Option<Outgoing>,
    /// Our direction of the client's input, on which nothing is said: its end would tell
    /// the client that nobody reads, and kubectl then ends the input itself.
    _stdin: Option<Outgoing>,
    /// The ends of what it gets of the process.
    outputs: Vec<CancellationToken>,
    version: u8,
    handle: Handle,
}

impl Report {
    /// Tells the client the outcome, after all that was sent before (STM-18), and ends the
    /// connection. A client that stops to read at the end has the time that it had before.
    async fn finish(self, outcome: &Outcome) {
        let gone = self.handle.gone();
        let written = async {
            for output in &self.outputs {
                output.cancelled().await;
            }
        };
        tokio::select! {
            () = written => {}
            () = gone.cancelled() => {}
        }
        self.tell(outcome).await;
    }

    /// Does that now.
    async fn tell(mut self, outcome: &Outcome) {
        if let Some(error) = self.error.take() {
            let _ = error.send(outcome.message(self.version).into()).await;
        }
        self.handle.close().await;
    }
}

/// Takes the client's streams.
async fn open<T>(io: T, agreement: Agreement, wanted: Wanted, limits: Limits) -> Result<Opened>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match agreement.transport {
        Transport::Spdy => over_spdy(io, agreement.version, wanted, limits).await,
        Transport::WebSocket { is_base64 } => {
            let protocol =
                ChannelProtocol { base64: is_base64, close_signal: agreement.version >= 5, greets: true };
            over_websocket(io, protocol, agreement.version, wanted, limits).await
        }
        Transport::SpdyInWebSocket => Err(internal("exec and attach are not tunnelled")),
    }
}

/// Waits until the client has opened every stream that the request needs (STM-13).
async fn over_spdy<T>(io: T, version: u8, wanted: Wanted, limits: Limits) -> Result<Opened>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connection = spdy::serve(io, limits.spdy());
    let handle = connection.handle();
    let opened = tokio::time::timeout(limits.creation, streams(&mut connection, version, wanted)).await;
    let streams = match opened {
        Ok(streams) => streams,
        Err(_) => Err(deadline("the client did not open its streams in time")),
    };
    let streams = match streams {
        Ok(streams) => streams,
        Err(error) => {
            handle.close().await;
            return Err(error);
        }
    };
    // Streams that come later are nobody's.
    tokio::spawn(async move {
        while let Some(stream) = connection.accept().await {
            stream.control.reset();
        }
    });
    let Streams { error, stdin, stdout, stderr, resize } = streams;
    let (stdin, back) = stdin.map(|stream| (stream.incoming, stream.outgoing)).unzip();
    let session = Session {
        stdin,
        stdout: stdout.map(|stream| stream.outgoing),
        stderr: stderr.map(|stream| stream.outgoing),
        resizes: resize.map(|stream| resize::sizes(stream.incoming)),
        gone: handle.gone(),
    };
    let outputs = outputs(&session);
    let report =
        Report { error: error.map(|stream| stream.outgoing), _stdin: back, outputs, version, handle };
    Ok(Opened { session, report })
}

fn outputs(session: &Session) -> Vec<CancellationToken> {
    [&session.stdout, &session.stderr].into_iter().flatten().map(Outgoing::written).collect()
}

/// The streams of a SPDY client by their kind.
#[derive(Default)]
struct Streams {
    error: Option<spdy::Stream>,
    stdin: Option<spdy::Stream>,
    stdout: Option<spdy::Stream>,
    stderr: Option<spdy::Stream>,
    resize: Option<spdy::Stream>,
}

async fn streams(connection: &mut spdy::Connection, version: u8, wanted: Wanted) -> Result<Streams> {
    let mut streams = Streams::default();
    let has_sizes = wanted.tty && version >= 3;
    let wanted = [true, wanted.stdin, wanted.stdout, wanted.stderr, has_sizes];
    for _ in wanted.iter().filter(|is_wanted| **is_wanted) {
        let Some(stream) = connection.accept().await else {
            return Err(canceled("the client went away before it had opened its streams"));
        };
        let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
        let place = match kind.as_str() {
            "error" => &mut streams.error,
            "stdin" if wanted[1] => &mut streams.stdin,
            "stdout" if wanted[2] => &mut streams.stdout,
            "stderr" if wanted[3] => &mut streams.stderr,
            "resize" if has_sizes => &mut streams.resize,
            _ => return Err(invalid(format!("the client opened a stream of type {kind:?}"))),
        };
        if place.replace(stream).is_some() {
            return Err(invalid(format!("the client opened two streams of type {kind:?}")));
        }
    }
    Ok(streams)
}

/// Channels: 0 standard input, 1 output, 2 error, 3 the outcome, 4 sizes (STM-23).
async fn over_websocket<T>(
    io: T,
    protocol: ChannelProtocol,
    version: u8,
    wanted: Wanted,
    limits: Limits,
) -> Result<Opened>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let channels = [
        (wanted.stdin, 0, Direction::Incoming),
        (wanted.stdout, 1, Direction::Outgoing),
        (wanted.stderr, 2, Direction::Outgoing),
        (true, 3, Direction::Outgoing),
        (wanted.tty, 4, Direction::Incoming),
    ];
    let channels = channels.iter().filter(|(is_wanted, ..)| *is_wanted);
    let channels: Vec<(u8, Direction)> =
        channels.map(|(_, number, direction)| (*number, *direction)).collect();
    let mut all = websocket::serve_channels(io, protocol, &channels, limits.websocket()).await;
    let handle = all.handle();
    let session = Session {
        stdin: all.incoming(0),
        stdout: all.outgoing(1),
        stderr: all.outgoing(2),
        resizes: all.incoming(4).map(resize::sizes),
        gone: handle.gone(),
    };
    let outputs = outputs(&session);
    let report = Report { error: all.outgoing(3), _stdin: None, outputs, version, handle };
    Ok(Opened { session, report })
}
