//! `longshore images`

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::admin;
use crate::config::{Config, Overrides};
use crate::image::{LayerState, PullState};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the pulls that the running server is busy with, and how far they are.
    Pulls(Pulls),
}

#[derive(Debug, Args)]
struct Pulls {
    /// The server's configuration file, for its state folder.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's state folder.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Print JSON, with every layer.
    #[arg(long)]
    json: bool,
    /// Print every layer, too.
    #[arg(long, conflicts_with = "json")]
    layers: bool,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Command::Pulls(arguments) = arguments.command;
    let overrides = Overrides { state: arguments.state, ..Overrides::default() };
    let config = Config::load(arguments.config.as_deref(), &overrides)?;
    let socket = admin::socket(&config.file.state);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pulls: Vec<PullState> = runtime.block_on(admin::client::get(&socket, "/v1/pulls"))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&pulls)?);
    } else if pulls.is_empty() {
        println!("no image is being pulled");
    } else {
        print!("{}", table(&pulls, arguments.layers));
    }
    Ok(())
}

/// One line a pull, and below it one a layer where that is asked for.
pub(super) fn table(pulls: &[PullState], with_layers: bool) -> String {
    let mut text = format!("{:>7}  {:>21}  {:>11}  {:>6}  IMAGE\n", "SECONDS", "BYTES", "RATE", "LAYERS");
    for pull in pulls {
        let done = pull.layers.iter().filter(|layer| layer.state == LayerState::Done).count();
        let there = pull.layers.iter().map(|layer| layer.received_bytes).sum();
        let bytes = format!("{} / {}", size(there), size(pull.total_bytes));
        let rate = format!("{}/s", size(pull.bytes_per_second as u64));
        let layers = format!("{done}/{}", pull.layers.len());
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "{:>7.0}  {bytes:>21}  {rate:>11}  {layers:>6}  {}", pull.seconds, pull.reference);
        for layer in pull.layers.iter().filter(|_| with_layers) {
            let bytes = format!("{} / {}", size(layer.received_bytes), size(layer.size));
            let state = format!("{:?}", layer.state).to_lowercase();
            let _ = writeln!(text, "{:>7}  {bytes:>21}  {state:>11}  {:>6}  {}", "", "", layer.digest);
        }
    }
    text
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::LayerProgress;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, want) in
            [(0, "0 B"), (999, "999 B"), (2048, "2.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn a_pull_is_a_line_and_its_layers_are_lines_below() {
        let layer = |digest: &str, received_bytes, state| LayerProgress {
            digest: digest.into(),
            size: 2 << 20,
            received_bytes,
            state,
        };
        let pulls = [PullState {
            reference: "r.io/a:1".into(),
            snapshotter: "overlayfs".into(),
            seconds: 3.2,
            received_bytes: 3 << 20,
            bytes_per_second: 1024.0 * 1024.0,
            total_bytes: 4 << 20,
            layers: vec![
                layer("sha256:a", 2 << 20, LayerState::Done),
                layer("sha256:b", 1 << 20, LayerState::Downloading),
            ],
        }];
        let lines: Vec<String> = table(&pulls, true)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "SECONDS BYTES RATE LAYERS IMAGE",
                "3 3.0 MiB / 4.0 MiB 1.0 MiB/s 1/2 r.io/a:1",
                "2.0 MiB / 2.0 MiB done sha256:a",
                "1.0 MiB / 2.0 MiB downloading sha256:b",
            ]
        );
        assert_eq!(table(&pulls, false).lines().count(), 2);
    }
}
