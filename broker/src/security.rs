//! The caller of a request, what it may do, and the record of both. With authentication off there
//! is no [`Guard`], and nothing here runs.
//!
//! Invariants (I12):
//! - A request is decided once, on the names that it gives, before anything is looked up. What is
//!   forbidden and what is absent get the same answer.
//! - Nothing is allowed that no grant allows, except to the super-users of the configuration and
//!   to other brokers of the cluster, which show a certificate of its authority.
//! - An error decides nothing in favour of a caller.

pub(crate) mod audit;
mod authenticate;
pub(crate) mod config;
pub(crate) mod decide;
mod first;
pub(crate) mod grant;
pub(crate) mod jwt;
pub(crate) mod manage;
pub(crate) mod own_role;
pub(crate) mod principal;
pub(crate) mod records;
pub(crate) mod revoked;
pub(crate) mod role;
pub(crate) mod sessions;
pub(crate) mod token;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::BrokerId;
use aquifer_model::topic::RESERVED_TENANT;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::context::{AuthMethod, Identity, Principal, RequestContext, RequestId};
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use aquifer_runtime::clock::{self, SharedClock};
use aquifer_runtime::net::tls::ServerTls;
use aquifer_runtime::signing::SigningKey;
use aquifer_runtime::task::TaskGroup;
use opentelemetry::metrics::Meter;

pub use self::first::{FirstToken, create_first_token};
use crate::cluster_key;
use crate::error::BrokerError;
use crate::metrics::KeyFetches;
use crate::security::audit::{Audit, Record, Recorded};
use crate::security::config::AuthConfig;
use crate::security::decide::{Target, allows};
use crate::security::jwt::Issuers;
use crate::security::records::{Bounds, Records};
use crate::security::sessions::Sessions;

/// How often the keys of issuers are read again.
const KEYS_RELOADED: Duration = Duration::from_secs(10);
/// What stands in place of a grant's id.
const SUPER_USER: &str = "super-user";
const INTERNAL: &str = "internal";

/// Decides for a broker whose callers are authenticated.
pub(crate) struct Guard {
    pub(crate) records: Arc<Records>,
    pub(crate) audit: Audit,
    pub(crate) clock: SharedClock,
    super_users: HashSet<String>,
    /// For how long what has ended is kept.
    ended_kept_ms: u64,
    /// Which certificates are those of brokers of this cluster.
    brokers: Option<Arc<ServerTls>>,
    sessions: Sessions,
    issuers: Arc<Issuers>,
}

impl Guard {
    /// Starts to follow tokens and grants, if callers are to be authenticated.
    ///
    /// # Errors
    /// When a setting is wrong or the metadata store does not answer.
    pub(crate) async fn start(
        broker: BrokerId,
        config: &AuthConfig,
        store: &Arc<dyn MetadataStore>,
        (clock, meter, tasks): (&SharedClock, &Meter, &TaskGroup),
        brokers: Option<Arc<ServerTls>>,
    ) -> Result<Option<Arc<Guard>>, BrokerError> {
        config.validate()?;
        if !config.enabled {
            return Ok(None);
        }
        let bounds = Bounds::of_tenants(config.tenant_records_max);
        let seed = cluster_key::shared(&**store, audit::KEY, clock.wall_ms()).await?;
        let key = SigningKey::from_seed(&seed);
        let guard = Arc::new(Guard {
            records: Records::load(Arc::clone(store), Arc::clone(clock), bounds).await?,
            audit: Audit::new(broker, Arc::clone(clock), key),
            clock: Arc::clone(clock),
            super_users: config.super_users.iter().cloned().collect(),
            ended_kept_ms: config.ended_kept_ms,
            brokers,
            sessions: Sessions::default(),
            issuers: Arc::new(Issuers::load(&config.jwt, clock)?),
        });
        let (followed, token) = (Arc::clone(&guard), tasks.shutdown_token());
        let (metrics, byte) = (KeyFetches::new(meter), broker.0[0]);
        tasks.spawn("security", async move {
            tokio::select! {
                () = followed.records.follow() => {}
                () = followed.records.probe() => {}
                () = followed.end_sessions() => {}
                () = followed.reload_keys() => {}
                () = followed.issuers.follow(byte, &followed.clock, &metrics) => {}
                () = token.wait() => {}
            }
        });
        Ok(Some(guard))
    }

