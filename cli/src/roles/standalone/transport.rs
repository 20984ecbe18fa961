//! The way to the one bookie of this process: a function call.
//!
//! Adds for which the bookie has no room wait here, in order, and everything behind them. What
//! waits is held by the ledgers anyway, within `pending_bytes_max`.

use std::collections::VecDeque;
use std::sync::Arc;

use aquifer_bookie::Bookie;
use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::BookieId;
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedRequest, Presence, PresenceRange,
    ReadBatch, ReadRange, ReplyCallback, TailState, TailWait,
};
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Carries requests to the bookie of this process. The order in which requests are submitted is
/// the order in which the bookie takes them.
pub struct InProcess {
    bookie: Bookie,
    held: Arc<Held>,
}

/// Requests that wait for room.
#[derive(Default)]
struct Held {
    state: Mutex<HeldState>,
    wake: Notify,
}

#[derive(Default)]
struct HeldState {
    requests: VecDeque<(OrderedRequest, ReplyCallback)>,
    /// Something waits or is about to be submitted: what comes next goes behind it.
    holding: bool,
    /// The queue is not served any more.
    ended: bool,
}

impl Held {
    /// The next one to submit; without one, requests go past the queue again, and for good when
    /// it will not be served any more.
    fn next(&self, last: bool) -> Option<(OrderedRequest, ReplyCallback)> {
        let mut state = self.state.lock();
        let next = state.requests.pop_front();
        state.holding = next.is_some();
        state.ended |= last && next.is_none();
        next
    }
}

impl InProcess {
    /// Wraps the bookie; `tasks` runs what waits for it.
    pub fn new(bookie: Bookie, tasks: &TaskGroup) -> InProcess {
        let held = Arc::new(Held::default());
        let (queue, to) = (Arc::clone(&held), bookie.clone());
        let token = tasks.shutdown_token();
        tasks.spawn("bookie-room", async move {
            loop {
                tokio::select! {
                    () = queue.wake.notified() => {}
                    () = token.wait() => break,
                }
                while let Some((request, reply)) = queue.next(false) {
                    to.submit_when_free(request, reply).await;
                }
            }
            while let Some((request, reply)) = queue.next(true) {
                to.submit(request, reply);
            }
        });
        InProcess { bookie, held }
    }

    /// Ledgers may name a bookie that this directory had before: it cannot be asked.
    fn check(&self, bookie: BookieId) -> BookieResult<()> {
        if bookie == self.bookie.id() {
            return Ok(());
        }
        let here = self.bookie.id();
        Err(BookieError::Unreachable(format!(
            "bookie {bookie} is not the one of this process, {here}"
        )))
    }
}

#[async_trait]
impl BookieTransport for InProcess {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        if let Err(error) = self.check(bookie) {
            reply(Err(error));
            return;
        }
        let reply: ReplyCallback = match &request.operation {
            // A recovery keeps what it has read until it has read all: that is not an answer that
            // waits to be taken.
            OrderedOperation::RecoveryRead(_) => {
                Box::new(move |result| reply(aquifer_bookie::uncounted(result)))
            }
            _ => reply,
        };
        {
            let mut state = self.held.state.lock();
            if state.holding {
                state.requests.push_back((request, reply));
                return;
            }
        }
        let Some(waits) = self.bookie.try_submit(request, reply) else {
            return;
        };
        let mut state = self.held.state.lock();
        if state.ended {
            drop(state);
            self.bookie.submit(waits.0, waits.1);
            return;
        }
        state.requests.push_back(waits);
        state.holding = true;
        drop(state);
        self.held.wake.notify_one();
    }

    fn checks_reads(&self) -> bool {
        // The bookie has just compared every digest, and nothing lies between it and the reader.
        true
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        self.check(bookie)?;
        self.bookie.read(range).await
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        self.check(bookie)?;
        self.bookie.has(range).await
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        self.check(bookie)?;
        self.bookie.wait(wait).await
    }
}

#[cfg(test)]
mod tests;
