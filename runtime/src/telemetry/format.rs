//! Log lines with the trace id of their span, so that a line leads to its request.

use std::fmt;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// A formatter of tracing-subscriber, and the trace id.
pub(super) struct WithTraceId<F> {
    inner: Format<F>,
    json: bool,
}

impl WithTraceId<Full> {
    /// `… message key=value trace_id=…`
    pub(super) fn text() -> WithTraceId<Full> {
        WithTraceId {
            inner: Format::default().with_ansi(false),
            json: false,
        }
    }
}

impl WithTraceId<Json> {
    /// `{"trace_id":"…", …}`
    pub(super) fn json() -> WithTraceId<Json> {
        WithTraceId {
            inner: Format::default().json().flatten_event(true),
            json: true,
        }
    }
}

impl<F, S, N> FormatEvent<S, N> for WithTraceId<F>
where
    Format<F>: FormatEvent<S, N>,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(trace_id) = current_trace_id() else {
            return self.inner.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.inner
            .format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n');
        match line.strip_prefix('{') {
            Some(rest) if self.json => writeln!(writer, "{{\"trace_id\":\"{trace_id}\",{rest}"),
            _ => writeln!(writer, "{line} trace_id={trace_id}"),
        }
    }
}

/// The trace of the span that is entered now. The layer of tracing-opentelemetry makes the
/// context of each entered span current.
fn current_trace_id() -> Option<String> {
    let context = Context::current();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| span.trace_id().to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use parking_lot::Mutex;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log_in_and_out_of_a_span(json: bool) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let layer = if json {
            layer.json().event_format(WithTraceId::json()).boxed()
        } else {
            layer
                .with_ansi(false)
                .event_format(WithTraceId::text())
                .boxed()
        };
        let provider = SdkTracerProvider::builder().build();
        let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(spans).with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(key = "value", "outside");
            let span = tracing::info_span!("request", topic = "t");
            let _entered = span.enter();
            tracing::info!("inside");
        });
        let bytes = lines.0.lock().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn text_lines_in_a_span_carry_its_trace_id() {
        let lines = log_in_and_out_of_a_span(false);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("outside") && !lines[0].contains("trace_id"));
        let (_, id) = lines[1].rsplit_once(" trace_id=").unwrap();
        assert_eq!(id.len(), 32);
    }

    #[test]
    fn json_lines_stay_json() {
        let lines = log_in_and_out_of_a_span(true);
        let parsed: Vec<serde_json::Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(parsed[0]["message"], "outside");
        assert_eq!(parsed[0]["key"], "value");
        assert!(parsed[0].get("trace_id").is_none());
        assert_eq!(parsed[1]["trace_id"].as_str().unwrap().len(), 32);
        assert_eq!(parsed[1]["span"]["topic"], "t");
    }
}
