//! A line of the report.

use serde::Serialize;

pub use crate::leftovers::{Left, RemovedBy};

/// How a line is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing needs to be done.
    Note,
    /// Somebody must do something.
    Problem,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about, one of a few words.
    pub subject: &'static str,
    /// How to take it.
    pub verdict: Verdict,
    /// What there is.
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What is left, where it is about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leftover: Option<Left>,
}

impl Finding {
    pub(super) fn ok(subject: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(subject, Verdict::Ok, what.into(), None)
    }

    pub(super) fn note(subject: &'static str, what: impl Into<String>, advice: &str) -> Finding {
        Finding::new(subject, Verdict::Note, what.into(), Some(advice))
    }

    pub(super) fn problem(subject: &'static str, what: impl Into<String>, advice: &str) -> Finding {
        Finding::new(subject, Verdict::Problem, what.into(), Some(advice))
    }

    fn new(subject: &'static str, verdict: Verdict, what: String, advice: Option<&str>) -> Finding {
        let advice = advice.filter(|advice| !advice.is_empty()).map(masked);
        Finding { subject, verdict, what: masked(&what), advice, leftover: None }
    }

    pub(super) fn of_leftover(self, left: Left) -> Finding {
        Finding { leftover: Some(left), ..self }
    }
}

/// `text` without what stands before an `@` in its URLs, which may be a password.
pub(super) fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("://") {
        let (head, tail) = rest.split_at(begin + 3);
        out.push_str(head);
        let end = tail.find(|c: char| c.is_whitespace() || "/\"'?#".contains(c)).unwrap_or(tail.len());
        let (authority, after) = tail.split_at(end);
        match authority.rfind('@') {
            Some(at) => {
                out.push_str("<masked>");
                out.push_str(&authority[at..]);
            }
            None => out.push_str(authority),
        }
        rest = after;
    }
    out + rest
}

/// `2 pods`, `1 pod`.
pub(super) fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// The first few of `names`, and how many more there are.
pub(super) fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_urls_are_not_told() {
        for (text, want) in [
            ("host.\"https://u:hunter2@r.io/v2\": wrong", "host.\"https://<masked>@r.io/v2\": wrong"),
            ("https://r.io/a@b, http://t@x", "https://r.io/a@b, http://<masked>@x"),
            ("unix:///run/a.sock", "unix:///run/a.sock"),
            ("a ://", "a ://"),
            ("", ""),
        ] {
            assert_eq!(masked(text), want);
        }
        let finding = Finding::problem("x", "https://u:p@r", "ask https://u:p@r");
        assert!(!format!("{finding:?}").contains("u:p"));
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..6).map(|number| number.to_string()).collect();
        assert_eq!(some_of(&names), "0, 1, 2, 3 and 2 more");
        assert_eq!(some_of(&names[..1]), "0");
        assert_eq!((counted(1, "pod"), counted(2, "pod")), ("1 pod".to_owned(), "2 pods".to_owned()));
    }
}
