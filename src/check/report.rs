//! All findings together, for a person or as JSON.

use serde::Serialize;

use super::Mode;
use super::finding::{Finding, Verdict, counted, masked};
use crate::error::Result;

/// The version of the JSON form; it changes when a field changes its meaning.
const FORMAT: u32 = 1;

/// What was found, and what could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version of this form.
    pub format: u32,
    /// `check` or `doctor`.
    pub command: &'static str,
    /// longshore's version.
    pub version: &'static str,
    /// All findings, by subject.
    pub findings: Vec<Finding>,
    /// What could not be looked at.
    pub unchecked: Vec<Unchecked>,
}

/// Something that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    /// As that of a finding.
    pub subject: &'static str,
    /// Why.
    pub why: String,
}

/// How text is marked.
struct Marks {
    verdict: fn(Verdict) -> &'static str,
    plain: &'static str,
}

const PLAIN: Marks = Marks { verdict: |_| "", plain: "" };
const COLOURED: Marks = Marks {
    verdict: |verdict| match verdict {
        Verdict::Ok => "\x1b[32m",
        Verdict::Note => "\x1b[33m",
        Verdict::Problem => "\x1b[1;31m",
    },
    plain: "\x1b[0m",
};

impl Report {
    pub(super) fn new(mode: Mode) -> Report {
        Report {
            format: FORMAT,
            command: mode.name(),
            version: env!("CARGO_PKG_VERSION"),
            findings: Vec::new(),
            unchecked: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
    }

    pub(super) fn unchecked(&mut self, subject: &'static str, why: &str) {
        self.unchecked.push(Unchecked { subject, why: masked(why) });
    }

    /// What was gathered; that it was not is noted.
    pub(super) fn take<T>(&mut self, subject: &'static str, gathered: Result<T>) -> Option<T> {
        gathered.inspect_err(|error| self.unchecked(subject, error.message())).ok()
    }

    /// The exit status: 1 with a problem, else 2 if something could not be looked at, else 0.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.count(Verdict::Problem), self.unchecked.is_empty()) {
            (1.., _) => 1,
            (0, false) => 2,
            (0, true) => 0,
        }
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// For a person: a paragraph a subject, a line a finding.
    #[must_use]
    pub fn text(&self, is_coloured: bool) -> String {
        let marks = if is_coloured { COLOURED } else { PLAIN };
        let mut text = String::new();
        let mut subject = "";
        for finding in &self.findings {
            if finding.subject != subject {
                subject = finding.subject;
                text.push_str(&format!("{subject}\n"));
            }
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Note => "note",
                Verdict::Problem => "problem",
            };
            let (begin, end) = ((marks.verdict)(finding.verdict), marks.plain);
            text.push_str(&format!("  {begin}{verdict:<8}{end} {}\n", indented(&finding.what)));
            if let Some(advice) = &finding.advice {
                text.push_str(&format!("           → {}\n", indented(advice)));
            }
        }
        for Unchecked { subject, why } in &self.unchecked {
            text.push_str(&format!("not checked: {subject}: {}\n", indented(why)));
        }
        let (problems, notes) = (self.count(Verdict::Problem), self.count(Verdict::Note));
        text.push_str(&format!("{}, {}\n", counted(problems, "problem"), counted(notes, "note")));
        text
    }
}

/// Further lines stand below the first. What others said cannot move the cursor.
fn indented(text: &str) -> String {
    let plain = text.trim_end().replace(|c: char| c.is_control() && c != '\n', " ");
    plain.replace('\n', "\n             ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        Report { findings, ..Report::new(Mode::Check) }
    }

    #[test]
    fn the_exit_status_tells_problems_before_what_was_not_looked_at() {
        let mut found = report(vec![Finding::ok("cni", "a"), Finding::note("cni", "b", "")]);
        assert_eq!(found.exit_code(), 0);
        found.unchecked("cni", "it hangs");
        assert_eq!(found.exit_code(), 2);
        found.add(vec![Finding::problem("cni", "c", "mend it")]);
        assert_eq!(found.exit_code(), 1);
    }

    #[test]
    fn findings_stand_below_their_subject_and_colours_only_where_wanted() {
        let mut found = report(vec![
            Finding::ok("cni", "fine"),
            Finding::problem("cni", "two\nlines\x1b[2J", "do this"),
            Finding::note("kernel", "old", ""),
        ]);
        found.unchecked("keeper", "hangs");
        let want = "\
cni
  ok       fine
  problem  two
             lines [2J
           → do this
kernel
  note     old
not checked: keeper: hangs
1 problem, 1 note
";
        assert_eq!(found.text(false), want);
        assert!(found.text(true).contains("\x1b[1;31mproblem \x1b[0m two"), "{}", found.text(true));
    }

    #[test]
    fn the_json_form_has_stable_names() {
        let found = report(vec![Finding::problem("cni", "c", "mend it")]);
        let value = serde_json::to_value(&found).expect("JSON");
        let want = serde_json::json!({
            "format": 1, "command": "check", "version": env!("CARGO_PKG_VERSION"), "unchecked": [],
            "findings": [{"subject": "cni", "verdict": "problem", "what": "c", "advice": "mend it"}],
        });
        assert_eq!(value, want);
    }
}
