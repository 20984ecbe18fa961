//! Which partition a message goes to: the one whose range has the hash of its key; without one by
//! its sequence id, if the application gave one, so that it goes there again when it is sent again;
//! otherwise the sticky partition, which changes round robin.
//!
//! It changes when a batch's worth went to it, or after a while
//! (docs/decisions/2026-11-29-partitions-take-turns.md). It does not change when a batch is sent:
//! an idle partition sends each message at once, and with many partitions all of them are idle.
//! Nor does it depend on how fast a partition answers, which would give the slow ones more.

use std::time::Duration;

use aquifer_model::hash::key_hash;
use aquifer_model::ranges::TopicRanges;
use aquifer_runtime::clock::Instant;
use parking_lot::Mutex;

use crate::producer::settings::Batching;

/// Ids in a row that go to one partition, so that batches are not cut for each.
const IDS_IN_A_ROW: u64 = 256;
/// How long a partition stays sticky at most, unless batches wait longer: some round trips, so
/// that messages gather behind the first, and short enough that the partitions are even within a
/// second.
const STICKY_MAX: Duration = Duration::from_millis(10);

/// The choice of partitions.
#[derive(Debug)]
pub(crate) struct Router {
    messages_max: u32,
    bytes_max: usize,
    sticky_max: Duration,
    /// Those of the topic; none when it is not partitioned.
    ranges: TopicRanges,
    sticky: Mutex<Sticky>,
}

/// The partition that takes messages without key and id, and what it took since it does.
#[derive(Debug)]
struct Sticky {
    partition: usize,
    messages: u32,
    bytes: usize,
    /// Set with its first message: a pause is not part of it.
    began: Option<Instant>,
}

impl Router {
    /// The first sticky partition is any one, so that many short-lived producers are even too.
    pub(crate) fn new(batching: &Batching, ranges: TopicRanges, first: usize) -> Router {
        Router {
            ranges,
            messages_max: batching.messages_max,
            bytes_max: batching.bytes_max,
            sticky_max: STICKY_MAX.max(batching.delay_max),
            sticky: Mutex::new(Sticky {
                partition: first,
                messages: 0,
                bytes: 0,
                began: None,
            }),
        }
    }

    /// The partition for a message of this many bytes, as a position among the ranges in use.
    pub(crate) fn route(
        &self,
        key: Option<&[u8]>,
        sequence_id: Option<u64>,
        bytes: usize,
        now: impl FnOnce() -> Instant,
    ) -> usize {
        let partitions = self.ranges.in_use().len();
        if partitions <= 1 {
            return 0;
        }
        if let Some(key) = key {
            return self.ranges.position_of(key_hash(key)).unwrap_or_default();
        }
        if let Some(id) = sequence_id {
            let chosen = id / IDS_IN_A_ROW % partitions as u64;
            return usize::try_from(chosen).unwrap_or_default();
        }
        self.sticky_partition(bytes, partitions, now())
    }

