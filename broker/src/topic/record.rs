//! The record of a topic: found, or created by use where the namespace lets it; and whether a
//! partition exists, which only the record of its partitioned topic says.

use std::sync::Arc;

use aquifer_log::TopicRecordCell;
use aquifer_log::error::LogError;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::error::ApiError;

use crate::bundle::ownership::Owned;
use crate::context::Context;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;

/// Whether topics of a name's namespace are created by use.
async fn may_create(shared: &Context, name: &TopicName) -> Result<bool, BrokerError> {
    let policies = shared.namespaces.policies();
    let policies = policies.of_namespace(name.namespace()).await?;
    Ok(policies.auto_create_topics)
}

/// The record of a topic that exists, or that may be created now.
pub(crate) async fn find_or_create(
    shared: &Arc<Context>,
    name: &TopicName,
    create: &Create,
    owned: &Owned,
) -> Result<Arc<TopicRecordCell>, BrokerError> {
    let guards = vec![owned.guard.clone()];
    let ctx = || Arc::clone(&shared.log);
    // A partition of a topic that is gone, or being deleted, is gone with it.
    let base = match name.partition() {
        Some(_) => Some(check_partition(shared, name).await?),
        None => None,
    };
    if let Some(cell) = TopicRecordCell::load(ctx(), name, guards.clone()).await? {
        return match cell.is_deleting() {
            true => Err(BrokerError::Deleted(name.to_string())),
            false => Ok(cell),
        };
    }
    // What is only looked at is never created.
    if !create.is_allowed() || base.is_none() && !may_create(shared, name).await? {
        return Err(BrokerError::no_topic(name));
    }
    let namespace = shared.namespaces.taking_topics(name.namespace()).await?;
    if base.is_none() {
        shared.check_topics(name, 0).await?;
    }
    let recorded = create.begins(name);
    let created = match &base {
        Some(base) => TopicRecordCell::create_partition(ctx(), name, guards.clone(), base).await,
        None => {
            let none = TopicRanges::default();
            TopicRecordCell::create_while_holds(ctx(), name, none, guards.clone(), namespace).await
        }
    };
    if let Some(recorded) = recorded {
        let created = created.as_ref().map(drop);
        recorded.ended(&created.map_err(|error| ApiError::from(BrokerError::from(error.clone()))));
    }
    match created {
        Ok(cell) => {
            tracing::info!(topic = %name, "topic created");
            Ok(cell)
        }
        Err(LogError::AlreadyExists) => TopicRecordCell::load(ctx(), name, guards)
            .await?
            .ok_or_else(|| BrokerError::no_topic(name)),
        Err(error) => Err(error.into()),
    }
}

/// A partition exists if its partitioned topic says so, whether its own record was written yet or
/// not; it is never created for itself. Answers the record of the topic.
pub(crate) async fn check_partition(
    shared: &Arc<Context>,
    name: &TopicName,
) -> Result<Arc<TopicRecordCell>, BrokerError> {
    let base = name.base();
    let cell = TopicRecordCell::load(Arc::clone(&shared.log), &base, Vec::new()).await?;
    let Some(cell) = cell else {
        return Err(BrokerError::NotFound {
            what: "partitioned topic",
            name: base.to_string(),
            advice: "create the topic with partitions first; names that end in -partition-N are \
                     kept for them"
                .to_owned(),
        });
    };
    let ranges = cell.ranges();
    if cell.is_deleting() {
        return Err(BrokerError::Deleted(name.to_string()));
    }
    if ranges.is_empty() {
        return Err(BrokerError::invalid(
            format!("{base} is not partitioned, so it has no partition"),
            "use the topic itself",
        ));
    }
    let has = |number| ranges.contains(number);
    match name.partition().is_some_and(has) {
        true => Ok(cell),
        false => Err(BrokerError::NotFound {
            what: "partition",
            name: name.to_string(),
            advice: format!("{base} has partitions {}", numbers(&ranges)),
        }),
    }
}

/// Refuses what only a partition can do.
pub(crate) fn partitioned(name: &TopicName, ranges: &TopicRanges) -> BrokerError {
    BrokerError::invalid(
        format!("{name} is partitioned: it stores nothing itself"),
        format!(
            "use its partitions, such as {}, with numbers {}; the SDK does so when it describes \
             the topic first",
            name.partition_name(ranges.all().first().map_or(0, |range| range.number)),
            numbers(ranges)
        ),
    )
}

/// The lowest and the highest number of a partition, for people.
fn numbers(ranges: &TopicRanges) -> String {
    match ranges.all() {
        [] => "none".to_owned(),
        [only] => only.number.to_string(),
        [first, .., last] => format!("{} to {}", first.number, last.number),
    }
}
