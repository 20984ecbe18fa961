//! What the payload of a measured message carries: which run it belongs to and when it was due,
//! so that the receiving end of the same process can tell how long it took.

use std::time::Duration;

use aquifer_runtime::rng::{Rng, SystemRng};
use bytes::{Bytes, BytesMut};

/// Bytes that a stamp takes at the start of a payload.
pub const STAMP_BYTES: usize = 16;

/// The payloads of one run.
#[derive(Debug, Clone)]
pub struct Payload {
    run: u64,
    filler: Bytes,
}

impl Payload {
    /// Payloads of `size` bytes that do not compress, like what is worth measuring.
    pub fn new(size: usize) -> Payload {
        let mut filler = BytesMut::with_capacity(size + 8);
        while filler.len() < size {
            filler.extend_from_slice(&SystemRng.next_u64().to_le_bytes());
        }
        filler.truncate(size);
        Payload {
            run: SystemRng.next_u64(),
            filler: filler.freeze(),
        }
    }

    /// The same bytes each time, shared and not copied.
    pub fn plain(&self) -> Bytes {
        self.filler.clone()
    }

    /// With a stamp; at least as long as one.
    pub fn stamped(&self, due: Duration) -> Bytes {
        let nanos = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
        let mut payload = BytesMut::with_capacity(self.filler.len().max(STAMP_BYTES));
        payload.extend_from_slice(&self.run.to_le_bytes());
        payload.extend_from_slice(&nanos.to_le_bytes());
        payload.extend_from_slice(self.filler.get(STAMP_BYTES..).unwrap_or_default());
        payload.freeze()
    }

    /// When a received message was due; `None` for one of another run.
    pub fn due(&self, payload: &[u8]) -> Option<Duration> {
        let word = |at: usize| {
            let bytes = payload.get(at..at + 8)?;
            bytes.try_into().ok().map(u64::from_le_bytes)
        };
        let run = word(0)?;
        let nanos = word(8)?;
        (run == self.run).then_some(Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_and_others_do_not() {
        let due = Duration::from_nanos(123_456_789);
        for size in [0, 1, 16, 17, 1024] {
            let payload = Payload::new(size);
            let stamped = payload.stamped(due);
            assert_eq!(stamped.len(), size.max(STAMP_BYTES));
            assert_eq!(payload.plain().len(), size);
            assert_eq!(payload.due(&stamped), Some(due));
            assert_eq!(Payload::new(size).due(&stamped), None);
        }
        assert_eq!(Payload::new(3).due(b"short"), None);
    }
}
