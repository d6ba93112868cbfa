use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::image::extract::tests::archive::{Archive, File, entry, file, folder, hard_link, record, symlink};

/// What is read of an archive: names with contents, holes as zeros.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(bytes);
    let mut list = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        for piece in &entry.pieces {
            match *piece {
                Piece::Hole(length) => content.resize(content.len() + length as usize, 0),
                Piece::Data(length) => reader.data(length, |data| {
                    content.extend_from_slice(data);
                    Ok(())
                })?,
            }
        }
        reader.must_be_read()?;
        list.push((entry, content));
    }
    reader.drain()?;
    Ok(list)
}

fn names(bytes: &[u8]) -> Result<Vec<String>> {
    let list = read(bytes)?;
    Ok(list.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.name).into_owned()).collect())
}

fn one(file: File) -> (Entry, Vec<u8>) {
    read(&Archive::of([file]).end()).expect("valid").pop().expect("an entry")
}

fn wrong(bytes: &[u8]) -> String {
    match read(bytes) {
        Err(Failure::Failed(error)) if error.kind() == Kind::Unknown => error.message().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn entries_have_what_their_headers_say() {
    let bytes = Archive::of([
        folder("d/").owner(5, 6),
        file("d/f", "content").mode(0o104_755).owner(3_000_000, u64::from(u32::MAX)),
        symlink("l", "d/f"),
        hard_link("h", "d/f"),
        entry(b'3', "c").device(8, 300),
    ]);
    let list = read(&bytes.end()).expect("valid");
    let kinds: Vec<u8> = list.iter().map(|(entry, _)| entry.kind).collect();
    assert_eq!(kinds, [FOLDER, REGULAR, SYMLINK, HARD_LINK, CHARACTER_DEVICE]);
    let (file, content) = &list[1];
    assert_eq!(
        (file.mode, file.uid, file.gid, content.as_slice()),
        (0o4755, 3_000_000, u32::MAX, &b"content"[..])
    );
    assert_eq!(list[3].0.link, b"d/f");
    assert_eq!((list[4].0.major, list[4].0.minor), (8, 300));
}

#[test]
fn records_go_over_fields_and_long_names_over_both() {
    let (entry, _) =
        one(file("a", "").pax("path", "b").pax("uid", "-1").pax("mtime", "5.5").pax("uid", "4294967297"));
    assert_eq!((entry.name.as_slice(), entry.uid), (&b"b"[..], 1));
    assert_eq!(
        (entry.times.last_modification.tv_sec, entry.times.last_modification.tv_nsec),
        (5, 500_000_000)
    );
    let long = |kind, name: &str| self::entry(kind, "././@LongLink").data(format!("{name}\0rest"));
    let bytes = Archive::of([
        long(b'L', "first"),
        long(b'L', "long"),
        long(b'K', "link"),
        hard_link("a", "b").pax("path", "c"),
    ]);
    let (entry, _) = read(&bytes.end()).expect("valid").pop().expect("an entry");
    assert_eq!((entry.name.as_slice(), entry.link.as_slice()), (&b"long"[..], &b"link"[..]));
    // An empty one says nothing; the size of the data is a record's, too.
    let (entry, content) = one(file("a", "123456").size(0).pax("path", "").pax("size", "6"));
    assert_eq!((entry.name.as_slice(), content.as_slice()), (&b"a"[..], &b"123456"[..]));
    // Extended attributes keep an empty value.
    let (entry, _) = one(file("a", "").xattr("user.x", "").xattr("user.y", "\0="));
    let text = |(key, value): &(Vec<u8>, Vec<u8>)| format!("{}={}", key.escape_ascii(), value.escape_ascii());
    assert_eq!(entry.xattrs.iter().map(text).collect::<Vec<_>>(), ["user.x=", "user.y=\\x00="]);
}

#[test]
fn records_count_for_one_entry_and_those_of_all_for_none() {
    let global = self::entry(b'g', "pax_global_header").data(record(b"uid", b"7"));
    let bytes = Archive::of([file("a", "").pax("uid", "5"), global, file("b", "")]).end();
    let list = read(&bytes).expect("valid");
    assert_eq!(
        list.iter().map(|(entry, _)| (entry.kind, entry.uid)).collect::<Vec<_>>(),
        [(b'0', 5), (b'g', 0), (b'0', 0)]
    );
    // It also takes away what was said for the next one.
    let lost = self::entry(b'L', "x").data("lost");
    let global = self::entry(b'g', "x").data(record(b"path", b"named"));
    assert_eq!(names(&Archive::of([lost, global, file("b", "")]).end()).expect("valid"), ["named", "b"]);
}

#[test]
fn old_types_are_files_or_folders_and_sizes_of_others_count_for_nothing() {
    assert_eq!(one(entry(0, "a").data("x")).0.kind, REGULAR);
    assert_eq!(one(entry(0, "a/")).0.kind, FOLDER);
    assert_eq!(one(entry(b'0', "a/")).0.kind, REGULAR);
    let bytes =
        Archive::of([folder("a").size(9999), symlink("b", "c").size(1), entry(b'7', "c").data("content")]);
    assert_eq!(names(&bytes.end()).expect("valid"), ["a", "b", "c"]);
}

#[test]
fn an_archive_ends_where_gos_reader_says() {
    let archive = || Archive::of([file("a", "x")]);
    let zeros = |count: usize| vec![0; 512 * count];
    for end in [zeros(0), zeros(1), zeros(2), [zeros(2), vec![1; 700]].concat()] {
        assert_eq!(names(&archive().raw(&end).bytes()).expect("valid"), ["a"]);
    }
    // The last block need not be filled up.
    let mut cut = archive().bytes();
    cut.truncate(513);
    assert_eq!(names(&cut).expect("valid"), ["a"]);
    assert!(names(b"").expect("valid").is_empty());
    for end in [vec![0; 100], [zeros(1), vec![1; 512]].concat(), vec![1; 512]] {
        wrong(&archive().raw(&end).bytes());
    }
    cut.truncate(512);
    assert!(wrong(&cut).ends_with("the archive ends in the middle of a file (before byte 512)"));
}

#[test]
fn sparse_files_are_read_in_their_formats() {
    let want = [&b"\0\0ab\0\0\0cd"[..], &[0; 5]].concat();
    let of = |file: File| one(file).1;
    let sparse = |data: &str| file("GNUSparseFile.0/s", data).pax("GNU.sparse.size", "14");
    let pairs = [("2", "2"), ("7", "2")];
    let format_0_0 =
        pairs.iter().fold(sparse("abcd").pax("GNU.sparse.numblocks", "2"), |file, (offset, length)| {
            file.pax("GNU.sparse.offset", offset).pax("GNU.sparse.numbytes", length)
        });
    assert_eq!(of(format_0_0), want);
    let format_0_1 = sparse("abcd").pax("GNU.sparse.numblocks", "2").pax("GNU.sparse.map", "2,2,7,2");
    assert_eq!(of(format_0_1.clone()), want);
    assert_eq!(of(format_0_1.clone().pax("GNU.sparse.major", "0").pax("GNU.sparse.minor", "1")), want);
    let with_map = |map: &str, data: &str| format!("{map:\0<512}{data}");
    let format_1_0 = |data: &str| {
        file("x", data)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.realsize", "14")
    };
    assert_eq!(of(format_1_0(&with_map("2\n2\n2\n7\n2\n", "abcd"))), want);
    // A version that nobody knows, and an empty map: not sparse.
    assert_eq!(of(sparse("ab").pax("GNU.sparse.major", "2").pax("GNU.sparse.minor", "0")), b"ab");
    assert_eq!(of(sparse("ab").pax("GNU.sparse.map", "")), b"ab");
    let (named, _) = one(format_0_1.clone().pax("GNU.sparse.name", "real"));
    assert_eq!(named.name, b"real");
    for broken in [
        format_0_1.clone().pax("GNU.sparse.map", "2,2,7,3"),
        format_0_1.clone().pax("GNU.sparse.map", "2,2,7,1"),
        format_0_1.clone().pax("GNU.sparse.map", "2,2"),
        format_0_1.clone().pax("GNU.sparse.map", "7,2,2,2"),
        format_0_1.clone().pax("GNU.sparse.size", "8"),
        format_0_1.clone().pax("GNU.sparse.numblocks", "x"),
        format_1_0("2\n2\n"),
        format_1_0(&with_map("-1\n", "")),
        File::clone(&symlink("l", "x").pax("GNU.sparse.numblocks", "0").pax("GNU.sparse.map", "0,0")),
    ] {
        wrong(&Archive::of([broken]).end());
    }
    let old = Archive::of([entry(b'S', "s")]).end();
    assert!(matches!(read(&old), Err(Failure::Unsupported(_))));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let ok = || Archive::of([file("a", "x")]);
    let negative = file("a", "").patch(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe");
    assert!(wrong(&ok().with(negative).end()).ends_with("a size is negative (before byte 1536)"));
    for file in [
        file("a", "").patch(108, b"x"),
        file("a", "").pax("uid", "x"),
        file("a", "").pax("mtime", "now"),
        file("a", "").pax("path", "a\0b"),
        file("a", "").pax("size", "-1"),
        entry(b'x', "a").data("no record"),
    ] {
        wrong(&ok().with(file).end());
    }
    let huge = entry(b'x', "a").data(record(b"comment", &vec![b'x'; 2 << 20]));
    assert!(wrong(&ok().with(huge).end()).contains("too long"));
    let endless = entry(b'L', "a").size(1 << 33);
    assert!(wrong(&ok().with(endless).end()).contains("too long"));
}

proptest! {
    #[test]
    fn no_archive_panics(
        headers in proptest::collection::vec((any::<u8>(), 0..512usize, any::<[u8; 12]>(), any::<Vec<u8>>()), 0..6),
        tail: Vec<u8>,
    ) {
        let kinds = [0, b'0', b'1', b'2', b'5', b'x', b'g', b'L', b'K', b'S', b'7'];
        let files = headers.into_iter().map(|(kind, at, bytes, data)| {
            entry(kinds[usize::from(kind) % kinds.len()], "name").data(data).patch(at.min(500), &bytes)
        });
        let _ = read(&Archive::of(files).raw(&tail).bytes());
    }

    #[test]
    fn no_sparse_map_panics(major in "[01]?", minor in "[012]?", map in "[0-9,]{0,20}", count in "[0-9-]{0,3}",
                            size in "[0-9-]{0,4}", data in "[0-9\n]{0,40}") {
        let file = [("major", major), ("minor", minor), ("map", map), ("numblocks", count), ("size", size)]
            .into_iter()
            .fold(file("a", format!("{data:\0<512}")), |file, (key, value)| file.pax(format!("GNU.sparse.{key}"), value));
        let bytes = Archive::of([file]).end();
        let mut reader = Reader::new(&*bytes);
        let _ = reader.next();
    }
}
