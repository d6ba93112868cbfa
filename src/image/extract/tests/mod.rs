pub(crate) mod archive;

use std::io::{Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::containerd::Mount;
use crate::error::canceled;
use crate::image::digest;
use archive::{Archive, entry, file, folder, hard_link, opaque, symlink, whiteout};

/// A target in a folder of its own, with a folder beside it that nobody may touch.
struct Place {
    dir: TempDir,
    /// What the kernel changes with everything that is done to the other folder.
    canary: Vec<(i64, i64)>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("folder");
        for name in ["root", "upper", "work", "lower", "canary"] {
            std::fs::create_dir(dir.path().join(name)).expect("folder");
        }
        std::fs::write(dir.path().join("canary/file"), "untouched").expect("file");
        let canary = changes(dir.path());
        Place { dir, canary }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn whole(&self) -> Target {
        target("bind", &self.path("root").display().to_string(), vec!["rw".into(), "rbind".into()])
    }

    fn overlay(&self) -> Target {
        let option = |key: &str, name: &str| format!("{key}={}", self.path(name).display());
        let options =
            vec![option("workdir", "work"), option("upperdir", "upper"), option("lowerdir", "lower")];
        target("overlay", "overlay", options)
    }

    fn must_be_untouched(&self) {
        let canary = self.path("canary");
        let names: Vec<_> =
            std::fs::read_dir(&canary).expect("reads").flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(changes(self.dir.path()), self.canary);
        assert_eq!(std::fs::read_to_string(canary.join("file")).expect("reads"), "untouched");
        let mut names: Vec<_> =
            std::fs::read_dir(self.dir.path()).expect("reads").flatten().map(|e| e.file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "lower", "root", "upper", "work"]);
    }
}

fn changes(dir: &Path) -> Vec<(i64, i64)> {
    let of = |name| std::fs::symlink_metadata(dir.join(name)).expect("there");
    ["canary", "canary/file"].map(of).iter().map(|status| (status.ctime(), status.ctime_nsec())).collect()
}

fn target(kind: &str, source: &str, options: Vec<String>) -> Target {
    let mount = Mount { kind: kind.into(), source: source.into(), target: String::new(), options };
    Target::of(&[mount]).expect("a target (needs Linux 5.6)")
}

fn run(bytes: Vec<u8>, packing: Packing, target: &Target) -> Result<Extracted> {
    extract(Cursor::new(bytes), packing, target)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("compresses");
    gzip.finish().expect("compresses")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).expect("compresses")
}

fn is_unsupported<T: fmt::Debug>(result: Result<T>) -> bool {
    match result {
        Err(Failure::Unsupported(_)) => true,
        Err(Failure::Failed(_)) => false,
        Ok(value) => panic!("{value:?}"),
    }
}

#[test]
fn packings_are_those_of_containerds_media_types() {
    let (oci, docker) = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.");
    for (media_type, want) in [
        (format!("{oci}v1.tar"), Some(Packing::Plain)),
        (format!("{oci}v1.tar+gzip"), Some(Packing::Detected)),
        (format!("{oci}v1.tar+zstd"), Some(Packing::Detected)),
        (format!("{oci}nondistributable.v1.tar"), Some(Packing::Plain)),
        (format!("{oci}nondistributable.v1.tar+gzip"), Some(Packing::Detected)),
        (format!("{docker}diff.tar"), Some(Packing::Detected)),
        (format!("{docker}diff.tar.gzip"), Some(Packing::Detected)),
        (format!("{docker}foreign.diff.tar.gzip"), Some(Packing::Detected)),
        (format!("{oci}v1.tar+encrypted"), None),
        (format!("{oci}v1.tar+gzip+encrypted"), None),
        (format!("{docker}diff.tar.gzip+encrypted"), None),
        (format!("{oci}v1.tar+bzip2"), None),
        ("application/vnd.erofs.layer.v1".into(), None),
        (String::new(), None),
    ] {
        assert_eq!(Packing::of(&media_type), want, "{media_type}");
    }
}

