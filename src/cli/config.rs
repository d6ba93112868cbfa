//! `longshore config default|check|import`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};

use crate::config::import::{self, Files, Generation};
use crate::config::{Config, Overrides};
use crate::containerd::Containerd;

/// How long containerd may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(2);

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
    /// Print the configuration of containerd's own CRI plugin as longshore's, and say what
    /// could not be carried over.
    Import {
        /// containerd's configuration.
        #[arg(default_value = "/etc/containerd/config.toml")]
        file: PathBuf,
        /// containerd's version, which decides what is meant by keys that are not written;
        /// without it containerd is asked.
        #[arg(long, value_name = "VERSION")]
        containerd_version: Option<String>,
    },
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Default => print!("{DEFAULT}"),
        Command::Check { file } => {
            let config = Config::load(Some(&file), &Overrides::default())?;
            for handler in &config.handlers {
                crate::spec::base(handler)?;
            }
            println!("{}: the configuration is valid", file.display());
        }
        Command::Import { file, containerd_version } => import(&file, containerd_version)?,
    }
    Ok(())
}

fn import(file: &Path, version: Option<String>) -> anyhow::Result<()> {
    let file = std::path::absolute(file)?;
    let files = Files::read(&file).map_err(|error| anyhow!(error))?;
    let (generation, known) = generation(&files, version)?;
    let imported = import::import(&files, generation, &known);
    print!("{}", imported.text);
    for lost in &imported.lost {
        eprintln!("longshore: {lost}");
    }
    for hint in &imported.hints {
        eprintln!("longshore: {hint}");
    }
    eprintln!("longshore: read as by {known}; {} not carried over", counted(imported.lost.len()));
    Config::from_text(&imported.text, Path::new("the result"), &Overrides::default())?;
    Ok(())
}

fn counted(keys: usize) -> String {
    if keys == 1 { "1 key was".to_owned() } else { format!("{keys} keys were") }
}

/// Which containerd reads the files, and how that is known. From format 3 on the file
/// tells; older ones are read by all.
fn generation(files: &Files, version: Option<String>) -> anyhow::Result<(Generation, String)> {
    if let Some(version) = version {
        return match Generation::of_version(&version) {
            Some(generation) => Ok((generation, format!("containerd {version}"))),
            None => bail!("--containerd-version {version:?}: is not a version, as 1.7.24 is"),
        };
    }
    let of_format = Generation::of_format(files.format());
    if of_format == Generation::Two {
        return Ok((of_format, "containerd 2.x".to_owned()));
    }
    let address = files.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async {
        Containerd::new(Path::new(&address), "k8s.io", VERSION_LIMIT).ok()?.version(VERSION_LIMIT).await.ok()
    });
    let known = asked.and_then(|version| Some((Generation::of_version(&version)?, version)));
    Ok(match known {
        Some((generation, version)) => {
            (generation, format!("containerd {version}, which answers at {address}"))
        }
        None => (of_format, format!("containerd 1.x, since nothing answers at {address}")),
    })
}
