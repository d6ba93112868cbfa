//! Who is asked next, and when it is enough (IMG-26).
//!
//! A failure goes on to the next server at once. When all of them failed, those that
//! may do better in a moment are asked again, after a pause that grows, or that one of
//! them asked for. One that does not have what is wanted, or sends something else, is
//! not asked again. Progress starts the count anew: a large layer over a bad line comes
//! in the end.

use std::time::Duration;

use tracing::debug;

use super::Server;
use super::cause::Cause;
use crate::error::{self, Error, not_found, precondition, unknown};

/// How often a server is asked without any progress.
const ROUNDS_MAX: u32 = 5;
/// The pause after the first round; it doubles after each.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause that a server can ask for; one that wants more is given up.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The kubelet takes a message that begins so for the reason of a waiting pod (ERR-08).
pub(in crate::image) const UNAVAILABLE: &str = "RegistryUnavailable: ";
/// The same for an image that someone who judges images refused.
pub(in crate::image) const REFUSED: &str = "SignatureValidationFailed: ";

/// The servers that are asked for one thing.
pub(in crate::image) struct Tries<'a> {
    what: String,
    candidates: Vec<Candidate<'a>>,
    next: usize,
    round: u32,
}

struct Candidate<'a> {
    server: Server<'a>,
    /// Why it failed last.
    cause: Option<Cause>,
    tries: u32,
}

impl Candidate<'_> {
    fn may_do_better(&self) -> bool {
        self.cause
            .as_ref()
            .is_none_or(|cause| cause.is_passing() && cause.wait().is_none_or(|wait| wait <= WAIT_MAX))
    }
}

impl<'a> Tries<'a> {
    /// Asks `servers` for `what`.
    pub(super) fn new(what: String, servers: impl Iterator<Item = Server<'a>>) -> Tries<'a> {
        let candidates = servers.map(|server| Candidate { server, cause: None, tries: 0 }).collect();
        Tries { what, candidates, next: 0, round: 1 }
    }

    /// Who is asked next, after the pause that is due; none when it is enough.
    pub(in crate::image) async fn next(&mut self) -> Option<Server<'a>> {
        loop {
            while let Some(candidate) = self.candidates.get_mut(self.next) {
                if candidate.may_do_better() {
                    candidate.tries += 1;
                    return Some(candidate.server);
                }
                self.next += 1;
            }
            if self.round >= ROUNDS_MAX || !self.candidates.iter().any(Candidate::may_do_better) {
                return None;
            }
            let pause = self.pause();
            debug!(what = self.what, ?pause, round = self.round, "all registry servers failed");
            tokio::time::sleep(pause).await;
            (self.next, self.round) = (0, self.round + 1);
        }
    }

    /// The server that was given last failed.
    pub(in crate::image) fn failed(&mut self, cause: Cause) {
        if let Some(candidate) = self.candidates.get_mut(self.next) {
            debug!(place = candidate.server.place(), ?cause, what = self.what, "a registry server failed");
            candidate.cause = Some(cause);
        }
        self.next += 1;
    }

    /// The server that was given last failed, but only after it had sent something.
    pub(in crate::image) fn failed_after_progress(&mut self, cause: Cause) {
        self.failed(cause);
        self.round = 1;
    }

    /// The server that was given last is to be asked again at once.
    pub(in crate::image) fn again(&mut self) {
        if let Some(candidate) = self.candidates.get_mut(self.next) {
            candidate.cause = None;
        }
    }

    fn pause(&self) -> Duration {
        let longest = PAUSE * 2_u32.saturating_pow(self.round - 1);
        // Nodes that met the same failure do not come back at the same moment.
        let mut byte = [0_u8; 1];
        let jitter = if getrandom::fill(&mut byte).is_ok() { f64::from(byte[0]) / 255.0 } else { 1.0 };
        let own = longest.mul_f64(0.5 + jitter / 2.0);
        let asked = self.candidates.iter().filter(|candidate| candidate.may_do_better());
        // Whoever can be asked soonest decides.
        let asked = asked.map(|candidate| candidate.cause.as_ref().and_then(Cause::wait).unwrap_or_default());
        own.max(asked.min().unwrap_or_default())
    }

    /// The error that names every server that was asked.
    ///
    /// NotFound if none has it; of kind Unknown and with `RegistryUnavailable` in front
    /// if none could be reached (IMG-38).
    pub(in crate::image) fn finish(self) -> Error {
        if self.candidates.is_empty() {
            return precondition(format!("{}: no server is configured for it", self.what));
        }
        let text = |candidate: &Candidate<'_>| {
            let cause = candidate.cause.as_ref().map_or("was not asked", Cause::text);
            let tries = if candidate.tries > 1 {
                format!(" (tried {} times)", candidate.tries)
            } else {
                String::new()
            };
            candidate.server.masked(format!("{}: {cause}{tries}", candidate.server.place()))
        };
        let texts: Vec<String> = self.candidates.iter().map(text).collect();
        let message = format!("{}: {}", self.what, texts.join("; "));
        let all = |test: fn(&Cause) -> bool| {
            self.candidates.iter().all(|candidate| candidate.cause.as_ref().is_some_and(test))
        };
        if all(Cause::is_unavailable) {
            unknown(format!("{UNAVAILABLE}{message}"))
        } else if all(|cause| *cause == Cause::NotFound) {
            not_found(message)
        } else {
            unknown(message)
        }
    }
}

/// Adds context to an error and keeps a word that the kubelet looks for in front (ERR-08).
pub(in crate::image) fn with_context(error: Error, what: &str) -> Error {
    for word in [UNAVAILABLE, REFUSED] {
        if let Some(rest) = error.message().strip_prefix(word) {
            return Error::new(error::Kind::Unknown, format!("{word}{what}: {rest}"));
        }
    }
    error.context(what)
}
