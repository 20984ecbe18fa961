//! Formats of bodies, and what the broker needs to know of a body before it stores it. Nothing else
//! in the broker parses bodies.

use bytes::Bytes;
use thiserror::Error;

use crate::batch::{self, Batch, BatchError, FLAG_HAS_EVENT_TIME};
use crate::extensions::{
    EXTENSIONS_BYTES_MAX, ExtensionError, Extensions, ExtensionsBuilder, ProducerStamp,
};
use crate::trace::TraceContext;

/// A native batch (`batch.rs`).
pub const FORMAT_NATIVE: u16 = 1;
/// A record of the cursor log. No client sends it.
pub const FORMAT_CURSOR: u16 = 2;

/// What a body says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Messages in it, at least 1.
    pub message_count: u32,
    /// The largest of them before compression, in bytes: key, properties and value.
    pub message_bytes_max: u32,
    /// What goes into the head of its entry: who sent it, among others.
    pub extensions: Extensions,
    /// The trace that it belongs to, if that is sampled.
    pub trace: Option<TraceContext>,
}

/// A body that cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// A format that this version does not know, or that clients do not send.
    #[error("unknown body format {0}: this broker takes {FORMAT_NATIVE} (native batch)")]
    Unknown(u16),
    /// Not a native batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Its fields do not fit into a head.
    #[error("what the batch says of itself does not fit into an entry: {0}")]
    Extension(#[from] ExtensionError),
}

/// Verifies a body and says what the broker needs to know of it.
///
/// # Errors
/// When the format is unknown, or the body is not of its format.
pub fn describe(format: u16, body: &Bytes) -> Result<Description, FormatError> {
    describe_batch(&native(format, body)?)
}

/// The native batch that a body is: for those who need its rows.
///
/// # Errors
/// When it is of another format, or not of its format.
pub fn native(format: u16, body: &Bytes) -> Result<Batch, FormatError> {
    match format {
        FORMAT_NATIVE => Ok(Batch::parse(body.clone())?),
        other => Err(FormatError::Unknown(other)),
    }
}

/// Bytes of a body, at most, that its head repeats: what a body that was not verified yet may add
/// to memory besides itself.
#[must_use]
pub fn head_bytes(format: u16, body: &Bytes) -> usize {
    let fields = match format {
        FORMAT_NATIVE => batch::fields_bytes(body),
        _ => 0,
    };
    fields.min(EXTENSIONS_BYTES_MAX)
}

fn describe_batch(batch: &Batch) -> Result<Description, FormatError> {
    let fields = batch.fields();
    let mut extensions = ExtensionsBuilder::default();
    // No producer stream carries a batch without a name.
    if !fields.producer_name.is_empty() {
        extensions.producer(&ProducerStamp {
            name: fields.producer_name.clone(),
            lowest_sequence_id: fields.lowest_sequence_id,
            highest_sequence_id: fields.highest_sequence_id,
        })?;
    }
    if let Some(instance) = fields.producer_instance {
        extensions.producer_instance(instance)?;
    }
    if let Some(origin) = &fields.replication_origin {
        extensions.origin(origin)?;
    }
    if let Some(transaction) = &fields.transaction_id {
        extensions.transaction(transaction)?;
    }
    if let Some(ms) = fields.deliver_at_ms {
        extensions.deliver_at_ms(ms, ms)?;
    }
    let (mut latest, mut message_bytes_max) = (None, 0);
    for row in batch.rows() {
        message_bytes_max = row.size_bytes.max(message_bytes_max);
        if row.flags & FLAG_HAS_EVENT_TIME != 0 {
            latest = latest.max(Some(row.event_time_ms));
        }
    }
    if let Some(latest) = latest {
        extensions.event_time_ms(latest)?;
    }
    if let Some(schema) = &fields.schema_version {
        extensions.schema(schema)?;
    }
    Ok(Description {
        message_count: batch.message_count(),
        message_bytes_max,
        extensions: extensions.build(),
        trace: fields.trace,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchFields, MessageRow};
    use crate::id::ProducerInstance;

    #[test]
    fn a_native_batch_says_everything_that_its_head_needs() {
        let fields = BatchFields {
            producer_name: Bytes::from_static(b"p"),
            producer_instance: Some(ProducerInstance([3; 16])),
            lowest_sequence_id: 7,
            highest_sequence_id: 8,
            deliver_at_ms: Some(5),
            schema_version: Some(Bytes::from_static(b"s")),
            trace: TraceContext::new([1; 16], [2; 8]),
            ..BatchFields::default()
        };
        let row = |event_time_ms, flags| MessageRow {
            flags,
            event_time_ms,
            ..MessageRow::default()
        };
        let rows = [row(4, FLAG_HAS_EVENT_TIME), row(99, 0)];
        let body = batch::encode(&fields, &rows, b"").unwrap();
        let said = describe(FORMAT_NATIVE, &body).unwrap();
        assert_eq!(said.message_count, 2);
        let stamp = ProducerStamp {
            name: Bytes::from_static(b"p"),
            lowest_sequence_id: 7,
            highest_sequence_id: 8,
        };
        assert_eq!(said.extensions.producer(), Some(stamp));
        let instance = said.extensions.producer_instance();
        assert_eq!(instance, fields.producer_instance);
        assert_eq!(said.extensions.deliver_at_ms(), Some((5, 5)));
        // A time without its flag is not a time.
        assert_eq!(said.extensions.event_time_ms(), Some(4));
        assert_eq!(said.extensions.schema().as_deref(), Some(&b"s"[..]));
        assert_eq!(said.trace, fields.trace);
    }

    #[test]
    fn other_formats_are_refused_by_their_number() {
        for format in [0, FORMAT_CURSOR, 3, u16::MAX] {
            let refused = describe(format, &Bytes::from_static(b"x"));
            assert_eq!(refused, Err(FormatError::Unknown(format)));
            // Not even when the bytes would be a native batch.
            let batch = batch::encode(&BatchFields::default(), &[MessageRow::default()], b"");
            let refused = native(format, &batch.unwrap());
            assert_eq!(refused.err(), Some(FormatError::Unknown(format)));
        }
    }

    #[test]
    fn fields_that_no_head_can_hold_are_an_error() {
        let fields = BatchFields {
            schema_version: Some(vec![0; 5_000].into()),
            ..BatchFields::default()
        };
        let body = batch::encode(&fields, &[MessageRow::default()], b"").unwrap();
        let refused = describe(FORMAT_NATIVE, &body);
        assert!(matches!(refused, Err(FormatError::Extension(_))));
    }
}