    /// Reads the keys of issuers again from time to time, beside everything else.
    async fn reload_keys(&self) {
        loop {
            clock::sleep(KEYS_RELOADED).await;
            let issuers = Arc::clone(&self.issuers);
            if !issuers.is_empty() {
                // A task that is lost is tried again.
                let _ = tokio::task::spawn_blocking(move || issuers.reload()).await;
            }
        }
    }

    /// Whether a principal may do everything.
    pub(crate) fn is_super_user(&self, principal: &str) -> bool {
        self.super_users.contains(principal)
    }

    /// What allows a caller something: the id of a grant, or what stands in its place.
    pub(crate) fn allowed_by(
        &self,
        identity: &Identity,
        action: Action,
        resource: &Resource,
    ) -> Option<String> {
        if identity.method == AuthMethod::Internal {
            return Some(INTERNAL.to_owned());
        }
        let groups = identity.groups.iter().map(String::as_str);
        self.allowed_to(&identity.name, groups, action, resource)
    }

    /// The same for a principal that does not call.
    pub(crate) fn allowed_to<'a>(
        &self,
        principal: &'a str,
        groups: impl Iterator<Item = &'a str>,
        action: Action,
        resource: &Resource,
    ) -> Option<String> {
        if self.is_super_user(principal) {
            return Some(SUPER_USER.to_owned());
        }
        let target = Target::of(resource)?;
        let now = self.clock.wall_ms();
        self.records.read(|state| {
            let names = std::iter::once(principal).chain(groups);
            let mut grants = names.flat_map(|name| state.grants_of(name));
            let found = grants.find(|grant| allows(grant, action, &target, now));
            found.map(|grant| grant.info.id.clone())
        })
    }

    /// Decides whether a caller may do what a request needs.
    ///
    /// # Errors
    /// `Unauthenticated`, `PermissionDenied`, and `Unavailable` when what is known is too old.
    fn decide(&self, ctx: &RequestContext, access: &Access) -> Result<Option<String>, ApiError> {
        let Principal::Named(identity) = &ctx.principal else {
            return Err(unauthenticated());
        };
        if !self.records.is_fresh() {
            return Err(stale());
        }
        if access.action == Action::Authenticate {
            return Ok(None);
        }
        if is_reserved(access) && identity.method != AuthMethod::Internal {
            return Err(forbidden());
        }
        let allowed = self.allowed_by(identity, access.action, &access.resource);
        allowed.map(Some).ok_or_else(forbidden)
    }

    /// Lets a request in that may be made. What it answers, for one that is recorded, is to be told
    /// how that came out.
    ///
    /// # Errors
    /// As of [`Guard::decide`]; they are recorded.
    pub(crate) fn admit(
        &self,
        ctx: &RequestContext,
        access: &Access,
        request_id: &RequestId,
    ) -> Result<Option<Admitted<'_>>, ApiError> {
        let grant = self.require(ctx, access, request_id)?;
        let record = || Record::of(ctx, access).named(request_id).allowed(grant);
        match Recorded::of(access.request) {
            Recorded::Never => Ok(None),
            Recorded::Often => Ok(self.begin_often(record())),
            Recorded::Always => Ok(Some(self.begin(record()))),
        }
    }

    /// Decides, and answers what allows it. What it is needed for is recorded elsewhere.
    ///
    /// # Errors
    /// As of [`Guard::decide`]; they are recorded.
    pub(crate) fn require(
        &self,
        ctx: &RequestContext,
        access: &Access,
        request_id: &RequestId,
    ) -> Result<Option<String>, ApiError> {
        self.decide(ctx, access).inspect_err(|error| {
            let record = Record::of(ctx, access).named(request_id);
            self.audit.refuse(record.refused(error.kind));
        })
    }

    /// Records a change that is about to be made.
    pub(crate) fn begin(&self, record: Record) -> Admitted<'_> {
        self.audit.intend(&record);
        Admitted {
            audit: &self.audit,
            record: Some(record),
        }
    }

    /// The same of one that is made all the time: the first time. It is counted after that.
    pub(crate) fn begin_often(&self, record: Record) -> Option<Admitted<'_>> {
        self.audit.is_written(&record).then(|| self.begin(record))
    }

    /// Whether a caller may describe something.
    pub(crate) fn sees(&self, ctx: &RequestContext, resource: &Resource) -> bool {
        self.may(ctx, Action::Describe, resource)
    }

    /// The same of something or a part of it.
    pub(crate) fn lists(&self, ctx: &RequestContext, resource: &Resource) -> bool {
        self.may(ctx, Action::List, resource)
    }

    /// Whether a caller may do something. That is no request: nothing is recorded.
    pub(crate) fn may(&self, ctx: &RequestContext, action: Action, resource: &Resource) -> bool {
        let identity = ctx.principal.identity();
        identity.is_some_and(|identity| self.allowed_by(identity, action, resource).is_some())
    }

    /// Until when the credential of a caller is good, with some leeway; for ever without an end.
    fn check_credential(&self, identity: &Identity) -> Result<Option<u64>, ApiError> {
        let found = match &identity.method {
            AuthMethod::Token { id, digest } => {
                let then = self.clock.wall_ms().saturating_sub(sessions::LEEWAY_MS);
                self.records.read(|state| {
                    let token = state.token(id);
                    token.and_then(|token| token.valid(digest, then))
                })
            }
            AuthMethod::Jwt { id, issued_ms } => {
                let is_refused = self.records.read(|state| {
                    let revoked = &state.revoked;
                    revoked.refuses(id.as_deref(), &identity.name, *issued_ms)
                });
                (!is_refused).then_some(identity.expires_ms)
            }
            AuthMethod::Certificate | AuthMethod::Internal => Some(identity.expires_ms),
        };
        found.ok_or_else(unauthenticated)
    }
}

