//! The load of this broker: counters of each topic, and a meter that reads them once a period and
//! knows the rates over a sliding window.
//!
//! Invariants: counting a batch is a few relaxed additions by the topic's own task, without a lock
//! and without an allocation. Everything that costs more happens once a period, or once a report.

#[cfg(test)]
mod tests;

pub(crate) mod furthest;
pub(crate) mod namespaces;
pub(crate) mod share;
pub(crate) mod unloaded;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aquifer_model::id::OwnerEpoch;
use aquifer_model::load::{BundleLoad, Load};
use aquifer_model::topic::NamespaceName;
use aquifer_runtime::clock;
use parking_lot::Mutex;

use crate::bundle::Bundle;
use crate::bundle::ownership::Owned;

use self::furthest::Lag;
pub(crate) use self::namespaces::Behind;

/// What each topic counts at least where its bundle is cut in two, in units a second: topics
/// without traffic are halved by their number.
const TOPIC_UNITS_MIN: f64 = 0.01;

/// How long ago the oldest of some messages was stored, in seconds; 0 without messages.
pub(crate) fn age_seconds(oldest_ms: Option<u64>, now_ms: u64) -> u64 {
    now_ms.saturating_sub(oldest_ms.unwrap_or(now_ms)) / 1_000
}

/// What happened in a topic since it was loaded. Its task adds, the meter reads.
#[derive(Debug, Default)]
pub(crate) struct TopicCounters {
    /// When that was, on the monotonic clock.
    loaded: Duration,
    messages_in: AtomicU64,
    bytes_in: AtomicU64,
    messages_out: AtomicU64,
    bytes_out: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    /// Of its durable subscriptions together, and of the one that is furthest behind.
    backlog: Mutex<Behind>,
    /// Those that are furthest behind, where the metrics show some, once that was noted.
    lags: Mutex<Option<Vec<Lag>>>,
}

/// The counters of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counted {
    pub(crate) messages_in: u64,
    pub(crate) bytes_in: u64,
    pub(crate) messages_out: u64,
    pub(crate) bytes_out: u64,
    /// Producers and consumers that are connected.
    pub(crate) sessions: u64,
}

impl TopicCounters {
    pub(crate) fn new(loaded: Duration) -> TopicCounters {
        TopicCounters {
            loaded,
            ..TopicCounters::default()
        }
    }

    pub(crate) fn loaded(&self) -> Duration {
        self.loaded
    }

