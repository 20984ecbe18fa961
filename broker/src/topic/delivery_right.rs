//! The delivery right: whether this owner of a topic may still deliver to subscriptions (H9). What
//! consumers of another owner have acknowledged must not come to consumers of this one (I9). Epochs
//! of deliveries protect clients that know the new owner; this protects all others.
//!
//! An owner has the right in one of these cases:
//! - It holds the lease under which its ownership was confirmed. Others take over by a move only,
//!   which the owner sees, and a new owner waits for the lease of one that may have stalled.
//! - Without that lease, metadata has confirmed the ownership again.
//! - Metadata is unreachable, and a probe of the bookies has shown that the open ledgers of the topic
//!   are not fenced. That answer is valid for `PROBE_VALID`. A new owner that had to fence waits for
//!   `TAKEOVER_WAIT`, which is longer, before its first delivery:
//!
//! ```text
//! time ----------------------------------------------------------------------------->
//!
//! former owner   delivers ---| lease lost
//!                            |  probe: not fenced ==== delivers ====| the answer is too old: stops
//!                                       |<------- PROBE_VALID ----->|
//!
//! new owner                owns the bundle    | fences the ledgers         | delivers ---
//!                                             |<----- TAKEOVER_WAIT ------>|
//! ```
//!
//! A probe that shows no fence was answered before the fence, so the former owner has stopped when the
//! new one begins.
//!
//! An owner that hands the topic over delivers for as long as the new one cannot have begun: for
//! `HAND_OVER_GRACE` while a ledger is open that the new owner waits for, then as long as probes show
//! no fence (H21).
//!
//! Without lease, metadata and an open ledger nothing can be shown, and a backlog is not delivered
//! until one of them is back. Readers leave no acknowledgements behind and need no right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Fence, TopicLog};
use aquifer_runtime::clock;

use crate::bundle::ownership::Owned;
use crate::context::Context;
use crate::topic::Topic;
use crate::topic::event::{Asked, Departure, Event, SubscriptionId};

/// How long a probe is good for, from when bookies were asked.
const PROBE_VALID: Duration = Duration::from_secs(1);
/// What a new owner waits: longer than a probe is valid, since no two clocks run alike.
const TAKEOVER_WAIT: Duration = Duration::from_millis(1_200);
/// How long an owner that hands a topic over delivers without asking: for less time than the new one
/// waits for open ledgers to be sealed.
const HAND_OVER_GRACE: Duration = Duration::from_secs(1);
/// First and longest pause until it is asked again.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// The right of one topic, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct DeliveryRight {
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

impl DeliveryRight {
    /// Of an owner whose predecessor may not know of it yet: what a probe of that one showed is over
    /// soon, and so is its lease, if it is believed to hold one.
    pub(super) fn after_takeover(now: Duration, lease: Duration) -> DeliveryRight {
        DeliveryRight {
            not_before: now + TAKEOVER_WAIT.max(lease),
            ..DeliveryRight::default()
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
        self.delivery_right.handed_over.get_or_insert(now);
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
        let is_alone = match self.delivery_right.handed_over {
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
        let is_due = now >= self.delivery_right.not_before;
        if is_due && self.is_certain(now) {
            return true;
        }
        let left = self.delivery_right.probed_until.saturating_sub(now);
        let may = is_due && !left.is_zero();
        if !may {
            self.delivery_right.held.insert(id);
        }
        // Asked early enough, nobody has to wait.
        if left < PROBE_VALID / 2 && !self.delivery_right.asking && self.ending.is_none() {
            self.delivery_right.asking = true;
            let wait = self.delivery_right.not_before.saturating_sub(now);
            self.ask_delivery_right(wait);
        }
        may
    }

    fn ask_delivery_right(&mut self, wait: Duration) {
        let (shared, mailbox) = (Arc::clone(&self.shared), self.mailbox.clone());
        let is_owner = self.delivery_right.handed_over.is_none();
        let owned = is_owner.then(|| self.owned.clone());
        let pause = (self.delivery_right.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.delivery_right.pause = pause;
        let logs = [self.cursors.log().clone(), self.log.clone()];
        self.shared.tasks.spawn("topic-delivery-right", async move {
            clock::sleep(wait).await;
            let asked = ask(&shared, owned.as_ref(), &logs).await;
            if matches!(asked, Asked::Probed(Fence::Unknown, _)) {
                clock::sleep(pause).await;
            }
            // A topic that is gone does not care.
            let _ = mailbox.send(Event::DeliveryRight(asked)).await;
        });
    }

    pub(super) fn delivery_right_asked(&mut self, asked: Asked) {
        self.delivery_right.asking = false;
        if !matches!(asked, Asked::Probed(Fence::Unknown, _)) {
            self.delivery_right.pause = Duration::ZERO;
        }
        match asked {
            Asked::Confirmed(session) => self.owned.session = Some(session),
            Asked::Probed(Fence::None, at) => self.delivery_right.probed_until = at + PROBE_VALID,
            Asked::Probed(Fence::Fenced, _) => return self.broken(&LogError::Fenced),
            Asked::Probed(Fence::Unknown, _) => {}
        }
        for id in std::mem::take(&mut self.delivery_right.held) {
            self.subscriptions.wake(id);
        }
    }
}

async fn ask(shared: &Context, owned: Option<&Owned>, logs: &[TopicLog]) -> Asked {
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
