//! Batches and message records: never panic, and what is accepted is written back the same.
#![no_main]

use aquifer_model::batch::{Batch, MessageRecord, MessageRow, encode};
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check_record(data);
    check_batch(data.to_vec());
    // The same with magic, length and checksum right, so that the parser behind them is reached.
    let mut fixed = data.to_vec();
    if fixed.len() >= 24 {
        fixed[..4].copy_from_slice(b"AQB1");
        let length = u32::try_from(fixed.len()).unwrap_or(u32::MAX);
        fixed[8..12].copy_from_slice(&length.to_le_bytes());
        let checksum = crc32c::crc32c(&fixed[8..]);
        fixed[4..8].copy_from_slice(&checksum.to_le_bytes());
        check_batch(fixed);
    }
});

fn check_record(data: &[u8]) {
    if let Ok(record) = MessageRecord::decode(Bytes::copy_from_slice(data)) {
        let mut out = BytesMut::new();
        record.encode(&mut out);
        assert_eq!(MessageRecord::decode(out.freeze()), Ok(record));
    }
}

fn check_batch(data: Vec<u8>) {
    if let Ok(batch) = Batch::parse(data.into()) {
        let rows: Vec<MessageRow> = batch.rows().collect();
        assert_eq!(rows.len(), batch.message_count() as usize);
        let again = encode(batch.fields(), &rows, &batch.payload());
        // A field that came twice is written once: the second parse equals the first in meaning.
        let again = again.and_then(Batch::parse).expect("what was accepted can be written");
        assert_eq!(again.fields(), batch.fields());
        assert_eq!(again.payload(), batch.payload());
    }
}
