//! `longshore serve`

use std::path::PathBuf;

use clap::Args;

use crate::app;
use crate::config::{Config, Overrides};
use crate::flow::DISK_THREADS;
use crate::sys::memory;
use crate::telemetry;

/// Threads of the async runtime: the work is waiting, not computing.
const WORKER_THREADS: usize = 2;
/// Threads for blocking work: those of the disks, those that extract layers, and some for
/// what waits for neither. They are there only while there is work.
const BLOCKING_THREADS_MAX: usize = DISK_THREADS + 48;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration file; without one, the defaults are used.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// What differs between two instances on one machine; goes over the configuration file.
#[derive(Clone, Debug, Args)]
pub(super) struct Flags {
    /// The CRI socket to serve on.
    #[arg(long, value_name = "SOCKET")]
    listen: Option<PathBuf>,
    /// containerd's gRPC socket.
    #[arg(long, value_name = "SOCKET")]
    containerd: Option<PathBuf>,
    /// containerd's namespace.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Folder of what survives a reboot.
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
    /// Folder of what does not.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Folder of CNI configurations.
    #[arg(long, value_name = "FOLDER")]
    cni_conf_dir: Option<PathBuf>,
    /// Folder of CNI plugins; may be given several times.
    #[arg(long, value_name = "FOLDER")]
    cni_bin_dir: Vec<PathBuf>,
    /// Folder with a hosts.toml for each registry; may be given several times.
    #[arg(long, value_name = "FOLDER")]
    registry_config_dir: Vec<PathBuf>,
}

impl From<Flags> for Overrides {
    fn from(flags: Flags) -> Overrides {
        Overrides {
            listen: flags.listen,
            containerd: flags.containerd,
            namespace: flags.namespace,
            root: flags.root,
            state: flags.state,
            cni_conf_dir: flags.cni_conf_dir,
            cni_bin_dirs: flags.cni_bin_dir,
            registry_config_dirs: flags.registry_config_dir,
        }
    }
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    memory::bound();
    let request = app::Serve { config: arguments.config, overrides: arguments.flags.into() };
    let config = Config::load(request.config.as_deref(), &request.overrides)?;
    let (log, exporter) = telemetry::init(&config.log, config.traces.as_ref(), config.trace)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()?;
    runtime.block_on(app::serve(request, config, log, exporter))?;
    // Whatever still blocks in the kernel (a dead network mount) does not hold the end.
    runtime.shutdown_background();
    Ok(())
}
