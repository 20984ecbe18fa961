//! Deletion of tenants and namespaces, as it is recorded: what a dry run asks for changes nothing,
//! and the audit log tells one from the other.

use aquifer_model::content::Removed;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::admin::Removal;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ApiResult;
use tracing::info_span;

use crate::api::serve;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::check_unreserved;
use crate::topics::removal::RemovalScope;

impl Broker {
    pub(super) async fn delete_all(
        &self,
        ctx: &RequestContext,
        resource: Resource,
        scope: RemovalScope,
        how: Removal,
    ) -> ApiResult<Removed> {
        let about = Some(match &scope {
            RemovalScope::Tenant(tenant) => Resource::Tenant(tenant.clone()),
            RemovalScope::Namespace(namespace) => Resource::Namespace(namespace.clone()),
        });
        let is_tenant = matches!(scope, RemovalScope::Tenant(_));
        let work = self.remove(scope, how);
        macro_rules! serve_as {
            ($request:literal) => {
                serve!(self, ctx, $request, Action::Manage, resource, about: about, work)
            };
        }
        match (is_tenant, how.dry_run) {
            (true, false) => serve_as!("delete_tenant"),
            (true, true) => serve_as!("delete_tenant_dry_run"),
            (false, false) => serve_as!("delete_namespace"),
            (false, true) => serve_as!("delete_namespace_dry_run"),
        }
    }

    async fn remove(&self, scope: RemovalScope, how: Removal) -> Result<Removed, BrokerError> {
        check_unreserved(scope.tenant())?;
        match how.dry_run {
            true => self.topics.count(&scope).await,
            false => self.topics.remove(scope, how.force).await,
        }
    }
}
