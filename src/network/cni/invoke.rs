//! Running a plugin: one process with its orders in the environment and its
//! configuration on standard input.
//!
//! Every call is bounded (CNI-24): in time, after which the plugin's process group is
//! killed, as it is when the caller's future is dropped; and in what is kept of its
//! output. A plugin is done when its process ends: a child that it leaves behind may
//! hold on to its output without holding us.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tracing::{Instrument, Span, debug, info_span, warn};

use super::{Endpoint, Verb};
use crate::error::{Context, Error, Kind, Result, deadline, precondition, unknown};
use crate::flow::{Disk, on_disk};
use crate::points;
use crate::telemetry::{METERS, traces};
use crate::trace;

/// Bytes of a plugin's standard output; a result beyond it is refused.
const STDOUT_BYTES_MAX: usize = 4 << 20;

/// Bytes of a plugin's standard error that are kept.
const STDERR_BYTES_MAX: usize = 64 << 10;

/// How often and how long to wait for an installer that is writing the binary.
const BUSY_TRIES: u32 = 25;
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// How long a killed plugin may take to vanish before it is left to itself.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Where plugins are.
#[derive(Clone, Debug)]
pub(crate) struct Plugins {
    directories: Vec<PathBuf>,
    /// CNI_PATH.
    path: OsString,
}

/// One call.
pub(crate) struct Call<'a> {
    pub(crate) verb: Verb,
    /// The plugin's `type`.
    pub(crate) plugin: &'a str,
    pub(crate) network: &'a str,
    pub(crate) endpoint: &'a Endpoint,
    /// The configuration for standard input.
    pub(crate) input: Vec<u8>,
    pub(crate) limit: Duration,
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The plugin ran and said so.
    Plugin(Complaint),
    /// It could not be run, or not to its end.
    Host(Error),
}

/// A plugin's error (CNI-16).
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Complaint {
    /// A code of the specification, 0 if none.
    #[serde(deserialize_with = "lenient_code")]
    pub(crate) code: u64,
    pub(crate) msg: String,
    pub(crate) details: String,
    /// Said in the specification's form, not by a plugin that broke down.
    #[serde(skip)]
    pub(crate) is_structured: bool,
}

impl Failure {
    fn message(&self) -> &str {
        match self {
            Failure::Plugin(complaint) => &complaint.msg,
            Failure::Host(error) => error.message(),
        }
    }

    /// The error of a call of `plugin`.
    pub(crate) fn into_error(self, plugin: &str) -> Error {
        match self {
            Failure::Host(error) => error,
            Failure::Plugin(Complaint { code, msg, details, .. }) => {
                let code = if code == 0 { String::new() } else { format!(" (CNI error {code})") };
                let details = if details.is_empty() { details } else { format!("; {details}") };
                unknown(format!("plugin {plugin:?}: {msg}{details}{code}"))
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Host(error)
    }
}

impl Plugins {
    /// Plugins in `directories`, searched in order.
    pub(crate) fn new(directories: &[PathBuf]) -> Plugins {
        let mut path = OsString::new();
        for (index, directory) in directories.iter().enumerate() {
            if index > 0 {
                path.push(":");
            }
            path.push(directory);
        }
        Plugins { directories: directories.to_vec(), path }
    }

    /// The directories.
    pub(crate) fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// The binary of `plugin`.
    ///
    /// # Errors
    /// FailedPrecondition where there is none.
    pub(crate) fn find(&self, plugin: &str) -> Result<PathBuf> {
        let is_file = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.is_file());
        self.directories.iter().map(|directory| directory.join(plugin)).find(is_file).ok_or_else(|| {
            precondition(format!("there is no plugin {plugin:?} in any of {:?}", self.directories))
        })
    }

    /// Runs the plugin and gives what it printed.
    ///
    /// # Errors
    /// [`Failure::Plugin`] if it ended with a code other than 0; else [`Failure::Host`]:
    /// DeadlineExceeded at the time limit, FailedPrecondition without a binary.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Vec<u8>, Failure> {
        let span = info_span!(
            "cni",
            command = call.verb.as_str(),
            plugin = call.plugin,
            network = call.network,
            sandbox = call.endpoint.container,
        );
        let step = format!("CNI {} {}", call.verb.as_str(), call.plugin);
        points::before(&step)?;
        let meter = METERS.cni_plugin(call.plugin, call.verb.as_str());
        trace::note(&span, "args", || call.endpoint.described());
        trace::note(&span, "stdin", || trace::mask::json(&call.input));
        let done = self.run(call).instrument(span.clone()).await;
        if let Ok(printed) = &done {
            trace::note(&span, "result", || trace::mask::json(printed));
        }
        if let Err(failure) = &done {
            traces::failed(&span, failure.message());
        }
        meter.end_as(done.as_ref().err().map(|failure| match failure {
            Failure::Plugin(_) => Kind::Unknown,
            Failure::Host(error) => error.kind(),
        }));
        points::after(&step)?;
        done
    }

