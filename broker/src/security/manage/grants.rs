//! Changes of grants.

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys;
use aquifer_metadata::record::{self, Record as _};
use aquifer_metadata::store::{Expect, Guard as KeyGuard, Operation, Transaction, Versioned};
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::GrantRecord;
use aquifer_protocol_api::access::Resource;
use aquifer_protocol_api::admin::{Page, PageRequest};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::scope::GrantScope;
use aquifer_protocol_api::security::{AddGrant, Given, GrantInfo};
use aquifer_runtime::secret;

use crate::error::BrokerError;
use crate::namespace::Namespaces;
use crate::security::decide::{Target, covers};
use crate::security::grant::Grant;
use crate::security::manage::{drawn_id, end_of, half, limit_of};
use crate::security::role::{ActionSet, actions_of, check_actions, is_built_in};
use crate::security::{Guard, principal, token};

impl Guard {
    /// Lets a principal do something.
    pub(crate) async fn add_grant(
        &self,
        ctx: &RequestContext,
        add: AddGrant,
        namespaces: &Namespaces,
    ) -> Result<GrantInfo, BrokerError> {
        let wrong = |text: String| BrokerError::invalid(text, "correct the grant");
        principal::check_grantee(&add.principal).map_err(|text| wrong(text.to_owned()))?;
        let mut guards = Vec::new();
        let mut own_role = None;
        let (role, actions) = match &add.given {
            Given::Role(role) if !is_built_in(role) => {
                match self.given_role(role, &add.scope).await? {
                    Some((found, holds)) => {
                        guards.push(holds);
                        own_role = Some(found.name);
                        (None, found.actions)
                    }
                    None => (None, actions_of(role, &add.scope).map_err(wrong)?),
                }
            }
            Given::Role(role) => (
                Some(role.clone()),
                actions_of(role, &add.scope).map_err(wrong)?,
            ),
            Given::Actions(actions) => (None, ActionSet::of(actions)),
        };
        check_actions(actions, &add.scope).map_err(wrong)?;
        self.check_may_give(ctx, actions, &add.scope)?;
        let of_token = principal::tenant_of(&add.principal);
        let elsewhere = of_token.filter(|of| Some(*of) != add.scope.tenant());
        guards.extend(namespaces.taking_grantees(elsewhere).await?);
        guards.extend(namespaces.taking_access(add.scope.tenant()).await?);
        self.records.check_room(add.scope.tenant())?;
        let now = self.clock.wall_ms();
        let id = match add.request_id {
            Some(request) => id_of_request(ctx.principal.name(), &request),
            None => token::id_of(drawn_id()?),
        };
        let grant = Grant::new(GrantInfo {
            id,
            principal: add.principal,
            role,
            actions: actions.list(),
            scope: add.scope,
            subscriptions: add.subscriptions,
            created_ms: now,
            created_by: ctx.principal.name().to_owned(),
            expires_ms: end_of(now, add.lifetime_ms)?,
        });
        let grant = match own_role {
            None => grant,
            Some(role) => grant.of_role(role, actions),
        };
        self.put_grant(ctx, &grant, &guards, namespaces).await
    }

    /// Writes a grant. One in a namespace that goes at the same time is taken back: what a
    /// namespace's deletion has looked for already would stay for the next of its name.
    async fn put_grant(
        &self,
        ctx: &RequestContext,
        grant: &Grant,
        guards: &[KeyGuard],
        namespaces: &Namespaces,
    ) -> Result<GrantInfo, BrokerError> {
        let within = namespace_of(&grant.info.scope);
        let was_there = match &within {
            Some(within) => namespaces.is_taking(within).await?,
            None => false,
        };
        let key = keys::grant(grant.info.scope.tenant(), &grant.info.id);
        let value = record::encode(grant.record());
        let partition = keys::CLUSTER_PARTITION;
        let added = self.records.store().update(&key, guards, |stored| {
            let added = match stored {
                None => Ok(Change::put(partition, value.clone(), grant.clone())),
                Some(stored) => repeated(grant, &stored).map(Change::none),
            };
            std::future::ready(added)
        });
        let updated = added.await.map_err(UpdateError::flatten)?;
        let grant = updated.answer;
        let (of, said) = (scope_of(&grant), grant_said(&grant));
        self.changed(ctx, "add_grant", &of, &said, updated.applied)
            .await;
        let stays = match &within {
            Some(within) if was_there => namespaces.is_taking(within).await,
            _ => Ok(true),
        };
        match stays {
            Ok(true) => Ok(grant.info),
            gone => {
                self.delete_grant(ctx, &key, &grant).await?;
                gone?;
                Err(BrokerError::NotFound {
                    what: "namespace",
                    name: grant.info.scope.to_string(),
                    advice: "it was deleted meanwhile: create it again first".to_owned(),
                })
            }
        }
    }

