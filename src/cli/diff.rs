//! `longshore diff`

use std::io::Write;

use clap::Args;

use super::explain::NodeArguments;
use crate::explain::diff;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The id of a container or pod, or the beginning of one: longshore's, or containerd's own
    /// plugin's.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    node: NodeArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let text = runtime.block_on(async {
        let (mut node, _) = arguments.node.look().await?;
        let comparison = diff::diff(&mut node, &arguments.id).await?;
        anyhow::Ok(match arguments.json {
            true => serde_json::to_string_pretty(&comparison)? + "\n",
            false => comparison.text(),
        })
    })?;
    // What still hangs in the kernel does not hold the end.
    runtime.shutdown_background();
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
