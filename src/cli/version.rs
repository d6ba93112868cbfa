//! `longshore version`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use crate::config::{Config, Overrides};
use crate::proto::cri::runtime_service_client::RuntimeServiceClient;
use crate::proto::cri::{StatusRequest, VersionRequest};

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
        Ok(Ok((server, containerd, runtime))) => {
            println!("server:     longshore {server} at {}", socket.display());
            println!("containerd: {containerd}");
            println!("as runtime: {runtime}");
        }
        Ok(Err(error)) => println!("server:     not reachable at {}: {error:#}", socket.display()),
        Err(_) => println!("server:     no answer at {} within {} s", socket.display(), LIMIT.as_secs()),
    }
    Ok(())
}

async fn ask(socket: &Path) -> anyhow::Result<(String, String, String)> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let channel =
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.map_err(cause)?;
    let mut client = RuntimeServiceClient::new(channel);
    let version = client.version(VersionRequest { version: "v1".into() }).await?.into_inner();
    let info = client.status(StatusRequest { verbose: true }).await?.into_inner().info;
    let text = |key: &str| info.get(key).and_then(|value| serde_json::from_str::<String>(value).ok());
    let server = text("longshore").unwrap_or_else(|| "(another CRI server)".to_owned());
    let containerd = text("containerd").unwrap_or_else(|| "not reachable".to_owned());
    Ok((server, containerd, format!("{} {}", version.runtime_name, version.runtime_version)))
}

/// The innermost cause: tonic's own text is only "transport error".
fn cause(error: tonic::transport::Error) -> anyhow::Error {
    let mut innermost = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        innermost = cause.to_string();
        source = cause.source();
    }
    anyhow::anyhow!(innermost)
}
