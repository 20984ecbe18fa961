//! What the copies of one worker may take: bytes a second, and bytes of memory.
//!
//! Everything that a worker does at once shares one [`Pace`]: neither the rate nor the memory grows
//! with the number of ledgers that it repairs at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::context::RepairContext;

/// Pauses shorter than this are saved up.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// Entry bytes in flight at once, over all ledgers of a worker: read, and not yet answered by
/// the bookie that stores them.
const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;

/// Reads of the largest entries wait for each other, but a ledger that waits for a silent bookie
/// does not stop those of all others.
const _: () = assert!(IN_FLIGHT_BYTES_MAX >= 4 * ENTRY_BYTES_MAX);

/// Spreads bytes over time, and bounds those that are in flight.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: AtomicU64,
    /// One pause at a time, first come, first served: pauses that ran side by side would let as
    /// many times the rate through.
    turn: Semaphore,
    /// What is not slept yet, and when the last bytes were spent.
    state: Mutex<(Duration, Duration)>,
    in_flight: ByteBudget,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        Pace {
            bytes_per_second: AtomicU64::new(bytes_per_second.max(1)),
            turn: Semaphore::new(1),
            state: Mutex::new((Duration::ZERO, Duration::ZERO)),
            in_flight: ByteBudget::new(IN_FLIGHT_BYTES_MAX),
        }
    }

    /// The current rate.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// From now on, this many bytes a second.
    pub(crate) fn set_rate(&self, bytes_per_second: u64) {
        let rate = bytes_per_second.max(1);
        self.bytes_per_second.store(rate, Ordering::Relaxed);
    }

    /// Waits until this many bytes may be in flight. A copy that waits here holds no other permit
    /// of this budget: two that did could wait for each other.
    pub(crate) async fn reserve(&self, bytes: usize) -> BytePermit {
        self.in_flight.acquire(bytes).await
    }

    /// Waits until this many bytes are within the rate. Ledgers that are copied at once take turns,
    /// one batch each, so each gets its part. Nothing is reserved meanwhile.
    pub(crate) async fn spend(&self, ctx: &RepairContext, bytes: u64) {
        let _turn = self.turn.acquire().await;
        let now = ctx.ledgers.clock.monotonic();
        let pause = {
            let mut state = self.state.lock();
            let elapsed = now.saturating_sub(state.1);
            let rate = u128::from(self.bytes_per_second());
            let nanos = u128::from(bytes) * 1_000_000_000 / rate;
            let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            state.0 = state.0.saturating_sub(elapsed) + cost;
            state.1 = now;
            if state.0 < PAUSE_MIN {
                return;
            }
            std::mem::take(&mut state.0)
        };
        clock::sleep(pause).await;
        self.state.lock().1 = ctx.ledgers.clock.monotonic();
    }
}
