//! Administration of tenants and namespaces.

use aquifer_metadata::keys::{self, Key};
use aquifer_model::policy::{Policies, PolicyView};
use aquifer_model::topic::NamespaceName;
use aquifer_protocol_api::admin::{Page, PageRequest};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, look_tenant, parse};

impl Broker {
    pub(super) async fn make_tenant(&self, tenant: &str) -> Result<(), BrokerError> {
        // The same rule as for the tenant's part of a namespace.
        NamespaceName::new(tenant, "x").map_err(|error| {
            BrokerError::invalid(error.to_string(), "choose another name for the tenant")
        })?;
        self.shared.namespaces.create_tenant(tenant).await
    }

    pub(super) async fn make_namespace(
        &self,
        namespace: &NamespaceName,
        policies: Policies,
    ) -> Result<PolicyView, BrokerError> {
        let namespaces = &self.shared.namespaces;
        let create = namespaces.create(namespace, policies);
        let table = namespaces.policies();
        table.of_created(namespace, policies, create).await
    }

    pub(super) async fn tenants(&self, page: PageRequest) -> Result<Page<String>, BrokerError> {
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::TENANTS_PREFIX.to_owned(),
        };
        let after = page.after.as_deref().map(keys::tenant);
        lister.page(&page, after, look_tenant).await
    }

    pub(super) async fn namespaces(
        &self,
        tenant: &str,
        page: PageRequest,
    ) -> Result<Page<NamespaceName>, BrokerError> {
        self.shared.namespaces.check_tenant(tenant).await?;
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
            .page(&page, after, |versioned| {
                Ok(match parse(versioned)? {
                    Key::Namespace(namespace) => {
                        let name = namespace.namespace().to_owned();
                        Listed::Item(namespace, name)
                    }
                    Key::Topic(topic) | Key::SegmentPage(topic, _) => {
                        Listed::SkipUnder(keys::topics_prefix(topic.namespace()))
                    }
                    _ => Listed::Skip,
                })
            })
            .await
    }
}
