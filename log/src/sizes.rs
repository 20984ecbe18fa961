//! How many bytes lie behind an index, from the figures of the ledgers alone. Of a ledger that has
//! the index in its middle, the part counts that its messages are of all messages.

use std::collections::VecDeque;

use aquifer_model::id::Index;

use crate::state::Segment;

/// Stored bytes of what lies from `index` on.
pub(crate) fn bytes_from(segments: &VecDeque<Segment>, index: Index) -> u64 {
    let behind = |segment: &Segment| {
        let messages = segment.end_index.0.saturating_sub(segment.first_index.0);
        let wanted = segment.end_index.0.saturating_sub(index.0).min(messages);
        part(segment.bytes, wanted, messages)
    };
    segments.iter().map(behind).fold(0, u64::saturating_add)
}

/// The first index behind which there are at most `bytes`; `None` when that is the end.
pub(crate) fn place_of_newest(segments: &VecDeque<Segment>, bytes: u64) -> Option<Index> {
    let mut left = bytes;
    let mut place = None;
    for segment in segments.iter().rev() {
        let messages = segment.end_index.0.saturating_sub(segment.first_index.0);
        if segment.bytes > left {
            let kept = part(messages, left, segment.bytes);
            return match kept {
                0 => place.or(Some(segment.end_index)),
                kept => Some(Index(segment.end_index.0 - kept)),
            };
        }
        left -= segment.bytes;
        place = Some(segment.first_index);
    }
    place
}

/// About when the message of an index was stored: the time of its ledger's first message, and the
/// part of the time to its last one that lies before it. Before the first ledger: its beginning.
pub(crate) fn time_about(segments: &VecDeque<Segment>, index: Index) -> Option<u64> {
    let segment = segments.iter().find(|segment| index < segment.end_index)?;
    let messages = segment.end_index.0.saturating_sub(segment.first_index.0);
    let before = index.0.saturating_sub(segment.first_index.0);
    let took = segment.last_time_ms.saturating_sub(segment.first_time_ms);
    Some(segment.first_time_ms + part(took, before, messages))
}

/// `of * parts / all`, rounded down.
fn part(of: u64, parts: u64, all: u64) -> u64 {
    let product = u128::from(of) * u128::from(parts);
    let part = product.checked_div(u128::from(all)).unwrap_or(0);
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use aquifer_model::id::LedgerId;
    use proptest::prelude::*;

    use super::*;

    fn segments(sizes: &[(u64, u64)]) -> VecDeque<Segment> {
        let mut first = 10;
        let segment = |(number, (messages, bytes)): (u64, &(u64, u64))| {
            let mut segment = Segment::new(LedgerId(number), Index(first));
            first += messages;
            segment.end_index = Index(first);
            segment.bytes = *bytes;
            segment
        };
        (0..).zip(sizes).map(segment).collect()
    }

    #[test]
    fn a_ledger_counts_for_the_part_that_lies_behind() {
        let all = segments(&[(10, 100), (10, 1_000)]);
        for (index, bytes) in [(0, 1_100), (10, 1_100), (15, 1_050), (20, 1_000), (29, 100)] {
            assert_eq!(bytes_from(&all, Index(index)), bytes, "{index}");
        }
        assert_eq!(bytes_from(&all, Index(30)), 0);
        assert_eq!(bytes_from(&segments(&[]), Index(0)), 0);
        for (bytes, index) in [
            (0, 30),
            (99, 30),
            (100, 29),
            (1_000, 20),
            (1_050, 15),
            (1_100, 10),
        ] {
            assert_eq!(place_of_newest(&all, bytes), Some(Index(index)), "{bytes}");
        }
        assert_eq!(place_of_newest(&segments(&[]), 5), None);
    }

    #[test]
    fn a_message_is_as_old_as_its_place_in_its_ledger_says() {
        let mut all = segments(&[(10, 100), (10, 100)]);
        for (segment, times) in all.iter_mut().zip([(1_000, 2_000), (5_000, 5_000)]) {
            (segment.first_time_ms, segment.last_time_ms) = times;
        }
        for (index, ms) in [
            (0, 1_000),
            (10, 1_000),
            (15, 1_500),
            (20, 5_000),
            (29, 5_000),
        ] {
            assert_eq!(time_about(&all, Index(index)), Some(ms), "{index}");
        }
        assert_eq!(time_about(&all, Index(30)), None);
        assert_eq!(time_about(&segments(&[]), Index(0)), None);
    }

    proptest! {
        /// What is kept fits, and one message more does not.
        #[test]
        fn the_newest_are_as_many_as_fit(
            sizes in proptest::collection::vec((1u64..50, 0u64..5_000), 1..6),
            bytes in 0u64..20_000,
        ) {
            let all = segments(&sizes);
            let place = place_of_newest(&all, bytes).unwrap();
            prop_assert!(bytes_from(&all, place) <= bytes);
            if place.0 > 10 {
                // The part of a ledger is rounded down.
                let before = bytes_from(&all, Index(place.0 - 1));
                prop_assert!(before + 1 >= bytes, "{before}");
            }
        }
    }
}
