//! `longshore config default|check`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{Config, Overrides};

/// The commented default configuration, as installed.
const DEFAULT: &str = include_str!("../../deploy/longshore.toml");

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the default configuration with comments.
    Default,
    /// Check a configuration file and say what is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Default => print!("{DEFAULT}"),
        Command::Check { file } => {
            Config::load(Some(&file), &Overrides::default())?;
            println!("{}: the configuration is valid", file.display());
        }
    }
    Ok(())
}
