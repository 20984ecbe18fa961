//! Grouping of acknowledgements: those that are made while a request is under way are merged into
//! ranges and travel together with the next. Plain state, no I/O.
//!
//! After a reconnect what is not confirmed is sent again, as long as the same owner serves the
//! topic: another one has not delivered these messages yet and refuses (H9). A seek voids (H12).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::{Index, OwnerEpoch, SeekEpoch};
use aquifer_model::limits::ACK_RANGES_MAX;
use aquifer_proto::v1;
use aquifer_runtime::clock::Instant;

use crate::completion::Completion;
use crate::error::{ClientError, Outcome, Result};
use crate::wake::Wakers;

/// The shared outcome of acknowledgements that travel together.
pub(crate) type AckOutcome = Completion<Result<()>>;

/// A set of indexes as ranges that neither touch nor overlap.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// First to last, inclusive.
    by_first: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds everything from `first` to `last`, inclusive.
    pub(crate) fn insert(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first, last);
        if let Some((&start, &end)) = self.by_first.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            if end >= last {
                return;
            }
            first = start;
        }
        while let Some((&start, &end)) = self.by_first.range(first..=last.saturating_add(1)).next()
        {
            self.by_first.remove(&start);
            last = last.max(end);
        }
        self.by_first.insert(first, last);
    }

    /// Keeps the first `count` ranges and answers the others.
    pub(crate) fn split_off(&mut self, count: usize) -> Ranges {
        let first = self.by_first.keys().nth(count).copied();
        Ranges {
            by_first: first.map_or_else(BTreeMap::new, |first| self.by_first.split_off(&first)),
        }
    }

    /// The first index from `index` on that is not in the set.
    pub(crate) fn gap_from(&self, index: u64) -> u64 {
        match self.by_first.range(..=index).next_back() {
            Some((_, last)) if *last >= index => last.saturating_add(1),
            _ => index,
        }
    }

    /// Takes everything up to an index, inclusive, out of the set.
    pub(crate) fn remove_up_to(&mut self, index: u64) {
        while let Some(range) = self.by_first.first_entry() {
            if *range.key() > index {
                return;
            }
            let last = range.remove();
            if let Some(next) = index.checked_add(1).filter(|next| *next <= last) {
                self.by_first.insert(next, last);
                return;
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_first.len()
    }

    pub(crate) fn to_wire(&self) -> Vec<v1::IndexRange> {
        let ranges = self.by_first.iter();
        ranges
            .map(|(&first, &last)| v1::IndexRange { first, last })
            .collect()
    }
}

/// What is acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Acknowledged<'a> {
    /// One message.
    One(u64),
    /// A message and everything before it.
    UpTo(u64),
    /// Everything in these ranges, inclusive.
    Ranges(&'a [(Index, Index)]),
}

/// The epochs of the deliveries that are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epochs {
    pub(crate) owner: OwnerEpoch,
    pub(crate) seek: SeekEpoch,
}

/// Acknowledgements that travel together.
#[derive(Debug)]
struct Group {
    epochs: Epochs,
    cumulative: Option<u64>,
    individual: Ranges,
    outcome: Arc<AckOutcome>,
    made_at: Instant,
}

impl Group {
    fn has_room_for(&self, what: Acknowledged<'_>) -> bool {
        let more = match what {
            Acknowledged::One(_) => 1,
            Acknowledged::UpTo(_) => 0,
            Acknowledged::Ranges(ranges) => ranges.len(),
        };
        self.individual.len() + more <= ACK_RANGES_MAX
    }
}

/// What waits to be acknowledged on one partition. Bounded by what was delivered.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// Waits to be sent, oldest first.
    waiting: VecDeque<Group>,
    /// Was sent with this request id and is not confirmed.
    under_way: Option<(u64, Group)>,
    last_request_id: u64,
}

impl Acks {
    /// Adds an acknowledgement to those that wait.
    pub(crate) fn add(
        &mut self,
        epochs: Epochs,
        what: Acknowledged<'_>,
        now: Instant,
    ) -> Arc<AckOutcome> {
        let fits = self
            .waiting
            .back()
            .is_some_and(|group| group.epochs == epochs && group.has_room_for(what));
        if !fits {
            self.waiting.push_back(Group {
                epochs,
                cumulative: None,
                individual: Ranges::default(),
                outcome: Arc::new(AckOutcome::default()),
                made_at: now,
            });
        }
        let group = self
            .waiting
            .back_mut()
            .expect("one was pushed where none fitted");
        match what {
            Acknowledged::UpTo(index) => group.cumulative = group.cumulative.max(Some(index)),
            Acknowledged::One(index) => group.individual.insert(index, index),
            Acknowledged::Ranges(ranges) => {
                for (first, last) in ranges {
                    group.individual.insert(first.0, last.0);
                }
            }
        }
        Arc::clone(&group.outcome)
    }

