//! Sets of actions, and the roles that are built in.

use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::scope::GrantScope;
use aquifer_protocol_api::security::{RoleInfo, RoleName};

/// Actions that a grant gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ActionSet(u8);

impl ActionSet {
    /// These, as far as a grant can give them.
    pub(crate) fn of(actions: &[Action]) -> ActionSet {
        ActionSet(actions.iter().fold(0, |set, action| set | bit(*action)))
    }

    pub(crate) fn has(self, action: Action) -> bool {
        self.0 & bit(action) != 0
    }

    /// In the order of [`Action::GRANTED`].
    pub(crate) fn list(self) -> Vec<Action> {
        let all = Action::GRANTED.into_iter();
        all.filter(|action| self.has(*action)).collect()
    }
}

fn bit(action: Action) -> u8 {
    match action {
        Action::Describe => 1,
        Action::Produce => 2,
        Action::Consume => 4,
        Action::Manage => 8,
        Action::Grant => 16,
        Action::Operate => 32,
        Action::Audit => 64,
        Action::Use | Action::List | Action::Authenticate => 0,
    }
}

/// Where a role may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Anywhere,
    Cluster,
    Tenants,
    Namespaces,
    TenantsAndCluster,
}

/// A role that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role {
    name: &'static str,
    actions: &'static [Action],
    given: Where,
}

/// The roles. Super-users are configured and no role.
const ROLES: [Role; 8] = {
    use Action::{Audit, Consume, Describe, Grant, Manage, Operate, Produce};
    const fn role(name: &'static str, actions: &'static [Action], given: Where) -> Role {
        Role {
            name,
            actions,
            given,
        }
    }
    [
        role("viewer", &[Describe], Where::Anywhere),
        role("producer", &[Describe, Produce], Where::Anywhere),
        role("consumer", &[Describe, Consume], Where::Anywhere),
        role(
            "developer",
            &[Describe, Produce, Consume, Manage],
            Where::Anywhere,
        ),
        role(
            "namespace-admin",
            &[Describe, Manage, Grant],
            Where::Namespaces,
        ),
        role("tenant-admin", &[Describe, Manage, Grant], Where::Tenants),
        role("operator", &[Describe, Operate], Where::Cluster),
        role("auditor", &[Audit], Where::TenantsAndCluster),
    ]
};

/// Whether a role of this name is built in.
pub(crate) fn is_built_in(name: &str) -> bool {
    ROLES.iter().any(|role| role.name == name)
}

/// The roles that are built in, as they are listed.
pub(crate) fn built_in() -> impl Iterator<Item = RoleInfo> {
    ROLES.iter().map(|role| RoleInfo {
        name: RoleName {
            tenant: None,
            name: role.name.to_owned(),
        },
        actions: ActionSet::of(role.actions).list(),
        built_in: true,
        created_ms: 0,
        created_by: String::new(),
    })
}

/// What a role that is built in comes to in a scope; says why not.
pub(crate) fn actions_of(name: &str, scope: &GrantScope) -> Result<ActionSet, String> {
    let Some(role) = ROLES.iter().find(|role| role.name == name) else {
        let names: Vec<&str> = ROLES.iter().map(|role| role.name).collect();
        let names = names.join(", ");
        let own = "and those that were created, which `aquifer role list` shows";
        return Err(format!(
            "there is no role {name:?}: the roles are {names}, {own}"
        ));
    };
    let [tenant, namespace, topic] = scope.parts().map(|part| part.is_some());
    let fits = match role.given {
        Where::Anywhere => true,
        Where::Cluster => !tenant,
        Where::Tenants => tenant && !namespace,
        Where::Namespaces => namespace && !topic,
        Where::TenantsAndCluster => !namespace,
    };
    match fits {
        true => Ok(ActionSet::of(role.actions)),
        false => Err(format!("the role {name} is not given for a {scope}")),
    }
}

/// Whether single actions may be given in a scope; says why not.
pub(crate) fn check_actions(actions: ActionSet, scope: &GrantScope) -> Result<(), String> {
    let [tenant, namespace, _] = scope.parts().map(|part| part.is_some());
    if actions == ActionSet::default() {
        return Err("a grant gives at least one action".to_owned());
    }
    if actions.has(Action::Operate) && tenant {
        return Err("operate is given for the cluster only".to_owned());
    }
    if actions.has(Action::Audit) && namespace {
        return Err("audit is given for the cluster or a tenant only".to_owned());
    }
    Ok(())
}

#[test]
fn roles_are_given_where_they_mean_something() {
    let scope = |tenant, namespace, topic| GrantScope::new(tenant, namespace, topic).unwrap();
    let cluster = scope("", "", "");
    let admin = actions_of("tenant-admin", &scope("acme", "", "")).unwrap();
    assert!(admin.has(Action::Manage) && admin.has(Action::Grant));
    assert!(!admin.has(Action::Produce) && !admin.has(Action::Consume));
    assert!(actions_of("tenant-admin", &cluster).is_err());
    assert!(actions_of("operator", &scope("acme", "", "")).is_err());
    assert!(actions_of("super-user", &cluster).is_err());
    assert!(actions_of("consumer", &scope("acme", "shop", "o*")).is_ok());
    let operate = ActionSet::of(&[Action::Operate]);
    assert!(check_actions(operate, &cluster).is_ok());
    assert!(check_actions(operate, &scope("acme", "", "")).is_err());
    assert!(check_actions(ActionSet::default(), &cluster).is_err());
    assert_eq!(ActionSet::of(&Action::GRANTED).list(), Action::GRANTED);
}
