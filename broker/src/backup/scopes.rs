//! What a backup has besides topics: tenants and namespaces with their policies, revocations,
//! roles, tokens and grants, all as they were at one revision of metadata.
//!
//! A backup of a tenant has the tokens and grants of that tenant, one of a topic has none. Only one
//! of the cluster has revocations. The secrets of tokens are nowhere: a record has their digests.

use std::collections::BTreeMap;

use aquifer_metadata::error::{MetadataError, MetadataResult};
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::snapshot::Snapshot;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_model::backup::BackupScope;
use aquifer_model::limits::METADATA_PAGE_KEYS_MAX;
use aquifer_model::policy::PolicyScope;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1;
use aquifer_proto::v1::backup_item::Item;

use crate::namespace::listing::behind;

/// How often the revision may be lost.
const RESTARTS_MAX: usize = 5;
/// Keys of a page among which topics may be, whose records are large.
const PAGE_KEYS: usize = 16;

/// Everything of a scope.
///
/// # Errors
/// When metadata cannot be read.
pub(super) async fn items(
    store: &dyn MetadataStore,
    scope: &BackupScope,
) -> MetadataResult<Vec<Item>> {
    let mut restarts = 0;
    loop {
        let snapshot = Snapshot::newest(store).await?;
        match at(&snapshot, scope).await {
            Err(MetadataError::Unavailable(reason)) if restarts < RESTARTS_MAX => {
                tracing::debug!(reason, "tenants and policies are read again");
                restarts += 1;
            }
            found => return found,
        }
    }
}

async fn at(snapshot: &Snapshot<'_>, scope: &BackupScope) -> MetadataResult<Vec<Item>> {
    let (tenants, namespaces) = names(snapshot, scope).await?;
    let mut set = BTreeMap::new();
    for tenant in &tenants {
        policies(snapshot, tenant, &mut set).await?;
    }
    let mut items = Vec::new();
    for tenant in tenants {
        let policies = set.remove(&PolicyScope::Tenant(tenant.clone()));
        items.push(Item::Tenant(v1::BackupTenant { tenant, policies }));
    }
    for namespace in namespaces {
        let name = namespace.to_string();
        let policies = set.remove(&PolicyScope::Namespace(namespace));
        items.push(Item::Namespace(v1::BackupNamespace {
            namespace: name,
            policies,
        }));
    }
    let (mut revocations, mut roles, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let mut after = String::new();
    loop {
        let page = snapshot
            .page(keys::AUTH_PREFIX, &after, METADATA_PAGE_KEYS_MAX)
            .await?;
        for item in page.items.iter().filter_map(|stored| access(stored, scope)) {
            match &item {
                Item::Revocation(_) => revocations.push(item),
                Item::Role(_) => roles.push(item),
                _ => others.push(item),
            }
        }
        match page.next {
            Some(next) => after = next.after,
            None => break,
        }
    }
    // What is revoked is refused before anything is given, and a role is back before its grants.
    items.extend(revocations);
    items.extend(roles);
    items.extend(others);
    Ok(items)
}

/// The tenants and namespaces of a scope. What is below a namespace is passed over.
async fn names(
    snapshot: &Snapshot<'_>,
    scope: &BackupScope,
) -> MetadataResult<(Vec<String>, Vec<NamespaceName>)> {
    let has_tenant = |name: &str| match scope {
        BackupScope::Cluster => true,
        BackupScope::Tenant(tenant) => tenant == name,
        BackupScope::Topic(topic) => topic.namespace().tenant() == name,
    };
    let has_namespace = |name: &NamespaceName| match scope {
        BackupScope::Topic(topic) => topic.namespace() == name,
        BackupScope::Cluster | BackupScope::Tenant(_) => has_tenant(name.tenant()),
    };
    let (mut tenants, mut namespaces) = (Vec::new(), Vec::new());
    let mut after = String::new();
    'pages: loop {
        let page = snapshot
            .page(keys::TENANTS_PREFIX, &after, PAGE_KEYS)
            .await?;
        for stored in &page.items {
            match stored.key.parse()? {
                Key::Tenant(tenant) if has_tenant(&tenant) => tenants.push(tenant),
                Key::Namespace(name) if has_namespace(&name) => namespaces.push(name),
                Key::Topic(topic) | Key::SegmentPage(topic, ..) => {
                    after = behind(&keys::topics_prefix(topic.namespace()));
                    continue 'pages;
                }
                _ => {}
            }
        }
        match page.next {
            Some(next) => after = next.after,
            None => return Ok((tenants, namespaces)),
        }
    }
}

/// The policies of a tenant and of its namespaces; topics have theirs captured with them.
async fn policies(
    snapshot: &Snapshot<'_>,
    tenant: &str,
    set: &mut BTreeMap<PolicyScope, v1::Policies>,
) -> MetadataResult<()> {
    // Tenants whose names begin so come along.
    let prefix = keys::policies(&PolicyScope::Tenant(tenant.to_owned()));
    let mut after = String::new();
    loop {
        let page = snapshot
            .page(&prefix, &after, METADATA_PAGE_KEYS_MAX)
            .await?;
        for stored in &page.items {
            let scope = match stored.key.parse()? {
                Key::Policies(scope @ (PolicyScope::Tenant(_) | PolicyScope::Namespace(_))) => {
                    scope
                }
                _ => continue,
            };
            let record: v1::PolicyRecord = record::decode(stored)?;
            set.extend(record.policies.map(|policies| (scope, policies)));
        }
        match page.next {
            Some(next) => after = next.after,
            None => return Ok(()),
        }
    }
}

/// A token, a grant, a role or a revocation of a scope. One that is not understood gives nothing,
/// and is left out.
fn access(stored: &Versioned, scope: &BackupScope) -> Option<Item> {
    let is_of = |tenant: &str| match scope {
        BackupScope::Cluster => true,
        BackupScope::Tenant(name) => name == tenant,
        BackupScope::Topic(_) => false,
    };
    let item = match stored.key.parse() {
        Ok(Key::Token(id)) => record::decode::<v1::TokenRecord>(stored).map(|token| {
            let is_of = is_of(&token.tenant);
            let token = Some(token);
            is_of.then_some(Item::Token(v1::BackupToken { id, token }))
        }),
        Ok(Key::Grant(tenant, id)) => record::decode::<v1::GrantRecord>(stored).map(|grant| {
            let grant = Some(grant);
            let item = Item::Grant(v1::BackupGrant { id, grant });
            is_of(&tenant.unwrap_or_default()).then_some(item)
        }),
        Ok(Key::Role(tenant, name)) => record::decode::<v1::RoleRecord>(stored).map(|role| {
            let tenant = tenant.unwrap_or_default();
            let (is_of, role) = (is_of(&tenant), Some(role));
            is_of.then_some(Item::Role(v1::BackupRole { name, tenant, role }))
        }),
        Ok(Key::Revocation(id)) => {
            record::decode::<v1::RevocationRecord>(stored).map(|revocation| {
                let revocation = Some(revocation);
                let item = Item::Revocation(v1::BackupRevocation { id, revocation });
                matches!(scope, BackupScope::Cluster).then_some(item)
            })
        }
        _ => Ok(None),
    };
    item.unwrap_or_else(|error| {
        tracing::warn!(key = stored.key, %error, "a token or a grant is not in the backup");
        None
    })
}
