//! The delivery right: whether this owner of a topic may still deliver to subscriptions (H9). What
//! consumers of another owner have acknowledged must not come to consumers of this one (I9). Epochs
//! of deliveries protect clients that know the new owner; this protects all others.
//!
//! An owner has the right in one of these cases:
//! - It holds the lease under which its ownership was confirmed. Others take over by a move only,
//!   which the owner sees, and a new owner waits for the lease of one that may have stalled.
//! - Without that lease, metadata has confirmed the ownership again.
//! - Metadata is unreachable, and a probe of the bookies has shown that the open ledgers of the
//!   topic are not fenced. That answer is valid for `PROBE_VALID`. A new owner that had to fence
//!   waits for `TAKEOVER_WAIT`, which is longer, before its first delivery:
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
//! A probe that shows no fence was answered before the fence, so the former owner has stopped when
//! the new one begins.
//!
//! An owner that hands the topic over delivers for as long as the new one cannot have begun: for
//! `HAND_OVER_GRACE` while a ledger is open that the new owner waits for, then as long as probes
//! show no fence (H21).
//!
//! Without lease, metadata and an open ledger nothing can be shown, and a backlog is not delivered
//! until one of them is back. Readers leave no acknowledgements behind and need no right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::{Fence, TopicLog};
use aquifer_runtime::clock;

use crate::bundle::ownership::Owned;
use crate::context::Context;
use crate::topic::context::TopicContext;
use crate::topic::event::{Asked, Event, SubscriptionId};

/// How long a probe is good for, from when bookies were asked.
const PROBE_VALID: Duration = Duration::from_secs(1);
/// What a new owner waits: longer than a probe is valid, since no two clocks run alike.
const TAKEOVER_WAIT: Duration = Duration::from_millis(1_200);
/// How long an owner that hands a topic over delivers without asking: for less time than the new
/// one waits for open ledgers to be sealed.
const HAND_OVER_GRACE: Duration = Duration::from_secs(1);
/// First and longest pause until it is asked again.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// The right of one topic, as far as it is known.
pub(super) struct DeliveryRight {
    /// What owning the bundle gives.
    owned: Owned,
    /// The topic's logs, whose open ledgers are probed.
    logs: [TopicLog; 2],
    /// Nothing is delivered before, on the monotonic clock.
    not_before: Duration,
    /// A probe has shown it until then.
    probed_until: Duration,
    /// A question is in flight.
    asking: bool,
    /// The pause after the last answer that said nothing.
    pause: Duration,
    /// Subscriptions that wait for the answer.
    held: BTreeSet<SubscriptionId>,
    /// When it was seen that another owner takes over.
    handed_over: Option<Duration>,
}

impl DeliveryRight {
    /// The right of an owner.
    pub(super) fn new(owned: Owned, logs: [TopicLog; 2]) -> DeliveryRight {
        DeliveryRight {
            owned,
            logs,
            not_before: Duration::ZERO,
            probed_until: Duration::ZERO,
            asking: false,
            pause: Duration::ZERO,
            held: BTreeSet::new(),
            handed_over: None,
        }
    }

    /// The predecessor may not know of this owner yet: what a probe of that one showed is over
    /// soon, and so is its lease, if it is believed to hold one.
    pub(super) fn after_takeover(self, now: Duration, lease: Duration) -> DeliveryRight {
        DeliveryRight {
            not_before: now + TAKEOVER_WAIT.max(lease),
            ..self
        }
    }

    /// What owning the bundle gives.
    pub(super) fn owned(&self) -> &Owned {
        &self.owned
    }

    /// The bundle's record was written again, and this broker may continue as before.
    pub(super) fn rebound(&mut self, owned: Owned) {
        self.owned = owned;
    }

    /// Another broker owns the bundle now.
    pub(super) fn handed_over(&mut self, now: Duration) {
        self.handed_over.get_or_insert(now);
    }

    /// Whether no other owner delivers, as far as is known without asking.
    fn is_certain(&self, cx: &TopicContext, now: Duration) -> bool {
        let is_alone = match self.handed_over {
            None => true,
            // Without an open ledger the new owner has nothing to wait for.
            Some(seen) => {
                let is_open = self.logs.iter().any(TopicLog::is_open);
                is_open && now < seen + HAND_OVER_GRACE
            }
        };
        is_alone && cx.shared.ownership.is_certain(&self.owned)
    }

    /// Whether a durable subscription may be served now. If not, it is to be woken when there is an
    /// answer ([`DeliveryRight::asked`]).
    pub(super) fn may_deliver(&mut self, cx: &TopicContext, id: SubscriptionId) -> bool {
        let now = cx.now();
        let is_due = now >= self.not_before;
        if is_due && self.is_certain(cx, now) {
            return true;
        }
        let left = self.probed_until.saturating_sub(now);
        let may = is_due && !left.is_zero();
        if !may {
            self.held.insert(id);
        }
        // Asked early enough, no subscription has to wait.
        if left < PROBE_VALID / 2 && !self.asking && !cx.life.is_ending() {
            self.asking = true;
            self.ask(cx, self.not_before.saturating_sub(now));
        }
        may
    }

    fn ask(&mut self, cx: &TopicContext, wait: Duration) {
        let (shared, mailbox) = (Arc::clone(&cx.shared), cx.mailbox.clone());
        let is_owner = self.handed_over.is_none();
        let owned = is_owner.then(|| self.owned.clone());
        let pause = (self.pause * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.pause = pause;
        let logs = self.logs.clone();
        cx.shared.tasks.spawn("topic-delivery-right", async move {
            clock::sleep(wait).await;
            let asked = ask(&shared, owned.as_ref(), &logs).await;
            if matches!(asked, Asked::Probed(Fence::Unknown, _)) {
                clock::sleep(pause).await;
            }
            // A topic that has ended needs no answer.
            let _ = mailbox.send(Event::DeliveryRight(asked)).await;
        });
    }

    /// Takes an answer; gives the subscriptions that waited for it. `None` when another owner has
    /// fenced the topic.
    pub(super) fn asked(&mut self, asked: &Asked) -> Option<BTreeSet<SubscriptionId>> {
        self.asking = false;
        if !matches!(asked, Asked::Probed(Fence::Unknown, _)) {
            self.pause = Duration::ZERO;
        }
        match asked {
            Asked::Confirmed(session) => self.owned.session = Some(*session),
            Asked::Probed(Fence::None, at) => self.probed_until = *at + PROBE_VALID,
            Asked::Probed(Fence::Fenced, _) => return None,
            Asked::Probed(Fence::Unknown, _) => {}
        }
        Some(std::mem::take(&mut self.held))
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
