//! Leader election on any store: a key that goes with a session, won by creating it.
//!
//! Invariants:
//! - At any revision the key names one leader or none.
//! - A leader is followed only after its key is gone: by its own will, or with its session.
//!
//! Leading is a hint that this process does the work, not a right to change anything: a leader that
//! was paused may believe in it for a moment longer than the others. A process that must be certain
//! puts [`Leadership::guard`] into each transaction.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock;
use bytes::Bytes;

use crate::error::{MetadataError, MetadataResult};
use crate::keys;
use crate::store::{
    Expect, Guard, MetadataStore, Operation, Revision, Session, Transaction, Versioned, Watch,
    WatchEvent,
};

/// First and longest wait before the store is asked again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// An election. Clones are the same election.
#[derive(Clone)]
pub struct Election {
    store: Arc<dyn MetadataStore>,
    key: String,
}

/// A leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// What the leader campaigned with.
    pub candidate: Bytes,
    /// When it won; later leaders have larger ones.
    pub revision: Revision,
}

/// An election that was won. Dropping it does not resign: the key stays as long as the session.
pub struct Leadership {
    election: Election,
    session: Arc<dyn Session>,
    revision: Revision,
}

/// Tells which candidate leads, now and at each change.
pub struct Observer {
    election: Election,
    watch: Option<Box<dyn Watch>>,
    shown: Option<Option<Leader>>,
}

impl Election {
    /// The election of this name ([`keys::ELECTION_AUDITOR`]).
    #[must_use]
    pub fn new(store: Arc<dyn MetadataStore>, name: &str) -> Election {
        Election {
            store,
            key: keys::leader(name),
        }
    }

    /// Waits until this candidate leads, through any absence of the store. The candidate's bytes
    /// are what others see; no other process may campaign with the same. Dropping the future
    /// does not withdraw the candidate: it may still win until its session ends.
    ///
    /// # Errors
    /// `SessionExpired` when the session is lost before; otherwise what cannot be cured.
    pub async fn campaign(
        &self,
        session: Arc<dyn Session>,
        candidate: Bytes,
    ) -> MetadataResult<Leadership> {
        let revision = tokio::select! {
            biased;
            () = session.lost() => return Err(MetadataError::SessionExpired),
            won = self.win(session.as_ref(), &candidate) => won?,
        };
        Ok(Leadership {
            election: self.clone(),
            session,
            revision,
        })
    }

