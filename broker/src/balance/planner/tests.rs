//! A cluster that does at once what the planner decides.

use aquifer_model::load::BundleLoad;
use aquifer_runtime::clock;
use aquifer_runtime::rng::{Rng, SeededRng};
use proptest::prelude::*;

use super::*;
use crate::bundle::Bundles;
use crate::traffic::median;

const PERIOD: Duration = Duration::from_secs(5);
const TWO_MINUTES: usize = 24;

#[derive(Debug, Clone)]
struct Topic {
    hash: u32,
    units: f64,
    /// When it went to another broker by the planner's will.
    moved: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Home {
    owner: BrokerId,
    handed_over: Option<Duration>,
}

struct World {
    rng: SeededRng,
    now: Duration,
    config: BalanceConfig,
    planner: Planner,
    topics: Vec<Topic>,
    bundles: BTreeMap<Bundle, Home>,
    brokers: Vec<BrokerId>,
    /// How far a rate may be from what it is, in percent.
    noise: u64,
    /// When what share of the load moved.
    moved: Vec<(Duration, f64)>,
    splits: usize,
}

fn broker(number: u8) -> BrokerId {
    BrokerId([number; 16])
}

fn namespace() -> aquifer_model::topic::NamespaceName {
    "public/default".parse().unwrap()
}

impl World {
    /// Topics of these loads in 16 bundles, each of which a broker has that is drawn.
    fn new(seed: u64, brokers: u8, loads: impl IntoIterator<Item = f64>) -> World {
        let rng = SeededRng::new(seed);
        let hash = |rng: &SeededRng| u32::try_from(rng.below(1 << 32)).unwrap();
        let mut topics: Vec<Topic> = loads
            .into_iter()
            .map(|units| Topic {
                hash: hash(&rng),
                units,
                moved: None,
            })
            .collect();
        topics.sort_by_key(|topic| topic.hash);
        let brokers: Vec<BrokerId> = (1..=brokers).map(broker).collect();
        let even = Bundles::even(16);
        let even = Bundles::new(&even, aquifer_metadata::store::Revision(1)).unwrap();
        let bundles = even.ranges().map(|range| {
            let bundle = Bundle {
                namespace: namespace(),
                range,
            };
            let home = Home {
                owner: brokers[usize::try_from(rng.below(brokers.len() as u64)).unwrap()],
                handed_over: None,
            };
            (bundle, home)
        });
        let config = BalanceConfig::default();
        World {
            bundles: bundles.collect(),
            rng,
            now: Duration::from_secs(1000),
            planner: Planner::new(config.clone()),
            config,
            topics,
            brokers,
            noise: 0,
            moved: Vec::new(),
            splits: 0,
        }
    }

    fn total(&self) -> f64 {
        self.topics.iter().map(|topic| topic.units).sum()
    }

    fn inside(&self, bundle: &Bundle) -> &[Topic] {
        let BundleRange { first, last } = bundle.range;
        let from = self.topics.partition_point(|topic| topic.hash < first);
        let to = self.topics.partition_point(|topic| topic.hash <= last);
        &self.topics[from..to]
    }

    fn load_of(&self, id: BrokerId) -> f64 {
        let owned = self.bundles.iter().filter(|(_, home)| home.owner == id);
        owned
            .flat_map(|(bundle, _)| self.inside(bundle))
            .map(|topic| topic.units)
            .sum()
    }

    fn spread(&self) -> f64 {
        let loads: Vec<f64> = self.brokers.iter().map(|id| self.load_of(*id)).collect();
        let mean = loads.iter().sum::<f64>() / count(loads.len() as u64);
        loads.into_iter().fold(0.0, f64::max) / mean
    }

    fn report(&self, broker: BrokerId) -> LoadReport {
        let owned = self.bundles.iter().filter(|(_, home)| home.owner == broker);
        let bundles: Vec<BundleLoad> = owned
            .map(|(bundle, home)| {
                let inside = self.inside(bundle).iter();
                let topics: Vec<(u32, Load)> = inside
                    .map(|topic| (topic.hash, self.measured(topic)))
                    .collect();
                BundleLoad {
                    namespace: bundle.namespace.clone(),
                    range: bundle.range,
                    load: topics.iter().map(|(_, load)| *load).sum(),
                    split_at: median(&topics),
                    handed_over_ms: home.handed_over.map(|at| clock::millis(self.now - at)),
                }
            })
            .collect();
        LoadReport {
            broker,
            window_ms: 30_000,
            total: bundles.iter().map(|bundle| bundle.load).sum(),
            bundles,
        }
    }

    fn measured(&self, topic: &Topic) -> Load {
        let percent = 100 + self.rng.below(2 * self.noise + 1) - self.noise;
        Load {
            messages_in_per_second: topic.units * count(percent) / 100.0,
            topics: 1,
            sessions: 1,
            ..Load::default()
        }
    }

