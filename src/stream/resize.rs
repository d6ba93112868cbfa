//! The stream of terminal sizes: JSON objects, one after the other (STM-20).

use serde::Deserialize;
use tokio::sync::mpsc;

use crate::io::session::{Incoming, TerminalSize};

/// The longest that an object may be, with what stands around it.
const OBJECT_BYTES_MAX: usize = 1024;
/// Sizes that wait: only the newest matters, and it is never waited for long.
const SIZES_LEN: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Object {
    width: i64,
    height: i64,
}

/// The sizes that come on `stream`, until it ends or holds something else.
pub(super) fn sizes(mut stream: Incoming) -> mpsc::Receiver<TerminalSize> {
    let (sender, receiver) = mpsc::channel(SIZES_LEN);
    tokio::spawn(async move {
        let mut rest = Vec::new();
        while let Some(piece) = stream.next().await {
            rest.extend_from_slice(&piece);
            let Some(sizes) = take(&mut rest) else { return };
            for size in sizes {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

/// Takes whole objects from the beginning of `rest`; none if it is no such stream.
fn take(rest: &mut Vec<u8>) -> Option<Vec<TerminalSize>> {
    let mut sizes = Vec::new();
    let mut objects = serde_json::Deserializer::from_slice(rest).into_iter::<Object>();
    let mut used = 0;
    loop {
        match objects.next() {
            Some(Ok(object)) => {
                used = objects.byte_offset();
                sizes.extend(size(&object));
            }
            Some(Err(error)) if error.is_eof() => break,
            Some(Err(_)) => return None,
            None => {
                used = rest.len();
                break;
            }
        }
    }
    rest.drain(..used);
    (rest.len() <= OBJECT_BYTES_MAX).then_some(sizes)
}

/// The kernel's sizes have 16 bits; one without any room is none.
fn size(object: &Object) -> Option<TerminalSize> {
    let fit = |value: i64| u16::try_from(value).ok().filter(|value| *value > 0);
    Some(TerminalSize { width: fit(object.width)?, height: fit(object.height)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &[&str]) -> Option<Vec<(u16, u16)>> {
        let (mut rest, mut found) = (Vec::new(), Vec::new());
        for piece in pieces {
            rest.extend_from_slice(piece.as_bytes());
            found.extend(take(&mut rest)?.into_iter().map(|size| (size.width, size.height)));
        }
        Some(found)
    }

    #[test]
    fn objects_may_come_in_any_pieces() {
        let two = "{\"Width\":80,\"Height\":24}\n{\"Width\":132,\"Height\":50}";
        assert_eq!(all(&[two]), Some(vec![(80, 24), (132, 50)]));
        let pieces: Vec<String> = two.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(all(&pieces), Some(vec![(80, 24), (132, 50)]));
    }

    #[test]
    fn sizes_that_are_none_are_passed_over() {
        let none = "{\"Width\":0,\"Height\":24}{\"Width\":-1,\"Height\":-1}{\"Width\":70000,\"Height\":1}";
        assert_eq!(all(&[none, "{\"Width\":1,\"Height\":2,\"More\":3}"]), Some(vec![(1, 2)]));
    }

    #[test]
    fn anything_else_ends_the_stream_and_nothing_grows() {
        assert_eq!(all(&["{\"Width\":\"wide\"}"]), None);
        assert_eq!(all(&["]"]), None);
        assert_eq!(all(&["{\"Width\":1,\"Height\":2}", &" ".repeat(2000)]), Some(vec![(1, 2)]));
        assert_eq!(all(&[&format!("{{\"Width\":{}", "1".repeat(2000))]), None);
    }
}
