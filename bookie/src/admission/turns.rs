//! Fair turns in front of the journal. While several tenants write, no more than a bounded number
//! of bytes waits in the queue of the journal, which keeps its order; what comes beyond that waits
//! here, and tenants take turns of bytes by their weights. So what a tenant has waiting delays
//! another by one commit, not by all of it. While one tenant writes, requests only look at two
//! numbers.
//!
//! Requests of a ledger keep their order (H3): all of them name the same tenant, and nothing passes
//! what waits here or is being let in. Deciding about a request begins when its turn comes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use aquifer_model::id::TenantKey;
use aquifer_model::storage::BookieError;
use aquifer_runtime::fair::FairQueue;
use parking_lot::Mutex;

use crate::ledgers::Waiting;

/// What a tenant gains in a turn.
const QUANTUM: usize = 64 * 1024;
/// The queue of the journal takes this part of the largest commit while several tenants write.
const COMMIT_PART: usize = 4;
/// Several tenants write as long as this many commits have not passed since the last change from
/// one to another.
const MIXED_COMMITS: u64 = 1_024;

/// See the module.
pub struct Turns {
    bytes_max: usize,
    /// Something waits here, or is being let in: what comes goes behind it.
    is_busy: AtomicBool,
    /// The tenant of the last request.
    last: AtomicU32,
    /// Until this commit several tenants write.
    mixed_until: AtomicU64,
    state: Mutex<State>,
    /// Lets requests in when a commit has made room.
    serve: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct State {
    queue: FairQueue<TenantKey, Waiting>,
    /// A thread lets requests in, one after the other.
    is_served: bool,
}

impl Turns {
    /// Turns in front of a journal with commits of up to this many bytes.
    #[must_use]
    pub fn new(commit_bytes_max: usize) -> Turns {
        Turns {
            bytes_max: commit_bytes_max / COMMIT_PART,
            is_busy: AtomicBool::new(false),
            last: AtomicU32::new(TenantKey::UNKNOWN.0),
            mixed_until: AtomicU64::new(0),
            state: Mutex::new(State {
                queue: FairQueue::new(QUANTUM),
                is_served: false,
            }),
            serve: OnceLock::new(),
        }
    }

    /// Says what lets requests in.
    pub(crate) fn serve_with(&self, serve: impl Fn() + Send + Sync + 'static) {
        // The second call would say the same.
        let _ = self.serve.set(Box::new(serve));
    }

    /// The journal has taken items: there may be room.
    pub(crate) fn journal_took(&self) {
        if self.is_busy.load(Ordering::Acquire)
            && let Some(serve) = self.serve.get()
        {
            serve();
        }
    }

    /// Gives back what waits. Nothing is let in any more.
    pub(crate) fn refuse_all(&self, error: &BookieError) {
        loop {
            let next = self.state.lock().queue.pop();
            let Some(waiting) = next else {
                return;
            };
            (waiting.reply)(Err(error.clone()));
        }
    }

    /// Gives a tenant a weight: while several tenants write, it gets that many times the bytes of
    /// one of weight 1.
    pub(super) fn weigh(&self, tenant: TenantKey, weight: u32) {
        self.state.lock().queue.weigh(tenant, weight);
    }

    /// Whether a request has to wait for its turn.
    pub(super) fn must_wait(&self, tenant: TenantKey, synced: u64, queued_bytes: usize) -> bool {
        if self.last.load(Ordering::Relaxed) != tenant.0 {
            self.last.store(tenant.0, Ordering::Relaxed);
            let until = synced.saturating_add(MIXED_COMMITS);
            self.mixed_until.store(until, Ordering::Relaxed);
        }
        let is_mixed = || synced < self.mixed_until.load(Ordering::Relaxed);
        self.is_busy.load(Ordering::Acquire) || (queued_bytes >= self.bytes_max && is_mixed())
    }

    /// Has a request wait.
    pub(super) fn push(&self, cost: usize, waiting: Waiting) {
        let mut state = self.state.lock();
        state.queue.push(waiting.request.tenant, cost, waiting);
        self.is_busy.store(true, Ordering::Release);
    }

    /// The next request to let in, if the journal, in whose queue `queued_bytes` wait, has room
    /// for it. One thread at a time lets requests in (`is_mine`: this one has just done so), and
    /// asks again after each; another that comes meanwhile gets nothing.
    pub(super) fn next(&self, is_mine: bool, queued_bytes: impl Fn() -> usize) -> Option<Waiting> {
        let mut state = self.state.lock();
        if state.is_served && !is_mine {
            return None;
        }
        let next = match queued_bytes() < self.bytes_max {
            true => state.queue.pop(),
            false => None,
        };
        state.is_served = next.is_some();
        if next.is_none() {
            let is_busy = !state.queue.is_empty();
            self.is_busy.store(is_busy, Ordering::Release);
        }
        next
    }
}
