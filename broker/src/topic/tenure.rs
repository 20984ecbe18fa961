//! Whether this owner may deliver to subscriptions still (H9): what consumers of another owner have
//! acknowledged must not come to consumers of this one (I9). The epochs of deliveries keep it from a
//! client that knows the new owner; this keeps it from all others.
//!
//! While the lease is held under which the ownership was known, nobody takes over but by a move, which
//! the owner sees, unless it stalls for so long that the new owner has waited for its lease. Without that lease it is metadata that tells, or, when that is away, a probe: as long as
//! the open ledgers of the topic are not fenced, nobody has taken over, which is good for a moment. A
//! new owner that had to fence waits for longer than that moment before its first delivery.
//!
//! Without a lease, without metadata and without an open ledger nothing can be shown, and a backlog is not
//! delivered until one of them is back. Readers leave no acknowledgements behind: nothing of this concerns them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::error::LogError;
use aquifer_ledger::managed::{Fence, TopicLog};
use aquifer_runtime::clock;

use crate::broker::Shared;
use crate::ownership::Owned;
use crate::topic::Topic;
use crate::topic::event::{Event, SubscriptionId};

/// How long a probe is good for, from when bookies were asked.
const PROBE_VALID: Duration = Duration::from_secs(1);
/// What a new owner waits: longer, since no two clocks run alike.
const TAKEOVER_WAIT: Duration = Duration::from_millis(1_200);
/// First and longest pause until it is asked again.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// How far this owner is known to be the only one.
#[derive(Debug, Default)]
pub(super) struct Tenure {
    /// Nothing is delivered before, on the monotonic clock.
    not_before: Duration,
    /// A probe has shown it until then.
    probed_until: Duration,
    /// Somebody asks.
    asking: bool,
    /// The pause after the last answer that said nothing.
    pause: Duration,
    /// Subscriptions that wait for the answer.
    held: BTreeSet<SubscriptionId>,
}

/// What came of asking.
pub(crate) enum Asked {
    /// It is this broker's, certain under this session.
    Confirmed(u64),
    /// What bookies say, and when they were asked.
    Probed(Fence, Duration),
}

impl Tenure {
    /// Of an owner whose predecessor may not know of it yet: what a probe of that one showed is over
    /// soon, and so is its lease, if it is believed to hold one.
    pub(super) fn after_takeover(now: Duration, lease: Duration) -> Tenure {
        Tenure {
            not_before: now + TAKEOVER_WAIT.max(lease),
            ..Tenure::default()
        }
    }
}

impl Topic {
    /// Whether a subscription may be served now. If not, it is woken when it may.
    pub(super) fn may_deliver(&mut self, id: SubscriptionId) -> bool {
        let durable = self.subscriptions.get(id).map(|s| s.state.is_durable());
        if durable != Some(true) {
            return true;
        }
        let now = self.now();
        let is_due = now >= self.tenure.not_before;
        if is_due && self.shared.ownership.is_certain(&self.owned) {
            return true;
        }
        let left = self.tenure.probed_until.saturating_sub(now);
        let may = is_due && !left.is_zero();
        if !may {
            self.tenure.held.insert(id);
        }
        // Asked early enough, nobody has to wait.
        if left < PROBE_VALID / 2 && !self.tenure.asking && self.ending.is_none() {
            self.tenure.asking = true;
            let wait = self.tenure.not_before.saturating_sub(now);
            self.ask_tenure(wait);
        }
        may
    }

    fn ask_tenure(&mut self, wait: Duration) {
        let (shared, mailbox) = (Arc::clone(&self.shared), self.mailbox.clone());
        let owned = self.owned.clone();
        let pause = (self.tenure.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.tenure.pause = pause;
        let logs = [self.cursors.log().clone(), self.log.clone()];
        self.shared.tasks.spawn("topic-tenure", async move {
            clock::sleep(wait).await;
            let asked = ask(&shared, &owned, &logs).await;
            if matches!(asked, Asked::Probed(Fence::Unknown, _)) {
                clock::sleep(pause).await;
            }
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::Tenure(asked)).await;
        });
    }

    pub(super) fn tenure_asked(&mut self, asked: Asked) {
        self.tenure.asking = false;
        if !matches!(asked, Asked::Probed(Fence::Unknown, _)) {
            self.tenure.pause = Duration::ZERO;
        }
        match asked {
            Asked::Confirmed(session) => self.owned.session = Some(session),
            Asked::Probed(Fence::None, at) => self.tenure.probed_until = at + PROBE_VALID,
            Asked::Probed(Fence::Fenced, _) => return self.broken(&LogError::Fenced),
            Asked::Probed(Fence::Unknown, _) => {}
        }
        for id in std::mem::take(&mut self.tenure.held) {
            self.subscriptions.wake(id);
        }
    }
}

async fn ask(shared: &Shared, owned: &Owned, logs: &[TopicLog]) -> Asked {
    if let Some(session) = shared.ownership.confirm(owned).await {
        return Asked::Confirmed(session);
    }
    let mut at = shared.clock.monotonic();
    for log in logs {
        match log.probe_fence().await {
            Fence::Unknown => at = shared.clock.monotonic(),
            known => return Asked::Probed(known, at),
        }
    }
    Asked::Probed(Fence::Unknown, at)
}
