//! The node's containerd: a process with folders of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;
use tonic::transport::{Channel, Endpoint};

use super::cri::Cri;
use super::fetched::fetched;
use super::images;
use super::place::Place;
use super::process::{Process, command, read_log, tail};
use super::{CgroupDriver, LIMIT, cni, patient, procfs, wait_until};

/// CAP_SYS_RESOURCE, without which OOM scores cannot be lowered.
const SYS_RESOURCE: u32 = 24;
/// How long containerd may take to end.
const END_LIMIT: Duration = Duration::from_secs(20);

/// The version of a containerd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// From what `containerd --version` prints: `… 1.6.20~ds1 …`, `… v2.1.9 …`.
    fn parse(text: &str) -> Option<Version> {
        text.split_whitespace().find_map(|word| {
            let word = word.strip_prefix('v').unwrap_or(word);
            let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Version { major: next()?, minor: next()?, patch: next()? })
        })
    }
}

/// containerd.
pub(crate) struct Containerd {
    place: Arc<Place>,
    binary: PathBuf,
    runc: Option<PathBuf>,
    version: Version,
    channel: Channel,
    process: Mutex<Option<Process>>,
    /// Keys and tables of the CRI plugin's configuration, besides the usual ones.
    pub(super) more: (String, String),
}

impl Containerd {
    /// The one of this machine, not started yet; with another runc, in that folder.
    pub(crate) fn new(place: &Arc<Place>, runc: Option<PathBuf>) -> Containerd {
        let binary = binary();
        let version = version_of(&binary);
        let socket = format!("unix://{}", place.text("c.sock"));
        let channel =
            Endpoint::from_shared(socket).expect("an address").timeout(patient(LIMIT)).connect_lazy();
        let (process, more) = (Mutex::new(None), Default::default());
        Containerd { place: place.clone(), binary, runc, version, channel, process, more }
    }

    /// Its program, of which the shims are neighbours.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// The folder of its runc, if that is not the one of the PATH.
    pub(crate) fn runc(&self) -> Option<PathBuf> {
        self.runc.clone()
    }

    /// Its version.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// Its API.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.place.path("c.sock")
    }

    /// Its id as a process, while it runs.
    pub(crate) fn pid(&self) -> u32 {
        let process = self.process.lock().expect("no panic");
        process.as_ref().expect("containerd runs").pid()
    }

    /// All that it has printed.
    pub(crate) fn log(&self) -> String {
        read_log(&self.place.path("c.log"))
    }

    /// Where its plugins keep what is to last.
    pub(crate) fn root(&self) -> PathBuf {
        self.place.path("c")
    }

    /// `root` and `state` of its CRI plugin.
    pub(crate) fn plugin_folders(&self) -> (PathBuf, PathBuf) {
        let name = "io.containerd.grpc.v1.cri";
        (self.root().join(name), self.place.path("cs").join(name))
    }

    /// Starts it without its CRI plugin, and waits until it answers.
    pub(crate) async fn start(&self) {
        self.start_with(Plugin::Disabled).await;
    }

    /// Ends it with SIGKILL; shims and containers go on.
    pub(crate) async fn kill(&self) {
        let process = self.process.lock().expect("no panic").take();
        process.expect("containerd runs").kill().await;
    }

    /// Ends it with SIGTERM; shims and containers go on.
    pub(crate) async fn terminate(&self) {
        let process = self.process.lock().expect("no panic").take();
        process.expect("containerd runs").terminate(patient(END_LIMIT)).await;
    }

    /// Whether it was started and not ended.
    pub(crate) fn is_started(&self) -> bool {
        self.process.lock().expect("no panic").is_some()
    }

    /// Ends it and starts it with its CRI plugin; gives a client of that.
    pub(crate) async fn restart_with_cri_plugin(&self) -> Cri {
        if self.is_started() {
            self.terminate().await;
        }
        self.start_with(Plugin::Enabled).await;
        let cri = Cri::new(&self.socket(), &self.place);
        cri.wait_until_answers().await;
        cri
    }

    pub(crate) async fn start_with(&self, plugin: Plugin) {
        self.start_program(&self.binary, &self.version, plugin).await;
    }

    /// Starts another containerd in its place: an upgrade. Gives its version.
    pub(crate) async fn start_other(&self, binary: &Path) -> Version {
        let version = version_of(binary);
        self.start_program(binary, &version, Plugin::Disabled).await;
        version
    }

    /// Stops it for a while, and lets it go on.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        self.process.lock().expect("no panic").as_ref().expect("containerd runs").signal(signal);
    }

    async fn start_program(&self, binary: &Path, version: &Version, plugin: Plugin) {
        let file = self.place.path("c.toml");
        std::fs::write(&file, self.config(version, plugin)).expect("a configuration");
        let mut serve = command(binary);
        serve.arg("--config").arg(&file).env("PATH", search_path(binary, self.runc.clone()));
        // Its plugin makes the folder of a mount of a relative path.
        serve.current_dir(self.place.folder());
        let process = Process::start("containerd", serve, &self.place.path("c.log"));
        assert!(self.process.lock().expect("no panic").replace(process).is_none(), "containerd runs already");
        wait_until("containerd", async || {
            let answers = VersionClient::new(self.channel()).version(()).await.is_ok();
            if !answers {
                let mut process = self.process.lock().expect("no panic");
                let is_alive = process.as_mut().expect("just started").is_alive();
                assert!(is_alive, "containerd ended:\n{}", tail(&self.log(), 20));
            }
            answers
        })
        .await;
    }

    fn config(&self, version: &Version, plugin: Plugin) -> String {
        let format = if version.major >= 2 { 3 } else { 2 };
        let mut off = vec![
            // Folders and sockets outside of ours.
            "io.containerd.internal.v1.opt",
            // Slow to start, or noisy, and used by nobody here.
            "io.containerd.internal.v1.tracing",
            "io.containerd.tracing.processor.v1.otlp",
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.snapshotter.v1.blockfile",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.erofs",
            "io.containerd.snapshotter.v1.zfs",
        ];
        if let Plugin::Disabled = plugin {
            off.extend([
                "io.containerd.grpc.v1.cri",
                "io.containerd.cri.v1.images",
                "io.containerd.cri.v1.runtime",
                "io.containerd.podsandbox.controller.v1.podsandbox",
            ]);
        }
        let text = format!(
            r#"version = {format}
root = "{{folder}}/c"
state = "{{folder}}/cs"
disabled_plugins = {off:?}
[grpc]
address = "{{folder}}/c.sock"
[ttrpc]
address = "{{folder}}/c.sock.ttrpc"
[plugins."io.containerd.nri.v1.nri"]
disable = true
"#
        );
        let plugin = match plugin {
            Plugin::Disabled => String::new(),
            Plugin::Enabled => self.plugin_config(),
        };
        self.place.fill(&(text + &plugin))
    }

    /// The configuration of the CRI plugin: as alike to longshore's as can be.
    fn plugin_config(&self) -> String {
        let (runtime, images) = match self.version.major {
            ..2 => ("io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"),
            2.. => ("io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"),
        };
        let pause = match self.version.major {
            ..2 => format!("[plugins.\"{runtime}\"]\nsandbox_image = \"{}\"", images::PAUSE),
            2.. => format!(
                "[plugins.\"{images}\".pinned_images]\nsandbox = \"{}\"\n[plugins.\"{runtime}\"]",
                images::PAUSE
            ),
        };
        let systemd = CgroupDriver::from_env() == CgroupDriver::Systemd;
        let restrict = !procfs::has_capability(SYS_RESOURCE);
        let (conf, bin) = (cni::conf_dir(&self.place), cni::bin_dir(&self.place));
        let (keys, tables) = (&self.more.0, self.more.1.replace("{runtime}", runtime));
        format!(
            r#"{pause}
{keys}
netns_mounts_under_state_dir = true
enable_unprivileged_ports = true
enable_unprivileged_icmp = true
restrict_oom_score_adj = {restrict}
[plugins."{runtime}".cni]
conf_dir = {conf:?}
bin_dir = {bin:?}
[plugins."{runtime}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{runtime}".containerd.runtimes.runc.options]
Root = "{{folder}}/runc"
SystemdCgroup = {systemd}
[plugins."{images}".registry]
config_path = "{{folder}}/certs"
{tables}
"#
        )
    }
}

