//! Reads and lookups of requests that stand alone, beside the owner task.
//!
//! Invariants: nothing is answered from the visible end on; what is held is counted by the budget
//! of deliveries, from before it is read until the client's connection has taken it (I13). A read
//! that waits holds what it has found so far, and no more than its limits.

use std::time::Duration;

use aquifer_log::{Found, LogEntry, ReadPoint};
use aquifer_model::entry::EntryFlags;
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::position::Position;
use aquifer_protocol_api::consumer::{Gap, IndexRange};
use aquifer_protocol_api::producer::StoredAt;
use aquifer_protocol_api::pull::{Located, LocatedMessage, ReadBatches, ReadLimits, StoredBatch};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use aquifer_runtime::clock;

use crate::error::BrokerError;
use crate::quota::Cost;
use crate::quota::rates::Flow;
use crate::quota::reserved::Reserved;
use crate::topic::pull::{Door, check_index};

/// What an entry costs besides its body.
const BATCH_BYTES: usize = 256;
/// Least that is asked of the budget for a read, so that many readers read no single entries.
const ROOM_BYTES_MIN: usize = 64 << 10;

/// What a read has found so far.
pub(super) struct Gathered {
    limits: ReadLimits,
    pub(super) batches: Vec<StoredBatch>,
    messages: u64,
    bytes: usize,
    /// What it may cost altogether: rates allow no more now.
    affords: Cost,
    /// The next entry exceeds the limits, or must not be in this answer.
    is_full: bool,
    pub(super) gap: Option<Gap>,
    pub(super) next: Index,
}

impl Gathered {
    /// Nothing, from an index on.
    fn new(limits: ReadLimits, next: Index) -> Gathered {
        Gathered {
            limits,
            batches: Vec::new(),
            messages: 0,
            bytes: 0,
            affords: Cost::MAX,
            is_full: false,
            gap: None,
            next,
        }
    }

    fn is_enough(&self) -> bool {
        self.is_full || self.gap.is_some() || self.bytes >= self.limits.bytes_min
    }

    fn bytes_left(&self) -> usize {
        let affords = usize::try_from(self.affords.bytes).unwrap_or(usize::MAX);
        self.limits
            .bytes_max
            .min(affords)
            .saturating_sub(self.bytes)
    }

    /// What it has cost so far.
    fn cost(&self) -> Cost {
        Cost {
            messages: self.messages,
            bytes: self.bytes as u64,
        }
    }

    /// May cost this more than it has cost so far.
    fn afford(&mut self, more: Cost) {
        let so_far = self.cost();
        self.affords = Cost {
            messages: so_far.messages.saturating_add(more.messages),
            bytes: so_far.bytes.saturating_add(more.bytes),
        };
    }

    fn entries_left(&self) -> usize {
        self.limits.batches_max.saturating_sub(self.batches.len())
    }

    fn is_at_limit(&self) -> bool {
        !self.batches.is_empty() && (self.bytes_left() == 0 || self.entries_left() == 0)
    }

    /// Takes an entry with what it holds; the first one whatever it is, others if they fit.
    fn take(&mut self, entry: &LogEntry, room: &mut BytePermit) -> bool {
        let bytes = entry.body.len();
        let messages = self.messages + u64::from(entry.head.message_count);
        let is_within = bytes <= self.bytes_left()
            && self.entries_left() > 0
            && messages <= self.affords.messages;
        let fits = is_within && cost(entry) <= room.bytes();
        if !self.batches.is_empty() && !fits {
            self.is_full = true;
            return false;
        }
        self.bytes += bytes;
        self.messages = messages;
        self.next = entry.head.end_index();
        self.batches.push(StoredBatch {
            at: StoredAt {
                ledger: entry.ledger,
                entry: entry.entry,
                base_index: entry.head.base_index,
            },
            message_count: entry.head.message_count,
            broker_time_ms: entry.head.broker_time_ms,
            format: entry.head.format,
            body: entry.body.clone(),
            held: room.split(cost(entry)).into(),
        });
        true
    }

    /// Passes over an entry that is for no client.
    fn pass_over(&mut self, entry: &LogEntry) {
        self.next = entry.head.end_index();
    }

    /// Notes what storage cannot give; what was found before it is answered without it.
    fn missing(&mut self, gap: Gap) {
        self.is_full = true;
        if self.batches.is_empty() {
            self.next = Index(gap.range.last.0.saturating_add(1));
            self.gap = Some(gap);
        }
    }
}

