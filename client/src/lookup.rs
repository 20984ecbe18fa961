//! Finding a topic: its name, its partitions, and the broker that serves it.

use std::sync::Arc;

use aquifer_model::ranges::{TopicRange, TopicRanges};
use aquifer_model::topic::TopicName;
use aquifer_proto::convert::ranges::ranges;
use aquifer_proto::v1;
use aquifer_runtime::clock::{self, Instant};

use crate::connection::{Connection, from_status};
use crate::context::Context;
use crate::error::{ClientError, Outcome, Result};
use crate::retry::{Backoff, Deadline};

/// Where the messages of a topic are.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    topic: TopicName,
    ranges: TopicRanges,
}

impl Layout {
    /// Every topic that may hold messages: the topic itself, or its partitions by number.
    pub(crate) fn parts(&self) -> Vec<Arc<TopicName>> {
        self.names(self.ranges.all().iter())
    }

    /// The topics that take messages: the topic itself, or its partitions in the order of
    /// [`TopicRanges::in_use`].
    pub(crate) fn open_parts(&self) -> Vec<Arc<TopicName>> {
        self.names(self.ranges.in_use())
    }

    fn names<'a>(&self, ranges: impl Iterator<Item = &'a TopicRange>) -> Vec<Arc<TopicName>> {
        if self.ranges.is_empty() {
            return vec![Arc::new(self.topic.clone())];
        }
        let name = |range: &TopicRange| Arc::new(self.topic.partition_name(range.number));
        ranges.map(name).collect()
    }

    /// Which keys each partition holds.
    pub(crate) fn ranges(&self) -> &TopicRanges {
        &self.ranges
    }

    /// How many partitions the topic has; 0 when it is not partitioned.
    pub(crate) fn partitions(&self) -> u32 {
        self.ranges.partitions()
    }

    /// Whether the topic is read in the order of its keys by reading its parts side by side.
    ///
    /// # Errors
    /// When ranges were split or merged: a child is to be read after the end of its parents, which
    /// this SDK does not do.
    pub(crate) fn check_order(&self) -> Result<()> {
        let was_divided = self
            .ranges
            .all()
            .iter()
            .any(|range| !range.parents.is_empty());
        if !was_divided {
            return Ok(());
        }
        Err(ClientError::Invalid(format!(
            "{} was split, and this version of the SDK keeps the order of keys only in topics that \
             were not: consume it as Shared, or with a newer version",
            self.topic
        )))
    }
}

/// Asks where the messages of a topic are, and creates it if the namespace allows that.
pub(crate) async fn layout(
    context: &Context,
    topic: &TopicName,
    deadline: Deadline,
) -> Result<Layout> {
    let topic = topic.clone();
    if topic.partition().is_some() {
        let ranges = TopicRanges::default();
        return Ok(Layout { topic, ranges });
    }
    let request = v1::DescribeTopicRequest {
        topic: topic.to_string(),
        create: true,
    };
    let what = "looking up the topic";
    let answer = unary(context, what, true, deadline, |connection| {
        let request = request.clone();
        async move { connection.admin().describe_topic(request).await }
    })
    .await?;
    layout_of(topic, &answer)
}

/// What a broker says of a topic.
pub(crate) fn layout_of(topic: TopicName, answer: &v1::DescribeTopicResponse) -> Result<Layout> {
    let ranges = ranges(answer.generation, &answer.ranges)
        .map_err(|error| ClientError::Protocol(error.to_string()))?;
    if !ranges.is_empty() && answer.key_hash() != v1::KeyHash::Murmur3 {
        let what = format!("{topic} hashes keys in a way that this version does not know");
        return Err(ClientError::Protocol(what));
    }
    Ok(Layout { topic, ranges })
}

