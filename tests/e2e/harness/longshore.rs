//! The server under test as a process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use toml::{Table, Value};

use super::cri::Cri;
use super::place::Place;
use super::process::{Process, command, read_log, tail};
use super::{CgroupDriver, cni, patient, procfs, wait_until};

/// How long the server may take to end: longer than its own limit.
const END_LIMIT: Duration = Duration::from_secs(45);

/// longshore with its configuration, in a place.
pub(crate) struct Longshore {
    place: Arc<Place>,
    config: Table,
    search_path: std::ffi::OsString,
    cri: Cri,
    process: Mutex<Option<Process>>,
    /// Further variables of its environment.
    pub(super) environment: Vec<(String, String)>,
}

impl Longshore {
    /// One with `settings` laid over the place's own; not started yet.
    pub(crate) fn new(
        place: &Arc<Place>,
        containerd: &Path,
        path: std::ffi::OsString,
        settings: &[String],
    ) -> Longshore {
        let mut config = base(place, containerd);
        for text in settings {
            let text = place.fill(text);
            let table = text.parse().unwrap_or_else(|error| panic!("{error}:\n{text}"));
            merge(&mut config, table);
        }
        let listen = config["server"]["listen"].as_str().expect("a socket").to_owned();
        let cri = Cri::new(Path::new(&listen), place);
        let environment = Vec::new();
        Longshore {
            place: place.clone(),
            config,
            search_path: path,
            cri,
            process: Mutex::new(None),
            environment,
        }
    }

    /// Its program.
    pub(crate) fn program() -> &'static str {
        env!("CARGO_BIN_EXE_longshore")
    }

    /// A client of it.
    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    /// The folders of what survives a reboot, and of what does not.
    pub(crate) fn folders(&self) -> (PathBuf, PathBuf) {
        let folder = |key: &str| PathBuf::from(self.config[key].as_str().expect("a folder"));
        (folder("root"), folder("state"))
    }

    /// The folder of libcni's cache.
    pub(crate) fn cni_cache(&self) -> PathBuf {
        self.config["cni"]["cache_dir"].as_str().expect("a folder").into()
    }

    /// The folder of pinned network namespaces.
    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.config["cni"]["netns_dir"].as_str().expect("a folder").into()
    }

    /// Where its configuration is; for a test that changes it before a reload or restart.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.place.path("l.toml")
    }

    /// Starts it with the configuration it was made with, and waits until it answers.
    pub(crate) async fn start(&self) {
        self.spawn();
        wait_until("longshore", async || {
            let answers = self.cri.version().await.is_ok();
            assert!(answers || self.is_alive(), "longshore ended:\n{}", tail(&self.log(), 20));
            answers
        })
        .await;
    }

    /// Starts it, without waiting: for a test that wants to see it fail.
    pub(crate) fn spawn(&self) {
        std::fs::write(self.config_file(), self.config.to_string()).expect("a configuration");
        let mut serve = command(Longshore::program());
        serve.args(["serve", "--config"]).arg(self.config_file()).env("PATH", &self.search_path);
        serve.envs(self.environment.iter().map(|(name, value)| (name, value)));
        serve.env("LONGSHORE_POINTS", self.place.path("points"));
        let process = Process::start("longshore", serve, &self.place.path("l.log"));
        assert!(self.process.lock().expect("no panic").replace(process).is_none(), "longshore runs already");
    }

    /// Whether its process lives.
    pub(crate) fn is_alive(&self) -> bool {
        self.process.lock().expect("no panic").as_mut().is_some_and(Process::is_alive)
    }

    /// Whether it was started and not ended.
    pub(crate) fn is_started(&self) -> bool {
        self.process.lock().expect("no panic").is_some()
    }

    /// Ends it with SIGKILL.
    pub(crate) async fn kill(&self) {
        self.take().kill().await;
    }

    /// Sends it SIGKILL; it may be there for as long as a disk makes it wait.
    pub(crate) fn kill_and_leave(&self) -> Process {
        let process = self.take();
        process.signal(Signal::KILL);
        process
    }

    /// Ends it with SIGTERM; it must end well.
    pub(crate) async fn terminate(&self) {
        let status = self.take().terminate(patient(END_LIMIT)).await;
        assert!(status.success(), "longshore ends with {status}:\n{}", tail(&self.log(), 20));
    }

    /// Tells it to reload.
    pub(crate) fn hup(&self) {
        self.process.lock().expect("no panic").as_ref().expect("longshore runs").signal(Signal::HUP);
    }

    /// Its id as a process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().expect("no panic").as_ref().expect("longshore runs").pid()
    }

    /// The same, if it runs.
    pub(crate) fn running_pid(&self) -> Option<u32> {
        self.process.lock().expect("no panic").as_ref().map(Process::pid)
    }

    /// All that it has printed, of all its starts.
    pub(crate) fn log(&self) -> String {
        read_log(&self.place.path("l.log"))
    }

    /// Memory that it has in RAM.
    pub(crate) fn rss_kib(&self) -> u64 {
        procfs::status_kib(self.pid(), "VmRSS")
    }

    /// The most that it ever had.
    pub(crate) fn peak_rss_kib(&self) -> u64 {
        procfs::status_kib(self.pid(), "VmHWM")
    }

    /// Its keeper, if there is one.
    pub(crate) fn find_keeper(&self) -> Option<u32> {
        let socket = self.folders().1.join("keeper.sock").display().to_string();
        let keeper = procfs::processes().into_iter().find(|process| {
            process.arguments.iter().any(|argument| argument == "keeper")
                && process.arguments.contains(&socket)
        });
        keeper.map(|keeper| keeper.pid)
    }

    /// Its keeper, which must be there.
    pub(crate) fn keeper_pid(&self) -> u32 {
        self.find_keeper().expect("a keeper runs")
    }

    /// Memory that the keeper has in RAM.
    pub(crate) fn keeper_rss_kib(&self) -> u64 {
        procfs::status_kib(self.keeper_pid(), "VmRSS")
    }

    fn take(&self) -> Process {
        self.process.lock().expect("no panic").take().expect("longshore runs")
    }
}

/// Everything that would be shared with others by default is in the place.
fn base(place: &Place, containerd: &Path) -> Table {
    let level = std::env::var("LONGSHORE_TEST_LOG").unwrap_or_else(|_| "debug".into());
    let (conf, bin) = (cni::conf_dir(place), cni::bin_dir(place));
    let driver = CgroupDriver::from_env().name();
    let text = format!(
        r#"
root = "{{folder}}/l"
state = "{{folder}}/ls"
[server]
listen = "{{folder}}/l.sock"
[containerd]
address = {containerd:?}
[log]
level = "{level}"
[cni]
conf_dir = {conf:?}
bin_dirs = [{bin:?}]
cache_dir = "{{folder}}/cni/cache"
netns_dir = "{{folder}}/netns"
[image]
registry_config_dirs = ["{{folder}}/certs"]
containerd_config = ""
[runtime]
cgroup_driver = "{driver}"
[runtime.handlers.runc.options]
Root = "{{folder}}/runc"
"#
    );
    place.fill(&text).parse().expect("a configuration")
}

/// Lays `over` over `table`, key by key.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}
