//! The host's facts for a container, and the default AppArmor profile, which is loaded when
//! the first container needs it (OCI-19).
//!
//! The kernel keeps it until a reboot: afterwards it is found among the loaded ones. It is
//! not replaced when it is there, whoever made it.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;
use tracing::info;

use super::Containers;
use crate::error::{Context, Result, precondition};
use crate::flow;
use crate::proto::cri::ContainerConfig;
use crate::spec::Host;
use crate::spec::apparmor::{self, Around};
use crate::sys;
use crate::sys::apparmor::Support;

/// How long the parser may take; it takes a tenth of a second.
const PARSER_LIMIT: Duration = Duration::from_secs(60);

/// Held by who loads the default profile: the kernel has one for all.
static LOADING: Mutex<()> = Mutex::const_new(());

impl Containers {
    /// The host's facts, with those that change; loads the default profile if it is what
    /// the container gets.
    ///
    /// # Errors
    /// InvalidArgument for a profile of no known form; what the parser says.
    pub(super) async fn host_now(&self, config: &ContainerConfig, pause_pid: u32) -> Result<Host> {
        let mut host = self.host.clone();
        if host.apparmor == Support::Disabled {
            return Ok(host);
        }
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.clone());
        let context = context.unwrap_or_default();
        let asked = apparmor::asked(&context)?;
        look_again(&mut host).await?;
        if apparmor::lacks_default(&asked, context.privileged, &host) {
            let _alone = LOADING.lock().await;
            look_again(&mut host).await?;
            if apparmor::lacks_default(&asked, context.privileged, &host) {
                load_default(pause_pid)
                    .await
                    .context(|| format!("load AppArmor profile {:?}", apparmor::DEFAULT))?;
                look_again(&mut host).await?;
            }
        }
        Ok(host)
    }
}

/// Reads what may have changed: a package may have been installed, a profile loaded.
async fn look_again(host: &mut Host) -> Result<()> {
    if host.apparmor == Support::Absent {
        return Ok(());
    }
    let read = || Ok((sys::apparmor::support(), sys::apparmor::loaded()));
    (host.apparmor, host.apparmor_profiles) = flow::blocking(read).await?;
    Ok(())
}

async fn load_default(pause_pid: u32) -> Result<()> {
    let (text, parser) = flow::blocking(move || {
        let abi = sys::apparmor::has_policy_file(apparmor::ABI).then_some(apparmor::ABI);
        // Signals come from the shim, or from a runtime that it starts.
        let shim = sys::process::parent_of(pause_pid).and_then(sys::apparmor::profile_of);
        let around = Around { abi, senders: shim.into_iter().collect() };
        Ok((apparmor::default_profile(&around), sys::apparmor::parser()))
    })
    .await?;
    let parser = parser.ok_or_else(|| precondition("apparmor_parser is gone"))?;
    flow::limited(PARSER_LIMIT, parser, parse(parser, text)).await?;
    info!(profile = apparmor::DEFAULT, "AppArmor profile loaded");
    Ok(())
}

/// Has a profile compiled and put into the kernel, without a copy in the parser's cache.
async fn parse(parser: &'static str, text: String) -> Result<()> {
    let what = || format!("run {parser}");
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context(what)?;
    if let Some(mut input) = child.stdin.take() {
        // It says itself what is wrong when it does not read on.
        let _ = input.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.context(what)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(precondition(format!("{parser}: {}: {}", output.status, said.trim())))
}