    /// A round, with the promises that hold in every one.
    fn round(&mut self) -> Plan {
        let reports: Vec<LoadReport> = self.brokers.iter().map(|id| self.report(*id)).collect();
        let plan = self.planner.round(self.now, &reports);
        assert!(plan.moves.len() <= self.config.moves_per_round_max as usize);
        for split in &plan.splits {
            self.split(split);
        }
        for made in &plan.moves {
            self.go(made);
        }
        self.check_budget();
        self.now += PERIOD;
        plan
    }

    fn rounds(&mut self, count: usize) -> usize {
        (0..count).map(|_| self.round().moves.len()).sum()
    }

    fn split(&mut self, split: &Split) {
        let home = self.bundles.remove(&split.bundle).expect("a bundle");
        let BundleRange { first, last } = split.bundle.range;
        assert!(first < split.at && split.at <= last, "{split:?}");
        for (first, last) in [(first, split.at - 1), (split.at, last)] {
            let range = BundleRange { first, last };
            let part = Bundle {
                namespace: namespace(),
                range,
            };
            assert!(!self.inside(&part).is_empty(), "{split:?}");
            self.bundles.insert(part, home);
        }
        self.planner.split(self.now, &split.bundle);
        self.splits += 1;
    }

    fn go(&mut self, made: &Move) {
        assert!(self.brokers.contains(&made.to) && made.from != made.to);
        let home = self.bundles.get_mut(&made.bundle).expect("a bundle");
        assert_eq!(home.owner, made.from);
        *home = Home {
            owner: made.to,
            handed_over: Some(self.now),
        };
        let range = made.bundle.range.first..=made.bundle.range.last;
        let (now, mut units) = (self.now, 0.0);
        for topic in self.topics.iter_mut().filter(|t| range.contains(&t.hash)) {
            let rested = topic
                .moved
                .is_none_or(|at| now - at >= self.config.cooldown());
            assert!(rested, "a topic moves again too soon: {made:?}");
            topic.moved = Some(now);
            units += topic.units;
        }
        self.moved.push((now, units / self.total()));
        self.planner.moved(self.now, made);
    }

    fn check_budget(&self) {
        let recent = self.moved.iter();
        let recent = recent.filter(|(at, _)| self.now - *at < MINUTE);
        let share: f64 = recent.map(|(_, share)| share).sum();
        // What is measured may be off by the noise, and counts of topics are no loads.
        let measured = self.planner.measure == Measure::Units;
        let most = 0.3 * (1.0 + count(self.noise) / 50.0) + 1e-9;
        assert!(!measured || share <= most, "{share} moved in a minute");
    }

