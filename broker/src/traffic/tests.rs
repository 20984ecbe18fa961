use aquifer_metadata::keys::BundleRange;
use aquifer_metadata::store::Revision;
use aquifer_model::id::BrokerId;
use proptest::prelude::*;

use super::*;
use crate::bundle::ownership::owned;

const WINDOW: Duration = Duration::from_secs(30);

fn namespace() -> NamespaceName {
    "public/default".parse().unwrap()
}

fn bundle(first: u32, last: u32) -> Bundle {
    Bundle {
        namespace: namespace(),
        range: BundleRange { first, last },
    }
}

fn mine(first: u32, last: u32, epoch: u64, source: Option<BrokerId>) -> Owned {
    owned(&bundle(first, last), epoch, Revision(1), source)
}

fn sample(hash: u32, messages: u64) -> Sample {
    Sample {
        id: u64::from(hash),
        namespace: namespace(),
        hash,
        loaded: Duration::ZERO,
        counted: Counted {
            messages_in: messages,
            bytes_out: messages * 1024,
            sessions: 2,
            ..Counted::default()
        },
        behind: Behind::default(),
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn rates_are_those_of_the_window_and_bundles_have_those_of_their_topics() {
    let mut meter = LoadMeter::new(WINDOW);
    let all = [mine(0, 99, 1, None), mine(100, 199, 1, None)];
    // A hundred a second in the first minute, ten a second in the second.
    for second in (0..=120u64).step_by(5) {
        let messages = 100 * second.min(60) + 10 * second.saturating_sub(60);
        let samples = vec![sample(7, messages), sample(150, 0), sample(160, messages)];
        meter.observe(seconds(second), samples, &all);
    }
    assert_eq!(meter.measured(), WINDOW);
    let (total, bundles) = meter.bundles();
    let (first, second) = (&bundles[0].load, &bundles[1].load);
    assert!((first.messages_in_per_second - 10.0).abs() < 1e-9);
    assert!((first.bytes_out_per_second - 10.0 * 1024.0).abs() < 1e-9);
    assert!((total.units() - 40.0).abs() < 1e-9);
    assert_eq!((first.topics, first.sessions), (1, 2));
    assert_eq!((second.topics, second.sessions), (2, 4));
    assert_eq!(
        (bundles[0].split_at, bundles[1].split_at),
        (None, Some(160))
    );
    // A topic that is unloaded counts no more; its next object counts from zero.
    meter.observe(seconds(125), vec![sample(7, 0)], &all);
    let (total, _) = meter.bundles();
    assert_eq!((total.topics, total.sessions), (1, 2));
    assert!(total.units().abs() < f64::EPSILON, "{total:?}");
}

#[test]
fn a_hand_over_is_remembered_and_a_part_came_with_its_whole() {
    let mut meter = LoadMeter::new(WINDOW);
    let ages = |meter: &LoadMeter| -> Vec<Option<u64>> {
        let bundles = meter.bundles().1;
        bundles.iter().map(|bundle| bundle.handed_over_ms).collect()
    };
    let source = Some(BrokerId([1; 16]));
    let before = [mine(0, 99, 1, None), mine(100, 199, 2, source)];
    meter.observe(seconds(1), Vec::new(), &before);
    assert_eq!(ages(&meter), [None, Some(0)]);
    let split = [
        mine(0, 99, 1, None),
        mine(100, 149, 3, None),
        mine(150, 199, 3, None),
    ];
    meter.observe(seconds(3), Vec::new(), &split);
    assert_eq!(ages(&meter), [None, Some(2_000), Some(2_000)]);
    // It went, and came back with a later epoch.
    let back = [mine(100, 149, 5, source)];
    meter.observe(seconds(4), Vec::new(), &back);
    assert_eq!(ages(&meter), [Some(0)]);
}

proptest! {
    #[test]
    fn the_median_leaves_no_part_larger_than_a_half_and_the_largest_topic(
        rates in proptest::collection::btree_map(any::<u32>(), 0u32..10_000, 0..50),
    ) {
        let load = |rate: u32| Load { messages_in_per_second: rate.into(), ..Load::default() };
        let topics: Vec<_> = rates.iter().map(|(hash, rate)| (*hash, load(*rate))).collect();
        let Some(at) = median(&topics) else {
            prop_assert!(topics.len() < 2);
            return Ok(());
        };
        let sum = |inside: &dyn Fn(u32) -> bool| -> f64 {
            let part = topics.iter().filter(|(hash, _)| inside(*hash));
            part.map(|(_, load)| load.units() + TOPIC_UNITS_MIN).sum()
        };
        let (before, after) = (sum(&|hash| hash < at), sum(&|hash| hash >= at));
        prop_assert!(before > 0.0 && after > 0.0);
        let largest = rates.values().copied().max().unwrap_or_default();
        let bound = f64::midpoint(before, after) + f64::from(largest) / 2.0 + 0.1;
        prop_assert!(before <= bound && after <= bound, "{before} {after} {largest}");
    }
}
