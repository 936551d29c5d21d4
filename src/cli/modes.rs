//! `LAYOUTFS_TEST`: what tests make small or switch off, to run the same suite over other paths.
//!
//! A list of words with commas between. Nobody else sets it: nothing becomes better by it.

use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::mount::Serving;
use crate::layout::index::spans::SPAN_BYTES;

/// The variable.
const VARIABLE: &str = "LAYOUTFS_TEST";

/// Decoded spans kept in memory by one mount: a scan needs a few, random readers some tens.
const SPANS_BYTES_MAX: usize = 16 << 20;

/// Room for one span of ours, which ends where the first block does behind its size, and not two.
const ONE_SPAN_BYTES: usize = (2 * SPAN_BYTES - 1) as usize;

/// What the words change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// How mounts are served.
    pub serving: Serving,
    /// Bytes of decoded spans that a mount keeps in memory.
    pub spans_bytes_max: usize,
    /// What a first pass decodes is there for a while.
    pub keeps_fresh: bool,
}

impl Modes {
    /// As the environment has it; without the variable, as everybody has it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a word that means nothing.
    pub fn from_env() -> Result<Self> {
        Modes::parse(&std::env::var(VARIABLE).unwrap_or_default())
    }

    fn parse(words: &str) -> Result<Self> {
        let serving = Serving::default();
        let mut modes = Modes { serving, spans_bytes_max: SPANS_BYTES_MAX, keeps_fresh: true };
        for word in words.split(',').filter(|word| !word.is_empty()) {
            match word {
                "one-event-thread" => modes.serving.event_threads_max = 1,
                "one-span-cache" => modes.spans_bytes_max = ONE_SPAN_BYTES,
                "no-push" => modes.serving.pushes = false,
                "no-poll" => modes.serving.polls = false,
                "no-fresh" => modes.keeps_fresh = false,
                "no-passthrough" => modes.serving.passes = false,
                "small-reads" => modes.serving.small_reads = true,
                _ => {
                    let message = format!(
                        "{VARIABLE}: {word}: expected one-event-thread, one-span-cache, no-push, \
                         no-poll, no-fresh, no-passthrough, small-reads; it is for tests alone: unset it"
                    );
                    return Err(Error::new(ErrorKind::Usage, message));
                }
            }
        }
        Ok(modes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_changes_one_thing_and_any_other_is_refused() {
        let plain = Modes::parse("").expect("no words");
        assert!(plain.serving.pushes && plain.serving.polls && !plain.serving.small_reads);
        assert!(plain.keeps_fresh);
        assert!(plain.serving.event_threads_max > 1);
        let words = "one-event-thread,one-span-cache,no-push,no-poll,no-fresh,no-passthrough,";
        let all = Modes::parse(&format!("{words}small-reads")).expect("all words");
        let serving = Serving {
            event_threads_max: 1,
            pushes: false,
            small_reads: true,
            polls: false,
            passes: false,
        };
        let expected = Modes { serving, spans_bytes_max: ONE_SPAN_BYTES, keeps_fresh: false };
        assert_eq!(all, expected);
        let one = Modes::parse("no-push").expect("one word");
        assert_eq!(one, Modes { serving: Serving { pushes: false, ..plain.serving }, ..plain });
        let error = Modes::parse("no-push,fast").expect_err("not a word");
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(error.to_string().contains("LAYOUTFS_TEST: fast: expected one-event-thread"));
    }
}
