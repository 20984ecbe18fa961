//! What is done to a topic as a whole: unloading, terminating, offload, and the reset of its
//! subscriptions. Of a partitioned topic it is done to each partition: whichever broker is asked
//! asks the owners. All may be repeated: what is done stays done.

use aquifer_model::place::Place;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::stats::{OffloadProgress, TopicEnd};
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::admin::{Reimport, SubscriptionReset};
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use aquifer_runtime::clock;
use futures::StreamExt;

use crate::api::reach::{Reach, last_word};
use crate::api::subscriptions::in_one_partition;
use crate::api::topics::{HOP_PAUSE, HOPS_MAX};
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::peers::peer_url;
use crate::security::audit::cause::Create;
use crate::topic::event::{Event, Life};
use crate::topics::deletion::{PARTS_AT_ONCE, parts_of};

/// Resets that an error names.
const RESETS_NAMED_MAX: usize = 16;

/// What is done to a topic or partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Unload,
    Terminate,
    Offload(Place),
    Reimport(Reimport),
    Reset,
}

impl Step {
    /// Whether another answer says the same. An answer that tells of something once is not lost to
    /// a second question.
    fn is_asked_again(self) -> bool {
        matches!(self, Step::Unload | Step::Terminate)
    }

    /// The places that it names.
    fn places(self) -> [Option<Place>; 2] {
        match self {
            Step::Offload(before) => [Some(before), None],
            Step::Reimport(Reimport::Range { from, to }) => [Some(from), Some(to)],
            Step::Reimport(Reimport::Cancel) | Step::Unload | Step::Terminate | Step::Reset => {
                [None, None]
            }
        }
    }

