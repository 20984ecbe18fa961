//! Logs, traces and metrics of a process.
//!
//! Logs go to stderr, with the trace id of the request they belong to; traces go to an OTLP
//! collector when one is configured. Metrics are OpenTelemetry instruments, exported into a
//! Prometheus registry that belongs to this object only, so that many nodes can
//! run in one process. An instrument appears in the text under exactly the name it was given:
//! units and `_total` are part of the names we choose.

mod events;
mod format;
mod process;
pub mod trace;
pub mod zero;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use parking_lot::Mutex;
use prometheus::{Registry, TextEncoder};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

pub use crate::error::TelemetryError;
pub use process::resident_bytes;

/// The target of the audit log.
const AUDIT_TARGET: &str = "audit";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// The settings of telemetry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TelemetryConfig {
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged: a level, or `target=level` pairs. The target `audit` is logged whatever the
    /// level, unless a pair names it.
    pub log_filter: String,
    /// Where traces go, for example `http://127.0.0.1:4317`; nowhere without it.
    pub otlp_endpoint: Option<String>,
    /// One of this many requests that come without a trace begins one; 0: no request does. What
    /// comes with a trace follows its caller.
    pub trace_one_in: u32,
    /// The name of this process in traces.
    pub service_name: String,
}

impl Default for TelemetryConfig {
    fn default() -> TelemetryConfig {
        TelemetryConfig {
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            otlp_endpoint: None,
            trace_one_in: 1,
            service_name: "aquifer".to_owned(),
        }
    }
}

/// The telemetry of a process, or of a node in a test. Clones share it.
#[derive(Debug, Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    meters: SdkMeterProvider,
    traces: Option<SdkTracerProvider>,
    /// Histograms that are shown before their first observation.
    histograms: Mutex<BTreeMap<&'static str, &'static [f64]>>,
}

impl Telemetry {
    /// Starts logs, traces and metrics for this process. It works once. With an OTLP endpoint it
    /// must be called on a tokio runtime.
    pub fn start(config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
        let filter = filter(&config.log_filter)?;
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
            .build();
        let traces = tracer_provider(config, resource.clone())?;
        let (registry, meters) = meter_provider(resource)?;
        let events = events::CountedEvents::default();
        let span_layer = tracing_opentelemetry::layer()
            .with_tracer(traces.tracer("aquifer"))
            .with_location(false)
            .with_threads(false)
            // A stream's span is entered at each of its polls, which may be one per message.
            .with_tracked_inactivity(false);
        let log_layer = match config.log_format {
            LogFormat::Text => tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .event_format(format::WithTraceId::text())
                .boxed(),
            LogFormat::Json => tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .json()
                .event_format(format::WithTraceId::json())
                .boxed(),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(span_layer)
            .with(log_layer)
            .with(events.clone())
            .try_init()
            .map_err(|_| TelemetryError::AlreadyStarted)?;
        let telemetry = Telemetry::from_parts(registry, meters, Some(traces));
        process::register(&telemetry.meter("aquifer_process"));
        process::register_runtime(&telemetry.meter("aquifer_runtime"));
        events.register(&telemetry.meter("aquifer_process"));
        Ok(telemetry)
    }

    /// Telemetry with a registry of its own that leaves the process alone: no subscriber, no
    /// exporter.
    #[must_use]
    pub fn for_tests() -> Telemetry {
        let (registry, meters) = meter_provider(Resource::builder_empty().build())
            .expect("an empty registry accepts its first collector");
        Telemetry::from_parts(registry, meters, None)
    }

    fn from_parts(
        registry: Registry,
        meters: SdkMeterProvider,
        traces: Option<SdkTracerProvider>,
    ) -> Telemetry {
        Telemetry {
            inner: Arc::new(Inner {
                registry,
                meters,
                traces,
                histograms: Mutex::default(),
            }),
        }
    }

    /// A meter, from which a component makes its instruments. `name` is the component.
    #[must_use]
    pub fn meter(&self, name: &'static str) -> Meter {
        self.inner.meters.meter(name)
    }

    /// Shows these histograms from now on, though nothing was observed yet.
    pub fn show_histograms(&self, shapes: &[zero::Shape]) {
        self.inner.histograms.lock().extend(shapes.iter().copied());
    }

    /// Shows in the metrics whether the process serves.
    pub fn watch_ready(&self, is_ready: impl Fn() -> bool + Send + Sync + 'static) {
        process::register_ready(&self.meter("aquifer_process"), is_ready);
    }

    /// The registry behind [`Self::render_metrics`], for collectors that are not OpenTelemetry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// All metrics in the text format of Prometheus.
    #[must_use]
    pub fn render_metrics(&self) -> String {
        let families = self.inner.registry.gather();
        let encoded = TextEncoder::new().encode_to_string(&families);
        let mut text = encoded.unwrap_or_else(|error| {
            tracing::warn!(%error, "metrics could not be rendered");
            String::new()
        });
        let names: BTreeSet<&str> = families.iter().map(|family| family.name()).collect();
        let is_there = |name: &str| names.contains(name);
        zero::append(&mut text, &self.inner.histograms.lock(), is_there);
        text
    }

    /// Sends what is buffered and stops exporting. Logs go on.
    pub fn shutdown(&self) {
        if let Some(traces) = &self.inner.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::debug!(%error, "traces were not flushed");
        }
        if let Err(error) = self.inner.meters.shutdown() {
            tracing::debug!(%error, "metrics were not flushed");
        }
    }
}

