//! Administration of tenants and namespaces.

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::store::Versioned;
use aquifer_model::policy::{Policies, PolicyScope, PolicyView};
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::access::Resource;
use aquifer_protocol_api::admin::{Page, PageRequest};
use aquifer_protocol_api::context::RequestContext;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::check_unreserved;
use crate::namespace::listing::{Listed, Lister, look_tenant, parse};
use crate::topics::removal::RemovalScope;

impl Broker {
    pub(super) async fn create_tenant_record(&self, tenant: &str) -> Result<(), BrokerError> {
        // The same rule as for the tenant's part of a namespace.
        NamespaceName::new(tenant, "x").map_err(|error| {
            BrokerError::invalid(error.to_string(), "choose another name for the tenant")
        })?;
        check_unreserved(tenant)?;
        self.shared.namespaces.create_tenant(tenant).await
    }

    pub(super) async fn create_namespace_record(
        &self,
        namespace: &NamespaceName,
        policies: Policies,
    ) -> Result<PolicyView, BrokerError> {
        let namespaces = &self.shared.namespaces;
        let create = namespaces.create(namespace, policies);
        let table = namespaces.policies();
        let created = table.of_created(namespace, policies, create).await;
        if created.is_err() {
            // It may have come into a tenant that is being deleted: the sweep would take longer.
            let scope = RemovalScope::Namespace(namespace.clone());
            self.topics.resume_removal(scope);
        }
        created
    }

    pub(super) async fn list_tenants_page(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> Result<Page<String>, BrokerError> {
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::TENANTS_PREFIX.to_owned(),
        };
        let after = page.after.as_deref().map(keys::tenant);
        let look = |versioned: &Versioned| -> Result<Listed<String>, BrokerError> {
            Ok(match look_tenant(versioned)? {
                Listed::Item(tenant, name)
                    if !self.lists(ctx, &Resource::Tenant(tenant.clone())) =>
                {
                    Listed::Hidden(name)
                }
                listed => listed,
            })
        };
        lister.page_for_caller(&page, after, look).await
    }

    /// Whether a caller may know of something: of it, or of something in it.
    fn lists(&self, ctx: &RequestContext, resource: &Resource) -> bool {
        let guard = self.shared.guard.as_ref();
        guard.is_none_or(|guard| guard.lists(ctx, resource))
    }

    /// Of what is not there a caller that may not describe it is shown nothing, as of what is there
    /// and has nothing for it.
    pub(super) fn unseen<T>(
        &self,
        ctx: &RequestContext,
        of: Resource,
        exists: Result<(), BrokerError>,
    ) -> Result<Option<Page<T>>, BrokerError> {
        match exists {
            Err(BrokerError::NotFound { .. }) if !self.sees(ctx, &of) => Ok(Some(Page {
                items: Vec::new(),
                next: None,
            })),
            exists => exists.map(|()| None),
        }
    }

    pub(super) async fn list_namespaces_page(
        &self,
        ctx: &RequestContext,
        tenant: &str,
        page: PageRequest,
    ) -> Result<Page<NamespaceName>, BrokerError> {
        let exists = self.shared.namespaces.check_tenant(tenant).await;
        if let Some(nothing) = self.unseen(ctx, Resource::Tenant(tenant.to_owned()), exists)? {
            return Ok(nothing);
        }
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::tenant_prefix(tenant),
        };
        let after = match &page.after {
            None => None,
            Some(after) => {
                let namespace = NamespaceName::new(tenant, after).map_err(|error| {
                    BrokerError::invalid(error.to_string(), "pass the `next` of the page before")
                })?;
                Some(keys::namespace(&namespace))
            }
        };
        lister
            .page_for_caller(&page, after, |versioned| {
                Ok(match parse(versioned)? {
                    Key::Namespace(namespace)
                        if !self.lists(ctx, &Resource::Namespace(namespace.clone())) =>
                    {
                        Listed::Hidden(namespace.namespace().to_owned())
                    }
                    Key::Namespace(namespace) => {
                        let name = namespace.namespace().to_owned();
                        Listed::Item(namespace, name)
                    }
                    Key::Topic(topic) | Key::SegmentPage(topic, ..) => {
                        Listed::SkipUnder(keys::topics_prefix(topic.namespace()))
                    }
                    _ => Listed::Skip,
                })
            })
            .await
    }
}

/// A principal that may manage this sets the ceilings of a scope, and its share.
pub(super) fn above(scope: &PolicyScope) -> Resource {
    match scope {
        PolicyScope::Tenant(_) => Resource::Cluster,
        PolicyScope::Namespace(name) => Resource::Tenant(name.tenant().to_owned()),
        PolicyScope::Topic(name) => Resource::Namespace(name.namespace().clone()),
    }
}

/// What policies belong to.
pub(super) fn resource_of(scope: &PolicyScope) -> Resource {
    match scope {
        PolicyScope::Tenant(name) => Resource::Tenant(name.clone()),
        PolicyScope::Namespace(name) => Resource::Namespace(name.clone()),
        PolicyScope::Topic(name) => Resource::Topic(name.clone()),
    }
}
