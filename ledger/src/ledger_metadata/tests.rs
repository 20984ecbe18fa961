//! Records from metadata are a stranger's bytes: each is a ledger, or an error that says why not.

use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::intercept::Intercept;
use aquifer_metadata::store::Until;
use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::testing::{MemoryStore, TestWorld};

const ID: LedgerId = LedgerId(5);

fn stored(value: Bytes) -> Versioned {
    Versioned {
        key: keys::ledger(ID),
        value,
        revision: Revision(3),
    }
}

fn good() -> v1::LedgerRecord {
    let fragment = |first_entry_id: u64, bookies: [u8; 3]| v1::Fragment {
        first_entry_id,
        bookies: bookies.iter().map(|n| vec![*n; 16].into()).collect(),
    };
    v1::LedgerRecord {
        ensemble: 3,
        write_quorum: 3,
        ack_quorum: 2,
        state: v1::LedgerState::Closed.into(),
        fragments: vec![fragment(0, [1, 2, 3]), fragment(7, [1, 4, 3])],
        last_entry_id: Some(9),
        length_bytes: 100,
        creation_token: vec![8; 16].into(),
        home: "public/default".to_owned(),
        recovery_epoch: 1,
        created_ms: 1,
        offload: None,
    }
}

#[test]
fn a_record_comes_back_as_it_was_written() {
    let value = record::encode(good());
    let info = LedgerInfo::decode(ID, &stored(value.clone())).unwrap();
    assert_eq!(record::encode(info.to_record()), value);
    assert_eq!(
        info.duties().at(EntryId(8)).unwrap().0[1],
        BookieId([4; 16])
    );
}

#[test]
fn what_is_wrong_with_a_record_is_said() {
    type Spoil = fn(&mut v1::LedgerRecord);
    let cases: [(Spoil, &str); 10] = [
        (|r| r.ensemble = 2, "needs"),
        (|r| r.ack_quorum = 0, "needs"),
        (|r| r.state = 0, "no state"),
        (|r| r.state = 77, "no state"),
        (
            |r| r.fragments[1].bookies[0] = vec![1; 15].into(),
            "malformed",
        ),
        (|r| r.fragments[1].bookies[0] = vec![4; 16].into(), "twice"),
        (|r| drop(r.fragments[1].bookies.pop()), "E members"),
        (|r| r.fragments[1].first_entry_id = 0, "same entry"),
        (|r| drop(r.fragments.remove(0)), "entry 0"),
        (|r| r.creation_token = Bytes::new(), "token"),
    ];
    for (spoil, what) in cases {
        let mut bad = good();
        spoil(&mut bad);
        let error = LedgerInfo::decode(ID, &stored(record::encode(bad))).unwrap_err();
        assert!(matches!(error, LedgerError::BadRecord(5, _)), "{error:?}");
        assert!(error.to_string().contains(what), "{error} names {what}");
    }
    let garbage = LedgerInfo::decode(ID, &stored(Bytes::from_static(b"garbage")));
    assert!(garbage.is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = LedgerInfo::decode(ID, &stored(bytes.into()));
    }

    /// Flipped bytes give an error or a ledger whose parts can be used.
    #[test]
    fn damaged_records_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = record::encode(good()).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(info) = LedgerInfo::decode(ID, &stored(bytes.into())) {
            let (members, _) = info.duties().at(EntryId(3)).unwrap();
            prop_assert_eq!(members.len(), info.quorum.ensemble());
            prop_assert!(!info.bookies().is_empty());
            prop_assert!(info.to_record().encoded_len() > 0);
        }
    }
}

/// A store whose answers take a turn of the runtime, so that tasks meet in it.
struct Slow(MemoryStore);

#[async_trait]
impl Intercept for Slow {
    fn inner(&self) -> &dyn MetadataStore {
        &self.0
    }

    async fn on_get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        tokio::task::yield_now().await;
        self.0.get(key).await
    }

    async fn on_commit(&self, transaction: Transaction, until: Until) -> MetadataResult<Revision> {
        tokio::task::yield_now().await;
        self.0.commit_until(transaction, until).await
    }
}

#[tokio::test]
async fn a_thousand_ledgers_that_are_created_at_once_get_ids_of_few_ranges() {
    let (store, ids) = (Slow(MemoryStore::default()), LedgerIds::default());
    let taken = futures::future::join_all((0..1_000).map(|_| ids.next(&store, LedgerId(0)))).await;
    let taken: Result<BTreeSet<_>, _> = taken.into_iter().collect();
    assert_eq!(taken.unwrap().len(), 1_000, "each gets its own");
    assert_eq!(store.0.commits(), 1_000_u64.div_ceil(IDS_RESERVED));
}

/// Two processes share the counter: whichever creates the next ledger of a topic, its id is above
/// those of the ledgers before, so that positions rise along the topic.
#[tokio::test]
async fn ids_rise_along_a_topic_whoever_draws_them() {
    let world = TestWorld::new(1);
    let (one, other) = (world.process(), world.process());
    let mut last = LedgerId(0);
    for turn in 0..20 {
        let process = if turn % 3 == 0 { &one } else { &other };
        let ids = &process.shared.ledger_ids;
        let id = ids.next(&*process.store, last).await.unwrap();
        assert!(id > last, "{id} after {last}");
        last = id;
    }
}

/// What a process has reserved before a restore is not drawn after it: ledgers that are restored
/// have those ids.
#[tokio::test]
async fn ids_of_a_restore_are_not_drawn_by_the_process_that_restores() {
    let (store, ids) = (MemoryStore::default(), LedgerIds::default());
    let first = ids.next(&store, LedgerId(0)).await.unwrap();
    let last = LedgerId(first.0 + IDS_RESERVED / 2);
    ids.reserve_up_to(&store, last).await.unwrap();
    for _ in 0..IDS_RESERVED {
        assert!(ids.next(&store, LedgerId(0)).await.unwrap() > last);
    }
}
