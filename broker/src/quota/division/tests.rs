use proptest::prelude::*;

use super::*;

fn broker(number: usize) -> BrokerId {
    BrokerId([u8::try_from(number).unwrap(); 16])
}

/// Brokers with a record that they change by compare-and-swap, each on the version that it has
/// seen last.
struct World {
    record: Claims,
    version: u64,
    brokers: Vec<Broker>,
}

#[derive(Clone, Default)]
struct Broker {
    seen: Claims,
    seen_version: u64,
    demand: u32,
    used: u32,
}

impl World {
    fn new(demands: &[u32]) -> World {
        let brokers = demands.iter().map(|demand| Broker {
            demand: *demand,
            ..Broker::default()
        });
        World {
            record: Claims::new(),
            version: 0,
            brokers: brokers.collect(),
        }
    }

    fn look(&mut self, at: usize) {
        self.brokers[at].seen = self.record.clone();
        self.brokers[at].seen_version = self.version;
    }

    fn step(&mut self, at: usize) {
        let me = &mut self.brokers[at];
        let claim = next(&me.seen, broker(at), me.demand);
        // Less is used at once, more once it is written.
        me.used = me.used.min(claim.share);
        if me.seen_version == self.version {
            self.record.insert(broker(at), claim);
            self.version += 1;
            me.used = claim.share;
        }
    }

    fn used(&self) -> u32 {
        self.brokers.iter().map(|broker| broker.used).sum()
    }
}

fn demands() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![Just(WHOLE), 0..WHOLE], 1..7)
}

/// Max–min by small steps: every broker gets one more unit as long as it wants one.
fn poured(demands: &[u32]) -> Vec<u32> {
    const UNIT: u32 = 100;
    let (mut got, mut left) = (vec![0; demands.len()], WHOLE);
    loop {
        let before = left;
        for (got, want) in got.iter_mut().zip(demands) {
            if *got < *want && left >= UNIT {
                *got += UNIT;
                left -= UNIT;
            }
        }
        if left == before {
            let more = left / u32::try_from(demands.len()).unwrap();
            return got.into_iter().map(|got| got + more).collect();
        }
    }
}

proptest! {
    /// Whatever each sees and whenever it acts, brokers never use more than the whole together.
    #[test]
    fn brokers_never_use_more_than_the_whole(
        demands in demands(),
        steps in prop::collection::vec((0..7_usize, 0..3_u8, 0..=WHOLE), 1..300),
    ) {
        let mut world = World::new(&demands);
        for (at, kind, demand) in steps {
            let at = at % demands.len();
            match kind {
                0 => world.look(at),
                1 => world.step(at),
                _ => world.brokers[at].demand = demand,
            }
            let used = world.used();
            prop_assert!(used <= WHOLE, "{used}");
            let claimed: u32 = world.record.values().map(|claim| claim.share).sum();
            prop_assert!(claimed <= WHOLE, "{claimed}");
        }
    }

    /// From any division, each has what is fair after a few rounds, and nothing is written then.
    #[test]
    fn shares_become_fair_and_stay(before in demands(), after in demands()) {
        let brokers = before.len().max(after.len());
        let padded = |demands: &[u32]| {
            let mut demands = demands.to_vec();
            demands.resize(brokers, WHOLE);
            demands
        };
        let (before, after) = (padded(&before), padded(&after));
        let mut world = World::new(&before);
        for demands in [&before, &after] {
            for (broker, demand) in world.brokers.iter_mut().zip(demands) {
                broker.demand = *demand;
            }
            // The first round tells the demands, the second gives up, the third claims.
            for _ in 0..3 {
                for at in 0..brokers {
                    world.look(at);
                    world.step(at);
                }
            }
            let known: Vec<u32> = world.record.values().map(|claim| claim.demand).collect();
            for (known, demand) in known.iter().zip(demands) {
                let is_near = known.abs_diff(*demand) < 2 * DEMAND_STEP;
                prop_assert!(is_near || brokers == 1, "{known} for {demand}");
            }
            for (at, fair) in poured(&known).into_iter().enumerate() {
                let used = world.brokers[at].used;
                let bound = 2 * STEP + 1_000;
                prop_assert!(used.abs_diff(fair) <= bound, "{used} for {fair} of {demands:?}");
            }
            for (at, &demand) in demands.iter().enumerate() {
                world.look(at);
                let claim = next(&world.record, broker(at), demand);
                prop_assert_eq!(Some(&claim), world.record.get(&broker(at)));
            }
        }
    }
}

#[test]
fn a_broker_alone_has_everything_and_one_without_a_claim_has_something() {
    let alone = next(&Claims::new(), broker(1), 1);
    assert_eq!(alone.share, WHOLE);
    assert_eq!(of_broker(0, 1), WHOLE);
    let shares: u32 = [alone.share, 0, 0]
        .map(|share| of_broker(share, 3))
        .iter()
        .sum();
    assert!(shares <= WHOLE && shares + 10 > WHOLE, "{shares}");
    assert!(of_broker(0, 1_000) > 0);
}

#[test]
fn what_was_used_is_wanted_with_some_more() {
    assert_eq!(demand(0, 1_000, false), 0);
    assert_eq!(demand(400, 1_000, false), WHOLE / 2);
    assert_eq!(demand(10, 1_000, true), WHOLE);
    assert_eq!(demand(u64::MAX, 1, false), WHOLE);
    assert_eq!(demand(0, 0, false), WHOLE);
}
