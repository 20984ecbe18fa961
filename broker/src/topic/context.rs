//! What the components of one topic share. They read it; only the owner task changes it, and of it
//! only the lifecycle.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::TopicLog;
use aquifer_log::error::LogError;
use aquifer_model::id::{Index, OwnerEpoch, TenantKey, TopicIncarnation};
use aquifer_model::policy::EffectivePolicies;
use aquifer_model::topic::TopicName;
use aquifer_runtime::budget::ByteBudget;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::BrokerError;
use crate::quota::rates::TopicRates;
use crate::topic::event::Mailbox;
use crate::topic::lifecycle::{Lifecycle, Termination};
use crate::topic::pull::Door;
use crate::traffic::TopicCounters;

/// See the module.
pub(super) struct TopicContext {
    pub(super) shared: Arc<Context>,
    pub(super) name: TopicName,
    pub(super) incarnation: TopicIncarnation,
    /// The epoch that deliveries carry: that of when the topic was loaded. A split raises the epoch
    /// of the bundle, not that of sessions which go on; the next owner of the topic has a higher
    /// one.
    pub(super) epoch: OwnerEpoch,
    pub(super) policies: watch::Receiver<EffectivePolicies>,
    /// What limits producers and consumers.
    pub(super) rates: Arc<TopicRates>,
    /// Where work that was done beside the task reports.
    pub(super) mailbox: Mailbox,
    /// The messages.
    pub(super) log: TopicLog,
    pub(super) counters: Arc<TopicCounters>,
    pub(super) budgets: Budgets,
    pub(super) life: Lifecycle,
    pub(super) termination: Termination,
}

/// What a topic has of its tenant's parts of the broker's budgets (I13).
pub(super) struct Budgets {
    /// Frames that wait for storage.
    pub(super) publish: ByteBudget,
    /// Deliveries, from the read to the client's transport.
    pub(super) deliveries: ByteBudget,
}

impl Budgets {
    pub(super) fn new(shared: &Context, topic: &TopicName) -> Budgets {
        let tenant = TenantKey::of(topic.namespace().tenant());
        // Below what a log takes: a topic is slowed here before its log has to refuse.
        let of_log = shared.log.settings.pending_bytes_per_log_max;
        Budgets {
            publish: shared.publish_budget.of(tenant).child(of_log),
            deliveries: shared.read_budget.of(tenant).child(usize::MAX),
        }
    }
}

impl TopicContext {
    /// The time, on the monotonic clock.
    pub(super) fn now(&self) -> Duration {
        self.shared.clock.monotonic()
    }

    /// The time, in milliseconds since the Unix epoch.
    pub(super) fn wall_ms(&self) -> u64 {
        self.shared.clock.wall_ms()
    }

    /// Where the messages end that consumers may see: dispatch, places and statistics stop here.
    /// Never beyond the end of the log, and never moves back.
    pub(super) fn visible_end(&self) -> Index {
        self.log.end()
    }

    /// Why no session begins here, if none does.
    pub(super) fn refusal(&self) -> Option<BrokerError> {
        self.life.refusal(&self.name)
    }

    /// Why no message is taken, if none is.
    pub(super) fn publish_refusal(&self) -> Option<BrokerError> {
        let terminated = || BrokerError::Terminated(self.name.to_string());
        let is_open = self.termination == Termination::Open;
        self.refusal().or_else(|| (!is_open).then(terminated))
    }

    /// Whether all messages are there that the topic will ever have.
    pub(super) fn is_complete(&self) -> bool {
        self.termination == Termination::Ended
    }

    /// What the requester of an append that failed is told.
    pub(super) fn told(&self, error: &LogError) -> BrokerError {
        let refusal = match error {
            LogError::HandedOver => self.refusal(),
            _ => None,
        };
        refusal.unwrap_or_else(|| BrokerError::Log(error.clone()))
    }

    /// The way to what is stored.
    pub(super) fn door(&self) -> Door {
        Door {
            incarnation: self.incarnation,
            mailbox: self.mailbox.clone(),
            publish: self.budgets.publish.clone(),
            deliveries: self.budgets.deliveries.clone(),
            log: self.log.clone(),
            // As `TopicContext::visible_end` has it.
            visible_end: self.log.watch_end(),
            counters: Arc::clone(&self.counters),
            rates: Arc::clone(&self.rates),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Refuses one more of something when policy lets the topic have no more of it.
    pub(super) fn check_count(
        &self,
        limit: &'static str,
        what: &'static str,
        used: u64,
        max: u64,
    ) -> Result<(), BrokerError> {
        if used < max {
            return Ok(());
        }
        self.shared.metrics.refused(limit);
        Err(BrokerError::Quota {
            limit,
            what,
            scope: format!("topic {}", self.name),
            used,
            max,
        })
    }

    /// Refuses a client that knows another topic of the name.
    pub(super) fn check_incarnation(
        &self,
        known: Option<TopicIncarnation>,
    ) -> Result<(), BrokerError> {
        match known {
            Some(known) if known != self.incarnation => {
                Err(BrokerError::Incarnation(self.name.to_string()))
            }
            Some(_) | None => Ok(()),
        }
    }
}
