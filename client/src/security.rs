//! Security: tokens, grants, roles, revocations, and what a caller is allowed.
//!
//! Reads are retried after any retryable failure, changes only when they were certainly not applied
//! or come to the same; all within the client's operation timeout.

mod revocations;
mod roles;
mod scope;

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_proto::v1;
use aquifer_runtime::clock;
use bytes::Bytes;

use crate::connection::{Authorized, Connection};
use crate::context::Context;
use crate::credentials::Token;
use crate::error::{ClientError, Result};
use crate::lookup::unary;
use crate::retry::Deadline;

pub use revocations::{Refuses, Revocation};
pub use roles::Role;
pub use scope::GrantScope;

type Client = v1::security_client::SecurityClient<Authorized>;

/// Items asked for in one page of a list.
const PAGE_ITEMS: u32 = 1_000;

/// Tokens and grants of a cluster.
#[derive(Clone)]
pub struct Security {
    context: Arc<Context>,
}

/// The caller, as the broker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The principal; `None` where authentication is off.
    pub principal: Option<String>,
    /// Its groups.
    pub groups: Vec<String>,
    /// When the credential ends, in ms since the Unix epoch.
    pub expires_ms: Option<u64>,
    /// What the principal and its groups were granted, 1,000 grants at most.
    pub grants: Vec<Grant>,
    /// Whether there are more: [`Security::list_grants`] has all of the principal.
    pub more_grants: bool,
    /// Whether it may do everything.
    pub super_user: bool,
}

/// Whether something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is.
    pub allowed: bool,
    /// The grant that decides.
    pub grant: Option<String>,
    /// Why, for people.
    pub reason: String,
}

/// What is known of a token; its text is shown only when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The tenant that it belongs to; `None` for one of the cluster.
    pub tenant: Option<String>,
    /// The principal of its bearer.
    pub principal: String,
    /// When it was made, in ms since the Unix epoch.
    pub created_ms: u64,
    /// When it ends, in ms since the Unix epoch; `None` for never.
    pub expires_ms: Option<u64>,
    /// The principal that made it.
    pub created_by: String,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// A token that was just made. Its text cannot be had again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// What is known of it.
    pub info: TokenInfo,
    /// Its text.
    pub token: Token,
}

/// Lines of the audit log, in the order in which brokers stored them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPage {
    /// JSON objects, as docs/formats.md has them.
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
    /// The public key, Ed25519, of the key that checkpoints are signed with; empty where brokers
    /// sign none.
    pub public_key: Bytes,
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

/// What a principal or a group may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// The principal that may.
    pub principal: String,
    /// The role that was given; `None` where actions were.
    pub role: Option<String>,
    /// The actions that are allowed.
    pub actions: Vec<String>,
    /// On what.
    pub scope: GrantScope,
    /// The subscriptions that may be consumed: a name, a beginning with a star, or `*`.
    pub subscriptions: String,
    /// When it was given, in ms since the Unix epoch.
    pub created_ms: u64,
    /// The principal that gave it.
    pub created_by: String,
    /// When it ends, in ms since the Unix epoch; `None` for never.
    pub expires_ms: Option<u64>,
}

/// A grant to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGrant {
    /// The principal that may, or `group:ALIAS:NAME`.
    pub principal: String,
    /// What.
    pub allows: Allows,
    /// On what. Names may end with a star; a tenant's may not.
    pub scope: GrantScope,
    /// Which subscriptions may be consumed; `None` for all.
    pub subscriptions: Option<String>,
    /// For how long; `None` for ever.
    pub lifetime: Option<Duration>,
}

/// What a grant allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allows {
    /// What a role does.
    Role(String),
    /// These actions: `describe`, `produce`, `consume`, `manage`, `grant`, `operate`, `audit`.
    Actions(Vec<String>),
}

impl Security {
    pub(crate) fn new(context: Arc<Context>) -> Security {
        Security { context }
    }

    /// The principal of the caller, and what it was granted.
    ///
    /// # Errors
    /// [`ClientError::Unauthenticated`], or what every call may answer: cannot connect, timed out,
    /// unavailable.
    pub async fn who_am_i(&self) -> Result<Identity> {
        let call = |mut client: Client| async move { client.who_am_i(v1::WhoAmIRequest {}).await };
        let answer = self.call("asking who this is", true, call).await?;
        Ok(Identity {
            principal: given(answer.principal),
            groups: answer.groups,
            expires_ms: answer.expires_ms,
            grants: answer.grants.into_iter().map(Grant::from).collect(),
            more_grants: answer.more_grants,
            super_user: answer.super_user,
        })
    }

