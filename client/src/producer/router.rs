//! Which partition a message goes to: by the hash of its key; without one by its sequence id, if the
//! application gave one, so that it goes there again when it is sent again; otherwise the partitions
//! take turns batch by batch, so that batches stay full.

use std::sync::atomic::{AtomicUsize, Ordering};

use aquifer_model::hash::partition_of;

/// Ids in a row that go to one partition, so that batches are not cut for each.
const IDS_IN_A_ROW: u64 = 256;

/// The choice of partitions.
#[derive(Debug, Default)]
pub(crate) struct Router {
    current: AtomicUsize,
}

impl Router {
    /// The partition for a message. `is_filling` says whether a partition has a batch that takes
    /// more messages.
    pub(crate) fn route(
        &self,
        key: Option<&[u8]>,
        sequence_id: Option<u64>,
        partitions: usize,
        is_filling: impl Fn(usize) -> bool,
    ) -> usize {
        if partitions <= 1 {
            return 0;
        }
        if let Some(key) = key {
            let count = u32::try_from(partitions).unwrap_or(u32::MAX);
            return partition_of(key, count) as usize;
        }
        if let Some(id) = sequence_id {
            let turn = id / IDS_IN_A_ROW % partitions as u64;
            return usize::try_from(turn).unwrap_or_default();
        }
        let current = self.current.load(Ordering::Relaxed) % partitions;
        if is_filling(current) {
            return current;
        }
        // Two threads may both move on: that only makes the turn uneven once.
        let next = (current + 1) % partitions;
        self.current.store(next, Ordering::Relaxed);
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_always_goes_to_the_same_partition(
            key in proptest::collection::vec(any::<u8>(), 0..20),
            partitions in 1usize..100,
        ) {
            let router = Router::default();
            let chosen = router.route(Some(&key), None, partitions, |_| false);
            prop_assert!(chosen < partitions);
            router.route(None, None, partitions, |_| false);
            prop_assert_eq!(router.route(Some(&key), Some(9), partitions, |_| true), chosen);
        }

        /// What is sent again under its id meets the original (I8).
        #[test]
        fn an_id_always_goes_to_the_same_partition(
            id in any::<u64>(),
            partitions in 1usize..100,
        ) {
            let (before, after) = (Router::default(), Router::default());
            let chosen = before.route(None, Some(id), partitions, |_| true);
            prop_assert!(chosen < partitions);
            after.route(None, None, partitions, |_| false);
            prop_assert_eq!(after.route(None, Some(id), partitions, |_| false), chosen);
        }
    }

    #[test]
    fn without_a_key_partitions_take_turns_by_batch() {
        let router = Router::default();
        let turns: Vec<usize> = (0..6)
            .map(|_| router.route(None, None, 3, |_| false))
            .collect();
        assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
        assert_eq!(
            router.route(None, None, 3, |at| at == 0),
            0,
            "its batch takes more"
        );
    }
}
