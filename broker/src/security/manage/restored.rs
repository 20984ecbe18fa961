//! Tokens and grants of a backup, brought back where nothing stands in their place.
//!
//! Invariants:
//! - What is here is newer, and is not changed: neither a record of the same id, that of a token
//!   which was revoked included, nor a token of the same name.
//! - Nothing is given that the caller may not give: such a one is counted, and left out. So is what
//!   is of the brokers' tenant, where nothing is given to callers.

use std::collections::BTreeSet;

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
use crate::security::{Guard, principal};

/// Bytes of a digest of a secret.
const DIGEST_BYTES: usize = 32;

/// What became of one.
enum Outcome {
    Added(Revision),
    Kept,
    Refused,
}

impl Guard {
    /// Brings back those of a tenant, or all.
    pub(crate) async fn restore_access(
        &self,
        ctx: &RequestContext,
        items: Vec<Item>,
        tenant: Option<&str>,
        namespaces: &Namespaces,
    ) -> Result<RestoredAccess, BrokerError> {
        let is_wanted = |of: Option<&str>| tenant.is_none_or(|tenant| of == Some(tenant));
        let (mut tokens, mut grants) = (Vec::new(), Vec::new());
        let (mut restored, mut last) = (RestoredAccess::default(), None);
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
                    Err(_) => restored.refused += 1,
                },
                _ => {}
            }
        }
        tokens.retain(|token| is_wanted(token.tenant()));
        grants.retain(|grant| is_wanted(grant.info.scope.tenant()));
        let ids: BTreeSet<String> = tokens.iter().map(|token| token.id.clone()).collect();
        for token in tokens {
            match self.restore_token(ctx, token, &ids, namespaces).await? {
                Outcome::Added(revision) => {
                    restored.tokens += 1;
                    last = Some(revision);
                }
                Outcome::Kept => restored.kept += 1,
                Outcome::Refused => restored.refused += 1,
            }
        }
        for grant in grants {
            match self.restore_grant(ctx, &grant, namespaces).await? {
                Outcome::Added(revision) => {
                    restored.grants += 1;
                    last = Some(revision);
                }
                Outcome::Kept => restored.kept += 1,
                Outcome::Refused => restored.refused += 1,
            }
        }
        let (tokens, grants) = (restored.tokens, restored.grants);
        let said = format!("{tokens} tokens and {grants} grants of a backup");
        self.changed(ctx, "restore_access", &said, last).await;
        Ok(restored)
    }

    async fn restore_token(
        &self,
        ctx: &RequestContext,
        token: Token,
        of_backup: &BTreeSet<String>,
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
        let (taken, room) = self.records.read(|state| {
            let is_other = |other: &Token| {
                other.record.revoked_ms.is_none()
                    && !of_backup.contains(&other.id)
                    && other.principal() == principal
            };
            (state.tokens_after(None).any(is_other), state.has_room())
        });
        if taken {
            return Ok(Outcome::Kept);
        }
        self.check_room(room)?;
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
