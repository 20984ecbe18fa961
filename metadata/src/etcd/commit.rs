//! Commits: one transaction of etcd each, tried until its outcome is known or the time is up.
//!
//! What is certain to have been refused is sent again. What may have been applied is resolved
//! first, by the slot that it carries ([`crate::etcd::slots`]); a caller that asks until the
//! outcome is known waits for that as long as etcd is away, but no longer than the slot lives. Only
//! a transaction that uses every place which etcd has for operations or conditions has none left
//! for the slot: when its answer is lost, its outcome stays unknown. etcd's answer that it has no
//! space left may mean either: the slot is read then, which needs no space.

use std::sync::Arc;

use aquifer_model::limits::METADATA_OPERATIONS_MAX;
use aquifer_runtime::clock;
use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp, TxnResponse,
};

use crate::error::{MetadataError, MetadataResult};
use crate::etcd::errors::Failure;
use crate::etcd::lease::Lease;
use crate::etcd::shared::Shared;
use crate::etcd::slots::{Resolved, TakenSlot};
use crate::etcd::space::{Space, number, revision};
use crate::limits;
use crate::store::{Expect, Operation, Revision, Transaction, Until};

/// A transaction in etcd's terms.
pub(super) struct Request {
    compares: Vec<Compare>,
    operations: Vec<TxnOp>,
    /// What is compared, in the order in which a conflict is reported.
    expected: Vec<(String, Vec<u8>, Expect)>,
    /// The lease that the keys go with.
    lease: Option<Arc<Lease>>,
    /// Whether there is a place left for a slot.
    has_slot: bool,
}

impl Request {
    pub(super) fn new(space: &Space, transaction: &Transaction) -> Request {
        let mut request = Request {
            compares: Vec::new(),
            operations: Vec::with_capacity(transaction.operations.len() + 1),
            expected: Vec::new(),
            lease: None,
            has_slot: transaction.operations.len() < METADATA_OPERATIONS_MAX
                && limits::conditions(transaction) < METADATA_OPERATIONS_MAX,
        };
        for guard in &transaction.guards {
            request.expect(space, &guard.key, guard.expect);
        }
        for operation in &transaction.operations {
            request.change(space, operation);
        }
        request
    }

    /// A put that goes with a session.
    pub(super) fn of_session(space: &Space, operation: &Operation, lease: &Arc<Lease>) -> Request {
        let mut request = Request::new(space, &Transaction::default());
        request.lease = Some(Arc::clone(lease));
        request.change(space, operation);
        request
    }

    fn expect(&mut self, space: &Space, key: &str, expect: Expect) {
        let full = space.key(key);
        let wanted = match expect {
            Expect::Any => return,
            // etcd takes 0 for the revision of a key that does not exist.
            Expect::Absent => 0,
            // Nothing is ever written at revision 0, so nothing can be expected there.
            Expect::Revision(Revision(0)) => i64::MAX,
            Expect::Revision(revision) => number(revision),
        };
        let compare = Compare::mod_revision(full.clone(), CompareOp::Equal, wanted);
        self.compares.push(compare);
        self.expected.push((key.to_owned(), full, expect));
    }

    fn change(&mut self, space: &Space, operation: &Operation) {
        self.expect(space, operation.key(), operation.expect());
        let key = space.key(operation.key());
        self.operations.push(match operation {
            Operation::Put { value, .. } => {
                let lease = self.lease.as_ref().map_or(0, |lease| lease.id());
                let options = PutOptions::new().with_lease(lease);
                TxnOp::put(key, value.as_ref(), Some(options))
            }
            Operation::Delete { .. } => TxnOp::delete(key, None::<DeleteOptions>),
        });
    }

    /// The transaction with the slot's part, and reads that explain a refusal.
    fn txn(&self, slot: Option<(Compare, TxnOp)>) -> Txn {
        let (mut compares, mut operations) = (self.compares.clone(), self.operations.clone());
        if let Some((compare, operation)) = slot {
            compares.push(compare);
            operations.push(operation);
        }
        let reads = self
            .expected
            .iter()
            .map(|(_, key, _)| TxnOp::get(key.clone(), Some(GetOptions::new().with_keys_only())));
        Txn::new()
            .when(compares)
            .and_then(operations)
            .or_else(reads.collect::<Vec<_>>())
    }

