//! What every request and stream begins with: its context and its span.

use std::time::Duration;

use aquifer_protocol_api::context::{Principal, Protocol, RequestContext, RequestId};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tonic::Request;
use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The name of this protocol, in contexts, spans and configuration.
pub(crate) const PROTOCOL: &str = "grpc";
/// Version, trace id, span id and flags of a W3C `traceparent` have this length.
const TRACEPARENT_BYTES: usize = 55;

/// The context of a request. `now` and the resulting deadline are on the monotonic clock;
/// `longest` bounds what a client may ask for.
pub(crate) fn of<T>(
    request: &Request<T>,
    now: Duration,
    longest: Option<Duration>,
) -> RequestContext {
    let metadata = request.metadata();
    let asked = text(metadata, "grpc-timeout").and_then(grpc_timeout);
    let allowed = match (asked, longest) {
        (Some(asked), Some(longest)) => Some(asked.min(longest)),
        (asked, longest) => asked.or(longest),
    };
    let spoken = request.extensions().get::<Protocol>().copied();
    RequestContext {
        principal: request
            .extensions()
            .get::<Principal>()
            .cloned()
            .unwrap_or(Principal::Anonymous),
        protocol: spoken.map_or(PROTOCOL, |Protocol(name)| name),
        peer: request.remote_addr(),
        deadline: allowed.map(|allowed| now.saturating_add(allowed)),
        traceparent: text(metadata, "traceparent")
            .filter(|value| remote_span(value).is_some())
            .map(str::to_owned),
        request_id: request.extensions().get::<RequestId>().cloned(),
        // Another protocol has clients that know nothing of brokers.
        follows_redirects: spoken.is_none(),
    }
}

/// Makes a span a child of the caller's.
pub(crate) fn adopt(span: &Span, ctx: &RequestContext) {
    let parent = ctx.traceparent.as_deref().and_then(remote_span);
    if let Some(parent) = parent {
        // Without a subscriber that exports traces there is nothing to attach to.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key)?.to_str().ok()
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may append fields.
fn remote_span(traceparent: &str) -> Option<SpanContext> {
    if !traceparent.is_ascii() || traceparent.len() < TRACEPARENT_BYTES {
        return None;
    }
    let mut parts = traceparent[..TRACEPARENT_BYTES].split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(flags) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// `<at most 8 digits><unit>` as the gRPC specification has it.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(amount * 3600)),
        'M' => Some(Duration::from_secs(amount * 60)),
        'S' => Some(Duration::from_secs(amount)),
        'm' => Some(Duration::from_millis(amount)),
        'u' => Some(Duration::from_micros(amount)),
        'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_trace_parents_count() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(remote_span(good).is_some_and(|span| span.is_sampled()));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c8031zz-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319cäb7ad6b7169203331-01",
        ] {
            assert!(remote_span(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_call_from_another_protocol_keeps_its_name() {
        let mut request = Request::new(());
        let native = of(&request, Duration::ZERO, None);
        assert_eq!((native.protocol, native.follows_redirects), ("grpc", true));
        request.extensions_mut().insert(Protocol("http"));
        let other = of(&request, Duration::ZERO, None);
        assert_eq!((other.protocol, other.follows_redirects), ("http", false));
    }

    #[test]
    fn the_deadline_is_the_shorter_of_what_is_asked_and_allowed() {
        let deadline = |asked: &str| {
            let mut request = Request::new(());
            let value = asked.parse().unwrap();
            request.metadata_mut().insert("grpc-timeout", value);
            let now = Duration::from_secs(100);
            of(&request, now, Some(Duration::from_secs(30))).deadline
        };
        assert_eq!(deadline("5S"), Some(Duration::from_secs(105)));
        assert_eq!(deadline("250m"), Some(Duration::from_millis(100_250)));
        for unbounded in ["1H", "99999999H", "x", "S", "123456789S", "-1S"] {
            assert_eq!(
                deadline(unbounded),
                Some(Duration::from_secs(130)),
                "{unbounded}"
            );
        }
    }
}