    /// Whether a partition that was never used has nothing that it is done to.
    fn needs_record(self) -> bool {
        matches!(self, Step::Offload(_) | Step::Reimport(_) | Step::Reset)
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Done {
    unloaded: u32,
    ends: Vec<TopicEnd>,
    left: OffloadProgress,
    reset: Vec<SubscriptionReset>,
}

impl Done {
    fn add(&mut self, other: Done) {
        self.unloaded += other.unloaded;
        self.ends.extend(other.ends);
        self.left.ledgers += other.left.ledgers;
        self.left.bytes += other.left.bytes;
        self.reset.extend(other.reset);
    }
}

impl Broker {
    /// Answers how many topics or partitions were loaded.
    pub(super) async fn unload(&self, topic: &TopicName, reach: Reach) -> Result<u32, BrokerError> {
        Ok(self.each(topic, Step::Unload, reach).await?.unloaded)
    }

    /// Answers where the topic or its partitions end.
    pub(super) async fn terminate(
        &self,
        topic: &TopicName,
        reach: Reach,
    ) -> Result<Vec<TopicEnd>, BrokerError> {
        let mut ends = self.each(topic, Step::Terminate, reach).await?.ends;
        ends.sort_by_key(|end| end.topic.partition());
        Ok(ends)
    }

    /// Answers what is left to offload, of all partitions together.
    pub(super) async fn offload(
        &self,
        topic: &TopicName,
        before: Place,
        reach: Reach,
    ) -> Result<OffloadProgress, BrokerError> {
        Ok(self.each(topic, Step::Offload(before), reach).await?.left)
    }

    /// Answers what is left to bring back to bookies, of all partitions together.
    pub(super) async fn reimport(
        &self,
        topic: &TopicName,
        what: Reimport,
        reach: Reach,
    ) -> Result<OffloadProgress, BrokerError> {
        Ok(self.each(topic, Step::Reimport(what), reach).await?.left)
    }

    /// Answers from where subscriptions go on, partition after partition.
    pub(super) async fn reset(
        &self,
        topic: &TopicName,
        reach: Reach,
    ) -> Result<Vec<SubscriptionReset>, BrokerError> {
        let mut reset = self.each(topic, Step::Reset, reach).await?.reset;
        reset.sort_by_key(|reset| reset.topic.partition());
        Ok(reset)
    }

    /// More partitions split ranges of keys, and who keeps the order of keys must read a part after
    /// the end of what it was split from. Nothing does that yet, so nothing is split.
    pub(super) async fn grow(&self, topic: &TopicName, partitions: u32) -> Result<(), BrokerError> {
        let ranges = self.describe(topic.clone(), &Create::Never).await?.ranges;
        let now = ranges.partitions();
        if now == 0 {
            return Err(BrokerError::invalid(
                format!("{topic} is not partitioned"),
                "create another topic with partitions",
            ));
        }
        if partitions <= now {
            return Err(BrokerError::invalid(
                format!("{topic} has {now} partitions, and never has fewer"),
                "ask for more",
            ));
        }
        let text = format!(
            "{topic} cannot be given {partitions} partitions instead of {now}: splitting ranges of keys is not built"
        );
        let advice = "create a topic with more partitions, publish to that, and terminate this one: its consumers read to its end first";
        let error = ApiError::new(ErrorKind::Unimplemented, text).advise(advice);
        Err(error.outcome(Outcome::NotApplied).into())
    }

    /// Takes a step with a topic, or with all its partitions. The first failure is the answer,
    /// after all were asked, together with what another question would not be told again.
    async fn each(&self, topic: &TopicName, step: Step, reach: Reach) -> Result<Done, BrokerError> {
        let ranges = match topic.partition() {
            Some(_) => TopicRanges::default(),
            None => self.describe(topic.clone(), &Create::Never).await?.ranges,
        };
        if ranges.is_empty() {
            return match reach {
                Reach::Here => self.step_here(topic, step).await,
                Reach::Anywhere => self.step_anywhere(topic, step).await,
            };
        }
        for place in step.places().into_iter().flatten() {
            in_one_partition(topic, &ranges, Some(place))?;
        }
        let parts = futures::stream::iter(parts_of(topic, &ranges));
        let mut parts = parts
            .map(|part| self.step_with_part(part, step))
            .buffer_unordered(PARTS_AT_ONCE);
        let (mut all, mut failed) = (Done::default(), None);
        while let Some(outcome) = parts.next().await {
            match outcome {
                Ok(done) => all.add(done),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            None => Ok(all),
            Some(error) if all.reset.is_empty() => Err(error),
            Some(error) => Err(reset_in_part(topic, all.reset, error)),
        }
    }

    async fn step_with_part(&self, part: TopicName, step: Step) -> Result<Done, BrokerError> {
        let done = self
            .step_anywhere(&part, step)
            .await
            .map_err(ApiError::from);
        match done {
            Err(error) if error.kind == ErrorKind::NotFound && step.needs_record() => {
                Ok(Done::default())
            }
            done => Ok(done?),
        }
    }

    /// Takes a step with a topic or partition, wherever it is served.
    async fn step_anywhere(&self, topic: &TopicName, step: Step) -> Result<Done, BrokerError> {
        let mut hops = 0;
        loop {
            let owner = match self.step_here(topic, step).await {
                Err(BrokerError::Elsewhere { at, .. }) => at,
                answer => return answer,
            };
            let again = step.is_asked_again() && hops < HOPS_MAX;
            match self.step_there(peer_url(&owner), topic, step).await {
                Ok(done) => return Ok(done),
                // It moves meanwhile.
                Err(error) if error.kind.is_retryable() && again => hops += 1,
                Err(error) => return Err(last_word(error).into()),
            }
            clock::sleep(HOP_PAUSE).await;
        }
    }

    async fn step_there(&self, url: &str, topic: &TopicName, step: Step) -> Result<Done, ApiError> {
        let peers = self.shared.peers().map_err(ApiError::from)?;
        let mut done = Done::default();
        match step {
            Step::Unload => done.unloaded = peers.unload_topic(url, topic).await?,
            Step::Terminate => done.ends = peers.terminate_topic(url, topic).await?,
            Step::Offload(before) => done.left = peers.offload_topic(url, topic, before).await?,
            Step::Reimport(what) => done.left = peers.reimport_topic(url, topic, what).await?,
            Step::Reset => done.reset = peers.reset_subscriptions(url, topic).await?,
        }
        Ok(done)
    }

    async fn step_here(&self, topic: &TopicName, step: Step) -> Result<Done, BrokerError> {
        let mut done = Done::default();
        match step {
            Step::Unload => done.unloaded = u32::from(self.topics.unload(topic).await?),
            Step::Terminate => {
                // A partition that was not used yet takes no message either.
                let create = Create::if_partition(topic);
                let end = self.topics.ask(topic, &create, Life::terminate).await?;
                let topic = topic.clone();
                done.ends = vec![TopicEnd { topic, end }];
            }
            Step::Offload(before) => done.left = self.offload_here(topic, before).await?,
            Step::Reimport(what) => done.left = self.reimport_here(topic, what).await?,
            Step::Reset => {
                let reset = self.topics.ask(topic, &Create::Never, Event::ResetCursors);
                done.reset = reset.await?;
            }
        }
        Ok(done)
    }
}

/// The error of a reset that was not made in every partition. From where a subscription goes on is
/// told once, so the error tells it.
fn reset_in_part(
    topic: &TopicName,
    mut reset: Vec<SubscriptionReset>,
    cause: BrokerError,
) -> BrokerError {
    reset.sort_by_key(|one| one.topic.partition());
    let tell = |one: &SubscriptionReset| {
        let number = one.topic.partition().unwrap_or_default();
        let (name, index, count) = (&one.name, one.mark_delete.0, one.repeated_messages);
        let lost = match one.name_only {
            true => ", of which only its name was known,",
            false => "",
        };
        format!(
            "{name} in partition {number} goes on{lost} from index {index} with {count} messages"
        )
    };
    let named = reset.iter().take(RESETS_NAMED_MAX).map(tell);
    let named = named.collect::<Vec<_>>().join("; ");
    let more = match reset.len().saturating_sub(RESETS_NAMED_MAX) {
        0 => String::new(),
        more => format!("; {more} more are in the log of this broker"),
    };
    for one in reset.iter().skip(RESETS_NAMED_MAX) {
        tracing::info!(topic = %one.topic, reset = tell(one), "a subscription is reset");
    }
    let cause = ApiError::from(cause);
    let text = format!(
        "subscriptions of {topic} are not reset in every partition: {cause}. Reset are: {named}{more}"
    );
    let advice =
        "note what is reset, then repeat the request: that stays, and the rest is tried again";
    let error = ApiError::new(cause.kind, text).advise(advice);
    error.outcome(Outcome::Unknown).into()
}
