//! Versions of records, and what an older build does with them.

mod golden;

use proptest::prelude::*;

use super::*;

fn decode_topic(bytes: &[u8]) -> MetadataResult<v1::TopicRecord> {
    decode_bytes("t/a/b/t/x", bytes)
}

proptest! {
    #[test]
    fn records_round_trip(
        incarnation in any::<[u8; 16]>(),
        generation in any::<u64>(),
        segments in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..5),
    ) {
        let record = v1::TopicRecord {
            incarnation: incarnation.to_vec().into(),
            range_generation: generation,
            segments: segments
                .into_iter()
                .map(|(ledger_id, first_index, sealed)| v1::SegmentRecord {
                    ledger_id,
                    first_index,
                    sealed,
                    ..v1::SegmentRecord::default()
                })
                .collect(),
            ..v1::TopicRecord::default()
        };
        prop_assert_eq!(decode_topic(&encode(record.clone())), Ok(record));
    }

    #[test]
    fn garbage_is_damaged_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        match decode_topic(&bytes) {
            Ok(_) | Err(MetadataError::Damaged { .. } | MetadataError::NewerFormat { .. }) => {}
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn the_kind_and_the_version_are_checked() {
    let ledger = encode(v1::LedgerRecord::default());
    let reason = |bytes: &[u8]| decode_topic(bytes).unwrap_err().to_string();
    assert!(reason(&ledger).contains("no topic record"));
    assert!(reason(&[]).contains("no format version"));
    // Whatever else it holds, and even if that is not understood.
    let mut newer = v1::MetadataValue {
        format_version: TOPIC_TERMINATED + 1,
        value: None,
    }
    .encode_to_vec();
    assert!(reason(&newer).contains("format version 4"));
    newer.extend([0xfa, 0x3f, 0x02, 0xff, 0xff]);
    assert!(matches!(
        decode_topic(&newer),
        Err(MetadataError::NewerFormat {
            kind: "topic",
            found: 4,
            newest: 3,
            ..
        })
    ));
    assert!(reason(&ledger[..ledger.len() - 1]).contains("t/a/b/t/x"));
}

#[test]
fn a_record_has_the_version_that_its_fields_need() {
    let version = |record: v1::LedgerRecord| {
        let bytes = encode(record.clone());
        let decoded: v1::LedgerRecord = decode_bytes("l/1", &bytes).unwrap();
        assert_eq!(decoded, record);
        Versioning::decode(bytes).unwrap().format_version
    };
    assert_eq!(version(v1::LedgerRecord::default()), 1);
    let offloaded = |object| {
        version(v1::LedgerRecord {
            offload: Some(v1::OffloadRecord {
                object,
                ..v1::OffloadRecord::default()
            }),
            ..v1::LedgerRecord::default()
        })
    };
    assert_eq!(offloaded(None), 2);
    assert_eq!(offloaded(Some(v1::StoredObject::default())), 2);
    let damaged = v1::StoredObject {
        damaged: true,
        ..v1::StoredObject::default()
    };
    assert_eq!(offloaded(Some(damaged)), 3);
    let imported = v1::OffloadRecord {
        object: Some(v1::StoredObject::default()),
        copy_ledger_id: 7,
        ..v1::OffloadRecord::default()
    };
    let imported = v1::LedgerRecord {
        offload: Some(imported),
        ..v1::LedgerRecord::default()
    };
    assert_eq!(version(imported), 4);
}

#[test]
fn a_restored_topic_is_not_rewritten_by_builds_that_would_delete_it() {
    let version = |restored| {
        let record = v1::TopicRecord {
            restored,
            ..v1::TopicRecord::default()
        };
        let bytes = encode(record.clone());
        assert_eq!(decode_topic(&bytes), Ok(record));
        Versioning::decode(bytes).unwrap().format_version
    };
    assert_eq!(version(None), 1);
    assert_eq!(version(Some(v1::RestoredFrom::default())), 2);
}

#[test]
fn an_end_or_a_deletion_is_not_erased_by_builds_that_do_not_know_it() {
    fn version<R: Record + Clone + PartialEq + std::fmt::Debug>(key: &str, record: R) -> u32 {
        let bytes = encode(record.clone());
        assert_eq!(decode_bytes(key, &bytes), Ok(record));
        Versioning::decode(bytes).unwrap().format_version
    }
    for restored in [None, Some(v1::RestoredFrom::default())] {
        let topic = v1::TopicRecord {
            terminated: true,
            restored,
            ..v1::TopicRecord::default()
        };
        assert_eq!(version("t/a/b/t/x", topic), 3);
    }
    for (removal, expected) in [
        (v1::Removal::Unspecified, 1),
        (v1::Removal::IfEmpty, 2),
        (v1::Removal::All, 2),
    ] {
        let mut namespace = v1::NamespaceRecord::default();
        namespace.set_removal(removal);
        assert_eq!(version("t/a/b", namespace), expected);
        let mut tenant = v1::TenantRecord::default();
        tenant.set_removal(removal);
        assert_eq!(version("t/a", tenant), expected);
    }
}

#[test]
fn a_grant_of_an_own_role_gives_nothing_to_builds_that_do_not_know_the_role() {
    let version = |role_of: Option<&str>| {
        let record = v1::GrantRecord {
            role_of: role_of.map(str::to_owned),
            ..v1::GrantRecord::default()
        };
        Versioning::decode(encode(record)).unwrap().format_version
    };
    assert_eq!(
        (version(None), version(Some("")), version(Some("acme"))),
        (1, 2, 2)
    );
}

#[test]
fn a_note_of_tokens_that_are_gone_is_not_written_over_by_builds_that_do_not_know_them() {
    let version = |tokens: &[&str]| {
        let record = v1::ForgottenRecord {
            before_ms: 7,
            tokens: tokens.iter().map(|id| (*id).to_owned()).collect(),
        };
        Versioning::decode(encode(record)).unwrap().format_version
    };
    assert_eq!((version(&[]), version(&["x"])), (1, 2));
}

/// Stored bytes outlive the code that wrote them: this value was written by version 1.
#[test]
fn version_1_is_still_read() {
    let stored = [0x08, 0x01, 0x32, 0x03, 0x08, 0xd2, 0x09];
    let record: v1::IdRangeRecord = decode_bytes("ids/ledger", &stored).unwrap();
    assert_eq!(record.next, 1234);
    assert_eq!(encode(record), stored.as_slice());
}

#[test]
fn version_1_of_a_page_of_segments_is_still_read() {
    let mut stored = vec![0x08, 0x01, 0xba, 0x01, 0x22, 0x0a, 0x10];
    stored.extend([7; 16]);
    stored.extend([0x12, 0x0e, 0x08, 0x01, 0x18, 0x01, 0x20, 0x02]);
    stored.extend([0x28, 0x05, 0x30, 0x07, 0x38, 0x08, 0x40, 0x09]);
    let key = "t/a/b/t/x/s/07070707070707070707070707070707/0000000003";
    let page: v1::SegmentPageRecord = decode_bytes(key, &stored).unwrap();
    assert_eq!(page.incarnation.as_ref(), [7; 16]);
    let segment = v1::SegmentRecord {
        ledger_id: 1,
        first_index: 0,
        sealed: true,
        entries: 2,
        end_index: 5,
        bytes: 7,
        first_time_ms: 8,
        last_time_ms: 9,
    };
    assert_eq!(page.segments, [segment]);
    assert_eq!(encode(page), stored);
}

#[test]
fn version_1_of_tokens_and_grants_is_still_read() {
    let stored = [
        0x08, 0x01, 0xf2, 0x01, 0x17, 0x0a, 0x01, 0x61, 0x12, 0x01, 0x62, 0x1a, 0x01, 0x63, 0x22,
        0x01, 0x64, 0x28, 0x05, 0x30, 0x06, 0x38, 0x07, 0x42, 0x01, 0x65, 0x48, 0x09,
    ];
    let token: v1::TokenRecord = decode_bytes("auth/tokens/x", &stored).unwrap();
    assert_eq!((&*token.name, &*token.tenant), ("a", "b"));
    assert_eq!(
        (&*token.secret_sha256, &*token.previous_sha256),
        (&b"c"[..], &b"d"[..])
    );
    assert_eq!((token.previous_until_ms, token.created_ms), (5, 6));
    assert_eq!((token.expires_ms, token.revoked_ms), (Some(7), Some(9)));
    assert_eq!(encode(token), stored.as_slice());
    let stored = [
        0x08, 0x01, 0xfa, 0x01, 0x1c, 0x0a, 0x01, 0x61, 0x12, 0x01, 0x62, 0x1a, 0x01, 0x63, 0x22,
        0x01, 0x64, 0x2a, 0x01, 0x65, 0x32, 0x01, 0x66, 0x3a, 0x01, 0x67, 0x40, 0x08, 0x4a, 0x01,
        0x69, 0x50, 0x0a,
    ];
    let grant: v1::GrantRecord = decode_bytes("auth/grants/d/x", &stored).unwrap();
    assert_eq!(
        (&*grant.principal, &*grant.role, &grant.actions[..]),
        ("a", "b", &["c".to_owned()][..])
    );
    assert_eq!(
        (&*grant.tenant, &*grant.namespace, &*grant.topic),
        ("d", "e", "f")
    );
    assert_eq!((&*grant.subscriptions, &*grant.created_by), ("g", "i"));
    assert_eq!((grant.created_ms, grant.expires_ms), (8, Some(10)));
    assert_eq!(encode(grant), stored.as_slice());
}

#[test]
fn version_1_of_a_topic_with_pages_is_still_read() {
    let stored = [
        0x08, 0x01, 0x22, 0x0b, 0x38, 0x05, 0x40, 0x06, 0x50, 0x01, 0x58, 0x03, 0x60, 0xac, 0x02,
    ];
    let record: v1::TopicRecord = decode_bytes("t/a/b/t/x", &stored).unwrap();
    let pages = (record.first_page, record.end_page, record.paged_bytes);
    assert_eq!(pages, (1, 3, 300));
    assert_eq!((record.trimmed_index, record.last_ledger_id), (5, 6));
    assert_eq!(encode(record), stored.as_slice());
}
