//! Whether this owner may deliver to subscriptions still (H9): what consumers of another owner have
//! acknowledged must not come to consumers of this one (I9). The epochs of deliveries keep it from a
//! client that knows the new owner; this keeps it from all others.
//!
//! While the lease is held under which the ownership was known, nobody takes over but by a move, which
//! the owner sees, unless it stalls for so long that the new owner has waited for its lease. Without that lease it is metadata that tells, or, when that is away, a probe: as long as
//! the open ledgers of the topic are not fenced, nobody has taken over, which is good for a moment. A
//! new owner that had to fence waits for longer than that moment before its first delivery.
//!
//! An owner that hands the topic over delivers as long as the new one cannot have begun: for a moment
//! while a ledger is open that the new one waits for, then as long as probes show no fence (H21).
//!
//! Without a lease, without metadata and without an open ledger nothing can be shown, and a backlog is not
//! delivered until one of them is back. Readers leave no acknowledgements behind: nothing of this concerns them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Fence, TopicLog};
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock;

use crate::broker::Shared;
use crate::error::BrokerError;
use crate::ownership::Owned;
use crate::topic::Topic;
use crate::topic::event::{Event, SubscriptionId};

/// How long a probe is good for, from when bookies were asked.
const PROBE_VALID: Duration = Duration::from_secs(1);
/// What a new owner waits: longer, since no two clocks run alike.
const TAKEOVER_WAIT: Duration = Duration::from_millis(1_200);
/// How long an owner that hands a topic over delivers without asking: for less time than the new one
/// waits for open ledgers to be sealed.
const HAND_OVER_GRACE: Duration = Duration::from_secs(1);
/// First and longest pause until it is asked again.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// How far this owner is known to be the only one.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
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
    /// When it was seen that another owner takes over.
    handed_over: Option<Duration>,
}

/// Where the topics of a bundle go that another broker owns.
#[derive(Debug)]
pub(crate) struct Departure {
    /// Under this their ledgers may be sealed, when the bundle was handed over.
    pub(crate) sealing: Option<Owned>,
    /// Where the other broker is; empty when that is not known.
    pub(crate) url: String,
}

impl Departure {
    /// What clients of a topic are told.
    pub(crate) fn error(&self, topic: &TopicName) -> BrokerError {
        let (what, url) = (topic.to_string(), self.url.clone());
        match url.is_empty() {
            true => BrokerError::Unloading(format!("{what} is moving to another broker")),
            false => BrokerError::Elsewhere { what, url },
        }
    }
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
    /// Another broker owns the bundle now, and waits for a moment until the ledgers are sealed. Until
    /// that is this topic's turn, sessions go on with the ledgers that are open, and none begins (H21).
    pub(super) fn hand_over(&mut self, departure: Arc<Departure>) {
        if let Some(owned) = &departure.sealing {
            self.cell.hand_over(vec![owned.guard.clone()]);
        }
        let now = self.now();
        self.tenure.handed_over.get_or_insert(now);
        self.departure = Some(departure);
    }

    /// Another broker owns the bundle now. One to which it was handed over waits until the ledgers
    /// are sealed; one that took it over does not, and fences.
    pub(super) fn moved_away(&mut self, departure: Arc<Departure>) {
        let is_sealing = departure.sealing.is_some();
        let error = departure.error(&self.name);
        self.hand_over(departure);
        self.end(error, is_sealing);
    }

    /// Ends before its turn: it cannot go on with the ledgers that are open.
    pub(super) fn leave(&mut self) {
        if let Some(error) = self.refusal() {
            self.end(error, true);
        }
    }

    /// Whether nobody else delivers, as far as is known without asking.
    fn is_certain(&self, now: Duration) -> bool {
        let is_alone = match self.tenure.handed_over {
            None => true,
            // Without an open ledger the new owner has nothing to wait for.
            Some(seen) => {
                let is_open = self.log.is_open() || self.cursors.log().is_open();
                is_open && now < seen + HAND_OVER_GRACE
            }
        };
        is_alone && self.shared.ownership.is_certain(&self.owned)
    }

    /// Whether a subscription may be served now. If not, it is woken when it may.
    pub(super) fn may_deliver(&mut self, id: SubscriptionId) -> bool {
        let durable = self.subscriptions.get(id).map(|s| s.state.is_durable());
        if durable != Some(true) {
            return true;
        }
        let now = self.now();
        let is_due = now >= self.tenure.not_before;
        if is_due && self.is_certain(now) {
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
        let is_owner = self.tenure.handed_over.is_none();
        let owned = is_owner.then(|| self.owned.clone());
        let pause = (self.tenure.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.tenure.pause = pause;
        let logs = [self.cursors.log().clone(), self.log.clone()];
        self.shared.tasks.spawn("topic-tenure", async move {
            clock::sleep(wait).await;
            let asked = ask(&shared, owned.as_ref(), &logs).await;
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

async fn ask(shared: &Shared, owned: Option<&Owned>, logs: &[TopicLog]) -> Asked {
    if let Some(owned) = owned
        && let Some(session) = shared.ownership.confirm(owned).await
    {
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