    /// Whether the caller, or another principal, may do something.
    ///
    /// # Errors
    /// `PermissionDenied` for another principal without the right to grant there, `Invalid` for a
    /// name, and what every call may answer.
    pub async fn check_access(
        &self,
        principal: Option<&str>,
        action: &str,
        resource: &GrantScope,
        subscription: Option<&str>,
    ) -> Result<Decision> {
        let request = v1::CheckAccessRequest {
            principal: principal.map(str::to_owned),
            action: action.to_owned(),
            scope: Some(resource.clone().into()),
            subscription: subscription.unwrap_or_default().to_owned(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.check_access(request).await }
        };
        let answer = self.call("checking access", true, call).await?;
        Ok(Decision {
            allowed: answer.allowed,
            grant: given(answer.grant_id),
            reason: answer.reason,
        })
    }

    /// Makes a token, of a tenant or of the cluster. Nothing is allowed to it before a grant is
    /// given to its principal.
    ///
    /// # Errors
    /// `AlreadyExists` for its name, `PermissionDenied`, `Invalid` for a name or a lifetime, and
    /// what every call may answer.
    pub async fn create_token(
        &self,
        name: &str,
        tenant: Option<&str>,
        lifetime: Option<Duration>,
    ) -> Result<NewToken> {
        let request = v1::CreateTokenRequest {
            name: name.to_owned(),
            tenant: tenant.unwrap_or_default().to_owned(),
            lifetime_ms: lifetime.map(clock::millis),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.create_token(request).await }
        };
        let answer = self.call("making the token", false, call).await?;
        new_token(answer.token, answer.secret)
    }

    /// The tokens of a tenant, or of the cluster, that the caller may see.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn list_tokens(&self, tenant: Option<&str>) -> Result<Vec<TokenInfo>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = v1::ListTokensRequest {
                tenant: tenant.unwrap_or_default().to_owned(),
                after,
                limit: PAGE_ITEMS,
            };
            let call = move |mut client: Client| {
                let request = request.clone();
                async move { client.list_tokens(request).await }
            };
            let page = self.call("listing tokens", true, call).await?;
            all.extend(page.tokens.into_iter().map(TokenInfo::from));
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// Gives a token another text. The former one is accepted for the grace period still.
    ///
    /// # Errors
    /// `PermissionDenied`, also where there is no such token, and what every call may answer.
    pub async fn rotate_token(&self, id: &str, grace: Option<Duration>) -> Result<NewToken> {
        let request = v1::RotateTokenRequest {
            id: id.to_owned(),
            grace_ms: grace.map(clock::millis),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.rotate_token(request).await }
        };
        let answer = self.call("rotating the token", false, call).await?;
        new_token(answer.token, answer.secret)
    }

    /// Makes a token useless; whatever is connected with it loses its connections.
    ///
    /// # Errors
    /// `PermissionDenied`, also where there is no such token, and what every call may answer.
    pub async fn revoke_token(&self, id: &str) -> Result<()> {
        let request = v1::RevokeTokenRequest { id: id.to_owned() };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.revoke_token(request).await }
        };
        self.call("revoking the token", true, call)
            .await
            .map(|_| ())
    }

    /// Reads the audit log from a place on, and up to an index if one is given, oldest first: that
    /// of a tenant, or of the cluster. Waits for a line as long as is asked; a page may be empty
    /// before that.
    ///
    /// # Errors
    /// `PermissionDenied` without the right to audit there, `Invalid` where authentication is off,
    /// and what every call may answer.
    pub async fn read_audit(
        &self,
        tenant: Option<&str>,
        (from, before): (Place, Option<Index>),
        limit: u32,
        wait: Duration,
    ) -> Result<AuditPage> {
        let request = v1::ReadAuditRequest {
            tenant: tenant.unwrap_or_default().to_owned(),
            from: from.to_string(),
            before_index: before.map(|index| index.0),
            limit,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            seal: false,
        };
        let page = self.ask_audit(request, wait).await?;
        Ok(AuditPage {
            lines: page.lines,
            next: Index(page.next_index),
            at_end: page.at_end,
            missing: page.missing,
        })
    }

    async fn ask_audit(
        &self,
        request: v1::ReadAuditRequest,
        wait: Duration,
    ) -> Result<v1::ReadAuditResponse> {
        let deadline = Deadline::after(self.context.operation_timeout + wait);
        let call = |connection: Connection| {
            let request = request.clone();
            async move { connection.security().read_audit(request).await }
        };
        unary(&self.context, "reading the audit log", true, deadline, call).await
    }

    /// Reads what the audit log of the cluster is compared with. Lines that are read afterwards
    /// have all of it.
    ///
    /// # Errors
    /// As [`Security::read_audit`].
    pub async fn audit_seal(&self) -> Result<AuditSeal> {
        let request = v1::ReadAuditRequest {
            from: Place::Latest.to_string(),
            limit: 1,
            seal: true,
            ..v1::ReadAuditRequest::default()
        };
        let page = self.ask_audit(request, Duration::ZERO).await?;
        // A broker of an older version says nothing of it.
        let seal = page.seal.unwrap_or_default();
        let ends = seal.ends.into_iter().map(|end| AuditEnd {
            chain: end.chain,
            seq: end.seq,
            hash: end.hash,
            time_ms: end.time_ms,
        });
        Ok(AuditSeal {
            public_key: seal.public_key,
            ends: ends.collect(),
        })
    }

    /// Gives a grant.
    ///
    /// # Errors
    /// `PermissionDenied`, `Invalid` for a name, a role or an action, and what every call may
    /// answer.
    pub async fn add_grant(&self, grant: NewGrant) -> Result<Grant> {
        let (role, actions) = match grant.allows {
            Allows::Role(role) => (role, Vec::new()),
            Allows::Actions(actions) => (String::new(), actions),
        };
        let request = v1::AddGrantRequest {
            principal: grant.principal,
            role,
            actions,
            scope: Some(grant.scope.into()),
            subscriptions: grant.subscriptions.unwrap_or_default(),
            lifetime_ms: grant.lifetime.map(clock::millis),
            // The broker knows a repetition by it, which answers the same grant.
            request_id: Bytes::copy_from_slice(&self.context.rng.id16()),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.add_grant(request).await }
        };
        let answer = self.call("giving the grant", true, call).await?;
        let grant = answer.grant.ok_or_else(|| without("a grant"))?;
        Ok(Grant::from(grant))
    }

    /// Grants that the caller may see: of one scope and of one principal, where they are named.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn list_grants(
        &self,
        scope: Option<&GrantScope>,
        principal: Option<&str>,
    ) -> Result<Vec<Grant>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = v1::ListGrantsRequest {
                scope: scope.cloned().map(Into::into),
                principal: principal.unwrap_or_default().to_owned(),
                after,
                limit: PAGE_ITEMS,
            };
            let call = move |mut client: Client| {
                let request = request.clone();
                async move { client.list_grants(request).await }
            };
            let page = self.call("listing grants", true, call).await?;
            all.extend(page.grants.into_iter().map(Grant::from));
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// Takes a grant back: one of the tenant of `scope`, or of the cluster.
    ///
    /// # Errors
    /// `PermissionDenied`, also where there is no such grant, and what every call may answer.
    pub async fn remove_grant(&self, id: &str, scope: &GrantScope) -> Result<()> {
        let request = v1::RemoveGrantRequest {
            id: id.to_owned(),
            scope: Some(scope.clone().into()),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.remove_grant(request).await }
        };
        self.call("removing the grant", false, call)
            .await
            .map(|_| ())
    }

    async fn call<T, F, Fut>(&self, what: &'static str, idempotent: bool, call: F) -> Result<T>
    where
        F: Fn(Client) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let deadline = Deadline::after(self.context.operation_timeout);
        unary(&self.context, what, idempotent, deadline, |connection| {
            call(connection.security())
        })
        .await
    }
}

impl From<v1::Token> for TokenInfo {
    fn from(token: v1::Token) -> TokenInfo {
        TokenInfo {
            id: token.id,
            name: token.name,
            tenant: given(token.tenant),
            principal: token.principal,
            created_ms: token.created_ms,
            expires_ms: token.expires_ms,
            created_by: token.created_by,
            revoked: token.revoked,
        }
    }
}

impl From<v1::Grant> for Grant {
    fn from(grant: v1::Grant) -> Grant {
        Grant {
            id: grant.id,
            principal: grant.principal,
            role: given(grant.role),
            actions: grant.actions,
            scope: GrantScope::from(grant.scope.unwrap_or_default()),
            subscriptions: grant.subscriptions,
            created_ms: grant.created_ms,
            created_by: grant.created_by,
            expires_ms: grant.expires_ms,
        }
    }
}

fn new_token(info: Option<v1::Token>, secret: String) -> Result<NewToken> {
    Ok(NewToken {
        info: info
            .map(TokenInfo::from)
            .ok_or_else(|| without("a token"))?,
        token: Token::from(secret),
    })
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn without(what: &str) -> ClientError {
    ClientError::Protocol(format!("an answer without {what}"))
}
