//! Layers that try to get out of their snapshot.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::archive::{Archive, entry, file, folder, hard_link, opaque, symlink, whiteout};
use super::pair::{Pair, SNAPSHOTTERS, snapshots_of};

#[tokio::test]
async fn nothing_gets_out_of_a_snapshot() {
    let Some(mut pair) = Pair::start().await else { return };
    let canary = pair.node.path().join("canary");
    std::fs::create_dir(&canary).expect("folder");
    std::fs::write(canary.join("file"), "untouched").expect("file");
    // The folder, in names and links.
    let path = "@";
    let mut archives = Vec::new();
    for to in [
        path.to_owned(),
        format!("../../../../../../../../../../..{path}"),
        format!("/proc/self/root{path}"),
        "../..".into(),
    ] {
        let out = || symlink("out", &to);
        archives.extend([
            Archive::of([out(), file("out/new", "x")]),
            Archive::of([out(), file("out/file", "x").mode(0o4777).owner(1, 1)]),
            Archive::of([out(), folder("out/new/"), folder("out/")]),
            Archive::of([out(), symlink("out/new", "/")]),
            Archive::of([out(), whiteout("out/", "file"), opaque("out/")]),
            Archive::of([out(), hard_link("inner", "out/file").mode(0o4777).owner(1, 1)]),
            Archive::of([file("f", "x"), out(), hard_link("out/new", "f")]),
            Archive::of([out(), entry(b'3', "out/new").device(1, 3)]),
            Archive::of([symlink("file", format!("{to}/file")), file("file", "x")]),
            Archive::of([
                symlink("file", format!("{to}/file")),
                hard_link("new", "file").mode(0o7777).owner(1, 1),
            ]),
            Archive::of([folder("d"), out(), symlink("d", "out"), file("d/new", "x")]),
            Archive::of([symlink("a", "b"), symlink("b", &to), file("a/new", "x"), folder("a/file")]),
            Archive::of([folder("d").mtime(5), symlink("d", &to)]),
        ]);
    }
    for name in
        [format!("../../../../../../../../..{path}/file"), format!("{path}/file"), "a/../../../x".into()]
    {
        archives.extend([
            Archive::of([file(&name, "x").mode(0o4777).owner(1, 1)]),
            Archive::of([hard_link("new", &name).mode(0o4777).owner(1, 1)]),
            Archive::of([file("x", "").pax("path", &name)]),
            Archive::of([entry(b'L', "././@LongLink").data(&name), file("x", "y")]),
        ]);
    }
    let before = (change_time(&canary), change_time(&canary.join("file")));
    for (index, archive) in archives.into_iter().enumerate() {
        for snapshotter in SNAPSHOTTERS {
            // Also over a layer with the link in it.
            let lower = Archive::of([symlink("low", path), file("low2", "")]);
            let upper = archive.clone().with(file("low/new", "x"));
            for layers in [vec![archive.clone()], vec![lower, upper]] {
                let layers: Vec<_> = layers
                    .into_iter()
                    .map(|layer| layer.named(&canary.display().to_string()).end())
                    .collect();
                let outcomes = pair.unpack(&layers, snapshotter).await;
                outcomes.must_be_equal(&format!("{index} {snapshotter}"));
            }
            for snapshot in
                std::fs::read_dir(snapshots_of(pair.node.path(), snapshotter)).expect("reads").flatten()
            {
                if snapshotter == "overlayfs" {
                    // containerd may be removing one that was made before.
                    let Ok(inner) = std::fs::read_dir(snapshot.path()) else { continue };
                    let inner = inner.flatten();
                    let mut names: Vec<_> =
                        inner.map(|entry| entry.file_name().into_string().expect("text")).collect();
                    names.sort();
                    assert!(names.iter().all(|name| name == "fs" || name == "work"), "{index}: {names:?}");
                }
            }
        }
        assert_eq!((change_time(&canary), change_time(&canary.join("file"))), before, "{index}");
    }
}

fn change_time(path: &Path) -> (i64, i64) {
    let status = std::fs::symlink_metadata(path).expect("there");
    (status.ctime(), status.ctime_nsec())
}
