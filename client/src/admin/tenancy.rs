//! The ends of tenants and namespaces, as an operator brings them about.

use aquifer_model::content::Removed;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1;

use crate::admin::{Admin, Client};
use crate::error::Result;

/// How a tenant or namespace is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// With all that is in it, used or not; otherwise only when nothing is.
    pub force: bool,
    /// Nothing is deleted: it is only asked what is in it.
    pub dry_run: bool,
}

impl Admin {
    /// Deletes a tenant with its tokens and grants. What a failure leaves is deleted by the next
    /// attempt, or by the cluster itself.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when it has namespaces and is not forced, and what every call may answer.
    pub async fn delete_tenant(&self, tenant: &str, options: DeleteOptions) -> Result<Removed> {
        let request = v1::DeleteTenantRequest {
            tenant: tenant.to_owned(),
            force: options.force,
            dry_run: options.dry_run,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.delete_tenant(request).await }
        };
        let removed = self
            .call("deleting the tenant", options.dry_run, call)
            .await?;
        Ok(Removed {
            namespaces: removed.namespaces,
            topics: removed.topics,
        })
    }

    /// Deletes a namespace, given as `tenant/namespace`, with its policies and grants. What a
    /// failure leaves is deleted by the next attempt, or by the cluster itself.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when it has topics and is not forced, `Invalid` for its name, and what
    /// every call may answer.
    pub async fn delete_namespace(
        &self,
        namespace: &str,
        options: DeleteOptions,
    ) -> Result<Removed> {
        let request = v1::DeleteNamespaceRequest {
            namespace: namespace.parse::<NamespaceName>()?.to_string(),
            force: options.force,
            dry_run: options.dry_run,
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.delete_namespace(request).await }
        };
        let what = "deleting the namespace";
        let removed = self.call(what, options.dry_run, call).await?;
        Ok(Removed {
            namespaces: 1,
            topics: removed.topics,
        })
    }
}
