//! How long reads usually take at each bookie, so that a slow one is noticed while it is slow.

use std::collections::BTreeMap;
use std::time::Duration;

use aquifer_model::id::BookieId;
use parking_lot::Mutex;

/// Classes of durations: four to each power of two of microseconds.
const CLASSES: usize = 128;
/// Reads that are remembered; beyond, all count half.
const READS_MAX: u32 = 512;
/// Reads before which nothing is known.
const READS_MIN: u32 = 16;
/// What is usual where nothing is known.
const UNKNOWN: Duration = Duration::from_millis(100);
/// Another bookie is not asked sooner: a read of a large range takes its time.
const LEAST: Duration = Duration::from_millis(2);

/// Latencies of all bookies.
#[derive(Debug, Default)]
pub(crate) struct ReadLatencies {
    bookies: Mutex<BTreeMap<BookieId, Latencies>>,
}

#[derive(Debug)]
struct Latencies {
    reads: u32,
    classes: [u32; CLASSES],
}

fn class_of(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(4);
    let power = micros.ilog2();
    let quarter = (micros >> (power - 2)) & 3;
    let class = u64::from(power - 2) * 4 + quarter;
    usize::try_from(class).unwrap_or(CLASSES).min(CLASSES - 1)
}

/// The longest duration of a class.
fn longest(class: usize) -> Duration {
    let (power, quarter) = (class / 4 + 2, class as u64 % 4);
    let micros = (quarter + 5).checked_shl(u32::try_from(power - 2).unwrap_or(u32::MAX));
    Duration::from_micros(micros.unwrap_or(u64::MAX))
}

impl ReadLatencies {
    /// A read was answered.
    pub(crate) fn took(&self, bookie: BookieId, took: Duration) {
        let mut bookies = self.bookies.lock();
        let latencies = bookies.entry(bookie).or_insert(Latencies {
            reads: 0,
            classes: [0; CLASSES],
        });
        latencies.classes[class_of(took)] += 1;
        latencies.reads += 1;
        if latencies.reads > READS_MAX {
            latencies.classes.iter_mut().for_each(|count| *count /= 2);
            latencies.reads = latencies.classes.iter().sum();
        }
    }

    /// What 99 of 100 reads of this bookie do not exceed.
    pub(crate) fn usual_max(&self, bookie: BookieId) -> Duration {
        let bookies = self.bookies.lock();
        let Some(latencies) = bookies.get(&bookie).filter(|l| l.reads >= READS_MIN) else {
            return UNKNOWN;
        };
        let mut beyond = latencies.reads / 100;
        for (class, count) in latencies.classes.iter().enumerate().rev() {
            if *count > beyond {
                return longest(class).max(LEAST);
            }
            beyond -= count;
        }
        UNKNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOOKIE: BookieId = BookieId([1; 16]);

    #[test]
    fn one_slow_read_in_a_hundred_is_not_usual() {
        let latencies = ReadLatencies::default();
        assert_eq!(latencies.usual_max(BOOKIE), UNKNOWN);
        for _ in 0..198 {
            latencies.took(BOOKIE, Duration::from_millis(10));
        }
        latencies.took(BOOKIE, Duration::from_secs(3));
        let usual = latencies.usual_max(BOOKIE);
        assert!(usual >= Duration::from_millis(10) && usual < Duration::from_millis(13));
        for _ in 0..10 {
            latencies.took(BOOKIE, Duration::from_secs(3));
        }
        assert!(latencies.usual_max(BOOKIE) >= Duration::from_secs(3));
    }

    #[test]
    fn what_is_usual_follows_the_bookie() {
        let latencies = ReadLatencies::default();
        for _ in 0..1_000 {
            latencies.took(BOOKIE, Duration::from_millis(500));
        }
        for _ in 0..10_000 {
            latencies.took(BOOKIE, Duration::from_millis(1));
        }
        assert_eq!(latencies.usual_max(BOOKIE), LEAST);
    }

    proptest! {
        #[test]
        fn a_class_holds_its_durations(micros in 4_u64..u64::MAX / 2) {
            let took = Duration::from_micros(micros);
            let class = class_of(took);
            if class < CLASSES - 1 {
                prop_assert!(took < longest(class));
                prop_assert!(class == 0 || took >= longest(class - 1));
            }
        }
    }
}
