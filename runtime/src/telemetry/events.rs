//! How many warnings and errors were logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Counts what is logged, as far as the filter lets it pass.
#[derive(Debug, Clone, Default)]
pub(super) struct CountedEvents(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    warnings: AtomicU64,
    errors: AtomicU64,
}

impl CountedEvents {
    /// Shows the counts.
    pub(super) fn register(&self, meter: &Meter) {
        let counts = Arc::clone(&self.0);
        meter
            .u64_observable_counter("aquifer_process_log_events_total")
            .with_description("Warnings and errors in the log of the process")
            .with_callback(move |counter| {
                for (level, count) in [("warn", &counts.warnings), ("error", &counts.errors)] {
                    let by = [KeyValue::new("level", level)];
                    counter.observe(count.load(Ordering::Relaxed), &by);
                }
            })
            .build();
    }
}

impl<S: Subscriber> Layer<S> for CountedEvents {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let count = match *event.metadata().level() {
            Level::WARN => &self.0.warnings,
            Level::ERROR => &self.0.errors,
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}
