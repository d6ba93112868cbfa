//! `longshore record`

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::record::{Keep, Request, record};

/// Passes the CRI's calls on to a server, whichever it is, and keeps them in a file, without
/// their secrets. The client, such as the kubelet, is pointed at the socket of `--listen`.
/// Ends with SIGINT or SIGTERM.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file, which must not be there yet; for its owner alone.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The server's socket.
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    server: PathBuf,
    /// The socket for the client.
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    listen: PathBuf,
    /// Write also this, which may be secret; may be given several times.
    #[arg(long, value_name = "WHAT")]
    keep: Vec<Kept>,
    /// The largest file, in MiB. Calls go on without being recorded then.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    size_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kept {
    /// Values of environment variables.
    Env,
    /// What commands of ExecSync print.
    Output,
}

/// Takes a path, also as an address.
pub(super) fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    match path.is_empty() || path.contains("://") {
        true => Err("a path of a Unix socket".to_owned()),
        false => Ok(path.into()),
    }
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let keep =
        Keep { env: arguments.keep.contains(&Kept::Env), output: arguments.keep.contains(&Kept::Output) };
    let request = Request {
        listen: arguments.listen,
        server: arguments.server,
        file: arguments.file,
        keep,
        bytes_max: arguments.size_max.saturating_mul(1 << 20),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(record(request))
}
