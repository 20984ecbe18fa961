//! What this protocol counts. Labels are bounded: kinds of streams, methods and codes, never names.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_proto::METHODS;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_runtime::telemetry::zero;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};

use crate::status::codes;

const REQUEST_SECONDS: &str = "aquifer_grpc_request_seconds";
const REQUEST_BOUNDARIES: &[f64] = &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];

/// The histograms of this crate.
pub const HISTOGRAMS: &[zero::Shape] = &[(REQUEST_SECONDS, REQUEST_BOUNDARIES)];

/// The instruments.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    meter: Meter,
    connections: UpDownCounter<i64>,
    connections_refused: Counter<u64>,
    streams: UpDownCounter<i64>,
    flows: Arc<[Counts; 4]>,
    errors: Counter<u64>,
    request_errors: Counter<u64>,
    request_seconds: Histogram<f64>,
}

/// Which stream, and which way: the label of frames and bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flow {
    /// Batches in.
    ProduceIn,
    /// Receipts out.
    ProduceOut,
    /// Credit and acknowledgements in.
    ConsumeIn,
    /// Deliveries out.
    ConsumeOut,
}

/// What went by of a flow. An instrument looks its labels up at each addition, which costs more
/// than all else that is counted of a frame: it reads these instead.
#[derive(Debug, Default)]
struct Counts {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Flow {
    /// In the order of their numbers.
    const ALL: [Flow; 4] = [
        Flow::ProduceIn,
        Flow::ProduceOut,
        Flow::ConsumeIn,
        Flow::ConsumeOut,
    ];

    fn labels(self) -> [KeyValue; 2] {
        let (stream, direction) = match self {
            Flow::ProduceIn => ("produce", "in"),
            Flow::ProduceOut => ("produce", "out"),
            Flow::ConsumeIn => ("consume", "in"),
            Flow::ConsumeOut => ("consume", "out"),
        };
        [
            KeyValue::new("stream", stream),
            KeyValue::new("direction", direction),
        ]
    }
}

/// Counts something as open until it is dropped.
pub(crate) struct Open {
    counter: UpDownCounter<i64>,
    labels: Vec<KeyValue>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counter.add(-1, &self.labels);
    }
}

/// Services that bookies have.
const OF_BOOKIES: &str = "Bookie/";

/// The calls and streams of clients, as the label `method` has them: `ListTopics` is `list_topics`.
fn methods() -> BTreeSet<String> {
    let of_clients = METHODS.iter().filter(|name| !name.starts_with(OF_BOOKIES));
    let names = of_clients.filter_map(|name| name.split_once('/'));
    names.map(|(_, method)| label_of(method)).collect()
}

fn label_of(method: &str) -> String {
    let mut label = String::with_capacity(method.len() + 8);
    for c in method.chars() {
        if c.is_ascii_uppercase() && !label.is_empty() {
            label.push('_');
        }
        label.push(c.to_ascii_lowercase());
    }
    label
}

impl Metrics {
    pub(crate) fn new(meter: &Meter) -> Metrics {
        let codes = ErrorKind::ALL.map(|kind| codes(kind).0.as_str_name());
        let methods = methods();
        let methods = methods.iter().map(String::as_str);
        let request_errors = "aquifer_grpc_request_errors_total";
        let metrics = Metrics {
            meter: meter.clone(),
            connections: zero::open(meter, "aquifer_grpc_connections_open"),
            connections_refused: zero::counter(meter, "aquifer_grpc_connections_refused_total"),
            streams: meter
                .i64_up_down_counter("aquifer_grpc_streams_open")
                .build(),
            flows: Arc::default(),
            errors: zero::counter_by(meter, "aquifer_grpc_errors_total", "code", codes),
            request_errors: zero::counter_by(meter, request_errors, "method", methods),
            request_seconds: meter
                .f64_histogram(REQUEST_SECONDS)
                .with_boundaries(REQUEST_BOUNDARIES.to_vec())
                .build(),
        };
        metrics.watch_flows("aquifer_grpc_frames_total", |counts| &counts.frames);
        metrics.watch_flows("aquifer_grpc_payload_bytes_total", |counts| &counts.bytes);
        for stream in ["produce", "consume"] {
            let labels = [KeyValue::new("stream", stream)];
            metrics.streams.add(0, &labels);
        }
        metrics
    }

    fn watch_flows(&self, name: &'static str, count: fn(&Counts) -> &AtomicU64) {
        let flows = Arc::clone(&self.flows);
        let counter = self.meter.u64_observable_counter(name);
        counter
            .with_callback(move |observer| {
                for (flow, counts) in Flow::ALL.iter().zip(flows.iter()) {
                    observer.observe(count(counts).load(Ordering::Relaxed), &flow.labels());
                }
            })
            .build();
    }

    /// Shows what requests hold while they are read.
    pub(crate) fn watch_inbound(&self, used_bytes: impl Fn() -> usize + Send + Sync + 'static) {
        let gauge = self
            .meter
            .u64_observable_gauge("aquifer_grpc_inbound_bytes");
        gauge
            .with_callback(move |observer| {
                observer.observe(u64::try_from(used_bytes()).unwrap_or(u64::MAX), &[]);
            })
            .build();
    }

    pub(crate) fn connection(&self) -> Open {
        self.connections.add(1, &[]);
        Open {
            counter: self.connections.clone(),
            labels: Vec::new(),
        }
    }

    pub(crate) fn connection_refused(&self) {
        self.connections_refused.add(1, &[]);
    }

    pub(crate) fn stream(&self, kind: &'static str) -> Open {
        let labels = vec![KeyValue::new("stream", kind)];
        self.streams.add(1, &labels);
        Open {
            counter: self.streams.clone(),
            labels,
        }
    }

    /// A frame went by, with this many bytes of payload.
    pub(crate) fn frame(&self, flow: Flow, payload_bytes: usize) {
        let counts = &self.flows[flow as usize];
        let bytes = u64::try_from(payload_bytes).unwrap_or(u64::MAX);
        counts.frames.fetch_add(1, Ordering::Relaxed);
        counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A call or a stream failed.
    pub(crate) fn error(&self, method: &'static str, kind: ErrorKind) {
        let code = codes(kind).0.as_str_name();
        self.errors.add(1, &[KeyValue::new("code", code)]);
        let by = [KeyValue::new("method", method)];
        self.request_errors.add(1, &by);
    }

    pub(crate) fn request(&self, method: &'static str, seconds: f64) {
        let labels = [KeyValue::new("method", method)];
        self.request_seconds.record(seconds, &labels);
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::telemetry::Telemetry;

    use super::*;

    #[test]
    fn errors_are_counted_by_method_and_by_code_from_the_start() {
        let telemetry = Telemetry::for_tests();
        let metrics = Metrics::new(&telemetry.meter("aquifer_grpc"));
        let shows = |method: &str, value: u64| {
            let line =
                format!("aquifer_grpc_request_errors_total{{method=\"{method}\"}} {value}\n");
            let text = telemetry.render_metrics();
            assert!(text.contains(&line), "{line}: {text}");
        };
        for method in ["handshake", "produce", "consume", "list_topics", "who_am_i"] {
            shows(method, 0);
        }
        metrics.error("list_topics", ErrorKind::Overloaded);
        shows("list_topics", 1);
        shows("create_topic", 0);
        // Bookies serve these.
        assert!(!telemetry.render_metrics().contains("method=\"ordered\""));
    }
}
