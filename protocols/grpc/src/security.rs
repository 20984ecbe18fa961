//! Tokens, grants, roles and revocations: every method parses, calls once and converts.

use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use aquifer_proto::v1;
use aquifer_protocol_api::access::{Action, Resource};
use aquifer_protocol_api::context::Principal;
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::scope::{GrantScope, Pattern};
use aquifer_protocol_api::security::{
    AddGrant, AuditSeal, CheckAccess, CreateToken, Given, GrantInfo, NewToken, ReadAudit, Refuses,
    RevocationInfo, Revoke, RoleInfo, RoleName, TokenInfo, WhoAmI,
};
use tonic::{Request, async_trait};

use crate::convert::{id16, invalid, name, namespace, page, place_or, tenant};
use crate::service::{Answer, Service};
use crate::stream;

/// Lines of the audit log in an answer where the client does not say.
const AUDIT_LINES_DEFAULT: u32 = 100;
/// Letters of the id of a token or a grant.
const ID_LETTERS: usize = 26;
/// Longest name of a principal, in bytes.
const PRINCIPAL_BYTES_MAX: usize = 1_024;

#[async_trait]
impl v1::security_server::Security for Service {
    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Answer<v1::WhoAmIResponse> {
        self.unary("who_am_i", request, |broker, ctx, _| async move {
            Ok(wire_caller(broker.who_am_i(&ctx).await?))
        })
        .await
    }