    /// The first key that was not as expected, in the answer to a refused transaction.
    fn conflict(&self, answer: &TxnResponse) -> Option<MetadataError> {
        for ((key, _, expect), read) in self.expected.iter().zip(&answer.0.responses) {
            let Some(PbTxnOpResponse::ResponseRange(range)) = &read.response else {
                continue;
            };
            let current = range.kvs.first().map(|found| revision(found.mod_revision));
            let as_expected = match expect {
                Expect::Any => true,
                Expect::Absent => current.is_none(),
                Expect::Revision(wanted) => current == Some(*wanted),
            };
            if !as_expected {
                return Some(MetadataError::Conflict {
                    key: key.clone(),
                    current,
                });
            }
        }
        None
    }
}

/// A commit under way.
struct Commit<'a> {
    shared: &'a Arc<Shared>,
    request: &'a Request,
    slot: Option<TakenSlot>,
    /// The transaction was sent and may have been applied.
    unresolved: bool,
    /// What went wrong last.
    last: String,
}

impl Shared {
    /// Makes the changes, or tells why not.
    pub(super) async fn commit(
        self: &Arc<Self>,
        request: Request,
        until: Until,
    ) -> MetadataResult<Revision> {
        let mut commit = Commit {
            shared: self,
            request: &request,
            slot: None,
            unresolved: false,
            last: "it did not answer".to_owned(),
        };
        let limit = self.endpoints.request_timeout();
        let result = match clock::timeout(limit, commit.run()).await {
            Ok(result) => result,
            Err(_) => {
                let reason = format!("no result in {limit:?}: {}", commit.last);
                Err(if commit.unresolved {
                    MetadataError::UnknownOutcome(reason)
                } else {
                    MetadataError::Unavailable(reason)
                })
            }
        };
        match result {
            Err(MetadataError::UnknownOutcome(reason)) if until == Until::Known => {
                commit.resolve(reason).await
            }
            result => result,
        }
    }
}

