//! The document that the differences stand in.

use crate::allowed;

/// docs/differences.md has a row for each difference that the test allows, and no other.
#[test]
fn the_document_has_the_differences_that_are_allowed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/differences.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let table = text.split("\n## ").find(|part| part.starts_with("Met by the test")).expect("the table");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut documented: Vec<&str> = rows.map(|(id, _)| id).collect();
    documented.sort_unstable();
    let mut allowed: Vec<&str> = allowed::ALL.iter().map(|allowed| allowed.id).collect();
    allowed.sort_unstable();
    assert_eq!(documented, allowed, "documented, then allowed");
    assert!(documented.windows(2).all(|pair| pair[0] != pair[1]), "an id stands twice");
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        assert_eq!(line.matches(" | ").count(), 4, "a row has five columns: {line}");
    }
}