    async fn delete_grant(
        &self,
        ctx: &RequestContext,
        key: &str,
        grant: &Grant,
    ) -> Result<(), BrokerError> {
        let deleted = self.records.store().commit(Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations: vec![Operation::Delete {
                key: key.to_owned(),
                expect: Expect::Any,
            }],
        });
        let deleted = deleted.await?;
        let (of, said) = (scope_of(grant), grant_said(grant));
        self.changed(ctx, "remove_grant", &of, &said, Some(deleted))
            .await;
        Ok(())
    }

    /// A page of the grants of a scope and within it. Its places are keys, without what begins all
    /// of them.
    pub(crate) fn list_grants(
        &self,
        scope: &GrantScope,
        principal: Option<&str>,
        page: &PageRequest,
    ) -> Result<Page<GrantInfo>, BrokerError> {
        let limit = limit_of(page);
        let after = page
            .after
            .as_ref()
            .map(|after| format!("{}{after}", keys::AUTH_PREFIX));
        Ok(self.records.read(|state| {
            let within = |grant: &Grant| {
                let inner = Resource::Scope(grant.info.scope.clone());
                Target::of(&inner).is_some_and(|inner| covers(scope, &inner))
            };
            let of = |grant: &Grant| principal.is_none_or(|name| grant.info.principal == name);
            let all = state.grants_after(after.as_deref());
            let mut found = all.filter(|(_, grant)| of(grant) && within(grant));
            let mut items = Vec::new();
            let mut last = None;
            for (key, grant) in found.by_ref().take(limit) {
                items.push(grant.info.clone());
                last = key.strip_prefix(keys::AUTH_PREFIX).map(str::to_owned);
            }
            let next = last.filter(|_| found.next().is_some());
            Page { items, next }
        }))
    }

    /// Takes a grant away.
    pub(crate) async fn remove_grant(
        &self,
        ctx: &RequestContext,
        id: &str,
        scope: &GrantScope,
    ) -> Result<(), BrokerError> {
        let key = keys::grant(scope.tenant(), id);
        let known = self.records.read(|state| state.grant(&key).cloned());
        if let Some(grant) = &known {
            self.check_may_give(ctx, grant.actions, &grant.info.scope)?;
        }
        let partition = keys::CLUSTER_PARTITION;
        let removed = self.records.store().update(&key, &[], |stored| {
            std::future::ready(match stored {
                None => Err(BrokerError::NotFound {
                    what: "grant",
                    name: id.to_owned(),
                    advice: "list the grants of the scope".to_owned(),
                }),
                Some(_) => Ok(Change::delete(partition, ())),
            })
        });
        let updated = removed.await.map_err(UpdateError::flatten)?;
        let (of, said) = match &known {
            Some(grant) => (scope_of(grant), grant_said(grant)),
            None => (Resource::Scope(scope.clone()), format!("grant {id}")),
        };
        self.changed(ctx, "remove_grant", &of, &said, updated.applied)
            .await;
        Ok(())
    }
}

/// The one namespace that a scope is in.
fn namespace_of(scope: &GrantScope) -> Option<NamespaceName> {
    let [tenant, namespace, _] = scope.texts();
    // No name of a namespace has a star.
    NamespaceName::new(&tenant, &namespace).ok()
}

/// The id of the grant that a request of a caller makes, however often it comes.
fn id_of_request(caller: &str, request: &[u8; 16]) -> String {
    let text = [caller.as_bytes(), &[0], request].concat();
    token::id_of(half(secret::sha256(&text)))
}

/// The grant that is there, if it is what is asked for.
fn repeated(wanted: &Grant, stored: &Versioned) -> Result<Grant, BrokerError> {
    let record = record::decode::<GrantRecord>(stored)?;
    let damaged = |reason| MetadataError::Damaged {
        key: stored.key.clone(),
        reason,
    };
    let found = Grant::of(&wanted.info.id, record).map_err(damaged)?;
    let found = match &found.own_role {
        Some(role) if wanted.own_role.as_ref() == Some(role) => {
            let role = role.clone();
            found.of_role(role, wanted.actions)
        }
        _ => found,
    };
    let as_wanted = GrantInfo {
        created_ms: wanted.info.created_ms,
        expires_ms: wanted.info.expires_ms,
        ..found.info.clone()
    };
    match as_wanted == wanted.info && found.own_role == wanted.own_role {
        true => Ok(found),
        false => Err(BrokerError::AlreadyExists {
            what: GrantRecord::NAME,
            name: wanted.info.id.clone(),
        }),
    }
}

pub(super) fn scope_of(grant: &Grant) -> Resource {
    Resource::Scope(grant.info.scope.clone())
}

pub(super) fn grant_said(grant: &Grant) -> String {
    let info = &grant.info;
    let names: Vec<&str> = info.actions.iter().map(|action| action.name()).collect();
    let (principal, scope, names) = (&info.principal, &info.scope, names.join(" "));
    format!("grant {} to {principal} of {names} on {scope}", info.id)
}
