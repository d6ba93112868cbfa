//! `longshore shadow`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::record::socket;
use super::serve::Flags;
use crate::config::{Config, INSTALLED, Overrides};
use crate::record::shadow::{Found, Request, Watch, look, plugin_folders};
use crate::trace::short;

/// Beside a node that another server runs, such as containerd's own plugin: asks that server,
/// and what longshore would answer in its place, again and again, and tells each difference
/// once. Ends with 0 where there was none, else with 1. It changes nothing.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The socket of the node's server.
    #[arg(long, value_name = "SOCKET", value_parser = socket, default_value = "/run/containerd/containerd.sock")]
    reference: PathBuf,
    /// longshore's configuration, as `longshore config import` makes it; without one
    /// /etc/longshore/longshore.toml, if it is there, else the defaults with the plugin's folders.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10.0)]
    delay: f64,
    /// So many looks, then the end; else until SIGINT.
    #[arg(short, value_name = "COUNT")]
    number: Option<usize>,
    /// Print each look as a line of JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let usual = Path::new(INSTALLED);
    let path = arguments.config.or_else(|| usual.exists().then(|| usual.to_owned()));
    let mut overrides = Overrides::from(arguments.flags);
    if path.is_none() {
        let (root, state) = plugin_folders();
        overrides.root.get_or_insert_with(|| root.to_owned());
        overrides.state.get_or_insert_with(|| state.to_owned());
    }
    let config = Config::load(path.as_deref(), &overrides)?;
    let request = Request { reference: arguments.reference, config };
    let delay = Duration::try_from_secs_f64(arguments.delay)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let watched = runtime.block_on(watch(&request, delay, arguments.number, arguments.json));
    // What still hangs in the kernel does not hold the end.
    runtime.shutdown_background();
    Ok(ExitCode::from(u8::from(watched?.differences() > 0)))
}

async fn watch(
    request: &Request,
    delay: Duration,
    number: Option<usize>,
    is_json: bool,
) -> anyhow::Result<Watch> {
    let mut watch = Watch::default();
    let mut out = std::io::stdout();
    loop {
        let found = tokio::select! {
            found = look(request) => found?,
            _ = tokio::signal::ctrl_c() => break,
        };
        let new = watch.new_in(&found);
        if is_json {
            writeln!(out, "{}", serde_json::to_string(&found)?)?;
        } else {
            let objects = &found.objects;
            writeln!(
                out,
                "look {}: {} pods, {} containers, {} images; {} questions, {} differences, {} new",
                watch.looks(),
                objects.pods,
                objects.containers,
                objects.images,
                found.questions,
                found.differences.len(),
                new.len()
            )?;
            for group in groups(&new) {
                let more = match group.len() {
                    0 | 1 => String::new(),
                    all => format!(" (and {} more)", all - 1),
                };
                writeln!(out, "  {}{more}", group.first().map(|it| line(it)).unwrap_or_default())?;
            }
        }
        out.flush()?;
        if number.is_some_and(|number| watch.looks() >= number) {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    if !is_json {
        writeln!(out, "{} looks, {} differences", watch.looks(), watch.differences())?;
    }
    Ok(watch)
}

/// Differences of one place together, in the order of the first of each.
fn groups<'a>(found: &[&'a Found]) -> Vec<Vec<&'a Found>> {
    let mut groups: Vec<Vec<&Found>> = Vec::new();
    for it in found {
        match groups.iter_mut().find(|group| group[0].place() == it.place()) {
            Some(group) => group.push(it),
            None => groups.push(vec![it]),
        }
    }
    groups
}

/// A difference for people.
fn line(found: &Found) -> String {
    let about = if found.object.is_empty() { String::new() } else { format!(" {}", short(&found.object)) };
    let value = |value: &serde_json::Value| match value.is_null() {
        true => "(nothing)".to_owned(),
        false => value.to_string(),
    };
    let Found { method, path, reference, candidate, .. } = found;
    format!("{method}{about} {path}: {} → {}", value(reference), value(candidate))
}
