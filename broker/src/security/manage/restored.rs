//! Tokens and grants of a backup, brought back where nothing stands in their place.
//!
//! Invariants:
//! - What is here is newer, and is not changed: neither a record of the same id, that of a token
//!   which was revoked included, nor a token of the same name.
//! - Nothing is given that the caller may not give: such a one is counted, and left out. So is what
//!   is of the brokers' tenant, where nothing is given to callers.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{Expect, Revision};
use aquifer_metadata::{keys, record};
use aquifer_model::backup::RestoredAccess;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::backup_item::Item;
use aquifer_proto::v1::{BackupGrant, BackupToken};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::scope::GrantScope;
use bytes::Bytes;

use crate::error::BrokerError;
use crate::namespace::{Namespaces, check_unreserved};
use crate::security::grant::Grant;
use crate::security::role::{ActionSet, check_actions};
use crate::security::token::{self, Token};
use crate::security::{Guard, principal, records};

/// Bytes of a digest of a secret.
const DIGEST_BYTES: usize = 32;

/// What became of one.
enum Outcome {
    Added(Revision),
    Kept,
    Refused,
}

/// Tokens and grants that one request brings back.
pub(crate) struct AccessRound<'a> {
    guard: &'a Guard,
    ctx: &'a RequestContext,
    tenant: Option<&'a str>,
    namespaces: &'a Namespaces,
    /// The principals of the tokens that were in force when it began, each with their ids.
    live: BTreeMap<String, BTreeSet<String>>,
    items: u64,
    restored: RestoredAccess,
    last: Option<Revision>,
}

impl AccessRound<'_> {
    /// Brings back what a file of a backup has.
    ///
    /// # Errors
    /// When the files have more than a cluster may have, or it is full; when metadata cannot be
    /// changed.
    pub(crate) async fn bring_back(&mut self, items: Vec<Item>) -> Result<(), BrokerError> {
        self.items = self.items.saturating_add(items.len() as u64);
        self.guard.check_room(self.items <= records::ADDED_MAX)?;
        let (mut tokens, mut grants) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Item::Token(BackupToken {
                    id,
                    token: Some(record),
                }) => tokens.push(Token { id, record }),
                Item::Grant(BackupGrant {
                    id,
                    grant: Some(record),
                }) => match Grant::of(&id, record) {
                    Ok(grant) => grants.push(grant),
                    Err(_) => self.restored.refused += 1,
                },
                _ => {}
            }
        }
        tokens.retain(|token| self.is_wanted(token.tenant()));
        grants.retain(|grant| self.is_wanted(grant.info.scope.tenant()));
        let (guard, ctx, namespaces) = (self.guard, self.ctx, self.namespaces);
        for token in tokens {
            let outcome = guard.restore_token(ctx, token, &self.live, namespaces);
            let outcome = outcome.await?;
            let added = self.count(outcome);
            self.restored.tokens += u64::from(added);
        }
        for grant in grants {
            let outcome = guard.restore_grant(ctx, &grant, namespaces).await?;
            let added = self.count(outcome);
            self.restored.grants += u64::from(added);
        }
        Ok(())
    }

    fn is_wanted(&self, of: Option<&str>) -> bool {
        self.tenant.is_none_or(|tenant| of == Some(tenant))
    }

    /// Whether one was added.
    fn count(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Added(revision) => {
                self.last = Some(revision);
                return true;
            }
            Outcome::Kept => self.restored.kept += 1,
            Outcome::Refused => self.restored.refused += 1,
        }
        false
    }

    /// Notes it in the audit log, and answers what became of all.
    pub(crate) async fn end(self) -> RestoredAccess {
        let (tokens, grants) = (self.restored.tokens, self.restored.grants);
        let said = format!("{tokens} tokens and {grants} grants of a backup");
        self.guard
            .changed(self.ctx, "restore_access", &said, self.last)
            .await;
        self.restored
    }
}

