//! Changes of roles that are not built in.
//!
//! Invariants:
//! - A role has only what a caller may give that may grant in its scope. Such a caller may
//!   therefore change it, whatever grants name it.
//! - No grant names a role that is not there. A role is marked before its grants are looked for,
//!   and a grant is written only while the role is as it was without a mark.

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::record::{self, Record as _};
use aquifer_metadata::scan;
use aquifer_metadata::store::{
    Expect, Guard as KeyGuard, Operation, Revision, Transaction, Versioned,
};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_proto::v1::{GrantRecord, RoleRecord};
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ErrorKind};
use aquifer_protocol_api::scope::GrantScope;
use aquifer_protocol_api::security::{RoleInfo, RoleName};

use crate::error::BrokerError;
use crate::namespace::Namespaces;
use crate::security::Guard;
use crate::security::manage::owner;
use crate::security::own_role::{self, OwnRole, Said};
use crate::security::role::{ActionSet, built_in};

/// Roles of a tenant, or of the cluster: a list has all of them.
const ROLES_MAX: usize = 256;
/// Grants of a role that an error names.
const NAMED_MAX: usize = 3;

impl Guard {
    /// Makes a role. The same again answers the same.
    pub(crate) async fn create_role(
        &self,
        ctx: &RequestContext,
        name: RoleName,
        actions: &[Action],
        namespaces: &Namespaces,
    ) -> Result<RoleInfo, BrokerError> {
        own_role::check_name(&name.name)
            .map_err(|text| BrokerError::invalid(text, "choose another name"))?;
        let actions = parse(actions)?;
        let of = name.tenant.as_deref();
        self.records.check_room(of)?;
        let count = self.records.read(|state| state.roles_of(of).count());
        if count >= ROLES_MAX {
            return Err(BrokerError::Quota {
                limit: "roles",
                what: "roles",
                scope: name.tenant.unwrap_or_else(|| "the cluster".to_owned()),
                used: count as u64,
                max: ROLES_MAX as u64,
            });
        }
        let tenant = namespaces.taking_access(name.tenant.as_deref()).await?;
        let role = OwnRole {
            name,
            actions,
            created_ms: self.clock.wall_ms(),
            created_by: ctx.principal.name().to_owned(),
            deleting: false,
        };
        self.put_role(
            ctx,
            "create_role",
            &tenant,
            role.name.clone(),
            |found| match found {
                None => Ok(role.clone()),
                Some(found)
                    if found.actions == actions
                        && found.created_by == role.created_by
                        && !found.deleting =>
                {
                    Ok(found)
                }
                Some(_) => Err(BrokerError::AlreadyExists {
                    what: RoleRecord::NAME,
                    name: role.name.name.clone(),
                }),
            },
        )
        .await
    }

    /// Gives a role other actions. One whose deletion was given up takes part in grants again.
    pub(crate) async fn update_role(
        &self,
        ctx: &RequestContext,
        name: RoleName,
        actions: &[Action],
    ) -> Result<RoleInfo, BrokerError> {
        let actions = parse(actions)?;
        let absent = no_role(&name);
        self.put_role(ctx, "update_role", &[], name, |found| {
            let found = found.ok_or_else(|| absent.clone())?;
            Ok(OwnRole {
                actions,
                deleting: false,
                ..found
            })
        })
        .await
    }

    /// The roles that grants in a tenant, or in the cluster, may give.
    pub(crate) fn list_roles(&self, tenant: Option<&str>) -> Vec<RoleInfo> {
        self.records.read(|state| {
            let of_tenant = tenant.map(|tenant| state.roles_of(Some(tenant)));
            let own = state.roles_of(None).chain(of_tenant.into_iter().flatten());
            built_in().chain(own.map(OwnRole::info)).collect()
        })
    }

    /// A role.
    pub(crate) fn role(&self, name: &RoleName) -> Result<RoleInfo, BrokerError> {
        let own = self
            .records
            .read(|state| state.role(name).map(OwnRole::info));
        let built_in = || built_in().find(|role| role.name.name == name.name);
        own.or_else(built_in).ok_or_else(|| no_role(name))
    }

