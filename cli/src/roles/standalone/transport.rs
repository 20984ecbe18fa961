//! The way to the one bookie of this process: a function call.
//!
//! Adds for which the bookie has no room wait here, in order, and everything of their tenant behind
//! them: all requests for a ledger are of one tenant, which has a part of the bookie's budget. What
//! waits is held by the ledgers anyway, within `pending_bytes_max`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use aquifer_bookie::Bookie;
use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::{BookieId, TenantKey};
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedRequest, Presence, PresenceRange,
    ReadBatch, ReadRange, ReplyCallback, TailState, TailWait,
};
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
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
    /// Of tenants of which something waits or is about to be submitted: what comes next goes
    /// behind it.
    tenants: HashMap<TenantKey, VecDeque<(OrderedRequest, ReplyCallback)>>,
    /// Tenants whose queue is not served yet.
    fresh: Vec<TenantKey>,
    /// The queues are not served any more.
    ended: bool,
}

impl Held {
    /// The next one of a tenant to submit; without one, its requests go past the queue again.
    fn next(&self, tenant: TenantKey) -> Option<(OrderedRequest, ReplyCallback)> {
        let mut state = self.state.lock();
        let next = state.tenants.get_mut(&tenant)?.pop_front();
        if next.is_none() {
            state.tenants.remove(&tenant);
        }
        next
    }

    /// Submits what a tenant has waiting.
    async fn serve(&self, tenant: TenantKey, to: &Bookie) {
        while let Some((request, reply)) = self.next(tenant) {
            to.submit_when_free(request, reply).await;
        }
    }

    fn fresh(&self) -> Vec<TenantKey> {
        std::mem::take(&mut self.state.lock().fresh)
    }

    /// A tenant that has something waiting; when none has, the queues end.
    fn last(&self) -> Option<TenantKey> {
        let mut state = self.state.lock();
        let last = state.tenants.keys().next().copied();
        state.ended |= last.is_none();
        last
    }
}

impl InProcess {
    /// Wraps the bookie; `tasks` runs what waits for it.
    pub fn new(bookie: Bookie, tasks: &TaskGroup) -> InProcess {
        let held = Arc::new(Held::default());
        let (queues, to) = (Arc::clone(&held), bookie.clone());
        let token = tasks.shutdown_token();
        tasks.spawn("bookie-room", async move {
            let mut serving = FuturesUnordered::new();
            loop {
                tokio::select! {
                    () = queues.wake.notified() => {
                        let fresh = queues.fresh().into_iter();
                        serving.extend(fresh.map(|tenant| queues.serve(tenant, &to)));
                    }
                    Some(()) = serving.next() => {}
                    () = token.wait() => break,
                }
            }
            // What was being submitted when this ends comes first.
            while serving.next().await.is_some() {}
            while let Some(tenant) = queues.last() {
                while let Some((request, reply)) = queues.next(tenant) {
                    to.submit(request, reply);
                }
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
    fn weigh(&self, tenant: TenantKey, weight: u32) {
        self.bookie.weigh(tenant, weight);
    }

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
        let tenant = request.tenant;
        {
            let mut state = self.held.state.lock();
            if let Some(queue) = state.tenants.get_mut(&tenant) {
                queue.push_back((request, reply));
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
        let is_fresh = !state.tenants.contains_key(&tenant);
        state.tenants.entry(tenant).or_default().push_back(waits);
        if is_fresh {
            state.fresh.push(tenant);
        }
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
