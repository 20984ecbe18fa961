//! The trace that a message belongs to, as W3C Trace Context names it: only of messages whose trace
//! is sampled, so that all others cost nothing.

use std::fmt;

/// The property of a message that has its context, in the form of the header `traceparent`.
pub const PROPERTY: &str = "traceparent";
/// Bytes of a context in stored and sent forms: trace id, then span id.
pub const CONTEXT_BYTES: usize = 24;
/// Version, trace id, span id and flags have this length; later versions may append fields.
const TEXT_BYTES: usize = 55;
/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// The place in a sampled trace that something is done for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
}

impl TraceContext {
    /// From the ids of a sampled trace; `None` where one is zero, which W3C does not allow.
    #[must_use]
    pub fn new(trace: [u8; 16], span: [u8; 8]) -> Option<TraceContext> {
        let is_valid = trace != [0; 16] && span != [0; 8];
        is_valid.then_some(TraceContext { trace, span })
    }

    /// From a `traceparent`, `00-<32 hex>-<16 hex>-<2 hex>`. `None` when it is malformed, or says
    /// that the trace is not sampled.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<TraceContext> {
        let text = text.get(..TEXT_BYTES)?;
        let dashes = [2, 35, 52].iter().all(|&at| text[at] == b'-');
        let version = hex::<1>(&text[..2])?;
        let flags = hex::<1>(&text[53..])?;
        if !dashes || version == [0xff] || flags[0] & SAMPLED == 0 {
            return None;
        }
        TraceContext::new(hex(&text[3..35])?, hex(&text[36..52])?)
    }

    /// From its stored form.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<TraceContext> {
        let bytes: &[u8; CONTEXT_BYTES] = bytes.try_into().ok()?;
        let (trace, span) = bytes.split_at(16);
        TraceContext::new(trace.try_into().ok()?, span.try_into().ok()?)
    }

    /// Its stored form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; CONTEXT_BYTES] {
        let mut bytes = [0; CONTEXT_BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..].copy_from_slice(&self.span);
        bytes
    }

    /// The id of the trace.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace
    }

    /// The id of the span in it.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        self.span
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (
            u128::from_be_bytes(self.trace),
            u64::from_be_bytes(self.span),
        );
        write!(f, "00-{trace:032x}-{span:016x}-01")
    }
}

/// Bytes from lower-case hexadecimal digits, which are all that W3C allows.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_survives_both_forms() {
        let context = TraceContext::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
        let later = format!("{}-more", GOOD.replace("00-0", "01-0"));
        assert_eq!(TraceContext::parse(later.as_bytes()), Some(context));
    }

    #[test]
    fn what_is_malformed_or_not_sampled_is_no_context() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319cab7ad6b7169203331--01",
        ] {
            assert_eq!(TraceContext::parse(bad.as_bytes()), None, "{bad}");
        }
        for bad in [&[][..], &[1; 23], &[1; 25], &[0; 24]] {
            assert_eq!(TraceContext::from_bytes(bad), None, "{bad:?}");
        }
    }
}
