//! Waits for what must become true soon; a machine under load may take long.

use std::time::{Duration, Instant};

/// How long it may take before it counts as never.
const SOON: Duration = Duration::from_secs(50);

/// Looks until `is_true`; `what` is the name of it.
pub fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_true() {
        assert!(started.elapsed() < SOON, "it does not come: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