    pub(crate) fn published(&self, messages: u64, bytes: u64) {
        self.messages_in.fetch_add(messages, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn delivered(&self, messages: u64, bytes: u64) {
        self.messages_out.fetch_add(messages, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes how far behind its subscriptions are.
    pub(crate) fn set_backlog(&self, behind: Behind) {
        *self.backlog.lock() = behind;
    }

    /// How far behind its subscriptions were when that was noted last.
    pub(crate) fn backlog(&self) -> Behind {
        *self.backlog.lock()
    }

    /// Notes which of its subscriptions are furthest behind.
    pub(crate) fn set_lags(&self, lags: Vec<Lag>) {
        *self.lags.lock() = Some(lags);
    }

    /// Which of them were furthest behind when that was noted last.
    pub(crate) fn lags(&self) -> Vec<Lag> {
        self.lags.lock().clone().unwrap_or_default()
    }

    /// Whether that was noted.
    pub(crate) fn has_lags(&self) -> bool {
        self.lags.lock().is_some()
    }

    pub(crate) fn session_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn session_closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Counted {
        let closed = self.closed.load(Ordering::Relaxed);
        Counted {
            messages_in: self.messages_in.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            messages_out: self.messages_out.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            sessions: self.opened.load(Ordering::Relaxed).saturating_sub(closed),
        }
    }
}

/// A loaded topic at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Of the topic's object: another one of the same name counts from zero.
    pub(crate) id: u64,
    pub(crate) namespace: NamespaceName,
    pub(crate) hash: u32,
    /// When it was, and had counted nothing.
    pub(crate) loaded: Duration,
    pub(crate) counted: Counted,
    /// When that was noted last.
    pub(crate) behind: Behind,
}

/// Turns counters into rates. It reads no clock.
#[derive(Debug)]
pub(crate) struct LoadMeter {
    window: Duration,
    began: Option<Duration>,
    latest: Duration,
    topics: HashMap<u64, Measured>,
    owned: BTreeMap<Bundle, Held>,
}

#[derive(Debug)]
struct Measured {
    namespace: NamespaceName,
    hash: u32,
    /// Oldest first, from one that is just older than the window.
    seen: VecDeque<(Duration, Counted)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: OwnerEpoch,
    /// When another broker handed it over.
    handed_over: Option<Duration>,
}

impl LoadMeter {
    pub(crate) fn new(window: Duration) -> LoadMeter {
        LoadMeter {
            window,
            began: None,
            latest: Duration::ZERO,
            topics: HashMap::new(),
            owned: BTreeMap::new(),
        }
    }

    /// Takes in all topics that are loaded now, and all bundles that are owned.
    pub(crate) fn observe(&mut self, now: Duration, samples: Vec<Sample>, owned: &[Owned]) {
        self.began.get_or_insert(now);
        self.latest = now;
        let window = self.window;
        for sample in samples {
            let topic = self.topics.entry(sample.id).or_insert_with(|| Measured {
                namespace: sample.namespace,
                hash: sample.hash,
                seen: VecDeque::from([(sample.loaded.min(now), Counted::default())]),
            });
            topic.seen.push_back((now, sample.counted));
            let is_enough = |at: &(Duration, Counted)| now.saturating_sub(at.0) >= window;
            while topic.seen.get(1).is_some_and(is_enough) {
                topic.seen.pop_front();
            }
        }
        // What was not seen now is not loaded any more.
        self.topics
            .retain(|_, topic| topic.seen.back().is_some_and(|(at, _)| *at == now));
        let held = owned.iter().map(|owned| {
            let held = Held {
                epoch: owned.epoch,
                handed_over: self.handed_over(owned, now),
            };
            (owned.bundle.clone(), held)
        });
        self.owned = held.collect();
    }

    /// When a bundle was handed over. A part of one that was split came with the whole.
    fn handed_over(&self, owned: &Owned, now: Duration) -> Option<Duration> {
        if let Some(held) = self.owned.get(&owned.bundle)
            && held.epoch == owned.epoch
        {
            return held.handed_over;
        }
        if owned.source.is_some() {
            return Some(now);
        }
        let mut held = self.owned.iter();
        let whole = held.find(|(bundle, _)| bundle.covers(&owned.bundle));
        whole.and_then(|(_, held)| held.handed_over)
    }

    /// The time that the rates are over; nothing until there are two observations.
    pub(crate) fn measured(&self) -> Duration {
        let began = self.began.unwrap_or(self.latest);
        self.latest.saturating_sub(began).min(self.window)
    }

    /// The shortest time that a rate is over: what comes first to a topic that was just loaded has
    /// often waited for that.
    fn least(&self) -> Duration {
        self.window / 6
    }

    /// The bundles that were owned at the last observation, and everything together.
    pub(crate) fn bundles(&self) -> (Load, Vec<BundleLoad>) {
        let least = self.least();
        let mut by_namespace: BTreeMap<&NamespaceName, Vec<(u32, Load)>> = BTreeMap::new();
        for topic in self.topics.values() {
            let loads = by_namespace.entry(&topic.namespace).or_default();
            loads.push((topic.hash, topic.load(least)));
        }
        for loads in by_namespace.values_mut() {
            loads.sort_unstable_by_key(|(hash, _)| *hash);
        }
        let of_bundle = |(bundle, held): (&Bundle, &Held)| {
            let all = by_namespace.get(&bundle.namespace);
            let topics = all.map_or(&[][..], |all| within(all, bundle));
            let age = |at| self.latest.saturating_sub(at);
            BundleLoad {
                namespace: bundle.namespace.clone(),
                range: bundle.range,
                load: topics.iter().map(|(_, load)| *load).sum(),
                split_at: median(topics),
                handed_over_ms: held.handed_over.map(|at| clock::millis(age(at))),
            }
        };
        let bundles = self.owned.iter().map(of_bundle).collect();
        let total = self.topics.values().map(|topic| topic.load(least));
        (total.sum(), bundles)
    }

    /// The load of each namespace, of the topics that were loaded at the last observation.
    pub(crate) fn namespaces(&self) -> BTreeMap<NamespaceName, Load> {
        let least = self.least();
        let mut loads: BTreeMap<NamespaceName, Load> = BTreeMap::new();
        for topic in self.topics.values() {
            *loads.entry(topic.namespace.clone()).or_default() += topic.load(least);
        }
        loads
    }

    /// The hash that halves the load of a bundle, as far as its topics are loaded here.
    pub(crate) fn split_at(&self, bundle: &Bundle) -> Option<u32> {
        let least = self.least();
        let inside = |topic: &&Measured| {
            topic.namespace == bundle.namespace
                && (bundle.range.first..=bundle.range.last).contains(&topic.hash)
        };
        let topics = self.topics.values().filter(inside);
        let mut loads: Vec<_> = topics
            .map(|topic| (topic.hash, topic.load(least)))
            .collect();
        loads.sort_unstable_by_key(|(hash, _)| *hash);
        median(&loads)
    }
}

impl Measured {
    fn load(&self, least: Duration) -> Load {
        let counts = |counted: &Counted| Load {
            topics: 1,
            sessions: counted.sessions,
            ..Load::default()
        };
        let (Some((from, first)), Some((to, last))) = (self.seen.front(), self.seen.back()) else {
            return Load::default();
        };
        let seconds = to.saturating_sub(*from).max(least).as_secs_f64();
        let rate =
            |of: fn(&Counted) -> u64| per_second(of(last).saturating_sub(of(first)), seconds);
        Load {
            messages_in_per_second: rate(|counted| counted.messages_in),
            bytes_in_per_second: rate(|counted| counted.bytes_in),
            messages_out_per_second: rate(|counted| counted.messages_out),
            bytes_out_per_second: rate(|counted| counted.bytes_out),
            ..counts(last)
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a rate need not be exact to the last of 2^52 messages"
)]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

/// The part of a sorted list that is in a bundle.
fn within<'a>(sorted: &'a [(u32, Load)], bundle: &Bundle) -> &'a [(u32, Load)] {
    let from = sorted.partition_point(|(hash, _)| *hash < bundle.range.first);
    let to = sorted.partition_point(|(hash, _)| *hash <= bundle.range.last);
    &sorted[from..to]
}

/// The hash in front of which a cut leaves the most even parts, of topics sorted by hash.
pub(crate) fn median(sorted: &[(u32, Load)]) -> Option<u32> {
    let units = |load: &Load| load.units() + TOPIC_UNITS_MIN;
    let total: f64 = sorted.iter().map(|(_, load)| units(load)).sum();
    let (mut before, mut best) = (0.0, None);
    for pair in sorted.windows(2) {
        before += units(&pair[0].1);
        let uneven = (total - 2.0 * before).abs();
        let is_cut = pair[0].0 < pair[1].0;
        if is_cut && best.is_none_or(|(least, _)| uneven < least) {
            best = Some((uneven, pair[1].0));
        }
    }
    best.map(|(_, hash)| hash)
}
