//! Archives that are not as they should be, and how they are packed.

use std::io::Write;

use super::archive::{Archive, entry, file, folder};
use super::case::{Bad, Case, Good, compare, one};
use super::pair::Pair;
use crate::fixture::{Blob, digest};

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
