//! `longshore explain`

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::serve::Flags;
use crate::config::{Config, INSTALLED};
use crate::explain::{self, Explanation, Ids, ImageFiles, Node, manifest, read};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A container's or pod's config as crictl takes it, a manifest of Kubernetes (JSON or YAML),
    /// or the id of a container or pod, or the beginning of one.
    #[arg(value_name = "FILE|ID")]
    what: PathBuf,
    /// The config of the pod that the container is in.
    #[arg(value_name = "POD-CONFIG")]
    pod: Option<PathBuf>,
    /// The runtime handler of the pod; without one the default handler.
    #[arg(long, value_name = "NAME", default_value = "")]
    handler: String,
    #[command(flatten)]
    node: NodeArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The server that is meant, and what is told of the image.
#[derive(Debug, Args)]
pub(super) struct NodeArguments {
    /// The server's configuration file; without one /etc/longshore/longshore.toml, if it is
    /// there, else the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// The config of the image (the JSON that its manifest names), instead of containerd's.
    #[arg(long, value_name = "FILE")]
    image_config: Option<PathBuf>,
    /// The image's /etc/passwd.
    #[arg(long, value_name = "FILE")]
    passwd: Option<PathBuf>,
    /// The image's /etc/group.
    #[arg(long, value_name = "FILE")]
    group: Option<PathBuf>,
}

impl NodeArguments {
    pub(super) async fn look(self) -> anyhow::Result<(Node, Ids)> {
        let usual = Path::new(INSTALLED);
        let path = self.config.or_else(|| usual.exists().then(|| usual.to_owned()));
        let config = Config::load(path.as_deref(), &self.flags.into())?;
        let ids = Ids::unknown(&config);
        let files = ImageFiles { config: self.image_config, passwd: self.passwd, group: self.group };
        Ok((Node::look(config, files).await?, ids))
    }
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let text = runtime.block_on(explained(arguments))?;
    // What still hangs in the kernel does not hold the end.
    runtime.shutdown_background();
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

async fn explained(arguments: Arguments) -> anyhow::Result<String> {
    if !arguments.what.exists() {
        let (mut node, _) = arguments.node.look().await?;
        let recorded = node.recorded(&arguments.what.to_string_lossy()).await?;
        let explanation = explain::explain(&mut node, &recorded.requests, &recorded.ids).await?;
        return shown(&explanation, arguments.json);
    }
    let (first, second, handler) = (
        read::file(&arguments.what)?,
        arguments.pod.as_deref().map(read::file).transpose()?,
        arguments.handler,
    );
    let (mut node, ids) = arguments.node.look().await?;
    let requests = match (read::kind(&first), read::is_container(&first), &second) {
        (Some(_), _, None) => manifest::requests(&first, &handler, &node.around(&handler)?)?,
        (None, true, pod) => read::configs(Some(&first), pod.as_ref(), &handler)?,
        (None, false, None) => read::configs(None, Some(&first), &handler)?,
        (_, _, Some(_)) => bail!("{:?} is no container config: it names no image", arguments.what),
    };
    let explanation = explain::explain(&mut node, &requests, &ids).await?;
    shown(&explanation, arguments.json)
}

fn shown(explanation: &Explanation, json: bool) -> anyhow::Result<String> {
    Ok(match json {
        true => serde_json::to_string_pretty(explanation)? + "\n",
        false => explain::text(explanation),
    })
}
