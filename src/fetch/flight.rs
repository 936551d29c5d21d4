//! Single flight: at most one fetch per key at a time; the others wait, then look again.
//!
//! The holder of a key does the work and puts the result where everyone looks first (a cache).
//! Whoever waited enters afterwards, looks there, and finds it. A failure is shared with those who
//! waited for it, else each would try and fail in turn, and the last would wait for all of them;
//! whoever comes later tries anew.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::error::{Error, Result};

/// When the last work on a key failed, and how.
type LastFailure = Option<(Instant, Error)>;

/// Keys that somebody works on.
#[derive(Debug)]
pub struct Flights<K> {
    keys: Mutex<HashMap<K, Weak<AsyncMutex<LastFailure>>>>,
}

/// The right to work on a key; ends when dropped.
#[derive(Debug)]
pub struct Turn {
    last_failure: OwnedMutexGuard<LastFailure>,
}

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Flights { keys: Mutex::new(HashMap::new()) }
    }
}

impl<K: Eq + Hash> Flights<K> {
    /// Waits until nobody else works on `key`.
    ///
    /// # Errors
    /// How the work failed that was waited for.
    pub async fn enter(&self, key: K) -> Result<Turn> {
        let asked = Instant::now();
        let last_failure = self.lock_of(key).lock_owned().await;
        match &*last_failure {
            Some((at, error)) if *at >= asked => Err(error.clone()),
            _ => Ok(Turn { last_failure }),
        }
    }

    /// The right to work on `key`, if nobody does.
    pub fn try_enter(&self, key: K) -> Option<Turn> {
        self.lock_of(key).try_lock_owned().ok().map(|last_failure| Turn { last_failure })
    }

    fn lock_of(&self, key: K) -> Arc<AsyncMutex<LastFailure>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match keys.get(&key).and_then(Weak::upgrade) {
            Some(lock) => lock,
            None => {
                keys.retain(|_, lock| lock.strong_count() > 0);
                let lock = Arc::new(AsyncMutex::new(None));
                keys.insert(key, Arc::downgrade(&lock));
                lock
            }
        }
    }
}

impl Turn {
    /// Ends the turn with the outcome of the work, which is passed through.
    ///
    /// # Errors
    /// Those of `outcome`: whoever waits now gets them, too.
    pub fn end<T>(mut self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            *self.last_failure = Some((Instant::now(), error.clone()));
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::fetch::ErrorKind;

    #[tokio::test]
    async fn one_works_while_the_others_wait() {
        let flights = Arc::new(Flights::default());
        let inside = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..20)
            .map(|i| {
                let (flights, inside) = (flights.clone(), inside.clone());
                tokio::spawn(async move {
                    let turn = flights.enter(i % 2).await.expect("nobody fails");
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    turn.end(Ok(())).expect("passed through");
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert!(flights.keys.lock().expect("lock").len() <= 2);
    }

    #[tokio::test]
    async fn who_does_not_want_to_wait_is_told() {
        let flights = Flights::default();
        let turn = flights.enter(0).await.expect("nobody works");
        assert!(flights.try_enter(0).is_none());
        assert!(flights.try_enter(1).is_some());
        drop(turn);
        assert!(flights.try_enter(0).is_some());
    }

    #[tokio::test]
    async fn a_failure_is_shared_with_those_who_waited_and_not_with_those_who_come_later() {
        let flights = Arc::new(Flights::default());
        let attempts = Arc::new(AtomicUsize::new(0));
        let first = flights.enter(0).await.expect("nobody works");
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let (flights, attempts) = (flights.clone(), attempts.clone());
                tokio::spawn(async move {
                    let turn = flights.enter(0).await?;
                    attempts.fetch_add(1, Ordering::SeqCst);
                    turn.end(Ok(()))
                })
            })
            .collect();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let failed: Result<()> = first.end(Err(Error::new(ErrorKind::DeadlinePassed, "stalled")));
        assert!(failed.is_err());
        for task in waiting {
            let outcome = task.await.expect("no panic");
            assert_eq!(outcome.expect_err("shared").kind, ErrorKind::DeadlinePassed);
        }
        assert_eq!(attempts.load(Ordering::SeqCst), 0);
        assert!(flights.enter(0).await.is_ok(), "who comes later tries anew");
    }
}
