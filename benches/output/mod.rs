//! What the benches of container output have in common: lines that can be told apart, a
//! keeper whose processor time is read, and a look into the log.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

/// A million, as in megabyte.
pub(crate) const MEGA: usize = 1_000_000;
/// A line of output, its newline included.
pub(crate) const LINE_BYTES: usize = 100;
/// What an entry has in front of it.
const PREFIX_BYTES: usize = "2026-01-02T03:04:05.000000006Z stdout F ".len();
const TIME_BYTES: usize = "2026-01-02T03:04:05.000000006Z".len();

/// The folder that the command line names; cargo adds flags of its own.
pub(crate) fn folder() -> PathBuf {
    let named = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    named.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

/// The program under measurement.
pub(crate) fn exe() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_longshore"))
}

/// About `bytes` of lines, each with its number.
pub(crate) fn numbered_lines(bytes: usize) -> Vec<u8> {
    lines_of(bytes, LINE_BYTES)
}

/// The same with lines of another length, newlines included: 12 at least.
pub(crate) fn lines_of(bytes: usize, line_bytes: usize) -> Vec<u8> {
    let mut lines = Vec::with_capacity(bytes);
    for number in 0..bytes / line_bytes {
        let start = lines.len();
        write!(lines, "{number:010} ").expect("memory takes it");
        lines.resize(start + line_bytes - 1, b'a' + (number % 26) as u8);
        lines.push(b'\n');
    }
    lines
}

/// Whether the log at `path` has all lines of `output` from each of so many streams, once
/// and in order, with times that rise.
pub(crate) fn check(path: &Path, output: &[u8], streams: usize) -> anyhow::Result<()> {
    let mut log = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut log)).context(format!("read {path:?}"))?;
    let mut rest = [output, output];
    let mut last = &b""[..];
    for (number, entry) in log.split_inclusive(|&byte| byte == b'\n').enumerate() {
        ensure!(entry.len() == PREFIX_BYTES + LINE_BYTES, "entry {number} has {} bytes", entry.len());
        let (prefix, content) = entry.split_at(PREFIX_BYTES);
        let (time, stream) = prefix.split_at(TIME_BYTES);
        ensure!(time > last, "entry {number} is not after the one before");
        last = time;
        let rest = &mut rest[usize::from(stream == b" stderr F ")];
        ensure!(rest.starts_with(content), "entry {number} is out of order");
        *rest = &rest[content.len()..];
    }
    ensure!(rest[..streams].iter().all(|rest| rest.is_empty()), "lines are missing");
    Ok(())
}

/// A keeper, ended with the value.
pub(crate) struct Process {
    child: Child,
    /// Without a client it would end by itself before long.
    client: Option<UnixStream>,
}

impl Process {
    /// Starts the keeper of the state folder `folder`.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Process> {
        let mut command = Command::new(exe());
        command.arg("keeper").arg("--socket").arg(folder.join("keeper.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        let ready = child.stdout.take().map(|mut stdout| stdout.read(&mut [0; 16]));
        let mut process = Process { child, client: None };
        ensure!(matches!(ready, Some(Ok(1..))), "the keeper does not start");
        process.client = Some(UnixStream::connect(folder.join("keeper.sock")).context("reach the keeper")?);
        Ok(process)
    }

    /// Processor time so far, in seconds.
    pub(crate) fn processor_s(&self) -> anyhow::Result<f64> {
        processor_s(self.child.id())
    }

    /// The most memory that it has had.
    pub(crate) fn memory_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(peak.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.client = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of a process so far, in seconds.
pub(crate) fn processor_s(pid: u32) -> anyhow::Result<f64> {
    // utime and stime, in ticks, of which a second has 100 for every program.
    let ticks = stat(pid, 11)? + stat(pid, 12)?;
    Ok(ticks as f64 / 100.0)
}

/// A field of the process's stat file, counted from the one after the name.
pub(crate) fn stat(pid: u32, field: usize) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    Ok(fields.split(' ').nth(field).context("a short stat file")?.parse()?)
}
