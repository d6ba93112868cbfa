//! What of the layers below is hidden, and what is taken after.

use super::archive::{File, entry, file, folder, hard_link, opaque, symlink, whiteout};
use super::case::{Bad, Either, Good, compare, layers};

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
