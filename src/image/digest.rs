//! Digests: `sha256:…` and its longer relatives.

use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::ids::hex;

/// Whether `text` is a digest of an algorithm that we know, in its only spelling.
pub(super) fn is_digest(text: &str) -> bool {
    let Some((algorithm, value)) = text.split_once(':') else { return false };
    let digits = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    value.len() == digits && value.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// The SHA-256 digest of `data`.
pub(super) fn of(data: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(data)))
}

/// Whether `data` has `digest`.
pub(super) fn matches(digest: &str, data: &[u8]) -> bool {
    let Some((algorithm, value)) = digest.split_once(':') else { return false };
    let actual = match algorithm {
        "sha256" => hex(&Sha256::digest(data)),
        "sha384" => hex(&Sha384::digest(data)),
        "sha512" => hex(&Sha512::digest(data)),
        _ => return false,
    };
    actual == value
}

/// The chain ids of an image's layers, lowest first: the names of their snapshots.
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_checked() {
        assert_eq!(of(b""), EMPTY);
        assert!(is_digest(EMPTY) && matches(EMPTY, b"") && !matches(EMPTY, b"x"));
        let long = format!("sha512:{}", hex(&Sha512::digest(b"a")));
        assert!(is_digest(&long) && matches(&long, b"a") && !matches(&long, b"b"));
        for wrong in ["", "sha256:", "sha256:12", &EMPTY.to_uppercase(), "md5:0", &EMPTY[7..]] {
            assert!(!is_digest(wrong) && !matches(wrong, b""), "{wrong}");
        }
    }

    #[test]
    fn chain_ids_fold_the_layers_below() {
        let chain = chain_ids(&[EMPTY.to_owned(), EMPTY.to_owned(), of(b"a")]);
        assert_eq!(chain[0], EMPTY);
        assert_eq!(chain[1], of(format!("{EMPTY} {EMPTY}").as_bytes()));
        assert_eq!(chain[2], of(format!("{} {}", chain[1], of(b"a")).as_bytes()));
        assert!(chain_ids(&[]).is_empty());
    }
}