impl Guard {
    /// Begins to bring back those of a tenant, or all.
    pub(crate) fn begin_access<'a>(
        &'a self,
        ctx: &'a RequestContext,
        tenant: Option<&'a str>,
        namespaces: &'a Namespaces,
    ) -> AccessRound<'a> {
        let live = self.records.read(|state| {
            let mut live: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            let in_force = |token: &&Token| token.record.revoked_ms.is_none();
            for token in state.tokens_after(None).filter(in_force) {
                let ids = live.entry(token.principal()).or_default();
                ids.insert(token.id.clone());
            }
            live
        });
        AccessRound {
            guard: self,
            ctx,
            tenant,
            namespaces,
            live,
            items: 0,
            restored: RestoredAccess::default(),
            last: None,
        }
    }

    async fn restore_token(
        &self,
        ctx: &RequestContext,
        token: Token,
        live: &BTreeMap<String, BTreeSet<String>>,
        namespaces: &Namespaces,
    ) -> Result<Outcome, BrokerError> {
        let (principal, record) = (token.principal(), &token.record);
        let previous = record.previous_sha256.len();
        let is_whole = token::is_id(&token.id)
            && record.secret_sha256.len() == DIGEST_BYTES
            && (previous == 0 || previous == DIGEST_BYTES)
            && NamespaceName::new(&record.name, "x").is_ok();
        let Ok(scope) = GrantScope::new(&record.tenant, "", "") else {
            return Ok(Outcome::Refused);
        };
        if check_unreserved(&record.tenant).is_err() {
            return Ok(Outcome::Refused);
        }
        let may_give = self
            .check_may_give(ctx, ActionSet::default(), &scope)
            .is_ok()
            && self.check_may_give_all_of(ctx, &principal).is_ok();
        if !is_whole || !may_give || !has_tenant(namespaces, token.tenant()).await? {
            return Ok(Outcome::Refused);
        }
        // One that was revoked authenticates no one: its record keeps its id from coming back.
        let is_taken = record.revoked_ms.is_none()
            && live
                .get(&principal)
                .is_some_and(|ids| !ids.contains(&token.id));
        if is_taken {
            return Ok(Outcome::Kept);
        }
        self.check_room(self.records.read(|state| state.has_room()))?;
        let key = keys::token(&token.id);
        self.put_new(&key, record::encode(token.record)).await
    }

    async fn restore_grant(
        &self,
        ctx: &RequestContext,
        grant: &Grant,
        namespaces: &Namespaces,
    ) -> Result<Outcome, BrokerError> {
        let info = &grant.info;
        let is_whole = token::is_id(&info.id)
            && principal::check_grantee(&info.principal).is_ok()
            && check_actions(grant.actions, &info.scope).is_ok();
        if info
            .scope
            .tenant()
            .is_some_and(|of| check_unreserved(of).is_err())
        {
            return Ok(Outcome::Refused);
        }
        let may_give = self.check_may_give(ctx, grant.actions, &info.scope).is_ok();
        if !is_whole || !may_give || !has_tenant(namespaces, info.scope.tenant()).await? {
            return Ok(Outcome::Refused);
        }
        self.check_room(self.records.read(|state| state.has_room()))?;
        let key = keys::grant(info.scope.tenant(), &info.id);
        self.put_new(&key, record::encode(grant.record())).await
    }

    async fn put_new(&self, key: &str, value: Bytes) -> Result<Outcome, BrokerError> {
        let store = self.records.store();
        let put = store.put(keys::CLUSTER_PARTITION, key, value, Expect::Absent);
        match put.await {
            Ok(revision) => Ok(Outcome::Added(revision)),
            Err(MetadataError::Conflict { .. }) => Ok(Outcome::Kept),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the tenant is there, if it is of one.
async fn has_tenant(namespaces: &Namespaces, tenant: Option<&str>) -> Result<bool, BrokerError> {
    let Some(tenant) = tenant else {
        return Ok(true);
    };
    match namespaces.check_tenant(tenant).await {
        Ok(()) => Ok(true),
        Err(BrokerError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
