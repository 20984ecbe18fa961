//! Tokens, grants, roles and revocations, as the broker serves them.
//!
//! Whose permission a request about a token or a grant needs is found out from what is known of it
//! here. An id of nothing needs that of the cluster, so that it gets the answer of a foreign one.

use aquifer_metadata::keys;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::admin::{Page, PageRequest};
use aquifer_protocol_api::context::{Principal, RequestContext};
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::scope::GrantScope;
use aquifer_protocol_api::security::{
    AddGrant, AuditPage, AuditSeal, Authenticator, CheckAccess, Checked, CreateToken, GrantInfo,
    NewToken, ReadAudit, RevocationInfo, Revoke, RoleInfo, RoleName, Security, Shown, TokenInfo,
    WhoAmI,
};
use async_trait::async_trait;
use tracing::info_span;

use crate::api::serve;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::Guard;
use crate::security::audit::ends;

/// Grants that a caller is shown of itself.
const GRANTS_SHOWN_MAX: usize = 1_000;

impl Broker {
    fn guard(&self) -> Result<&Guard, BrokerError> {
        self.shared.guard.as_deref().ok_or_else(|| {
            BrokerError::invalid(
                "authentication is off: there are no tokens and grants",
                "start the server with --auth",
            )
        })
    }

    /// What changing a token needs: its own holder may, and a principal that may grant where it
    /// belongs.
    fn need_of_token(&self, ctx: &RequestContext, id: &str) -> (Action, Resource) {
        let guard = self.shared.guard.as_ref();
        if guard.is_some_and(|guard| guard.shows(ctx, id)) {
            return (Action::Authenticate, Resource::Caller);
        }
        let tenant = self.shared.guard.as_ref().and_then(|guard| {
            let read = |token: &crate::security::token::Token| token.tenant().map(str::to_owned);
            guard.records.read(|state| state.token(id).and_then(read))
        });
        (
            Action::Grant,
            tenant.map_or(Resource::Cluster, Resource::Tenant),
        )
    }

    /// What taking a grant away needs.
    fn need_of_grant(&self, id: &str, scope: &GrantScope) -> Resource {
        let key = keys::grant(scope.tenant(), id);
        let known = self.shared.guard.as_ref().and_then(|guard| {
            let read =
                |grant: &std::sync::Arc<crate::security::grant::Grant>| grant.info.scope.clone();
            guard.records.read(|state| state.grant(&key).map(read))
        });
        known.map_or(Resource::Cluster, Resource::Scope)
    }
}

impl Authenticator for Broker {
    fn authenticates(&self) -> bool {
        self.shared.guard.is_some()
    }

    fn authenticate(&self, shown: &Shown<'_>) -> ApiResult<Principal> {
        match &self.shared.guard {
            None => Ok(Principal::Anonymous),
            Some(guard) => guard.authenticate(shown),
        }
    }

    fn may_read_metrics(&self, ctx: &RequestContext) -> ApiResult<()> {
        let need = Access {
            request: "metrics",
            action: Action::Describe,
            resource: Resource::Cluster,
            about: None,
        };
        self.require(ctx, &need)
    }
}

#[async_trait]
impl Security for Broker {
    async fn who_am_i(&self, ctx: &RequestContext) -> ApiResult<WhoAmI> {
        serve!(
            self,
            ctx,
            "who_am_i",
            Action::Authenticate,
            Resource::Caller,
            async { Ok(self.caller(ctx)) }
        )
    }

    async fn check_access(&self, ctx: &RequestContext, check: CheckAccess) -> ApiResult<Checked> {
        let (action, resource) = match &check.principal {
            Some(name) if ctx.principal.name() != name => (Action::Grant, check.resource.clone()),
            _ => (Action::Authenticate, Resource::Caller),
        };
        serve!(self, ctx, "check_access", action, resource, async {
            self.guard()?;
            Ok(self.checked(ctx, &check))
        })
    }

    async fn create_token(&self, ctx: &RequestContext, create: CreateToken) -> ApiResult<NewToken> {
        let tenant = create.tenant.clone();
        serve!(
            self,
            ctx,
            "create_token",
            Action::Grant,
            tenant.map_or(Resource::Cluster, Resource::Tenant),
            async {
                self.guard()?
                    .create_token(ctx, create, &self.shared.namespaces)
                    .await
            }
        )
    }

