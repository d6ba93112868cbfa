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

use crate::config::{Config, Overrides};
use crate::error::Result;
use crate::flow;
use crate::leftovers::World;
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
    let facts = gather(&config, request.kubelet_config, &mut report).await;
    compare(&facts, &config, mode, &mut report);
    report
}

/// What was found of each subject; nothing where it could not be looked at.
struct Facts {
    containerd: Option<containerd::Facts>,
    server: Option<server::Facts>,
    kubelet: kubelet::Kubelet,
    cni: Option<cni::Facts>,
    kernel: Option<kernel::Facts>,
    runtimes: Option<runtimes::Facts>,
    streaming: Option<streaming::Facts>,
    registries: Option<registries::Facts>,
    keeper: Option<keeper::Facts>,
    world: Option<World>,
}

impl Facts {
    /// containerd, if it answers.
    fn answering(&self) -> Option<&containerd::Facts> {
        self.containerd.as_ref().filter(|containerd| containerd.answers())
    }

    /// Whether the server runs, and is one of ours.
    fn has_server(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.is_longshore())
    }
}

/// What can be looked at alone, then what takes knowledge of containerd.
async fn gather(config: &Arc<Config>, kubelet_config: Option<PathBuf>, report: &mut Report) -> Facts {
    let containerd = Box::pin(containerd::gather(config));
    let (processes, containerd, server, cni, kernel, streaming, registries, keeper) = tokio::join!(
        bounded("processes", flow::blocking(|| Ok(processes::all()))),
        bounded("containerd", containerd),
        bounded("the server", server::gather(config)),
        bounded("CNI", cni::gather(config.clone())),
        bounded("the kernel", flow::blocking(|| Ok(kernel::gather()))),
        bounded("streaming", blocking(config, streaming::gather)),
        bounded("registries", blocking(config, registries::gather)),
        bounded("the keeper", keeper::gather(config.clone())),
    );
    let processes = report.take("processes", processes).unwrap_or_default();
    let kubelet = flow::blocking(move || Ok(kubelet::gather(&processes, kubelet_config.as_deref())));
    let kubelet = bounded("the kubelet", kubelet).await;
    let mut facts = Facts {
        kubelet: report.take("cgroups", kubelet).unwrap_or_default(),
        containerd: report.take("containerd", containerd),
        server: report.take("server", server),
        cni: report.take("cni", cni),
        kernel: report.take("kernel", kernel),
        streaming: report.take("streaming", streaming),
        registries: report.take("registries", registries),
        keeper: report.take("keeper", keeper),
        runtimes: None,
        world: None,
    };
    let answers = facts.answering();
    let world = crate::leftovers::gather(config, answers.map(|known| &known.client), facts.has_server());
    let (runtimes, world) = tokio::join!(
        bounded("runtimes", runtimes::gather(config, answers)),
        bounded("leftovers", Box::pin(world)),
    );
    facts.runtimes = report.take("runtimes", runtimes);
    facts.world = report.take("leftovers", world);
    if facts.answering().is_none() {
        report.unchecked("leftovers", "containerd does not answer: what has no pod any more is not known");
    }
    facts
}

/// In the order in which they are printed.
fn compare(facts: &Facts, config: &Config, mode: Mode, report: &mut Report) {
    let Facts { kubelet, world, .. } = facts;
    let runs = facts.has_server();
    if let Some(containerd) = &facts.containerd {
        report.add(containerd::compare(containerd, config));
    }
    report.add(conflicts::compare(&conflicts::Facts {
        config,
        mode,
        builtin_active: facts.answering().map(|known| known.builtin_active()),
        kubelet,
        foreign: world.as_ref().map(|world| world.foreign_pods()).unwrap_or_default(),
    }));
    if let Some(server) = &facts.server {
        report.add(server::compare(server, config, mode));
    }
    if let Some(cni) = &facts.cni {
        report.add(cni::compare(cni, mode));
    }
    if let Some(kernel) = &facts.kernel {
        let has_bridge = facts.cni.as_ref().is_some_and(cni::Facts::has_bridge);
        report.add(cgroups::compare(&cgroups::facts(config, kernel, kubelet)));
        report.add(kernel::compare(kernel, config, has_bridge));
    }
    if let Some(runtimes) = &facts.runtimes {
        report.add(runtimes::compare(runtimes));
    }
    if let Some(streaming) = &facts.streaming {
        report.add(streaming::compare(streaming, runs));
    }
    if let Some(registries) = &facts.registries {
        report.add(registries::compare(registries));
    }
    if let Some(keeper) = &facts.keeper {
        report.add(keeper::compare(keeper, runs));
    }
    if let Some(world) = world {
        report.add(leftovers::compare(world));
    }
}

/// Waits at most until the limit of a subject.
async fn bounded<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    flow::limited(SUBJECT_LIMIT, what, work).await
}

/// Gathers from files.
async fn blocking<T: Send + 'static>(config: &Arc<Config>, gather: fn(&Config) -> T) -> Result<T> {
    let config = config.clone();
    flow::blocking(move || Ok(gather(&config))).await
}
