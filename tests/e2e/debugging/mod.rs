//! The problems of docs/debugging.md, each made here, with what the commands say of it.

mod containers;
mod node;

use tonic::Status;

use crate::harness::{Node, wait_for};
use crate::trace::{trace, traced};

/// What `longshore trace` shows of the call that an error came from.
async fn story_of(node: &Node, error: &Status) -> String {
    let message = error.message();
    let id = message.rsplit_once(" [trace ").and_then(|(_, end)| end.strip_suffix(']'));
    let id = id.unwrap_or_else(|| panic!("no id at the end of {message:?}"));
    let text = wait_for("the story", async || {
        let output = trace(node, &[id]);
        output.status.success().then(|| String::from_utf8(output.stdout).expect("UTF-8"))
    })
    .await;
    show(&format!("{message}\n\n{text}"));
    text
}

/// Shown where a test runs with `--nocapture`: the document has it from here.
fn show(text: &str) {
    println!("{text}");
}

fn assert_told(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}
