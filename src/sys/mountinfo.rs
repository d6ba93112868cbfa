//! The mount table of this process, `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// A mount point and its propagation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountPoint {
    /// Where it is.
    pub path: PathBuf,
    /// Mounts below it are passed on to its peers.
    pub shared: bool,
    /// It receives mounts from a master.
    pub slave: bool,
}

/// All mounts, in the order of the table: later ones lie over earlier ones.
///
/// # Errors
/// When /proc cannot be read.
pub fn read() -> Result<Vec<MountPoint>> {
    let table = std::fs::read("/proc/self/mountinfo").context(|| "read the mount table")?;
    Ok(parse(&table))
}

/// Whether something is mounted at `path` itself. What does not exist is no mount point.
///
/// # Errors
/// The file system's.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    // The table has no links.
    let real = match path.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.context(|| format!("resolve {path:?}"))?,
    };
    Ok(read()?.iter().any(|mount| mount.path == real))
}

/// The mount that `path` is on: the last one of those with the longest path.
#[must_use]
pub fn containing(table: &[MountPoint], path: &Path) -> MountPoint {
    let above = table.iter().filter(|mount| path.starts_with(&mount.path));
    above.max_by_key(|mount| mount.path.as_os_str().len()).cloned().unwrap_or_default()
}

/// The options of the file system at the mount point `path`, those that all its mounts
/// share; none where nothing is mounted, or the table cannot be read.
#[must_use]
pub fn super_options(path: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut lines =
        table.lines().filter(|text| line(text.as_bytes()).is_some_and(|mount| mount.path == path));
    let options = lines.next_back().and_then(|text| text.split(" - ").nth(1)?.split(' ').nth(2));
    options.map(|options| options.split(',').map(str::to_owned).collect()).unwrap_or_default()
}

fn parse(table: &[u8]) -> Vec<MountPoint> {
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// `id parent major:minor root path options tag… - type source options`
fn line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = unescape(fields.nth(4)?);
    let _options = fields.next()?;
    let mut found = MountPoint { path, ..MountPoint::default() };
    for tag in fields.take_while(|field| *field != b"-") {
        found.shared |= tag.starts_with(b"shared:");
        found.slave |= tag.starts_with(b"master:");
    }
    Some(found)
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupMount {
    /// Where it is.
    pub path: PathBuf,
    /// The cgroup that is seen there; `/` for the whole hierarchy.
    pub root: PathBuf,
    /// Its controllers; empty for the unified hierarchy of version 2.
    pub controllers: Vec<String>,
    /// Whether it is of version 2.
    pub is_unified: bool,
}

/// All mounted cgroup hierarchies, in the order of the table.
///
/// # Errors
/// When /proc cannot be read.
pub fn cgroups() -> Result<Vec<CgroupMount>> {
    let table = std::fs::read("/proc/self/mountinfo").context(|| "read the mount table")?;
    Ok(parse_cgroups(&table))
}

/// The hierarchies in a mount table.
#[must_use]
pub fn parse_cgroups(table: &[u8]) -> Vec<CgroupMount> {
    table.split(|byte| *byte == b'\n').filter_map(cgroup).collect()
}

/// The options of a version 1 file system name its controllers.
fn cgroup(line: &[u8]) -> Option<CgroupMount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let path = unescape(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let is_unified = match rest.next()? {
        b"cgroup2" => true,
        b"cgroup" => false,
        _ => return None,
    };
    let options = String::from_utf8_lossy(rest.nth(1)?);
    let controllers = if is_unified { Vec::new() } else { options.split(',').map(str::to_owned).collect() };
    Some(CgroupMount { path, root, controllers, is_unified })
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let digits = text.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(value.unwrap_or(byte));
        at += if value.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 8:1 / /a rw shared:5 - ext4 /dev/sda rw
3 2 8:1 / /a/b\\040c rw master:5 propagate_from:2 - ext4 /dev/sda rw
broken
";

    #[test]
    fn a_path_is_on_its_nearest_mount() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 3);
        let of = |path: &str| {
            let mount = containing(&table, Path::new(path));
            (mount.path, mount.shared, mount.slave)
        };
        assert_eq!(of("/x"), ("/".into(), false, false));
        assert_eq!(of("/ab"), ("/".into(), false, false));
        assert_eq!(of("/a/x"), ("/a".into(), true, false));
        assert_eq!(of("/a/b c/d"), ("/a/b c".into(), false, true));
    }

    #[test]
    fn the_machines_own_table_has_a_root() {
        assert!(read().expect("readable").iter().any(|mount| mount.path == Path::new("/")));
        assert_eq!(is_mount_point(Path::new("/proc/self/root/proc")), Ok(true));
        assert_eq!(is_mount_point(Path::new("/proc/sys")), Ok(false));
        assert_eq!(is_mount_point(Path::new("/there/is/no/such/path")), Ok(false));
    }
}
