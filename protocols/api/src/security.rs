//! The ports of security: who calls, and what tokens and grants there are.

use std::net::SocketAddr;
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_runtime::config::Secret;
use aquifer_runtime::net::tls::PeerCertificate;
use async_trait::async_trait;

use crate::access::{Action, Resource};
use crate::admin::{Page, PageRequest};
use crate::context::{Principal, RequestContext, RequestId};
use crate::error::ApiResult;
use crate::scope::{GrantScope, Pattern};

/// What a caller shows before anything of its request is read.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The token; an error says why there is no telling which it is.
    pub bearer: Result<Option<&'a str>, &'static str>,
    /// The certificate of its connection.
    pub certificate: Option<&'a PeerCertificate>,
    /// Its address.
    pub peer: Option<SocketAddr>,
    /// By which protocol it came.
    pub protocol: &'static str,
    /// What it asks for, as its protocol names it; for the record of failures.
    pub request: &'a str,
    /// What that request is called, if its answer tells.
    pub request_id: Option<&'a RequestId>,
}

/// Finds out who calls. It never waits: everything that it needs is in memory.
pub trait Authenticator: Send + Sync + 'static {
    /// Whether callers must show who they are. It never changes.
    fn authenticates(&self) -> bool;

    /// The principal that shows this. A token, when one is shown, is the identity, whatever the
    /// certificate says.
    ///
    /// # Errors
    /// `Unauthenticated`, with the same text whatever is wrong with a token.
    fn authenticate(&self, shown: &Shown<'_>) -> ApiResult<Principal>;

    /// Whether a caller may see the metrics of this process.
    ///
    /// # Errors
    /// As of any other request.
    fn may_read_metrics(&self, ctx: &RequestContext) -> ApiResult<()>;
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Drawn by the broker.
    pub id: String,
    /// Within its tenant.
    pub name: String,
    /// `None`: of the cluster.
    pub tenant: Option<String>,
    /// As whom it authenticates.
    pub principal: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it expires.
    pub expires_ms: Option<u64>,
    /// The principal that made it.
    pub created_by: String,
    /// Whether it authenticates no caller any more.
    pub revoked: bool,
}

/// A token with the secret that is shown only now.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The token.
    pub token: TokenInfo,
    /// What a caller shows.
    pub secret: Secret,
}

/// Request for a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateToken {
    /// Its name.
    pub name: String,
    /// `None`: of the cluster.
    pub tenant: Option<String>,
    /// `None`: it does not expire.
    pub lifetime_ms: Option<u64>,
}

/// What a principal may do, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantInfo {
    /// Drawn by the broker.
    pub id: String,
    /// `KIND:REST`, or `group:ALIAS:NAME`.
    pub principal: String,
    /// The role that gives the actions; `None` where they are given singly.
    pub role: Option<String>,
    /// The actions.
    pub actions: Vec<Action>,
    /// Where.
    pub scope: GrantScope,
    /// To consume from subscriptions: from these.
    pub subscriptions: Pattern,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The principal that made it.
    pub created_by: String,
    /// When it ends.
    pub expires_ms: Option<u64>,
}

/// Request for a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddGrant {
    /// The principal that it is for.
    pub principal: String,
    /// A role or actions.
    pub given: Given,
    /// Where.
    pub scope: GrantScope,
    /// To consume from subscriptions: from these.
    pub subscriptions: Pattern,
    /// `None`: until it is removed.
    pub lifetime_ms: Option<u64>,
    /// The same again from the same caller answers the same grant. `None`: each request makes one.
    pub request_id: Option<[u8; 16]>,
}

/// What a grant gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// What a role comes to.
    Role(String),
    /// These.
    Actions(Vec<Action>),
}

/// A role of a tenant, or of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleName {
    /// `None`: of the cluster.
    pub tenant: Option<String>,
    /// Its name there.
    pub name: String,
}

/// A name for actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleInfo {
    /// Its name.
    pub name: RoleName,
    /// The actions.
    pub actions: Vec<Action>,
    /// Whether it is there without having been made.
    pub built_in: bool,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The principal that made it.
    pub created_by: String,
}

/// Which JSON Web Tokens are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refuses {
    /// The one of this `ALIAS:JTI`.
    Token(String),
    /// Those of a principal that were issued before a time, in milliseconds since 1970.
    IssuedBefore(String, u64),
}

/// Request to refuse JSON Web Tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoke {
    /// The one of this `ALIAS:JTI`.
    Token(String),
    /// Those of a principal, `jwt:ALIAS:SUB`, that were issued before a time; `None`: until now.
    Principal(String, Option<u64>),
}

/// A revocation of JSON Web Tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationInfo {
    /// Drawn by the broker.
    pub id: String,
    /// What is refused.
    pub refuses: Refuses,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The principal that made it.
    pub created_by: String,
    /// No token that it refuses lives longer.
    pub ends_ms: u64,
}

/// What the caller is and may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoAmI {
    /// The principal.
    pub principal: Principal,
    /// Its own grants, then those of its groups; a bounded number of them.
    pub grants: Vec<GrantInfo>,
    /// Whether it has more.
    pub more_grants: bool,
    /// Whether it may do everything, as configured.
    pub super_user: bool,
}

