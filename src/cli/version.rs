//! `longshore version`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::check::server::{Answer, ask};
use crate::config::{Config, Overrides};

/// How long the server may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration file that names the server's socket.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The server's socket.
    #[arg(long, value_name = "SOCKET")]
    listen: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    println!("client:     longshore {}", env!("CARGO_PKG_VERSION"));
    let overrides = Overrides { listen: arguments.listen, ..Overrides::default() };
    let config = Config::load(arguments.config.as_deref(), &overrides)?;
    let socket = config.file.server.listen;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(async { tokio::time::timeout(LIMIT, ask(&socket)).await });
    match asked {
        Ok(Ok(Answer { longshore, containerd, runtime })) => {
            let server = longshore.unwrap_or_else(|| "(another CRI server)".to_owned());
            let containerd = containerd.unwrap_or_else(|| "not reachable".to_owned());
            println!("server:     longshore {server} at {}", socket.display());
            println!("containerd: {containerd}");
            println!("as runtime: {runtime}");
        }
        Ok(Err(error)) => println!("server:     not reachable at {}: {error:#}", socket.display()),
        Err(_) => println!("server:     no answer at {} within {} s", socket.display(), LIMIT.as_secs()),
    }
    Ok(())
}
