//! The broker's head of an entry: never panics, and what it accepts it writes back the same.
#![no_main]

use aquifer_model::entry::{EntryData, EntryHead};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check(data);
    // The same with a right checksum, so that the fields behind it are reached.
    let mut fixed = data.to_vec();
    if fixed.len() >= 48 {
        fixed[..4].copy_from_slice(b"AQE1");
        let head_len = usize::from(u16::from_le_bytes([fixed[8], fixed[9]])).clamp(48, fixed.len());
        let length = u16::try_from(head_len).unwrap_or(48).to_le_bytes();
        fixed[8..10].copy_from_slice(&length);
        let checksum = crc32c(&fixed[8..head_len]);
        fixed[4..8].copy_from_slice(&checksum.to_le_bytes());
        check(&fixed);
    }
});

fn check(data: &[u8]) {
    if let Ok((head, head_len)) = EntryHead::decode(data) {
        let encoded = head.encode();
        assert_eq!(EntryHead::decode(&encoded), Ok((head, head_len)));
        let entry = EntryData { head: Bytes::new(), body: Bytes::copy_from_slice(data) };
        assert!(entry.split().is_ok());
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
