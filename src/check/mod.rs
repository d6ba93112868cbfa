//! `longshore check` and `longshore doctor`: what of this node does not fit together.
//!
//! Each subject is a file: it *gathers* facts, each within a limit of its own, and *compares*
//! them, which is pure. What comes out are [`Finding`]s, a line each, with what to do where
//! something is wrong. Nothing is changed on the node: a repair is what the server does at its
//! start. No network is used, and a containerd that hangs costs seconds, which is said.
//!
//! ```text
//! configuration ─▶ processes, kubelet, containerd, cni, keeper, … (at the same time)
//!                    └──▶ runtimes, leftovers (what containerd has is known)
//!                           └──▶ compare ─▶ findings ─▶ report
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `configuration` | the file, and what it was made of |
//! | `containerd` | whether it answers, and has what is needed |
//! | `conflicts` | other servers of the same pods |
//! | `server` | who answers on the socket, who holds the root |
//! | `cni` | network configurations, plugins |
//! | `kubelet`, `cgroups` | cgroup driver, controllers |
//! | `kernel` | what the kernel can, and its limits |
//! | `runtimes` | shims, OCI runtimes, the pause image |
//! | `streaming`, `expiry` | address and certificate of exec, attach, port-forward |
//! | `registries` | hosts.toml |
//! | `keeper` | the process that has the logs |
//! | `leftovers` | what belongs to no pod |

mod cgroups;
mod cni;
mod configuration;
mod conflicts;
mod containerd;
mod expiry;
mod finding;
mod keeper;
mod kernel;
mod kubelet;
pub(crate) mod leftovers;
mod registries;
mod report;
mod runtimes;
pub mod server;
mod streaming;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use finding::{Finding, Left, RemovedBy, Verdict};
pub use report::{Report, Unchecked};

use crate::config::Overrides;
use crate::error::Result;
use crate::flow;
use crate::sys::processes;

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(3);
/// How long all questions about one subject may take.
const SUBJECT_LIMIT: Duration = Duration::from_secs(5);
/// Where the kubelet usually has its configuration.
const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// What is looked at from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Before the first start: there need be no server.
    Check,
    /// On a node that runs.
    Doctor,
}

impl Mode {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Check => "check",
            Mode::Doctor => "doctor",
        }
    }
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Request {
    /// From where.
    pub mode: Mode,
    /// The configuration file, if one is given.
    pub config: Option<PathBuf>,
    /// The flags over it.
    pub overrides: Overrides,
    /// The kubelet's configuration, if one is given.
    pub kubelet_config: Option<PathBuf>,
}

/// Looks at everything.
pub async fn run(request: Request) -> Report {
    let mode = request.mode;
    let mut report = Report::new(mode);
    if !rustix::process::geteuid().is_root() {
        report.unchecked("configuration", "this needs root: what others may not see is not looked at");
    }
    let asked = request.clone();
    let loaded = bounded("the configuration", async move {
        flow::blocking(move || Ok(configuration::gather(&asked))).await
    });
    let facts = match loaded.await {
        Ok(facts) => facts,
        Err(error) => {
            report.unchecked("configuration", error.message());
            return report;
        }
    };
    report.add(configuration::compare(&facts));
    let Ok(config) = facts.outcome else { return report };
    let config = Arc::new(config);

    let containerd = Box::pin(containerd::gather(&config));
    let (processes, containerd, server, cni, kernel, streaming, registries, keeper) = tokio::join!(
        bounded("processes", flow::blocking(|| Ok(processes::all()))),
        bounded("containerd", containerd),
        bounded("the server", server::gather(&config)),
        bounded("CNI", cni::gather(config.clone())),
        bounded("the kernel", flow::blocking(|| Ok(kernel::gather()))),
        bounded("streaming", blocking(&config, streaming::gather)),
        bounded("registries", blocking(&config, registries::gather)),
        bounded("the keeper", keeper::gather(config.clone())),
    );
    let processes = report.take("processes", processes).unwrap_or_default();
    let kubelet = {
        let given = request.kubelet_config.clone();
        bounded("the kubelet", flow::blocking(move || Ok(kubelet::gather(&processes, given.as_deref()))))
    };
    let kubelet = report.take("cgroups", kubelet.await).unwrap_or_default();
    let containerd = report.take("containerd", containerd);
    let server = report.take("server", server);
    let runs = server.as_ref().is_some_and(|server| server.is_longshore());

    let answers = containerd.as_ref().filter(|containerd| containerd.answers());
    let world = crate::leftovers::gather(&config, answers.map(|known| &known.client), runs);
    let (runtimes, world) = tokio::join!(
        bounded("runtimes", runtimes::gather(&config, answers)),
        bounded("leftovers", Box::pin(world)),
    );

    if let Some(containerd) = &containerd {
        report.add(containerd::compare(containerd, &config));
    }
    let world = report.take("leftovers", world);
    let conflicts = conflicts::Facts {
        config: &config,
        mode,
        builtin_active: answers.map(|known| known.builtin_active()),
        kubelet: &kubelet,
        foreign: world.as_ref().map(|world| world.foreign_pods()).unwrap_or_default(),
    };
    report.add(conflicts::compare(&conflicts));
    if let Some(server) = &server {
        report.add(server::compare(server, &config, mode));
    }
    let cni = report.take("cni", cni);
    if let Some(cni) = &cni {
        report.add(cni::compare(cni, mode));
    }
    if let Some(kernel) = report.take("kernel", kernel) {
        let has_bridge = cni.as_ref().is_some_and(cni::Facts::has_bridge);
        report.add(cgroups::compare(&cgroups::facts(&config, &kernel, &kubelet)));
        report.add(kernel::compare(&kernel, &config, has_bridge));
    }
    if let Some(runtimes) = report.take("runtimes", runtimes) {
        report.add(runtimes::compare(&runtimes));
    }
    if let Some(streaming) = report.take("streaming", streaming) {
        report.add(streaming::compare(&streaming, runs));
    }
    if let Some(registries) = report.take("registries", registries) {
        report.add(registries::compare(&registries));
    }
    if let Some(keeper) = report.take("keeper", keeper) {
        report.add(keeper::compare(&keeper, runs));
    }
    if let Some(world) = &world {
        report.add(leftovers::compare(world));
    }
    if answers.is_none() {
        report.unchecked("leftovers", "containerd does not answer: what has no pod any more is not known");
    }
    report
}

/// Waits at most until the limit of a subject.
async fn bounded<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    flow::limited(SUBJECT_LIMIT, what, work).await
}

/// Gathers from files.
async fn blocking<T: Send + 'static>(
    config: &Arc<crate::config::Config>,
    gather: fn(&crate::config::Config) -> T,
) -> Result<T> {
    let config = config.clone();
    flow::blocking(move || Ok(gather(&config))).await
}
