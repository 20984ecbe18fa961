//! Administration of subscriptions.
//!
//! A subscription of a partitioned topic is one in each of its partitions. Whichever broker is
//! asked asks the owners of the partitions. Each partition is changed as a whole or not at all, and
//! a repeated request finishes what another began: where the subscription is as requested already,
//! nothing happens. So a failure names the partitions that were changed, and nothing is undone.
//!
//! A change that would do more when it is made a second time (it would give up messages that have
//! come since, or delete a subscription that was created again) is not repeated here once it may
//! have been made: the caller is told that its outcome is unknown.

use std::time::Duration;

use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::subscription::{Properties, check_properties};
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::Clear;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use aquifer_runtime::clock;
use futures::StreamExt;

use crate::api::reach::{Reach, last_word};
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::peers::peer_url;
use crate::security::audit::cause::Create;
use crate::topic::event::Event;
use crate::topics::deletion::{ATTEMPTS_MAX, PARTS_AT_ONCE, RETRY_MAX, RETRY_MIN, parts_of};

/// How often it is looked whether the consumers of a subscription are gone, and the pause between:
/// a session that its client has closed may be counted for a moment.
const LOOKS_MAX: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Runs of partitions that an error names.
const RUNS_MAX: usize = 16;

/// A change of a subscription in one topic or partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change<'a> {
    Create(Place, &'a Properties),
    Delete { force: bool },
    Seek(Place),
    Clear(Clear),
}

impl Change<'_> {
    /// The kind of the answer which says that a partition is as requested already.
    fn is_met_by(self) -> Option<ErrorKind> {
        match self {
            Change::Create(..) => Some(ErrorKind::AlreadyExists),
            Change::Delete { .. } => Some(ErrorKind::NotFound),
            Change::Seek(_) | Change::Clear(_) => None,
        }
    }

    /// Whether it does no more when it is made a second time, however much later.
    fn may_be_repeated(self) -> bool {
        match self {
            Change::Create(..) => true,
            Change::Seek(place) => place != Place::Latest,
            // A second time it would give up what has come since.
            Change::Clear(clear) => clear.dry_run,
            Change::Delete { .. } => false,
        }
    }

    fn place(self) -> Option<Place> {
        match self {
            Change::Create(place, _) | Change::Seek(place) => Some(place),
            Change::Delete { .. } | Change::Clear(_) => None,
        }
    }

    fn done(self) -> &'static str {
        match self {
            Change::Create(..) => "created",
            Change::Delete { .. } => "deleted",
            Change::Seek(_) => "moved",
            Change::Clear(Clear { dry_run: true, .. }) => "looked at",
            Change::Clear(_) => "cleared",
        }
    }
}

impl Broker {
    pub(super) async fn delete_subscription_at(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        force: bool,
        reach: Reach,
    ) -> Result<(), BrokerError> {
        let (change, create) = (Change::Delete { force }, Create::Never);
        let deleted = self.change(topic, subscription, change, &create, reach);
        deleted.await.map(drop)
    }

    pub(super) async fn create_subscription_at(
        &self,
        ctx: &RequestContext,
        topic: &TopicName,
        subscription: &SubscriptionName,
        (place, properties): (Place, &Properties),
    ) -> Result<Index, BrokerError> {
        check_properties(properties).map_err(|error| {
            BrokerError::invalid(error.to_string(), "give fewer or shorter ones, with names")
        })?;
        let create = self.created_by(ctx, "create_subscription");
        let (change, reach) = (Change::Create(place, properties), Reach::of(ctx));
        self.change(topic, subscription, change, &create, reach)
            .await
    }

    pub(super) async fn seek(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        place: Place,
        reach: Reach,
    ) -> Result<Index, BrokerError> {
        let (change, create) = (Change::Seek(place), Create::Never);
        self.change(topic, subscription, change, &create, reach)
            .await
    }

    /// Answers how many messages are given up.
    pub(super) async fn clear(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        clear: Clear,
        reach: Reach,
    ) -> Result<u64, BrokerError> {
        let (change, create) = (Change::Clear(clear), Create::Never);
        let cleared = self.change(topic, subscription, change, &create, reach);
        Ok(cleared.await?.0)
    }

