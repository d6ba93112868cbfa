//! Layers that nobody would make by hand.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::archive::{Archive, File, entry, file, folder, hard_link, opaque, record, symlink, whiteout};
use super::pair::{Pair, SNAPSHOTTERS};

/// Images that are unpacked, each in two snapshotters by two unpackers.
const CASES: u32 = 40;

/// A folder's path, of few names, so that many meet; `l` is mostly a link.
fn folder_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![5 => Just("a"), 3 => Just("b"), 1 => Just("l")];
    proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"))
}

/// A path of something else. Rarely it is one of a folder.
fn path() -> impl Strategy<Value = String> {
    let base = prop_oneof![6 => Just("x"), 6 => Just("y"), 6 => Just("z"), 2 => Just("l"), 1 => Just("a")];
    (folder_path(), base, any::<bool>())
        .prop_map(|(folder, base, at_top)| if at_top { base.into() } else { format!("{folder}/{base}") })
}

/// A path as archives have them.
fn name(path: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let front =
        prop_oneof![20 => Just(""), 3 => Just("./"), 1 => Just("/"), 1 => Just("../"), 1 => Just("b/../")];
    (front, path).prop_map(|(front, path)| format!("{front}{path}"))
}

/// Where a link leads.
fn target() -> impl Strategy<Value = String> {
    let front =
        prop_oneof![4 => Just(""), 2 => Just("/"), 2 => Just("../"), 1 => Just("../../"), 1 => Just("c/../")];
    (front, path(), prop_oneof![8 => Just(""), 1 => Just("/.."), 1 => Just("/")])
        .prop_map(|(front, path, back)| format!("{front}{path}{back}"))
}

/// The folder of a path, with its slash.
fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |slash| &path[..=slash])
}

fn base(path: &str) -> &str {
    &path[parent(path).len()..]
}

fn one() -> impl Strategy<Value = File> {
    let link = (path(), any::<bool>())
        .prop_map(|(path, is_l)| if is_l { format!("{}l", parent(&path)) } else { path });
    let kind = prop_oneof![
        8 => (name(path()), any::<u8>()).prop_map(|(name, size)| file(name, vec![b'x'; usize::from(size) * 40])),
        8 => (name(folder_path()), any::<bool>()).prop_map(|(name, slash)| folder(name + if slash { "/" } else { "" })),
        4 => (name(link), target()).prop_map(|(name, to)| symlink(name, to)),
        1 => (name(path()), path()).prop_map(|(name, to)| hard_link(name, to)),
        1 => name(path()).prop_map(|name| entry(b'6', name)),
        1 => (name(path()), 0..3u64).prop_map(|(name, minor)| entry(b'3', name).device(minor, minor)),
        2 => name(path()).prop_map(|name| whiteout(parent(&name), base(&name))),
        1 => name(folder_path()).prop_map(|name| whiteout(parent(&name), base(&name))),
        1 => name(folder_path()).prop_map(|name| opaque(&format!("{name}/"))),
        1 => name(path()).prop_map(|name| entry(b'g', name).data(record(b"comment", b"x"))),
    ];
    let mode = prop_oneof![Just(0o755), Just(0o644), Just(0o4711), Just(0o1777), Just(0), Just(0o2750)];
    let xattr =
        prop_oneof![3 => Just(""), 1 => Just("user.a"), 1 => Just("security.b"), 1 => Just("trusted.c")];
    (kind, mode, 0..3u64, 0..3u64, 0..2_000_000_000u64, xattr).prop_map(
        |(file, mode, uid, gid, mtime, xattr)| {
            let file = file.mode(mode).owner(uid, gid).mtime(mtime);
            if xattr.is_empty() { file } else { file.xattr(xattr, "value") }
        },
    )
}

fn image() -> impl Strategy<Value = Vec<Archive>> {
    let layer = proptest::collection::vec(one(), 1..8).prop_map(Archive::of);
    proptest::collection::vec(layer, 1..5)
}

#[test]
fn random_layers() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Some(pair) = runtime.block_on(Pair::start()) else { return };
    let (pair, good) = (std::cell::RefCell::new(pair), std::cell::Cell::new(0));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Config::default()
    });
    let result = runner.run(&image(), |image| {
        let layers: Vec<_> = image.into_iter().map(Archive::end).collect();
        for snapshotter in SNAPSHOTTERS {
            let outcomes = runtime.block_on(pair.borrow_mut().unpack(&layers, snapshotter));
            if outcomes.ours.is_ok() {
                good.set(good.get() + 1);
                prop_assert_eq!(outcomes.unpacked, layers.len(), "left to containerd");
            }
            outcomes.must_be_equal(snapshotter);
        }
        Ok(())
    });
    eprintln!("{} of {} were good", good.get(), 2 * cases);
    if let Err(error) = result {
        panic!("{error}");
    }
    // The pair's daemons end in the runtime that they began in.
    runtime.block_on(async { drop(pair) });
}
