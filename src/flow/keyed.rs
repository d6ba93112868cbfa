//! Locks by name: two pieces of work on the same object run one after the other, on
//! different objects at the same time.
//!
//! The table holds an entry only while someone holds or waits for that name, so it
//! cannot grow with the number of names ever used. A waiter that is dropped leaves
//! nothing behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OwnedMutexGuard;

use super::lock;
use crate::trace;

type Table = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// Locks by name. Clones share them.
#[derive(Clone, Default)]
pub struct Keyed(Arc<Table>);

/// Holds one name until it is dropped.
pub struct KeyedGuard {
    table: Arc<Table>,
    key: String,
    entry: Arc<tokio::sync::Mutex<()>>,
    held: Option<OwnedMutexGuard<()>>,
}

impl Keyed {
    /// Waits until nobody else holds `key`. Waiters get it in order.
    pub async fn lock(&self, key: impl Into<String>) -> KeyedGuard {
        let key = key.into();
        let entry = lock(&self.0).entry(key.clone()).or_default().clone();
        // Made before the wait, so that a wait that is given up cleans up as well.
        let mut guard = KeyedGuard { table: self.0.clone(), key, entry, held: None };
        let held = guard.entry.clone().lock_owned();
        // What stands behind a blank may be made of a secret.
        let what = guard.key.split(' ').next().unwrap_or_default();
        guard.held = Some(trace::wait(&format!("the lock of {what}"), held).await);
        guard
    }
}

impl Drop for KeyedGuard {
    fn drop(&mut self) {
        self.held = None;
        let mut table = lock(&self.table);
        // The table's own and ours: nobody else holds or waits.
        if Arc::strong_count(&self.entry) == 2 {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_name_excludes_and_another_does_not() {
        let locks = Keyed::default();
        let first = locks.lock("a").await;
        let _other = locks.lock("b").await;
        let mut second = std::pin::pin!(locks.lock("a"));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        let _second = second.await;
    }

    #[tokio::test]
    async fn nothing_stays_in_the_table() {
        let locks = Keyed::default();
        let held = locks.lock("a").await;
        {
            let mut given_up = std::pin::pin!(locks.lock("a"));
            assert!(futures_util::poll!(given_up.as_mut()).is_pending());
        }
        drop(held);
        drop(locks.lock("b").await);
        assert!(lock(&locks.0).is_empty());
    }
}
