//! From messages to the final bytes of a batch.

use std::sync::Arc;

use aquifer_model::batch::{BatchBuilder, BatchFields, Compression};
use aquifer_model::id::ProducerInstance;
use aquifer_model::trace::TraceContext;
use bytes::{Bytes, BytesMut};

use crate::compression::compress;
use crate::error::Result;
use crate::producer::queue::batch::BatchOutcome;

/// A batch that takes no more messages and is to be brought into its final bytes.
#[derive(Debug)]
pub(crate) struct Unsealed {
    pub(super) builder: BatchBuilder,
    pub(super) lowest: u64,
    pub(super) highest: u64,
    pub(super) trace: Option<TraceContext>,
    /// Tells which batch it is.
    pub(super) outcome: Arc<BatchOutcome>,
}

impl Unsealed {
    /// The final bytes. `publish_time_ms` is the wall clock.
    pub(crate) fn encode(
        &mut self,
        producer_name: &Bytes,
        producer_instance: ProducerInstance,
        publish_time_ms: u64,
        compression: Compression,
    ) -> Result<Bytes> {
        let payload = self.builder.payload();
        let packed = compress(compression, payload);
        let fields = BatchFields {
            producer_name: producer_name.clone(),
            producer_instance: Some(producer_instance),
            lowest_sequence_id: self.lowest,
            highest_sequence_id: self.highest,
            publish_time_ms,
            compression: match packed {
                Some(_) => compression,
                None => Compression::None,
            },
            uncompressed_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            trace: self.trace,
            ..BatchFields::default()
        };
        let bytes = match packed {
            Some(packed) => self.builder.finish_with(&fields, &packed)?,
            None => {
                let empty = BatchBuilder::new(BytesMut::new(), 0, 0);
                std::mem::replace(&mut self.builder, empty).finish(&fields)?
            }
        };
        Ok(bytes)
    }
}