    fn sticky_partition(&self, bytes: usize, partitions: usize, now: Instant) -> usize {
        let mut sticky = self.sticky.lock();
        let is_over = sticky.messages >= self.messages_max
            || sticky.messages > 0 && sticky.bytes.saturating_add(bytes) > self.bytes_max
            || sticky
                .began
                .is_some_and(|began| now.saturating_duration_since(began) >= self.sticky_max);
        if is_over {
            *sticky = Sticky {
                partition: sticky.partition.wrapping_add(1),
                messages: 0,
                bytes: 0,
                began: None,
            };
        }
        sticky.began.get_or_insert(now);
        sticky.messages += 1;
        sticky.bytes = sticky.bytes.saturating_add(bytes);
        sticky.partition %= partitions;
        sticky.partition
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn router(batching: Batching, partitions: usize) -> Router {
        Router::new(&batching, even(partitions), 0)
    }

    fn adaptive(partitions: usize) -> Router {
        router(Batching::default(), partitions)
    }

    fn even(partitions: usize) -> TopicRanges {
        TopicRanges::even(u32::try_from(partitions).expect("small"))
    }

    /// Sends messages of this many bytes at a steady rate; how many went to each partition, and the
    /// lengths of the runs, each the number of messages in a row to one partition.
    fn send(
        router: &Router,
        (count, bytes): (u32, usize),
        every: Duration,
    ) -> (BTreeMap<usize, u32>, Vec<u32>) {
        let (mut counts, mut rows) = (BTreeMap::new(), Vec::new());
        let (mut now, mut last) = (Instant::now(), None);
        for _ in 0..count {
            let chosen = router.route(None, None, bytes, || now);
            *counts.entry(chosen).or_default() += 1;
            match rows.last_mut().filter(|_| last == Some(chosen)) {
                Some(row) => *row += 1,
                None => rows.push(1),
            }
            last = Some(chosen);
            now += every;
        }
        (counts, rows)
    }

    proptest! {
        #[test]
        fn a_key_always_goes_to_the_same_partition(
            key in proptest::collection::vec(any::<u8>(), 0..20),
            partitions in 1usize..100,
        ) {
            let router = adaptive(partitions);
            let chosen = router.route(Some(&key), None, 1, Instant::now);
            let (ranges, hash) = (even(partitions), key_hash(&key));
            let range = ranges.all().iter().find(|range| (range.first..=range.last).contains(&hash));
            prop_assert_eq!(range.expect("partitioned").number as usize, chosen);
            router.route(None, None, 1, Instant::now);
            prop_assert_eq!(router.route(Some(&key), Some(9), 1, Instant::now), chosen);
        }

        /// What is sent again under its id meets the original (I8).
        #[test]
        fn an_id_always_goes_to_the_same_partition(
            id in any::<u64>(),
            partitions in 1usize..100,
        ) {
            let (before, after) = (adaptive(partitions), adaptive(partitions));
            let chosen = before.route(None, Some(id), 1, Instant::now);
            prop_assert!(chosen < partitions);
            after.route(None, None, 1, Instant::now);
            prop_assert_eq!(after.route(None, Some(id), 1, Instant::now), chosen);
        }

        /// Whatever comes when, no partition gets more in a row than a batch holds, and each is
        /// chosen in its place of the order.
        #[test]
        fn a_partition_stays_sticky_for_a_batch_at_most(
            messages in proptest::collection::vec((0usize..300, 0u64..20), 1..300),
            partitions in 2usize..9,
            messages_max in 1u32..20,
            first in any::<usize>(),
        ) {
            let batching = Batching { messages_max, bytes_max: 1_000, ..Batching::default() };
            let router = Router::new(&batching, even(partitions), first);
            let mut now = Instant::now();
            let mut run: Option<(usize, Instant, u32, usize)> = None;
            for (bytes, pause_ms) in messages {
                now += Duration::from_millis(pause_ms);
                let chosen = router.route(None, None, bytes, || now);
                prop_assert!(chosen < partitions);
                run = match run {
                    Some((last, began, count, sum)) if last == chosen => {
                        prop_assert!(now < began + STICKY_MAX && count < messages_max);
                        prop_assert!(sum + bytes <= 1_000);
                        Some((last, began, count + 1, sum + bytes))
                    }
                    Some((last, ..)) => {
                        prop_assert_eq!(chosen, (last + 1) % partitions);
                        Some((chosen, now, 1, bytes))
                    }
                    None => Some((chosen, now, 1, bytes)),
                };
            }
        }
    }

    /// 4,096 partitions are idle nearly always, and messages come in batches all the same.
    #[test]
    fn many_partitions_get_full_batches_of_a_fast_producer() {
        let (counts, rows) = send(&adaptive(4_096), (2_000_000, 100), Duration::from_micros(2));
        let full = u32::try_from(128 * 1024 / 100).expect("small");
        assert!(rows[..rows.len() - 1].iter().all(|row| *row == full));
        assert_eq!(
            counts.len(),
            rows.len(),
            "each gets one before any gets two"
        );
    }

    #[test]
    fn partitions_are_even_whatever_the_rate() {
        let batching = Batching::default();
        for (every_us, in_a_row) in [(10, 1_000), (1_000, 10), (9_000, 2), (50_000, 1)] {
            let count = in_a_row * 16 * 5;
            let every = Duration::from_micros(every_us);
            let (counts, rows) = send(&router(batching, 16), (count, 100), every);
            assert!(counts.values().all(|n| *n == in_a_row * 5), "{counts:?}");
            assert!(
                rows.iter().all(|row| *row == in_a_row),
                "{every:?}: {rows:?}"
            );
        }
    }

    #[test]
    fn a_partition_stays_sticky_as_long_as_batches_wait() {
        let second = Duration::from_secs(1);
        let waits = Batching::explicit(128 * 1024, 1_000, second);
        let (_, rows) = send(&router(waits, 3), (300, 10), Duration::from_millis(20));
        assert_eq!(rows, [50; 6]);
        let alone = router(Batching::disabled(), 3);
        let (_, rows) = send(&alone, (9, 10), Duration::from_micros(1));
        assert_eq!(rows, [1; 9], "each message is a batch");
    }

    #[test]
    fn a_message_above_the_size_of_a_batch_is_a_run_of_its_own() {
        let (_, rows) = send(&adaptive(3), (6, 1 << 20), Duration::ZERO);
        assert_eq!(rows, [1; 6]);
    }
}
