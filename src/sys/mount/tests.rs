use super::*;
use std::fs;

/// Whether mounts can be made; says so where not.
fn may_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: not root");
    }
    is_root
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn options_are_sorted_and_later_ones_win() {
    let options = Options::parse(&texts(&["rbind", "ro", "nosuid", "rw", "rprivate", "index=off"]))
        .expect("valid options");
    assert!(options.is_bind && options.is_recursive);
    assert_eq!(options.flags(), MountFlags::NOSUID);
    assert_eq!(options.propagation, Some(MountPropagationFlags::PRIVATE | MountPropagationFlags::REC));
    assert_eq!(options.data, ["index=off"]);
    assert!(Options::parse(&texts(&["uidmap=0:1000:1"])).is_err());
}

#[test]
fn the_common_folder_never_cuts_a_name() {
    let of = |paths: &[&str]| common_folder(paths.iter().copied());
    assert_eq!(of(&["/s/1/fs", "/s/12/fs"]).as_deref(), Some("/s/"));
    assert_eq!(of(&["/s/1/fs", "/s/1/fs2"]).as_deref(), Some("/s/1/"));
    assert_eq!(of(&["/a", "/b/c"]).as_deref(), Some("/"));
    assert_eq!(of(&["/s/", "/s/a"]).as_deref(), Some("/"));
    assert_eq!(of(&["a", "b"]), None);
}

fn folders(root: &Path, count: usize) -> Vec<String> {
    let long = "x".repeat(40);
    (0..count)
        .map(|i| {
            let folder = root.join(format!("{long}/{i}/fs"));
            fs::create_dir_all(&folder).expect("folder");
            fs::write(folder.join(format!("file-{i}")), i.to_string()).expect("file");
            folder.to_str().expect("UTF-8").to_owned()
        })
        .collect()
}

#[test]
fn an_overlay_of_more_layers_than_a_page_of_options_holds_is_mounted() {
    if !may_mount() {
        return;
    }
    let root = tempfile::tempdir().expect("folder");
    let lower = folders(root.path(), 120).join(":");
    assert!(lower.len() > OPTIONS_BYTES_MAX);
    let target = root.path().join("target");
    fs::create_dir(&target).expect("folder");
    let mount = Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec![format!("lowerdir={lower}")],
        ..Default::default()
    };
    let last = private_namespace(|| {
        mount_all(&[mount], &target)?;
        Ok(fs::read_to_string(target.join("file-119"))?)
    });
    assert_eq!(last.as_deref(), Ok("119"));
    // The mount went with its namespace.
    assert_eq!(fs::read_dir(&target).expect("readable").count(), 0);
    fs::remove_dir(&target).expect("nothing is mounted there");
}

#[test]
fn binds_are_read_only_when_asked_and_unmounting_is_idempotent() {
    if !may_mount() {
        return;
    }
    let root = tempfile::tempdir().expect("folder");
    let source = folders(root.path(), 1).remove(0);
    let target = root.path().join("target");
    fs::create_dir(&target).expect("folder");
    let mount = Mount { kind: "bind".into(), source, options: texts(&["rbind", "ro"]), ..Default::default() };
    mount_all(&[mount.clone(), mount], &target).expect("mounted twice");
    assert_eq!(
        fs::write(target.join("new"), "").map_err(|error| error.raw_os_error()),
        Err(Some(libc::EROFS))
    );
    unmount_all(&target).expect("unmounted");
    unmount_all(&target).expect("nothing there");
    fs::remove_dir(&target).expect("nothing is mounted there");
    unmount_all(&target).expect("not even the folder");
}

#[test]
fn a_mount_is_made_read_only_and_what_is_mounted_stays_writable() {
    if !may_mount() {
        return;
    }
    let root = tempfile::tempdir().expect("folder");
    let source = folders(root.path(), 1).remove(0);
    let target = root.path().join("target");
    fs::create_dir(&target).expect("folder");
    let mount = Mount {
        kind: "bind".into(),
        source: source.clone(),
        options: texts(&["bind"]),
        ..Default::default()
    };
    mount_all(&[mount], &target).expect("mounted");
    fs::write(target.join("before"), "").expect("writable");
    set_read_only(&target).expect("set");
    set_read_only(&target).expect("it is");
    let error = fs::write(target.join("after"), "").expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    fs::write(Path::new(&source).join("beside"), "").expect("writable");
    unmount_all(&target).expect("unmounted");
}

#[test]
fn everything_below_a_folder_is_unmounted_and_nothing_beside_it() {
    if !may_mount() {
        return;
    }
    let root = tempfile::tempdir().expect("folder");
    let place = |name: &str| {
        let place = root.path().join(name);
        fs::create_dir_all(&place).expect("folder");
        tmpfs(&place, "size=4096,mode=1777").expect("mounted");
        place
    };
    let (upper, beside) = (place("a"), place("ab"));
    let lower = place("a/b");
    // The kernel's table has no links.
    let link = root.path().join("link");
    std::os::unix::fs::symlink(root.path(), &link).expect("a link");
    unmount_below(&link.join("a")).expect("unmounted");
    unmount_below(&upper).expect("nothing there");
    unmount_below(&root.path().join("none")).expect("no folder");
    let is_mounted = |path: &Path| mountinfo::read().expect("table").iter().any(|mount| mount.path == path);
    assert!(!is_mounted(&upper) && !is_mounted(&lower) && is_mounted(&beside));
    unmount_all(&beside).expect("unmounted");
}

#[test]
fn a_list_that_fails_half_way_leaves_nothing() {
    if !may_mount() {
        return;
    }
    let root = tempfile::tempdir().expect("folder");
    let source = folders(root.path(), 1).remove(0);
    let target = root.path().join("target");
    fs::create_dir(&target).expect("folder");
    let good = Mount { kind: "bind".into(), source, options: texts(&["bind"]), ..Default::default() };
    let bad = Mount { kind: "bind".into(), source: "/nowhere/at/all".into(), ..good.clone() };
    let error = mount_all(&[good, bad], &target).expect_err("the second has no source");
    assert!(error.message().starts_with("mount \"/nowhere/at/all\" (bind) at"), "{error}");
    fs::remove_dir(&target).expect("nothing is mounted there");
}

#[test]
fn a_place_within_a_mount_cannot_lead_out_of_it() {
    if !may_mount() {
        return;
    }
    let root = tempfile::tempdir().expect("folder");
    let inner = root.path().join("inner");
    let outside = root.path().join("outside");
    for folder in [&inner, &outside] {
        fs::create_dir(folder).expect("folder");
    }
    std::os::unix::fs::symlink(&outside, inner.join("sub")).expect("link");
    let target = root.path().join("target");
    fs::create_dir(&target).expect("folder");
    let source = folders(root.path(), 1).remove(0);
    let bind = |source: &Path, place: &str| Mount {
        kind: "bind".into(),
        source: source.to_str().expect("UTF-8").into(),
        target: place.into(),
        options: texts(&["bind"]),
    };
    let result = private_namespace(|| {
        let result = mount_all(&[bind(&inner, ""), bind(Path::new(&source), "sub")], &target);
        assert_eq!(fs::read_dir(&outside).expect("readable").count(), 0);
        result
    });
    assert!(result.is_err(), "there is no such folder below the root");
}
