//! What namespaces do at this broker, for the metrics. Labels are bounded: those with most load and
//! those that are furthest behind have figures of their own, all others share theirs.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_model::load::Load;
use aquifer_model::topic::NamespaceName;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use parking_lot::Mutex;

use crate::traffic::age_seconds;

/// Namespaces with most load that are shown, and as many of the others that are furthest behind.
const SHOWN_MAX: usize = 100;
/// How all others are called: no name of a namespace.
const OTHERS: &str = "(others)";

/// How far behind durable subscriptions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Behind {
    /// Messages that they have not acknowledged.
    pub(crate) messages: u64,
    /// The most of one subscription.
    pub(crate) messages_max: u64,
    /// About when the oldest of them was stored, by the wall clock.
    pub(crate) oldest_ms: Option<u64>,
}

impl Behind {
    /// Those of two topics.
    pub(crate) fn and(&self, other: &Behind) -> Behind {
        let oldest = [self.oldest_ms, other.oldest_ms].into_iter().flatten();
        Behind {
            messages: self.messages.saturating_add(other.messages),
            messages_max: self.messages_max.max(other.messages_max),
            oldest_ms: oldest.min(),
        }
    }
}

/// The figures of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Figures {
    pub(crate) load: Load,
    pub(crate) behind: Behind,
    /// The same of topics that are not loaded.
    pub(crate) unloaded: Behind,
}

impl Figures {
    fn and(mut self, other: &Figures) -> Figures {
        self.load += other.load;
        self.behind = self.behind.and(&other.behind);
        self.unloaded = self.unloaded.and(&other.unloaded);
        self
    }

    /// Messages that wait, loaded or not.
    fn waiting(&self) -> u64 {
        let unloaded = self.unloaded.messages;
        self.behind.messages.saturating_add(unloaded)
    }
}

/// A line of the metrics.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    tenant: String,
    namespace: String,
    figures: Figures,
    /// Of the oldest message that is not acknowledged.
    age_seconds: u64,
    /// Of that of topics that are not loaded.
    unloaded_age_seconds: u64,
}

/// One of the rates of a namespace.
type Rate = fn(&Load) -> f64;
/// One of the other numbers of a namespace.
type Count = fn(&Shown) -> u64;

/// What the metrics show.
#[derive(Debug, Clone, Default)]
pub(crate) struct NamespaceFigures(Arc<Mutex<Vec<Shown>>>);

impl NamespaceFigures {
    /// Makes the gauges. They show nothing until there is something to show.
    pub(crate) fn new(meter: &Meter) -> NamespaceFigures {
        let figures = NamespaceFigures::default();
        let rates: [(&str, Rate); 4] = [
            ("published_messages", |load| load.messages_in_per_second),
            ("published_bytes", |load| load.bytes_in_per_second),
            ("delivered_messages", |load| load.messages_out_per_second),
            ("delivered_bytes", |load| load.bytes_out_per_second),
        ];
        for (what, read) in rates {
            let lines = Arc::clone(&figures.0);
            meter
                .f64_observable_gauge(format!("aquifer_broker_namespace_{what}_per_second"))
                .with_callback(move |gauge| {
                    for line in lines.lock().iter() {
                        gauge.observe(read(&line.figures.load), &line.labels());
                    }
                })
                .build();
        }
        let counts: [(&'static str, Count); 6] = [
            ("aquifer_broker_namespace_topics", |line| {
                line.figures.load.topics
            }),
            ("aquifer_broker_namespace_sessions", |line| {
                line.figures.load.sessions
            }),
            ("aquifer_broker_namespace_backlog_messages", |line| {
                line.figures.behind.messages
            }),
            ("aquifer_broker_namespace_backlog_age_seconds", |line| {
                line.age_seconds
            }),
            (
                "aquifer_broker_namespace_unloaded_backlog_messages",
                |line| line.figures.unloaded.messages,
            ),
            (
                "aquifer_broker_namespace_unloaded_backlog_age_seconds",
                |line| line.unloaded_age_seconds,
            ),
        ];
        for (name, read) in counts {
            let lines = Arc::clone(&figures.0);
            meter
                .u64_observable_gauge(name)
                .with_callback(move |gauge| {
                    for line in lines.lock().iter() {
                        gauge.observe(read(line), &line.labels());
                    }
                })
                .build();
        }
        figures
    }

    /// Shows these from now on.
    pub(crate) fn show(&self, all: BTreeMap<NamespaceName, Figures>, now_ms: u64) {
        *self.0.lock() = shown(all, now_ms);
    }
}

impl Shown {
    fn new((tenant, namespace): (&str, &str), figures: Figures, now_ms: u64) -> Shown {
        Shown {
            tenant: tenant.to_owned(),
            namespace: namespace.to_owned(),
            figures,
            age_seconds: age_seconds(figures.behind.oldest_ms, now_ms),
            unloaded_age_seconds: age_seconds(figures.unloaded.oldest_ms, now_ms),
        }
    }

