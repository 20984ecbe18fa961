//! Elections, which need nothing but the contract.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join;

use crate::contract::fixture::{StoreFactory, soon};
use crate::election::{Election, Leader};
use crate::error::MetadataError;
use crate::keys;
use crate::store::{Expect, MetadataStore, Operation, Session, Transaction};

const TTL: Duration = Duration::from_secs(2);

async fn session(store: &Arc<dyn MetadataStore>) -> Arc<dyn Session> {
    let session = store.open_session(TTL).await.expect("opened");
    Arc::from(session)
}

fn name(leader: Option<&Leader>) -> Option<&[u8]> {
    leader.map(|leader| leader.candidate.as_ref())
}

/// One leads; when it resigns the candidate that waits follows, and every process sees it.
pub async fn a_leader_that_resigns_is_followed(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let election = Election::new(Arc::clone(&store), keys::ELECTION_AUDITOR);
    let mut observer = election.observe();
    assert_eq!(soon("the start", observer.next()).await, Ok(None));
    let one = election.campaign(session(&store).await, Bytes::from_static(b"one"));
    let one = soon("a leader", one).await.expect("there is no leader");
    let seen = soon("a leader", observer.next()).await.expect("read");
    assert_eq!(name(seen.as_ref()), Some(b"one".as_slice()));
    assert_eq!(seen.map(|leader| leader.revision), Some(one.revision()));

    let first = one.revision();
    let two = election.campaign(session(&store).await, Bytes::from_static(b"two"));
    let resign = async {
        let leader = election.leader().await.expect("read");
        assert_eq!(name(leader.as_ref()), Some(b"one".as_slice()));
        one.resign().await.expect("it led");
    };
    let (two, ()) = soon("the follower", join(two, resign)).await;
    let two = two.expect("the first has resigned");
    assert!(two.revision() > first);
    loop {
        let seen = soon("the follower", observer.next()).await.expect("read");
        if name(seen.as_ref()) == Some(b"two") {
            break;
        }
        assert_eq!(seen, None);
    }
}

/// A leader whose session ends learns it, is followed, and its guards fail from then on.
pub async fn a_leader_that_lost_its_session_is_followed(factory: &dyn StoreFactory) {
    let store = factory.create().await;
    let election = Election::new(Arc::clone(&store), keys::ELECTION_AUDITOR);
    let session_one = session(&store).await;
    let one = election.campaign(Arc::clone(&session_one), Bytes::from_static(b"one"));
    let one = soon("a leader", one).await.expect("there is no leader");
    let write = || Transaction {
        partition: keys::CLUSTER_PARTITION.to_owned(),
        guards: vec![one.guard()],
        operations: vec![Operation::Put {
            key: keys::id_range(keys::IDS_LEDGER),
            value: Bytes::new(),
            expect: Expect::Any,
        }],
    };
    store.commit(write()).await.expect("it leads");
    let two = election.campaign(session(&store).await, Bytes::from_static(b"two"));
    let end = async {
        let (lost, closed) = join(one.lost(), session_one.close()).await;
        closed.expect("closed");
        lost
    };
    let (two, ()) = soon("the follower", join(two, end)).await;
    let two = two.expect("the first is gone");
    let refused = store.commit(write()).await;
    assert!(
        matches!(&refused, Err(MetadataError::Conflict { current, .. }) if *current == Some(two.revision())),
        "{refused:?}"
    );
    let again = election.campaign(session_one, Bytes::from_static(b"one"));
    assert_eq!(
        soon("the refusal", again).await.map(|won| won.revision()),
        Err(MetadataError::SessionExpired)
    );
}
