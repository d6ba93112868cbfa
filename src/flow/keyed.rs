//! Locks by name: two pieces of work on the same object run one after the other, on
//! different objects at the same time.

use super::{Place, Places};
use crate::trace;

/// Locks by name. Clones share them.
#[derive(Clone, Default)]
pub struct Keyed(Places<1>);

/// Holds one name until it is dropped.
pub type KeyedGuard = Place;

impl Keyed {
    /// Waits until nobody else holds `key`. Waiters get it in order.
    pub async fn lock(&self, key: impl Into<String>) -> KeyedGuard {
        let key = key.into();
        // What stands behind a blank may be made of a secret.
        let what = format!("the lock of {}", key.split(' ').next().unwrap_or_default());
        trace::wait(&what, self.0.take(key)).await
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
}