/// A unary call, tried again while that is safe: an `idempotent` one after any retryable failure,
/// another only when it was certainly not applied.
pub(crate) async fn unary<T, F, Fut>(
    context: &Context,
    what: &'static str,
    idempotent: bool,
    deadline: Deadline,
    call: F,
) -> Result<T>
where
    F: Fn(Connection) -> Fut,
    Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
{
    let mut backoff = Backoff::new(Arc::clone(&context.rng));
    let mut target = Target::default();
    let mut last = None;
    loop {
        let attempt = async {
            let connection = target.connect(context).await?;
            match call(connection.clone()).await {
                Ok(response) => Ok(response.into_inner()),
                Err(status) => {
                    let error = from_status(what, &status);
                    if matches!(error, ClientError::Connection { .. }) {
                        context.pool.invalidate(&connection).await;
                    }
                    Err(error)
                }
            }
        };
        let error = match deadline.limit(what, attempt).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error.because_of(last.clone()),
        };
        let error = target.renew(context, error, false).await;
        let safe = idempotent || error.outcome() == Outcome::NotApplied;
        let patient = !context.pool.is_hopeless(&error);
        let delay = backoff.delay();
        let in_time = Instant::now() + delay < deadline.at();
        if !(error.is_retryable() && safe && patient) {
            return Err(error.or_cause(last));
        }
        if !in_time {
            // Whatever the last attempt met, it is the time that is over.
            let over = deadline.error(what, error.outcome());
            return Err(match error.or_cause(last) {
                timeout @ ClientError::Timeout { .. } => timeout,
                other => over.because_of(Some(other)),
            });
        }
        error.remember(&mut last);
        if !target.follow(&error) {
            clock::sleep(delay).await;
        }
    }
}

/// Where the next attempt goes, to the broker that a redirect named or to any, and with which
/// credential.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// Number of the credential that the last attempt showed.
    credential: u64,
    /// Credentials that were refused in a row.
    refusals: u32,
    redirect: Option<String>,
    /// Attempts that led nowhere: the next one begins at another address.
    failures: usize,
    /// Redirects in a row; a cycle of brokers that point at each other must not spin.
    hops: u32,
}

/// Redirects that are followed at once, before backing off.
const HOPS_MAX: u32 = 4;
/// Credentials that are refused in a row before that is the answer.
const REFUSALS_MAX: u32 = 3;

impl Target {
    /// A connection to the target. A redirect that leads nowhere is forgotten.
    pub(crate) async fn connect(&mut self, context: &Context) -> Result<Connection> {
        let credential = context.pool.credential().await?;
        self.credential = credential.number();
        match self.redirect.take() {
            Some(url) => match context.pool.to(&url, &credential).await {
                Ok(connection) => {
                    self.redirect = Some(url);
                    Ok(connection)
                }
                // The credential must not be sent there, and no broker would send us elsewhere.
                Err(error @ ClientError::Invalid(_)) => Err(error),
                Err(_) => {
                    // A broker that names one that is gone would name it again.
                    self.failures += 1;
                    context.pool.any(self.failures, &credential).await
                }
            },
            None => context.pool.any(self.failures, &credential).await,
        }
    }

    /// What a failure means once another credential was fetched, if the last one was refused: with
    /// another one, that the connection is to be tried again. The credential of a stream that was
    /// open was good, and is tried once more.
    pub(crate) async fn renew(
        &mut self,
        context: &Context,
        error: ClientError,
        was_open: bool,
    ) -> ClientError {
        let ClientError::Unauthenticated(refusal) = &error else {
            return error;
        };
        if self.refusals >= REFUSALS_MAX {
            return error;
        }
        self.refusals += 1;
        match context.pool.renew_credential(self.credential).await {
            Ok(is_another) if is_another || was_open => ClientError::Connection {
                what: "authentication",
                reason: refusal.to_string(),
                // A call that is refused is not carried out; of a stream it is only the end.
                outcome: match was_open {
                    true => Outcome::Unknown,
                    false => Outcome::NotApplied,
                },
            },
            Ok(_) => error,
            Err(unavailable) => unavailable,
        }
    }

    /// Remembers where a redirect leads. True when the next attempt may be made at once.
    pub(crate) fn follow(&mut self, error: &ClientError) -> bool {
        let url = match error {
            ClientError::Broker(error) => error.redirect_url.clone(),
            _ => None,
        };
        if url.is_none() {
            self.redirect = None;
            self.hops = 0;
            self.failures += 1;
            return false;
        }
        self.redirect = url;
        self.hops += 1;
        self.hops <= HOPS_MAX
    }

    /// The redirect led to a broker that serves.
    pub(crate) fn served(&mut self) {
        self.hops = 0;
        self.failures = 0;
        self.refusals = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_followed_at_once_but_not_for_ever() {
        let redirect: ClientError = v1::ErrorDetail {
            code: v1::ErrorCode::Redirect.into(),
            redirect_url: "http://b:1".to_owned(),
            ..v1::ErrorDetail::default()
        }
        .into();
        let mut target = Target::default();
        let followed = (0..10).filter(|_| target.follow(&redirect)).count();
        assert_eq!(followed, usize::try_from(HOPS_MAX).unwrap());
        target.served();
        assert!(target.follow(&redirect));
        assert!(!target.follow(&ClientError::closed("x")));
        assert_eq!(target.redirect, None);
    }
}
