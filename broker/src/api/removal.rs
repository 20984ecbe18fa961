//! Deletion of tenants and namespaces, as it is recorded: what a dry run asks for changes nothing,
//! and the audit log tells one from the other.

use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::admin::{Removal, Removed};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ApiResult;
use tracing::info_span;

use crate::api::serve;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::check_unreserved;
use crate::topics::removal::Doomed;

impl Broker {
    pub(super) async fn delete_all(
        &self,
        ctx: &RequestContext,
        resource: Resource,
        doomed: Doomed,
        how: Removal,
    ) -> ApiResult<Removed> {
        let is_tenant = matches!(doomed, Doomed::Tenant(_));
        let work = self.remove(doomed, how);
        let manage = Action::Manage;
        match (is_tenant, how.dry_run) {
            (true, false) => serve!(self, ctx, "delete_tenant", manage, resource, work),
            (true, true) => serve!(self, ctx, "delete_tenant_dry_run", manage, resource, work),
            (false, false) => serve!(self, ctx, "delete_namespace", manage, resource, work),
            (false, true) => serve!(
                self,
                ctx,
                "delete_namespace_dry_run",
                manage,
                resource,
                work
            ),
        }
    }

    async fn remove(&self, doomed: Doomed, how: Removal) -> Result<Removed, BrokerError> {
        check_unreserved(doomed.tenant())?;
        match how.dry_run {
            true => self.topics.count(&doomed).await,
            false => self.topics.remove(doomed, how.force).await,
        }
    }
}
