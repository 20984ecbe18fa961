//! The bookies of the cluster as metadata shows them: which of them may be chosen, and where
//! the transport reaches each.
//!
//! Invariants:
//! - A bookie that is not announced gets no new ledgers, but stays reachable where it was last:
//!   its lease may have expired while it lives, and reads and recovery need it.
//! - Nothing here waits for metadata: what is known is used while the store is away.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use aquifer_metadata::cache::PrefixCache;
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_model::id::BookieId;
use aquifer_proto::v1::BookieRecord;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use tokio::sync::watch;

use crate::bookie_client::GrpcTransport;
use crate::placement::{BookieInfo, Bookies};

/// Bookies that a cluster may have.
const BOOKIES_MAX: usize = 10_000;
/// Bookies that are gone and whose address is still known; the longest gone is forgotten first.
const GONE_MAX: usize = 1_000;

/// Follows the bookies of a cluster.
#[derive(Debug)]
pub struct BookieDirectory {
    bookies: Bookies,
    followed: watch::Receiver<bool>,
}

impl BookieDirectory {
    /// Starts to follow what bookies announce, and tells the transport where they are.
    #[must_use]
    pub fn start(
        store: Arc<dyn MetadataStore>,
        transport: Arc<GrpcTransport>,
        rng: SharedRng,
        tasks: &TaskGroup,
    ) -> BookieDirectory {
        let cache = PrefixCache::start(store, keys::BOOKIES_PREFIX, BOOKIES_MAX, rng, tasks);
        let bookies = Bookies::default();
        let (sender, followed) = watch::channel(false);
        let (known, shutdown) = (bookies.clone(), tasks.shutdown_token());
        tasks.spawn("bookie-directory", async move {
            let (mut changes, mut addresses) = (cache.changes(), Addresses::default());
            loop {
                if changes.borrow_and_update().is_some() {
                    known.replace(follow(&cache.items(), &mut addresses, &transport));
                    sender.send_replace(true);
                }
                tokio::select! {
                    () = shutdown.wait() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
        });
        BookieDirectory { bookies, followed }
    }

    /// The bookies that are announced; the set follows.
    #[must_use]
    pub fn bookies(&self) -> Bookies {
        self.bookies.clone()
    }

    /// Waits until what is announced was read for the first time, or until the directory has
    /// ended.
    pub async fn ready(&self) {
        // An error means that the task has ended.
        drop(self.followed.clone().wait_for(|followed| *followed).await);
    }
}

/// Takes over what metadata shows; returns those that may get new ledgers.
fn follow(
    items: &[Versioned],
    addresses: &mut Addresses,
    transport: &GrpcTransport,
) -> Vec<BookieInfo> {
    let mut present = BTreeMap::new();
    for item in items {
        match parse(item) {
            Ok((bookie, record)) => {
                present.insert(bookie, record);
            }
            Err(error) => tracing::warn!(%error, "a bookie's announcement is not understood"),
        }
    }
    let urls = present.iter().map(|(id, record)| (*id, &*record.address));
    let changes = addresses.update(urls.collect());
    for (bookie, url) in changes.moved {
        match transport.set_address(bookie, &url) {
            Ok(()) => tracing::info!(%bookie, url, "bookie announced"),
            Err(error) => {
                tracing::warn!(%bookie, %error, "a bookie's address is not usable");
                present.remove(&bookie);
            }
        }
    }
    for bookie in changes.gone {
        tracing::info!(%bookie, "bookie is not announced any more");
    }
    for bookie in changes.forgotten {
        transport.forget(bookie);
    }
    let infos = present.into_iter().map(|(id, record)| BookieInfo {
        id,
        zone: record.zone,
        read_only: record.read_only,
        capacity_bytes: record.capacity_bytes,
        free_bytes: record.free_bytes,
    });
    infos.collect()
}

fn parse(item: &Versioned) -> Result<(BookieId, BookieRecord), MetadataError> {
    let damaged = |reason: &str| MetadataError::Damaged {
        key: item.key.clone(),
        reason: reason.to_owned(),
    };
    match item.key.parse() {
        Ok(Key::Bookie(bookie)) => Ok((bookie, record::decode(item)?)),
        Ok(_) => Err(damaged("it is not the key of a bookie")),
        Err(_) => Err(damaged("no key looks like this")),
    }
}

/// Where bookies are, and were.
#[derive(Debug, Default)]
struct Addresses {
    known: BTreeMap<BookieId, String>,
    /// Known, and not announced any more; the longest gone first.
    gone: VecDeque<BookieId>,
}

/// What an update means for the transport.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// New, or at another address.
    moved: Vec<(BookieId, String)>,
    /// Not announced any more; they stay where they were.
    gone: Vec<BookieId>,
    /// Gone long enough that others need the space.
    forgotten: Vec<BookieId>,
}

impl Addresses {
    fn update(&mut self, present: BTreeMap<BookieId, &str>) -> Changes {
        let mut changes = Changes::default();
        self.gone.retain(|bookie| !present.contains_key(bookie));
        for (bookie, url) in &present {
            if self.known.get(bookie).map(String::as_str) != Some(*url) {
                self.known.insert(*bookie, (*url).to_owned());
                changes.moved.push((*bookie, (*url).to_owned()));
            }
        }
        for bookie in self.known.keys() {
            if !present.contains_key(bookie) && !self.gone.contains(bookie) {
                changes.gone.push(*bookie);
            }
        }
        self.gone.extend(&changes.gone);
        while self.gone.len() > GONE_MAX {
            if let Some(bookie) = self.gone.pop_front() {
                self.known.remove(&bookie);
                changes.forgotten.push(bookie);
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use aquifer_metadata::embedded::{EmbeddedOptions, EmbeddedStore};
    use aquifer_metadata::store::Expect;
    use aquifer_model::id::{CreationToken, LedgerId, TenantKey};
    use aquifer_model::storage::{OrderedOperation, OrderedRequest};
    use aquifer_runtime::clock::{SystemClock, timeout};
    use aquifer_runtime::disk::{Disk, SimDisk};
    use aquifer_runtime::rng::SystemRng;
    use bytes::Bytes;
    use std::path::Path;
    use std::time::Duration;
    use tokio::sync::oneshot;

    use super::*;
    use crate::bookie_client::BookieClientConfig;
    use crate::transport::BookieTransport;

    fn id(n: u16) -> BookieId {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        BookieId(id)
    }

    fn update(addresses: &mut Addresses, present: &[(u16, &'static str)]) -> Changes {
        addresses.update(present.iter().map(|(n, url)| (id(*n), *url)).collect())
    }

    #[test]
    fn who_is_gone_stays_where_it_was_until_too_many_are() {
        let mut addresses = Addresses::default();
        let changes = update(&mut addresses, &[(1, "http://a:1"), (2, "http://b:1")]);
        assert_eq!(changes.moved.len(), 2);
        let changes = update(&mut addresses, &[(1, "http://a:1")]);
        assert_eq!((changes.moved.len(), changes.gone), (0, vec![id(2)]));
        let changes = update(&mut addresses, &[(1, "http://a:1")]);
        assert_eq!(changes, Changes::default(), "said once");
        // Back where it was: nothing to tell the transport. Elsewhere: moved.
        assert_eq!(
            update(&mut addresses, &[(1, "http://a:1"), (2, "http://b:1")]),
            Changes::default()
        );
        let changes = update(&mut addresses, &[(1, "http://a:2"), (2, "http://b:1")]);
        assert_eq!(changes.moved, [(id(1), "http://a:2".to_owned())]);
        // One after the other comes and goes: the bound holds, and the longest gone are forgotten.
        let mut forgotten = Vec::new();
        let most = u16::try_from(GONE_MAX).unwrap() + 10;
        for n in 10..10 + most {
            forgotten
                .extend(update(&mut addresses, &[(1, "http://a:2"), (n, "http://c:1")]).forgotten);
        }
        assert_eq!(forgotten[0], id(2));
        assert!(addresses.known.len() <= GONE_MAX + 2);
        assert!(addresses.known.contains_key(&id(1)));
    }

    async fn error_of(transport: &GrpcTransport, bookie: BookieId) -> String {
        let (sender, answer) = oneshot::channel();
        let request = OrderedRequest {
            ledger: LedgerId(1),
            token: CreationToken([0; 16]),
            tenant: TenantKey::UNKNOWN,
            operation: OrderedOperation::Fence,
        };
        let reply = move |outcome: Result<_, _>| drop(sender.send(outcome));
        transport.submit(bookie, request, Box::new(reply));
        answer.await.unwrap().unwrap_err().to_string()
    }

    #[tokio::test]
    async fn announcements_are_followed_and_garbage_is_left_out() {
        let (disk, tasks) = (SimDisk::new(), TaskGroup::new("test"));
        disk.create_dir_all(Path::new("/m")).unwrap();
        let store = EmbeddedStore::open(
            "/m/metadata.redb".into(),
            EmbeddedOptions::default(),
            disk.shared(),
            SystemClock::shared(),
            &tasks,
        );
        let store: Arc<dyn MetadataStore> = Arc::new(store.await.unwrap());
        let put = async |n: u16, value: Bytes| {
            let key = keys::bookie(id(n));
            let put = store.put(keys::CLUSTER_PARTITION, &key, value, Expect::Any);
            put.await.unwrap();
        };
        let announce = |zone: &str, read_only| {
            record::encode(BookieRecord {
                // Nothing listens there.
                address: "http://127.0.0.1:1".to_owned(),
                zone: zone.to_owned(),
                read_only,
                ..BookieRecord::default()
            })
        };
        put(1, announce("east", false)).await;
        put(2, Bytes::from_static(b"garbage")).await;
        let rng = SystemRng::shared();
        let client = BookieClientConfig::default();
        let transport = Arc::new(GrpcTransport::new(client, &*rng, tasks.clone()));
        let directory =
            BookieDirectory::start(Arc::clone(&store), Arc::clone(&transport), rng, &tasks);
        timeout(Duration::from_secs(60), directory.ready())
            .await
            .unwrap();
        let bookies = directory.bookies();
        let first = BookieInfo {
            id: id(1),
            zone: "east".to_owned(),
            read_only: false,
            free_bytes: 0,
            capacity_bytes: 0,
        };
        assert_eq!(*bookies.snapshot(), [first]);
        let unknown = error_of(&transport, id(2)).await;
        assert!(unknown.contains("not known"), "{unknown}");

        put(1, announce("east", true)).await;
        put(3, announce("west", false)).await;
        let seen = async |wanted: &dyn Fn(&[BookieInfo]) -> bool| {
            while !wanted(&bookies.snapshot()) {
                tokio::task::yield_now().await;
            }
        };
        let both = |all: &[BookieInfo]| all.len() == 2 && all[0].read_only;
        timeout(Duration::from_secs(60), seen(&both)).await.unwrap();

        let gone = aquifer_metadata::store::Transaction {
            operations: vec![aquifer_metadata::store::Operation::Delete {
                key: keys::bookie(id(3)),
                expect: Expect::Any,
            }],
            ..Default::default()
        };
        store.commit(gone).await.unwrap();
        let one = |all: &[BookieInfo]| all.len() == 1;
        timeout(Duration::from_secs(60), seen(&one)).await.unwrap();
        // It is asked where it was, and not refused as unknown.
        let asked = error_of(&transport, id(3)).await;
        assert!(!asked.contains("not known"), "{asked}");
    }
}
