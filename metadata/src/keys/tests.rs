//! Keys round-trip, never collide, never leave their prefix, and have the right partition.

use proptest::prelude::*;

use super::*;
use crate::store::{Expect, Guard, Operation, Transaction};

fn ns(text: &str) -> NamespaceName {
    text.parse().unwrap()
}

fn any_namespace() -> impl Strategy<Value = NamespaceName> {
    let part = "[a-zA-Z0-9_.-]{1,12}";
    (part, part).prop_filter_map("dots only", |(tenant, namespace)| {
        NamespaceName::new(&tenant, &namespace).ok()
    })
}

fn any_topic() -> impl Strategy<Value = TopicName> {
    (any_namespace(), "[a-zA-Z0-9_.:=~@+-]{1,16}")
        .prop_filter_map("invalid", |(namespace, name)| {
            TopicName::new(namespace, &name).ok()
        })
}

/// Names that no allow-list has seen: slashes, percent signs, control and wide characters.
fn any_name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z/%.]{1,8}", "\\PC{1,12}", any::<String>()]
        .prop_filter("empty", |name| !name.is_empty())
}

fn any_ledger() -> impl Strategy<Value = LedgerId> {
    (0..=LEDGER_ID_MAX).prop_map(LedgerId)
}

fn any_range() -> impl Strategy<Value = BundleRange> {
    (any::<u32>(), any::<u32>()).prop_map(|(a, b)| BundleRange {
        first: a.min(b),
        last: a.max(b),
    })
}

fn any_key() -> impl Strategy<Value = Key> {
    let id = any::<[u8; 16]>();
    prop_oneof![
        any_name().prop_map(Key::Tenant),
        any_namespace().prop_map(Key::Namespace),
        any_topic().prop_map(Key::Topic),
        (any_topic(), id, any::<u32>()).prop_map(|(t, id, page)| Key::SegmentPage(
            t,
            TopicIncarnation(id),
            page
        )),
        any_ledger().prop_map(Key::Ledger),
        (any_namespace(), any_range()).prop_map(|(n, r)| Key::BundleOwner(n, r)),
        id.prop_map(|id| Key::Broker(BrokerId(id))),
        id.prop_map(|id| Key::Bookie(BookieId(id))),
        id.prop_map(|id| Key::Cookie(BookieId(id))),
        (any_topic(), any::<u64>()).prop_map(|(t, v)| Key::Schema(t, v)),
        any_ledger().prop_map(Key::UnderReplicated),
        any_ledger().prop_map(Key::Deletion),
        any_ledger().prop_map(Key::RepairLock),
        any_name().prop_map(Key::RepairWorker),
        any_name().prop_map(Key::IdRange),
        any_name().prop_map(Key::Cluster),
        any_name().prop_map(Key::Token),
        (prop::option::of("[a-z.]{1,9}"), any_name()).prop_map(|(t, id)| Key::Grant(t, id)),
        (prop::option::of("[a-z.]{1,9}"), any_name()).prop_map(|(t, name)| Key::Role(t, name)),
        any_name().prop_map(Key::Revocation),
        any_name().prop_map(Key::ClusterKey),
        prop::option::of("[a-z.]{1,9}").prop_map(Key::Forgotten),
        Just(Key::AuditEnds),
        any::<u32>().prop_map(Key::Location),
        id.prop_map(|id| Key::Upload(AttemptId(id))),
        id.prop_map(|id| Key::DyingObject(AttemptId(id))),
        id.prop_map(|id| Key::Backup(BackupId(id))),
        any_ledger().prop_map(Key::OffloadTask),
        id.prop_map(|id| Key::Offloader(BrokerId(id))),
        any_topic().prop_map(Key::Restoring),
        any_name().prop_map(|tenant| Key::RateShares(PolicyScope::Tenant(tenant))),
        any_namespace().prop_map(|name| Key::RateShares(PolicyScope::Namespace(name))),
    ]
}

