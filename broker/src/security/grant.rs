//! A grant as it is decided with, and as it is stored.

use aquifer_proto::v1::GrantRecord;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::scope::{GrantScope, Pattern};
use aquifer_protocol_api::security::{GrantInfo, RoleName};

use crate::security::role::ActionSet;

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) info: GrantInfo,
    pub(crate) actions: ActionSet,
    /// The role that says the actions; `None`: the grant itself does.
    pub(crate) own_role: Option<RoleName>,
}

impl Grant {
    pub(crate) fn new(info: GrantInfo) -> Grant {
        let actions = ActionSet::of(&info.actions);
        Grant {
            info,
            actions,
            own_role: None,
        }
    }

    /// The same of a role that is not built in, whose actions are these.
    pub(crate) fn of_role(self, role: RoleName, actions: ActionSet) -> Grant {
        Grant {
            info: GrantInfo {
                role: Some(role.name.clone()),
                actions: actions.list(),
                ..self.info
            },
            actions,
            own_role: Some(role),
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self, now_ms: u64) -> bool {
        self.info.expires_ms.is_some_and(|end| end <= now_ms)
    }

    /// The grant of a record, without actions if a role that is not built in says them. One that is
    /// not understood in every part gives nothing.
    pub(crate) fn of(id: &str, record: GrantRecord) -> Result<Grant, String> {
        let actions = record.actions.iter().map(|name| {
            Action::granted(name).ok_or_else(|| format!("the action {name:?} is not known"))
        });
        let actions = actions.collect::<Result<Vec<Action>, String>>()?;
        let scope = GrantScope::new(&record.tenant, &record.namespace, &record.topic);
        let subscriptions = Pattern::of_subscriptions(&record.subscriptions);
        let scope = scope.map_err(|error| error.to_string())?;
        let own_role = match record.role_of {
            None => None,
            Some(tenant) => {
                let tenant = (!tenant.is_empty()).then_some(tenant);
                let fits = tenant.is_none() || tenant.as_deref() == scope.tenant();
                if !fits || !actions.is_empty() || record.role.is_empty() {
                    return Err("its role is not one of its scope".to_owned());
                }
                let name = record.role.clone();
                Some(RoleName { tenant, name })
            }
        };
        let grant = Grant::new(GrantInfo {
            id: id.to_owned(),
            principal: record.principal,
            role: (!record.role.is_empty()).then_some(record.role),
            actions,
            scope,
            subscriptions: subscriptions.map_err(|error| error.to_string())?,
            created_ms: record.created_ms,
            created_by: record.created_by,
            expires_ms: record.expires_ms,
        });
        Ok(Grant { own_role, ..grant })
    }

    /// The record of a grant.
    pub(crate) fn record(&self) -> GrantRecord {
        let info = &self.info;
        let [tenant, namespace, topic] = info.scope.texts();
        let actions = match &self.own_role {
            None => info.actions.as_slice(),
            Some(_) => &[],
        };
        let actions = actions.iter();
        let role_of = self.own_role.as_ref();
        GrantRecord {
            principal: info.principal.clone(),
            role: info.role.clone().unwrap_or_default(),
            actions: actions.map(|action| action.name().to_owned()).collect(),
            tenant,
            namespace,
            topic,
            subscriptions: info.subscriptions.to_string(),
            created_ms: info.created_ms,
            created_by: info.created_by.clone(),
            expires_ms: info.expires_ms,
            role_of: role_of.map(|role| role.tenant.clone().unwrap_or_default()),
        }
    }
}

#[test]
fn a_grant_survives_its_record_and_an_unknown_part_gives_nothing() {
    let grant = Grant::new(GrantInfo {
        id: "x".to_owned(),
        principal: "token:a".to_owned(),
        role: Some("consumer".to_owned()),
        actions: vec![Action::Describe, Action::Consume],
        scope: GrantScope::new("acme", "shop", "orders*").unwrap(),
        subscriptions: Pattern::of_subscriptions("billing*").unwrap(),
        created_ms: 7,
        created_by: "token:admin".to_owned(),
        expires_ms: Some(9),
    });
    assert_eq!(Grant::of("x", grant.record()), Ok(grant.clone()));
    assert!(!grant.is_over(8) && grant.is_over(9));
    let changes: [fn(&mut GrantRecord); 4] = [
        |record| record.actions.push("fly".to_owned()),
        |record| record.subscriptions.clear(),
        |record| record.namespace.clear(),
        |record| record.topic = "a*b".to_owned(),
    ];
    for change in changes {
        let mut record = grant.record();
        change(&mut record);
        assert!(Grant::of("x", record.clone()).is_err(), "{record:?}");
    }
}

#[test]
fn a_grant_of_an_own_role_stores_no_actions_and_names_a_role_of_its_scope() {
    let role = RoleName {
        tenant: Some("acme".to_owned()),
        name: "reader".to_owned(),
    };
    let grant = Grant::new(GrantInfo {
        id: "x".to_owned(),
        principal: "token:a".to_owned(),
        role: None,
        actions: Vec::new(),
        scope: GrantScope::new("acme", "shop", "").unwrap(),
        subscriptions: Pattern::any(),
        created_ms: 7,
        created_by: "token:admin".to_owned(),
        expires_ms: None,
    });
    let actions = ActionSet::of(&[Action::Describe, Action::Consume]);
    let given = grant.of_role(role.clone(), actions);
    let record = given.record();
    assert!(record.actions.is_empty(), "{record:?}");
    let read = Grant::of("x", record.clone()).unwrap();
    assert_eq!(read.actions, ActionSet::default());
    assert_eq!(read.of_role(role, actions), given);
    let changes: [fn(&mut GrantRecord); 3] = [
        |record| record.role_of = Some("beta".to_owned()),
        |record| record.actions.push("describe".to_owned()),
        |record| record.role.clear(),
    ];
    for change in changes {
        let mut record = record.clone();
        change(&mut record);
        assert!(Grant::of("x", record.clone()).is_err(), "{record:?}");
    }
}
