//! Who decodes a layer from where, and who waits for what they pass.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Cursor;
use crate::fetch::error::{Error, Result};
use crate::fetch::proved::Proved;

/// Positions that decoding can go on from: for readers of several places at once. Each holds a
/// decoder: 300 KiB for gzip, a window of at most 128 MiB for zstd (usually 8).
const CURSORS_MAX: usize = 4;

/// All of one layer's.
#[derive(Default)]
pub struct Cursors(Mutex<State>);

#[derive(Default)]
struct State {
    /// Nobody uses them. The one that was used last is the last.
    idle: Vec<Cursor>,
    /// The piece that is being filled by each of the others.
    running: BTreeMap<u64, u64>,
    runs: u64,
    /// By the piece that is waited for.
    waiting: BTreeMap<u64, Waiting>,
    /// Pieces that were waited for in vain, by readers who have not asked again: another one may pass
    /// them before they do.
    late: BTreeSet<u64>,
}

struct Waiting {
    run: u64,
    sender: oneshot::Sender<Result<Proved>>,
}

/// What a reader of a piece does.
pub enum Next {
    /// It decodes, from this cursor on or from the start.
    Decode(Run, Option<Cursor>),
    /// Somebody is about to pass the piece, or to leave a cursor in front of it. If this gives
    /// nothing, it asks again.
    Wait(oneshot::Receiver<Result<Proved>>),
}

/// The right to decode. When it ends, whoever has waited for it in vain asks again.
pub struct Run {
    cursors: Arc<Cursors>,
    number: u64,
}

impl Cursors {
    /// What a reader of `piece` does. At most one asks for a piece at a time.
    pub fn next(self: &Arc<Self>, piece: u64) -> Next {
        let mut state = self.lock();
        state.late.remove(&piece);
        let idle = state.idle.iter().map(|cursor| cursor.piece).enumerate();
        let idle = idle.filter(|(_, at)| *at <= piece).max_by_key(|(_, at)| *at);
        let running = state.running.iter().map(|(run, at)| (*run, *at));
        let running = running.filter(|(_, at)| *at <= piece).max_by_key(|(_, at)| *at);
        // The nearest. To begin anew is dear, and nobody gets ahead of who is nearer.
        match (idle, running) {
            (Some((i, at)), running) if running.is_none_or(|(_, other)| other <= at) => {
                let cursor = state.idle.remove(i);
                Next::Decode(self.run(&mut state, at), Some(cursor))
            }
            (_, Some((run, _))) => Next::Wait(state.wait(run, piece)),
            _ => match state.running.first_key_value().map(|(run, _)| *run) {
                Some(run) if state.running.len() == CURSORS_MAX => {
                    Next::Wait(state.wait(run, piece))
                }
                _ => Next::Decode(self.run(&mut state, 0), None),
            },
        }
    }

    fn run(self: &Arc<Self>, state: &mut State, at: u64) -> Run {
        state.runs += 1;
        state.running.insert(state.runs, at);
        // The least recently used one makes room.
        if !state.idle.is_empty() && state.idle.len() + state.running.len() > CURSORS_MAX {
            state.idle.remove(0);
        }
        Run { cursors: self.clone(), number: state.runs }
    }

    /// Nobody goes on from where anybody is now: the blob is another one.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.idle.clear();
        state.running.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wait(&mut self, run: u64, piece: u64) -> oneshot::Receiver<Result<Proved>> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(piece, Waiting { run, sender });
        receiver
    }
}

impl Run {
    /// It has decoded `piece`, whose bytes are `whole`. Whether somebody waits for it, or is going to
    /// look for it in memory.
    pub fn pass(&self, piece: u64, whole: &Proved) -> bool {
        let mut state = self.cursors.lock();
        if let Some(at) = state.running.get_mut(&self.number) {
            *at = piece + 1;
        }
        let (waiting, is_late) = (state.waiting.remove(&piece), state.late.remove(&piece));
        let is_sent = waiting.is_some_and(|w| w.sender.send(Ok(whole.clone())).is_ok());
        is_sent || is_late
    }

    /// Others may go on from where it has come to.
    pub fn end(self, cursor: Cursor) {
        let mut state = self.cursors.lock();
        // Not if the blob is another one since.
        if state.running.remove(&self.number).is_some() {
            state.idle.push(cursor);
        }
    }

    /// Decoding has failed: whoever waits hears of it, else each would try and fail in turn.
    pub fn fail(self, error: &Error) {
        let mut state = self.cursors.lock();
        for (_, waiting) in state.waiting.extract_if(.., |_, waiting| waiting.run == self.number) {
            let _ = waiting.sender.send(Err(error.clone()));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut state = self.cursors.lock();
        let State { running, waiting, late, .. } = &mut *state;
        running.remove(&self.number);
        late.extend(waiting.extract_if(.., |_, w| w.run == self.number).map(|(piece, _)| piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(cursors: &Arc<Cursors>, piece: u64) -> Run {
        match cursors.next(piece) {
            Next::Decode(run, None) => run,
            _ => panic!("nobody is there yet"),
        }
    }

    #[test]
    fn who_asks_again_finds_what_another_has_passed_meanwhile() {
        let cursors = Arc::new(Cursors::default());
        let first = decode(&cursors, 6);
        let waiting = [7, 9].map(|piece| match cursors.next(piece) {
            Next::Wait(passed) => passed,
            Next::Decode(..) => panic!("it is about to be passed"),
        });
        drop(first);
        assert!(waiting.into_iter().all(|mut passed| passed.try_recv().is_err()));
        // The one that is further on comes first.
        let second = decode(&cursors, 9);
        let passed = [6, 7, 8].map(|piece| second.pass(piece, &Proved::default()));
        assert_eq!(passed, [false, true, false]);
        assert!(!second.pass(7, &Proved::default()), "it was told once");
    }
}
