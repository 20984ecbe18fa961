//! Finding a topic: its name, its partitions, and the broker that serves it.

use std::sync::Arc;

use aquifer_model::topic::TopicName;
use aquifer_proto::v1;

use crate::client::Context;
use crate::connection::{Connection, from_status};
use crate::error::{ClientError, Result};
use crate::retry::{Backoff, Deadline};

/// Asks whether a topic is partitioned, and creates it if the namespace allows that. Answers the
/// names to open: the topic itself, or its partitions in order.
pub(crate) async fn partitions(
    context: &Context,
    topic: &TopicName,
    deadline: Deadline,
) -> Result<Vec<Arc<TopicName>>> {
    if topic.partition().is_some() {
        return Ok(vec![Arc::new(topic.clone())]);
    }
    let request = v1::DescribeTopicRequest {
        topic: topic.to_string(),
        create: true,
    };
    let answer = unary(
        context,
        "looking up the topic",
        true,
        deadline,
        |connection| {
            let request = request.clone();
            async move { connection.admin().describe_topic(request).await }
        },
    )
    .await?;
    let parts = parts(topic, answer.partitions)?;
    Ok(parts.into_iter().map(Arc::new).collect())
}

/// The parts of a topic that a broker says to have so many partitions.
pub(crate) fn parts(topic: &TopicName, partitions: u32) -> Result<Vec<TopicName>> {
    if partitions > aquifer_model::limits::PARTITIONS_MAX {
        let what = format!("a topic of {partitions} partitions");
        return Err(ClientError::Protocol(what));
    }
    Ok(topic.parts(partitions))
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
        let safe = idempotent || error.outcome() == crate::error::Outcome::NotApplied;
        let patient = !context.pool.is_hopeless(&error);
        let delay = backoff.delay();
        let in_time = tokio::time::Instant::now() + delay < deadline.at();
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
            aquifer_runtime::clock::sleep(delay).await;
        }
    }
}

/// Where the next attempt goes: to the broker that a redirect named, or to any.
#[derive(Debug, Default)]
pub(crate) struct Target {
    redirect: Option<String>,
    /// Attempts that led nowhere: the next one begins at another address.
    failures: usize,
    /// Redirects in a row; a cycle of brokers that point at each other must not spin.
    hops: u32,
}

/// Redirects that are followed at once, before backing off.
const HOPS_MAX: u32 = 4;

impl Target {
    /// A connection to the target. A redirect that leads nowhere is forgotten.
    pub(crate) async fn connect(&mut self, context: &Context) -> Result<Connection> {
        match self.redirect.take() {
            Some(url) => match context.pool.to(&url).await {
                Ok(connection) => {
                    self.redirect = Some(url);
                    Ok(connection)
                }
                Err(_) => {
                    // Whoever names a broker that is gone would name it again.
                    self.failures += 1;
                    context.pool.any(self.failures).await
                }
            },
            None => context.pool.any(self.failures).await,
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
    pub(crate) fn settled(&mut self) {
        self.hops = 0;
        self.failures = 0;
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
        target.settled();
        assert!(target.follow(&redirect));
        assert!(!target.follow(&ClientError::closed("x")));
        assert_eq!(target.redirect, None);
    }
}
