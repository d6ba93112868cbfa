//! The command line: one file a command.

mod check;
mod config;
mod diff;
mod explain;
mod images;
mod keeper;
mod ps;
mod record;
mod replay;
mod serve;
mod shadow;
mod trace;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::check::Mode;

/// A CRI server for Kubernetes nodes on an existing containerd.
#[derive(Debug, Parser)]
#[command(name = "longshore", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the CRI.
    Serve(serve::Arguments),
    /// Before the first start: say what on this node does not fit together. Changes nothing.
    Check(check::Arguments),
    /// On a node that runs: the same, and whether the server is well. Changes nothing.
    Doctor(check::Arguments),
    /// Print or check the configuration.
    Config(config::Arguments),
    /// Show what the server would do with a pod or container, and why. Does nothing.
    Explain(explain::Arguments),
    /// Compare the spec of a container with the one that would be made now. Changes nothing.
    Diff(diff::Arguments),
    /// Show what the server does with images.
    Images(images::Arguments),
    /// List pods, containers, pulls, and what each call that runs waits for.
    Ps(ps::Arguments),
    /// As ps, again and again.
    Top(ps::TopArguments),
    /// Keep a node's calls of the CRI in a file, between its client and its server.
    Record(record::Arguments),
    /// Play a record to a server, and compare the answers.
    Replay(replay::Arguments),
    /// Compare what a server tells of its node with what longshore would. Changes nothing.
    Shadow(shadow::Arguments),
    /// Show what each call of the CRI caused, and how long that took.
    Trace(trace::Arguments),
    /// Print the versions of this program and, when they answer, of the server and its containerd.
    Version(version::Arguments),
    /// Keep the output of containers (started by the server).
    #[command(hide = true)]
    Keeper(keeper::Arguments),
}

/// Runs the command line.
#[must_use]
pub fn run() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Check(arguments) => return ended(check::run(arguments, Mode::Check), 2),
        Command::Doctor(arguments) => return ended(check::run(arguments, Mode::Doctor), 2),
        Command::Replay(arguments) => return ended(replay::run(arguments), 2),
        Command::Shadow(arguments) => return ended(shadow::run(arguments), 2),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Config(arguments) => config::run(arguments),
        Command::Diff(arguments) => diff::run(arguments),
        Command::Explain(arguments) => explain::run(arguments),
        Command::Images(arguments) => images::run(arguments),
        Command::Ps(arguments) => ps::run(arguments),
        Command::Record(arguments) => record::run(arguments),
        Command::Top(arguments) => ps::top(arguments),
        Command::Trace(arguments) => trace::run(arguments),
        Command::Version(arguments) => version::run(arguments),
        Command::Keeper(arguments) => keeper::run(arguments),
    };
    ended(done.map(|()| ExitCode::SUCCESS), 1)
}

/// The exit status; `failed` with an error.
fn ended(done: anyhow::Result<ExitCode>, failed: u8) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("longshore: {error:#}");
        ExitCode::from(failed)
    })
}