/// A change whose intent is recorded. How it came out is recorded too; that it was given up, when
/// this is dropped before that.
pub(crate) struct Admitted<'a> {
    audit: &'a Audit,
    record: Option<Record>,
}

impl Admitted<'_> {
    /// Records how it came out.
    pub(crate) fn ended<T>(mut self, result: &Result<T, ApiError>) {
        if let Some(record) = self.record.take() {
            let error = result.as_ref().err();
            let error = error.map(|error| (error.kind, error.outcome));
            self.audit.write(record.ended(error));
        }
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            let given_up = (ErrorKind::Timeout, Outcome::Unknown);
            self.audit.write(record.ended(Some(given_up)));
        }
    }
}

/// The id in a token of ours, if the text is whole: whether it counts is in its record.
#[must_use]
pub fn token_id(text: &str) -> Option<&str> {
    token::parse(text).map(|parsed| parsed.id)
}

/// Whether only brokers may do this, whatever is granted: what they write of callers would prove
/// nothing otherwise.
fn is_reserved(access: &Access) -> bool {
    let changes = !matches!(
        access.action,
        Action::Describe | Action::List | Action::Consume | Action::Audit
    );
    changes && access.resource.tenant() == Some(RESERVED_TENANT)
}

/// The answer to what is forbidden and to what is absent.
pub(crate) fn forbidden() -> ApiError {
    let text = "not allowed, or it does not exist";
    ApiError::new(ErrorKind::PermissionDenied, text).advise(
        "correct the name, or ask for a grant; `aquifer access check` tells what is missing",
    )
}

/// The answer to what shows no credential that counts.
pub(crate) fn unauthenticated() -> ApiError {
    let text = "the credential is missing, not known, expired or revoked";
    ApiError::new(ErrorKind::Unauthenticated, text)
        .advise("show a token: --token-file FILE, or the header `authorization: Bearer TOKEN`")
}

fn stale() -> ApiError {
    let text =
        "the metadata store has been away for more than ten minutes: grants are not known any more";
    ApiError::new(ErrorKind::Unavailable, text).advise("try again when the metadata store answers")
}