    /// The next request, unless one is under way.
    pub(crate) fn next(&mut self) -> Option<v1::Acknowledge> {
        if self.under_way.is_some() {
            return None;
        }
        let group = self.waiting.pop_front()?;
        self.last_request_id += 1;
        let request = v1::Acknowledge {
            request_id: self.last_request_id,
            owner_epoch: group.epochs.owner.0,
            seek_epoch: group.epochs.seek.0,
            cumulative: group.cumulative,
            individual: group.individual.to_wire(),
        };
        self.under_way = Some((self.last_request_id, group));
        Some(request)
    }

    /// Whether [`next`](Self::next) has something.
    pub(crate) fn is_due(&self) -> bool {
        self.under_way.is_none() && !self.waiting.is_empty()
    }

    /// The broker has made a request, and all before it, durable, or refused it.
    pub(crate) fn confirmed(&mut self, request_id: u64) -> Option<Arc<AckOutcome>> {
        let (_, group) = self.under_way.take_if(|(id, _)| *id <= request_id)?;
        Some(group.outcome)
    }

    /// The broker has refused a request for the moment: it is made again.
    pub(crate) fn put_back(&mut self, request_id: u64) {
        if let Some((_, group)) = self.under_way.take_if(|(id, _)| *id == request_id) {
            self.waiting.push_front(group);
        }
    }

    /// A new session begins: what is not confirmed is sent again.
    pub(crate) fn rewind(&mut self) {
        if let Some((_, group)) = self.under_way.take() {
            self.waiting.push_front(group);
        }
    }

    /// The topic is at these epochs: acknowledgements of others are void.
    pub(crate) fn void_but(&mut self, epochs: Epochs, wakers: &mut Wakers) {
        let error = |group: &Group| {
            (group.epochs != epochs).then(|| void(group.epochs, epochs, Outcome::Unknown))
        };
        if let Some((_, group)) = self.under_way.take_if(|(_, group)| error(group).is_some()) {
            let error = void(group.epochs, epochs, Outcome::Unknown);
            group.outcome.set_and(Err(error), wakers);
        }
        self.waiting.retain(|group| match error(group) {
            None => true,
            Some(error) => {
                group.outcome.set_and(Err(error), wakers);
                false
            }
        });
    }

    /// When the oldest one was made.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let under_way = self.under_way.as_ref().map(|(_, group)| group);
        under_way
            .or(self.waiting.front())
            .map(|group| group.made_at)
    }

    /// The newest outcome that is not resolved.
    pub(crate) fn newest(&self) -> Option<Arc<AckOutcome>> {
        let under_way = self.under_way.as_ref().map(|(_, group)| group);
        let newest = self.waiting.back().or(under_way)?;
        Some(Arc::clone(&newest.outcome))
    }

    /// Takes those that were made at or before `limit` ago, with whether they were sent.
    pub(crate) fn expired(
        &mut self,
        limit: Duration,
        now: Instant,
    ) -> Vec<(Arc<AckOutcome>, Outcome)> {
        let old = |group: &Group| now.saturating_duration_since(group.made_at) >= limit;
        let mut expired = Vec::new();
        if let Some((_, group)) = self.under_way.take_if(|(_, group)| old(group)) {
            expired.push((group.outcome, Outcome::Unknown));
        }
        while self.waiting.front().is_some_and(old) {
            let group = self.waiting.pop_front();
            // It may have been sent in an earlier session.
            expired.extend(group.map(|group| (group.outcome, Outcome::Unknown)));
        }
        expired
    }

    /// Takes everything, to be failed.
    pub(crate) fn take_all(&mut self) -> Vec<Arc<AckOutcome>> {
        self.rewind();
        self.waiting.drain(..).map(|group| group.outcome).collect()
    }
}

/// An outcome that is resolved from the start.
pub(crate) fn resolved(result: Result<()>) -> Arc<AckOutcome> {
    let outcome = AckOutcome::default();
    outcome.set(result);
    Arc::new(outcome)
}

