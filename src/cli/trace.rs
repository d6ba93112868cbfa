//! `longshore trace`

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;

use crate::admin;
use crate::config::{Config, Overrides};
use crate::trace::{Chrome, Figures, Filter, Look, Story, write_brief, write_story};

/// How many calls are shown where nothing else is asked for: as trees, and as lines.
const TREES: usize = 5;
const LINES: usize = 50;

/// What strace is for system calls, for the CRI: each call as a tree of what it caused, with
/// offsets from its arrival and durations. Calls that only look, such as lists, are shown when
/// they fail or are asked for.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The id of a call, or the one that an error names as `[trace ID]`.
    id: Option<String>,
    /// So many calls, the last ones; 0 for all that are kept.
    #[arg(short, value_name = "COUNT")]
    number: Option<usize>,
    /// Go on with calls as they end.
    #[arg(short, long)]
    follow: bool,
    /// Whole requests and ids, and what plugins read and wrote. Secrets are masked.
    #[arg(short, long)]
    verbose: bool,
    /// One line a call.
    #[arg(short, long, conflicts_with_all = ["verbose", "json", "perfetto"])]
    brief: bool,
    #[command(flatten)]
    filter: Filters,
    /// One line of JSON a call.
    #[arg(long, conflicts_with = "perfetto")]
    json: bool,
    /// A timeline for ui.perfetto.dev or chrome://tracing.
    #[arg(long, conflicts_with = "follow")]
    perfetto: bool,
    /// Whether there are colours.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
    /// The server's configuration file, for its state folder.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's state folder.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
struct Filters {
    /// Only calls of this pod: NAME, NAMESPACE/NAME or the beginning of its id.
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Only calls of this container: its name or the beginning of its id.
    #[arg(long, value_name = "CONTAINER")]
    container: Option<String>,
    /// Only calls of pods in this namespace.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only calls of this method, such as RunPodSandbox; in brackets, such as [exit], what
    /// the server does by itself.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Only calls that failed, or in which something did.
    #[arg(long)]
    errors: bool,
    /// Only calls that took longer, such as 100ms, 2s.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    slower_than: Option<Duration>,
    /// Also calls that only look and went well.
    #[arg(short, long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

/// Reads `100ms`, `2s`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let place = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..place].parse().map_err(|_| "a number with ms, s or m behind it".to_owned())?;
    let unit = match &text[place..] {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err("the unit must be us, ms, s or m".to_owned()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|error| error.to_string())
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let overrides = Overrides { state: arguments.state.clone(), ..Overrides::default() };
    let config = Config::load(arguments.config.as_deref(), &overrides)?;
    let socket = admin::socket(&config.file.state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shown = runtime.block_on(show(&socket, &arguments));
    match shown {
        // Who reads has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

async fn show(socket: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let filter = filter(arguments);
    let (mut found, mut next) = (Vec::new(), 0);
    loop {
        let (lines, after) = admin::client::calls(socket, next, false).await?;
        next = after;
        if lines.is_empty() {
            break;
        }
        found.extend(wanted(&lines, &filter)?);
    }
    if !filter.id.is_empty() {
        let running: Vec<Story> = admin::client::get(socket, "/v1/calls").await?;
        let running = running.into_iter().filter(|story| filter.wants(story));
        found.extend(running.map(|story| (serde_json::to_string(&story).unwrap_or_default(), story)));
    }
    let all = found.len();
    let count = match arguments.number {
        Some(0) => all,
        Some(number) => number,
        None if arguments.follow => 0,
        None if !filter.id.is_empty() => 1,
        None if arguments.json || arguments.perfetto => all,
        None if arguments.brief => LINES,
        None => TREES,
    };
    let last = &found[all.saturating_sub(count)..];
    if last.is_empty() && !filter.id.is_empty() {
        let Figures { dropped, .. } = admin::client::get(socket, "/v1/trace/figures").await?;
        bail!("no call with the id {} is kept ({dropped} were dropped for newer ones)", filter.id);
    }
    print(&text_of(last, arguments))?;
    if !filter.id.is_empty() && all > last.len() && !arguments.json && !arguments.perfetto {
        print(&format!("({} earlier calls with this error: -n 0)\n", all - last.len()))?;
    }
    if !arguments.follow {
        return Ok(());
    }
    loop {
        let (lines, after) = admin::client::calls(socket, next, true).await?;
        next = after;
        print(&text_of(&wanted(&lines, &filter)?, arguments))?;
    }
}

fn filter(arguments: &Arguments) -> Filter {
    let given = arguments.filter.clone();
    Filter {
        id: arguments.id.clone().unwrap_or_default().to_ascii_lowercase(),
        pod: given.pod.unwrap_or_default(),
        container: given.container.unwrap_or_default(),
        namespace: given.namespace.unwrap_or_default(),
        method: given.method.unwrap_or_default(),
        errors: given.errors,
        slower_than_us: given
            .slower_than
            .map_or(0, |limit| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)),
        all: given.all,
    }
}

/// The calls that are wanted, each with its line.
fn wanted(lines: &[u8], filter: &Filter) -> anyhow::Result<Vec<(String, Story)>> {
    let mut found = Vec::new();
    for line in std::str::from_utf8(lines).context("the server's answer")?.lines() {
        let story: Story = serde_json::from_str(line).context("the server's answer")?;
        if filter.wants(&story) {
            found.push((line.to_owned(), story));
        }
    }
    Ok(found)
}

fn text_of(calls: &[(String, Story)], arguments: &Arguments) -> String {
    let mut text = String::new();
    if arguments.perfetto {
        let mut chrome = Chrome::default();
        calls.iter().for_each(|(_, story)| chrome.add(story));
        return format!("{}\n", chrome.finish());
    }
    let color = match arguments.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let look = Look { color, verbose: arguments.verbose, zone: TimeZone::system() };
    for (line, story) in calls {
        if arguments.json {
            text.push_str(line);
            text.push('\n');
        } else if arguments.brief {
            write_brief(&mut text, story, &look);
        } else {
            write_story(&mut text, story, &look);
            text.push('\n');
        }
    }
    text
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "ms", "100", "1h", "-1s", "1.2.3s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
