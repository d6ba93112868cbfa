//! So many at a time, by name: the rest waits in order, and others' names do not wait with it.
//!
//! The table holds a name only while someone has a place there or waits for one, so it
//! cannot grow with the number of names ever used. A waiter that is dropped leaves nothing
//! behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lock;

type Table = Mutex<HashMap<String, Arc<Semaphore>>>;

/// `NUMBER` places for each name. Clones share them.
#[derive(Clone, Default)]
pub struct Places<const NUMBER: usize>(Arc<Table>);

/// A place, until it is dropped.
pub struct Place {
    table: Arc<Table>,
    key: String,
    entry: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl<const NUMBER: usize> Places<NUMBER> {
    /// Waits for a place under `key`.
    pub async fn take(&self, key: impl Into<String>) -> Place {
        let key = key.into();
        let entry =
            lock(&self.0).entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(NUMBER))).clone();
        // Made before the wait, so that a wait that is given up cleans up as well.
        let mut place = Place { table: self.0.clone(), key, entry, held: None };
        // Never closed.
        place.held = place.entry.clone().acquire_owned().await.ok();
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held = None;
        let mut table = lock(&self.table);
        // The table's own and ours: nobody else has a place or waits.
        if Arc::strong_count(&self.entry) == 2 {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_are_so_many_of_one_name_and_more_of_another() {
        let places = Places::<2>::default();
        let first = places.take("a").await;
        let _second = places.take("a").await;
        let _other = places.take("b").await;
        let mut third = std::pin::pin!(places.take("a"));
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        drop(first);
        let _third = third.await;
    }

    #[tokio::test]
    async fn nothing_stays_in_the_table() {
        let places = Places::<1>::default();
        let held = places.take("a").await;
        {
            let mut given_up = std::pin::pin!(places.take("a"));
            assert!(futures_util::poll!(given_up.as_mut()).is_pending());
        }
        drop(held);
        drop(places.take("b").await);
        assert!(lock(&places.0).is_empty());
    }
}
