//! Asks the kernel for the next message without sleeping, while messages come one after the other.
//!
//! To wake a thread that sleeps costs whoever reads more than the answer does, on a virtual machine
//! many times as much. So where a processor is spare, one event thread goes on asking for a
//! millisecond after the last message, and the others sleep here, where the kernel does not wake
//! them. Asking is fuser's loop, which tries again at once when the device has nothing and must not
//! be waited for.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::counters::Counters;
use crate::fetch::{Error, Result};

/// So many messages, each soon after the answer to the one before, are a flow.
const FLOW_AFTER: u32 = 16;

/// A reader that does something with what it got takes longer, and gains nothing by this.
const SOON: Duration = Duration::from_micros(200);

/// As long as nothing comes, asking goes on for at most twice that.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The event threads of one mount.
#[derive(Debug)]
pub struct Poll {
    state: Mutex<State>,
    changed: Condvar,
    messages: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// The device, which all event threads read; none: nobody asks without sleeping.
    device: Option<OwnedFd>,
    is_on: bool,
    /// Threads that wait for a message in the kernel, or ask for one.
    asking: usize,
    in_a_row: u32,
    /// When the last message was answered.
    answered: Instant,
}

/// A message that a thread has; until it is answered.
#[derive(Debug)]
pub struct Turn<'a>(&'a Poll);

impl Poll {
    /// For so many event threads.
    pub fn new(threads: usize) -> Self {
        let state = State {
            device: None,
            is_on: false,
            asking: threads,
            in_a_row: 0,
            answered: Instant::now(),
        };
        Poll { state: Mutex::new(state), changed: Condvar::new(), messages: AtomicU64::new(0) }
    }

    /// Begins with `device`, which all event threads read. Only while `has_spare` processors, and
    /// for as long as this process lives.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn watch(
        self: &Arc<Self>,
        device: BorrowedFd<'_>,
        counters: Arc<Counters>,
        has_spare: impl Fn() -> bool + Send + 'static,
    ) -> Result<()> {
        let failed = |e: &std::io::Error| Error::local("cannot poll the mount", e);
        let device = device.try_clone_to_owned().map_err(|e| failed(&e))?;
        let poll = self.clone();
        let watching = std::thread::Builder::new().name("poll".to_owned());
        watching.spawn(move || poll.end_flows(&counters, has_spare)).map_err(|e| failed(&e))?;
        self.state().device = Some(device);
        Ok(())
    }

    /// This thread got a message.
    pub fn turn(&self) -> Turn<'_> {
        self.messages.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.asking = state.asking.saturating_sub(1);
        let is_soon = state.answered.elapsed() < SOON;
        state.in_a_row = if is_soon { state.in_a_row.saturating_add(1) } else { 0 };
        if !state.is_on && state.in_a_row >= FLOW_AFTER && state.device.is_some() {
            state.is_on = state.set_waiting(false);
            self.changed.notify_all();
        }
        Turn(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends each flow when no message came for a while, be it that nobody reads or that the thread
    /// that asks is held up: then the others are needed.
    fn end_flows(&self, counters: &Counters, has_spare: impl Fn() -> bool) {
        loop {
            let mut state = self.state();
            while !state.is_on {
                state = self.wait(state);
            }
            drop(state);
            counters.count_flow();
            let mut before = self.messages.load(Ordering::Relaxed);
            loop {
                std::thread::sleep(LOOK_EVERY);
                let now = self.messages.load(Ordering::Relaxed);
                if now == before || !has_spare() {
                    break;
                }
                before = now;
            }
            let mut state = self.state();
            state.set_waiting(true);
            (state.is_on, state.in_a_row) = (false, 0);
            self.changed.notify_all();
        }
    }
}

impl State {
    /// Whether reading the device waits for a message. `false` if that cannot be set.
    fn set_waiting(&self, waits: bool) -> bool {
        let Some(device) = &self.device else { return false };
        let Ok(mut flags) = fcntl_getfl(device.as_fd()) else { return false };
        flags.set(OFlags::NONBLOCK, !waits);
        fcntl_setfl(device.as_fd(), flags).is_ok()
    }
}

impl Drop for Turn<'_> {
    /// It is answered. If somebody asks already, this thread sleeps until the flow ends.
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answered = Instant::now();
        while state.is_on && state.asking > 0 {
            state = self.0.wait(state);
        }
        state.asking += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(device: &OwnedFd) -> bool {
        !fcntl_getfl(device).expect("flags").contains(OFlags::NONBLOCK)
    }

    fn flow(poll: &Poll) {
        (0..=FLOW_AFTER).for_each(|_| drop(poll.turn()));
    }

    fn until(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < end, "it does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Something that has flags, as a device has.
    fn device() -> (std::io::PipeWriter, OwnedFd) {
        let (reader, writer) = std::io::pipe().expect("pipe");
        (writer, OwnedFd::from(reader))
    }

    #[test]
    fn who_reads_one_after_the_other_is_polled_for_and_nobody_else() {
        let (_writer, device) = device();
        let (poll, counters) = (Arc::new(Poll::new(1)), Arc::new(Counters::default()));
        flow(&poll);
        assert!(waits(&device), "it has no device");
        poll.watch(device.as_fd(), counters.clone(), || true).expect("watch");
        for _ in 0..=FLOW_AFTER {
            poll.state().answered = Instant::now() - SOON;
            drop(poll.turn());
        }
        assert!(waits(&device) && counters.flows() == 0, "not that fast");
        until(|| {
            flow(&poll);
            counters.flows() > 0
        });
        until(|| waits(&device));
        assert!(!poll.state().is_on);
    }

    #[test]
    fn a_flow_ends_where_no_processor_is_spare() {
        let (_writer, device) = device();
        let (poll, counters) = (Arc::new(Poll::new(1)), Arc::new(Counters::default()));
        poll.watch(device.as_fd(), counters.clone(), || false).expect("watch");
        // Each time anew, however long messages go on to come.
        until(|| {
            flow(&poll);
            counters.flows() > 3
        });
        until(|| waits(&device));
    }

    #[test]
    fn of_two_threads_one_asks_and_the_other_is_back_when_that_is_held_up() {
        let (_writer, device) = device();
        let poll = Arc::new(Poll::new(2));
        poll.watch(device.as_fd(), Arc::default(), || true).expect("watch");
        let turn = loop {
            let turn = poll.turn();
            if poll.state().is_on {
                break turn;
            }
        };
        // One has a message and one asks. The first has answered: it sleeps, until nothing has come
        // for a while.
        assert_eq!(poll.state().asking, 1);
        drop(turn);
        assert!(!poll.state().is_on);
        assert_eq!(poll.state().asking, 2);
        assert!(waits(&device));
    }
}
