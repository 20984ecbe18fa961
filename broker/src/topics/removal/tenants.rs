//! Deletion of tenants: namespace after namespace, then what is written of the tenant.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::{Expect, Guard, Revision, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::content::Removed;
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::{
    ForgottenRecord, GrantRecord, Removal, RoleRecord, TenantRecord, TokenRecord,
};
use aquifer_protocol_api::admin::PageRequest;

use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, parse};
use crate::security::principal;
use crate::topics::Topics;
use crate::topics::removal::{
    ATTEMPTS_MAX, How, PAGE_ITEMS, RemovalScope, changing, not_empty, taken_back,
};

/// What says who may do what in a tenant.
struct Given {
    grants: Vec<(String, Expect)>,
    tokens: Vec<(String, Expect)>,
    roles: Vec<(String, Expect)>,
    /// When the last of it was made, by the clock of the broker that made it.
    newest_ms: u64,
}

impl Topics {
    pub(super) async fn remove_tenant(
        self: &Arc<Self>,
        tenant: &str,
        how: How,
    ) -> Result<Removed, BrokerError> {
        let scope = RemovalScope::Tenant(tenant.to_owned());
        let (mut removed, mut step) = (Removed::default(), how);
        for attempt in 0..ATTEMPTS_MAX {
            let marked = match self.mark::<TenantRecord>(&scope, step, None).await {
                // Another broker was faster.
                Err(BrokerError::NotFound { .. }) if attempt > 0 => return Ok(removed),
                marked => marked?,
            };
            let Some(marked) = marked else {
                return match (attempt, how) {
                    (1.., How::IfEmpty) => Err(taken_back(&scope)),
                    _ => Ok(removed),
                };
            };
            let record = scope.guard(marked);
            let emptied = self.empty_tenant(tenant, marked.removal, &record, &mut removed);
            if emptied.await? && self.forget_tenant(tenant, &record).await? {
                tracing::info!(tenant, ?removed, "tenant deleted");
                return Ok(removed);
            }
            step = How::Resume;
        }
        Err(changing())
    }

