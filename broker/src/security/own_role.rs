//! A role that is not built in, as it is decided with and as it is stored.

use std::fmt;

use aquifer_metadata::keys;
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::RoleRecord;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::security::{RoleInfo, RoleName};

use crate::security::role::{ActionSet, is_built_in};

/// What a role may consist of: a principal that may grant in its scope may give all of it.
const ACTIONS: [Action; 4] = [
    Action::Describe,
    Action::Produce,
    Action::Consume,
    Action::Manage,
];
/// A name that no role has, because it would be taken for what no grant gives.
const SUPER_USER: &str = "super-user";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnRole {
    pub(crate) name: RoleName,
    pub(crate) actions: ActionSet,
    pub(crate) created_ms: u64,
    pub(crate) created_by: String,
    /// Whether no grant gives it any more, because it is being deleted.
    pub(crate) deleting: bool,
}

/// The key of a role.
pub(crate) fn key(name: &RoleName) -> String {
    keys::role(name.tenant.as_deref(), &name.name)
}

/// How a role is named in messages.
pub(crate) struct Said<'a>(pub(crate) &'a RoleName);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RoleName { tenant, name } = self.0;
        match tenant {
            Some(tenant) => write!(f, "role {name} of tenant {tenant}"),
            None => write!(f, "role {name} of the cluster"),
        }
    }
}

/// Whether a role may have this name; says why not.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if is_built_in(name) || name == SUPER_USER {
        return Err(format!("the name {name} is kept: it has a meaning already"));
    }
    let legal = NamespaceName::new(name, "x");
    legal
        .map(drop)
        .map_err(|error| error.to_string().replace("tenant", "the name of a role"))
}

/// Whether a role may consist of these actions; says why not.
pub(crate) fn check_actions(actions: &[Action]) -> Result<ActionSet, String> {
    match actions.iter().all(|action| ACTIONS.contains(action)) && !actions.is_empty() {
        true => Ok(ActionSet::of(actions)),
        false => Err("a role is at least one of describe, produce, consume, manage".to_owned()),
    }
}

impl OwnRole {
    /// The role of a record. One that is not understood in every part gives nothing.
    pub(crate) fn of(name: RoleName, record: RoleRecord) -> Result<OwnRole, String> {
        let actions = record.actions.iter().map(|name| {
            Action::granted(name).ok_or_else(|| format!("the action {name:?} is not known"))
        });
        let actions = actions.collect::<Result<Vec<Action>, String>>()?;
        Ok(OwnRole {
            name,
            actions: check_actions(&actions)?,
            created_ms: record.created_ms,
            created_by: record.created_by,
            deleting: record.deleting,
        })
    }

    /// The record of a role.
    pub(crate) fn record(&self) -> RoleRecord {
        let actions = self.actions.list().into_iter();
        RoleRecord {
            actions: actions.map(|action| action.name().to_owned()).collect(),
            created_ms: self.created_ms,
            created_by: self.created_by.clone(),
            deleting: self.deleting,
        }
    }

    /// What others are told of it.
    pub(crate) fn info(&self) -> RoleInfo {
        RoleInfo {
            name: self.name.clone(),
            actions: self.actions.list(),
            built_in: false,
            created_ms: self.created_ms,
            created_by: self.created_by.clone(),
        }
    }
}

#[test]
fn a_role_survives_its_record_and_an_unknown_or_forbidden_action_gives_nothing() {
    let role = OwnRole {
        name: RoleName {
            tenant: Some("acme".to_owned()),
            name: "reader".to_owned(),
        },
        actions: ActionSet::of(&[Action::Describe, Action::Consume]),
        created_ms: 7,
        created_by: "token:admin".to_owned(),
        deleting: false,
    };
    let read = |record| OwnRole::of(role.name.clone(), record);
    assert_eq!(read(role.record()), Ok(role.clone()));
    for bad in [&["fly"][..], &["describe", "grant"], &["operate"], &[]] {
        let record = RoleRecord {
            actions: bad.iter().map(|name| (*name).to_owned()).collect(),
            ..role.record()
        };
        assert!(read(record).is_err(), "{bad:?}");
    }
    for bad in ["", "a b", "..", "viewer", "super-user", "a/b"] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
    assert_eq!(check_name("order-reader.v2"), Ok(()));
}
