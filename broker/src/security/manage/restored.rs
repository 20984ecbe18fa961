//! Revocations, tokens, grants and roles of a backup, brought back where nothing stands in their
//! place.
//!
//! Invariants:
//! - What went with its tenant does not come back when a tenant of the name is there again: its
//!   holders lost it on purpose. What holds of a tenant is read before it is asked what went.
//! - What is here is newer, and is not changed: neither a record of the same id, that of a token
//!   which was revoked included, nor a token of the same name. A revoked token whose record has
//!   been removed since (`dead.rs`) does not come back.
//! - Nothing is given that the caller may not give: such a one is counted, and left out. So is what
//!   is of the brokers' tenant, where nothing is given to callers.
//! - What was revoked of issuers' tokens is revoked before anything is given, whatever tenant is
//!   asked for: revocations are of the whole cluster, and give nothing.
//! - The bound of a tenant, which is for what its own administrators add, stops no restore: that of
//!   the cluster does.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{Expect, Guard as KeyGuard, Revision};
use aquifer_metadata::{keys, record};
use aquifer_model::backup::RestoredAccess;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::backup_item::Item;
use aquifer_proto::v1::{BackupGrant, BackupRevocation, BackupRole, BackupToken, ForgottenRecord};
use aquifer_protocol_api::access::Resource;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::scope::GrantScope;
use aquifer_protocol_api::security::{RevocationInfo, RoleName};
use bytes::Bytes;

use crate::error::BrokerError;
use crate::namespace::{Namespaces, check_unreserved};
use crate::security::grant::Grant;
use crate::security::manage::grants::grant_said;
use crate::security::manage::revocations::{is_of_issuer, revocation_said};
use crate::security::manage::tokens::token_said;
use crate::security::manage::{line, owner};
use crate::security::own_role::{self, OwnRole, Said};
use crate::security::role::{ActionSet, check_actions};
use crate::security::token::{self, Token};
use crate::security::{Guard, principal, records, revoked};

/// Bytes of a digest of a secret.
const DIGEST_BYTES: usize = 32;
/// Lines of the audit log that name what one request brought back. More are counted.
const NAMED_MAX: u64 = 1_000;

/// What became of one.
enum Outcome {
    Added(Revision),
    Kept,
    Refused,
}

/// What a file has, by its kind.
#[derive(Default)]
struct Sorted {
    revocations: Vec<RevocationInfo>,
    roles: Vec<OwnRole>,
    tokens: Vec<Token>,
    grants: Vec<Grant>,
    /// Those that are not understood.
    unknown: u64,
}

impl Sorted {
    fn of(items: Vec<Item>) -> Sorted {
        let mut sorted = Sorted::default();
        for item in items {
            match item {
                Item::Revocation(BackupRevocation {
                    id,
                    revocation: Some(record),
                }) => match revoked::of(&id, record) {
                    Ok(revocation) => sorted.revocations.push(revocation),
                    Err(_) => sorted.unknown += 1,
                },
                Item::Token(BackupToken {
                    id,
                    token: Some(record),
                }) => sorted.tokens.push(Token { id, record }),
                Item::Grant(BackupGrant {
                    id,
                    grant: Some(record),
                }) => match Grant::of(&id, record) {
                    Ok(grant) => sorted.grants.push(grant),
                    Err(_) => sorted.unknown += 1,
                },
                Item::Role(BackupRole {
                    name,
                    tenant,
                    role: Some(record),
                }) => {
                    let tenant = (!tenant.is_empty()).then_some(tenant);
                    match OwnRole::of(RoleName { tenant, name }, record) {
                        Ok(role) => sorted.roles.push(role),
                        Err(_) => sorted.unknown += 1,
                    }
                }
                _ => {}
            }
        }
        sorted
    }
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
    pub(crate) async fn restore_items(&mut self, items: Vec<Item>) -> Result<(), BrokerError> {
        self.items = self.items.saturating_add(items.len() as u64);
        if self.items > records::ITEMS_MAX {
            let max = records::ITEMS_MAX;
            return Err(records::full("the backup".to_owned(), self.items, max));
        }
        let Sorted {
            mut revocations,
            mut roles,
            mut tokens,
            mut grants,
            unknown,
        } = Sorted::of(items);
        self.restored.refused += unknown;
        let now = self.guard.clock.wall_ms();
        revocations.retain(|revocation| revocation.ends_ms > now);
        roles.retain(|role| self.is_wanted(role.name.tenant.as_deref()));
        tokens.retain(|token| self.is_wanted(token.tenant()));
        grants.retain(|grant| self.is_wanted(grant.info.scope.tenant()));
        let (guard, ctx, namespaces) = (self.guard, self.ctx, self.namespaces);
        for revocation in revocations {
            let said = revocation_said(&revocation);
            let outcome = guard.restore_revocation(&revocation).await?;
            let added = self.count(outcome, None, &said);
            self.restored.revocations += u64::from(added);
        }
        for role in roles {
            let said = Said(&role.name).to_string();
            let tenant = role.name.tenant.clone();
            let outcome = guard.restore_role(ctx, role, namespaces).await?;
            let added = self.count(outcome, tenant.as_deref(), &said);
            self.restored.grants += u64::from(added);
        }
        for token in tokens {
            let (said, tenant) = (token_said(&token), token.tenant().map(str::to_owned));
            let outcome = guard.restore_token(ctx, token, &self.live, namespaces);
            let outcome = outcome.await?;
            let added = self.count(outcome, tenant.as_deref(), &said);
            self.restored.tokens += u64::from(added);
        }
        for grant in grants {
            let said = grant_said(&grant);
            let tenant = grant.info.scope.tenant().map(str::to_owned);
            let outcome = guard.restore_grant(ctx, grant, namespaces).await?;
            let added = self.count(outcome, tenant.as_deref(), &said);
            self.restored.grants += u64::from(added);
        }
        Ok(())
    }