    /// Deletes the namespaces of a tenant that takes none in. False: its record is not as expected
    /// any more.
    async fn empty_tenant(
        self: &Arc<Self>,
        tenant: &str,
        removal: Removal,
        record: &Guard,
        removed: &mut Removed,
    ) -> Result<bool, BrokerError> {
        // Grants go with their namespaces: when they were made is noted before that.
        if removal == Removal::All {
            let given = self.given_in(tenant).await?;
            if !self.note_forgotten(tenant, given.newest_ms, record).await? {
                return Ok(false);
            }
        }
        loop {
            let found = self.namespaces_in(tenant).await?;
            if found.is_empty() {
                return Ok(true);
            }
            // Once another broker has deleted the tenant, they may be those of the next one.
            if !self.holds(record).await? {
                return Ok(false);
            }
            if removal != Removal::All {
                let scope = RemovalScope::Tenant(tenant.to_owned());
                self.unmark::<TenantRecord>(&scope).await?;
                return Err(not_empty(&scope));
            }
            for (namespace, revision) in found {
                let removal = self.remove_namespace(&namespace, How::Force, Some(revision));
                match removal.await {
                    Ok(more) => {
                        removed.namespaces += more.namespaces;
                        removed.topics += more.topics;
                    }
                    Err(BrokerError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Some namespaces of a tenant, each with the revision of its record.
    pub(super) async fn namespaces_in(
        &self,
        tenant: &str,
    ) -> Result<Vec<(NamespaceName, Revision)>, BrokerError> {
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::tenant_prefix(tenant),
        };
        let request = PageRequest {
            after: None,
            limit: PAGE_ITEMS,
        };
        let look = |found: &Versioned| -> Result<Listed<(NamespaceName, Revision)>, BrokerError> {
            Ok(match parse(found)? {
                Key::Namespace(namespace) => {
                    Listed::Item((namespace, found.revision), String::new())
                }
                Key::Topic(topic) | Key::SegmentPage(topic, ..) => {
                    Listed::SkipUnder(keys::topics_prefix(topic.namespace()))
                }
                _ => Listed::Skip,
            })
        };
        Ok(lister.page(&request, None, look).await?.items)
    }

    /// Deletes what is written of an empty tenant, its record last. False: the record is not as
    /// expected any more.
    pub(super) async fn forget_tenant(
        &self,
        tenant: &str,
        record: &Guard,
    ) -> Result<bool, BrokerError> {
        let Given {
            grants,
            tokens,
            roles,
            newest_ms,
        } = self.given_in(tenant).await?;
        // Also when nothing is left: what a backup has may have gone with a namespace.
        if !self.note_forgotten(tenant, newest_ms, record).await? {
            return Ok(false);
        }
        // Roles go last: no grant names one that is not there.
        for found in [grants, tokens, roles] {
            let found = found.into_iter().map(|(key, _)| (key, Expect::Any));
            if !self.delete_all(Some(record), found.collect()).await? {
                return Ok(false);
            }
        }
        let policies = keys::policies(&PolicyScope::Tenant(tenant.to_owned()));
        let keys = vec![(record.key.clone(), record.expect), (policies, Expect::Any)];
        self.delete_keys(keys::CLUSTER_PARTITION, None, keys).await
    }

    /// The grants, tokens and roles of a tenant, and the grants to its tokens elsewhere.
    async fn given_in(&self, tenant: &str) -> Result<Given, BrokerError> {
        let newest = AtomicU64::new(0);
        let see = |created_ms: u64| newest.fetch_max(created_ms, Ordering::Relaxed);
        let of_tenant = keys::grants_prefix(Some(tenant));
        // A grant to a token of the tenant says the token's name, which the next tenant of the name
        // may give again, wherever the grant is.
        let of_tokens = principal::of_token(Some(tenant), "");
        let grants = self.found(keys::GRANTS_PREFIX, |found| {
            let grant = record::decode::<GrantRecord>(found).unwrap_or_default();
            let is_given = grant.principal.starts_with(&of_tokens);
            let is_it = is_given || found.key.starts_with(&of_tenant);
            if is_it {
                see(grant.created_ms);
            }
            is_it
        });
        let grants = grants.await?;
        let tokens = self.found(keys::TOKENS_PREFIX, |found| {
            let token = record::decode::<TokenRecord>(found).unwrap_or_default();
            let is_it = token.tenant == tenant;
            if is_it {
                see(token.created_ms);
            }
            is_it
        });
        let tokens = tokens.await?;
        let of_roles = keys::roles_prefix(Some(tenant));
        let roles = self.found(&of_roles, |found| {
            let role = record::decode::<RoleRecord>(found).unwrap_or_default();
            see(role.created_ms);
            true
        });
        let roles = roles.await?;
        Ok(Given {
            grants,
            tokens,
            roles,
            newest_ms: newest.load(Ordering::Relaxed),
        })
    }

    /// Notes that what was given in a tenant is gone, so that no backup brings it back. The clocks
    /// of brokers differ: the time is not before that of what goes, nor before one that was noted.
    /// False: the tenant's record is not as expected any more.
    async fn note_forgotten(
        &self,
        tenant: &str,
        newest_ms: u64,
        record: &Guard,
    ) -> Result<bool, BrokerError> {
        let at_least = newest_ms.max(self.shared.clock.wall_ms());
        let decide = |stored: Option<Versioned>| {
            let noted = stored.and_then(|stored| record::decode::<ForgottenRecord>(&stored).ok());
            let noted = noted.map(|noted| noted.before_ms);
            let before_ms = noted.unwrap_or_default().max(at_least);
            let change = match noted == Some(before_ms) {
                true => Change::none(()),
                false => {
                    // Tokens that it names were made before that.
                    let tokens = Vec::new();
                    let value = record::encode(ForgottenRecord { before_ms, tokens });
                    Change::put(keys::CLUSTER_PARTITION, value, ())
                }
            };
            std::future::ready(Ok::<_, BrokerError>(change))
        };
        let key = keys::forgotten(Some(tenant));
        let guards = std::slice::from_ref(record);
        let store = self.shared.namespaces.store();
        match store.update(&key, guards, decide).await {
            // Without a change nothing was compared.
            Ok(updated) if updated.applied.is_none() => self.holds(record).await,
            Ok(_) => Ok(true),
            Err(UpdateError::Guard { .. }) => Ok(false),
            Err(error) => Err(error.flatten()),
        }
    }
}