/// Why an acknowledgement of `of` does not count at `now`.
pub(crate) fn void(of: Epochs, now: Epochs, outcome: Outcome) -> ClientError {
    if of.seek != now.seek {
        return ClientError::Stale;
    }
    ClientError::Connection {
        what: "acknowledging",
        reason: "another broker has taken over the topic and delivers the message again".to_owned(),
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_exactly_what_was_inserted(
            inserted in proptest::collection::vec((0u64..60, 0u64..8), 0..40),
        ) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (first, more) in inserted {
                ranges.insert(first, first + more);
                set.extend(first..=first + more);
            }
            let wire = ranges.to_wire();
            let held: Vec<u64> = wire.iter().flat_map(|range| range.first..=range.last).collect();
            prop_assert_eq!(&held, &set.into_iter().collect::<Vec<_>>());
            prop_assert!(wire.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
            let held: BTreeSet<u64> = held.into_iter().collect();
            for index in 0..70 {
                let gap = (index..).find(|at| !held.contains(at));
                prop_assert_eq!(Some(ranges.gap_from(index)), gap);
            }
            ranges.remove_up_to(30);
            for index in 0..62 {
                let is_held = ranges.gap_from(index) != index;
                prop_assert_eq!(is_held, index > 30 && held.contains(&index));
            }
        }
    }

    fn epochs(owner: u64, seek: u64) -> Epochs {
        Epochs {
            owner: OwnerEpoch(owner),
            seek: SeekEpoch(seek),
        }
    }

    fn add(acks: &mut Acks, seek: u64, index: u64) -> Arc<AckOutcome> {
        acks.add(epochs(3, seek), Acknowledged::One(index), Instant::now())
    }

    fn ranges(request: &v1::Acknowledge) -> Vec<(u64, u64)> {
        let ranges = request.individual.iter();
        ranges.map(|range| (range.first, range.last)).collect()
    }

    #[tokio::test]
    async fn acknowledgements_gather_while_a_request_is_under_way() {
        let mut acks = Acks::default();
        let first = add(&mut acks, 0, 5);
        let request = acks.next().unwrap();
        assert_eq!((request.request_id, request.owner_epoch), (1, 3));
        assert_eq!(ranges(&request), [(5, 5)]);
        let later: Vec<_> = [6, 8, 7, 20].map(|index| add(&mut acks, 0, index)).into();
        acks.add(epochs(3, 0), Acknowledged::UpTo(4), Instant::now());
        assert!(acks.next().is_none(), "one at a time");
        acks.confirmed(1).unwrap().set(Ok(()));
        assert_eq!(first.wait().now_or_never(), Some(&Ok(())));
        let request = acks.next().unwrap();
        assert_eq!(ranges(&request), [(6, 8), (20, 20)]);
        assert_eq!(request.cumulative, Some(4));
        assert!(acks.confirmed(1).is_none(), "confirmed already");
        acks.confirmed(2).unwrap().set(Ok(()));
        for outcome in later {
            assert_eq!(outcome.wait().now_or_never(), Some(&Ok(())));
        }
    }

    #[tokio::test]
    async fn what_is_not_confirmed_is_sent_again_in_order() {
        let mut acks = Acks::default();
        add(&mut acks, 0, 1);
        acks.next().unwrap();
        add(&mut acks, 0, 9);
        acks.rewind();
        acks.void_but(epochs(3, 0), &mut Wakers::default());
        let again = acks.next().unwrap();
        assert_eq!(ranges(&again), [(1, 1)]);
        acks.confirmed(again.request_id).unwrap();
        assert_eq!(ranges(&acks.next().unwrap()), [(9, 9)]);
    }

    #[tokio::test]
    async fn a_seek_or_another_owner_voids_older_acknowledgements_only() {
        let mut acks = Acks::default();
        let old = add(&mut acks, 0, 1);
        acks.next().unwrap();
        let waiting = add(&mut acks, 0, 2);
        let new = add(&mut acks, 1, 3);
        acks.void_but(epochs(3, 1), &mut Wakers::default());
        for void in [old, waiting] {
            assert_eq!(void.wait().now_or_never(), Some(&Err(ClientError::Stale)));
        }
        assert!(new.wait().now_or_never().is_none());
        assert_eq!(ranges(&acks.next().unwrap()), [(3, 3)]);
        acks.void_but(epochs(4, 1), &mut Wakers::default());
        let error = new.wait().now_or_never().unwrap().clone().unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(acks.next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn unconfirmed_ones_expire() {
        let mut acks = Acks::default();
        add(&mut acks, 0, 1);
        acks.next().unwrap();
        let limit = Duration::from_secs(30);
        assert!(acks.expired(limit, Instant::now()).is_empty());
        let later = Instant::now() + limit;
        acks.add(epochs(3, 0), Acknowledged::One(2), later);
        assert_eq!(acks.expired(limit, later).len(), 1);
        assert!(acks.is_due(), "the next may go");
    }
}