/// Whether containerd's own CRI plugin runs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Plugin {
    Enabled,
    Disabled,
}

/// The containerd of tests that want the newest one, if that is not this machine's.
static PREFERRED: OnceLock<PathBuf> = OnceLock::new();

/// From here on nodes of this process have the newest containerd at hand, unless the
/// environment names one: Debian's newest, fetched as tests/matrix.sh does.
pub(crate) fn prefer_newest_containerd() {
    if std::env::var_os("LONGSHORE_TEST_CONTAINERD").is_some() {
        return;
    }
    PREFERRED.get_or_init(|| fetched_containerd("sid"));
}

/// Debian's containerd of a suite, fetched as tests/matrix.sh does.
pub(crate) fn fetched_containerd(suite: &str) -> PathBuf {
    fetched("containerd", &[suite]).unwrap_or_else(|error| panic!("{error}")).join("containerd")
}

fn version_of(binary: &Path) -> Version {
    let told = Command::new(binary).arg("--version").output();
    let told = told.unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    Version::parse(&told).unwrap_or_else(|| panic!("a version: {told}"))
}

fn binary() -> PathBuf {
    if let Some(preferred) = PREFERRED.get() {
        return preferred.clone();
    }
    let given = std::env::var_os("LONGSHORE_TEST_CONTAINERD").map(std::path::absolute);
    let given = given.map(|path| path.expect("a path"));
    match given {
        Some(path) if path.is_dir() => path.join("containerd"),
        Some(path) => path,
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let found = std::env::split_paths(&path).map(|folder| folder.join("containerd"));
            found.into_iter().find(|path| path.is_file()).expect("containerd is installed")
        }
    }
}

/// PATH with the folders in front that have the shims that belong to `containerd`, and
/// before that the runc that is asked for.
pub(crate) fn search_path(containerd: &Path, runc: Option<PathBuf>) -> std::ffi::OsString {
    let runc = runc.or_else(|| std::env::var_os("LONGSHORE_TEST_RUNC_DIR").map(PathBuf::from));
    let shims = containerd.parent().map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = runc.into_iter().chain(shims).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).expect("folders without colons")
}
