//! What a message costs to decode, known from its bytes before anything is allocated.
//!
//! An element of a repeated field takes two bytes on the wire and a hundred in memory: a message
//! within its limit may still take the memory of the process (I13). So the bytes are walked first,
//! and the memory of their elements is bounded. Everything else that a message holds, bytes and
//! texts, is as large as it is on the wire.

use aquifer_model::limits::{REQUEST_ELEMENT_BYTES_MAX, RESPONSE_ELEMENT_BYTES_MAX};

use crate::v1;

/// A message whose cost is known. Generated for every message from the .proto files.
pub trait Shaped {
    /// Bytes that its elements may take in memory.
    const ELEMENT_BYTES_MAX: usize;
    /// Whether it is what a peer asks of a server: then what its elements may take depends on its
    /// size as well, so that a server can set that aside before it reads.
    const IS_REQUEST: bool;
    /// Where its elements are.
    const SHAPE: &'static Shape;
}

/// The fields of a message that repeat or have fields inside.
#[derive(Debug)]
pub struct Shape {
    fields: &'static [Field],
}

#[derive(Debug)]
struct Field {
    number: u64,
    /// Memory of one element; 0 where the field does not repeat.
    element_bytes: usize,
    /// Several elements may share one occurrence.
    packed: bool,
    inside: Option<&'static Shape>,
}

/// Why a message is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Its elements would take too much memory.
    #[error("the elements of the message take more than {max} bytes of memory")]
    TooLarge {
        /// What they may take.
        max: usize,
    },
    /// It is not a message of this protocol.
    #[error("the bytes are not a message")]
    Malformed,
}

/// Memory that the elements of a request of this size on the wire may take: what a reader of it
/// has to set aside besides those bytes.
#[must_use]
pub fn request_element_bytes(wire_bytes: usize) -> usize {
    // No message of ours takes more than eight times its bytes; hostile ones meet the bound.
    wire_bytes
        .saturating_mul(ELEMENT_RATIO_MAX)
        .saturating_add(ELEMENT_BYTES_FREE)
        .min(REQUEST_ELEMENT_BYTES_MAX)
}

const ELEMENT_RATIO_MAX: usize = 8;
const ELEMENT_BYTES_FREE: usize = 1024;

/// Checks that decoding `bytes` as `T` stays within bounds.
///
/// # Errors
/// When it would not, or when the bytes cannot be a message.
pub fn check<T: Shaped>(bytes: &[u8]) -> Result<(), ShapeError> {
    let max = match T::IS_REQUEST {
        true => request_element_bytes(bytes.len()).min(T::ELEMENT_BYTES_MAX),
        false => T::ELEMENT_BYTES_MAX,
    };
    let mut walk = Walk { bytes: 0, max };
    walk.message(T::SHAPE, bytes)
}

struct Walk {
    bytes: usize,
    max: usize,
}

