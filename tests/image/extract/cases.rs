//! Layers made by hand: everything that can stand in one, and everything that can be
//! wrong with it.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::archive::{Archive, File, entry, file, folder, hard_link, opaque, record, symlink, whiteout};
use super::pair::{Pair, SNAPSHOTTERS, snapshots_of};
use crate::fixture::{Blob, digest};

/// What is expected of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is unpacked, by longshore itself.
    Good,
    /// It is refused, by both.
    Bad,
    /// Of overlayfs this, of native that.
    Either(&'static End, &'static End),
    /// The same by both.
    Any,
    /// longshore leaves it to containerd, which can.
    Left,
}

use End::{Any, Bad, Either, Good, Left};

struct Case {
    name: &'static str,
    end: End,
    layers: Vec<Vec<u8>>,
}

fn case<const N: usize>(name: &'static str, end: End, layers: [Archive; N]) -> Case {
    Case { name, end, layers: layers.into_iter().map(Archive::end).collect() }
}

fn one<const N: usize>(name: &'static str, end: End, files: [File; N]) -> Case {
    case(name, end, [Archive::of(files)])
}

fn layers<const N: usize>(name: &'static str, end: End, layers: [Vec<File>; N]) -> Case {
    case(name, end, layers.map(Archive::of))
}

async fn compare(cases: Vec<Case>) {
    let Some(mut pair) = Pair::start().await else { return };
    for case in cases {
        for (index, snapshotter) in SNAPSHOTTERS.into_iter().enumerate() {
            let name = format!("{} ({snapshotter})", case.name);
            let outcomes = pair.unpack(&case.layers, snapshotter).await;
            outcomes.must_be_equal(&name);
            let end = match case.end {
                Either(overlayfs, native) => *[overlayfs, native][index],
                end => end,
            };
            let is_good = outcomes.ours.is_ok();
            assert!(
                end == Any || is_good == (end != Bad),
                "{name}: {:?} {:?}",
                outcomes.ours,
                outcomes.theirs
            );
            match end {
                Good => assert_eq!(outcomes.unpacked, case.layers.len(), "{name}: left to containerd"),
                Left => assert!(outcomes.unpacked < case.layers.len(), "{name}: not left to containerd"),
                _ => {}
            }
        }
    }
    pair.node.must_have_no_leftovers().await;
}

