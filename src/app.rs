//! The composition: builds the parts, connects, recovers, serves, drains.
//!
//! ```text
//! parts ─▶ watch containerd ─▶ recover ─▶ bind ─▶ serve ─▶ READY=1 … SIGTERM ─▶ drain
//! ```
//! Without a containerd the server serves all the same, after a short wait: Status says
//! RuntimeReady=false, and everything is loaded once containerd answers (SVC-37).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::Stream;
use rustix::fs::Mode;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::cdi::Cdi;
use crate::config::{Config, ListenAddress, Overrides};
use crate::container::{self, Containers};
use crate::containerd::{Containerd, Event};
use crate::cri::Cri;
use crate::events::Events;
use crate::flow::{Flow, Joins};
use crate::httpd::{self, CLIENT_LIMIT};
use crate::image::Images;
use crate::io::{Keeper, KeeperOptions};
use crate::network::Network;
use crate::page::Page;
use crate::pod::{Pods, Recovery};
use crate::spec::{self, gather};
use crate::state::{Paths, Store};
use crate::stream::Streaming;
use crate::sys::socket::bind;
use crate::telemetry::traces::Exporter;
use crate::telemetry::{LogControl, endpoint};

/// How long the start waits for containerd before it serves without.
const CONTAINERD_WAIT: Duration = Duration::from_secs(5);
/// After a client that could not be accepted: without descriptors the next one cannot be either,
/// and waits meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How much of a request may be under way before it is read, in bytes. Of one that waits for its
/// turn that much is held up.
const STREAM_WINDOW: u32 = 64 << 10;
/// The same for all requests of a connection: the kubelet has one, and what is held up of giants
/// must not keep out a StopContainer (SVC-34).
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Events that wait for being handled.
const EVENTS_MAX: usize = 1024;