impl Walk {
    fn message(&mut self, shape: &Shape, mut rest: &[u8]) -> Result<(), ShapeError> {
        while !rest.is_empty() {
            let key = varint(&mut rest)?;
            let content: &[u8] = match key & 7 {
                0 => {
                    varint(&mut rest)?;
                    &[]
                }
                1 => take(&mut rest, 8)?,
                2 => {
                    let length = varint(&mut rest)?;
                    take(&mut rest, length)?
                }
                5 => take(&mut rest, 4)?,
                // Groups: obsolete since before this protocol.
                _ => return Err(ShapeError::Malformed),
            };
            let number = key >> 3;
            if let Some(field) = shape.fields.iter().find(|field| field.number == number) {
                self.field(field, content)?;
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, content: &[u8]) -> Result<(), ShapeError> {
        let elements = match field.packed {
            true => content.len().max(1),
            false => 1,
        };
        self.bytes += field.element_bytes * elements;
        if self.bytes > self.max {
            return Err(ShapeError::TooLarge { max: self.max });
        }
        match field.inside {
            Some(shape) => self.message(shape, content),
            None => Ok(()),
        }
    }
}

fn varint(rest: &mut &[u8]) -> Result<u64, ShapeError> {
    let mut value = 0_u64;
    for shift in (0..70_u32).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(ShapeError::Malformed)?;
        *rest = tail;
        // The bits of the tenth byte beyond 64 are dropped, as prost does.
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(ShapeError::Malformed)
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], ShapeError> {
    let length = usize::try_from(length).map_err(|_| ShapeError::Malformed)?;
    let (content, tail) = rest.split_at_checked(length).ok_or(ShapeError::Malformed)?;
    *rest = tail;
    Ok(content)
}

include!(concat!(env!("OUT_DIR"), "/shapes.rs"));

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// H4: two bytes on the wire are forty in memory.
    #[test]
    fn empty_elements_are_refused_before_they_are_allocated() {
        let frames = |count: usize| [0x0a, 0x00].repeat(count);
        let wrapped = |inner: Vec<u8>| {
            let mut message = vec![0x12];
            prost::encoding::encode_varint(inner.len() as u64, &mut message);
            message.extend(inner);
            message
        };
        let publish = wrapped(frames(3_000_000));
        let refused = check::<v1::ProduceRequest>(&publish);
        assert!(matches!(refused, Err(ShapeError::TooLarge { .. })));
        // In many small pieces, which decoding would join.
        let pieces = wrapped(frames(100)).repeat(1_000);
        let refused = check::<v1::ProduceRequest>(&pieces);
        assert!(matches!(refused, Err(ShapeError::TooLarge { .. })));
        let features = [0x1a, 0x00].repeat(100_000);
        let refused = check::<v1::HandshakeRequest>(&features);
        assert!(matches!(refused, Err(ShapeError::TooLarge { .. })));
        assert_eq!(check::<v1::PublishFrames>(&frames(10)), Ok(()));
    }

    #[test]
    fn what_the_protocol_allows_passes() {
        let frame = |number| v1::PublishFrame {
            number,
            body: Bytes::from_static(&[7; 60]),
            format: 1,
        };
        let publish = v1::PublishFrames {
            frames: (1..=1024).map(frame).collect(),
        };
        let request = v1::ProduceRequest {
            request: Some(v1::produce_request::Request::Publish(publish)),
        };
        assert_eq!(
            check::<v1::ProduceRequest>(&request.encode_to_vec()),
            Ok(())
        );
        let range = |first| v1::IndexRange { first, last: first };
        let ack = v1::Acknowledge {
            individual: (1..=8192).map(|n| range(2 * n)).collect(),
            ..v1::Acknowledge::default()
        };
        let request = v1::ConsumeRequest {
            request: Some(v1::consume_request::Request::Acknowledge(ack)),
        };
        assert_eq!(
            check::<v1::ConsumeRequest>(&request.encode_to_vec()),
            Ok(())
        );
        let fence = |request_id| v1::OrderedRequest {
            request_id,
            ledger_id: 1,
            creation_token: Bytes::from_static(&[1; 16]),
            tenant: 0,
            weight: 0,
            request: Some(v1::ordered_request::Request::Fence(v1::Fence {})),
        };
        let frame = v1::OrderedFrame {
            open: None,
            requests: (1..=1024).map(fence).collect(),
        };
        assert_eq!(check::<v1::OrderedFrame>(&frame.encode_to_vec()), Ok(()));
    }

    proptest! {
        /// Whatever passes, the elements that decoding makes are within the bound; whatever
        /// decodes passes or is too large.
        #[test]
        fn arbitrary_bytes_never_panic_and_the_walk_agrees_with_decoding(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let checked = check::<v1::ProduceRequest>(&bytes);
            if let Ok(decoded) = v1::ProduceRequest::decode(bytes.as_slice()) {
                // Groups are the one thing that prost skips and the walk refuses.
                let grouped = checked == Err(ShapeError::Malformed);
                let frames = match &decoded.request {
                    Some(v1::produce_request::Request::Publish(publish)) => publish.frames.len(),
                    _ => 0,
                };
                let within = frames * size_of::<v1::PublishFrame>() <= ELEMENT_BYTES_FREE;
                prop_assert!(grouped || !within || checked.is_ok(), "{decoded:?}");
            }
        }
    }
}
