//! Parts of the policy `offload`.

use aquifer_model::policy::offload::OffloadCompression;

use crate::args::policy::value::{or, size, switch, time};

/// A part of when closed ledgers go into objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadPart {
    /// Whether they do without a command.
    Enabled(bool),
    /// Milliseconds; none: not by age.
    AgeMs(Option<u64>),
    /// Bytes; none: not by size.
    Bytes(Option<u64>),
    /// Milliseconds.
    LagMs(u64),
    /// Whether blocks are compressed.
    Compression(OffloadCompression),
}

/// Reads a part; without a name it is whether any ledger is offloaded.
pub(super) fn parse(part: &str, value: &str) -> Result<OffloadPart, String> {
    match part {
        "" => switch(value).map(OffloadPart::Enabled),
        "age" => or("never", value, time).map(OffloadPart::AgeMs),
        "bytes" => or("unlimited", value, size).map(OffloadPart::Bytes),
        "lag" => time(value).map(OffloadPart::LagMs),
        "compression" => compression(value).map(OffloadPart::Compression),
        _ => Err("offload has the parts age, bytes, lag and compression".to_owned()),
    }
}

fn compression(value: &str) -> Result<OffloadCompression, String> {
    let mut all = OffloadCompression::ALL.into_iter();
    let found = all.find(|compression| compression.as_str() == value);
    found.ok_or_else(|| "it is auto or none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::policy::value::PolicyValue;

    #[test]
    fn parts_are_read_with_their_units() {
        for (text, part) in [
            ("offload=off", OffloadPart::Enabled(false)),
            ("offload.age=1h", OffloadPart::AgeMs(Some(3_600_000))),
            ("offload.age=never", OffloadPart::AgeMs(None)),
            ("offload.bytes=1GiB", OffloadPart::Bytes(Some(1 << 30))),
            ("offload.bytes=unlimited", OffloadPart::Bytes(None)),
            ("offload.lag=10min", OffloadPart::LagMs(600_000)),
            (
                "offload.compression=auto",
                OffloadPart::Compression(OffloadCompression::Auto),
            ),
        ] {
            assert_eq!(text.parse(), Ok(PolicyValue::Offload(part)), "{text}");
        }
    }
}