    async fn check_access(
        &self,
        request: Request<v1::CheckAccessRequest>,
    ) -> Answer<v1::CheckAccessResponse> {
        self.unary("check_access", request, |broker, ctx, r| async move {
            let check = CheckAccess {
                principal: r.principal.map(principal).transpose()?,
                action: action(&r.action)?,
                resource: resource(r.scope.unwrap_or_default(), &r.subscription)?,
            };
            let checked = broker.check_access(&ctx, check).await?;
            Ok(v1::CheckAccessResponse {
                allowed: checked.allowed,
                grant_id: checked.grant.unwrap_or_default(),
                reason: checked.reason,
            })
        })
        .await
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Answer<v1::CreateTokenResponse> {
        self.unary("create_token", request, |broker, ctx, r| async move {
            let create = CreateToken {
                name: r.name,
                tenant: optional_tenant(r.tenant)?,
                lifetime_ms: r.lifetime_ms,
            };
            let NewToken { token, secret } = broker.create_token(&ctx, create).await?;
            Ok(v1::CreateTokenResponse {
                token: Some(wire_token(token)),
                secret: secret.expose().to_owned(),
            })
        })
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Answer<v1::ListTokensResponse> {
        self.unary("list_tokens", request, |broker, ctx, r| async move {
            let tenant = optional_tenant(r.tenant)?;
            let page = page(r.after, r.limit)?;
            let found = broker.list_tokens(&ctx, tenant, page).await?;
            Ok(v1::ListTokensResponse {
                tokens: found.items.into_iter().map(wire_token).collect(),
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn rotate_token(
        &self,
        request: Request<v1::RotateTokenRequest>,
    ) -> Answer<v1::RotateTokenResponse> {
        self.unary("rotate_token", request, |broker, ctx, r| async move {
            let rotated = broker.rotate_token(&ctx, id(r.id)?, r.grace_ms).await?;
            Ok(v1::RotateTokenResponse {
                token: Some(wire_token(rotated.token)),
                secret: rotated.secret.expose().to_owned(),
            })
        })
        .await
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Answer<v1::RevokeTokenResponse> {
        self.unary("revoke_token", request, |broker, ctx, r| async move {
            broker.revoke_token(&ctx, id(r.id)?).await?;
            Ok(v1::RevokeTokenResponse {})
        })
        .await
    }

    async fn read_audit(
        &self,
        request: Request<v1::ReadAuditRequest>,
    ) -> Answer<v1::ReadAuditResponse> {
        let shutdown = self.tasks.shutdown_token();
        self.unary("read_audit", request, |broker, ctx, r| async move {
            let read = ReadAudit {
                tenant: optional_tenant(r.tenant)?,
                from: place_or(&r.from, Place::Earliest)?,
                before: r.before_index.map(Index),
                limit: match r.limit {
                    0 => AUDIT_LINES_DEFAULT,
                    limit => limit,
                },
                wait: Duration::from_millis(r.wait_ms.into()),
            };
            // Before the lines, so that these have what it names.
            let seal = match r.seal {
                true => Some(wire_seal(broker.audit_seal(&ctx).await?)),
                false => None,
            };
            let page = tokio::select! {
                // A read that waits changes nothing: its client asks the next broker.
                () = shutdown.wait() => return Err(stream::stopping()),
                page = broker.read_audit(&ctx, read) => page?,
            };
            Ok(v1::ReadAuditResponse {
                lines: page.lines,
                next_index: page.next.0,
                at_end: page.at_end,
                missing: page.missing,
                seal,
            })
        })
        .await
    }

    async fn add_grant(
        &self,
        request: Request<v1::AddGrantRequest>,
    ) -> Answer<v1::AddGrantResponse> {
        self.unary("add_grant", request, |broker, ctx, r| async move {
            let grant = broker.add_grant(&ctx, grant_request(r)?).await?;
            Ok(v1::AddGrantResponse {
                grant: Some(wire_grant(grant)),
            })
        })
        .await
    }

    async fn list_grants(
        &self,
        request: Request<v1::ListGrantsRequest>,
    ) -> Answer<v1::ListGrantsResponse> {
        self.unary("list_grants", request, |broker, ctx, r| async move {
            let of = match r.principal.is_empty() {
                true => None,
                false => Some(principal(r.principal)?),
            };
            let scope = scope(r.scope.unwrap_or_default())?;
            let page = page(r.after, r.limit)?;
            let found = broker.list_grants(&ctx, scope, of, page).await?;
            Ok(v1::ListGrantsResponse {
                grants: found.items.into_iter().map(wire_grant).collect(),
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn remove_grant(
        &self,
        request: Request<v1::RemoveGrantRequest>,
    ) -> Answer<v1::RemoveGrantResponse> {
        self.unary("remove_grant", request, |broker, ctx, r| async move {
            let scope = scope(r.scope.unwrap_or_default())?;
            broker.remove_grant(&ctx, id(r.id)?, scope).await?;
            Ok(v1::RemoveGrantResponse {})
        })
        .await
    }

    async fn create_role(
        &self,
        request: Request<v1::CreateRoleRequest>,
    ) -> Answer<v1::CreateRoleResponse> {
        self.unary("create_role", request, |broker, ctx, r| async move {
            let (name, actions) = (role_name(r.name, r.tenant)?, actions(&r.actions)?);
            let role = Some(wire_role(broker.create_role(&ctx, name, actions).await?));
            Ok(v1::CreateRoleResponse { role })
        })
        .await
    }

    async fn list_roles(
        &self,
        request: Request<v1::ListRolesRequest>,
    ) -> Answer<v1::ListRolesResponse> {
        self.unary("list_roles", request, |broker, ctx, r| async move {
            let found = broker.list_roles(&ctx, optional_tenant(r.tenant)?).await?;
            let roles = found.into_iter().map(wire_role).collect();
            Ok(v1::ListRolesResponse { roles })
        })
        .await
    }

    async fn get_role(&self, request: Request<v1::GetRoleRequest>) -> Answer<v1::GetRoleResponse> {
        self.unary("get_role", request, |broker, ctx, r| async move {
            let name = role_name(r.name, r.tenant)?;
            let role = Some(wire_role(broker.get_role(&ctx, name).await?));
            Ok(v1::GetRoleResponse { role })
        })
        .await
    }

    async fn update_role(
        &self,
        request: Request<v1::UpdateRoleRequest>,
    ) -> Answer<v1::UpdateRoleResponse> {
        self.unary("update_role", request, |broker, ctx, r| async move {
            let (name, actions) = (role_name(r.name, r.tenant)?, actions(&r.actions)?);
            let role = Some(wire_role(broker.update_role(&ctx, name, actions).await?));
            Ok(v1::UpdateRoleResponse { role })
        })
        .await
    }

    async fn delete_role(
        &self,
        request: Request<v1::DeleteRoleRequest>,
    ) -> Answer<v1::DeleteRoleResponse> {
        self.unary("delete_role", request, |broker, ctx, r| async move {
            let name = role_name(r.name, r.tenant)?;
            broker.delete_role(&ctx, name).await?;
            Ok(v1::DeleteRoleResponse {})
        })
        .await
    }

    async fn add_revocation(
        &self,
        request: Request<v1::AddRevocationRequest>,
    ) -> Answer<v1::AddRevocationResponse> {
        self.unary("add_revocation", request, |broker, ctx, r| async move {
            let made = broker.add_revocation(&ctx, revoke(r)?).await?;
            let revocation = Some(wire_revocation(made));
            Ok(v1::AddRevocationResponse { revocation })
        })
        .await
    }

    async fn list_revocations(
        &self,
        request: Request<v1::ListRevocationsRequest>,
    ) -> Answer<v1::ListRevocationsResponse> {
        self.unary("list_revocations", request, |broker, ctx, r| async move {
            let page = page(r.after, r.limit)?;
            let found = broker.list_revocations(&ctx, page).await?;
            Ok(v1::ListRevocationsResponse {
                revocations: found.items.into_iter().map(wire_revocation).collect(),
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn remove_revocation(
        &self,
        request: Request<v1::RemoveRevocationRequest>,
    ) -> Answer<v1::RemoveRevocationResponse> {
        self.unary("remove_revocation", request, |broker, ctx, r| async move {
            broker.remove_revocation(&ctx, id(r.id)?).await?;
            Ok(v1::RemoveRevocationResponse {})
        })
        .await
    }
}

fn id(text: String) -> ApiResult<String> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte);
    match text.len() == ID_LETTERS && text.bytes().all(legal) {
        true => Ok(text),
        false => Err(invalid(
            "an id has 26 letters from a to z and digits from 2 to 7",
        )),
    }
}

fn principal(text: String) -> ApiResult<String> {
    let legal = text.bytes().all(|byte| byte.is_ascii_graphic());
    match legal && text.contains(':') && text.len() <= PRINCIPAL_BYTES_MAX {
        true => Ok(text),
        false => Err(invalid("a principal is KIND:NAME in printable ASCII")),
    }
}

fn optional_tenant(text: String) -> ApiResult<Option<String>> {
    match text.is_empty() {
        true => Ok(None),
        false => tenant(text).map(Some),
    }
}

fn action(text: &str) -> ApiResult<Action> {
    Action::granted(text).ok_or_else(|| {
        let names: Vec<&str> = Action::GRANTED.iter().map(|action| action.name()).collect();
        invalid(format!("an action is one of {}", names.join(", ")))
    })
}

fn actions(texts: &[String]) -> ApiResult<Vec<Action>> {
    texts.iter().map(|text| action(text)).collect()
}

fn role_name(role: String, tenant: String) -> ApiResult<RoleName> {
    let tenant = optional_tenant(tenant)?;
    // Names of roles have the letters of those of namespaces.
    NamespaceName::new(&role, "x").map_err(|_| {
        invalid("the name of a role has 1 to 128 letters, digits and -_. and not only dots")
    })?;
    Ok(RoleName { tenant, name: role })
}

fn revoke(r: v1::AddRevocationRequest) -> ApiResult<Revoke> {
    match (r.principal.is_empty(), r.jti.is_empty(), r.issued_before_ms) {
        (false, true, before) => Ok(Revoke::Principal(principal(r.principal)?, before)),
        (true, false, None) => Ok(Revoke::Token(r.jti)),
        _ => Err(invalid(
            "a revocation names one token, or one principal and a time at most",
        )),
    }
}

fn scope(scope: v1::GrantScope) -> ApiResult<GrantScope> {
    let scope = GrantScope::new(&scope.tenant, &scope.namespace, &scope.topic);
    scope.map_err(|error| invalid(error.to_string()))
}

/// One resource: names without stars.
fn resource(scope: v1::GrantScope, subscription: &str) -> ApiResult<Resource> {
    let parts = (&*scope.tenant, &*scope.namespace, &*scope.topic);
    if !subscription.is_empty() && parts.2.is_empty() {
        return Err(invalid("a subscription needs its topic"));
    }
    match parts {
        ("", "", "") => Ok(Resource::Cluster),
        (of, "", "") => Ok(Resource::Tenant(tenant(of.to_owned())?)),
        (of, local, "") => Ok(Resource::Namespace(namespace(&format!("{of}/{local}"))?)),
        (of, local, topic) => {
            let namespace = namespace(&format!("{of}/{local}"))?;
            let topic = TopicName::new(namespace, topic);
            let topic = topic.map_err(|error| invalid(error.to_string()))?;
            if subscription.is_empty() {
                return Ok(Resource::Topic(topic));
            }
            let subscription: SubscriptionName = name(subscription)?;
            Ok(Resource::Subscription(topic, subscription))
        }
    }
}

fn grant_request(r: v1::AddGrantRequest) -> ApiResult<AddGrant> {
    let given = match (r.role.is_empty(), r.actions.is_empty()) {
        (false, true) => Given::Role(r.role),
        (true, false) => Given::Actions(actions(&r.actions)?),
        _ => return Err(invalid("a grant gives either a role or actions")),
    };
    let subscriptions = match &*r.subscriptions {
        "" => Ok(Pattern::any()),
        text => Pattern::of_subscriptions(text),
    };
    Ok(AddGrant {
        principal: principal(r.principal)?,
        given,
        scope: scope(r.scope.unwrap_or_default())?,
        subscriptions: subscriptions.map_err(|error| invalid(error.to_string()))?,
        lifetime_ms: r.lifetime_ms,
        request_id: match r.request_id.is_empty() {
            true => None,
            false => Some(id16::<Bytes16>("the request id", &r.request_id)?.0),
        },
    })
}

/// Sixteen bytes that are no id of the model.
struct Bytes16([u8; 16]);

impl TryFrom<&[u8]> for Bytes16 {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Bytes16, Self::Error> {
        bytes.try_into().map(Bytes16)
    }
}

fn wire_token(token: TokenInfo) -> v1::Token {
    v1::Token {
        id: token.id,
        name: token.name,
        tenant: token.tenant.unwrap_or_default(),
        principal: token.principal,
        created_ms: token.created_ms,
        expires_ms: token.expires_ms,
        created_by: token.created_by,
        revoked: token.revoked,
    }
}

fn wire_grant(grant: GrantInfo) -> v1::Grant {
    let [tenant, namespace, topic] = grant.scope.texts();
    let actions = grant.actions.iter();
    v1::Grant {
        id: grant.id,
        principal: grant.principal,
        role: grant.role.unwrap_or_default(),
        actions: actions.map(|action| action.name().to_owned()).collect(),
        scope: Some(v1::GrantScope {
            tenant,
            namespace,
            topic,
        }),
        subscriptions: grant.subscriptions.to_string(),
        created_ms: grant.created_ms,
        created_by: grant.created_by,
        expires_ms: grant.expires_ms,
    }
}

fn wire_seal(seal: AuditSeal) -> v1::AuditSeal {
    let ends = seal.ends.into_iter().map(|end| v1::AuditEnd {
        chain: end.chain,
        seq: end.seq,
        hash: end.hash,
        time_ms: end.time_ms,
    });
    v1::AuditSeal {
        public_key: seal.public_key.into(),
        ends: ends.collect(),
    }
}

fn wire_role(role: RoleInfo) -> v1::Role {
    let actions = role.actions.iter();
    v1::Role {
        name: role.name.name,
        tenant: role.name.tenant.unwrap_or_default(),
        actions: actions.map(|action| action.name().to_owned()).collect(),
        built_in: role.built_in,
        created_ms: role.created_ms,
        created_by: role.created_by,
    }
}

fn wire_revocation(info: RevocationInfo) -> v1::Revocation {
    let mut wire = v1::Revocation {
        id: info.id,
        created_ms: info.created_ms,
        created_by: info.created_by,
        ends_ms: info.ends_ms,
        ..v1::Revocation::default()
    };
    match info.refuses {
        Refuses::Token(token) => wire.jti = token,
        Refuses::IssuedBefore(principal, before_ms) => {
            wire.principal = principal;
            wire.issued_before_ms = before_ms;
        }
    }
    wire
}

fn wire_caller(caller: WhoAmI) -> v1::WhoAmIResponse {
    let mut answer = v1::WhoAmIResponse {
        grants: caller.grants.into_iter().map(wire_grant).collect(),
        more_grants: caller.more_grants,
        super_user: caller.super_user,
        ..v1::WhoAmIResponse::default()
    };
    if let Principal::Named(identity) = &caller.principal {
        answer.principal.clone_from(&identity.name);
        answer.groups.clone_from(&identity.groups);
        answer.expires_ms = identity.expires_ms;
    }
    answer
}