fn tracer_provider(
    config: &TelemetryConfig,
    resource: Resource,
) -> Result<SdkTracerProvider, TelemetryError> {
    let of_roots = match config.trace_one_in {
        0 => Sampler::AlwaysOff,
        1 => Sampler::AlwaysOn,
        every => Sampler::TraceIdRatioBased(1.0 / f64::from(every)),
    };
    let builder = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(of_roots)))
        .with_resource(resource);
    let Some(endpoint) = &config.otlp_endpoint else {
        // Without an exporter spans still get ids, which is what the logs need.
        return Ok(builder.build());
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| TelemetryError::Exporter {
            endpoint: endpoint.clone(),
            message: error.to_string(),
        })?;
    Ok(builder.with_batch_exporter(exporter).build())
}

fn meter_provider(resource: Resource) -> Result<(Registry, SdkMeterProvider), TelemetryError> {
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .without_units()
        .without_counter_suffixes()
        .without_target_info()
        .scope_info_enabled(false)
        .build()
        .map_err(|error| TelemetryError::Metrics(error.to_string()))?;
    let meters = SdkMeterProvider::builder()
        .with_resource(resource)
        .with_reader(exporter)
        .build();
    Ok((registry, meters))
}

/// What is logged. A person who quiets a process does not mean its record of what callers did, nor
/// the spans of single messages.
fn filter(given: &str) -> Result<EnvFilter, TelemetryError> {
    let wrong = |message: String| TelemetryError::Filter {
        given: given.to_owned(),
        message,
    };
    let filter = EnvFilter::try_new(given).map_err(|error| wrong(error.to_string()))?;
    let named = |pair: &str| {
        let target = pair.split(['=', '[']).next().unwrap_or_default();
        target.trim().to_owned()
    };
    let named: Vec<String> = given.split(',').map(named).collect();
    let added = [AUDIT_TARGET, trace::TARGET].into_iter();
    let mut added = added.filter(|target| !named.iter().any(|name| name == target));
    added.try_fold(filter, |filter, target| {
        let directive = format!("{target}=info").parse();
        let directive = directive.map_err(|error: ParseError| wrong(error.to_string()))?;
        Ok(filter.add_directive(directive))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruments_keep_their_names_and_registries_are_apart() {
        let (one, two) = (Telemetry::for_tests(), Telemetry::for_tests());
        let counter = one
            .meter("bookie")
            .u64_counter("aquifer_bookie_entries_total")
            .with_unit("By")
            .build();
        counter.add(3, &[KeyValue::new("result", "ok")]);
        let text = one.render_metrics();
        assert!(
            text.contains("aquifer_bookie_entries_total{result=\"ok\"} 3"),
            "{text}"
        );
        assert!(!two.render_metrics().contains("aquifer_bookie"));
    }

    #[test]
    fn histograms_and_gauges_render() {
        let telemetry = Telemetry::for_tests();
        let meter = telemetry.meter("test");
        let histogram = meter
            .f64_histogram("aquifer_test_seconds")
            .with_boundaries(vec![0.1, 1.0])
            .build();
        histogram.record(0.5, &[]);
        meter
            .i64_up_down_counter("aquifer_test_open")
            .build()
            .add(2, &[]);
        let text = telemetry.render_metrics();
        assert!(
            text.contains("aquifer_test_seconds_bucket{le=\"1\"} 1"),
            "{text}"
        );
        assert!(text.contains("aquifer_test_open 2"), "{text}");
    }

    /// What has not happened yet is 0, not absent, and never there twice.
    #[test]
    fn counters_and_histograms_are_there_before_the_first_event() {
        let telemetry = Telemetry::for_tests();
        let meter = telemetry.meter("test");
        drop(zero::counter(&meter, "aquifer_test_total"));
        drop(zero::open(&meter, "aquifer_test_open"));
        let by = zero::counter_by(&meter, "aquifer_test_by_total", "reason", ["a", "b"]);
        telemetry.show_histograms(&[("aquifer_test_seconds", &[0.5, 1.0])]);
        let text = telemetry.render_metrics();
        for line in [
            "aquifer_test_total 0",
            "aquifer_test_open 0",
            "aquifer_test_by_total{reason=\"a\"} 0",
            "aquifer_test_by_total{reason=\"b\"} 0",
            "aquifer_test_seconds_bucket{le=\"0.5\"} 0",
            "aquifer_test_seconds_bucket{le=\"1\"} 0",
            "aquifer_test_seconds_bucket{le=\"+Inf\"} 0",
            "aquifer_test_seconds_count 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        by.add(1, &[KeyValue::new("reason", "a")]);
        let histogram = meter
            .f64_histogram("aquifer_test_seconds")
            .with_boundaries(vec![0.5, 1.0]);
        histogram.build().record(0.7, &[]);
        let text = telemetry.render_metrics();
        assert!(text.contains("aquifer_test_by_total{reason=\"a\"} 1"));
        let of_bucket = |line: &&str| line.starts_with("aquifer_test_seconds_bucket{le=\"1\"}");
        let buckets: Vec<&str> = text.lines().filter(of_bucket).collect();
        assert_eq!(buckets, ["aquifer_test_seconds_bucket{le=\"1\"} 1"]);
    }

    #[test]
    fn process_metrics_are_observed() {
        let telemetry = Telemetry::for_tests();
        process::register(&telemetry.meter("process"));
        let text = telemetry.render_metrics();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("aquifer_process_resident_bytes ") > 100_000.0);
        assert!(value("aquifer_process_cpu_seconds_total ") > 0.0);
        assert!(value("aquifer_process_open_fds ") >= 3.0);
        assert!(value("aquifer_process_max_fds ") >= value("aquifer_process_open_fds "));
        assert!(text.contains("aquifer_build_info{version="), "{text}");
        assert!(resident_bytes().unwrap() > 100_000);
    }

    #[tokio::test]
    async fn the_runtime_is_observed() {
        let telemetry = Telemetry::for_tests();
        process::register_runtime(&telemetry.meter("runtime"));
        let text = telemetry.render_metrics();
        assert!(text.contains("aquifer_runtime_workers 1"), "{text}");
        for name in ["tasks", "queued_tasks", "busy_seconds_total"] {
            let line = format!("\naquifer_runtime_{name} ");
            assert!(text.contains(&line), "{name}: {text}");
        }
    }

    #[test]
    fn warnings_and_errors_are_counted() {
        let (telemetry, events) = (Telemetry::for_tests(), events::CountedEvents::default());
        events.register(&telemetry.meter("log"));
        let subscriber = tracing_subscriber::registry().with(events);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("nothing");
            tracing::warn!("continued");
            tracing::error!("needs a person");
            tracing::error!("and another");
        });
        let text = telemetry.render_metrics();
        for line in [
            "aquifer_process_log_events_total{level=\"warn\"} 1",
            "aquifer_process_log_events_total{level=\"error\"} 2",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    /// What of these a filter lets pass: a warning, a note, and a line of the audit log.
    fn passes(given: &str) -> [bool; 3] {
        let subscriber = tracing_subscriber::registry().with(filter(given).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            [
                tracing::enabled!(tracing::Level::WARN),
                tracing::enabled!(tracing::Level::INFO),
                tracing::enabled!(target: "audit", tracing::Level::INFO),
            ]
        })
    }

    #[test]
    fn the_audit_log_is_on_until_it_is_turned_off() {
        assert_eq!(passes("info"), [true, true, true]);
        assert_eq!(passes("warn"), [true, false, true]);
        assert_eq!(passes("error,hyper=debug"), [false, false, true]);
        assert_eq!(passes("off"), [false, false, true]);
        assert_eq!(passes("info,audit=off"), [true, true, false]);
    }

    #[test]
    fn a_bad_filter_is_refused_with_what_was_given() {
        let config = TelemetryConfig {
            log_filter: "aquifer=loud".to_owned(),
            ..TelemetryConfig::default()
        };
        let error = Telemetry::start(&config).unwrap_err();
        assert!(error.to_string().contains("aquifer=loud"), "{error}");
    }
}
