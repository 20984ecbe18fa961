//! Authentication by the fake: one token that it was told, or none at all.

use std::sync::Arc;

use async_trait::async_trait;

use crate::access::Action;
use crate::admin::{Page, PageRequest};
use crate::conformance::fake::FakeBroker;
use crate::context::{AuthMethod, Identity, Principal, RequestContext};
use crate::error::{ApiError, ApiResult, ErrorKind};
use crate::scope::GrantScope;
use crate::security::{
    AddGrant, AuditPage, AuditSeal, Authenticator, CheckAccess, Checked, CreateToken, GrantInfo,
    NewToken, ReadAudit, RevocationInfo, Revoke, RoleInfo, RoleName, Security, Shown, TokenInfo,
    WhoAmI,
};

impl Authenticator for FakeBroker {
    fn authenticates(&self) -> bool {
        self.token.is_some()
    }

    fn authenticate(&self, shown: &Shown<'_>) -> ApiResult<Principal> {
        match (&self.token, shown.bearer) {
            (Some(token), Ok(Some(bearer))) if **token == *bearer => {
                Ok(Principal::Named(Arc::new(Identity {
                    name: "token:fake".to_owned(),
                    groups: Vec::new(),
                    method: AuthMethod::Certificate,
                    expires_ms: None,
                })))
            }
            _ => Err(ApiError::new(ErrorKind::Unauthenticated, "who are you?")),
        }
    }

    fn may_read_metrics(&self, _ctx: &RequestContext) -> ApiResult<()> {
        self.not_faked()
    }
}

#[async_trait]
impl Security for FakeBroker {
    async fn who_am_i(&self, ctx: &RequestContext) -> ApiResult<WhoAmI> {
        Ok(WhoAmI {
            principal: ctx.principal.clone(),
            grants: Vec::new(),
            more_grants: false,
            super_user: false,
        })
    }

    async fn check_access(&self, _ctx: &RequestContext, _check: CheckAccess) -> ApiResult<Checked> {
        self.not_faked()
    }

    async fn create_token(
        &self,
        _ctx: &RequestContext,
        _create: CreateToken,
    ) -> ApiResult<NewToken> {
        self.not_faked()
    }

    async fn list_tokens(
        &self,
        _ctx: &RequestContext,
        _tenant: Option<String>,
        _page: PageRequest,
    ) -> ApiResult<Page<TokenInfo>> {
        self.not_faked()
    }

    async fn rotate_token(
        &self,
        _ctx: &RequestContext,
        _id: String,
        _grace_ms: Option<u64>,
    ) -> ApiResult<NewToken> {
        self.not_faked()
    }

    async fn read_audit(&self, _ctx: &RequestContext, _request: ReadAudit) -> ApiResult<AuditPage> {
        self.not_faked()
    }

    async fn audit_seal(&self, _ctx: &RequestContext) -> ApiResult<AuditSeal> {
        self.not_faked()
    }

    async fn revoke_token(&self, _ctx: &RequestContext, _id: String) -> ApiResult<()> {
        self.not_faked()
    }

    async fn add_grant(&self, _ctx: &RequestContext, _add: AddGrant) -> ApiResult<GrantInfo> {
        self.not_faked()
    }

    async fn list_grants(
        &self,
        _ctx: &RequestContext,
        _scope: GrantScope,
        _principal: Option<String>,
        _page: PageRequest,
    ) -> ApiResult<Page<GrantInfo>> {
        self.not_faked()
    }

    async fn remove_grant(
        &self,
        _ctx: &RequestContext,
        _id: String,
        _scope: GrantScope,
    ) -> ApiResult<()> {
        self.not_faked()
    }

    async fn create_role(
        &self,
        _ctx: &RequestContext,
        _name: RoleName,
        _actions: Vec<Action>,
    ) -> ApiResult<RoleInfo> {
        self.not_faked()
    }

    async fn list_roles(
        &self,
        _ctx: &RequestContext,
        _tenant: Option<String>,
    ) -> ApiResult<Vec<RoleInfo>> {
        self.not_faked()
    }

    async fn get_role(&self, _ctx: &RequestContext, _name: RoleName) -> ApiResult<RoleInfo> {
        self.not_faked()
    }

    async fn update_role(
        &self,
        _ctx: &RequestContext,
        _name: RoleName,
        _actions: Vec<Action>,
    ) -> ApiResult<RoleInfo> {
        self.not_faked()
    }

    async fn delete_role(&self, _ctx: &RequestContext, _name: RoleName) -> ApiResult<()> {
        self.not_faked()
    }

    async fn add_revocation(
        &self,
        _ctx: &RequestContext,
        _revoke: Revoke,
    ) -> ApiResult<RevocationInfo> {
        self.not_faked()
    }

    async fn list_revocations(
        &self,
        _ctx: &RequestContext,
        _page: PageRequest,
    ) -> ApiResult<Page<RevocationInfo>> {
        self.not_faked()
    }

    async fn remove_revocation(&self, _ctx: &RequestContext, _id: String) -> ApiResult<()> {
        self.not_faked()
    }
}