    fn labels(&self) -> [KeyValue; 2] {
        [
            KeyValue::new("tenant", self.tenant.clone()),
            KeyValue::new("namespace", self.namespace.clone()),
        ]
    }
}

fn shown(all: BTreeMap<NamespaceName, Figures>, now_ms: u64) -> Vec<Shown> {
    let mut all: Vec<(NamespaceName, Figures)> = all.into_iter().collect();
    let load = |one: &(NamespaceName, Figures)| one.1.load.units();
    all.sort_by(|one, other| load(other).total_cmp(&load(one)));
    let mut quiet = all.split_off(SHOWN_MAX.min(all.len()));
    quiet.sort_by_key(|(_, figures)| std::cmp::Reverse(figures.waiting()));
    let others = quiet.split_off(SHOWN_MAX.min(quiet.len()));
    all.append(&mut quiet);
    let lines = all
        .iter()
        .map(|(name, figures)| Shown::new((name.tenant(), name.namespace()), *figures, now_ms));
    let mut lines: Vec<Shown> = lines.collect();
    if !others.is_empty() {
        let sum = others.iter();
        let sum = sum.fold(Figures::default(), |sum, (_, figures)| sum.and(figures));
        lines.push(Shown::new((OTHERS, OTHERS), sum, now_ms));
    }
    lines
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::telemetry::Telemetry;

    use super::*;

    fn figures(messages_in_per_second: f64, behind: u64, oldest_ms: u64) -> Figures {
        Figures {
            load: Load {
                messages_in_per_second,
                topics: 1,
                ..Load::default()
            },
            behind: Behind {
                messages: behind,
                messages_max: behind,
                oldest_ms: Some(oldest_ms),
            },
            unloaded: Behind::default(),
        }
    }

    /// The busy ones, then those that are furthest behind, then the rest as one; nothing is lost.
    #[test]
    fn however_many_namespaces_there_are_few_have_lines() {
        let name = |n: u32| NamespaceName::new("t", &format!("n{n:04}")).unwrap();
        let mut all = BTreeMap::new();
        for n in 0..1_000_u32 {
            let behind = if n == 999 { 50 } else { 1 };
            all.insert(name(n), figures(f64::from(1_000 - n), behind, 5_000));
        }
        let lines = shown(all, 9_500);
        assert_eq!(lines.len(), 2 * SHOWN_MAX + 1);
        assert_eq!(lines[0].namespace, "n0000");
        assert_eq!(lines[SHOWN_MAX].namespace, "n0999");
        let others = &lines[2 * SHOWN_MAX];
        assert_eq!(others.namespace, OTHERS);
        assert!(NamespaceName::new("t", OTHERS).is_err());
        assert_eq!(others.age_seconds, 4);
        let topics: u64 = lines.iter().map(|line| line.figures.load.topics).sum();
        let behind: u64 = lines.iter().map(|line| line.figures.behind.messages).sum();
        assert_eq!((topics, behind), (1_000, 1_049));
    }

    /// What is not loaded has no load, and is shown before what waits for less.
    #[test]
    fn a_namespace_without_a_loaded_topic_has_a_line() {
        let unloaded = Figures {
            unloaded: figures(0.0, 40, 2_000).behind,
            ..Figures::default()
        };
        let name = |n: u32| NamespaceName::new("t", &format!("n{n:04}")).unwrap();
        let mut all: BTreeMap<_, _> = (0..300).map(|n| (name(n), figures(1.0, 1, 1))).collect();
        all.insert(name(999), unloaded);
        let lines = shown(all, 9_000);
        let line = lines.iter().find(|line| line.namespace == "n0999").unwrap();
        assert_eq!((line.age_seconds, line.unloaded_age_seconds), (0, 7));
        assert_eq!(line.figures.waiting(), 40);
    }

    #[test]
    fn a_namespace_that_has_gone_has_no_line_any_more() {
        let telemetry = Telemetry::for_tests();
        let metrics = NamespaceFigures::new(&telemetry.meter("broker"));
        let name = NamespaceName::new("acme", "orders").unwrap();
        metrics.show(BTreeMap::from([(name, figures(2.5, 7, 1_000))]), 3_000);
        let text = telemetry.render_metrics();
        let by = "{namespace=\"orders\",tenant=\"acme\"}";
        for line in [
            format!("aquifer_broker_namespace_published_messages_per_second{by} 2.5"),
            format!("aquifer_broker_namespace_backlog_messages{by} 7"),
            format!("aquifer_broker_namespace_backlog_age_seconds{by} 2"),
            format!("aquifer_broker_namespace_topics{by} 1"),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
        metrics.show(BTreeMap::new(), 3_000);
        assert!(!telemetry.render_metrics().contains("acme"));
    }
}
