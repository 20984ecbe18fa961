//! Metrics of the broker. Labels are bounded: of namespaces only the largest
//! (`traffic/namespaces.rs`), and never the name of a topic, a subscription or a producer, except
//! of some subscriptions where a setting says how many (`traffic/furthest.rs`).

use std::time::Duration;

use aquifer_protocol_api::error::ErrorKind;
use aquifer_runtime::budget::ByteBudget;
use aquifer_runtime::telemetry::zero;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

use crate::quota::{Cost, Limit};
use crate::traffic::furthest::SubscriptionFigures;
use crate::traffic::namespaces::NamespaceFigures;
use crate::traffic::share::ShareFigures;
use crate::traffic::unloaded::Unloaded;

/// The instruments.
pub(crate) struct BrokerMetrics {
    pub(crate) messages_in: Counter<u64>,
    pub(crate) bytes_in: Counter<u64>,
    pub(crate) messages_out: Counter<u64>,
    pub(crate) bytes_out: Counter<u64>,
    pub(crate) duplicates: Counter<u64>,
    pub(crate) publish_seconds: Histogram<f64>,
    /// From when messages were stored until they are handed to a consumer that keeps up.
    pub(crate) dispatch_seconds: Histogram<f64>,
    /// From when a group of acknowledgements is written until it is durable.
    pub(crate) acknowledge_seconds: Histogram<f64>,
    pub(crate) topics: UpDownCounter<i64>,
    pub(crate) topic_load_seconds: Histogram<f64>,
    pub(crate) producers: UpDownCounter<i64>,
    pub(crate) consumers: UpDownCounter<i64>,
    pub(crate) cursor_records: Counter<u64>,
    pub(crate) cursor_failures: Counter<u64>,
    pub(crate) read_failures: Counter<u64>,
    pub(crate) damaged_messages: Counter<u64>,
    pub(crate) damaged_cursor_logs: Counter<u64>,
    pub(crate) append_failures: Counter<u64>,
    /// Bundles that this broker moved to balance load, while it led.
    pub(crate) balance_moves: Counter<u64>,
    /// Bundles that it split.
    pub(crate) balance_splits: Counter<u64>,
    /// The highest load of a broker as a multiple of the mean; 0 at brokers that are not elected.
    pub(crate) balance_spread: Gauge<f64>,
    /// Messages that subscriptions of loaded topics have not acknowledged.
    pub(crate) backlog: Gauge<u64>,
    /// The most of one subscription.
    pub(crate) backlog_max: Gauge<u64>,
    /// How old the oldest of them is, about, in seconds.
    pub(crate) backlog_age: Gauge<u64>,
    /// Figures of namespaces.
    pub(crate) namespaces: NamespaceFigures,
    /// Subscriptions that are furthest behind.
    pub(crate) subscriptions: SubscriptionFigures,
    /// What this broker has of the load.
    pub(crate) share: ShareFigures,
    /// Backlogs of topics that are not loaded.
    pub(crate) unloaded: Unloaded,
    throttled_waits: Counter<u64>,
    throttled_messages: Counter<u64>,
    throttled_bytes: Counter<u64>,
    throttled_seconds: Histogram<f64>,
    quota_refusals: Counter<u64>,
    /// Loads of topics that no client used, for what was to be offloaded of them.
    pub(crate) offload_visits: Counter<u64>,
    expired_messages: Counter<u64>,
    errors: Counter<u64>,
}

/// Fetches of the keys of issuers, which are those of the settings.
pub(crate) struct KeyFetches(Counter<u64>);

impl KeyFetches {
    pub(crate) fn new(meter: &Meter) -> KeyFetches {
        let name = "aquifer_broker_issuer_key_fetches_total";
        KeyFetches(meter.u64_counter(name).build())
    }

    /// Counts one.
    pub(crate) fn count(&self, issuer: &str, is_done: bool) {
        let outcome = if is_done { "done" } else { "failed" };
        let by = [
            KeyValue::new("issuer", issuer.to_owned()),
            KeyValue::new("outcome", outcome),
        ];
        self.0.add(1, &by);
    }
}

const LATENCY_BOUNDARIES: [f64; 14] = [
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0,
];

/// The histograms of this crate.
pub const HISTOGRAMS: &[zero::Shape] = &[
    (PUBLISH_SECONDS, &LATENCY_BOUNDARIES),
    (DISPATCH_SECONDS, &LATENCY_BOUNDARIES),
    (ACKNOWLEDGE_SECONDS, &LATENCY_BOUNDARIES),
    (TOPIC_LOAD_SECONDS, &LATENCY_BOUNDARIES),
    (THROTTLED_SECONDS, &LATENCY_BOUNDARIES),
];
const PUBLISH_SECONDS: &str = "aquifer_broker_publish_seconds";
const DISPATCH_SECONDS: &str = "aquifer_broker_dispatch_seconds";
const ACKNOWLEDGE_SECONDS: &str = "aquifer_broker_acknowledge_seconds";
const TOPIC_LOAD_SECONDS: &str = "aquifer_broker_topic_load_seconds";
const THROTTLED_SECONDS: &str = "aquifer_broker_throttled_seconds";