#[test]
fn the_digest_is_that_of_the_whole_plain_stream_however_it_is_packed() {
    let large: Vec<u8> =
        (0..3_000_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let plain =
        [Archive::of([file("large", &large)]).end(), vec![0; 9000], b"what follows".to_vec()].concat();
    let want = Extracted { diff_id: digest::of(&plain), bytes: plain.len() as u64 };
    let (a, b) = plain.split_at(1_000_001);
    let skipped = b"\x5a\x2a\x4d\x18\x05\0\0\0skip!";
    for (packing, bytes) in [
        (Packing::Plain, plain.clone()),
        (Packing::Detected, plain.clone()),
        (Packing::Detected, gzip(&plain)),
        (Packing::Detected, [gzip(a), gzip(b), gzip(b"")].concat()),
        (Packing::Detected, zstd(&plain)),
        (Packing::Detected, [skipped.to_vec(), zstd(a), skipped.to_vec(), zstd(b)].concat()),
    ] {
        let place = Place::new();
        assert_eq!(run(bytes, packing, &place.whole()).expect("extracted"), want);
        assert!(std::fs::read(place.path("root/large")).expect("reads") == large);
    }
    let nothing = run(Vec::new(), Packing::Detected, &Place::new().whole()).expect("an empty layer");
    assert_eq!((nothing.diff_id, nothing.bytes), (digest::of(b""), 0));
    // A plain type is not looked at, as by containerd.
    assert!(!is_unsupported(run(gzip(&plain), Packing::Plain, &Place::new().whole())));
}

#[test]
fn what_is_not_decompressed_here_is_left_to_containerd() {
    let plain = Archive::of([file("a", vec![7; 100_000])]).end();
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let mut wide = zstd::stream::Encoder::new(Vec::new(), 3).expect("an encoder");
    wide.window_log(27).expect("a window");
    wide.write_all(&plain).expect("compresses");
    for bytes in [
        cut(gzip(&plain)),
        cut(zstd(&plain)),
        [gzip(&plain), b"garbage".to_vec()].concat(),
        [zstd(&plain), b"garbage".to_vec()].concat(),
        wide.finish().expect("compresses"),
    ] {
        assert!(is_unsupported(run(bytes, Packing::Detected, &Place::new().whole())));
    }
}

#[test]
fn an_input_that_fails_is_told_as_it_failed() {
    struct Broken(Cursor<Vec<u8>>);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other(canceled("gone"))),
                length => Ok(length),
            }
        }
    }
    let plain = Archive::of([file("a", vec![7; 1_000_000])]).bytes();
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain), Vec::new()] {
        let input = Broken(Cursor::new(bytes[..bytes.len() / 2].to_vec()));
        match extract(input, Packing::Detected, &Place::new().whole()) {
            Err(Failure::Failed(error)) => assert_eq!(error, canceled("gone")),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_feed_that_is_dropped_ends_the_extraction() {
    let place = Place::new();
    let target = place.whole();
    let (feed, fed) = feed();
    let extraction = tokio::task::spawn_blocking(move || extract(fed, Packing::Plain, &target));
    let archive = Archive::of([file("a", "b"), file("large", vec![1; 3_000_000])]).bytes();
    assert!(feed.send(archive[..2_000_000].to_vec().into()).await);
    drop(feed);
    match extraction.await.expect("no panic") {
        Err(Failure::Failed(error)) => assert_eq!(error.kind(), Kind::Canceled, "{error}"),
        other => panic!("{other:?}"),
    }
    // The other way round: a failed extraction takes no more.
    let (feed, fed) = super::feed();
    let target = place.whole();
    let extraction = tokio::task::spawn_blocking(move || extract(fed, Packing::Plain, &target));
    assert!(feed.send(vec![1; 3_000_000].into()).await);
    assert!(extraction.await.expect("no panic").is_err());
    while feed.send(vec![1; 3_000_000].into()).await {}
    // Whole, but much larger than it came, and nobody waits.
    let bomb = gzip(&Archive::of([file("zeros", vec![0; 400 << 20])]).end());
    let (feed, fed) = super::feed();
    let target = place.whole();
    let extraction = tokio::task::spawn_blocking(move || extract(fed, Packing::Detected, &target));
    assert!(feed.send(bomb.into()).await);
    feed.end().await;
    drop(feed);
    assert!(extraction.await.expect("no panic").is_err());
    let written = std::fs::metadata(place.path("root/zeros")).map_or(0, |status| status.len());
    assert!(written < 300 << 20, "{written}");
}

#[test]
fn a_full_disk_is_told_as_one() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().to_owned();
    let result = crate::sys::mount::private_namespace(move || {
        crate::sys::mount::tmpfs(&path, "size=1m")?;
        let target = target("bind", &path.display().to_string(), vec!["rw".into()]);
        let bytes = Archive::of([file("large", vec![1; 3 << 20])]).end();
        match run(bytes, Packing::Plain, &target) {
            Err(Failure::Failed(error)) => Ok(error),
            other => panic!("{other:?}"),
        }
    });
    let error = result.expect("a mount (needs root)");
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert_eq!(error.message(), "write \"large\": No space left on device");
}

#[test]
fn attributes_are_set_whatever_the_umask() {
    let place = Place::new();
    let long = "n".repeat(250);
    let bytes = Archive::of([
        folder("d/").mode(0o2777).owner(7, 8),
        file("d/f", "x").mode(0o6777).owner(1000, 1001).xattr("user.a", "b").mtime(5),
        symlink("d/l", "f").owner(3, 4).mtime(6),
        entry(b'6', "d/fifo").mode(0o666),
        hard_link("d/h", "d/f").mode(0o4711).owner(9, 9).mtime(7),
        file(format!("{long}/{long}"), ""),
    ]);
    run(bytes.end(), Packing::Plain, &place.whole()).expect("extracted");
    let of = |name: &str| {
        let status = std::fs::symlink_metadata(place.path("root").join(name)).expect(name);
        (status.permissions().mode() & 0o7777, status.uid(), status.gid(), status.mtime())
    };
    assert_eq!(of("d"), (0o2777, 7, 8, 1_000_000_000));
    assert_eq!((of("d/f"), of("d/h")), ((0o4711, 9, 9, 7), (0o4711, 9, 9, 7)));
    assert_eq!((of("d/l").1, of("d/l").3), (3, 6));
    assert_eq!(of("d/fifo").0, 0o666);
    assert_eq!(of(&long).0, 0o755);
}

#[test]
fn folders_that_are_not_named_are_those_of_the_layer_below() {
    let place = Place::new();
    let lower = place.path("lower/a/b");
    std::fs::create_dir_all(&lower).expect("folder");
    std::os::unix::fs::chown(&lower, Some(12), Some(34)).expect("owner (needs root)");
    std::fs::set_permissions(&lower, std::fs::Permissions::from_mode(0o1711)).expect("mode");
    std::os::unix::fs::symlink("/../../../canary", place.path("lower/out")).expect("link");
    let bytes = Archive::of([file("a/b/c/f", ""), whiteout("out/", "file"), opaque("out/")]);
    run(bytes.end(), Packing::Plain, &place.overlay()).expect("extracted");
    let of = |name: &str| {
        let status = std::fs::symlink_metadata(place.path("upper").join(name)).expect(name);
        (status.permissions().mode() & 0o7777, status.uid(), status.gid())
    };
    assert_eq!(of("a/b"), (0o1711, 12, 34));
    assert_eq!((of("a"), of("a/b/c"), of("out")), ((0o755, 0, 0), (0o755, 0, 0), (0o755, 0, 0)));
    let whiteout = std::fs::symlink_metadata(place.path("upper/out/file")).expect("a device");
    assert_eq!((whiteout.mode(), whiteout.rdev()), (0o020_000, 0));
    let mut value = [0; 8];
    let length = rustix::fs::lgetxattr(place.path("upper/out"), "trusted.overlay.opaque", &mut value);
    assert_eq!(length.map(|length| value[..length].to_vec()), Ok(b"y".to_vec()));
    place.must_be_untouched();
}

/// Layers that try to get out; `@` is the folder that nobody may touch.
fn escapes() -> Vec<Archive> {
    let links =
        ["@", "../canary", "../../../../../../../../../../..@", "/proc/self/root@", "/proc/self/cwd/../..@"];
    let mut list = Vec::new();
    for to in links {
        let out = || symlink("out", to);
        list.push(Archive::of([out(), file("out/new", "x")]));
        list.push(Archive::of([out(), file("out/file", "x").mode(0o4777).owner(1, 1)]));
        list.push(Archive::of([out(), folder("out/")]));
        list.push(Archive::of([out(), folder("out/new/")]));
        list.push(Archive::of([out(), symlink("out/new", "/")]));
        list.push(Archive::of([out(), whiteout("out/", "file")]));
        list.push(Archive::of([out(), opaque("out/")]));
        list.push(Archive::of([out(), hard_link("out/new", "out/file")]));
        list.push(Archive::of([out(), hard_link("inner", "out/file").mode(0o4777).owner(1, 1)]));
        list.push(Archive::of([file("f", "x"), out(), hard_link("out/new", "f")]));
        list.push(Archive::of([out(), entry(b'3', "out/new").device(1, 3)]));
        list.push(Archive::of([out(), entry(b'6', "out/new")]));
        list.push(Archive::of([
            out(),
            symlink("again", "out/file"),
            file("again", "x"),
            hard_link("l", "again"),
        ]));
        list.push(Archive::of([symlink("file", format!("{to}/file")), entry(b'0', "file").data("x")]));
        list.push(Archive::of([
            symlink("file", format!("{to}/file")),
            hard_link("new", "file").mode(0o7777).owner(1, 1),
        ]));
        list.push(Archive::of([
            folder("d"),
            file("d/x", ""),
            out(),
            symlink("d", "out"),
            file("d/new", "x"),
        ]));
        list.push(Archive::of([symlink("a", "b"), symlink("b", to), file("a/new", "x"), folder("a/file")]));
        // The folder of before is another one by the time its times are set.
        list.push(Archive::of([folder("d").mtime(5), symlink("d", to)]));
        list.push(Archive::of([folder("e/d").mtime(5), symlink("e", format!("{to}/.."))]));
    }
    for name in [
        "../canary/file",
        "@/file",
        "../../../../../../..@/file",
        "a/../../canary/file",
        "./..//canary/new",
        "..",
    ] {
        list.push(Archive::of([file(name, "x").mode(0o4777).owner(1, 1)]));
        list.push(Archive::of([folder(name).mode(0o4777).owner(1, 1)]));
        list.push(Archive::of([hard_link("new", name).mode(0o4777).owner(1, 1)]));
        list.push(Archive::of([symlink("link", name), hard_link("new", "link").mode(0o4777).owner(1, 1)]));
        list.push(Archive::of([whiteout(name.trim_end_matches("file").trim_end_matches("new"), "file")]));
        list.push(Archive::of([file("x", "").pax("path", name)]));
        list.push(Archive::of([entry(b'L', "././@LongLink").data(name), file("x", "y")]));
        list.push(Archive::of([entry(b'g', "x").data(archive::record(b"path", name.as_bytes()))]));
    }
    list.push(Archive::of([whiteout("", "..")]));
    list.push(Archive::of([whiteout("d/", ".")]));
    list.push(Archive::of([whiteout("", "")]));
    list
}

#[test]
fn nothing_gets_out() {
    let count = escapes().len();
    for index in 0..count {
        for is_overlay in [false, true] {
            let place = Place::new();
            let canary = place.path("canary").display().to_string();
            let bytes = escapes().swap_remove(index).named(&canary).end();
            let target = if is_overlay { place.overlay() } else { place.whole() };
            let result = run(bytes, Packing::Plain, &target);
            place.must_be_untouched();
            // Whatever was made was made inside; where containerd fails is compared with
            // containerd itself.
            drop(result);
        }
    }
}

#[test]
fn memory_for_names_is_bounded() {
    let deep = "d/".repeat(300);
    let error = run(Archive::of([file(format!("{deep}f"), "")]).end(), Packing::Plain, &Place::new().whole());
    assert!(is_unsupported(error));
    let long = "n".repeat(300);
    assert!(!is_unsupported(run(Archive::of([file(long, "")]).end(), Packing::Plain, &Place::new().whole())));
}

#[test]
fn device_numbers_that_containerds_versions_take_differently_are_left_to_it() {
    let device = entry(b'3', "a").patch(329, b"\x80\0\0\x01\0\0\0\0");
    assert!(is_unsupported(run(Archive::of([device]).end(), Packing::Plain, &Place::new().whole())));
}

#[test]
fn an_entry_of_an_unknown_type_is_refused_by_name() {
    for kind in [b'7', b'D', b'M', b'z'] {
        let result = run(Archive::of([entry(kind, "odd")]).end(), Packing::Plain, &Place::new().whole());
        let Err(Failure::Failed(error)) = result else { panic!("{result:?}") };
        assert!(error.message().starts_with("\"odd\" in a layer is of the unknown type"), "{error}");
    }
}

#[test]
fn files_in_place_of_others_are_new_ones() {
    let place = Place::new();
    let bytes = Archive::of([
        file("a", "first"),
        hard_link("b", "a"),
        file("a", "second"),
        folder("d"),
        file("d/x/y/z", "deep"),
        symlink("d", "a"),
        symlink("l", "a"),
        file("l", "third"),
        file("f", ""),
        folder("f/"),
        file("f/inner", ""),
    ]);
    run(bytes.end(), Packing::Plain, &place.whole()).expect("extracted");
    let read = |name: &str| std::fs::read_to_string(place.path("root").join(name)).expect(name);
    assert_eq!(
        (read("a"), read("b"), read("d"), read("l")),
        ("second".into(), "first".into(), "second".into(), "third".into())
    );
    assert!(Path::new(&place.path("root/f/inner")).exists());
}
