//! How fast a container's output reaches its log file, with all that is in between:
//! `cargo bench --bench shim [-- FOLDER]`.
//!
//! A containerd of its own below FOLDER runs a container in runc, whose process writes
//! lines of 100 bytes; its shim copies them into the FIFO, the keeper from there into the
//! log. It prints what passed in a second, and the processor time that keeper and shim took
//! for a gigabyte. The log is read afterwards: every line is there, once, in order.
//!
//! It needs root, and containerd, runc and a static busybox in the PATH.

mod output;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use longshore::containerd::{ContainerRecord, Containerd, TaskRequest};
use longshore::io::fifo::{Fifos, Wanted};
use longshore::io::{ContainerIo, Keeper, KeeperOptions};
use output::{MEGA, Process, check, numbered_lines, processor_s};
use serde_json::json;

const BYTES: usize = 300 * MEGA;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);
/// What the container's process does with the file of lines.
const CASES: [(&str, &str); 3] = [
    ("sendfile", "exec cat /lines"),
    ("64 KiB a write", "exec dd if=/lines bs=64k 2>/dev/null"),
    ("4 KiB a write", "exec dd if=/lines bs=4k 2>/dev/null"),
];
const ID: &str = "shim-bench";

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(output::folder())?;
    let folder = folder.path();
    let output = numbered_lines(BYTES);
    let rootfs = make_rootfs(folder, &output)?;
    let server = Server::start(folder)?;
    let containerd = Containerd::new(&server.socket, "bench", LIMIT)?;
    server.wait(&containerd).await?;
    println!("{:<20}{:>10}{:>16}{:>14}{:>14}", "", "MB/s", "keeper s/GB", "shim s/GB", "keeper MiB");
    for (name, script) in CASES {
        let bench = Bench { folder, rootfs: &rootfs, containerd: &containerd };
        let Figures { elapsed, keeper_s, shim_s, keeper_kib } =
            bench.run(script, &output).await.with_context(|| format!("case {name:?}"))?;
        println!(
            "{name:<20}{:>10.1}{:>16.2}{:>14.2}{:>14.1}",
            BYTES as f64 / 1e6 / elapsed.as_secs_f64(),
            keeper_s * 1e9 / BYTES as f64,
            shim_s * 1e9 / BYTES as f64,
            keeper_kib as f64 / 1024.0,
        );
    }
    println!("all lines are in the logs, in order");
    Ok(())
}

struct Figures {
    elapsed: Duration,
    keeper_s: f64,
    shim_s: f64,
    keeper_kib: u64,
}

struct Bench<'a> {
    folder: &'a Path,
    rootfs: &'a Path,
    containerd: &'a Containerd,
}

impl Bench<'_> {
    /// A keeper and a container that runs `script`.
    async fn run(&self, script: &str, output: &[u8]) -> anyhow::Result<Figures> {
        let state = tempfile::tempdir_in(self.folder)?;
        let process = Process::start(state.path())?;
        let keeper = Keeper::new(output::exe(), state.path(), KeeperOptions::default());
        let wanted = Wanted { stdin: false, stdout: true, stderr: true };
        let fifos = Fifos::make(state.path(), ID, ID, wanted)?;
        let log = state.path().join("0.log");
        let io = ContainerIo {
            id: ID.to_owned(),
            stdout: fifos.stdout.clone(),
            stderr: fifos.stderr.clone(),
            log_path: Some(log.clone()),
            line_bytes_max: 16 << 10,
            ..ContainerIo::default()
        };
        keeper.add(io).await?;
        let record = ContainerRecord {
            id: ID.to_owned(),
            runtime: "io.containerd.runc.v2".to_owned(),
            spec: self.spec(script).into_bytes(),
            ..ContainerRecord::default()
        };
        self.containerd.create_container(record, None).await?;
        let measured = self.measure(&keeper, &process, &fifos).await;
        let deleted = self.containerd.delete_container(ID).await;
        let figures = measured?;
        deleted?;
        check(&log, output, 1)?;
        keeper.remove(ID).await?;
        Ok(figures)
    }

    async fn measure(&self, keeper: &Keeper, process: &Process, fifos: &Fifos) -> anyhow::Result<Figures> {
        let task = TaskRequest {
            container_id: ID.to_owned(),
            stdout: Fifos::to_task(fifos.stdout.as_deref()),
            stderr: Fifos::to_task(fifos.stderr.as_deref()),
            ..TaskRequest::default()
        };
        let pid = self.containerd.create_task(task, LIMIT).await?;
        // The shim is the parent of the container's process.
        let shim = u32::try_from(output::stat(pid, 1)?)?;
        let (keeper_before, shim_before) = (process.processor_s()?, processor_s(shim)?);
        let begin = Instant::now();
        self.containerd.start_process(ID, "", LIMIT).await?;
        let is_drained = keeper.drained(ID, LIMIT).await?;
        let elapsed = begin.elapsed();
        let keeper_s = process.processor_s()? - keeper_before;
        let shim_s = processor_s(shim)? - shim_before;
        let keeper_kib = process.memory_kib()?;
        let exit = self.containerd.wait(ID, "").await?;
        self.containerd.delete_task(ID).await?;
        ensure!(is_drained && exit.code == 0, "the container's process ended with code {}", exit.code);
        Ok(Figures { elapsed, keeper_s, shim_s, keeper_kib })
    }

    fn spec(&self, script: &str) -> String {
        let kinds = ["pid", "mount", "ipc", "uts", "network"];
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": ["/bin/busybox", "sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": { "path": self.rootfs, "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": kinds.map(|kind| json!({ "type": kind })) },
        });
        spec.to_string()
    }
}

/// A root file system of a shell and the lines.
fn make_rootfs(folder: &Path, output: &[u8]) -> anyhow::Result<PathBuf> {
    let rootfs = folder.join("rootfs");
    for name in ["bin", "proc", "dev", "sys"] {
        std::fs::create_dir_all(rootfs.join(name))?;
    }
    std::fs::write(rootfs.join("lines"), output)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let busybox = std::env::split_paths(&path).map(|folder| folder.join("busybox"));
    let busybox = busybox.into_iter().find(|path| path.is_file()).context("there is no busybox")?;
    std::fs::copy(busybox, rootfs.join("bin/busybox"))?;
    for name in ["cat", "dd", "sh"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name))?;
    }
    Ok(rootfs)
}

/// A containerd, ended with the value.
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    fn start(folder: &Path) -> anyhow::Result<Server> {
        let (root, state) = (folder.join("root"), folder.join("state"));
        let socket = state.join("containerd.sock");
        let config = folder.join("config.toml");
        let text = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n"
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.stderr(Stdio::null()).spawn().context("start containerd")?;
        Ok(Server { process, socket })
    }

    async fn wait(&self, containerd: &Containerd) -> anyhow::Result<()> {
        let end = Instant::now() + LIMIT;
        while let Err(error) = containerd.list_tasks().await {
            ensure!(Instant::now() < end, "containerd does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
