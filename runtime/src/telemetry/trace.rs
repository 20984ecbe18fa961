//! Spans of single messages, on their way through producer, broker, bookie and consumer: only of
//! messages whose trace is sampled.

use aquifer_model::trace::TraceContext;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of these spans. They are exported whatever is logged, unless a filter names it.
pub const TARGET: &str = "trace";

/// Makes a span a child of what a message carries.
pub fn adopt(span: &Span, parent: TraceContext) {
    let parent = SpanContext::new(
        TraceId::from_bytes(parent.trace_id()),
        SpanId::from_bytes(parent.span_id()),
        TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    // Without a subscriber that exports traces there is nothing to attach to.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

/// What a message carries that is sent from within a span; `None` where that is not sampled, or
/// nothing exports spans.
#[must_use]
pub fn context_of(span: &Span) -> Option<TraceContext> {
    let context = span.context();
    let context = context.span().span_context().clone();
    let (trace, span) = (context.trace_id(), context.span_id());
    let ids = (trace.to_bytes(), span.to_bytes());
    TraceContext::new(ids.0, ids.1).filter(|_| context.is_sampled())
}
