//! What a client is told on its error stream when a command has ended (STM-15 … STM-17).

use serde_json::json;

use crate::error::Error;

/// How a command or an attachment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By itself, well.
    Success,
    /// By itself, with an exit code that is not 0.
    ExitCode(i32),
    /// It could not be run, or not to its end.
    Failed(String),
}

impl Outcome {
    /// The end of a command with exit code `code`.
    pub(super) fn of_exit(code: i32) -> Outcome {
        if code == 0 { Outcome::Success } else { Outcome::ExitCode(code) }
    }

    /// `what` could not be done.
    pub(super) fn of_error(what: &str, error: &Error) -> Outcome {
        Outcome::Failed(format!("{what}: {error}"))
    }

    /// The server goes; what runs in the container goes on (STM-08).
    pub(super) fn stopping() -> Outcome {
        Outcome::Failed("the server is stopping".to_owned())
    }

    /// The message for a client of protocol `version`: a Kubernetes Status from 4 on,
    /// before it the text of an error, and nothing after success.
    pub(super) fn message(&self, version: u8) -> Vec<u8> {
        if version < 4 {
            return self.text().unwrap_or_default().into_bytes();
        }
        let status = match self {
            Outcome::Success => json!({ "metadata": {}, "status": "Success" }),
            Outcome::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Outcome::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {why}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": why }] },
                "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }

    fn text(&self) -> Option<String> {
        match self {
            Outcome::Success => None,
            Outcome::ExitCode(code) => {
                Some(format!("command terminated with non-zero exit code: exit code {code}"))
            }
            Outcome::Failed(why) => Some(why.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn status(outcome: &Outcome) -> Value {
        serde_json::from_slice(&outcome.message(4)).expect("JSON")
    }

    #[test]
    fn kubectl_finds_the_exit_code() {
        let failure = status(&Outcome::of_exit(42));
        assert_eq!((&failure["status"], &failure["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(failure["details"]["causes"], json!([{ "reason": "ExitCode", "message": "42" }]));
        assert_eq!(status(&Outcome::of_exit(0)), json!({ "metadata": {}, "status": "Success" }));
    }

    #[test]
    fn what_could_not_be_run_is_an_internal_error() {
        let failure = status(&Outcome::Failed("no such file".into()));
        assert_eq!((&failure["reason"], &failure["code"]), (&json!("InternalError"), &json!(500)));
        assert!(failure["message"].as_str().is_some_and(|text| text.contains("no such file")));
    }

    #[test]
    fn old_clients_get_text_and_after_success_nothing() {
        assert_eq!(Outcome::Success.message(3), b"");
        assert_eq!(Outcome::Failed("why".into()).message(1), b"why");
        assert!(String::from_utf8_lossy(&Outcome::of_exit(3).message(2)).ends_with("exit code 3"));
    }
}
