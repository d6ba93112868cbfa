//! Single files of a layer, read from its archive and not unpacked.

use std::io::Read;

use super::decompress::Plain;
use super::name::clean;
use super::tar::{self, Piece};
use super::{Failure, Packing, Result};
use crate::error;

/// The most bytes of a file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The files `names` of the layer `input`, in order: their content, or nothing where the layer
/// has none. One that the layer hides from the layers below is empty. Blocks.
///
/// # Errors
/// What is wrong with the layer; ResourceExhausted for a file that is too large.
pub(in crate::image) fn files(
    input: impl Read + Send + 'static,
    packing: Packing,
    names: &[&str],
) -> error::Result<Vec<Option<Vec<u8>>>> {
    read(input, packing, names).map_err(|failure| match failure {
        Failure::Failed(error) => error,
        Failure::Unsupported(what) => error::unimplemented(what),
    })
}

fn read(input: impl Read + Send + 'static, packing: Packing, names: &[&str]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut reader = tar::Reader::new(Plain::start(input, packing)?);
    let mut found: Vec<Option<Vec<u8>>> = vec![None; names.len()];
    while let Some(entry) = reader.next()? {
        let name = clean(&entry.name);
        let name = name.strip_prefix(b"/").unwrap_or(&name);
        for (wanted, found) in names.iter().zip(&mut found) {
            if hides(name, wanted) {
                found.get_or_insert_default();
            } else if name == wanted.as_bytes() {
                // Of two entries the later one counts, as when they are unpacked.
                let mut text = Vec::new();
                for piece in &entry.pieces {
                    let Piece::Data(length) = *piece else { continue };
                    if length > FILE_BYTES_MAX {
                        return Err(error::exhausted(format!("{wanted:?} is too large")).into());
                    }
                    reader.data(length, |block| {
                        text.extend_from_slice(block);
                        Ok(())
                    })?;
                }
                *found = Some(text);
            }
        }
    }
    Ok(found)
}

/// Whether the entry `name` is a whiteout of `wanted`, or of a folder that it is in.
fn hides(name: &[u8], wanted: &str) -> bool {
    let (folder, base) = match name.iter().rposition(|c| *c == b'/') {
        Some(end) => (&name[..end], &name[end + 1..]),
        None => (&name[..0], name),
    };
    let Some(hidden) = base.strip_prefix(b".wh.") else { return false };
    let mut place = folder.to_vec();
    if base != b".wh..wh..opq" {
        if !place.is_empty() {
            place.push(b'/');
        }
        place.extend_from_slice(hidden);
    }
    let wanted = wanted.as_bytes();
    wanted == place
        || place.is_empty()
        || wanted.strip_prefix(&*place).is_some_and(|rest| rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_hide_files_and_what_is_in_folders() {
        for (name, want) in [
            ("etc/.wh.passwd", true),
            (".wh.etc", true),
            ("etc/.wh..wh..opq", true),
            (".wh..wh..opq", true),
            ("etc/.wh.group", false),
            ("etc/passwd", false),
            (".wh.et", false),
            ("usr/.wh.passwd", false),
        ] {
            assert_eq!(hides(name.as_bytes(), "etc/passwd"), want, "{name}");
        }
    }
}