    async fn run(&self, call: Call<'_>) -> Result<Vec<u8>, Failure> {
        let started = Instant::now();
        let mut process = self.start(&call).await?;
        let mut output = Output::default();
        let ended = tokio::time::timeout(call.limit, process.finish(&call.input, &mut output)).await;
        let result = match ended {
            Ok(Ok(status)) => output.outcome(status),
            Ok(Err(error)) => {
                Err(Error::from(error).context(format!("wait for plugin {:?}", call.plugin)).into())
            }
            Err(_) => {
                process.kill().await;
                let limit = call.limit.as_secs_f32();
                let message = format!("plugin {:?} did not end within {limit} s and was killed", call.plugin);
                Err(deadline(message).into())
            }
        };
        let elapsed_ms = started.elapsed().as_millis() as u64;
        let stderr = String::from_utf8_lossy(&output.stderr.bytes);
        trace::note(&Span::current(), "stderr", || stderr.trim().to_owned());
        match &result {
            Ok(_) => debug!(elapsed_ms, stderr = stderr.trim(), "the plugin succeeded"),
            Err(failure) => warn!(elapsed_ms, stderr = stderr.trim(), ?failure, "the plugin failed"),
        }
        result
    }

    async fn start(&self, call: &Call<'_>) -> Result<Process> {
        let mut attempt = 1;
        loop {
            let (plugins, plugin) = (self.clone(), call.plugin.to_owned());
            let environment = environment(call, &self.path);
            // Looking up and loading the binary reads from the disk.
            let spawned = on_disk(Disk::Cni, move || {
                let binary = plugins.find(&plugin)?;
                let spawned = spawn(&binary, environment);
                match spawned {
                    Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => Ok(Err(error)),
                    other => other.map(Ok).context(|| format!("run plugin {binary:?}")),
                }
            });
            match spawned.await? {
                Ok(process) => return Ok(process),
                Err(error) if attempt == BUSY_TRIES => {
                    return Err(error).context(|| format!("run plugin {:?}", call.plugin));
                }
                Err(_) => tokio::time::sleep(BUSY_PAUSE).await,
            }
            attempt += 1;
        }
    }
}

/// The variables of the specification (CNI-10). All are set, empty where a verb has no
/// use for them, so that none of ours shines through.
fn environment(call: &Call<'_>, path: &OsString) -> [(&'static str, OsString); 6] {
    let args: Vec<String> =
        call.endpoint.args.iter().map(|(name, value)| format!("{name}={value}")).collect();
    [
        ("CNI_COMMAND", call.verb.as_str().into()),
        ("CNI_CONTAINERID", call.endpoint.container.clone().into()),
        ("CNI_NETNS", call.endpoint.netns.clone().into()),
        ("CNI_IFNAME", call.endpoint.interface.clone().into()),
        ("CNI_ARGS", args.join(";").into()),
        ("CNI_PATH", path.clone()),
    ]
}

