//! Reads of which a second one is sent when the first takes longer than such reads usually do; the
//! first answer wins, and the other is given up.
//!
//! Invariants:
//! - Of all reads, at most one in [`SHARE`] is a second one.
//! - None is sent before it is known how long reads of the size take, nor for a while after a
//!   store was unavailable: more requests do not help it.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_runtime::clock::{self, SharedClock};
use bytes::Bytes;
use futures::future::{Either, select};
use parking_lot::Mutex;

use crate::error::{ColdError, ColdResult};
use crate::store::ColdStore;

/// One in this many reads may be a second one.
const SHARE: u64 = 20;
/// Reads of a size that are remembered.
const REMEMBERED: usize = 64;
/// Reads of a size after which it is known how long they take.
const KNOWN_MIN: usize = 32;
/// No second read is sent earlier.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// For how long none is sent after a store was unavailable.
const QUIET: Duration = Duration::from_secs(60);
/// Reads up to each of these bytes take about the same time; larger ones are the last class.
const CLASSES: [u64; 3] = [512 << 10, 2 << 20, 6 << 20];

/// See the module.
pub(crate) struct Hedges {
    clock: SharedClock,
    state: Mutex<State>,
    sent: AtomicU64,
}

#[derive(Default)]
struct State {
    /// How long the last reads took, by class.
    took: [VecDeque<Duration>; CLASSES.len() + 1],
    reads: u64,
    quiet_until: Duration,
}

fn class_of(bytes: u64) -> usize {
    CLASSES.partition_point(|most| *most < bytes)
}

impl Hedges {
    pub(crate) fn new(clock: SharedClock) -> Hedges {
        Hedges {
            clock,
            state: Mutex::default(),
            sent: AtomicU64::new(0),
        }
    }

    /// Second reads that were ever sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Reads a part of an object.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn get(
        &self,
        store: &dyn ColdStore,
        name: &str,
        range: Range<u64>,
    ) -> ColdResult<Bytes> {
        let (began, class) = (self.clock.monotonic(), class_of(range.end - range.start));
        let first = store.get(name, range.clone());
        let answer = match self.usual_max(class) {
            None => first.await,
            Some(wait) => match select(first, pin!(clock::sleep(wait))).await {
                Either::Left((answer, _)) => answer,
                Either::Right(((), first)) if self.may_send(began) => {
                    match select(first, store.get(name, range)).await {
                        Either::Left((Ok(bytes), _)) | Either::Right((Ok(bytes), _)) => Ok(bytes),
                        Either::Left((Err(_), other)) | Either::Right((Err(_), other)) => {
                            other.await
                        }
                    }
                }
                Either::Right(((), first)) => first.await,
            },
        };
        self.note(class, began, &answer);
        answer
    }

    /// How long reads of a class take, all but the slowest twentieth.
    fn usual_max(&self, class: usize) -> Option<Duration> {
        let mut took: Vec<Duration> = {
            let state = self.state.lock();
            state.took[class].iter().copied().collect()
        };
        if took.len() < KNOWN_MIN {
            return None;
        }
        let at = took.len() * 19 / 20;
        let (_, usual, _) = took.select_nth_unstable(at);
        Some((*usual).max(WAIT_MIN))
    }

    /// Whether one more may be sent, which is counted then.
    fn may_send(&self, now: Duration) -> bool {
        let state = self.state.lock();
        // Changed under the lock only.
        let sent = self.sent.load(Ordering::Relaxed) + 1;
        let may = now >= state.quiet_until && sent * SHARE <= state.reads;
        if may {
            self.sent.store(sent, Ordering::Relaxed);
        }
        may
    }

    fn note<T>(&self, class: usize, began: Duration, answer: &ColdResult<T>) {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        state.reads += 1;
        match answer {
            Ok(_) => {
                let took = &mut state.took[class];
                if took.len() == REMEMBERED {
                    took.pop_front();
                }
                took.push_back(now.saturating_sub(began));
            }
            Err(ColdError::Unavailable(_)) => state.quiet_until = now + QUIET,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aquifer_runtime::clock::ManualClock;

    use super::*;
    use crate::testing::{Fault, MemoryColdStore, Op};

    const NAME: &str = "c/data/x/one.aqo";

    async fn read(hedges: &Hedges, store: &MemoryColdStore, times: usize) -> ColdResult<Bytes> {
        for _ in 1..times {
            hedges.get(store, NAME, 0..3).await?;
        }
        hedges.get(store, NAME, 0..3).await
    }

    /// A store whose reads number `which`, counted from the next, never end.
    async fn store(which: impl Fn(usize) -> bool + Send + 'static) -> MemoryColdStore {
        let store = MemoryColdStore::default();
        let put = store.put_new(NAME, Bytes::from_static(b"abc"));
        put.await.unwrap();
        let mut number = 0;
        store.judge(move |op, _| {
            number += usize::from(op == Op::Get);
            (op == Op::Get && which(number)).then_some(Fault::Hangs)
        });
        store
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_longer_than_usual_is_asked_for_twice() {
        let clock = ManualClock::new(1);
        let hedges = Hedges::new(clock);
        let store = store(|number| number == 41).await;
        assert_eq!(read(&hedges, &store, 40).await.unwrap().len(), 3);
        assert_eq!((hedges.sent(), store.count(Op::Get)), (0, 40));
        assert_eq!(read(&hedges, &store, 1).await.unwrap().len(), 3);
        assert_eq!((hedges.sent(), store.count(Op::Get)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn second_reads_are_few_and_none_is_sent_to_a_store_that_fails() {
        let clock = ManualClock::new(1);
        let hedges = Hedges::new(Arc::clone(&clock) as SharedClock);
        // Of the 41st and 43rd read: one in twenty is all that is left for the next.
        let slow = store(|number| number == 41 || number == 43 || number == 45).await;
        read(&hedges, &slow, 40).await.unwrap();
        read(&hedges, &slow, 1).await.unwrap();
        read(&hedges, &slow, 1).await.unwrap();
        assert_eq!(hedges.sent(), 2);
        let third = clock::timeout(Duration::from_secs(9), read(&hedges, &slow, 1));
        assert!(third.await.is_err(), "nothing is sent beyond the share");
        assert_eq!(hedges.sent(), 2);

        let hedges = Hedges::new(Arc::clone(&clock) as SharedClock);
        let store = store(|number| number > 41).await;
        read(&hedges, &store, 40).await.unwrap();
        hedges.note::<Bytes>(
            0,
            Duration::ZERO,
            &Err(ColdError::Unavailable(String::new())),
        );
        let slow = clock::timeout(Duration::from_secs(9), read(&hedges, &store, 2));
        assert!(slow.await.is_err());
        assert_eq!(hedges.sent(), 0);
        clock.advance(QUIET);
        let slow = clock::timeout(Duration::from_secs(9), read(&hedges, &store, 1));
        assert!(slow.await.is_err(), "the second one hangs as well");
        assert_eq!(hedges.sent(), 1);
    }
}