    fn is_wanted(&self, of: Option<&str>) -> bool {
        self.tenant.is_none_or(|tenant| of == Some(tenant))
    }

    /// Whether one was added, which is written to the audit log.
    fn count(&mut self, outcome: Outcome, tenant: Option<&str>, said: &str) -> bool {
        match outcome {
            Outcome::Added(revision) => {
                self.last = Some(revision);
                self.name(tenant, said);
                return true;
            }
            Outcome::Kept => self.restored.kept += 1,
            Outcome::Refused => self.restored.refused += 1,
        }
        false
    }

    fn name(&self, tenant: Option<&str>, said: &str) {
        if self.added() >= NAMED_MAX {
            return;
        }
        let record = line(self.ctx, "restore_access", &owner(tenant), said);
        self.guard.audit.write(record);
    }

    fn added(&self) -> u64 {
        self.restored.revocations + self.restored.tokens + self.restored.grants
    }

    /// Notes it in the audit log, and answers what became of all.
    pub(crate) async fn end(self) -> RestoredAccess {
        let RestoredAccess {
            revocations,
            tokens,
            grants,
            ..
        } = self.restored;
        let mut said = format!(
            "{revocations} revocations, {tokens} tokens, and {grants} grants and roles of a backup"
        );
        if self.added() > NAMED_MAX {
            said.push_str(&format!(", of which {NAMED_MAX} are named"));
        }
        self.guard
            .changed(
                self.ctx,
                "restore_access",
                &Resource::Cluster,
                &said,
                self.last,
            )
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

    async fn restore_revocation(
        &self,
        revocation: &RevocationInfo,
    ) -> Result<Outcome, BrokerError> {
        if !token::is_id(&revocation.id) || !is_of_issuer(&revocation.refuses) {
            return Ok(Outcome::Refused);
        }
        self.records.check_room_to_revoke()?;
        let value = record::encode(revoked::record(revocation));
        let key = keys::revocation(&revocation.id);
        self.create_or_keep(key, value, Vec::new()).await
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
        let taken = taking(namespaces, token.tenant()).await?;
        let (forgotten, as_noted) = self.forgotten(token.tenant()).await?;
        let is_gone = is_before(&forgotten, record.created_ms);
        if check_unreserved(&record.tenant).is_err() || is_gone {
            return Ok(Outcome::Refused);
        }
        let may_give = self
            .check_may_give(ctx, ActionSet::default(), &scope)
            .is_ok()
            && self.check_may_give_all_of(ctx, &principal).is_ok();
        if !is_whole || !may_give {
            return Ok(Outcome::Refused);
        }
        let Some(mut guards) = taken else {
            return Ok(Outcome::Refused);
        };
        // Nothing is noted while it is restored.
        guards.push(as_noted);
        // It was revoked here, and its record is removed: that stays so.
        if forgotten.tokens.contains(&token.id) {
            return Ok(Outcome::Kept);
        }
        // One that was revoked authenticates no one: its record keeps its id from coming back.
        let is_taken = record.revoked_ms.is_none()
            && live
                .get(&principal)
                .is_some_and(|ids| !ids.contains(&token.id));
        if is_taken {
            return Ok(Outcome::Kept);
        }
        self.records.check_room(None)?;
        let key = keys::token(&token.id);
        self.create_or_keep(key, record::encode(token.record), guards)
            .await
    }

    async fn restore_role(
        &self,
        ctx: &RequestContext,
        role: OwnRole,
        namespaces: &Namespaces,
    ) -> Result<Outcome, BrokerError> {
        let tenant = role.name.tenant.as_deref();
        let Ok(scope) = GrantScope::new(tenant.unwrap_or_default(), "", "") else {
            return Ok(Outcome::Refused);
        };
        let taken = taking(namespaces, tenant).await?;
        let may_have = tenant.is_none_or(|tenant| check_unreserved(tenant).is_ok())
            && !self.is_forgotten(tenant, role.created_ms).await?
            && own_role::check_name(&role.name.name).is_ok();
        if !may_have || self.check_may_give(ctx, role.actions, &scope).is_err() {
            return Ok(Outcome::Refused);
        }
        let Some(guards) = taken else {
            return Ok(Outcome::Refused);
        };
        self.records.check_room(None)?;
        let key = own_role::key(&role.name);
        let stays = OwnRole {
            deleting: false,
            ..role
        };
        self.create_or_keep(key, record::encode(stays.record()), guards)
            .await
    }

    /// Whether the tenant that had it was deleted since it was made.
    async fn is_forgotten(
        &self,
        tenant: Option<&str>,
        created_ms: u64,
    ) -> Result<bool, BrokerError> {
        if tenant.is_none() {
            return Ok(false);
        }
        let (forgotten, _) = self.forgotten(tenant).await?;
        Ok(is_before(&forgotten, created_ms))
    }

    /// What is gone of a tenant, or of the cluster, and what holds as long as that is all.
    async fn forgotten(
        &self,
        tenant: Option<&str>,
    ) -> Result<(ForgottenRecord, KeyGuard), BrokerError> {
        let key = keys::forgotten(tenant);
        let found = self.records.store().get(&key).await?;
        let (record, expect) = match found {
            Some(found) => (record::decode(&found)?, Expect::Revision(found.revision)),
            None => (ForgottenRecord::default(), Expect::Absent),
        };
        Ok((record, KeyGuard { key, expect }))
    }

    async fn restore_grant(
        &self,
        ctx: &RequestContext,
        grant: Grant,
        namespaces: &Namespaces,
    ) -> Result<Outcome, BrokerError> {
        let mut guards = Vec::new();
        let grant = match grant.own_role.clone() {
            None => grant,
            Some(name) => match self.stored_role(&name).await {
                Ok(Some((role, holds))) => {
                    guards.push(holds);
                    grant.of_role(name, role.actions)
                }
                Ok(None) | Err(BrokerError::Api(_)) => return Ok(Outcome::Refused),
                Err(error) => return Err(error),
            },
        };
        let info = &grant.info;
        let is_whole = token::is_id(&info.id)
            && principal::check_grantee(&info.principal).is_ok()
            && check_actions(grant.actions, &info.scope).is_ok();
        let tenant = info.scope.tenant();
        let of_token = principal::tenant_of(&info.principal);
        let elsewhere = of_token.filter(|of| Some(*of) != tenant);
        let taken = taking(namespaces, tenant).await?;
        let of_grantee = unless_gone(namespaces.taking_grantees(elsewhere).await)?;
        let is_gone = self.is_forgotten(tenant, info.created_ms).await?
            || self.is_forgotten(of_token, info.created_ms).await?;
        let is_reserved = tenant.is_some_and(|of| check_unreserved(of).is_err());
        let may_give = self.check_may_give(ctx, grant.actions, &info.scope).is_ok();
        if !is_whole || is_gone || is_reserved || !may_give {
            return Ok(Outcome::Refused);
        }
        let (Some(of_tenant), Some(of_grantee)) = (taken, of_grantee) else {
            return Ok(Outcome::Refused);
        };
        guards.extend(of_tenant.into_iter().chain(of_grantee));
        self.records.check_room(None)?;
        let key = keys::grant(tenant, &info.id);
        self.create_or_keep(key, record::encode(grant.record()), guards)
            .await
    }

    /// Writes a record, unless there is one of its key.
    async fn create_or_keep(
        &self,
        key: String,
        value: Bytes,
        guards: Vec<KeyGuard>,
    ) -> Result<Outcome, BrokerError> {
        let wanted = key.clone();
        match self.create_record(key, value, guards).await {
            Ok(revision) => Ok(Outcome::Added(revision)),
            Err(MetadataError::Conflict { key, .. }) if key == wanted => Ok(Outcome::Kept),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a tenant was deleted after something was made in it.
fn is_before(forgotten: &ForgottenRecord, created_ms: u64) -> bool {
    forgotten.before_ms > 0 && created_ms <= forgotten.before_ms
}

/// What holds as long as its tenant takes it in, if it is of one. `None`: it does not.
async fn taking(
    namespaces: &Namespaces,
    tenant: Option<&str>,
) -> Result<Option<Vec<KeyGuard>>, BrokerError> {
    unless_gone(namespaces.taking_access(tenant).await)
}

fn unless_gone(
    taken: Result<Vec<KeyGuard>, BrokerError>,
) -> Result<Option<Vec<KeyGuard>>, BrokerError> {
    match taken {
        Ok(guards) => Ok(Some(guards)),
        Err(BrokerError::NotFound { .. } | BrokerError::Api(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
