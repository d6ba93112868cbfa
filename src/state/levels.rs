//! The SELinux levels that are in use: a pod's categories keep others out of its files only
//! as long as nobody else has them (SBX-33, REC-13).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::{Result, exhausted};
use crate::flow::lock;
use crate::ids::random_below;
use crate::spec::selinux::level_of;

/// How many categories there are.
pub const CATEGORIES: u32 = 1024;
/// The level of the files of privileged containers, which nobody confined may use.
const PRIVILEGED: &str = "s0:c1022,c1023";
/// How often a pair is drawn before all are looked through.
const DRAWS: usize = 64;

/// The levels, each with how often it is held.
#[derive(Clone, Debug, Default)]
pub struct Levels(Arc<Mutex<HashMap<String, usize>>>);

/// Holds a level until it is dropped.
#[derive(Debug)]
pub struct Held {
    levels: Levels,
    level: String,
}

impl Held {
    /// The level; empty for none.
    #[must_use]
    pub fn level(&self) -> &str {
        &self.level
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.levels.release(&self.level);
    }
}

impl Levels {
    /// A level of two categories below `range` that nobody holds.
    ///
    /// # Errors
    /// ResourceExhausted when all are held.
    pub fn unique(&self, range: u32) -> Result<Held> {
        let mut held = lock(&self.0);
        let level = |a: u32, b: u32| format!("s0:c{},c{}", a.min(b), a.max(b));
        let mut is_free = |level: &String| level != PRIVILEGED && !held.contains_key(level);
        let drawn = (0..DRAWS).map(|_| (random_below(range), random_below(range)));
        let drawn = drawn.filter(|(a, b)| a != b).map(|(a, b)| level(a, b)).find(&mut is_free);
        let all = || (0..range).flat_map(|b| (0..b).map(move |a| (a, b)));
        let Some(level) = drawn.or_else(|| all().map(|(a, b)| level(a, b)).find(&mut is_free)) else {
            return Err(exhausted(format!("all pairs of {range} SELinux categories are in use")));
        };
        held.insert(level.clone(), 1);
        Ok(Held { levels: self.clone(), level })
    }

    /// Holds a level that is given, whoever else has it.
    #[must_use]
    pub fn hold(&self, level: &str) -> Held {
        self.reserve(level);
        Held { levels: self.clone(), level: level.to_owned() }
    }

    /// Counts the level of `label` once more.
    pub fn reserve_label(&self, label: &str) {
        self.reserve(level_of(label));
    }

    /// Counts the level of `label` once less.
    pub fn release_label(&self, label: &str) {
        self.release(level_of(label));
    }

    /// Only categories make a level one's own.
    fn reserve(&self, level: &str) {
        if level.contains(":c") {
            *lock(&self.0).entry(level.to_owned()).or_insert(0) += 1;
        }
    }

    fn release(&self, level: &str) {
        let mut held = lock(&self.0);
        if let Some(count) = held.get_mut(level) {
            *count -= 1;
            if *count == 0 {
                held.remove(level);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(levels: &Levels) -> usize {
        lock(&levels.0).len()
    }

    #[test]
    fn nobody_gets_what_another_has() {
        let levels = Levels::default();
        let held: Vec<Held> = (0..6).map(|_| levels.unique(4).expect("free")).collect();
        let mut names: Vec<&str> = held.iter().map(Held::level).collect();
        names.sort_unstable();
        assert_eq!(names, ["s0:c0,c1", "s0:c0,c2", "s0:c0,c3", "s0:c1,c2", "s0:c1,c3", "s0:c2,c3"]);
        let full = levels.unique(4).expect_err("all are held");
        assert_eq!(full.kind(), crate::error::Kind::ResourceExhausted);
        drop(held);
        assert_eq!(count(&levels), 0);
        levels.unique(4).expect("free again");
    }

    #[test]
    fn a_level_is_free_when_its_last_holder_goes() {
        let levels = Levels::default();
        let making = levels.unique(2).expect("free");
        let label = format!("u:r:t:{}", making.level());
        levels.reserve_label(&label);
        drop(making);
        assert!(levels.unique(2).is_err());
        levels.reserve_label(&label);
        levels.release_label(&label);
        assert_eq!(count(&levels), 1);
        levels.release_label(&label);
        levels.release_label(&label);
        assert_eq!(count(&levels), 0);
    }

    #[test]
    fn levels_without_categories_are_everybodys() {
        let levels = Levels::default();
        for label in ["", "u:r:t", "u:r:t:s0", "u:r:t:s0-s1"] {
            levels.reserve_label(label);
            levels.release_label(label);
            drop(levels.hold(level_of(label)));
        }
        assert_eq!(count(&levels), 0);
    }

    #[test]
    fn the_level_of_privileged_files_is_never_given_away() {
        let levels = Levels::default();
        let all: usize = (0..CATEGORIES).map(|b| b as usize).sum();
        {
            let mut held = lock(&levels.0);
            for b in 0..CATEGORIES {
                held.extend((0..b).map(|a| (format!("s0:c{a},c{b}"), 1)));
            }
            held.remove(PRIVILEGED);
            assert_eq!(held.len(), all - 1);
        }
        assert!(levels.unique(CATEGORIES).is_err());
    }
}