    async fn list_tokens(
        &self,
        ctx: &RequestContext,
        tenant: Option<String>,
        page: PageRequest,
    ) -> ApiResult<Page<TokenInfo>> {
        let of = tenant.clone();
        serve!(
            self,
            ctx,
            "list_tokens",
            Action::Grant,
            of.map_or(Resource::Cluster, Resource::Tenant),
            async {
                let tenant = tenant.as_deref();
                let arguments = [tenant.unwrap_or_default()];
                let list = self.shared.pages.list(ctx, "list_tokens", &arguments);
                list.seal(self.guard()?.list_tokens(tenant, &list.open(page)?))
            }
        )
    }

    async fn rotate_token(
        &self,
        ctx: &RequestContext,
        id: String,
        grace_ms: Option<u64>,
    ) -> ApiResult<NewToken> {
        let (action, resource) = self.need_of_token(ctx, &id);
        serve!(self, ctx, "rotate_token", action, resource, async {
            self.guard()?.rotate_token(ctx, &id, grace_ms).await
        })
    }

    async fn read_audit(&self, ctx: &RequestContext, request: ReadAudit) -> ApiResult<AuditPage> {
        let of = request.tenant.clone();
        serve!(
            self,
            ctx,
            "read_audit",
            Action::Audit,
            of.map_or(Resource::Cluster, Resource::Tenant),
            async {
                self.guard()?;
                self.read_audit_lines(ctx, request).await
            }
        )
    }

    async fn audit_seal(&self, ctx: &RequestContext) -> ApiResult<AuditSeal> {
        let cluster = Resource::Cluster;
        serve!(self, ctx, "read_audit", Action::Audit, cluster, async {
            let guard = self.guard()?;
            let ends = ends::all(guard.records.store()).await?;
            let public_key = guard.audit.public_key();
            Ok::<_, BrokerError>(AuditSeal { public_key, ends })
        })
    }

    async fn revoke_token(&self, ctx: &RequestContext, id: String) -> ApiResult<()> {
        let (action, resource) = self.need_of_token(ctx, &id);
        serve!(self, ctx, "revoke_token", action, resource, async {
            self.guard()?.revoke_token(ctx, &id).await
        })
    }

    async fn add_grant(&self, ctx: &RequestContext, add: AddGrant) -> ApiResult<GrantInfo> {
        serve!(
            self,
            ctx,
            "add_grant",
            Action::Grant,
            Resource::Scope(add.scope.clone()),
            async {
                self.guard()?
                    .add_grant(ctx, add, &self.shared.namespaces)
                    .await
            }
        )
    }

    async fn list_grants(
        &self,
        ctx: &RequestContext,
        scope: GrantScope,
        principal: Option<String>,
        page: PageRequest,
    ) -> ApiResult<Page<GrantInfo>> {
        let (action, resource) = match &principal {
            Some(name) if ctx.principal.name() == name => (Action::Authenticate, Resource::Caller),
            _ => (Action::Grant, Resource::Scope(scope.clone())),
        };
        serve!(self, ctx, "list_grants", action, resource, async {
            let [tenant, namespace, topic] = scope.texts();
            let principal = principal.as_deref();
            let arguments = [&*tenant, &namespace, &topic, principal.unwrap_or_default()];
            let list = self.shared.pages.list(ctx, "list_grants", &arguments);
            let page = list.open(page)?;
            list.seal(self.guard()?.list_grants(&scope, principal, &page)?)
        })
    }

