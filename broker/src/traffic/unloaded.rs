//! How far behind subscriptions of topics are that are not loaded, as the last walk over the
//! records of all topics found it (`sweep.rs`): a sum for each namespace, and nothing for each
//! topic but for those that are furthest behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_model::topic::{NamespaceName, TopicName};
use opentelemetry::metrics::{Gauge, Meter};
use parking_lot::Mutex;

use crate::traffic::age_seconds;
use crate::traffic::furthest::{Furthest, Lag};
use crate::traffic::namespaces::Behind;

/// What a walk has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Those that have a backlog.
    namespaces: BTreeMap<NamespaceName, Behind>,
    /// Topics of which nothing is known before they were loaded again.
    unknown: u64,
    furthest: Furthest,
}

impl Found {
    /// Nothing yet; of subscriptions it keeps this many.
    pub(crate) fn keeping(subscriptions: usize) -> Found {
        Found {
            furthest: Furthest::of_at_most(subscriptions),
            ..Found::default()
        }
    }

    /// Takes a subscription.
    pub(crate) fn add_lag(&mut self, topic: &TopicName, lag: Lag) {
        self.furthest.add(topic, lag);
    }

    /// The subscriptions that are furthest behind.
    pub(crate) fn furthest(&self) -> &Furthest {
        &self.furthest
    }

    /// Counts a topic; `None`: its record does not say how far behind its subscriptions are.
    pub(crate) fn add(&mut self, namespace: &NamespaceName, behind: Option<Behind>) {
        match behind {
            None => self.unknown += 1,
            Some(behind) if behind.messages == 0 => {}
            Some(behind) => {
                let all = self.namespaces.entry(namespace.clone()).or_default();
                *all = all.and(&behind);
            }
        }
    }

    /// The namespaces that have a backlog.
    pub(crate) fn namespaces(&self) -> &BTreeMap<NamespaceName, Behind> {
        &self.namespaces
    }
}

/// What the last complete walk found, and the gauges that show it.
pub(crate) struct Unloaded {
    found: Mutex<Arc<Found>>,
    messages: Gauge<u64>,
    messages_max: Gauge<u64>,
    age_seconds: Gauge<u64>,
    unknown: Gauge<u64>,
}

impl Unloaded {
    /// Makes the gauges, which show 0 until the first walk has ended.
    pub(crate) fn new(meter: &Meter) -> Unloaded {
        let gauge = |name: &'static str| {
            let gauge = meter.u64_gauge(name).build();
            gauge.record(0, &[]);
            gauge
        };
        Unloaded {
            found: Mutex::default(),
            messages: gauge("aquifer_broker_unloaded_backlog_messages"),
            messages_max: gauge("aquifer_broker_unloaded_backlog_messages_max"),
            age_seconds: gauge("aquifer_broker_unloaded_backlog_age_seconds_max"),
            unknown: gauge("aquifer_broker_unloaded_backlog_unknown_topics"),
        }
    }

    /// A walk has seen all topics.
    pub(crate) fn set(&self, found: Found, now_ms: u64) {
        *self.found.lock() = Arc::new(found);
        self.show(now_ms);
    }

    /// What the last walk found.
    pub(crate) fn last(&self) -> Arc<Found> {
        Arc::clone(&self.found.lock())
    }

    /// Shows it, with ages as they are by then.
    pub(crate) fn show(&self, now_ms: u64) {
        let found = self.last();
        let all = found.namespaces.values();
        let all = all.fold(Behind::default(), |all, one| all.and(one));
        self.messages.record(all.messages, &[]);
        self.messages_max.record(all.messages_max, &[]);
        self.age_seconds
            .record(age_seconds(all.oldest_ms, now_ms), &[]);
        self.unknown.record(found.unknown, &[]);
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::telemetry::Telemetry;

    use super::*;

    #[test]
    fn sums_are_of_namespaces_and_zero_from_the_start() {
        let telemetry = Telemetry::for_tests();
        let unloaded = Unloaded::new(&telemetry.meter("broker"));
        let shows = |name: &str, value: u64| {
            let line = format!("aquifer_broker_unloaded_backlog_{name} {value}\n");
            let text = telemetry.render_metrics();
            assert!(text.contains(&line), "{line}: {text}");
        };
        shows("messages", 0);
        shows("unknown_topics", 0);
        let name = |n: &str| NamespaceName::new("t", n).unwrap();
        let behind = |messages, oldest_ms| Behind {
            messages,
            messages_max: messages,
            oldest_ms: Some(oldest_ms),
        };
        let mut found = Found::default();
        found.add(&name("a"), Some(behind(5, 9_000)));
        found.add(&name("a"), Some(behind(2, 4_000)));
        found.add(&name("b"), Some(behind(0, 1)));
        found.add(&name("b"), None);
        unloaded.set(found, 10_000);
        shows("messages", 7);
        shows("messages_max", 5);
        shows("age_seconds_max", 6);
        shows("unknown_topics", 1);
        let last = unloaded.last();
        let listed: Vec<_> = last.namespaces().iter().collect();
        assert_eq!(listed.len(), 1, "{listed:?}");
        unloaded.show(12_000);
        shows("age_seconds_max", 8);
    }
}
