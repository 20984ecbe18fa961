//! A metadata store in memory, with faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::{MetadataError, MetadataResult};
use aquifer_metadata::keys;
use aquifer_metadata::store::{
    Expect, MetadataStore, Operation, PageToken, Revision, ScanPage, Session, Transaction, Until,
    Usage, Versioned, Watch,
};
use aquifer_runtime::clock;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

/// How often a silent store is asked again.
const SILENCE: Duration = Duration::from_millis(10);
/// How long it takes until a lost answer is known all the same.
const RESOLVED_AFTER: Duration = Duration::from_millis(100);

/// A store that keeps everything in memory. Watches are not there. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, (Bytes, Revision)>,
    revision: u64,
    commits: u64,
    unavailable: bool,
    silent: bool,
    /// Operations that succeed before every other fails.
    operations_left: Option<u32>,
    lost_answers: u32,
    forgotten: u32,
    /// Deletions of keys that begin like this fail once.
    undeletable: Option<String>,
    seeds: u64,
    usage: Option<Usage>,
}

impl MemoryStore {
    /// From now on every operation fails, or works again.
    pub fn set_unavailable(&self, unavailable: bool) {
        let mut state = self.state.lock();
        state.unavailable = unavailable;
        state.operations_left = None;
    }

    /// From now on nothing reaches it and no caller can know, as behind a partition; or everything
    /// does again.
    pub fn set_silent(&self, silent: bool) {
        self.state.lock().silent = silent;
    }

    /// The next `count` operations are answered; those behind them fail, until it is available
    /// again.
    pub fn set_unavailable_after(&self, count: u32) {
        self.state.lock().operations_left = Some(count);
    }

    /// The next commit that deletes a key which begins with `prefix` fails.
    pub fn fail_deletion(&self, prefix: &str) {
        self.state.lock().undeletable = Some(prefix.to_owned());
    }

    /// How much of its room it says to use.
    pub fn set_usage(&self, usage: Option<Usage>) {
        self.state.lock().usage = usage;
    }

    /// The next `count` changes are applied but answered with `UnknownOutcome`, unless their
    /// callers wait until it is known.
    pub fn lose_answers(&self, count: u32) {
        self.state.lock().lost_answers = count;
    }

    /// The next `count` changes are applied but answered with `UnknownOutcome`, however long their
    /// callers would wait.
    pub fn forget_outcomes(&self, count: u32) {
        self.state.lock().forgotten = count;
    }

    /// How many commits were applied.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.state.lock().commits
    }

    /// The keys that begin with `prefix`.
    #[must_use]
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let state = self.state.lock();
        let keys = state.values.keys();
        keys.filter(|key| key.starts_with(prefix))
            .cloned()
            .collect()
    }

    pub(super) fn next_seed(&self) -> u64 {
        let mut state = self.state.lock();
        state.seeds += 1;
        state.seeds
    }

    fn change(&self, transaction: Transaction) -> MetadataResult<(Revision, Answer)> {
        let mut state = self.state.lock();
        state.up()?;
        state.room()?;
        state.deletable(&transaction.operations)?;
        for guard in &transaction.guards {
            state.check(&guard.key, guard.expect)?;
        }
        for operation in &transaction.operations {
            match operation {
                Operation::Put { key, expect, .. } | Operation::Delete { key, expect } => {
                    state.check(key, *expect)?;
                }
            }
        }
        state.revision += 1;
        state.commits += 1;
        let revision = Revision(state.revision);
        for operation in transaction.operations {
            match operation {
                Operation::Put { key, value, .. } => {
                    state.values.insert(key, (value, revision));
                }
                Operation::Delete { key, .. } => {
                    state.values.remove(&key);
                }
            }
        }
        Ok((revision, state.answer()))
    }
}

impl State {
    fn check(&self, key: &str, expect: Expect) -> MetadataResult<()> {
        let current = self.values.get(key).map(|(_, revision)| *revision);
        let holds = match expect {
            Expect::Any => true,
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current == Some(revision),
        };
        if holds {
            return Ok(());
        }
        Err(MetadataError::Conflict {
            key: key.to_owned(),
            current,
        })
    }

    fn room(&self) -> MetadataResult<()> {
        match self.usage {
            Some(usage) if usage.refuses => Err(MetadataError::Full("switched off".to_owned())),
            _ => Ok(()),
        }
    }

    fn up(&mut self) -> MetadataResult<()> {
        self.unavailable |= self.operations_left == Some(0);
        self.operations_left = self.operations_left.map(|left| left.saturating_sub(1));
        if self.unavailable || self.silent {
            return Err(MetadataError::Unavailable("switched off".to_owned()));
        }
        Ok(())
    }

