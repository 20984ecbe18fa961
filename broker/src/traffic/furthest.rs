//! The subscriptions that are furthest behind, with lines of their own in the metrics where a
//! setting asks for some. Only that many are kept, however many there are.

use std::cmp::Reverse;
use std::sync::Arc;

use aquifer_model::topic::TopicName;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use parking_lot::Mutex;

use crate::traffic::age_seconds;

/// How far behind a subscription is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lag {
    pub(crate) subscription: String,
    /// Messages that it has not acknowledged.
    pub(crate) messages: u64,
    /// About when the oldest of them was stored, by the wall clock.
    pub(crate) oldest_ms: Option<u64>,
}

/// Those of all subscriptions that are furthest behind.
#[derive(Debug, Default)]
pub(crate) struct Furthest {
    max: usize,
    lags: Vec<(TopicName, Lag)>,
}

impl Furthest {
    pub(crate) fn of_at_most(max: usize) -> Furthest {
        Furthest {
            max,
            lags: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, topic: &TopicName, lag: Lag) {
        if self.max == 0 {
            return;
        }
        self.lags.push((topic.clone(), lag));
        if self.lags.len() > 2 * self.max {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        self.lags.sort_by_key(|(_, lag)| Reverse(lag.messages));
        self.lags.truncate(self.max);
    }

    /// With older ones, but of topics of which `is_told` says that these have what is to be known.
    fn and(mut self, older: &Furthest, is_told: impl Fn(&TopicName) -> bool) -> Furthest {
        let others = older.lags.iter().filter(|(topic, _)| !is_told(topic));
        for (topic, lag) in others {
            self.add(topic, lag.clone());
        }
        self.shorten();
        self
    }
}

/// A line of the metrics.
#[derive(Debug)]
struct Line {
    labels: [KeyValue; 4],
    messages: u64,
    age_seconds: u64,
}

/// What the metrics show.
#[derive(Debug, Clone, Default)]
pub(crate) struct SubscriptionFigures(Arc<Mutex<Vec<Line>>>);

impl SubscriptionFigures {
    /// Makes the gauges. They show nothing unless that is asked for.
    pub(crate) fn new(meter: &Meter) -> SubscriptionFigures {
        type Figure = fn(&Line) -> u64;
        let figures = SubscriptionFigures::default();
        let gauges: [(&'static str, Figure); 2] = [
            ("aquifer_broker_subscription_backlog_messages", |line| {
                line.messages
            }),
            ("aquifer_broker_subscription_backlog_age_seconds", |line| {
                line.age_seconds
            }),
        ];
        for (name, read) in gauges {
            let lines = Arc::clone(&figures.0);
            meter
                .u64_observable_gauge(name)
                .with_callback(move |gauge| {
                    for line in lines.lock().iter() {
                        gauge.observe(read(line), &line.labels);
                    }
                })
                .build();
        }
        figures
    }

    /// Shows these from now on: of topics that are loaded, and of others. Of the topics of which
    /// `is_told` says that `loaded` has them, whether behind or not, the others are older.
    pub(crate) fn show(
        &self,
        loaded: Furthest,
        others: &Furthest,
        is_told: impl Fn(&TopicName) -> bool,
        now_ms: u64,
    ) {
        let all = loaded.and(others, is_told);
        let lines = all.lags.iter().map(|(topic, lag)| line(topic, lag, now_ms));
        *self.0.lock() = lines.collect();
    }
}

fn line(topic: &TopicName, lag: &Lag, now_ms: u64) -> Line {
    let namespace = topic.namespace();
    Line {
        labels: [
            KeyValue::new("tenant", namespace.tenant().to_owned()),
            KeyValue::new("namespace", namespace.namespace().to_owned()),
            KeyValue::new("topic", topic.name().to_owned()),
            KeyValue::new("subscription", lag.subscription.clone()),
        ],
        messages: lag.messages,
        age_seconds: age_seconds(lag.oldest_ms, now_ms),
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::topic::NamespaceName;
    use aquifer_runtime::telemetry::Telemetry;

    use super::*;

    fn topic(number: u64) -> TopicName {
        let namespace = NamespaceName::new("acme", "orders").unwrap();
        TopicName::new(namespace, &format!("t{number}")).unwrap()
    }

    fn lag(messages: u64) -> Lag {
        Lag {
            subscription: "s".to_owned(),
            messages,
            oldest_ms: Some(1_000),
        }
    }

    /// What is kept does not grow, and nothing that is further behind gets lost.
    #[test]
    fn only_those_that_are_furthest_behind_are_kept() {
        let mut furthest = Furthest::of_at_most(3);
        for number in 0..1_000 {
            furthest.add(&topic(number), lag((number * 7_919) % 1_000));
            assert!(furthest.lags.len() <= 6);
        }
        let furthest = furthest.and(&Furthest::default(), |_| false);
        let kept: Vec<u64> = furthest.lags.iter().map(|(_, lag)| lag.messages).collect();
        assert_eq!(kept, [999, 998, 997]);
    }

    #[test]
    fn a_loaded_topic_is_shown_as_it_is_and_not_as_it_was() {
        let telemetry = Telemetry::for_tests();
        let figures = SubscriptionFigures::new(&telemetry.meter("broker"));
        let mut loaded = Furthest::of_at_most(2);
        loaded.add(&topic(1), lag(5));
        let mut others = Furthest::of_at_most(2);
        others.add(&topic(1), lag(90));
        others.add(&topic(2), lag(4));
        // It is loaded, too, and nothing waits there any more.
        others.add(&topic(3), lag(80));
        let is_told = |one: &TopicName| [topic(1), topic(3)].contains(one);
        figures.show(loaded, &others, is_told, 3_000);
        let text = telemetry.render_metrics();
        assert!(!text.contains("topic=\"t3\""), "{text}");
        let name = "aquifer_broker_subscription_backlog_";
        for (what, topic, value) in [
            ("messages", "t1", 5),
            ("messages", "t2", 4),
            ("age_seconds", "t2", 2),
        ] {
            let by = format!(
                "namespace=\"orders\",subscription=\"s\",tenant=\"acme\",topic=\"{topic}\""
            );
            let line = format!("{name}{what}{{{by}}} {value}\n");
            assert!(text.contains(&line), "{line}: {text}");
        }
        let none = Furthest::default();
        figures.show(Furthest::default(), &none, |_| false, 3_000);
        assert!(!telemetry.render_metrics().contains("acme"));
    }
}