    /// One that ends gives its bundles to others.
    fn leave(&mut self, gone: BrokerId) {
        self.brokers.retain(|id| *id != gone);
        for home in self.bundles.values_mut().filter(|home| home.owner == gone) {
            let at = self.rng.below(self.brokers.len() as u64);
            *home = Home {
                owner: self.brokers[usize::try_from(at).unwrap()],
                handed_over: Some(self.now),
            };
        }
    }
}

/// The Nth of these topics has 1/N^exponent of the load of the first; together they have this many
/// units.
fn zipf(count: u32, exponent: f64, units: f64) -> Vec<f64> {
    let ranks = (1..=count).map(|rank| f64::from(rank).powf(-exponent));
    let sum: f64 = ranks.clone().sum();
    ranks.map(|rank| rank / sum * units).collect()
}

#[test]
fn skewed_load_is_spread_after_a_start_a_join_and_a_leave() {
    for seed in 0..12 {
        let mut world = World::new(seed, 3, zipf(2_000, 1.0, 3_000.0));
        world.rounds(TWO_MINUTES);
        assert!(world.spread() <= 1.3, "start, {seed}: {}", world.spread());
        world.rounds(60);
        world.brokers.push(broker(4));
        world.rounds(TWO_MINUTES);
        assert!(world.spread() <= 1.3, "join, {seed}: {}", world.spread());
        let share = world.load_of(broker(4)) / world.total();
        assert!(share > 0.75 / 4.0, "join, {seed}: {share}");
        world.rounds(60);
        world.leave(broker(1));
        world.rounds(TWO_MINUTES);
        assert!(world.spread() <= 1.3, "leave, {seed}: {}", world.spread());
        world.rounds(120);
        assert_eq!(world.rounds(240), 0, "it comes to rest");
        assert!(world.splits < 64, "{} splits", world.splits);
    }
}

#[test]
fn another_leader_knows_what_has_just_moved() {
    for seed in 0..20 {
        let mut world = World::new(seed, 3, zipf(500, 1.0, 3_000.0));
        for _ in 0..30 {
            // `World::go` sees whether a topic moves again too soon, now that others are hot.
            let units: Vec<f64> = world.topics.iter().map(|topic| topic.units).collect();
            let units = units.iter().cycle().skip(37);
            for (topic, units) in world.topics.iter_mut().zip(units) {
                topic.units = *units;
            }
            world.rounds(6);
            world.planner = Planner::new(world.config.clone());
            world.moved.clear();
        }
    }
}

#[test]
fn one_that_has_too_much_sheds_although_nobody_has_too_little() {
    let mut world = World::new(1, 10, vec![1.0; 4_000]);
    world.planner = Planner::new(BalanceConfig {
        split_topics_max: 20,
        split_bundles_max: 400,
        ..BalanceConfig::default()
    });
    world.rounds(180);
    let bundles = world.bundles.len();
    for (at, home) in world.bundles.values_mut().enumerate() {
        // Every tenth one of the others' goes to the first.
        let number = u8::try_from(at % 10).unwrap() + 1;
        home.owner = broker(if at % 33 == 1 { 1 } else { number });
        home.handed_over = None;
    }
    assert!(bundles > 150 && world.spread() > 1.2, "{}", world.spread());
    let least = world.brokers.iter().map(|id| world.load_of(*id));
    let least = least.fold(f64::MAX, f64::min) / (world.total() / 10.0);
    assert!(least > 0.8, "{least}");
    world.topics.iter_mut().for_each(|topic| topic.moved = None);
    world.planner = Planner::new(world.config.clone());
    world.moved.clear();
    world.rounds(TWO_MINUTES);
    assert!(world.spread() < 1.15, "{}", world.spread());
}

#[test]
fn without_traffic_only_a_broker_that_joins_gets_something() {
    let mut world = World::new(7, 3, vec![0.0; 400]);
    for home in world.bundles.values_mut() {
        home.owner = broker(1 + u8::from(home.owner == broker(3)));
    }
    world.brokers.pop();
    assert_eq!(world.rounds(TWO_MINUTES), 0, "no broker is empty");
    world.brokers.push(broker(5));
    assert!(world.rounds(TWO_MINUTES) > 0);
    let owned = |world: &World, id| {
        let homes = world.bundles.values();
        homes.filter(|home| home.owner == id).count()
    };
    assert!(owned(&world, broker(5)) >= 3, "{:?}", world.bundles);
    assert_eq!(world.rounds(240), 0);
    assert_eq!(world.splits, 0);
}

#[test]
fn one_hot_topic_stays_where_it_is_and_others_make_room() {
    for seed in 0..20 {
        let mut loads = vec![1.0; 300];
        loads.push(1_000.0);
        let mut world = World::new(seed, 3, loads);
        world.rounds(240);
        let hot = world.topics.iter().find(|topic| topic.units > 1.0);
        let hot = hot.unwrap();
        let (moved, total) = (hot.moved, world.total());
        assert!(moved.is_none(), "it is more than may move in a minute");
        let most = world.brokers.iter().map(|id| world.load_of(*id));
        let most = most.fold(0.0, f64::max);
        assert!(most < 1_000.0 + 0.08 * total, "{most} of {total}");
        assert_eq!(world.rounds(240), 0);
    }
}

#[test]
fn a_bundle_beyond_a_limit_is_split_and_a_single_topic_is_not() {
    let mut world = World::new(3, 1, vec![1.0; 3_000]);
    world.planner = Planner::new(BalanceConfig {
        split_topics_max: 100,
        ..BalanceConfig::default()
    });
    world.rounds(TWO_MINUTES);
    let largest = world.bundles.keys().map(|b| world.inside(b).len()).max();
    assert!(largest.unwrap() <= 100, "{largest:?}");
    let splits = world.splits;
    world.rounds(60);
    assert_eq!(world.splits, splits, "{} bundles", world.bundles.len());
    let mut world = World::new(3, 1, vec![1e6]);
    world.rounds(TWO_MINUTES);
    assert_eq!(world.splits, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn noise_moves_nothing_for_ever(
        seed in any::<u64>(),
        brokers in 2u8..8,
        exponent in 0.0..0.9f64,
        noise in 0u64..15,
    ) {
        let mut world = World::new(seed, brokers, zipf(1_000, exponent, 5_000.0));
        world.noise = noise;
        world.rounds(120);
        prop_assert!(world.spread() <= 1.3, "{}", world.spread());
        let moves = world.rounds(240);
        prop_assert!(moves <= 3, "{moves} moves in 20 minutes of nothing new");
    }

    #[test]
    fn promises_hold_whatever_the_load_and_whoever_comes_and_goes(
        seed in any::<u64>(),
        steps in proptest::collection::vec((0u8..4, 1usize..20, 0u32..2_000), 1..12),
    ) {
        let mut world = World::new(seed, 3, zipf(200, 1.2, 2_000.0));
        let mut next = 4;
        for (what, rounds, number) in steps {
            match what {
                0 => {
                    world.brokers.push(broker(next));
                    next += 1;
                }
                1 if world.brokers.len() > 1 => world.leave(world.brokers[0]),
                _ => {
                    let at = number as usize % world.topics.len();
                    world.topics[at].units = f64::from(number);
                    world.moved.clear();
                    world.planner = Planner::new(world.config.clone());
                }
            }
            world.rounds(rounds);
        }
    }
}
