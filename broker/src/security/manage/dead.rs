//! Removal of tokens that were revoked or have expired, and of grants that have expired, once that
//! is `auth.ended_kept_ms` ago. Until then lists show them, and they count to the bound of their
//! tenant.
//!
//! Invariants:
//! - A record is removed by compare-and-swap, and only after it was read again: any number of
//!   brokers may do it at once.
//! - A token that is gone authenticates no one, and stays gone. A revoked one that has not expired
//!   could come back with a backup: its id is noted in the same transaction. For ids of which
//!   there is no room in the note the record stays. Clocks differ: one that has just expired here
//!   is noted too.
//! - The first token stays, or a start would make another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::store::{Expect, Operation, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_metadata::{keys, record};
use aquifer_proto::v1::{ForgottenRecord, GrantRecord, TokenRecord};
use aquifer_protocol_api::context::RequestContext;
use aquifer_runtime::clock;

use crate::context::Context;
use crate::error::BrokerError;
use crate::security::manage::grants::{grant_said, scope_of};
use crate::security::manage::owner;
use crate::security::manage::tokens::token_said;
use crate::security::token::Token;
use crate::security::{Guard, first, principal};

/// Records that are looked at while decisions may wait for it.
const PAGE_RECORDS: usize = 1_000;
/// Tokens that go in one transaction.
const TOKENS_AT_ONCE: usize = 32;
/// What has expired this long ago has expired by the clock of every broker.
const CLOCKS_APART_MS: u64 = 3_600 * 1_000;
/// Ids that the note of a tenant, or of the cluster, has at most: 280 KB.
const NOTED_MAX: usize = 10_000;

/// Tokens to be removed, by their tenants.
type Ended = BTreeMap<Option<String>, Vec<String>>;

/// Starts to remove what ended long ago, where callers are authenticated.
pub(crate) fn start(shared: &Arc<Context>) {
    let Some(guard) = shared.guard.clone() else {
        return;
    };
    let (context, token) = (Arc::clone(shared), shared.tasks.shutdown_token());
    shared.tasks.spawn("ended-access", async move {
        tokio::select! {
            () = rounds(&context, &guard) => {}
            () = token.wait() => {}
        }
    });
}

async fn rounds(shared: &Context, guard: &Guard) {
    let pause = Duration::from_millis(shared.config.housekeeping_ms);
    let ctx = RequestContext::of(principal::own(shared.id), "internal");
    loop {
        clock::sleep(shared.rng.jitter(pause)).await;
        if let Err(error) = guard.remove_ended(&ctx).await {
            tracing::warn!(%error, "tokens and grants that have ended are removed later");
        }
    }
}

impl Guard {
    /// Removes what ended long ago.
    async fn remove_ended(&self, ctx: &RequestContext) -> Result<(), BrokerError> {
        let now_ms = self.clock.wall_ms();
        let Some(before_ms) = now_ms.checked_sub(self.ended_kept_ms) else {
            return Ok(());
        };
        let mut after: Option<String> = None;
        loop {
            let (ended, last) = self.ended_tokens(after.as_deref(), before_ms);
            for (tenant, ids) in ended {
                for ids in ids.chunks(TOKENS_AT_ONCE) {
                    self.remove_tokens(ctx, tenant.as_deref(), ids, before_ms)
                        .await?;
                }
            }
            if last.is_none() {
                break;
            }
            after = last;
            tokio::task::yield_now().await;
        }
        let mut after: Option<String> = None;
        loop {
            let (ended, last) = self.ended_grants(after.as_deref(), before_ms);
            for key in ended {
                self.remove_ended_grant(ctx, &key, before_ms).await?;
            }
            if last.is_none() {
                return Ok(());
            }
            after = last;
            tokio::task::yield_now().await;
        }
    }

    /// Those among the tokens behind an id that ended before a time, and where to go on.
    fn ended_tokens(&self, after: Option<&str>, before_ms: u64) -> (Ended, Option<String>) {
        let first = first::id();
        self.records.read(|state| {
            let (mut ended, mut last) = (Ended::new(), None);
            for token in state.tokens_after(after).take(PAGE_RECORDS) {
                if token.ends_ms().is_some_and(|end| end <= before_ms) && token.id != first {
                    let of_tenant = ended.entry(token.tenant().map(str::to_owned));
                    of_tenant.or_default().push(token.id.clone());
                }
                last = Some(token.id.clone());
            }
            (ended, last)
        })
    }