/// What `longshore serve` was given.
#[derive(Clone, Debug, Default)]
pub struct Serve {
    /// `--config`
    pub config: Option<PathBuf>,
    /// The flags over it.
    pub overrides: Overrides,
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// What makes the start impossible: the socket is in use, containerd's own plugin is
/// active, a folder cannot be made.
pub async fn serve(
    request: Serve,
    config: Config,
    log: LogControl,
    exporter: Option<Exporter>,
) -> anyhow::Result<()> {
    // First of all: a signal that comes while the server starts must not kill it.
    let mut signals = Signals::new()?;
    // Files get the modes that they are made with, whoever starts the server.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let config = Arc::new(config);
    let stop = CancellationToken::new();
    let flow = Flow::default();
    let paths = Paths::new(&config.file.root, &config.file.state);
    let _root = paths.claim()?;
    let pods = build(config.clone(), paths, flow.clone()).await?;
    let mut background = start_background(&pods, &stop);
    background.0.extend(exporter.map(|exporter| tokio::spawn(exporter.run(stop.clone()))));

    wait_until_known(&pods).await?;
    let listener = bind(&config.file.server.listen, 0o660).await?;
    let admin_socket = admin::socket(&config.file.state);
    let admin = Admin::new(pods.clone());
    let serving = admin.clone().serve(bind(&admin_socket, 0o600).await?, stop.clone());
    background.0.push(tokio::spawn(serving));
    let (streaming, streams) = Streaming::bind(&config, pods.clone()).await?;
    background.0.push(tokio::spawn(streaming.clone().serve(streams, stop.clone())));
    background.0.extend(serve_looks(&config, &pods, admin, &stop).await?);
    let cri = Cri::new(pods.clone(), streaming);
    let serving = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(cri.runtime_server())
        .add_service(cri.image_server())
        .serve_with_incoming_shutdown(connections(listener), stop.clone().cancelled_owned());
    let serving = tokio::spawn(serving);
    info!(socket = ?config.file.server.listen, version = env!("CARGO_PKG_VERSION"), "serving");
    notify(sd_notify::NotifyState::Ready);

    signals.wait_for_end(&request, &pods, &log).await;
    notify(sd_notify::NotifyState::Stopping);
    info!("stopping; pods go on running");
    let limit = Duration::from_secs(config.file.server.shutdown_timeout_s);
    // New calls are refused from here on, running ones end or roll back (SVC-36).
    flow.drain(limit).await;
    pods.containers.events.close();
    stop.cancel();
    background.await_end().await;
    if tokio::time::timeout(limit, serving).await.is_err() {
        warn!("connections were still open at the end of the shutdown limit");
    }
    let looks = [&config.metrics, &config.page].into_iter().filter_map(|address| match address {
        Some(ListenAddress::Unix(path)) => Some(path),
        _ => None,
    });
    for socket in [&config.file.server.listen, &admin_socket].into_iter().chain(looks) {
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

/// The clients of the CRI.
fn connections(listener: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    futures_util::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        if let Err(error) = &accepted {
            warn!(%error, "a client of the CRI could not be accepted");
            // Who serves asks for the next one at once.
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        Some((accepted, listener))
    })
}

/// The services of a server that only looks at what is there: it claims no root, starts no
/// process, and neither recovers nor repairs anything. Requests that would change something
/// are not to be sent to it.
///
/// # Errors
/// containerd does not answer, or a configuration that it cannot be.
pub(crate) async fn looking(config: Arc<Config>, stop: CancellationToken) -> anyhow::Result<Cri> {
    let paths = Paths::new(&config.file.root, &config.file.state);
    let pods = build(config.clone(), paths, Flow::default()).await?;
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let containerd = pods.containers.containerd.clone();
    tokio::spawn(containerd.clone().watch(sender, stop.clone()));
    let connected = tokio::time::timeout(CONTAINERD_WAIT, async {
        while let Some(event) = events.recv().await {
            if matches!(event, Event::Connected) {
                return Ok(());
            }
        }
        bail!("containerd does not answer")
    });
    connected.await.unwrap_or_else(|_| containerd.capabilities().map(drop).map_err(Into::into))?;
    // Who looks once needs no news, but the sender waits for nobody.
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    pods.network.reload();
    pods.load_for_looking().await?;
    // Its address is nobody's: it is never listened at.
    let (streaming, _) = Streaming::bind(&config, pods.clone()).await?;
    Ok(Cri::new(pods, streaming))
}

/// Builds the parts.
async fn build(config: Arc<Config>, paths: Paths, flow: Flow) -> anyhow::Result<Pods> {
    for handler in &config.handlers {
        spec::base(handler)?;
    }
    let file = &config.file;
    let containerd =
        Containerd::new(&file.containerd.address, &file.containerd.namespace, config.call_timeout())?;
    let keeper = Keeper::new(std::env::current_exe()?, &file.state, KeeperOptions::default());
    let host = gather::host_for(&config);
    if file.sandbox.enable_selinux && host.selinux.is_none() {
        warn!("sandbox.enable_selinux has no effect: SELinux is not in force here");
    }
    if let Some(handler) = config.handlers.iter().find(|handler| handler.cgroup_writable && !host.cgroup_v2) {
        bail!(
            "runtime.handlers.{}.cgroup_writable: this host has cgroup v1, which is no container's own",
            handler.name
        );
    }
    if host.restrict_oom_score_adj {
        info!(lowest = host.oom_score_adj, "OOM score adjustments are not set below the server's own");
    }
    for handler in &config.handlers {
        spec::base(handler)?;
    }
    let containers = Containers::new(container::Inner {
        images: Images::new(containerd.clone(), &config),
        cdi: Cdi::new(file.container.enable_cdi, &file.container.cdi_spec_dirs),
        keeper,
        store: Arc::new(Store::default()),
        events: Events::default(),
        paths,
        host,
        features: Default::default(),
        flow,
        creating: Joins::default(),
        failed: Default::default(),
        exits: Default::default(),
        deleting: Default::default(),
        starting_execs: Default::default(),
        mounting: Default::default(),
        containerd,
        config: config.clone(),
    });
    Ok(Pods::new(containers, Network::new(&config)))
}

/// The tasks that run as long as the server.
struct Background(Vec<tokio::task::JoinHandle<()>>);

impl Background {
    async fn await_end(self) {
        for task in self.0 {
            let _ = task.await;
        }
    }
}

fn start_background(pods: &Pods, stop: &CancellationToken) -> Background {
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    Background(vec![
        tokio::spawn(pods.containers.containerd.clone().watch(sender, stop.clone())),
        tokio::spawn(pods.clone().follow(events, stop.clone())),
        tokio::spawn(pods.clone().reconcile(stop.clone())),
        tokio::spawn(pods.network.clone().watch(stop.clone())),
        tokio::spawn(pods.containers.cdi.clone().watch(stop.clone())),
    ])
}

/// Waits a while for the recovery, so that the first call finds everything (SVC-04).
async fn wait_until_known(pods: &Pods) -> anyhow::Result<()> {
    let mut recovery = pods.recovery();
    let known = recovery.wait_for(|state| *state != Recovery::Pending);
    let state = match tokio::time::timeout(CONTAINERD_WAIT, known).await {
        Ok(state) => state.map(|state| state.clone()).unwrap_or(Recovery::Pending),
        Err(_) => Recovery::Pending,
    };
    match state {
        Recovery::Done => Ok(()),
        Recovery::Refused(reason) => bail!("{reason}"),
        Recovery::Pending => {
            warn!("containerd is not there yet; serving with RuntimeReady=false until it is");
            Ok(())
        }
    }
}

/// Serves the server's own metrics and the page, where the configuration says so.
async fn serve_looks(
    config: &Arc<Config>,
    pods: &Pods,
    admin: Admin,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<tokio::task::JoinHandle<()>>> {
    let mut tasks = Vec::new();
    if let Some(address) = &config.metrics {
        let pods = pods.clone();
        let look: endpoint::Look = Arc::new(move || {
            let pods = pods.clone();
            Box::pin(async move { admin::figures(&pods).await })
        });
        let listener = listen(address, "metrics").await?;
        let serving = httpd::serve(listener, "metrics", CLIENT_LIMIT, endpoint::handler(look), stop.clone());
        tasks.push(tokio::spawn(serving));
    }
    if let Some(address) = &config.page {
        let handler = Page::new(admin, config.clone())?.handler();
        let listener = listen(address, "page").await?;
        tasks.push(tokio::spawn(httpd::serve(listener, "page", CLIENT_LIMIT, handler, stop.clone())));
    }
    Ok(tasks)
}

async fn listen(address: &ListenAddress, what: &'static str) -> anyhow::Result<httpd::Listener> {
    match address {
        ListenAddress::Unix(path) => {
            info!(socket = ?path, "serving {what}");
            Ok(httpd::Listener::Unix(bind(path, 0o660).await?))
        }
        ListenAddress::Tcp(address) => {
            let listener = TcpListener::bind(address).await.with_context(|| format!("bind {address}"))?;
            let address = listener.local_addr()?;
            info!(%address, "serving {what}");
            if !address.ip().is_loopback() {
                warn!(%address, "whoever reaches this address may read the {what}");
            }
            Ok(httpd::Listener::Tcp(listener))
        }
    }
}

/// What the process is told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT; SIGHUP reloads what can be reloaded.
    async fn wait_for_end(&mut self, request: &Serve, pods: &Pods, log: &LogControl) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.reload.recv() => reload(request, pods, log),
            }
        }
    }
}

fn reload(request: &Serve, pods: &Pods, log: &LogControl) {
    pods.network.reload();
    match Config::load(request.config.as_deref(), &request.overrides) {
        Ok(config) => {
            log.reload(&config.log);
            info!(level = config.log.level, "reloaded: log level and CNI configuration");
        }
        Err(error) => warn!(%error, "the configuration was not reloaded"),
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "the service manager could not be told");
    }
}