    /// The current leader.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn leader(&self) -> MetadataResult<Option<Leader>> {
        let found = self.store.get(&self.key).await?;
        Ok(found.map(Leader::from))
    }

    /// Follows the leader.
    #[must_use]
    pub fn observe(&self) -> Observer {
        Observer {
            election: self.clone(),
            watch: None,
            shown: None,
        }
    }

    async fn win(&self, session: &dyn Session, candidate: &Bytes) -> MetadataResult<Revision> {
        let mut retry = Retry::default();
        loop {
            match self.try_to_win(session, candidate).await {
                Ok(Some(revision)) => return Ok(revision),
                Ok(None) => retry = Retry::default(),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// Wins if no candidate leads; waits until the leader is gone otherwise.
    async fn try_to_win(
        &self,
        session: &dyn Session,
        candidate: &Bytes,
    ) -> MetadataResult<Option<Revision>> {
        let (found, snapshot) = self.read().await?;
        let expect = match found {
            None => Expect::Absent,
            // Ours: an answer was lost, or an earlier session of this process is not gone yet.
            Some(own) if own.value == candidate => Expect::Revision(own.revision),
            Some(_) => {
                self.changed(snapshot).await?;
                return Ok(None);
            }
        };
        match session.put(&self.key, candidate.clone(), expect).await {
            Ok(revision) => Ok(Some(revision)),
            Err(MetadataError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The key, and the revision of the state that was read.
    async fn read(&self) -> MetadataResult<(Option<Versioned>, Revision)> {
        // The key itself comes first of all that begin with it.
        let page = self.store.scan(&self.key, None, 1).await?;
        let found = page.items.into_iter().find(|item| item.key == self.key);
        Ok((found, page.revision))
    }

    /// Waits for a change of the key after a revision, or for a resync.
    async fn changed(&self, after: Revision) -> MetadataResult<()> {
        let mut watch = self.store.watch(&self.key, after).await?;
        loop {
            match watch.next().await {
                Some(WatchEvent::Put(item)) if item.key != self.key => {}
                Some(WatchEvent::Delete { key, .. }) if key != self.key => {}
                Some(_) => return Ok(()),
                None => return Err(closed()),
            }
        }
    }
}

impl Leadership {
    /// When it was won: the epoch of this leader.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Makes a transaction of the cluster's partition fail unless this is still the leader.
    #[must_use]
    pub fn guard(&self) -> Guard {
        Guard {
            key: self.election.key.clone(),
            expect: Expect::Revision(self.revision),
        }
    }

    /// Waits until this is not the leader any more.
    pub async fn lost(&self) {
        tokio::select! {
            () = self.session.lost() => {}
            () = self.replaced() => {}
        }
    }

    async fn replaced(&self) {
        let mut retry = Retry::default();
        loop {
            match self.check().await {
                Ok(true) => return,
                Ok(false) => retry = Retry::default(),
                Err(error) => {
                    if retry.after(error).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Whether another leads; waits for a change otherwise.
    async fn check(&self) -> MetadataResult<bool> {
        let (found, snapshot) = self.election.read().await?;
        if found.is_none_or(|found| found.revision != self.revision) {
            return Ok(true);
        }
        self.election.changed(snapshot).await?;
        Ok(false)
    }

    /// Lets another lead. The session stays.
    ///
    /// # Errors
    /// Those of a commit: unless it succeeds, the key stays until the session ends.
    pub async fn resign(self) -> MetadataResult<()> {
        let resign = Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations: vec![Operation::Delete {
                key: self.election.key.clone(),
                expect: Expect::Revision(self.revision),
            }],
        };
        match self.election.store.commit(resign).await {
            // Another candidate leads already, or none.
            Ok(_) | Err(MetadataError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Observer {
    /// The leader: at once for the first time, then whenever it has changed. `None` when there
    /// is no leader. Short leaderships in between may be passed over.
    ///
    /// # Errors
    /// Those of a read. It may be called again.
    pub async fn next(&mut self) -> MetadataResult<Option<Leader>> {
        loop {
            let leader = match &mut self.watch {
                None => {
                    let (found, snapshot) = self.election.read().await?;
                    let watch = self.election.store.watch(&self.election.key, snapshot);
                    self.watch = Some(watch.await?);
                    found.map(Leader::from)
                }
                Some(watch) => match watch.next().await {
                    Some(WatchEvent::Put(item)) if item.key == self.election.key => {
                        Some(Leader::from(item))
                    }
                    Some(WatchEvent::Delete { key, .. }) if key == self.election.key => None,
                    Some(WatchEvent::Put(_) | WatchEvent::Delete { .. }) => continue,
                    Some(WatchEvent::Resync) => {
                        self.watch = None;
                        continue;
                    }
                    None => return Err(closed()),
                },
            };
            if self.shown.as_ref() != Some(&leader) {
                self.shown = Some(leader.clone());
                return Ok(leader);
            }
        }
    }
}

impl From<Versioned> for Leader {
    fn from(found: Versioned) -> Leader {
        Leader {
            candidate: found.value,
            revision: found.revision,
        }
    }
}

fn closed() -> MetadataError {
    MetadataError::Unavailable("the store is closed".to_owned())
}

/// Waits longer and longer while the store is away.
struct Retry(Duration);

impl Default for Retry {
    fn default() -> Retry {
        Retry(RETRY_FIRST)
    }
}

impl Retry {
    /// Waits, or returns an error that waiting does not cure.
    async fn after(&mut self, error: MetadataError) -> MetadataResult<()> {
        match error {
            MetadataError::Unavailable(_)
            | MetadataError::UnknownOutcome(_)
            | MetadataError::Full(_) => {
                tracing::debug!(%error, "an election waits for the store");
                clock::sleep(self.0).await;
                self.0 = (self.0 * 2).min(RETRY_MAX);
                Ok(())
            }
            MetadataError::Conflict { .. }
            | MetadataError::Invalid(_)
            | MetadataError::Denied(_)
            | MetadataError::Damaged { .. }
            | MetadataError::NewerFormat { .. }
            | MetadataError::SessionExpired => Err(error),
        }
    }
}