impl BrokerMetrics {
    pub(crate) fn new(meter: &Meter) -> BrokerMetrics {
        let counter = |name: &'static str| zero::counter(meter, name);
        let gauge = |name: &'static str| zero::open(meter, name);
        let by_limit = |name: &'static str| {
            zero::counter_by(meter, name, "limit", Limit::ALL.map(Limit::as_str))
        };
        let seconds = |name: &'static str| {
            meter
                .f64_histogram(name)
                .with_boundaries(LATENCY_BOUNDARIES.to_vec())
                .build()
        };
        let kinds = ErrorKind::ALL.map(|kind| format!("{kind:?}"));
        BrokerMetrics {
            messages_in: counter("aquifer_broker_published_messages_total"),
            bytes_in: counter("aquifer_broker_published_bytes_total"),
            messages_out: counter("aquifer_broker_delivered_messages_total"),
            bytes_out: counter("aquifer_broker_delivered_bytes_total"),
            duplicates: counter("aquifer_broker_duplicate_batches_total"),
            publish_seconds: seconds(PUBLISH_SECONDS),
            dispatch_seconds: seconds(DISPATCH_SECONDS),
            acknowledge_seconds: seconds(ACKNOWLEDGE_SECONDS),
            topics: gauge("aquifer_broker_topics_loaded"),
            topic_load_seconds: seconds(TOPIC_LOAD_SECONDS),
            producers: gauge("aquifer_broker_producers_connected"),
            consumers: gauge("aquifer_broker_consumers_connected"),
            cursor_records: counter("aquifer_broker_cursor_records_total"),
            cursor_failures: counter("aquifer_broker_cursor_append_failures_total"),
            read_failures: counter("aquifer_broker_read_failures_total"),
            damaged_messages: counter("aquifer_broker_damaged_messages_total"),
            damaged_cursor_logs: counter("aquifer_broker_damaged_cursor_logs_total"),
            append_failures: counter("aquifer_broker_append_failures_total"),
            balance_moves: counter("aquifer_broker_balance_moves_total"),
            balance_splits: counter("aquifer_broker_balance_splits_total"),
            balance_spread: meter
                .f64_gauge("aquifer_broker_balance_spread_ratio")
                .build(),
            backlog: meter.u64_gauge("aquifer_broker_backlog_messages").build(),
            backlog_max: meter
                .u64_gauge("aquifer_broker_backlog_messages_max")
                .build(),
            backlog_age: meter
                .u64_gauge("aquifer_broker_backlog_age_seconds_max")
                .build(),
            namespaces: NamespaceFigures::new(meter),
            subscriptions: SubscriptionFigures::new(meter),
            share: ShareFigures::new(meter),
            unloaded: Unloaded::new(meter),
            throttled_waits: by_limit("aquifer_broker_throttled_waits_total"),
            throttled_messages: by_limit("aquifer_broker_throttled_messages_total"),
            throttled_bytes: by_limit("aquifer_broker_throttled_bytes_total"),
            throttled_seconds: seconds(THROTTLED_SECONDS),
            quota_refusals: by_limit("aquifer_broker_quota_refusals_total"),
            offload_visits: counter("aquifer_broker_offload_visits_total"),
            expired_messages: counter("aquifer_broker_expired_messages_total"),
            // Which requests there are is known when they come; every kind of failure is now.
            errors: zero::counter_by(
                meter,
                "aquifer_broker_request_errors_total",
                "kind",
                kinds.iter().map(String::as_str),
            ),
        }
    }

    /// Shows what permits of a budget hold.
    pub(crate) fn watch_budget(meter: &Meter, name: &'static str, budget: &ByteBudget) {
        let budget = budget.clone();
        meter
            .u64_observable_gauge(name)
            .with_callback(move |observer| {
                let used = u64::try_from(budget.used_bytes()).unwrap_or(u64::MAX);
                observer.observe(used, &[]);
            })
            .build();
    }

    /// Counts messages that had to wait before they were taken or refused.
    pub(crate) fn published_late(&self, limit: Limit, cost: Cost, waited: Duration) {
        let by = [KeyValue::new("limit", limit.as_str())];
        self.throttled_waits.add(1, &by);
        self.throttled_messages.add(cost.messages, &by);
        self.throttled_bytes.add(cost.bytes, &by);
        self.throttled_seconds.record(waited.as_secs_f64(), &by);
    }

    /// Counts a wait of a subscription.
    pub(crate) fn dispatch_waits(&self, limit: Limit) {
        let by = [KeyValue::new("limit", limit.as_str())];
        self.throttled_waits.add(1, &by);
    }

    /// Counts what a limit refused.
    pub(crate) fn refused(&self, limit: &'static str) {
        self.quota_refusals.add(1, &[KeyValue::new("limit", limit)]);
    }

    /// Counts messages that were acknowledged for a subscription by policy.
    pub(crate) fn expired(&self, policy: &'static str, messages: u64) {
        let by = [KeyValue::new("policy", policy)];
        self.expired_messages.add(messages, &by);
    }

    /// Counts a request that failed.
    pub(crate) fn failed(&self, request: &'static str, kind: ErrorKind) {
        self.errors.add(
            1,
            &[
                KeyValue::new("request", request),
                KeyValue::new("kind", format!("{kind:?}")),
            ],
        );
    }
}
