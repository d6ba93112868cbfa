//! Who serves a container: one worker at a time.
//!
//! The streams of a container share its log file, so a second worker could only wait for
//! the first. It does not: the stream that it came for is left here, and whoever is inside
//! hands it out when done. So a log file that hangs holds up one worker and not all.

use std::sync::{Arc, Mutex};

use crate::flow::lock;

/// The gate of a container with streams of type `T`.
pub(super) struct Gate<T>(Mutex<Inside<T>>);

struct Inside<T> {
    is_taken: bool,
    /// Streams that came meanwhile; no more than the container has.
    waiting: Vec<Arc<T>>,
}

impl<T> Gate<T> {
    pub(super) fn new() -> Gate<T> {
        Gate(Mutex::new(Inside { is_taken: false, waiting: Vec::new() }))
    }

    /// Goes in for `stream`, and is to be left then; false if somebody is inside, who gets
    /// `stream` on leaving.
    pub(super) fn enter(&self, stream: &Arc<T>) -> bool {
        let mut inside = lock(&self.0);
        if inside.is_taken {
            inside.waiting.push(stream.clone());
            return false;
        }
        inside.is_taken = true;
        true
    }

    /// Goes out, with the streams that have come meanwhile.
    #[must_use]
    pub(super) fn leave(&self) -> Vec<Arc<T>> {
        let mut inside = lock(&self.0);
        inside.is_taken = false;
        std::mem::take(&mut inside.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_second_is_handed_out_by_the_first() {
        let gate = Gate::new();
        let (stdout, stderr) = (Arc::new("stdout"), Arc::new("stderr"));
        assert!(gate.enter(&stdout));
        assert!(!gate.enter(&stderr));
        assert_eq!(gate.leave(), std::slice::from_ref(&stderr));
        assert!(gate.enter(&stderr));
        assert!(gate.leave().is_empty());
    }
}