fn cost(entry: &LogEntry) -> usize {
    entry.body.len() + BATCH_BYTES
}

impl Door {
    /// Reads, and waits for more until `until` on the monotonic clock.
    pub(crate) async fn read(
        mut self,
        from: Index,
        limits: ReadLimits,
        until: Duration,
    ) -> Result<ReadBatches, BrokerError> {
        check_index(from, *self.visible_end.borrow())?;
        let mut point = ReadPoint::from(from.max(self.log.first()));
        let mut gathered = Gathered::new(limits, point.index);
        // What is read at once of all requests of the topic takes equal shares.
        let budget = self.deliveries.child(usize::MAX);
        self.fill(&mut point, &mut gathered, &budget, until).await?;
        let Cost { messages, bytes } = gathered.cost();
        self.counters.delivered(messages, bytes);
        self.shared.metrics.messages_out.add(messages, &[]);
        self.shared.metrics.bytes_out.add(bytes, &[]);
        Ok(ReadBatches {
            bounds: self.bounds(),
            batches: gathered.batches,
            gap: gathered.gap,
            next: gathered.next,
        })
    }

    /// Reads the entry that holds an index, whatever rates allow: or what of it is missing, or
    /// nothing from the visible end on.
    pub(super) async fn entry_at(
        &mut self,
        index: Index,
        bytes_max: usize,
        budget: &ByteBudget,
    ) -> Result<Gathered, BrokerError> {
        let limits = ReadLimits {
            bytes_max,
            batches_max: 1,
            bytes_min: 0,
        };
        let mut point = ReadPoint::from(index);
        let mut gathered = Gathered::new(limits, index);
        self.gather(&mut point, &mut gathered, budget).await?;
        Ok(gathered)
    }

    /// Reads until there is enough, or until `until`.
    async fn fill(
        &mut self,
        point: &mut ReadPoint,
        gathered: &mut Gathered,
        budget: &ByteBudget,
        until: Duration,
    ) -> Result<(), BrokerError> {
        loop {
            self.gather_within(point, gathered, budget, until).await?;
            let left = until.saturating_sub(self.shared.clock.monotonic());
            if gathered.is_enough() || left.is_zero() {
                return Ok(());
            }
            point.release();
            tokio::select! {
                changed = self.visible_end.changed() => if changed.is_err() { return Ok(()) },
                () = self.mailbox.closed() => {
                    let text = "the topic is being unloaded".to_owned();
                    return Err(BrokerError::Unloading(text));
                }
                () = clock::sleep(left) => return Ok(()),
            }
        }
    }

    /// Reads as much as the rates of the topic let pass. Waits for that until `until` at most: then
    /// nothing is read, as if nothing had come.
    async fn gather_within(
        &mut self,
        point: &mut ReadPoint,
        gathered: &mut Gathered,
        budget: &ByteBudget,
        until: Duration,
    ) -> Result<(), BrokerError> {
        if !self.rates.is_limited(Flow::Dispatch) {
            gathered.affords = Cost::MAX;
            return self.gather(point, gathered, budget).await;
        }
        if point.index >= *self.visible_end.borrow_and_update() {
            return Ok(());
        }
        let before = gathered.cost();
        let most = gathered.limits.bytes_max.saturating_sub(gathered.bytes);
        let reserved = Reserved::take(&self.rates, &self.shared, most as u64, until).await;
        let Some(reserved) = reserved else {
            return Ok(());
        };
        gathered.afford(reserved.cost());
        let read = self.gather(point, gathered, budget).await;
        let after = gathered.cost();
        reserved.used(Cost {
            messages: after.messages - before.messages,
            bytes: after.bytes - before.bytes,
        });
        read
    }

