//! How long a writer waits for a bookie: for an answer at all, and while acknowledgements wait for
//! one that is behind.

use std::sync::Arc;

use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::storage::{BookieError, OrderedOperation, OrderedRequest};
use aquifer_runtime::clock;

use crate::writer::driver::{Inner, Outgoing, State};

/// How often in its timeout an add is looked at.
const WATCH_ROUNDS: u32 = 8;
/// After this many of these looks a bookie for which acknowledgements wait all the time has failed:
/// it slows the ledger down that long, and no longer.
const LAG_ROUNDS: u64 = 1;
/// A bookie that has not answered for this many of them is waited for no more: it is not slow, it
/// is silent.
const SILENT_ROUNDS: u64 = 4;

impl State {
    /// Bookies that acknowledgements wait for no longer.
    pub(super) fn held_back_for_long(&mut self) -> Vec<(usize, BookieId)> {
        let holding = self.machine.holding_back();
        if holding.is_empty() {
            self.held_since = None;
            return holding;
        }
        let since = *self.held_since.get_or_insert(self.round);
        let oldest = self.adds.front().map_or(self.round, |oldest| oldest.round);
        let late = self.round - since > LAG_ROUNDS || self.round - oldest > SILENT_ROUNDS;
        if late { holding } else { Vec::new() }
    }

    /// Bookies have taken the places of others: they have not been waited for yet.
    pub(super) fn wait_anew(&mut self) {
        self.held_since = None;
        for add in &mut self.adds {
            add.round = self.round;
        }
    }
}

impl Inner {
    /// Declares bookies failed that leave the oldest add unanswered for a little more than the
    /// timeout. Ends when nothing is pending, and tells bookies the LAC that no add carried.
    pub(super) async fn watch(self: Arc<Self>) {
        let pause = self.ctx.settings.request_timeout / WATCH_ROUNDS;
        let shutdown = self.ctx.tasks.shutdown_token();
        loop {
            // A stopping process does not wait for a watch over nothing.
            let idle = async {
                shutdown.wait().await;
                if !self.state.lock().adds.is_empty() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                () = clock::sleep(pause) => {}
                () = idle => {}
            }
            let late = {
                let mut guard = self.state.lock();
                let state = &mut *guard;
                state.round += 1;
                let Some(oldest) = state.adds.front() else {
                    state.watched = false;
                    let confirmed = state.machine.confirmed().last_entry;
                    let untold = confirmed.filter(|_| confirmed > state.told);
                    state.told = state.told.max(confirmed);
                    let members = state.machine.members().to_vec();
                    drop(guard);
                    if let Some(lac) = untold {
                        self.tell_lac(&members, lac);
                    }
                    return;
                };
                if state.round - oldest.round > u64::from(WATCH_ROUNDS) {
                    state.machine.laggards()
                } else {
                    state.held_back_for_long()
                }
            };
            self.give_up(late);
        }
    }

    /// Bookies that have not answered the oldest add in time.
    pub(super) fn give_up(self: &Arc<Self>, late: Vec<(usize, BookieId)>) {
        for (position, bookie) in late {
            let entry = self.state.lock().first;
            let to = Outgoing {
                position,
                bookie,
                entry,
            };
            self.replied(to, Err(BookieError::Timeout));
        }
    }

    /// Lets readers that do not own the ledger see its last entry while it is idle. Nothing
    /// depends on it, so the answers are dropped.
    fn tell_lac(&self, members: &[BookieId], lac: EntryId) {
        for &bookie in members {
            let request = OrderedRequest {
                ledger: self.ledger,
                token: self.token,
                tenant: self.tenant,
                operation: OrderedOperation::WriteLac(lac),
            };
            self.ctx.transport.submit(bookie, request, Box::new(drop));
        }
    }
}