proptest! {
    #[test]
    fn keys_round_trip(key in any_key()) {
        prop_assert_eq!(key.to_string().parse::<Key>(), Ok(key));
    }

    #[test]
    fn different_keys_differ_as_text(a in any_key(), b in any_key()) {
        prop_assert_eq!(a == b, a.to_string() == b.to_string());
    }

    #[test]
    fn a_prefix_holds_its_own_namespace_and_no_other(a in any_topic(), b in any_topic()) {
        let below = topic(&b).starts_with(&topics_prefix(a.namespace()));
        prop_assert_eq!(below, a.namespace() == b.namespace());
        let below = schema(&b, 1).starts_with(&schemas_prefix(&a));
        prop_assert_eq!(below, a == b);
        let page = segment_page(&b, TopicIncarnation([1; 16]), 1);
        let below = page.starts_with(&segment_pages_prefix(&a));
        prop_assert_eq!(below, a == b);
    }

    #[test]
    fn no_name_leaves_its_prefix(tenant_name in any_name()) {
        let key = tenant(&tenant_name);
        prop_assert!(key.is_ascii());
        prop_assert_eq!(key.matches('/').count(), 1);
    }

    #[test]
    fn reading_any_text_never_panics_and_accepts_one_spelling(text in "[tlsug0-9a-f/%.-]{0,40}") {
        if let Ok(key) = text.parse::<Key>() {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn ledgers_sort_by_id(a in any_ledger(), b in any_ledger()) {
        prop_assert_eq!(a.cmp(&b), ledger(a).cmp(&ledger(b)));
    }

    #[test]
    fn pages_sort_by_number(topic in any_topic(), a in any::<u32>(), b in any::<u32>()) {
        let page = |number| segment_page(&topic, TopicIncarnation([1; 16]), number);
        prop_assert_eq!(a.cmp(&b), page(a).cmp(&page(b)));
    }
}

#[test]
fn neighbours_in_name_do_not_share_a_prefix() {
    let (a, ab) = (ns("t/a"), ns("t/ab"));
    let topic_ab = TopicName::new(ab, "x").unwrap();
    assert!(!topic(&topic_ab).starts_with(&topics_prefix(&a)));
    assert!(!tenant("ab").starts_with(&tenant_prefix("a")));
    assert_eq!(tenant("a/../b"), "t/a%2F..%2Fb");
    assert_eq!(root("main"), "/aquifer/v1/main/");
}

#[test]
fn what_building_does_not_produce_is_refused() {
    for bad in [
        "",
        "t",
        "t/",
        "t/a/",
        "t/a/b",
        "t/a/b/x",
        "t/a/b/t/",
        "t/a/b/t/x/s/1",
        "t/a/b/t/x/s/0000000001",
        "t/a/b/t/x/s/01010101010101010101010101010101/1",
        "t/a/b/t/x/s/",
        "t/a/b/t/x/0000000001",
        "l/1",
        "l/99999999999999999",
        "l/+000000000000001",
        "t/%61",
        "t/%2f",
        "brokers/00",
        "own/a/b/1-2",
        "own/a/b/00000002-00000001",
        "brokers/0A000000000000000000000000000000",
        "x/y",
    ] {
        assert!(bad.parse::<Key>().is_err(), "{bad}");
        assert!(matches!(partition_of(bad), Err(MetadataError::Invalid(_))));
    }
}

#[test]
fn a_transaction_stays_in_its_partition() {
    let topic_name = TopicName::new(ns("t/n"), "x").unwrap();
    let whole = BundleRange {
        first: 0,
        last: u32::MAX,
    };
    let delete = |key: String| Operation::Delete {
        key,
        expect: Expect::Any,
    };
    let check = |partition: &str, keys: &[String]| {
        check_partition(&Transaction {
            partition: partition.to_owned(),
            guards: vec![Guard {
                key: bundle_owner(&ns("t/n"), whole),
                expect: Expect::Absent,
            }],
            operations: keys.iter().cloned().map(delete).collect(),
        })
    };
    let together = [
        topic(&topic_name),
        ledger(LedgerId(1)),
        deletion(LedgerId(2)),
    ];
    assert_eq!(check(&partition_of_topic(&topic_name), &together), Ok(()));
    assert!(check("t/other", &together).is_err());
    assert!(check(&partition_of_topic(&topic_name), &[tenant("t")]).is_err());
    assert!(check(&partition_of_topic(&topic_name), &[namespace(&ns("t/m"))]).is_err());
}
