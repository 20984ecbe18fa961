//! Deletion of tenants: namespace after namespace, then what is written of the tenant.

use std::sync::Arc;

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Revision, Versioned};
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::{Removal, TenantRecord, TokenRecord};
use aquifer_protocol_api::admin::{PageRequest, Removed};

use super::{ATTEMPTS_MAX, PAGE_ITEMS, changing, not_empty, wanted};
use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, parse};
use crate::topics::Topics;

impl Topics {
    pub(super) async fn remove_tenant(
        self: &Arc<Self>,
        tenant: &str,
        force: bool,
    ) -> Result<Removed, BrokerError> {
        let how = self.mark_tenant(tenant, wanted(force)).await?;
        let mut removed = Removed::default();
        loop {
            let found = self.namespaces_in(tenant).await?;
            if found.is_empty() {
                break;
            }
            if how != Removal::All {
                self.mark_tenant(tenant, Removal::Unspecified).await?;
                return Err(not_empty(&format!("tenant {tenant}"), "namespaces"));
            }
            for namespace in found {
                match self.remove_namespace(&namespace, true).await {
                    Ok(more) => {
                        removed.namespaces += more.namespaces;
                        removed.topics += more.topics;
                    }
                    Err(BrokerError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.forget_tenant(tenant).await?;
        tracing::info!(tenant, ?removed, "tenant deleted");
        Ok(removed)
    }

    /// Marks a tenant, or takes back the mark of one that looked empty. Answers how it is marked:
    /// as one whose namespaces go with it, if it was once marked so.
    async fn mark_tenant(&self, tenant: &str, wanted: Removal) -> Result<Removal, BrokerError> {
        for _ in 0..ATTEMPTS_MAX {
            let (mut record, revision) = self.tenant(tenant).await?;
            let now = record.removal();
            if now == wanted || now == Removal::All {
                return Ok(now);
            }
            let is_refused = wanted == Removal::IfEmpty;
            if is_refused && !self.namespaces_in(tenant).await?.is_empty() {
                return Err(not_empty(&format!("tenant {tenant}"), "namespaces"));
            }
            record.set_removal(wanted);
            let (partition, key) = (keys::CLUSTER_PARTITION.to_owned(), keys::tenant(tenant));
            let value = record::encode(record);
            if self.replace(partition, key, value, revision).await? {
                return Ok(wanted);
            }
        }
        Err(changing())
    }

    async fn tenant(&self, tenant: &str) -> Result<(TenantRecord, Revision), BrokerError> {
        let store = self.shared.namespaces.store();
        let found = store.get(&keys::tenant(tenant)).await?;
        let found = found.ok_or_else(|| BrokerError::no_tenant(tenant))?;
        Ok((record::decode(&found)?, found.revision))
    }

    /// Some namespaces of a tenant.
    async fn namespaces_in(&self, tenant: &str) -> Result<Vec<NamespaceName>, BrokerError> {
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::tenant_prefix(tenant),
        };
        let request = PageRequest {
            after: None,
            limit: PAGE_ITEMS,
        };
        let look = |found: &Versioned| -> Result<Listed<NamespaceName>, BrokerError> {
            Ok(match parse(found)? {
                Key::Namespace(namespace) => Listed::Item(namespace, String::new()),
                Key::Topic(topic) | Key::SegmentPage(topic, ..) => {
                    Listed::SkipUnder(keys::topics_prefix(topic.namespace()))
                }
                _ => Listed::Skip,
            })
        };
        Ok(lister.page(&request, None, look).await?.items)
    }

    /// Deletes what is written of an empty tenant, its record last.
    async fn forget_tenant(&self, tenant: &str) -> Result<(), BrokerError> {
        let cluster = keys::CLUSTER_PARTITION;
        self.delete_below(cluster, &keys::grants_prefix(Some(tenant)))
            .await?;
        self.delete_found(keys::TOKENS_PREFIX, |found| {
            let record = record::decode::<TokenRecord>(found);
            record.is_ok_and(|record| record.tenant == tenant)
        })
        .await?;
        let policies = keys::policies(&PolicyScope::Tenant(tenant.to_owned()));
        for _ in 0..ATTEMPTS_MAX {
            let (record, revision) = match self.tenant(tenant).await {
                // Another broker was faster.
                Err(BrokerError::NotFound { .. }) => return Ok(()),
                found => found?,
            };
            if record.removal() == Removal::Unspecified {
                return Ok(()); // created since
            }
            let keys = vec![
                (keys::tenant(tenant), Expect::Revision(revision)),
                (policies.clone(), Expect::Any),
            ];
            if self.delete_keys(cluster, keys).await? {
                return Ok(());
            }
        }
        Err(changing())
    }
}
