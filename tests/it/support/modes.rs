//! `LAYOUTFS_TEST`, which the binary gets along with everything else: what tests that count have to
//! know of it. (What the words mean: `src/cli/modes.rs`.)

/// Its name.
pub const VARIABLE: &str = "LAYOUTFS_TEST";

/// The suite runs with this word.
pub fn is_on(word: &str) -> bool {
    let words = std::env::var(VARIABLE).unwrap_or_default();
    words.split(',').any(|on| on == word)
}

/// Nothing is pushed: it is switched off, or there is one event thread, which would wait for itself.
pub fn pushes_nothing() -> bool {
    is_on("no-push") || is_on("one-event-thread")
}

/// The suite runs with this word, and the test has nothing to say then: tells so.
pub fn is_skipped_with(word: &str, because: &str) -> bool {
    if is_on(word) {
        println!("skipped with {word}: {because}");
    }
    is_on(word)
}