/// Question whether something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckAccess {
    /// `None`: the caller.
    pub principal: Option<String>,
    /// What it wants to do.
    pub action: Action,
    /// With what.
    pub resource: Resource,
}

/// Whether something is allowed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Whether it is.
    pub allowed: bool,
    /// The grant that decides.
    pub grant: Option<String>,
    /// For people.
    pub reason: String,
}

/// Request for lines of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAudit {
    /// Those about this tenant; `None`: all of the cluster.
    pub tenant: Option<String>,
    /// Where to begin.
    pub from: Place,
    /// Where to end: no line at this index or behind it.
    pub before: Option<Index>,
    /// Most lines of the answer.
    pub limit: u32,
    /// How long to wait for a line when there is not one yet. The broker may wait for less time.
    pub wait: Duration,
}

/// Lines of the audit log, in the order in which brokers stored them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditPage {
    /// The lines as they were written.
    pub lines: Vec<String>,
    /// Where to read on.
    pub next: Index,
    /// Whether there was nothing behind it.
    pub at_end: bool,
    /// Places between that cannot be read.
    pub missing: u64,
}

/// What the audit log is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditSeal {
    /// The public key, Ed25519, of the key that checkpoints are signed with.
    pub public_key: Vec<u8>,
    /// The newest checkpoint of each chain that the topic has.
    pub ends: Vec<AuditEnd>,
}

/// A checkpoint of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEnd {
    /// The chain.
    pub chain: String,
    /// The number of its line.
    pub seq: u64,
    /// The digest of the line.
    pub hash: String,
    /// When it was written, in ms since the Unix epoch.
    pub time_ms: u64,
}

/// Keeps tokens and grants.
#[async_trait]
pub trait Security: Send + Sync + 'static {
    /// Says who the caller is and what it may do.
    async fn who_am_i(&self, ctx: &RequestContext) -> ApiResult<WhoAmI>;

    /// Says whether the caller may do something, or another principal where the caller may grant.
    async fn check_access(&self, ctx: &RequestContext, check: CheckAccess) -> ApiResult<Checked>;

    /// Makes a token.
    async fn create_token(&self, ctx: &RequestContext, create: CreateToken) -> ApiResult<NewToken>;

    /// Lists the tokens of a tenant, or of the cluster, in order of their ids.
    async fn list_tokens(
        &self,
        ctx: &RequestContext,
        tenant: Option<String>,
        page: PageRequest,
    ) -> ApiResult<Page<TokenInfo>>;

    /// Gives a token another secret. The old one authenticates for as long as the grace period.
    async fn rotate_token(
        &self,
        ctx: &RequestContext,
        id: String,
        grace_ms: Option<u64>,
    ) -> ApiResult<NewToken>;

    /// Reads the audit log: that of a tenant, or of the cluster.
    async fn read_audit(&self, ctx: &RequestContext, request: ReadAudit) -> ApiResult<AuditPage>;

    /// Says what the audit log is compared with. Lines that are read afterwards have all of it.
    async fn audit_seal(&self, ctx: &RequestContext) -> ApiResult<AuditSeal>;

    /// Ends a token and all sessions that it has opened.
    async fn revoke_token(&self, ctx: &RequestContext, id: String) -> ApiResult<()>;

    /// Lets a principal do something.
    async fn add_grant(&self, ctx: &RequestContext, add: AddGrant) -> ApiResult<GrantInfo>;

    /// Lists the grants of a scope and within it, in order of their ids; a principal narrows that.
    async fn list_grants(
        &self,
        ctx: &RequestContext,
        scope: GrantScope,
        principal: Option<String>,
        page: PageRequest,
    ) -> ApiResult<Page<GrantInfo>>;

    /// Takes a grant away, and ends the sessions that nothing else allows.
    async fn remove_grant(
        &self,
        ctx: &RequestContext,
        id: String,
        scope: GrantScope,
    ) -> ApiResult<()>;

    /// Makes a role.
    async fn create_role(
        &self,
        ctx: &RequestContext,
        name: RoleName,
        actions: Vec<Action>,
    ) -> ApiResult<RoleInfo>;

    /// Lists the roles that grants in a tenant, or in the cluster, may give.
    async fn list_roles(
        &self,
        ctx: &RequestContext,
        tenant: Option<String>,
    ) -> ApiResult<Vec<RoleInfo>>;

    /// Says what a role is.
    async fn get_role(&self, ctx: &RequestContext, name: RoleName) -> ApiResult<RoleInfo>;

    /// Gives a role other actions, and with it all grants that name it.
    async fn update_role(
        &self,
        ctx: &RequestContext,
        name: RoleName,
        actions: Vec<Action>,
    ) -> ApiResult<RoleInfo>;

    /// Deletes a role that no grant names.
    async fn delete_role(&self, ctx: &RequestContext, name: RoleName) -> ApiResult<()>;

    /// Refuses JSON Web Tokens, and ends the sessions that they have opened.
    async fn add_revocation(
        &self,
        ctx: &RequestContext,
        revoke: Revoke,
    ) -> ApiResult<RevocationInfo>;

    /// Lists the revocations, in order of their ids.
    async fn list_revocations(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<RevocationInfo>>;

    /// Takes a revocation back.
    async fn remove_revocation(&self, ctx: &RequestContext, id: String) -> ApiResult<()>;
}