    /// The same of grants, by their keys.
    fn ended_grants(&self, after: Option<&str>, before_ms: u64) -> (Vec<String>, Option<String>) {
        self.records.read(|state| {
            let (mut ended, mut last) = (Vec::new(), None);
            for (key, grant) in state.grants_after(after).take(PAGE_RECORDS) {
                if grant.is_over(before_ms) {
                    ended.push(key.clone());
                }
                last = Some(key.clone());
            }
            (ended, last)
        })
    }

    /// Removes tokens of a tenant, or of the cluster, that have ended before a time.
    async fn remove_tokens(
        &self,
        ctx: &RequestContext,
        tenant: Option<&str>,
        ids: &[String],
        before_ms: u64,
    ) -> Result<(), BrokerError> {
        let key = keys::forgotten(tenant);
        let removed = self
            .records
            .store()
            .update(&key, &[], |noted| self.removal_of(ids, before_ms, noted));
        let updated = removed.await.map_err(UpdateError::flatten)?;
        let mut written = updated.applied;
        for token in updated.answer {
            let (of, said) = (owner(token.tenant()), token_said(&token));
            self.changed(ctx, "remove_ended_token", &of, &said, written.take())
                .await;
        }
        Ok(())
    }

    /// The removal of those that have ended, with the note that keeps them from coming back.
    async fn removal_of(
        &self,
        ids: &[String],
        before_ms: u64,
        noted: Option<Versioned>,
    ) -> Result<Change<Vec<Token>>, BrokerError> {
        let note = noted.as_ref().map(record::decode::<ForgottenRecord>);
        let mut note = note.transpose()?.unwrap_or_default();
        let everywhere_ms = self.clock.wall_ms().saturating_sub(CLOCKS_APART_MS);
        let (mut removed, mut deletions) = (Vec::new(), Vec::new());
        for id in ids {
            let key = keys::token(id);
            let Some(found) = self.records.store().get(&key).await? else {
                continue;
            };
            let token = Token {
                id: id.clone(),
                record: record::decode::<TokenRecord>(&found)?,
            };
            if token.ends_ms().is_none_or(|end| before_ms < end) {
                continue;
            }
            let expires_ms = token.record.expires_ms;
            let is_expired = expires_ms.is_some_and(|end| end <= everywhere_ms);
            if !is_expired && !note.tokens.contains(id) {
                if note.tokens.len() >= NOTED_MAX {
                    tracing::debug!(id, "a revoked token stays: too many are noted as removed");
                    continue;
                }
                note.tokens.push(id.clone());
            }
            deletions.push(Operation::Delete {
                key,
                expect: Expect::Revision(found.revision),
            });
            removed.push(token);
        }
        if removed.is_empty() {
            return Ok(Change::none(removed));
        }
        let change = Change::put(keys::CLUSTER_PARTITION, record::encode(note), removed);
        Ok(change.with(deletions))
    }

    /// Removes a grant that has ended before a time.
    async fn remove_ended_grant(
        &self,
        ctx: &RequestContext,
        key: &str,
        before_ms: u64,
    ) -> Result<(), BrokerError> {
        let Some(grant) = self.records.read(|state| state.grant(key).cloned()) else {
            return Ok(());
        };
        let removed = self.records.store().update(key, &[], |stored| {
            let removed = stored.as_ref().map(record::decode::<GrantRecord>);
            let removed = removed.transpose().map(|found| {
                let end = found.and_then(|found| found.expires_ms);
                match end.is_some_and(|end| end <= before_ms) {
                    true => Change::delete(keys::CLUSTER_PARTITION, ()),
                    false => Change::none(()),
                }
            });
            std::future::ready(removed.map_err(BrokerError::from))
        });
        let updated = removed.await.map_err(UpdateError::flatten)?;
        if updated.applied.is_some() {
            let (of, said) = (scope_of(&grant), grant_said(&grant));
            self.changed(ctx, "remove_ended_grant", &of, &said, updated.applied)
                .await;
        }
        Ok(())
    }
}
