//! A case: layers, and whether they can be unpacked.

use super::archive::{Archive, File};
use super::pair::{Pair, SNAPSHOTTERS};

/// What is expected of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
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

pub(crate) use End::{Any, Bad, Either, Good, Left};

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) end: End,
    pub(crate) layers: Vec<Vec<u8>>,
}

pub(crate) fn case<const N: usize>(name: &'static str, end: End, layers: [Archive; N]) -> Case {
    Case { name, end, layers: layers.into_iter().map(Archive::end).collect() }
}

pub(crate) fn one<const N: usize>(name: &'static str, end: End, files: [File; N]) -> Case {
    case(name, end, [Archive::of(files)])
}

pub(crate) fn layers<const N: usize>(name: &'static str, end: End, layers: [Vec<File>; N]) -> Case {
    case(name, end, layers.map(Archive::of))
}

pub(crate) async fn compare(cases: Vec<Case>) {
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
