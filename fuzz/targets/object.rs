//! An object of an offloaded ledger: whatever its bytes are, they are refused or are those of an
//! object, and no length in them is trusted.
#![no_main]

use aquifer_cold::format::block::Block;
use aquifer_cold::format::check::check_whole;
use aquifer_cold::format::parts::{Header, Trailer};
use aquifer_cold::format::tail::Tail;
use aquifer_model::checksum::{crc32c, crc32c_append};
use aquifer_model::id::{AttemptId, EntryId};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const ATTEMPT: AttemptId = AttemptId([0; 16]);

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 3 {
        0 => drop(check_whole(&Bytes::copy_from_slice(data))),
        1 => tail(data),
        _ => block(data),
    }
    let _ = Header::parse(data);
});

/// With checksums that are right, so that what they protect is reached.
fn tail(data: &[u8]) {
    let mut bytes = data.to_vec();
    if let Some(at) = bytes.len().checked_sub(64) {
        bytes[at + 56..].copy_from_slice(b"AQOEND\x01\n");
        let crc = crc32c_append(crc32c(&ATTEMPT.0), &bytes[at..at + 52]);
        bytes[at + 52..at + 56].copy_from_slice(&crc.to_le_bytes());
    }
    let len = bytes.len() as u64;
    let _ = Trailer::parse(&bytes, len);
    if let Ok(tail) = Tail::parse(&bytes.into(), len + 64) {
        let last = EntryId(tail.section.last_entry_id);
        assert!(tail.block_of(last).is_some());
    }
}

fn block(data: &[u8]) {
    let mut bytes = data.to_vec();
    if bytes.len() >= 48 {
        bytes[..4].copy_from_slice(b"AQB1");
        let stored = u32::from_le_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]);
        let end = usize::try_from(stored).unwrap_or(usize::MAX).saturating_add(48);
        if let Some(covered) = bytes.get(8..end) {
            let crc = crc32c_append(crc32c(&ATTEMPT.0), covered);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
    if let Ok(block) = Block::decode(ATTEMPT, &bytes.into()) {
        let (first, behind) = block.span();
        let found = block.entries_from(first).count() as u64;
        assert_eq!(found, behind.0 - first.0);
    }
}
