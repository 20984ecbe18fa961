//! Assembles a batch in place: records are encoded straight into the buffer that becomes the
//! batch, behind space for head and table, so that a payload is copied once.

use bytes::{Buf, Bytes, BytesMut};

use crate::batch::{
    BatchError, BatchFields, MessageRecord, MessageRow, PREFIX_BYTES, ROW_BYTES, encode_head, seal,
};

/// Space for the fields of an ordinary batch; a batch with more is moved once.
const FIELDS_BYTES: usize = 256;

/// A batch that grows. The bytes that come out are those of [`crate::batch::encode`].
#[derive(Debug)]
pub struct BatchBuilder {
    buffer: BytesMut,
    /// Bytes in front of the payload block, for prefix, fields and table.
    headroom: usize,
    rows: Vec<MessageRow>,
}

impl BatchBuilder {
    /// An empty batch in `buffer`, whose memory is reused. The hints say how many messages and
    /// payload bytes are expected: more of either costs a copy, nothing else.
    #[must_use]
    pub fn new(mut buffer: BytesMut, rows_hint: usize, payload_hint: usize) -> BatchBuilder {
        let headroom = PREFIX_BYTES + FIELDS_BYTES + rows_hint * ROW_BYTES;
        buffer.clear();
        buffer.reserve(headroom + payload_hint);
        buffer.resize(headroom, 0);
        BatchBuilder {
            buffer,
            headroom,
            rows: Vec::with_capacity(rows_hint),
        }
    }

    /// Appends a message. The size in `row` is set to that of the record.
    ///
    /// # Errors
    /// When the record is larger than any batch may be; nothing is appended then.
    pub fn push(&mut self, record: &MessageRecord, mut row: MessageRow) -> Result<(), BatchError> {
        let before = self.buffer.len();
        let size = record.encode(&mut self.buffer);
        let Ok(size_bytes) = u32::try_from(size) else {
            self.buffer.truncate(before);
            return Err(crate::batch::too_large(
                "record",
                size,
                crate::batch::BATCH_BYTES_MAX,
            ));
        };
        row.size_bytes = size_bytes;
        self.rows.push(row);
        Ok(())
    }

    /// How many messages there are.
    #[must_use]
    pub fn message_count(&self) -> usize {
        self.rows.len()
    }

    /// Bytes of table and payload block together: what grows with every message.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.payload().len() + self.rows.len() * ROW_BYTES
    }

    /// The message table.
    #[must_use]
    pub fn rows(&self) -> &[MessageRow] {
        &self.rows
    }

    /// The payload block, not compressed.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.buffer[self.headroom..]
    }

    /// The batch with its payload block as it is.
    ///
    /// # Errors
    /// When it is empty or a bound is exceeded.
    pub fn finish(mut self, fields: &BatchFields) -> Result<Bytes, BatchError> {
        let payload_len = self.payload().len();
        let head = encode_head(fields, &self.rows, payload_len)?;
        let Some(start) = self.headroom.checked_sub(head.len()) else {
            return crate::batch::encode(fields, &self.rows, self.payload());
        };
        self.buffer[start..self.headroom].copy_from_slice(&head);
        self.buffer.advance(start);
        seal(&mut self.buffer);
        Ok(self.buffer.freeze())
    }

    /// The batch with another payload block, the compressed one.
    ///
    /// # Errors
    /// When it is empty or a bound is exceeded.
    pub fn finish_with(&self, fields: &BatchFields, payload: &[u8]) -> Result<Bytes, BatchError> {
        crate::batch::encode(fields, &self.rows, payload)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In place or moved, with a fresh or a used buffer: the bytes are those of `encode`.
        #[test]
        fn builds_the_bytes_of_encode(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..40),
            rows_hint in 0usize..50,
            payload_hint in 0usize..500,
            name in "[a-z]{0,300}",
        ) {
            let fields = BatchFields { producer_name: name.into(), ..BatchFields::default() };
            let used = BytesMut::from(&[7u8; 100][..]);
            let mut builder = BatchBuilder::new(used, rows_hint, payload_hint);
            let (mut rows, mut payload) = (Vec::new(), BytesMut::new());
            for value in values {
                let record = MessageRecord { value: value.into(), ..MessageRecord::default() };
                builder.push(&record, MessageRow::default()).unwrap();
                let size = record.encode(&mut payload);
                rows.push(MessageRow {
                    size_bytes: u32::try_from(size).unwrap(),
                    ..MessageRow::default()
                });
            }
            prop_assert_eq!(builder.rows(), &rows[..]);
            prop_assert_eq!(builder.payload(), &payload[..]);
            let expected = super::super::encode(&fields, &rows, &payload);
            prop_assert_eq!(&builder.finish_with(&fields, &payload), &expected);
            prop_assert_eq!(builder.finish(&fields), expected);
        }
    }

    #[test]
    fn an_empty_batch_is_refused() {
        let builder = BatchBuilder::new(BytesMut::new(), 4, 16);
        assert!(builder.finish(&BatchFields::default()).is_err());
    }
}