    /// Deletes a role that no grant names.
    pub(crate) async fn delete_role(
        &self,
        ctx: &RequestContext,
        name: &RoleName,
    ) -> Result<(), BrokerError> {
        let marked = self.mark_role(name, true).await?;
        let naming = self.naming(name).await?;
        if !naming.is_empty() {
            self.mark_role(name, false).await?;
            return Err(in_use(name, &naming));
        }
        let operations = vec![Operation::Delete {
            key: own_role::key(name),
            expect: Expect::Revision(marked),
        }];
        let deleted = self.records.store().commit(Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations,
        });
        let deleted = deleted.await?;
        let (of, said) = (owner(name.tenant.as_deref()), Said(name).to_string());
        self.changed(ctx, "delete_role", &of, &said, Some(deleted))
            .await;
        Ok(())
    }

    /// What a role that is not built in comes to, and what holds as long as it may be given: that
    /// of the scope's tenant, or else of the cluster. `None`: there is no such role.
    pub(super) async fn given_role(
        &self,
        name: &str,
        scope: &GrantScope,
    ) -> Result<Option<(OwnRole, KeyGuard)>, BrokerError> {
        let tenant = scope.tenant().filter(|tenant| !tenant.ends_with('*'));
        let of_tenant = tenant.map(|tenant| Some(tenant.to_owned()));
        for tenant in of_tenant.into_iter().chain([None]) {
            let name = name.to_owned();
            let found = self.stored_role(&RoleName { tenant, name }).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The same of one role.
    pub(super) async fn stored_role(
        &self,
        name: &RoleName,
    ) -> Result<Option<(OwnRole, KeyGuard)>, BrokerError> {
        let key = own_role::key(name);
        let Some(found) = self.records.store().get(&key).await? else {
            return Ok(None);
        };
        let role = read(name.clone(), &found)?;
        if role.deleting {
            let text = format!("the {} is being deleted", Said(name));
            let advice = "delete it again if that has ended, or give another role";
            let error = ApiError::new(ErrorKind::FailedPrecondition, text).advise(advice);
            return Err(error.into());
        }
        let expect = Expect::Revision(found.revision);
        Ok(Some((role, KeyGuard { key, expect })))
    }

    async fn put_role(
        &self,
        ctx: &RequestContext,
        request: &'static str,
        guards: &[KeyGuard],
        name: RoleName,
        change: impl Fn(Option<OwnRole>) -> Result<OwnRole, BrokerError>,
    ) -> Result<RoleInfo, BrokerError> {
        let key = own_role::key(&name);
        let put = self.records.store().update(&key, guards, |stored| {
            let found = stored.as_ref().map(|stored| read(name.clone(), stored));
            let changed = found.transpose().and_then(|found| {
                let role = change(found.clone())?;
                if found.as_ref() == Some(&role) {
                    return Ok(Change::none(role));
                }
                let value = record::encode(role.record());
                Ok(Change::put(keys::CLUSTER_PARTITION, value, role))
            });
            std::future::ready(changed)
        });
        let updated = put.await.map_err(UpdateError::flatten)?;
        let role = updated.answer;
        let names: Vec<&str> = role
            .actions
            .list()
            .iter()
            .map(|action| action.name())
            .collect();
        let said = format!("{} of {}", Said(&role.name), names.join(" "));
        let of = owner(role.name.tenant.as_deref());
        self.changed(ctx, request, &of, &said, updated.applied)
            .await;
        Ok(role.info())
    }

    /// Marks a role for its deletion, or takes the mark back. Answers its revision.
    async fn mark_role(&self, name: &RoleName, deleting: bool) -> Result<Revision, BrokerError> {
        let key = own_role::key(name);
        let marked = self.records.store().update(&key, &[], |stored| {
            let changed = stored.ok_or_else(|| no_role(name)).and_then(|stored| {
                let role = read(name.clone(), &stored)?;
                if role.deleting == deleting {
                    return Ok(Change::none(stored.revision));
                }
                let value = record::encode(OwnRole { deleting, ..role }.record());
                Ok(Change::put(keys::CLUSTER_PARTITION, value, stored.revision))
            });
            std::future::ready(changed)
        });
        let updated = marked.await.map_err(UpdateError::flatten)?;
        Ok(updated.applied.unwrap_or(updated.answer))
    }

    /// The ids of grants that name a role, as they are stored now.
    async fn naming(&self, name: &RoleName) -> Result<Vec<String>, BrokerError> {
        let prefix = match &name.tenant {
            Some(tenant) => keys::grants_prefix(Some(tenant)),
            None => keys::GRANTS_PREFIX.to_owned(),
        };
        let of = name.tenant.clone().unwrap_or_default();
        let look = |all: &mut Vec<String>, found: &Versioned| -> Result<(), BrokerError> {
            // One that is not understood may name it.
            let grant: GrantRecord = record::decode(found)?;
            if grant.role == name.name && grant.role_of.as_ref() == Some(&of) {
                let id = found.key.rsplit('/').next().unwrap_or_default();
                all.push(id.to_owned());
            }
            Ok(())
        };
        let store = self.records.store();
        Ok(scan::each(store, &prefix, Vec::new, look).await?.0)
    }
}

fn parse(actions: &[Action]) -> Result<ActionSet, BrokerError> {
    let checked = own_role::check_actions(actions);
    checked.map_err(|text| BrokerError::invalid(text, "correct the actions"))
}

fn read(name: RoleName, stored: &Versioned) -> Result<OwnRole, BrokerError> {
    let damaged = |reason| MetadataError::Damaged {
        key: stored.key.clone(),
        reason,
    };
    let record = record::decode::<RoleRecord>(stored)?;
    Ok(OwnRole::of(name, record).map_err(damaged)?)
}

fn no_role(name: &RoleName) -> BrokerError {
    BrokerError::NotFound {
        what: RoleRecord::NAME,
        name: name.name.clone(),
        advice: "`aquifer role list` shows the roles; those that are built in do not change"
            .to_owned(),
    }
}

fn in_use(name: &RoleName, naming: &[String]) -> BrokerError {
    let count = naming.len();
    let some = naming.iter().take(NAMED_MAX).map(String::as_str);
    let some = some.collect::<Vec<&str>>().join(", ");
    let text = match count.checked_sub(NAMED_MAX) {
        None | Some(0) => format!("the {} is in use by grants: {some}", Said(name)),
        Some(more) => format!(
            "the {} is in use by grants: {some} and {more} more",
            Said(name)
        ),
    };
    let error = ApiError::new(ErrorKind::FailedPrecondition, text);
    let error = error.advise("remove these grants first: `aquifer grant list` shows them");
    error.into()
}