impl Commit<'_> {
    async fn run(&mut self) -> MetadataResult<Revision> {
        let mut tries = 0;
        loop {
            if self.shared.closed.is_cancelled() {
                return Err(MetadataError::Unavailable("the store is closed".to_owned()));
            }
            if self.request.has_slot
                && let Some(resolved) = self.prepare_slot().await?
            {
                return resolved;
            }
            if let Some(lease) = &self.request.lease
                && lease.is_lost()
            {
                return Err(MetadataError::SessionExpired);
            }
            let failure = match self.send().await {
                Ok(answer) if answer.header().is_none() => {
                    Failure::Unknown("etcd answered without a header".to_owned())
                }
                Ok(answer) => match self.read(&answer) {
                    Some(result) => return result,
                    None => Failure::Refused("the slot of the commit no longer exists".to_owned()),
                },
                Err(failure) => failure,
            };
            if let Some(result) = self.after(failure).await {
                return result;
            }
            self.shared.endpoints.pause(&mut tries).await;
        }
    }

    /// Gets a slot that is in no doubt. Returns the outcome of this commit when resolving the
    /// doubt has told it.
    async fn prepare_slot(&mut self) -> MetadataResult<Option<MetadataResult<Revision>>> {
        loop {
            let slot = match &mut self.slot {
                Some(slot) => slot,
                empty => empty.insert(self.shared.slots.take(self.shared).await?),
            };
            if !slot.in_doubt() {
                return Ok(None);
            }
            // Doubt that an earlier user of the slot has left no longer matters.
            let resolved = match slot.resolve(self.shared).await {
                Ok(resolved) => resolved,
                Err(error) if self.unresolved => {
                    return Err(MetadataError::UnknownOutcome(error.to_string()));
                }
                Err(error) => return Err(error),
            };
            let mine = std::mem::take(&mut self.unresolved);
            match resolved {
                Resolved::Applied(revision) if mine => return Ok(Some(Ok(revision))),
                Resolved::Lost if mine => {
                    return Ok(Some(Err(MetadataError::UnknownOutcome(
                        "the process was paused until its slots expired".to_owned(),
                    ))));
                }
                Resolved::Lost => self.slot = None,
                Resolved::Applied(_) | Resolved::NotApplied => return Ok(None),
            }
        }
    }

    /// Asks what became of it until etcd tells. It is not sent again: its time is up.
    async fn resolve(&mut self, unknown: String) -> MetadataResult<Revision> {
        let mut tries = 0;
        loop {
            let Some(slot) = self.slot.as_mut().filter(|_| self.unresolved) else {
                // Without a slot in doubt nothing can tell, now or later.
                return Err(MetadataError::UnknownOutcome(unknown));
            };
            if self.shared.closed.is_cancelled() {
                return Err(MetadataError::UnknownOutcome(
                    "the store is closed".to_owned(),
                ));
            }
            match slot.resolve(self.shared).await {
                Ok(Resolved::Applied(revision)) => return Ok(revision),
                Ok(Resolved::NotApplied) => return Err(MetadataError::Unavailable(unknown)),
                Ok(Resolved::Lost) => return Err(MetadataError::UnknownOutcome(unknown)),
                // Without space nothing can be resolved by a write; it may be freed again.
                Err(MetadataError::Unavailable(reason) | MetadataError::Full(reason)) => {
                    tracing::debug!(reason, "the outcome of a commit is still unknown");
                }
                Err(error) => return Err(MetadataError::UnknownOutcome(error.to_string())),
            }
            self.shared.endpoints.pause(&mut tries).await;
        }
    }

    async fn send(&mut self) -> Result<TxnResponse, Failure> {
        let number = self.shared.slots.number();
        let noted = self.slot.as_mut().map(|slot| slot.note(number));
        let txn = self.request.txn(noted);
        self.unresolved = true;
        let ask = |client: Client| async move { client.kv_client().txn(txn).await };
        let limit = self.shared.endpoints.attempt_timeout();
        self.shared.endpoints.attempt(limit, ask).await
    }

    /// The result in an answer. `None` when only the slot was not as expected: nothing was done.
    fn read(&mut self, answer: &TxnResponse) -> Option<MetadataResult<Revision>> {
        let at = answer.header().map_or(0, |header| header.revision());
        self.unresolved = false;
        if answer.succeeded() {
            if let Some(slot) = &mut self.slot {
                slot.applied(at);
            }
            return Some(Ok(revision(at)));
        }
        if let Some(slot) = &mut self.slot {
            slot.not_applied();
        }
        if let Some(conflict) = self.request.conflict(answer) {
            return Some(Err(conflict));
        }
        match self.slot.take() {
            Some(slot) => {
                slot.lose();
                None
            }
            None => Some(Err(MetadataError::Unavailable(
                "etcd refused a transaction without a reason".to_owned(),
            ))),
        }
    }

    /// What a failure means for this commit; `None` to go on with it.
    async fn after(&mut self, failure: Failure) -> Option<MetadataResult<Revision>> {
        match failure {
            Failure::Unknown(reason) => {
                self.last.clone_from(&reason);
                return if self.slot.is_some() {
                    // Resolved before the next try.
                    None
                } else {
                    Some(Err(MetadataError::UnknownOutcome(reason)))
                };
            }
            Failure::Final(MetadataError::Full(reason)) => {
                return Some(self.out_of_space(reason).await);
            }
            // Everything else was certainly not applied.
            Failure::Refused(reason) | Failure::Login(reason) => {
                self.refused();
                self.last = reason;
            }
            Failure::NoLease => {
                self.refused();
                if let Some(result) = self.session_result().await {
                    return Some(result);
                }
                if let Some(slot) = self.slot.take() {
                    slot.lose();
                }
            }
            final_failure @ (Failure::AnswerTooLarge | Failure::Final(_)) => {
                self.refused();
                return Some(Err(final_failure.into()));
            }
        }
        None
    }

    /// The result when etcd answers that it has no space left. It also gives that answer to the
    /// transaction that takes it over its quota, after it has made the change: only the slot tells.
    async fn out_of_space(&mut self, reason: String) -> MetadataResult<Revision> {
        self.shared.usage.refused();
        let Some(slot) = &mut self.slot else {
            return Err(MetadataError::UnknownOutcome(reason));
        };
        match slot.look(self.shared).await {
            Ok(Some(Resolved::Applied(revision))) => {
                self.unresolved = false;
                Ok(revision)
            }
            Ok(Some(Resolved::Lost)) => Err(MetadataError::UnknownOutcome(reason)),
            // The answer was the last word on the transaction: it can not be made later.
            Ok(Some(Resolved::NotApplied) | None) => {
                self.refused();
                Err(MetadataError::Full(reason))
            }
            Err(error) => Err(MetadataError::UnknownOutcome(error.to_string())),
        }
    }

    fn refused(&mut self) {
        self.unresolved = false;
        if let Some(slot) = &mut self.slot {
            slot.not_applied();
        }
    }

    /// After etcd missed a lease: whether it was the session's.
    async fn session_result(&self) -> Option<MetadataResult<Revision>> {
        let lease = self.request.lease.as_ref()?;
        match lease.is_gone(&self.shared.endpoints).await {
            Ok(true) => {
                lease.lose();
                Some(Err(MetadataError::SessionExpired))
            }
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