#[tokio::test]
async fn files_of_all_types_and_their_attributes() {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let large: Vec<u8> = (0..700_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let each = || {
        vec![
            folder("d/").owner(1, 2).mode(0o2751),
            file("d/file", &large).owner(3, 4).mode(0o4755),
            file("d/empty", "").mode(0),
            symlink("d/link", "file").owner(5, 6),
            symlink("d/dangling", "/no/where").mtime(77),
            hard_link("d/hard", "d/file").owner(7, 8).mode(0o6711).mtime(9),
            hard_link("d/hard-link", "d/link").owner(9, 9).mode(0o600).mtime(10),
            entry(b'3', "d/null").device(1, 3).mode(0o666).owner(1, 1),
            entry(b'3', "d/big").device(4095, 1_048_575),
            entry(b'3', "d/cut").device(4096 + 7, (1 << 20) + 5),
            entry(b'4', "d/block").device(8, 300).mode(0o660),
            entry(b'6', "d/fifo").mode(0o4622),
            entry(b'6', "d/fifo-with-number").device(3, 4),
            entry(b'3', "d/zero").device(0, 0),
        ]
    };
    compare(vec![
        layers("each type", Good, [each()]),
        layers("each type twice", Good, [each(), each()]),
        one(
            "modes",
            Good,
            [
                folder("all").mode(0o7777),
                file("all/f", "x").mode(0o7777),
                folder("none").mode(0),
                file("none/f", "x").mode(0),
                file("with-type", "x").mode(0o100_640),
                folder("with-type-d").mode(0o040_710),
                file("dir-bits", "x").mode(0o040_640),
                file("wide", "x").patch(100, b"\xff\xff\xff\xff\xff\xff\xfe\x00"),
            ],
        ),
        one(
            "owners",
            Good,
            [
                file("a", "").owner(4_294_967_294, 2_097_152),
                file("b", "").owner(4_294_967_295, 4_294_967_295).mode(0o6755),
                file("c", "").pax("uid", "4294967301").pax("gid", "-5"),
                file("d", "").pax("uid", "-1").pax("gid", "-4294967290"),
                file("e", "").patch(108, b"\xff\xff\xff\xff\xff\xff\xff\xfe"),
                folder("f").owner(70_000, 4_294_967_295),
                symlink("g", "x").owner(4_294_967_295, 70_000),
            ],
        ),
        one(
            "times",
            Good,
            [
                file("a", "").pax("mtime", "1234567890.987654321").pax("atime", "1434567890.5"),
                file("b", "").pax("mtime", "1234567890").pax("atime", "1034567890.5"),
                file("c", "").pax("mtime", "-5.5"),
                file("d", "").pax("mtime", "9223372036.854775806"),
                file("e", "").pax("mtime", "9223372036.854775808").pax("atime", "5"),
                file("f", "").pax("mtime", "9223372036854775807").pax("atime", "-9223372036854775808"),
                symlink("g", "a").pax("mtime", "1234567890.1").pax("atime", "1634567890.2"),
                folder("h").pax("mtime", "1234567890.3"),
                file("h/f", ""),
                folder("i").mtime(0),
                entry(b'6', "j").pax("mtime", "1.000000001"),
                file("k", "").mtime(5).patch(257, b"ustar  \0").patch(345, b"00000000077\x0000000000066\0"),
                file("l", "").mtime(5).patch(257, b"ustar  \0").patch(345, b"prefix"),
                file("m", "")
                    .mtime(5)
                    .patch(345, b"star")
                    .patch(476, b"00000000077\x0000000000066\0")
                    .patch(508, b"tar\0"),
                file("n", "").patch(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"),
                file("o", "").patch(136, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
                hard_link("p", "a").mtime(99),
            ],
        ),
        one(
            "extended attributes",
            Good,
            [
                file("a", "x")
                    .xattr("user.a", "1")
                    .xattr("user.empty", "")
                    .xattr("user.a", "2")
                    .xattr("user.z", b"\0\xff"),
                folder("d").xattr("user.a", "1").xattr("security.capability", capability),
                file("cap", "x").mode(0o755).owner(1, 1).xattr("security.capability", capability),
                symlink("l", "a").xattr("user.a", "1").xattr("security.a", "2"),
                entry(b'6', "fifo").xattr("user.a", "1").xattr("security.a", "2"),
                entry(b'3', "null").device(1, 3).xattr("user.a", "1"),
                file("trusted", "").xattr("trusted.a", "1").xattr("trusted.overlay.opaque", "y"),
                file("none", "").xattr("nothing.a", "1").xattr("a", "2"),
                hard_link("h", "a").xattr("user.b", "3"),
                hard_link("hl", "l").xattr("user.b", "3").xattr("security.b", "4"),
                file("acl", "x").mode(0o640).xattr("system.posix_acl_access", acl),
                folder("acl-d").mode(0o750).xattr("system.posix_acl_default", acl),
                file("acl-d/f", "x").mode(0o600),
                folder("acl-d/d").mode(0o700),
                symlink("acl-l", "x").xattr("system.posix_acl_access", acl),
            ],
        ),
        one("an attribute without a name", Bad, [file("a", "").xattr("", "1")]),
        one("an attribute with half a name", Bad, [file("a", "").xattr("user.", "1")]),
        one("an access list that is none", Bad, [file("a", "").xattr("system.posix_acl_access", "x")]),
        one("capabilities that are none", Bad, [file("a", "").xattr("security.capability", "x")]),
        one("an attribute too large", Bad, [file("a", "").xattr("user.a", vec![b'x'; 70_000])]),
        one("an unknown type", Bad, [entry(b'7', "a").data("x")]),
        one("another unknown type", Bad, [entry(b'D', "a")]),
        one("the old types", Good, [entry(0, "a").data("x"), entry(0, "b/"), entry(b'0', "c/").data("y")]),
        one(
            "a global header",
            Good,
            [entry(b'g', "pax_global_header").data(record(b"comment", b"x")), file("a", "")],
        ),
    ])
    .await;
}

/// Something called `x` in `folder`, of each kind.
fn kinds(folder: &str) -> [(&'static str, Vec<File>); 9] {
    let name = |base: &str| format!("{folder}{base}");
    let comment = record(b"comment", b"x");
    [
        ("file", vec![file(name("x"), "content")]),
        ("folder", vec![self::folder(name("x")).mode(0o711), file(name("x/inner"), "1")]),
        ("symlink", vec![symlink(name("x"), "other")]),
        ("link to a folder", vec![symlink(name("x"), "other-d")]),
        ("hard link", vec![hard_link(name("x"), name("other"))]),
        ("device", vec![entry(b'3', name("x")).device(1, 3)]),
        ("FIFO", vec![entry(b'6', name("x"))]),
        ("global header", vec![entry(b'g', name("x")).data(comment)]),
        ("folder that is not named", vec![file(name("x/below"), "y")]),
    ]
}

#[tokio::test]
async fn what_is_in_the_way_is_replaced() {
    let base = |folder: &str| {
        vec![
            file(format!("{folder}other"), "other"),
            self::folder(format!("{folder}other-d")).mtime(4),
            file(format!("{folder}other-d/f"), ""),
        ]
    };
    // All that comes to a good end in one image, each in a folder of its own.
    let (mut same, mut lower, mut upper) = (Vec::new(), Vec::new(), Vec::new());
    let mut cases = Vec::new();
    for first in 0..9 {
        for second in 0..9 {
            let folder = format!("{first}-{second}/");
            let [(old_name, mut old), (name, mut new)] =
                [first, second].map(|index| kinds(&folder).into_iter().nth(index).expect("a kind"));
            let first = [base(&folder), std::mem::take(&mut old)].concat();
            let again = [base(&folder), std::mem::take(&mut new)].concat();
            // These fail, or can: a file is in the way, or a folder is gone that has times to
            // be set.
            if name == "folder that is not named" || (old_name, name) == ("folder", "global header") {
                cases.push(layers("in one layer", Any, [[first.clone(), again.clone()].concat()]));
                cases.push(layers("in two layers", Any, [first, again]));
            } else {
                same.extend([first.clone(), again.clone()].concat());
                lower.extend(first);
                upper.extend(again);
            }
        }
    }
    cases.push(layers("each by each", Good, [same]));
    cases.push(layers("each by each, in two layers", Good, [lower, upper]));
    compare(cases).await;
    compare(vec![
        one("a deep tree", Good, [file("t/a/b/c", "1"), file("t/a/d", "2"), symlink("t", "none")]),
        one(
            "the same file again and again",
            Good,
            [file("a", "1"), hard_link("b", "a"), file("a", "2"), file("a", "3").mode(0)],
        ),
        one(
            "a folder again",
            Good,
            [
                folder("d").mode(0o700).mtime(1).xattr("user.a", "1"),
                file("d/f", ""),
                folder("d/").mode(0o711).owner(1, 1).mtime(2),
            ],
        ),
        one(
            "a folder that became a link by the end",
            Good,
            [folder("a"), file("a/f", ""), folder("b").mtime(3), symlink("a", "b")],
        ),
        one("a folder that became a file by the end", Good, [folder("a").mtime(3), file("a", "x").mtime(9)]),
        one("a folder below one that is gone by the end", Bad, [folder("a/b"), file("a", "x")]),
        one(
            "a folder whose link leads elsewhere by the end",
            Good,
            [
                folder("x/d").mtime(1),
                folder("y/d").mtime(2),
                symlink("l", "x"),
                folder("l/d").mtime(3),
                symlink("l", "y"),
            ],
        ),
        one(
            "a folder in place of a link to it",
            Good,
            [folder("a"), file("a/f", ""), symlink("l", "a"), folder("l"), file("l/g", "")],
        ),
    ])
    .await;
}

#[tokio::test]
async fn whiteouts() {
    let base = || {
        vec![
            folder("d/").mode(0o711).owner(5, 6).xattr("user.d", "1"),
            file("d/a", "1"),
            file("d/b", "2"),
            folder("d/sub/").mode(0o700),
            file("d/sub/f", "3"),
            folder("d/sub/deep"),
            file("top", "4"),
            symlink("link", "d"),
            symlink("gone", "nowhere"),
        ]
    };
    let over = |name, end, files: Vec<File>| layers(name, end, [base(), files]);
    compare(vec![
        over("a file", Good, vec![whiteout("d/", "a")]),
        over("a file at the top", Good, vec![whiteout("", "top").owner(7, 8).mode(0o777)]),
        over("a folder", Good, vec![whiteout("d/", "sub")]),
        over("a link", Good, vec![whiteout("", "link"), whiteout("", "gone")]),
        over("what is not there", Good, vec![whiteout("d/", "none"), whiteout("new/folder/", "none")]),
        over("by a link to the folder", Good, vec![whiteout("link/", "a")]),
        over("before the file comes again", Good, vec![whiteout("d/", "a"), file("d/a", "new")]),
        over(
            "before the folder comes again",
            Good,
            vec![whiteout("d/", "sub"), folder("d/sub"), file("d/sub/new", "")],
        ),
        over(
            "before a file in the folder comes",
            Either(&Bad, &Good),
            vec![whiteout("d/", "sub"), file("d/sub/new", "")],
        ),
        over("after the file came", Either(&Bad, &Good), vec![file("d/a", "new"), whiteout("d/", "a")]),
        over("after the folder came", Bad, vec![folder("d/sub"), whiteout("d/", "sub")]),
        over("twice", Either(&Bad, &Good), vec![whiteout("d/", "a"), whiteout("d/", "a")]),
        over(
            "as a folder",
            Good,
            vec![folder("d/.wh.a"), symlink("d/.wh.b", "x"), hard_link(".wh.top", "none")],
        ),
        over("with content", Good, vec![whiteout("d/", "a").data("content"), file("z", "z")]),
        over("of unknown type", Good, vec![entry(b'7', "d/.wh.a").data("content")]),
        over("of a whiteout", Good, vec![whiteout("d/", ".wh.a"), file("d/x", "")]),
        over(
            "of what AUFS keeps",
            Good,
            vec![whiteout("", ".wh.aufs"), folder(".wh..wh.plnk"), file(".wh..wh.orph/f", "")],
        ),
        over("an opaque folder", Good, vec![folder("d"), opaque("d/"), file("d/new", "")]),
        over(
            "an opaque folder, said last",
            Good,
            vec![folder("d"), file("d/new", ""), folder("d/sub"), file("d/sub/new", ""), opaque("d/")],
        ),
        over("an opaque folder that is not named", Good, vec![opaque("d/"), file("d/new", "")]),
        over(
            "an opaque folder with folders that are not named",
            Good,
            vec![file("d/x/y/new", ""), opaque("d/")],
        ),
        over("an opaque folder that is new", Good, vec![opaque("n/m/"), file("n/m/f", "")]),
        over("all opaque", Good, vec![file("first", ""), opaque(""), file("second", "")]),
        over(
            "an opaque folder behind a link",
            Good,
            vec![symlink("link", "d"), file("d/new", ""), opaque("link/")],
        ),
        over("an opaque folder again", Good, vec![opaque("d/"), file("d/a", "5"), opaque("d/")]),
        over(
            "an opaque folder with a hard link",
            Either(&Bad, &Good),
            vec![hard_link("d/h", "d/a"), opaque("d/")],
        ),
        over("an opaque file", Either(&Good, &Bad), vec![opaque("top/")]),
        over("nothing", Bad, vec![file("d/.wh.", "")]),
        over("the folder", Bad, vec![file("d/.wh..", "")]),
        over("the parent", Bad, vec![file("d/.wh...", "")]),
        over("dots", Good, vec![file("d/.wh....", "")]),
        layers("of a whiteout's folder", Good, [base(), vec![whiteout("", "d")], vec![file("d/new", "")]]),
        layers(
            "in three layers",
            Good,
            [
                base(),
                vec![whiteout("d/", "sub"), folder("d")],
                vec![folder("d/sub").mode(0o755), file("d/sub/third", "")],
            ],
        ),
        layers(
            "below what is whited out",
            Either(&Bad, &Good),
            [base(), vec![whiteout("", "d")], vec![file("d/sub/new/f", "")]],
        ),
        layers(
            "a device 0/0 that is no whiteout",
            Good,
            [base(), vec![entry(b'3', "d/a").device(0, 0).mode(0o600)]],
        ),
    ])
    .await;
}

#[tokio::test]
async fn folders_that_are_not_named_take_after_the_layers_below() {
    let base = || {
        vec![
            folder("a").mode(0o1777).owner(1, 2).mtime(5),
            folder("a/b").mode(0o750).owner(3, 4).xattr("user.x", "1").xattr("security.y", "2"),
            folder("a/b/c").mode(0o2700).owner(5, 6),
            symlink("l", "a/b"),
            symlink("up", "../../../a"),
            symlink("dangling", "none/at/all"),
            symlink("loop", "loop"),
            file("f", ""),
        ]
    };
    compare(vec![
        layers("one layer below", Good, [base(), vec![file("a/b/c/d/new", "")]]),
        layers("two layers below", Good, [base(), vec![file("a/x", "")], vec![file("a/b/c/d/new", "")]]),
        layers(
            "changed in between",
            Good,
            [
                base(),
                vec![folder("a/b").mode(0o711).owner(9, 9).xattr("user.z", "3")],
                vec![file("a/b/c/new", "")],
            ],
        ),
        // A link below is not seen in an upper folder: a folder comes over it.
        layers(
            "a link below",
            Good,
            [base(), vec![file("l/c/new", ""), file("up/b/new", ""), file("dangling/new", "")]],
        ),
        layers("a loop below", Bad, [base(), vec![file("loop/new", "")]]),
        layers("a file below", Either(&Good, &Bad), [base(), vec![file("f/new", "")]]),
        layers("a file below, and deeper", Bad, [base(), vec![file("f/new/deeper", "")]]),
        layers("deep ones", Good, [base(), vec![file(format!("a/{}f", "d/".repeat(100)), "")]]),
    ])
    .await;
}

#[tokio::test]
async fn names() {
    let long = "n".repeat(255);
    compare(vec![
        one(
            "the root",
            Good,
            [
                folder("./").mode(0o700).owner(9, 9),
                folder("/").mode(0o700),
                folder(".").mode(0o700),
                folder("").mode(0o700),
                folder("..").mode(0o700),
                folder("../../").mode(0o700),
                file("/", "x"),
                file("a/..", "x"),
                symlink(".", "x"),
                folder("./d").mtime(4),
            ],
        ),
        one(
            "not clean",
            Good,
            [
                folder("./a//b/./"),
                file("a/b/../f", "1"),
                file("/abs/x", "2"),
                file("../../up/y", "3"),
                folder("//d///"),
                file("d//e", "4"),
                file("none/../z", "5"),
                file("a/b/", "6"),
                folder("/abs/").mode(0o700),
            ],
        ),
        one(
            "not text",
            Good,
            [
                file(b"\xff\xfe", ""),
                file("new\nline", ""),
                file("sp ace", ""),
                file("-", ""),
                file("\\", ""),
                file("a\u{1f980}", ""),
                symlink("l", b"\xff/\n"),
                file(b"d\xe4/f", ""),
            ],
        ),
        one(
            "long",
            Good,
            [
                file(format!("{long}/{long}/{long}/{long}"), "1"),
                entry(b'L', "././@LongLink").data(format!("{long}-cut")[4..].to_owned() + "\0"),
                file("short", "2"),
                symlink("l", "t".repeat(4000)),
                entry(b'K', "././@LongLink").data(format!("{long}\0")),
                symlink("k", "x"),
                file("u", "").patch(345, "p".repeat(155).as_bytes()),
            ],
        ),
        one("too long a part", Bad, [file("n".repeat(256), "")]),
        one("too long", Bad, [file(format!("{long}/").repeat(20) + "f", "")]),
        one("too long a link", Bad, [symlink("l", "t".repeat(4096))]),
        one("an empty link", Bad, [symlink("l", "")]),
        one("too deep for longshore", Left, [file("d/".repeat(300) + "f", "1")]),
        one("a name with a NUL", Bad, [file("x", "").pax("path", "a\0b")]),
        one("a name cut by a NUL", Good, [file("x", "").patch(0, b"a\0b")]),
        one(
            "global headers have names, too",
            Good,
            [
                folder("d"),
                file("d/f", ""),
                entry(b'g', "d/f").data(record(b"a", b"b")),
                entry(b'g', "new/g").data(record(b"a", b"b")),
                file("x", ""),
                entry(b'g', "y").data(record(b"path", b"x")),
            ],
        ),
        one("a global header that is a whiteout", Good, [entry(b'g', ".wh.x").data(record(b"a", b"b"))]),
        one(
            "a header that is lost to a global one",
            Good,
            [
                entry(b'x', "p").data(record(b"path", b"lost")),
                entry(b'g', "g").data(record(b"a", b"b")),
                file("found", ""),
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn links_in_names_and_hard_links() {
    let long = format!("d/{}f", "x/".repeat(60));
    compare(vec![
        one(
            "folders behind links",
            Good,
            [
                folder("d/e"),
                symlink("rel", "d/e"),
                symlink("abs", "/d"),
                symlink("up", "../../d"),
                symlink("d/back", "../rel"),
                file("rel/1", ""),
                file("abs/e/2", ""),
                file("up/e/3", ""),
                file("d/back/4", ""),
                folder("abs/new/").mtime(7),
                file("d/back/../5", ""),
                symlink("six", "rel/../7"),
                file("six/x", ""),
            ],
        ),
        one(
            "links to what is not there",
            Good,
            [
                symlink("a", "none/at/all"),
                file("a/f", ""),
                symlink("b", "/other/../none2"),
                file("b/g", ""),
                symlink("c", "missing/../there"),
                file("c/h", ""),
                symlink("e", "x/y/../../z"),
                file("e/i", ""),
            ],
        ),
        // What "missing" is matters to the second file, as the text is resolved.
        one(
            "a link that comes in between",
            Good,
            [symlink("c", "missing/../there"), file("c/1", ""), symlink("missing", "q/r"), file("c/2", "")],
        ),
        one(
            "a link that comes in between, and a folder whose name means another by the end",
            Bad,
            [symlink("c", "missing/../there"), symlink("missing", "q/r"), folder("c/d").mtime(6)],
        ),
        one(
            "chains of links",
            Good,
            [
                symlink("a", "b"),
                symlink("b", "c"),
                symlink("c", "d/e"),
                symlink("d", "f"),
                folder("f/e"),
                file("a/x", ""),
                symlink("f/e/up", ".."),
                file("a/up/y", ""),
                symlink("dots", "a/up/../z"),
                file("dots/w", ""),
            ],
        ),
        one(
            "a link through a link, up",
            Good,
            [
                folder("x/y/z"),
                symlink("a", "x/y"),
                symlink("b", "a/../q"),
                file("b/f", ""),
                symlink("x/y/t", "../../p"),
                symlink("m", "a/t/u"),
                file("m/g", ""),
                symlink("n", "a/z/../t"),
                file("n/h", ""),
            ],
        ),
        one("a loop", Bad, [symlink("a", "b"), symlink("b", "a"), file("a/x", "")]),
        one("a loop in a folder", Bad, [symlink("a", "a/b"), file("a/x", "")]),
        one("a file as a folder", Bad, [file("a", ""), file("a/x", "")]),
        one("a link to a file as a folder", Bad, [file("a", ""), symlink("l", "a"), file("l/x", "")]),
        one("a device as a folder", Bad, [entry(b'3', "a").device(1, 3), file("a/x/y", "")]),
        layers(
            "links of the layer below",
            Good,
            [
                vec![folder("d"), symlink("l", "d"), symlink("g", "gone")],
                vec![file("l/f", ""), file("g/f", "")],
                vec![file("l/g", ""), file("d/h", "")],
            ],
        ),
        one(
            "a hard link's way",
            Good,
            [
                file("d/e/f", "1"),
                symlink("l", "d/e"),
                symlink("a", "/d"),
                symlink("s", "d/e/f"),
                hard_link("1", "l/f"),
                hard_link("2", "/a/e/f"),
                hard_link("3", "../../d/e/f"),
                hard_link("4", "./d//e/./f"),
                hard_link("5", "s"),
                hard_link("6", "l/../e/f"),
                hard_link("l/7", "d/e/f"),
                hard_link("8", "d/none/../e/f"),
                hard_link("9", "d/e/f/"),
                hard_link(&long, "d/e/f"),
            ],
        ),
        one(
            "a hard link's way by text",
            Good,
            [
                folder("x/y"),
                file("x/f", "1"),
                file("f", "2"),
                symlink("a", "x/y"),
                hard_link("1", "a/../f"),
                hard_link("2", "/a/../f"),
                hard_link("3", "a/./../f"),
            ],
        ),
        one("a hard link to what comes later", Bad, [hard_link("a", "b"), file("b", "")]),
        one("a hard link to a folder", Bad, [folder("d"), hard_link("a", "d")]),
        one("a hard link to the root", Bad, [hard_link("a", "/")]),
        one("a hard link above the root", Bad, [hard_link("a", "..")]),
        one("a hard link to nothing", Bad, [hard_link("a", "")]),
        one("a hard link to itself", Bad, [file("a", ""), hard_link("a", "a")]),
        one("a hard link over its target's folder", Bad, [file("d/a", ""), hard_link("d", "d/a")]),
        one("a hard link to a dangling link", Good, [symlink("l", "none"), hard_link("a", "l")]),
        one("a hard link behind a dangling link", Bad, [symlink("l", "none"), hard_link("a", "l/x")]),
        one("a hard link's data", Good, [file("a", "1"), hard_link("b", "a").size(100), file("c", "2")]),
        one(
            "hard links to specials",
            Good,
            [
                entry(b'6', "p"),
                entry(b'3', "c").device(1, 5),
                hard_link("p2", "p").mode(0o600),
                hard_link("c2", "c").owner(4, 4),
            ],
        ),
        layers(
            "a hard link to the layer below",
            Either(&Bad, &Good),
            [vec![file("a", "1")], vec![hard_link("b", "a")]],
        ),
    ])
    .await;
}

#[tokio::test]
async fn archives_that_are_not_as_they_should_be() {
    let sparse = |data: &str| {
        file("s", data)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.realsize", "100000")
    };
    let map = |map: &str, data: &str| format!("{map:\0<512}{data}");
    let bytes = |name, end, archive: Archive| Case { name, end, layers: vec![archive.bytes()] };
    let a = || Archive::of([file("a", "x")]);
    compare(vec![
        one(
            "sparse files",
            Good,
            [
                sparse(&map("2\n10\n3\n50000\n4\n", "abcdefg")).pax("GNU.sparse.name", "named"),
                file("t", "ab")
                    .pax("GNU.sparse.map", "5,2")
                    .pax("GNU.sparse.numblocks", "1")
                    .pax("GNU.sparse.size", "7"),
                file("u", "")
                    .pax("GNU.sparse.map", "5,0")
                    .pax("GNU.sparse.numblocks", "1")
                    .pax("GNU.sparse.size", "9"),
                file("v", "ab").pax("GNU.sparse.major", "7").pax("GNU.sparse.minor", "0"),
            ],
        ),
        one("a sparse file with too little", Bad, [sparse(&map("1\n10\n3\n", "ab"))]),
        one("a sparse file with too much", Bad, [sparse(&map("1\n10\n3\n", "abcd"))]),
        one("a sparse file out of order", Bad, [sparse(&map("2\n10\n3\n5\n1\n", "abcd"))]),
        one("a sparse file of the old kind", Bad, [entry(b'S', "s")]),
        one("a size in a record", Good, [file("a", "abc").size(0).pax("size", "3"), file("b", "d")]),
        one("a negative size", Bad, [file("a", "").pax("size", "-3")]),
        one("records that are none", Bad, [entry(b'x', "p").data("10 a=b\n"), file("a", "")]),
        one("a time that is none", Bad, [file("a", "").pax("atime", "x")]),
        one("a change time that is none", Bad, [file("a", "").pax("ctime", "x")]),
        one("a number that is none", Bad, [file("a", "").patch(337, b"9")]),
        bytes("nothing", Good, Archive::default()),
        bytes("no end", Good, a()),
        bytes("half an end", Good, a().raw(&[0; 512])),
        bytes("an end and more", Good, a().raw(&[0; 1024]).raw(&[7; 3333])),
        bytes("an end in between", Bad, a().raw(&[0; 512]).with(file("b", ""))),
        bytes("a piece of an end", Bad, a().raw(&[0; 100])),
        bytes("a cut header", Bad, a().raw(&a().bytes()[..300])),
        bytes("a cut file", Bad, Archive::default().raw(&a().bytes()[..512])),
        bytes("a cut block", Good, Archive::default().raw(&a().bytes()[..513])),
        bytes(
            "a changed header",
            Bad,
            Archive::default().raw(&a().bytes().iter().map(|b| b ^ 1).collect::<Vec<_>>()),
        ),
        bytes("text", Bad, Archive::default().raw(&[b"this is no archive".repeat(100)].concat())),
    ])
    .await;
}

#[tokio::test]
async fn packings() {
    let Some(mut pair) = Pair::start().await else { return };
    let (oci, docker) =
        ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar");
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let plain = |bytes: &[u8]| bytes.to_vec();
    let gzips = |bytes: &[u8]| bytes.chunks(70_001).flat_map(gzip).collect();
    let skipped = b"\x5a\x2a\x4d\x18\x05\0\0\0skip!";
    let zstds = |bytes: &[u8]| {
        bytes.chunks(70_001).flat_map(|part| [skipped.to_vec(), zstd(part)].concat()).collect()
    };
    type Change<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let cases: [(String, Change<'_>, bool); 15] = [
        (oci.to_owned(), &plain, true),
        (foreign.to_owned(), &plain, true),
        (docker.to_owned(), &plain, true),
        (format!("{oci}+gzip"), &gzip, true),
        (format!("{oci}+zstd"), &zstd, true),
        (format!("{foreign}+gzip"), &gzip, true),
        (format!("{docker}.gzip"), &gzips, true),
        (format!("{oci}+zstd"), &zstds, true),
        // Not what the type says.
        (format!("{oci}+gzip"), &zstd, true),
        (format!("{oci}+zstd"), &plain, true),
        (docker.to_owned(), &gzip, true),
        (oci.to_owned(), &gzip, false),
        (format!("{oci}+gzip"), &|bytes| gzip(bytes)[..200].to_vec(), false),
        (format!("{oci}+gzip"), &|bytes| [&gzip(bytes)[..], b"garbage"].concat(), false),
        (format!("{oci}+zstd"), &|bytes| [&zstd(bytes)[..], b"garbage"].concat(), false),
    ];
    for (index, (media_type, pack, is_good)) in cases.into_iter().enumerate() {
        let mut data = Archive::of([file("a", vec![b'x'; 300_000]), folder("d")]).end();
        data.extend_from_slice(index.to_string().as_bytes());
        let blob = Blob { media_type: media_type.clone(), data: pack(&data), urls: Vec::new() };
        let outcomes = pair.unpack_blobs(vec![(blob, digest(&data))], "overlayfs").await;
        let name = format!("{index} {media_type}");
        outcomes.must_be_equal(&name);
        assert_eq!(outcomes.ours.is_ok(), is_good, "{name}: {:?} {:?}", outcomes.ours, outcomes.theirs);
        assert_eq!(outcomes.unpacked, usize::from(is_good), "{name}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("compresses");
    gzip.finish().expect("compresses")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).expect("compresses")
}

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