    /// Reads up to the visible end, or to the limits.
    async fn gather(
        &mut self,
        point: &mut ReadPoint,
        gathered: &mut Gathered,
        budget: &ByteBudget,
    ) -> Result<(), BrokerError> {
        while !gathered.is_full && gathered.gap.is_none() {
            let end = *self.visible_end.borrow_and_update();
            if point.index >= end {
                return Ok(());
            }
            if gathered.is_at_limit() {
                gathered.is_full = true;
                return Ok(());
            }
            let Some(mut room) = room(gathered, budget).await else {
                // What was found is answered; a request that comes again waits for its room.
                gathered.is_full = true;
                return Ok(());
            };
            let limits = aquifer_log::ReadLimits {
                bytes_max: gathered.bytes_left().min(room.bytes()).max(1),
                entries_max: gathered.entries_left().max(1),
            };
            let found = match self.log.read_cached(point, limits) {
                Some(entries) => Found::Entries(entries),
                None => match self.log.read_or_skip(point, limits).await {
                    Ok(found) => found,
                    Err(_) if !gathered.batches.is_empty() => {
                        gathered.is_full = true;
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            match found {
                Found::Entries(entries) if entries.is_empty() => return Ok(()),
                Found::Entries(entries) => {
                    if gathered.batches.is_empty() && cost(&entries[0]) > room.bytes() {
                        // Given back first: a budget that holds nothing may take whatever is free.
                        room.shrink_to(0);
                        room = budget.acquire(cost(&entries[0])).await;
                    }
                    if !take(point, gathered, &entries, &mut room, end) {
                        return Ok(());
                    }
                }
                Found::Damaged(damage, reason) => gathered.missing(Gap {
                    range: IndexRange {
                        first: damage.from,
                        last: Index(damage.end.0.saturating_sub(1).max(damage.from.0)),
                    },
                    ledger: damage.ledger,
                    entry: damage.entry,
                    at_most: damage.at_most,
                    reason,
                }),
            }
        }
        Ok(())
    }

    /// Finds a place, and what is stored there.
    pub(crate) async fn locate(&self, place: Place) -> Result<Located, BrokerError> {
        let end = *self.visible_end.borrow();
        let index = self
            .log
            .locate(place)
            .await
            .map_err(BrokerError::no_place)?
            .min(end);
        if index >= end {
            let message = None;
            return Ok(Located { index, message });
        }
        let mut point = ReadPoint::from(index);
        let message = match self.log.read_heads_or_skip(&mut point, 1).await? {
            Found::Entries(heads) => heads.first().map(|found| {
                let (base, count) = (found.head.base_index.0, found.head.message_count);
                let batch_index = u32::try_from(index.0.saturating_sub(base)).unwrap_or(0);
                LocatedMessage {
                    position: Position {
                        ledger: found.ledger,
                        entry: found.entry,
                        batch_index: batch_index.min(count.saturating_sub(1)),
                    },
                    broker_time_ms: found.head.broker_time_ms,
                }
            }),
            Found::Damaged(..) => None,
        };
        Ok(Located { index, message })
    }
}

/// Takes what fits and may be seen; the rest is read again. Says whether all was taken.
fn take(
    point: &mut ReadPoint,
    gathered: &mut Gathered,
    entries: &[LogEntry],
    room: &mut BytePermit,
    end: Index,
) -> bool {
    for (at, entry) in entries.iter().enumerate() {
        let head = &entry.head;
        if head.flags.is_control() && head.end_index() <= end {
            gathered.pass_over(entry);
            continue;
        }
        // No flag is set by this version, and each changes what of an entry may be seen.
        if !head.flags.is_control() && head.flags != EntryFlags::default() {
            let flags = head.flags.0;
            gathered.missing(Gap {
                range: IndexRange {
                    first: head.base_index,
                    last: Index(head.end_index().0.saturating_sub(1)),
                },
                ledger: entry.ledger,
                entry: entry.entry,
                at_most: false,
                reason: format!("it has flags {flags:#x}, which this version does not know"),
            });
            return false;
        }
        if head.end_index() > end || !gathered.take(entry, room) {
            point.unread(head.base_index, &entries[at..]);
            return false;
        }
    }
    true
}

/// Room for what is read next; `None` when more than was found has to wait for it.
async fn room(gathered: &Gathered, budget: &ByteBudget) -> Option<BytePermit> {
    let overhead = gathered.entries_left().saturating_mul(BATCH_BYTES);
    let most = gathered.bytes_left().saturating_add(overhead);
    let wanted = most.min(budget.room_bytes()).max(ROOM_BYTES_MIN);
    match budget.try_acquire(wanted) {
        // Others may have taken, and keep, what it looked at: less than that is waited for.
        None if gathered.batches.is_empty() => Some(budget.acquire(ROOM_BYTES_MIN).await),
        taken => taken,
    }
}