    /// Changes a subscription in a topic, or in all its partitions. Answers its index, or how many
    /// messages are given up, summed over the partitions that were changed.
    async fn change(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        change: Change<'_>,
        create: &Create,
        reach: Reach,
    ) -> Result<Index, BrokerError> {
        let ranges = match topic.partition() {
            Some(_) => TopicRanges::default(),
            None => match self.describe(topic.clone(), create).await {
                // Its owner creates it, with the subscription.
                Err(BrokerError::Elsewhere { .. }) if reach == Reach::Anywhere => {
                    TopicRanges::default()
                }
                described => described?.ranges,
            },
        };
        if ranges.is_empty() {
            return match reach {
                Reach::Here => self.change_here(topic, subscription, change, create).await,
                Reach::Anywhere => {
                    let changed = self.change_anywhere(topic, subscription, change, create);
                    Ok(changed.await?)
                }
            };
        }
        in_one_partition(topic, &ranges, change.place())?;
        if change == (Change::Delete { force: false }) {
            self.check_no_consumer(topic, subscription).await?;
        }
        let parts = futures::stream::iter(parts_of(topic, &ranges)).map(|part| async move {
            // Its creation is part of that of its topic.
            let create = match change {
                Change::Create(..) => Create::For(None),
                Change::Delete { .. } | Change::Seek(_) | Change::Clear(_) => Create::Never,
            };
            let changed = self.change_anywhere(&part, subscription, change, &create);
            let changed = changed.await;
            (part.partition().unwrap_or_default(), changed)
        });
        let changed: Vec<_> = parts.buffer_unordered(PARTS_AT_ONCE).collect().await;
        sum_up(topic, subscription, change, changed)
    }