    async fn remove_grant(
        &self,
        ctx: &RequestContext,
        id: String,
        scope: GrantScope,
    ) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "remove_grant",
            Action::Grant,
            self.need_of_grant(&id, &scope),
            async { self.guard()?.remove_grant(ctx, &id, &scope).await }
        )
    }

    async fn create_role(
        &self,
        ctx: &RequestContext,
        name: RoleName,
        actions: Vec<Action>,
    ) -> ApiResult<RoleInfo> {
        serve!(
            self,
            ctx,
            "create_role",
            Action::Grant,
            owner(&name),
            async {
                self.guard()?
                    .create_role(ctx, name, &actions, &self.shared.namespaces)
                    .await
            }
        )
    }

    async fn list_roles(
        &self,
        ctx: &RequestContext,
        tenant: Option<String>,
    ) -> ApiResult<Vec<RoleInfo>> {
        let of = tenant.clone();
        serve!(
            self,
            ctx,
            "list_roles",
            Action::Describe,
            of.map_or(Resource::Cluster, Resource::Tenant),
            async { Ok(self.guard()?.list_roles(tenant.as_deref())) }
        )
    }

    async fn get_role(&self, ctx: &RequestContext, name: RoleName) -> ApiResult<RoleInfo> {
        serve!(
            self,
            ctx,
            "get_role",
            Action::Describe,
            owner(&name),
            async { self.guard()?.role(&name) }
        )
    }

    async fn update_role(
        &self,
        ctx: &RequestContext,
        name: RoleName,
        actions: Vec<Action>,
    ) -> ApiResult<RoleInfo> {
        serve!(
            self,
            ctx,
            "update_role",
            Action::Grant,
            owner(&name),
            async { self.guard()?.update_role(ctx, name, &actions).await }
        )
    }

    async fn delete_role(&self, ctx: &RequestContext, name: RoleName) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "delete_role",
            Action::Grant,
            owner(&name),
            async { self.guard()?.delete_role(ctx, &name).await }
        )
    }

    async fn add_revocation(
        &self,
        ctx: &RequestContext,
        revoke: Revoke,
    ) -> ApiResult<RevocationInfo> {
        serve!(
            self,
            ctx,
            "add_revocation",
            Action::Grant,
            Resource::Cluster,
            async { self.guard()?.add_revocation(ctx, revoke).await }
        )
    }

    async fn list_revocations(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<RevocationInfo>> {
        serve!(
            self,
            ctx,
            "list_revocations",
            Action::Grant,
            Resource::Cluster,
            async {
                let list = self.shared.pages.list(ctx, "list_revocations", &[]);
                list.seal(self.guard()?.list_revocations(&list.open(page)?))
            }
        )
    }

    async fn remove_revocation(&self, ctx: &RequestContext, id: String) -> ApiResult<()> {
        serve!(
            self,
            ctx,
            "remove_revocation",
            Action::Grant,
            Resource::Cluster,
            async { self.guard()?.remove_revocation(ctx, &id).await }
        )
    }
}

/// Whose a role is.
fn owner(name: &RoleName) -> Resource {
    let tenant = name.tenant.clone();
    tenant.map_or(Resource::Cluster, Resource::Tenant)
}

impl Broker {
    fn caller(&self, ctx: &RequestContext) -> WhoAmI {
        let (Some(guard), Some(identity)) = (&self.shared.guard, ctx.principal.identity()) else {
            return WhoAmI {
                principal: Principal::Anonymous,
                grants: Vec::new(),
                more_grants: false,
                super_user: false,
            };
        };
        let names = std::iter::once(&identity.name).chain(&identity.groups);
        let (grants, more_grants) = guard.records.read(|state| {
            let mut grants = names.flat_map(|name| state.grants_of(name));
            let shown = grants.by_ref().take(GRANTS_SHOWN_MAX);
            let shown: Vec<GrantInfo> = shown.map(|grant| grant.info.clone()).collect();
            (shown, grants.next().is_some())
        });
        WhoAmI {
            principal: ctx.principal.clone(),
            grants,
            more_grants,
            super_user: guard.is_super_user(&identity.name),
        }
    }

    fn checked(&self, ctx: &RequestContext, check: &CheckAccess) -> Checked {
        let Some(guard) = &self.shared.guard else {
            return Checked {
                allowed: true,
                grant: None,
                reason: "authentication is off".to_owned(),
            };
        };
        let (action, resource) = (check.action, &check.resource);
        let decided = match (&check.principal, ctx.principal.identity()) {
            (Some(name), caller) if caller.is_none_or(|caller| caller.name != *name) => {
                guard.allowed_to(name, std::iter::empty(), action, resource)
            }
            (_, Some(identity)) => guard.allowed_by(identity, action, resource),
            (_, None) => None,
        };
        let who = check.principal.as_deref().unwrap_or(ctx.principal.name());
        let what = format!("{} on {resource}", action.name());
        Checked {
            allowed: decided.is_some(),
            reason: match &decided {
                Some(by) => format!("{who} may {what}: {by}"),
                None => format!("no grant of {who} allows {what}"),
            },
            grant: decided,
        }
    }
}
