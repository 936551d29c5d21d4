//! Single flight: at most one fetch per key at a time; the others wait, then look again.
//!
//! The holder of a key does the work and puts the result where everyone looks first (a cache).
//! Whoever waited enters afterwards, looks there, and finds it. A failure leaves nothing behind, so
//! the next in line tries anew: failures are not remembered.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Keys that somebody works on.
#[derive(Debug)]
pub struct Flights<K> {
    keys: Mutex<HashMap<K, Weak<AsyncMutex<()>>>>,
}

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Flights { keys: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash> Flights<K> {
    /// Waits until nobody else works on `key`. The key is held until the guard is dropped.
    pub async fn enter(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            match keys.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    keys.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::new(AsyncMutex::new(()));
                    keys.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn one_works_while_the_others_wait() {
        let flights = Arc::new(Flights::default());
        let inside = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..20)
            .map(|i| {
                let (flights, inside) = (flights.clone(), inside.clone());
                tokio::spawn(async move {
                    let _guard = flights.enter(i % 2).await;
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert!(flights.keys.lock().expect("lock").len() <= 2);
    }
}
