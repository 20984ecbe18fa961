//! How the consumers of a subscription share its messages: one trait, one file for each mode.
//!
//! A mode knows which consumers are attached and which gets what; the dispatcher keeps what is
//! delivered, comes back or is held back, and asks. A mode that ignores the rows of messages
//! decides once for a whole entry, and nothing of the entry is parsed for it.

use std::collections::BTreeMap;
use std::fmt::Debug;

use aquifer_model::batch::MessageRow;
use aquifer_model::subscription::SubscriptionType;
use aquifer_protocol_api::error::ApiError;

use crate::subscription::consumer::{Consumer, ConsumerId, Notice};
use crate::subscription::exclusive::Exclusive;
use crate::subscription::failover::Failover;
use crate::subscription::pending::Pending;
use crate::subscription::shared::Shared;

/// What becomes of a message, or of a whole entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// A consumer gets it.
    Give(ConsumerId),
    /// It is passed over, and what lies behind it goes on.
    Hold(HoldReason),
    /// No consumer has room: it stays where it is, and delivery stops in front of it.
    Stop,
}

/// Why a message is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldReason {
    /// Its share of the key hashes has no consumer that may take it: one that had the share before
    /// still holds messages of it, or the one that has it has no room.
    KeyHash(u32),
    /// It is not due before this time, ms since the Unix epoch.
    NotDue(u64),
    /// A rate allows no more before this time, ms since the Unix epoch.
    Rate(u64),
}

impl HoldReason {
    /// When it ends by itself; never, if only an event ends it.
    pub(super) fn ends_ms(self) -> u64 {
        match self {
            HoldReason::KeyHash(_) => u64::MAX,
            HoldReason::NotDue(at) | HoldReason::Rate(at) => at,
        }
    }
}

/// A way of sharing. Not every mode attaches several consumers, and each is told of all that are.
pub trait Mode: Debug + Send {
    /// Whether messages come in the order of the partition, and restart at the earliest that came
    /// back (I7).
    fn keeps_order(&self) -> bool {
        true
    }

    /// Whether [`Mode::choose`] wants the rows of messages.
    fn reads_rows(&self) -> bool {
        false
    }

    /// Attaches a consumer. One that is told that it is not served gives up what it holds.
    ///
    /// # Errors
    /// When there is no place for it.
    fn attach(&mut self, consumer: ConsumerId, priority: i32) -> Result<Vec<Notice>, ApiError>;

    /// Detaches a consumer that gave up what it held.
    fn detach(&mut self, consumer: ConsumerId) -> Vec<Notice>;

    /// A consumer may have got room, or holds less than before.
    fn wake(&mut self, _consumer: ConsumerId) {}

    /// Messages and bytes that can be delivered now; `None` when no consumer has room.
    fn room(&self, attached: &Attached<'_>) -> Option<(u64, u64)>;

    /// Decides on a message by its row, or on all wanted messages of an entry without. It says
    /// [`Choice::Stop`] only while [`Mode::room`] is `None`: else the topic would read the same
    /// again and again.
    fn choose(&mut self, row: Option<&MessageRow>, attached: &Attached<'_>, now_ms: u64) -> Choice;

    /// A reason that has ended by an event since it was asked last, until there are no more.
    fn ended(&mut self, _attached: &Attached<'_>) -> Option<HoldReason> {
        None
    }
}

/// The consumers of a subscription, as a mode sees them.
pub struct Attached<'a> {
    pub(super) consumers: &'a BTreeMap<ConsumerId, Consumer>,
    pub(super) pending: &'a Pending,
    /// Most messages that one consumer may hold.
    pub(super) held_max: u64,
}

impl Attached<'_> {
    /// Messages and bytes that a consumer may get, within its credit and the cap on what it holds.
    #[must_use]
    pub fn room(&self, id: ConsumerId) -> Option<(u64, u64)> {
        let (messages, bytes) = self.consumers.get(&id)?.credit_left()?;
        let allowed = self.held_max.saturating_sub(self.pending.held_by(id));
        (allowed > 0).then_some((messages.min(allowed), bytes))
    }
}

/// The mode of a type.
pub(super) fn of(kind: SubscriptionType) -> Box<dyn Mode> {
    match kind {
        SubscriptionType::Exclusive => Box::new(Exclusive::default()),
        SubscriptionType::Failover => Box::new(Failover::default()),
        // No consumer can attach as Key_Shared yet; a stored one waits for one of another type.
        SubscriptionType::Shared | SubscriptionType::KeyShared => Box::new(Shared::default()),
    }
}
