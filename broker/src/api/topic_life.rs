//! Unloading and terminating topics, partitioned and not. Whichever broker is asked asks the owners
//! of the partitions. Both may be repeated: what is done stays done.

use aquifer_model::ranges::TopicRanges;
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::admin::TopicEnd;
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use aquifer_runtime::clock;
use futures::StreamExt;

use crate::api::topics::{HOP_PAUSE, HOPS_MAX, last_word};
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::peers::peer_url;
use crate::security::audit::cause::Create;
use crate::topic::event::Life;
use crate::topics::deletion::{PARTS_AT_ONCE, parts_of};

/// What is done to a topic or partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Unload,
    Terminate,
}

/// What came of it.
#[derive(Debug, Default)]
struct Done {
    unloaded: u32,
    ends: Vec<TopicEnd>,
}

impl Broker {
    /// Answers how many topics or partitions were loaded.
    pub(super) async fn unload(&self, topic: &TopicName) -> Result<u32, BrokerError> {
        Ok(self.each(topic, Step::Unload).await?.unloaded)
    }

    /// Answers where the topic or its partitions end.
    pub(super) async fn terminate(&self, topic: &TopicName) -> Result<Vec<TopicEnd>, BrokerError> {
        let mut ends = self.each(topic, Step::Terminate).await?.ends;
        ends.sort_by_key(|end| end.topic.partition());
        Ok(ends)
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
    /// after all were asked.
    async fn each(&self, topic: &TopicName, step: Step) -> Result<Done, BrokerError> {
        let ranges = match topic.partition() {
            Some(_) => TopicRanges::default(),
            None => self.describe(topic.clone(), &Create::Never).await?.ranges,
        };
        if ranges.is_empty() {
            return self.step_here(topic, step).await;
        }
        let parts = futures::stream::iter(parts_of(topic, &ranges));
        let mut parts = parts
            .map(|part| self.step_anywhere(part, step))
            .buffer_unordered(PARTS_AT_ONCE);
        let (mut all, mut failed) = (Done::default(), None);
        while let Some(outcome) = parts.next().await {
            match outcome {
                Ok(done) => {
                    all.unloaded += done.unloaded;
                    all.ends.extend(done.ends);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// Takes a step with a partition, wherever it is served.
    async fn step_anywhere(&self, part: TopicName, step: Step) -> Result<Done, BrokerError> {
        let mut hops = 0;
        loop {
            let owner = match self.step_here(&part, step).await {
                Err(BrokerError::Elsewhere { at, .. }) => at,
                answer => return answer,
            };
            let (peers, url) = (self.shared.peers()?, peer_url(&owner));
            let asked = match step {
                Step::Unload => peers.unload_topic(url, &part).await.map(|unloaded| Done {
                    unloaded,
                    ..Done::default()
                }),
                Step::Terminate => peers.terminate_topic(url, &part).await.map(|ends| Done {
                    ends,
                    ..Done::default()
                }),
            };
            match asked {
                Ok(done) => return Ok(done),
                // It moves meanwhile.
                Err(error) if error.kind.is_retryable() && hops < HOPS_MAX => hops += 1,
                Err(error) => return Err(last_word(error).into()),
            }
            clock::sleep(HOP_PAUSE).await;
        }
    }

    async fn step_here(&self, topic: &TopicName, step: Step) -> Result<Done, BrokerError> {
        match step {
            Step::Unload => {
                let was_loaded = self.topics.unload(topic).await?;
                Ok(Done {
                    unloaded: u32::from(was_loaded),
                    ..Done::default()
                })
            }
            Step::Terminate => {
                // A partition that was not used yet takes no message either.
                let create = Create::if_partition(topic);
                let end = self.topics.ask(topic, &create, Life::terminate).await?;
                let topic = topic.clone();
                Ok(Done {
                    ends: vec![TopicEnd { topic, end }],
                    ..Done::default()
                })
            }
        }
    }
}