    fn deletable(&mut self, operations: &[Operation]) -> MetadataResult<()> {
        let fails = |operation: &Operation| match (operation, &self.undeletable) {
            (Operation::Delete { key, .. }, Some(prefix)) => key.starts_with(prefix),
            _ => false,
        };
        if operations.iter().any(fails) {
            self.undeletable = None;
            return Err(MetadataError::Unavailable("it stays".to_owned()));
        }
        Ok(())
    }

    /// What becomes of the answer to a change that was made.
    fn answer(&mut self) -> Answer {
        if self.forgotten > 0 {
            self.forgotten -= 1;
            return Answer::Never;
        }
        if self.lost_answers > 0 {
            self.lost_answers -= 1;
            return Answer::Late;
        }
        Answer::Now
    }
}

/// When the answer to a change comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Now,
    Late,
    Never,
}

fn unknown() -> MetadataError {
    MetadataError::UnknownOutcome("answer lost".to_owned())
}

fn missing<T>(what: &str) -> MetadataResult<T> {
    let message = format!("the store in memory has no {what}");
    Err(MetadataError::Unavailable(message))
}

#[async_trait]
impl MetadataStore for MemoryStore {
    async fn get(&self, key: &str) -> MetadataResult<Option<Versioned>> {
        let mut state = self.state.lock();
        state.up()?;
        let found = state.values.get(key);
        Ok(found.map(|(value, revision)| Versioned {
            key: key.to_owned(),
            value: value.clone(),
            revision: *revision,
        }))
    }

    async fn scan(
        &self,
        prefix: &str,
        page: Option<PageToken>,
        limit: usize,
    ) -> MetadataResult<ScanPage> {
        let mut state = self.state.lock();
        state.up()?;
        let after = page.map(|page| page.after).unwrap_or_default();
        let mut items: Vec<Versioned> = state
            .values
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| **key > after)
            .take(limit + 1)
            .map(|(key, (value, revision))| Versioned {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect();
        let revision = Revision(state.revision);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|last| PageToken {
            after: last.key.clone(),
            revision,
        });
        Ok(ScanPage {
            items,
            next,
            revision,
        })
    }

    async fn commit_until(
        &self,
        transaction: Transaction,
        until: Until,
    ) -> MetadataResult<Revision> {
        keys::check_partition(&transaction)?;
        while self.state.lock().silent {
            if until == Until::Deadline {
                return Err(MetadataError::UnknownOutcome("no answer".to_owned()));
            }
            clock::sleep(SILENCE).await;
        }
        let (revision, answer) = self.change(transaction)?;
        if answer != Answer::Now && until == Until::Known {
            clock::sleep(RESOLVED_AFTER).await;
        }
        match answer {
            Answer::Now => Ok(revision),
            Answer::Late if until == Until::Known => Ok(revision),
            Answer::Late | Answer::Never => Err(unknown()),
        }
    }

    fn usage(&self) -> Option<Usage> {
        self.state.lock().usage
    }

    async fn watch(&self, _prefix: &str, _after: Revision) -> MetadataResult<Box<dyn Watch>> {
        missing("watches")
    }

    async fn open_session(&self, _ttl: Duration) -> MetadataResult<Box<dyn Session>> {
        self.state.lock().up()?;
        Ok(Box::new(MemorySession {
            state: Arc::clone(&self.state),
            keys: Mutex::default(),
            ended: watch::Sender::new(false),
        }))
    }
}

/// A session that lives until it is closed or dropped.
struct MemorySession {
    state: Arc<Mutex<State>>,
    keys: Mutex<Vec<String>>,
    ended: watch::Sender<bool>,
}

impl MemorySession {
    fn end(&self) {
        let mut state = self.state.lock();
        for key in self.keys.lock().drain(..) {
            state.values.remove(&key);
        }
        self.ended.send_replace(true);
    }
}

#[async_trait]
impl Session for MemorySession {
    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> MetadataResult<Revision> {
        if *self.ended.borrow() {
            return Err(MetadataError::SessionExpired);
        }
        let mut state = self.state.lock();
        state.up()?;
        state.check(key, expect)?;
        state.revision += 1;
        let revision = Revision(state.revision);
        state.values.insert(key.to_owned(), (value, revision));
        self.keys.lock().push(key.to_owned());
        match state.answer() {
            Answer::Now => Ok(revision),
            Answer::Late | Answer::Never => Err(unknown()),
        }
    }

    fn remaining(&self) -> Duration {
        match *self.ended.borrow() {
            true => Duration::ZERO,
            false => Duration::MAX,
        }
    }

    async fn lost(&self) {
        // The sender lives as long as this session.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    async fn close(&self) -> MetadataResult<()> {
        self.end();
        Ok(())
    }
}

impl Drop for MemorySession {
    fn drop(&mut self) {
        self.end();
    }
}