fn spawn(binary: &Path, environment: [(&'static str, OsString); 6]) -> std::io::Result<Process> {
    let child = Command::new(binary)
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    Ok(Process { group, child })
}

/// A running plugin; dropping it kills its process group.
struct Process {
    /// None as soon as the process has ended: its id may then be another's.
    group: Option<Pid>,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_group();
    }
}

impl Process {
    fn kill_group(&mut self) {
        if let Some(group) = self.group.take() {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }

    async fn kill(&mut self) {
        self.kill_group();
        if tokio::time::timeout(KILL_LIMIT, self.child.wait()).await.is_err() {
            warn!(pid = self.child.id(), "a killed plugin does not vanish");
        }
    }

    /// Writes `input`, reads until the process ends, and gives its status.
    async fn finish(&mut self, input: &[u8], output: &mut Output) -> std::io::Result<ExitStatus> {
        let mut stdin = self.child.stdin.take();
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        let status = {
            let talk = async {
                tokio::join!(
                    async {
                        if let Some(mut stdin) = stdin.take() {
                            // A plugin need not read it.
                            let _ = stdin.write_all(input).await;
                        }
                    },
                    read(stdout.as_mut(), &mut output.stdout),
                    read(stderr.as_mut(), &mut output.stderr),
                );
                // Closed output does not mean that it has ended.
                std::future::pending::<std::convert::Infallible>().await
            };
            tokio::select! {
                status = self.child.wait() => status?,
                never = talk => match never {},
            }
        };
        self.group = None;
        // What it wrote is in the pipes; who else may hold them open is not waited for.
        output.stdout.drain(stdout.as_ref());
        output.stderr.drain(stderr.as_ref());
        Ok(status)
    }
}

async fn read(from: Option<&mut (impl AsyncRead + Unpin)>, to: &mut Capture) {
    let Some(from) = from else { return };
    let mut buffer = vec![0; 8 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        to.push(&buffer[..count]);
    }
}

/// The kept beginning of a stream.
struct Capture {
    bytes: Vec<u8>,
    limit: usize,
    is_cut: bool,
}

impl Capture {
    fn new(limit: usize) -> Capture {
        Capture { bytes: Vec::new(), limit, is_cut: false }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = self.limit - self.bytes.len();
        self.is_cut |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Takes what is in the pipe `from`, which does not block, as far as there is room.
    fn drain(&mut self, from: Option<&impl AsFd>) {
        let Some(from) = from else { return };
        let mut buffer = [0; 4 << 10];
        while let Ok(count @ 1..) = rustix::io::read(from, &mut buffer) {
            self.push(&buffer[..count]);
            if self.is_cut {
                return;
            }
        }
    }
}

struct Output {
    stdout: Capture,
    stderr: Capture,
}

impl Default for Output {
    fn default() -> Output {
        Output { stdout: Capture::new(STDOUT_BYTES_MAX), stderr: Capture::new(STDERR_BYTES_MAX) }
    }
}

impl Output {
    fn outcome(&mut self, status: ExitStatus) -> Result<Vec<u8>, Failure> {
        if !status.success() {
            return Err(Failure::Plugin(complaint(&self.stdout.bytes, &self.stderr.bytes, status)));
        }
        if self.stdout.is_cut {
            let message = format!("the plugin printed more than {STDOUT_BYTES_MAX} bytes");
            return Err(unknown(message).into());
        }
        Ok(std::mem::take(&mut self.stdout.bytes))
    }
}

/// What a plugin that ended with `status` complains of: JSON on standard output, or else
/// whatever text there is.
fn complaint(stdout: &[u8], stderr: &[u8], status: ExitStatus) -> Complaint {
    const TEXT_BYTES_MAX: usize = 1024;
    if let Ok(complaint) = serde_json::from_slice::<Complaint>(stdout)
        && complaint != Complaint::default()
    {
        return Complaint { is_structured: true, ..complaint };
    }
    // What matters mostly stands last.
    let end = |bytes: &[u8]| {
        let text = bytes.trim_ascii();
        String::from_utf8_lossy(&text[text.len().saturating_sub(TEXT_BYTES_MAX)..]).into_owned()
    };
    let text =
        [end(stderr), end(stdout)].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    let msg = if text.is_empty() { format!("{status} and no message") } else { format!("{status}: {text}") };
    Complaint { msg, ..Complaint::default() }
}

/// A code that is no number must not cost us the message.
fn lenient_code<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Ok(serde_json::Value::deserialize(from)?.as_u64().unwrap_or(0))
}

#[cfg(test)]
mod tests;
