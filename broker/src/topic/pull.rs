//! Requests that stand alone: what the owner task is asked, and the [`Door`] through which they
//! read beside it. Appends are carried out by `publishing/alone.rs`, commits of subscriptions by
//! `attachments/commits.rs`.

mod peek;
mod read;

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_log::{Appended, TopicLog};
use aquifer_model::format::Description;
use aquifer_model::id::{Index, ProducerInstance, TopicIncarnation};
use aquifer_model::topic::{ProducerName, SubscriptionName};
use aquifer_proto::v1::{ProducerState, SubscriptionState};
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::pull::{self, TopicBounds};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use bytes::Bytes;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::BrokerError;
use crate::quota::rates::TopicRates;
use crate::topic::dedup::SequenceRange;
use crate::topic::event::{Event, Mailbox, Reply};
use crate::traffic::TopicCounters;

/// What the owner is asked.
pub(crate) enum Pull {
    /// The way to what is stored, for a client that knows this life of the topic.
    Door(Option<TopicIncarnation>, Reply<Door>),
    /// The log, for statistics: looking at a topic is no use that keeps it loaded.
    Log(Reply<TopicLog>),
    /// A body is to be stored.
    Append(Box<AloneAppend>, Reply<pull::Appended>),
    /// The outcome of that.
    AloneAppended {
        tag: u64,
        outcome: Result<Appended, LogError>,
    },
    /// A subscription is to move to an index.
    Commit(pull::Commit, Reply<Index>),
    /// What a subscription has not acknowledged is given up.
    Clear(Box<ClearTo>, Reply<u64>),
    /// The next messages that a subscription has not acknowledged, at most this many, and the way
    /// to them.
    Peek(SubscriptionName, usize, Reply<(Door, Vec<IndexRange>)>),
    /// Where a subscription stands.
    Committed(SubscriptionName, Reply<Option<Index>>),
    /// The subscriptions and producers as they are now, for a backup.
    Capture(Reply<Cursors>),
}

/// Up to where what a subscription has not acknowledged is given up.
#[derive(Debug, Clone)]
pub(crate) struct ClearTo {
    pub(crate) subscription: SubscriptionName,
    /// The life of the topic that the index is of.
    pub(crate) incarnation: Option<TopicIncarnation>,
    /// The first message that stays; `None`: none does.
    pub(crate) index: Option<Index>,
    /// It is only counted.
    pub(crate) dry_run: bool,
}

/// What a backup has of a topic beside its messages.
pub(crate) struct Cursors {
    pub(crate) door: Door,
    pub(crate) subscriptions: Vec<SubscriptionState>,
    pub(crate) producers: Vec<ProducerState>,
    /// The producers are as of here.
    pub(crate) dedup_index: Index,
}

impl Pull {
    /// The event of a request.
    pub(crate) fn event(self) -> Event {
        Event::Pull(Box::new(self))
    }
}

/// A body that was verified, with its share of the budget.
pub(crate) struct AloneAppend {
    pub(crate) incarnation: Option<TopicIncarnation>,
    pub(crate) format: u16,
    pub(crate) body: Bytes,
    pub(crate) said: Description,
    pub(crate) producer: Option<NamedBy>,
    pub(crate) bytes: BytePermit,
    /// When it came, on the monotonic clock.
    pub(crate) received: Duration,
}

/// The producer that a body names.
#[derive(Debug, Clone)]
pub(crate) struct NamedBy {
    pub(crate) name: ProducerName,
    pub(crate) instance: ProducerInstance,
    pub(crate) range: SequenceRange,
}

impl NamedBy {
    /// What a body says of its producer; nothing when it names none.
    pub(crate) fn of(said: &Description) -> Result<Option<NamedBy>, BrokerError> {
        let Some(stamp) = said.extensions.producer() else {
            return Ok(None);
        };
        let name = std::str::from_utf8(&stamp.name).ok();
        let name = name.and_then(|name| ProducerName::new(name).ok());
        let name = name.ok_or_else(|| {
            let text = format!("{:?} is no name of a producer", stamp.name);
            BrokerError::invalid(text, "name a producer as sessions do, or none")
        })?;
        let instance = said.extensions.producer_instance();
        Ok(Some(NamedBy {
            name,
            // Objects have random ids: all without one are one.
            instance: instance.unwrap_or(ProducerInstance([0; 16])),
            range: SequenceRange::from(&stamp),
        }))
    }
}

/// The way to what a topic has stored, past its owner: what is acknowledged never changes, so that
/// its holder may read while the topic is served elsewhere already.
pub(crate) struct Door {
    pub(crate) incarnation: TopicIncarnation,
    /// Closes when the topic ends here.
    pub(crate) mailbox: Mailbox,
    /// What appends take their bytes from.
    pub(crate) publish: ByteBudget,
    /// What reads take their bytes from.
    pub(super) deliveries: ByteBudget,
    pub(crate) log: TopicLog,
    pub(super) visible_end: watch::Receiver<Index>,
    pub(super) counters: Arc<TopicCounters>,
    /// What limits appends and reads.
    pub(crate) rates: Arc<TopicRates>,
    pub(super) shared: Arc<Context>,
}

impl Door {
    /// The extent of the topic now.
    pub(crate) fn bounds(&self) -> TopicBounds {
        let visible_end = *self.visible_end.borrow();
        TopicBounds {
            incarnation: self.incarnation,
            first: self.log.first(),
            visible_end,
            end: self.log.end().max(visible_end),
        }
    }
}

/// Nothing can be asked of what lies behind the visible end.
pub(super) fn check_index(index: Index, end: Index) -> Result<(), BrokerError> {
    if index <= end {
        return Ok(());
    }
    Err(BrokerError::invalid(
        format!("index {index} is behind the end, {end}"),
        "give an index within the bounds of the topic",
    ))
}
