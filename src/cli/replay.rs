//! `longshore replay`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::record::socket;
use crate::record::replay::{Request, replay};

/// Plays a record of `longshore record` to a server of the CRI, and compares the answers. Ends
/// with 0 where they are equal, with 1 where one differs, with 2 where nothing could be played.
/// It makes, stops and removes what the record does: to be used on a node without pods.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The record.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The server's socket.
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    to: PathBuf,
    /// So many times as fast as it was recorded.
    #[arg(long, value_name = "TIMES", default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// Each call as soon as those have ended that it came after.
    #[arg(long, conflicts_with = "speed")]
    as_fast_as_possible: bool,
    /// Another text for one of the record, such as a folder; may be given several times.
    #[arg(long, value_name = "FROM=TO", value_parser = replacement)]
    replace: Vec<(String, String)>,
    /// At the end, stop and remove the pods that were made and that the record leaves.
    #[arg(long)]
    clean: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if speed > 0.0 && f64::is_finite(speed) => Ok(speed),
        _ => Err("a number above 0".to_owned()),
    }
}

fn replacement(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err("FROM=TO".to_owned()),
    }
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let request = Request {
        file: arguments.file,
        target: arguments.to,
        speed: (!arguments.as_fast_as_possible).then_some(arguments.speed),
        replacements: arguments.replace,
        cleans: arguments.clean,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(replay(request))?;
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.text(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!report.is_same())))
}
