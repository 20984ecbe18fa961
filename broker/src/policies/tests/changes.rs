//! Whatever is said, taken back and said again, at any level, here or at another broker: a topic in
//! use is shown what [`resolve`] makes of it, and both are what a simple model says.

use aquifer_model::policy::Retention;
use aquifer_model::policy::bounds::BacklogQuota;
use aquifer_model::quorum::Quorum;
use aquifer_proto::v1::{NamespaceRecord, TenantRecord};
use proptest::prelude::*;

use super::*;

/// The policies that change. Of the last one the lowest value is in force, of the others that of
/// the nearest level.
const NAMES: [PolicyName; 6] = [
    PolicyName::Rollover,
    PolicyName::Retention,
    PolicyName::Persistence,
    PolicyName::Deduplication,
    PolicyName::BacklogQuota,
    PolicyName::MessageBytesMax,
];

/// Values that a policy may have: 0 and those below this.
const VALUES: u32 = 3;

/// One policy with the value of a number.
fn numbered(name: PolicyName, value: u32) -> Policies {
    let number = u64::from(value) + 1;
    let mut policies = Policies::default();
    match name {
        PolicyName::Rollover => policies = entries(number),
        PolicyName::Retention => {
            policies.retention = Some(Retention {
                time_ms: Some(number),
                size_bytes: None,
            });
        }
        PolicyName::Persistence => {
            policies.persistence = Some(Quorum::new(value + 1, value + 1, 1).unwrap());
        }
        PolicyName::Deduplication => policies.deduplication = Some(value == 0),
        PolicyName::BacklogQuota => {
            policies.backlog_quota = Some(BacklogQuota {
                bytes: Some(number),
                ..BacklogQuota::default()
            });
        }
        PolicyName::MessageBytesMax => policies.message_bytes_max = Some(number),
        other => unreachable!("{other} does not change"),
    }
    policies
}

/// What one request changes.
#[derive(Debug, Clone)]
struct Step {
    /// 0: the tenant, 1: the namespace, 2: the topic.
    level: usize,
    /// Policies by their places in [`NAMES`], and their values; `None`: unset.
    changes: Vec<(usize, Option<u32>)>,
    /// Whether another broker makes it.
    elsewhere: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..NAMES.len(), prop::option::weighted(0.7, 0..VALUES));
    let changes = prop::collection::vec(change, 1..4);
    let step = (0..3usize, changes, any::<bool>());
    step.prop_map(|(level, changes, elsewhere)| Step {
        level,
        changes,
        elsewhere,
    })
}

impl Step {
    /// The change as a request. The last one of a policy counts.
    fn update(&self) -> PolicyUpdate {
        let mut update = PolicyUpdate::default();
        for (at, value) in &self.changes {
            let name = NAMES[*at];
            update.set.unset(name);
            update.unset.retain(|other| *other != name);
            match value {
                Some(value) => update.set = numbered(name, *value).or(update.set),
                None => update.unset.push(name),
            }
        }
        update
    }
}

/// What each level says of each of [`NAMES`], the tenant first.
type Model = [[Option<u32>; NAMES.len()]; 3];

/// What is in force under the first levels of a model.
fn in_force(model: &Model, levels: usize) -> EffectivePolicies {
    let mut effective = Policies::from(EffectivePolicies::default());
    for (at, name) in NAMES.into_iter().enumerate() {
        let mut said = model[..levels].iter().filter_map(|level| level[at]);
        let value = match name {
            PolicyName::MessageBytesMax => said.min(),
            _ => said.next_back(),
        };
        if let Some(value) = value {
            effective = numbered(name, value).or(effective);
        }
    }
    EffectivePolicies::try_from(effective).unwrap()
}

/// What levels say, as [`resolve`] takes it.
fn levels(model: &Model, scopes: &[PolicyScope]) -> Vec<(Level, Policies)> {
    let says = |said: &[Option<u32>; NAMES.len()]| {
        let said = NAMES.iter().zip(said);
        said.filter_map(|(name, value)| Some(numbered(*name, (*value)?)))
            .fold(Policies::default(), Policies::or)
    };
    let scopes = scopes.iter().zip(model);
    scopes
        .map(|(scope, said)| (scope.level(), says(said)))
        .collect()
}

/// A tenant, a namespace and a topic.
async fn create(store: &dyn MetadataStore, scopes: &[PolicyScope]) {
    for scope in scopes {
        let (key, value) = match scope {
            PolicyScope::Tenant(name) => {
                (keys::tenant(name), record::encode(TenantRecord::default()))
            }
            PolicyScope::Namespace(name) => {
                let value = record::encode(NamespaceRecord::default());
                (keys::namespace(name), value)
            }
            PolicyScope::Topic(name) => (keys::topic(name), record::encode(TopicRecord::default())),
        };
        let home = keys::partition_of_policies(scope);
        store.put(&home, &key, value, Expect::Absent).await.unwrap();
    }
}

async fn is_shown(receiver: &mut watch::Receiver<EffectivePolicies>, expected: EffectivePolicies) {
    let seen = receiver.wait_for(|now| *now == expected);
    let seen = clock::timeout(Duration::from_secs(30), seen).await;
    seen.expect("the watch brings it").unwrap();
}

/// Changes policies, and looks after each round what topics in use are shown.
async fn follow(history_events: usize, rounds: &[Vec<Step>]) {
    let tasks = TaskGroup::new("test");
    let store = store(&tasks, history_events).await;
    let scopes = PolicyScope::Topic(topic("orders")).path();
    create(&*store, &scopes).await;
    let defaults = EffectivePolicies::default();
    let table = || PolicyTable::start(Arc::clone(&store), defaults, &tasks);
    let (here, elsewhere) = (table(), table());
    let mut orders = here.of_topic(&topic("orders")).await.unwrap();
    let mut sibling = here.of_topic(&topic("sibling")).await.unwrap();
    let mut model = Model::default();
    for round in rounds {
        for step in round {
            let table = if step.elsewhere { &elsewhere } else { &here };
            let (scope, said) = (&scopes[step.level], &mut model[step.level]);
            step.changes
                .iter()
                .for_each(|(at, value)| said[*at] = *value);
            let view = table.update(scope, &step.update()).await.unwrap();
            assert_eq!(view.effective, in_force(&model, step.level + 1), "{step:?}");
        }
        let (effective, origins) = resolve(defaults, &levels(&model, &scopes));
        assert_eq!(effective, in_force(&model, 3), "{model:?}");
        is_shown(&mut orders, effective).await;
        is_shown(&mut sibling, in_force(&model, 2)).await;
        let view = elsewhere.view(&scopes[2]).await.unwrap();
        assert_eq!((view.effective, view.origins), (effective, origins));
    }
    tasks.drain(Duration::from_secs(30)).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_topic_in_use_is_shown_the_outcome_of_any_changes(
        rounds in prop::collection::vec(prop::collection::vec(step(), 1..4), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(follow(1_000, &rounds));
    }
}

/// A watch that lost history begins again after a pause, and misses nothing.
#[tokio::test]
async fn a_watch_that_lost_history_shows_the_outcome_too() {
    let said = |level, value| Step {
        level,
        changes: (0..NAMES.len()).map(|at| (at, value)).collect(),
        elsewhere: true,
    };
    let rounds = [
        vec![said(0, Some(0)), said(1, Some(1)), said(2, Some(2))],
        vec![said(2, None), said(0, Some(2))],
        vec![said(1, None), said(2, Some(0)), said(0, None)],
    ];
    follow(1, &rounds).await;
}
