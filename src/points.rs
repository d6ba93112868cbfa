//! Points: numbered places between two steps, at which a test ends the process or lets the
//! step fail.
//!
//! Each step of a mutating call has one before it: a call of containerd, a run of a CNI
//! plugin, a mount, a file, a step of an undo. Those whose answer can be lost on the way
//! have one behind them, too: it was done then, and is told to have failed. A test names a
//! file in `LONGSHORE_POINTS` and writes into it what shall happen, to which points:
//!
//! | file | what follows |
//! |---|---|
//! | absent | nothing, and the next point is number 1 |
//! | `kill 7 7` | the process ends by SIGKILL at point 7 |
//! | `fail 7 7` | the step at point 7 fails |
//! | `fail 7 9` | those at points 7 to 9 do: the undo of the first may be one of them |
//! | `kill 2 2 after Tasks.Delete` | the same for the second point of this place and step: no other counts |
//!
//! Beside it, in `FILE.log`, stands what was passed since. All this is in builds with debug
//! assertions only; in others a point is nothing.

use crate::error::Result;

/// The point before a step.
///
/// # Errors
/// Unknown, where a test wants it.
#[cfg_attr(not(debug_assertions), inline, allow(unused_variables))]
pub fn before(step: &str) -> Result<()> {
    #[cfg(debug_assertions)]
    armed::pass("before", step)?;
    Ok(())
}

/// The point behind a step.
///
/// # Errors
/// As for [`before`].
#[cfg_attr(not(debug_assertions), inline, allow(unused_variables))]
pub fn after(step: &str) -> Result<()> {
    #[cfg(debug_assertions)]
    armed::pass("after", step)?;
    Ok(())
}

#[cfg(debug_assertions)]
mod armed {
    use std::fmt::Write as _;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};

    use crate::error::{Result, unknown};

    static POINTS: OnceLock<Option<Points>> = OnceLock::new();

    struct Points {
        file: PathBuf,
        passed: Mutex<u32>,
    }

    /// What a test wants.
    struct Order {
        kills: bool,
        first: u32,
        last: u32,
        /// The place and the step of the points that count, if not all do.
        only: Option<String>,
    }

    pub(super) fn pass(place: &str, step: &str) -> Result<()> {
        let points = POINTS.get_or_init(|| {
            let file = PathBuf::from(std::env::var_os("LONGSHORE_POINTS")?);
            Some(Points { file, passed: Mutex::new(0) })
        });
        points.as_ref().map_or(Ok(()), |points| points.pass(place, step))
    }

    impl Points {
        fn pass(&self, place: &str, step: &str) -> Result<()> {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(order) = Order::read(&self.file) else {
                *passed = 0;
                return Ok(());
            };
            if order.only.as_ref().is_some_and(|only| only.split_once(' ') != Some((place, step))) {
                return Ok(());
            }
            *passed += 1;
            let is_meant = (order.first..=order.last).contains(&*passed);
            self.note(*passed, place, step);
            if is_meant && order.kills {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                // It has no other threads either by the time it would go on.
                loop {
                    std::thread::park();
                }
            }
            match is_meant {
                true => Err(unknown(format!("a fault that a test wants {place} {step} (point {passed})"))),
                false => Ok(()),
            }
        }

        fn note(&self, number: u32, place: &str, step: &str) {
            let mut line = String::new();
            let _ = writeln!(line, "{number} {place} {step}");
            let log =
                std::fs::File::options().append(true).create(true).open(self.file.with_extension("log"));
            let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
        }
    }

    impl Order {
        fn read(file: &Path) -> Option<Order> {
            let text = std::fs::read_to_string(file).ok()?;
            let mut words = text.splitn(4, ' ');
            let kills = words.next()? == "kill";
            let mut number = || words.next()?.parse().ok();
            Some(Order { kills, first: number()?, last: number()?, only: words.next().map(str::to_owned) })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn points_are_counted_from_the_order_on_and_fail_as_ordered() {
            let folder = tempfile::tempdir().expect("a folder");
            let points = Points { file: folder.path().join("points"), passed: Mutex::new(0) };
            let steps = |names: &[&str]| -> Vec<bool> {
                names.iter().map(|name| points.pass("before", name).is_err()).collect()
            };
            assert_eq!(steps(&["a", "b"]), [false, false]);
            std::fs::write(&points.file, "fail 2 3").expect("written");
            assert_eq!(steps(&["c", "d", "e", "f"]), [false, true, true, false]);
            let error = points.pass("after", "g").err();
            assert!(error.is_none(), "{error:?}");
            let log = std::fs::read_to_string(folder.path().join("points.log")).expect("a log");
            assert_eq!(log, "1 before c\n2 before d\n3 before e\n4 before f\n5 after g\n");
            std::fs::remove_file(&points.file).expect("removed");
            assert_eq!(steps(&["h"]), [false]);
            std::fs::write(&points.file, "fail 1 1").expect("written");
            assert_eq!(steps(&["i", "j"]), [true, false]);
            std::fs::remove_file(&points.file).expect("removed");
            assert_eq!(steps(&["k"]), [false]);
            std::fs::write(&points.file, "fail 2 2 before make a folder").expect("written");
            let names = ["make a folder", "make", "make a folder", "make a folder"];
            assert_eq!(steps(&names), [false, false, true, false]);
        }
    }
}