    /// Changes a subscription of a topic or partition, wherever that is served.
    async fn change_anywhere(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        change: Change<'_>,
        create: &Create,
    ) -> Result<Index, ApiError> {
        let mut pause = RETRY_MIN;
        let mut attempt = 1;
        let mut may_be_done = false;
        loop {
            let changed = match self.change_here(topic, subscription, change, create).await {
                Err(BrokerError::Elsewhere { at, .. }) => {
                    let url = peer_url(&at);
                    self.change_there(url, topic, subscription, change).await
                }
                changed => changed.map_err(ApiError::from),
            };
            match changed {
                Err(error)
                    if error.kind.is_retryable()
                        && attempt < ATTEMPTS_MAX
                        && (error.outcome == Outcome::NotApplied || change.may_be_repeated()) =>
                {
                    tracing::debug!(%topic, %error, "subscription is not changed, trying again");
                    may_be_done |= error.outcome != Outcome::NotApplied;
                }
                // An earlier attempt, whose answer was lost, has done it.
                Err(error) if may_be_done && Some(error.kind) == change.is_met_by() => {
                    return self.begin_of(topic, subscription).await;
                }
                changed => return changed.map_err(last_word),
            }
            attempt += 1;
            clock::sleep(self.shared.rng.jitter(pause)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Where a subscription begins that an attempt has created whose answer was lost.
    async fn begin_of(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
    ) -> Result<Index, ApiError> {
        let stats = self.stats_of(topic, Reach::Anywhere).await?;
        let mut all = stats.subscriptions.iter();
        let found = all.find(|found| found.durable && found.name == subscription.as_str());
        match found {
            Some(found) => Ok(found.mark_delete),
            None => Err(BrokerError::no_subscription(subscription).into()),
        }
    }

    async fn change_here(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        change: Change<'_>,
        create: &Create,
    ) -> Result<Index, BrokerError> {
        let name = || subscription.clone();
        let again = change.may_be_repeated();
        match change {
            Change::Create(place, properties) => {
                let event = |reply| Event::CreateSubscription {
                    name: name(),
                    new: Box::new((place, properties.clone())),
                    reply,
                };
                self.topics.ask(topic, create, event).await
            }
            Change::Delete { force } => {
                let event = |reply| Event::DeleteSubscription {
                    name: name(),
                    force,
                    reply,
                };
                let deleted = self.topics.ask_again_if(again, topic, create, event);
                deleted.await.map(|()| Index(0))
            }
            Change::Seek(place) => {
                let event = |reply| Event::SeekSubscription {
                    name: name(),
                    place,
                    reply,
                };
                let moved = self.topics.ask_again_if(again, topic, create, event);
                moved.await
            }
            Change::Clear(clear) => {
                let cleared = self.clear_here(topic, subscription, clear, again);
                cleared.await.map(Index)
            }
        }
    }

    async fn change_there(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        change: Change<'_>,
    ) -> Result<Index, ApiError> {
        let peers = self.shared.peers().map_err(ApiError::from)?;
        match change {
            Change::Create(place, properties) => {
                peers
                    .create_subscription(url, topic, subscription, place, properties)
                    .await
            }
            Change::Delete { force } => {
                let deleted = peers.delete_subscription(url, topic, subscription, force);
                deleted.await.map(|()| Index(0))
            }
            Change::Seek(place) => {
                peers
                    .seek_subscription(url, topic, subscription, place)
                    .await
            }
            Change::Clear(clear) => {
                let cleared = peers.clear_subscription(url, topic, subscription, clear);
                cleared.await.map(Index)
            }
        }
    }

    /// A subscription that has a consumer in one partition is deleted in none.
    async fn check_no_consumer(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
    ) -> Result<(), BrokerError> {
        for _ in 0..LOOKS_MAX {
            let stats = self.stats_of(topic, Reach::Anywhere).await?;
            let mut all = stats.subscriptions.iter();
            let found = all.find(|found| found.durable && found.name == subscription.as_str());
            if found.is_none_or(|found| found.consumers.is_empty()) {
                return Ok(());
            }
            clock::sleep(LOOK_PAUSE).await;
        }
        Err(BrokerError::InUse(format!("subscription {subscription}")))
    }
}

/// An index or position means nothing in several partitions.
pub(super) fn in_one_partition(
    topic: &TopicName,
    ranges: &TopicRanges,
    place: Option<Place>,
) -> Result<(), BrokerError> {
    match place {
        Some(place @ (Place::Index(_) | Place::Position(_))) if ranges.partitions() > 1 => {
            Err(BrokerError::invalid(
                format!("{place} is a place in one partition, and {topic} has several"),
                format!(
                    "name {}, or give a time, earliest or latest",
                    topic.partition_name(0)
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// What became of the request in all partitions.
fn sum_up(
    topic: &TopicName,
    subscription: &SubscriptionName,
    change: Change,
    changed: Vec<(u32, Result<Index, ApiError>)>,
) -> Result<Index, BrokerError> {
    let (mut sum, mut any_changed) = (Index(0), false);
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    let mut met = None;
    for (number, changed) in changed {
        match changed {
            Ok(index) => {
                sum = Index(sum.0.saturating_add(index.0));
                any_changed = true;
                done.push(number);
            }
            Err(error) if Some(error.kind) == change.is_met_by() => {
                done.push(number);
                met = Some(error.kind);
            }
            Err(error) => failed.push((number, error)),
        }
    }
    if !failed.is_empty() {
        return Err(partial(topic, subscription, change, done, failed).into());
    }
    match met {
        Some(ErrorKind::AlreadyExists) if !any_changed => Err(BrokerError::AlreadyExists {
            what: "subscription",
            name: subscription.to_string(),
        }),
        Some(_) if !any_changed => Err(BrokerError::no_subscription(subscription)),
        _ => Ok(sum),
    }
}

/// The error of a change that was not made in every partition: says where it was made.
fn partial(
    topic: &TopicName,
    subscription: &SubscriptionName,
    change: Change,
    done: Vec<u32>,
    failed: Vec<(u32, ApiError)>,
) -> ApiError {
    let is_unknown = |(_, error): &(u32, ApiError)| error.outcome != Outcome::NotApplied;
    let any_unknown = failed.iter().any(is_unknown);
    let (numbers, errors): (Vec<u32>, Vec<ApiError>) = failed.into_iter().unzip();
    // A failure that a repeated request would meet again says most.
    let says_most = errors.iter().position(|error| !error.kind.is_retryable());
    let mut errors = errors.into_iter();
    let Some(cause) = errors.nth(says_most.unwrap_or(0)) else {
        return ApiError::new(ErrorKind::Internal, "a failure without a cause");
    };
    if done.is_empty() {
        let outcome = match any_unknown {
            true => Outcome::Unknown,
            false => Outcome::NotApplied,
        };
        return cause.outcome(outcome);
    }
    let (is, open) = (runs(done), runs(numbers));
    let what = change.done();
    let text = format!(
        "subscription {subscription} of {topic} is {what} in partitions {is}, and not in {open}: \
         {cause}"
    );
    let advice = match cause.kind.is_retryable() {
        true => "repeat the request: what is done stays, and what is not is tried again".to_owned(),
        false => format!(
            "{}; then repeat the request: what is done stays",
            cause.advice
        ),
    };
    ApiError::new(cause.kind, text)
        .advise(advice)
        .outcome(Outcome::Unknown)
}

/// Numbers as people write them: `0-2, 5`.
fn runs(mut numbers: Vec<u32>) -> String {
    numbers.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 >= number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let more = runs.len().saturating_sub(RUNS_MAX);
    let shown = runs
        .iter()
        .take(RUNS_MAX)
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
    let shown = shown.collect::<Vec<_>>().join(", ");
    match more {
        0 => shown,
        more => format!("{shown} and {more} more runs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summed(change: Change, parts: Vec<Result<u64, ErrorKind>>) -> Result<Index, ApiError> {
        let parts = (0..).zip(parts).map(|(number, part)| {
            let part = part.map(Index);
            (number, part.map_err(|kind| ApiError::new(kind, "no")))
        });
        let topic = "t/n/x".parse().unwrap();
        let name = SubscriptionName::new("s").unwrap();
        sum_up(&topic, &name, change, parts.collect()).map_err(ApiError::from)
    }

    #[test]
    fn what_exists_in_part_is_completed() {
        use ErrorKind::{AlreadyExists, NotFound};
        let properties = Properties::new();
        let create = Change::Create(Place::Earliest, &properties);
        let created = summed(create, vec![Ok(3), Err(AlreadyExists), Ok(4)]);
        assert_eq!(created, Ok(Index(7)));
        let exists = summed(create, vec![Err(AlreadyExists); 2]).unwrap_err();
        assert_eq!(exists.kind, AlreadyExists);
        let delete = Change::Delete { force: true };
        assert_eq!(summed(delete, vec![Err(NotFound), Ok(0)]), Ok(Index(0)));
        let absent = summed(delete, vec![Err(NotFound); 2]).unwrap_err();
        assert_eq!(
            (absent.kind, absent.outcome),
            (NotFound, Outcome::NotApplied)
        );
    }

    #[test]
    fn a_failure_says_where_it_is_done() {
        use ErrorKind::Unavailable;
        let mut parts = vec![Ok(0), Ok(0), Err(Unavailable), Ok(0)];
        let error = summed(Change::Seek(Place::Latest), parts.clone()).unwrap_err();
        assert_eq!((error.kind, error.outcome), (Unavailable, Outcome::Unknown));
        assert!(
            error.message.contains("in partitions 0-1, 3, and not in 2"),
            "{error}"
        );
        assert!(error.advice.contains("repeat"), "{}", error.advice);
        parts.retain(Result::is_err);
        let error = summed(Change::Seek(Place::Latest), parts).unwrap_err();
        assert_eq!(
            (&*error.message, error.outcome),
            ("no", Outcome::NotApplied)
        );
    }

    #[test]
    fn a_list_of_partitions_is_bounded() {
        let odd = runs((0..4_096).filter(|number| number % 2 == 1).collect());
        assert!(
            odd.len() < 200 && odd.ends_with("and 2032 more runs"),
            "{odd}"
        );
        assert_eq!(runs((0..4_096).collect()), "0-4095");
    }
}
