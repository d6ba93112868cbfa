//! Plugins that outlive the server which has started them.
//!
//! A plugin has a process group of its own, and goes on when the server dies. An ADD that takes
//! its address after the next server's DEL would keep it for ever: nobody knows of it then.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::Instant;
use tracing::info;

use crate::error::{Result, deadline};
use crate::flow::{Disk, on_disk};
use crate::sys::processes;

/// How long killed plugins may take to vanish.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// Ends all plugins that run for `container`, and what they have started. The caller has none
/// running for it.
///
/// # Errors
/// DeadlineExceeded if one does not vanish.
pub(crate) async fn end_all(container: &str) -> Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let id = container.to_owned();
        let leaders = on_disk(Disk::Cni, move || Ok(leaders(&id))).await?;
        let Some(leader) = leaders.first() else { return Ok(()) };
        if Instant::now() > end {
            let pid = leader.as_raw_nonzero();
            return Err(deadline(format!("process {pid}, a CNI plugin of {container}, does not end")));
        }
        for leader in &leaders {
            info!(
                sandbox = container,
                pid = leader.as_raw_nonzero(),
                "ending a plugin of a server that was killed"
            );
            // It may just have ended.
            let _ = kill_process_group(*leader, Signal::KILL);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The plugins among the processes that were told of `container`: each leads its group, as it
/// was started, and no session. A daemon that a plugin has left behind is no plugin: others may
/// need it.
fn leaders(container: &str) -> Vec<Pid> {
    let told = processes::with_variable("CNI_CONTAINERID", container).into_iter();
    let is_plugin = |pid: &u32| {
        processes::group_and_session(*pid).is_some_and(|(group, session)| group == *pid && session != *pid)
    };
    told.filter(is_plugin).filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn plugins_of_a_pod_are_ended_and_nothing_else() {
        let sleep = |container: &str| {
            let mut command = Command::new("sleep");
            command.arg("100").env("CNI_CONTAINERID", container);
            command
        };
        let id = format!("stray-{}", std::process::id());
        let mut plugin = sleep(&id).process_group(0).spawn().expect("sleep");
        let mut other = sleep(&format!("{id}-other")).process_group(0).spawn().expect("sleep");
        // In nobody's group but the test's.
        let mut child = sleep(&id).spawn().expect("sleep");
        let mut daemon = Command::new("setsid")
            .args(["--wait", "sleep", "100"])
            .env("CNI_CONTAINERID", &id)
            .spawn()
            .expect("setsid");
        let waited = tokio::task::spawn_blocking(move || plugin.wait());
        end_all(&id).await.expect("ended");
        let status = waited.await.expect("no panic").expect("a status");
        assert_eq!(status.signal(), Some(9));
        for left in [&mut other, &mut child, &mut daemon] {
            assert!(left.try_wait().expect("a status").is_none(), "it runs");
            left.kill().expect("killed");
            left.wait().expect("a status");
        }
        end_all(&id).await.expect("nothing to do");
    }
}
