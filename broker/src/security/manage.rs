//! Changes of tokens, grants, roles and revocations.
//!
//! A request was allowed where it acts; here it is seen to that
//! nothing is given that its caller may not give.
//!
//! Invariants:
//! - Describe, produce, consume and manage may be given where the caller may grant; grant, operate
//!   and audit only where the caller holds them.
//! - A caller that gets the secret of a token could have given all that the token may do. One that
//!   revokes a token gets nothing: what others have given to it does not keep it in force.
//! - A change is answered when this broker decides with it.

pub(crate) mod dead;
mod grants;
mod restored;
mod revocations;
mod roles;
mod tokens;

use aquifer_metadata::error::MetadataResult;
use aquifer_metadata::keys;
use aquifer_metadata::store::{Expect, Guard as KeyGuard, Operation, Revision, Transaction};
use aquifer_protocol_api::access::{Action, Resource};
use aquifer_protocol_api::admin::PageRequest;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::scope::GrantScope;
use aquifer_runtime::secret::{self, NoEntropy};
use bytes::Bytes;

use crate::error::BrokerError;
use crate::security::audit::Record;
use crate::security::role::ActionSet;
use crate::security::{Guard, forbidden};

/// Longest lifetime of a token or a grant, and longest grace period: a hundred years.
const LIFETIME_MS_MAX: u64 = 100 * 366 * 24 * 3_600 * 1_000;
/// Items of a page.
const PAGE_ITEMS_MAX: usize = 1_000;

impl From<NoEntropy> for BrokerError {
    fn from(error: NoEntropy) -> BrokerError {
        BrokerError::Internal(error.to_string())
    }
}

impl Guard {
    /// Refuses to give, or take away, what the caller may not give. Where it acts it may grant.
    fn check_may_give(
        &self,
        ctx: &RequestContext,
        actions: ActionSet,
        scope: &GrantScope,
    ) -> Result<(), BrokerError> {
        let Some(identity) = ctx.principal.identity() else {
            return Err(forbidden().into());
        };
        let resource = Resource::Scope(scope.clone());
        let needs_holding = [Action::Grant, Action::Operate, Action::Audit];
        let held = |action| self.allowed_by(identity, action, &resource).is_some();
        let may_grant = held(Action::Grant);
        let mut all = needs_holding
            .into_iter()
            .filter(|action| actions.has(*action));
        match may_grant && all.all(held) {
            true => Ok(()),
            false => Err(forbidden().into()),
        }
    }

    /// Refuses to hand out the secret of a principal that may do what the caller may not give.
    fn check_may_give_all_of(
        &self,
        ctx: &RequestContext,
        principal: &str,
    ) -> Result<(), BrokerError> {
        self.check_not_above(ctx, principal)?;
        let now = self.clock.wall_ms();
        let grants: Vec<_> = self
            .records
            .read(|state| state.grants_of(principal).cloned().collect());
        let live = grants.iter().filter(|grant| !grant.is_over(now));
        for grant in live {
            let may_give = self.check_may_give(ctx, grant.actions, &grant.info.scope);
            may_give.map_err(|_| held_elsewhere(principal, &grant.info.id))?;
        }
        Ok(())
    }

    /// Refuses what is done to a super-user by another principal.
    fn check_not_above(&self, ctx: &RequestContext, principal: &str) -> Result<(), BrokerError> {
        let is_super = |name: &str| self.is_super_user(name);
        match is_super(principal) && !is_super(ctx.principal.name()) {
            true => Err(forbidden().into()),
            false => Ok(()),
        }
    }

    /// Writes a record that is not there yet, while the guards hold.
    async fn create_record(
        &self,
        key: String,
        value: Bytes,
        guards: Vec<KeyGuard>,
    ) -> MetadataResult<Revision> {
        let put = Operation::Put {
            key,
            value,
            expect: Expect::Absent,
        };
        let created = self.records.store().commit(Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards,
            operations: vec![put],
        });
        created.await
    }

    /// Waits until a change is in force here, and records what it came to, and of whom.
    async fn changed(
        &self,
        ctx: &RequestContext,
        request: &str,
        of: &Resource,
        what: &str,
        written: Option<Revision>,
    ) {
        self.audit.write(line(ctx, request, of, what));
        if let Some(written) = written {
            self.records.reached(written).await;
        }
    }
}

/// The line that says what a change came to. It is found with the others of its request, and by the
/// auditors of its tenant.
fn line(ctx: &RequestContext, request: &str, of: &Resource, what: &str) -> Record {
    let record = Record::about(&ctx.principal, ctx.protocol, request).came_from(ctx.peer);
    let record = record.on(Action::Grant, of).allowed(None);
    let record = record.detail(what).ended(None);
    match &ctx.request_id {
        Some(id) => record.named(id),
        None => record,
    }
}

/// A tenant, or the cluster.
fn owner(tenant: Option<&str>) -> Resource {
    tenant.map_or(Resource::Cluster, |tenant| {
        Resource::Tenant(tenant.to_owned())
    })
}

/// The grant is named by its id alone: its scope may be one that the caller must not know of.
fn held_elsewhere(principal: &str, grant: &str) -> BrokerError {
    let text = format!("grant {grant} gives {principal} what you may not give");
    let error = ApiError::new(ErrorKind::PermissionDenied, text);
    let advice = "ask for it to be done, or for that grant to be removed; a token of another name \
                  does not have it";
    error.advise(advice).into()
}

fn drawn_id() -> Result<[u8; 16], NoEntropy> {
    Ok(half(secret::draw()?))
}

fn half(bytes: [u8; 32]) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&bytes[..16]);
    first
}

fn end_of(now: u64, lifetime_ms: Option<u64>) -> Result<Option<u64>, BrokerError> {
    match lifetime_ms {
        Some(0) => Err(BrokerError::invalid(
            "the lifetime is 0",
            "give the lifetime in milliseconds, or none",
        )),
        lifetime => Ok(lifetime.map(|lifetime| now.saturating_add(lifetime.min(LIFETIME_MS_MAX)))),
    }
}

fn limit_of(page: &PageRequest) -> usize {
    page.limit.clamp(1, PAGE_ITEMS_MAX)
}
