//! A grant as it is decided with, and as it is stored.

use aquifer_proto::v1::GrantRecord;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::scope::{GrantScope, Pattern};
use aquifer_protocol_api::security::GrantInfo;

use crate::security::role::ActionSet;

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) info: GrantInfo,
    pub(crate) actions: ActionSet,
}

impl Grant {
    pub(crate) fn new(info: GrantInfo) -> Grant {
        let actions = ActionSet::of(&info.actions);
        Grant { info, actions }
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self, now_ms: u64) -> bool {
        self.info.expires_ms.is_some_and(|end| end <= now_ms)
    }

    /// The grant of a record. One that is not understood in every part gives nothing.
    pub(crate) fn of(id: &str, record: GrantRecord) -> Result<Grant, String> {
        let actions = record.actions.iter().map(|name| {
            Action::granted(name).ok_or_else(|| format!("the action {name:?} is not known"))
        });
        let actions = actions.collect::<Result<Vec<Action>, String>>()?;
        let scope = GrantScope::new(&record.tenant, &record.namespace, &record.topic);
        let subscriptions = Pattern::of_subscriptions(&record.subscriptions);
        Ok(Grant::new(GrantInfo {
            id: id.to_owned(),
            principal: record.principal,
            role: (!record.role.is_empty()).then_some(record.role),
            actions,
            scope: scope.map_err(|error| error.to_string())?,
            subscriptions: subscriptions.map_err(|error| error.to_string())?,
            created_ms: record.created_ms,
            created_by: record.created_by,
            expires_ms: record.expires_ms,
        }))
    }

    /// The record of a grant.
    pub(crate) fn record(&self) -> GrantRecord {
        let info = &self.info;
        let [tenant, namespace, topic] = info.scope.texts();
        let actions = info.actions.iter();
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
