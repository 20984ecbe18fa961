//! Lines of the audit log that its topic does not have yet.
//!
//! Invariants:
//! - Their memory is bounded. What does not fit stays out of the topic, is counted, and is in the
//!   log of the process; the numbers of the lines show the gap.
//! - Lines leave in the order in which they came, and only when the topic has them.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes of lines that wait.
const BYTES_MAX: usize = 4 << 20;
/// What a line takes besides its text.
const LINE_BYTES: usize = 64;
/// Lines that go to the topic at once.
const AT_ONCE: usize = 256;

/// See the module.
#[derive(Default)]
pub(crate) struct Waiting {
    state: Mutex<State>,
    came: Notify,
    gone: Notify,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Arc<str>>,
    bytes: usize,
    left_out: u64,
}

impl Waiting {
    /// Takes a line, if there is room.
    pub(crate) fn push(&self, line: &str) {
        let mut state = self.state.lock();
        let bytes = line.len() + LINE_BYTES;
        if state.bytes + bytes > BYTES_MAX {
            state.left_out += 1;
            return;
        }
        state.bytes += bytes;
        state.lines.push_back(Arc::from(line));
        drop(state);
        self.came.notify_one();
    }

    /// The oldest lines, when there are some. They stay until they are done.
    pub(crate) async fn first(&self) -> Vec<Arc<str>> {
        loop {
            let lines = self.lines();
            if !lines.is_empty() {
                return lines;
            }
            self.came.notified().await;
        }
    }

    /// The oldest lines.
    pub(crate) fn lines(&self) -> Vec<Arc<str>> {
        let state = self.state.lock();
        state.lines.iter().take(AT_ONCE).cloned().collect()
    }

    /// The topic has this many of the oldest lines.
    pub(crate) fn done(&self, lines: usize) {
        let mut state = self.state.lock();
        let lines = lines.min(state.lines.len());
        let gone: usize = state
            .lines
            .drain(..lines)
            .map(|line| line.len() + LINE_BYTES)
            .sum();
        state.bytes = state.bytes.saturating_sub(gone);
        drop(state);
        self.gone.notify_waiters();
    }

    /// Waits until no line waits any more.
    pub(crate) async fn emptied(&self) {
        loop {
            let gone = self.gone.notified();
            if self.lines().is_empty() {
                return;
            }
            gone.await;
        }
    }

    /// How many lines were left out since the last call.
    pub(crate) fn take_left_out(&self) -> u64 {
        std::mem::take(&mut self.state.lock().left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_leave_in_order_and_only_when_they_are_done() {
        let waiting = Waiting::default();
        for number in 0..AT_ONCE + 3 {
            waiting.push(&number.to_string());
        }
        let first = waiting.first().await;
        assert_eq!(first.len(), AT_ONCE);
        assert_eq!(&*first[0], "0");
        assert_eq!(waiting.first().await, first, "nothing is done yet");
        waiting.done(first.len());
        let rest = waiting.first().await;
        assert_eq!(rest.len(), 3);
        assert_eq!(&*rest[0], &*AT_ONCE.to_string());
        waiting.done(100);
        assert_eq!(waiting.lines().len(), 0);
        assert_eq!(waiting.state.lock().bytes, 0);
    }

    #[test]
    fn what_does_not_fit_is_counted_and_takes_no_memory() {
        let waiting = Waiting::default();
        let line = "x".repeat(64 << 10);
        for _ in 0..1_000 {
            waiting.push(&line);
        }
        let held: usize = waiting
            .state
            .lock()
            .lines
            .iter()
            .map(|line| line.len())
            .sum();
        assert!(held <= BYTES_MAX, "{held}");
        let kept = waiting.state.lock().lines.len();
        assert_eq!(waiting.take_left_out(), 1_000 - kept as u64);
        assert_eq!(waiting.take_left_out(), 0);
        waiting.done(1);
        waiting.push(&line);
        assert_eq!(waiting.take_left_out(), 0, "there is room again");
    }
}
