//! Removing folders that may hold mounts.

use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Result};
use crate::flow::{Disk, on_disk};
use crate::points;
use crate::sys;
use crate::trace;

/// How long a folder that is still busy is tried again (SBX-46).
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Removes `path` and everything below it, unmounting what is mounted there first; a
/// folder that is gone is fine.
///
/// # Errors
/// Those of the file system; EBUSY only after some seconds of trying.
pub async fn remove_folder(path: &Path) -> Result<()> {
    let end = tokio::time::Instant::now() + BUSY_LIMIT;
    loop {
        let folder = path.to_owned();
        let result = on_disk(Disk::Root, move || {
            if !folder.try_exists().unwrap_or(true) {
                return Ok(Ok(()));
            }
            sys::mount::unmount_below(&folder).context(|| format!("folder {folder:?}"))?;
            let _step = trace::file("remove a folder", &folder);
            points::before("remove a folder")?;
            Ok(sys::remove::tree(&folder))
        })
        .await?;
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == std::io::ErrorKind::ResourceBusy && tokio::time::Instant::now() < end =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(error).context(|| format!("remove folder {path:?}")),
        }
    }
}
