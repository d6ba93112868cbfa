//! Names and links, and where they lead.

use super::archive::{entry, file, folder, hard_link, record, symlink};
use super::case::{Bad, Either, Good, Left, compare, layers, one};

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
