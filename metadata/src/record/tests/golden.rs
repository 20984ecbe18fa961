//! The stored bytes of records that every start reads: they may never change while clusters have
//! them. Each version of a kind has a line of `golden_v1.hex`.

use super::*;

const TIME_MS: u64 = 1_700_000_000_000;

/// Bytes that count, so that each place of a value differs.
fn counting(from: u8) -> Bytes {
    (from..from + 16).collect()
}

fn golden() -> impl Iterator<Item = Vec<u8>> {
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).unwrap();
        u8::from_str_radix(pair, 16).unwrap()
    };
    let lines = include_str!("../golden_v1.hex").lines();
    lines.map(move |line| line.as_bytes().chunks(2).map(byte).collect())
}

/// Compares a record with the bytes of its line, both ways.
fn check<R: Record + Clone + PartialEq + std::fmt::Debug>(
    lines: &mut impl Iterator<Item = Vec<u8>>,
    version: u32,
    record: R,
) {
    let line = lines.next().expect("a line for each record");
    assert_eq!(record.version(), version, "{record:?}");
    assert_eq!(encode(record.clone()), line, "{record:?}");
    assert_eq!(decode_bytes("key", &line), Ok(record));
}

fn topic() -> v1::TopicRecord {
    v1::TopicRecord {
        incarnation: counting(1),
        ranges: vec![v1::TopicRange {
            number: 1,
            first_hash: 0,
            last_hash: 0x7fff_ffff,
            parents: vec![0],
            sealed: true,
        }],
        segments: vec![v1::SegmentRecord {
            ledger_id: 7,
            first_index: 100,
            sealed: true,
            entries: 3,
            end_index: 110,
            bytes: 4_096,
            first_time_ms: TIME_MS,
            last_time_ms: TIME_MS + 9,
        }],
        cursor_segments: vec![v1::SegmentRecord {
            ledger_id: 8,
            ..v1::SegmentRecord::default()
        }],
        key_hash: v1::KeyHash::Murmur3.into(),
        range_generation: 2,
        trimmed_index: 100,
        last_ledger_id: 6,
        deleting: true,
        first_page: 1,
        end_page: 2,
        paged_bytes: 5_000,
        offloaded: Some(v1::OffloadMark {
            stored_end: 110,
            dropped_end: 105,
            copies_since_ms: TIME_MS + 1,
        }),
        restored: None,
        terminated: false,
        at_rest: Some(v1::AtRest {
            end_index: 110,
            cursor_end_index: 3,
            messages: 4,
            messages_max: 3,
            oldest_ms: TIME_MS + 2,
            furthest: vec![v1::SubscriptionAtRest {
                name: "orders".to_owned(),
                messages: 3,
                oldest_ms: TIME_MS + 3,
            }],
        }),
    }
}

fn ledger() -> v1::LedgerRecord {
    let fragment = |first_entry_id, bookies: [u8; 3]| v1::Fragment {
        first_entry_id,
        bookies: bookies.map(|bookie| vec![bookie; 16].into()).to_vec(),
    };
    v1::LedgerRecord {
        ensemble: 3,
        write_quorum: 3,
        ack_quorum: 2,
        state: v1::LedgerState::Closed.into(),
        fragments: vec![fragment(0, [1, 2, 3]), fragment(5, [1, 4, 3])],
        last_entry_id: Some(9),
        length_bytes: 900,
        creation_token: counting(0x21),
        home: "public/default".to_owned(),
        recovery_epoch: 4,
        created_ms: TIME_MS,
        offload: None,
    }
}

fn offload(copies: v1::BookieCopies) -> v1::OffloadRecord {
    v1::OffloadRecord {
        attempt: counting(1),
        object: Some(v1::StoredObject {
            location: 1,
            name: "north/data/a".to_owned(),
            section: 2,
            size_bytes: 4_096,
            checksum: 0x0102_0304_0506_0708,
            stored_ms: TIME_MS + 1,
            index_offset: 4_000,
            claimed_revision: 12,
            damaged: false,
        }),
        copies: copies.into(),
        copy_ledger_id: 0,
        imported_ms: 0,
    }
}

#[test]
fn tenants_namespaces_and_bundles_stay() {
    let mut lines = golden();
    check(&mut lines, 1, v1::TenantRecord::default());
    let removal = v1::TenantRecord {
        removal: v1::Removal::IfEmpty.into(),
    };
    check(&mut lines, 2, removal);
    let namespace = v1::NamespaceRecord {
        bundle_boundaries: vec![0, 0x4000_0000, 0x8000_0000],
        removal: v1::Removal::Unspecified.into(),
    };
    check(&mut lines, 1, namespace.clone());
    let removal = v1::NamespaceRecord {
        removal: v1::Removal::All.into(),
        ..namespace
    };
    check(&mut lines, 2, removal);
    let owner = v1::BundleOwnerRecord {
        broker_id: counting(1),
        epoch: 5,
        source_id: counting(0x21),
        source_epoch: 4,
    };
    check(&mut lines, 1, owner);
}

#[test]
fn topics_stay() {
    let mut lines = golden().skip(5);
    check(&mut lines, 1, topic());
    let restored = v1::TopicRecord {
        restored: Some(v1::RestoredFrom {
            backup_id: counting(0x21),
            incarnation: counting(1),
            trim_after_ms: TIME_MS + 4,
            asked_ms: TIME_MS + 5,
        }),
        ..topic()
    };
    check(&mut lines, 2, restored.clone());
    let terminated = v1::TopicRecord {
        terminated: true,
        ..restored
    };
    check(&mut lines, 3, terminated);
}

#[test]
fn ledgers_stay() {
    let mut lines = golden().skip(8);
    check(&mut lines, 1, ledger());
    let with = |offload| v1::LedgerRecord {
        offload: Some(offload),
        ..ledger()
    };
    let kept = offload(v1::BookieCopies::Kept);
    check(&mut lines, 2, with(kept.clone()));
    let mut damaged = kept;
    damaged.object.as_mut().unwrap().damaged = true;
    check(&mut lines, 3, with(damaged));
    let imported = v1::OffloadRecord {
        copy_ledger_id: 12,
        imported_ms: TIME_MS + 2,
        ..offload(v1::BookieCopies::Imported)
    };
    check(&mut lines, 4, with(imported));
    assert_eq!(lines.next(), None);
}
