//! The other brokers of the cluster, asked as any client may ask them.

mod answers;

use std::collections::HashMap;
use std::time::Duration;

use aquifer_broker::{Lines, NoReport, Peers};
use aquifer_client::admin::ClearOptions;
use aquifer_client::{Client, ClientError, ErrorCode, ErrorKind as Kind, Message};
use aquifer_model::id::Index;
use aquifer_model::load::LoadReport;
use aquifer_model::place::Place;
use aquifer_model::stats::{OffloadProgress, TopicEnd, TopicStats};
use aquifer_model::subscription::Properties;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::{Clear, Deletion, Peeked, Reimport, SubscriptionReset};
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};
use aquifer_protocol_api::security::{AuditPage, ReadAudit};
use aquifer_runtime::clock;
use aquifer_runtime::net::tls::ClientTlsConfig;
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use parking_lot::Mutex;

/// How long a broker may take to report its load.
const REPORT_MAX: Duration = Duration::from_secs(2);
/// How long it may take for anything else.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Brokers to which a connection is kept; those that are gone are not told apart.
const CLIENTS_MAX: usize = 1_000;

/// The way to the brokers of a cluster.
pub struct GrpcPeers {
    tls: ClientTlsConfig,
    tasks: TaskGroup,
    clients: Mutex<HashMap<String, Client>>,
}

impl GrpcPeers {
    /// Not connected to any broker yet.
    pub fn new(tls: ClientTlsConfig, tasks: &TaskGroup) -> GrpcPeers {
        GrpcPeers {
            tls,
            tasks: tasks.clone(),
            clients: Mutex::default(),
        }
    }

    fn client(&self, url: &str) -> Result<Client, ClientError> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(url) {
            return Ok(client.clone());
        }
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        let client = Client::builder().url(url).operation_timeout(ANSWER_MAX);
        let client = client.tls(self.tls.clone());
        let client = client.tasks(self.tasks.clone()).build()?;
        clients.insert(url.to_owned(), client.clone());
        Ok(client)
    }
}

#[async_trait]
impl Peers for GrpcPeers {
    async fn report(&self, url: &str) -> Result<LoadReport, NoReport> {
        let asked = async { self.client(url)?.admin().load_report().await };
        match clock::timeout(REPORT_MAX, asked).await {
            Ok(report) => report.map_err(|error| NoReport(error.to_string())),
            Err(_) => Err(NoReport("it does not answer in time".to_owned())),
        }
    }

    async fn topic_stats(&self, url: &str, topic: &TopicName) -> ApiResult<TopicStats> {
        let admin = self.client(url).map_err(failed)?.admin();
        let stats = admin.topic_stats(&topic.to_string()).await;
        stats.map_err(failed)
    }

    async fn delete_topic(&self, url: &str, topic: &TopicName, how: Deletion) -> ApiResult<()> {
        let admin = self.client(url).map_err(failed)?.admin();
        let topic = topic.to_string();
        let done = match how {
            Deletion::Check => admin.check_unused(&topic).await,
            Deletion::IfUnused => admin.delete_topic(&topic, false).await,
            Deletion::Force => admin.delete_topic(&topic, true).await,
        };
        done.map_err(failed)
    }

    async fn unload_topic(&self, url: &str, topic: &TopicName) -> ApiResult<u32> {
        let admin = self.client(url).map_err(failed)?.admin();
        let unloaded = admin.unload_topic(&topic.to_string()).await;
        unloaded.map_err(failed)
    }

    async fn terminate_topic(&self, url: &str, topic: &TopicName) -> ApiResult<Vec<TopicEnd>> {
        let admin = self.client(url).map_err(failed)?.admin();
        let ends = admin.terminate_topic(&topic.to_string()).await;
        ends.map_err(failed)
    }

    async fn create_topic(&self, url: &str, topic: &TopicName, partitions: u32) -> ApiResult<()> {
        let admin = self.client(url).map_err(failed)?.admin();
        let created = admin.create_topic(&topic.to_string(), partitions).await;
        created.map_err(failed)
    }

    async fn offload_topic(
        &self,
        url: &str,
        topic: &TopicName,
        before: Place,
    ) -> ApiResult<OffloadProgress> {
        let admin = self.client(url).map_err(failed)?.admin();
        let left = admin.offload_topic(&topic.to_string(), before).await;
        let (ledgers, bytes) = left.map_err(failed)?;
        Ok(OffloadProgress { ledgers, bytes })
    }

    async fn reimport_topic(
        &self,
        url: &str,
        topic: &TopicName,
        what: Reimport,
    ) -> ApiResult<OffloadProgress> {
        let (admin, topic) = (self.client(url).map_err(failed)?.admin(), topic.to_string());
        let left = match what {
            Reimport::Range { from, to } => admin.reimport_topic(&topic, from, to).await,
            Reimport::Cancel => admin.cancel_reimport(&topic).await.map(|()| (0, 0)),
        };
        let (ledgers, bytes) = left.map_err(failed)?;
        Ok(OffloadProgress { ledgers, bytes })
    }

    async fn reset_subscriptions(
        &self,
        url: &str,
        topic: &TopicName,
    ) -> ApiResult<Vec<SubscriptionReset>> {
        let admin = self.client(url).map_err(failed)?.admin();
        let reset = admin.reset_subscriptions(&topic.to_string()).await;
        let reset = reset.map_err(failed)?.into_iter().map(answers::reset);
        reset.collect()
    }

    async fn skip_messages(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        range: Option<IndexRange>,
    ) -> ApiResult<Vec<IndexRange>> {
        let (topic, subscription) = (topic.to_string(), subscription.to_string());
        let admin = self.client(url).map_err(failed)?.admin();
        let range = range.map(|range| (range.first, range.last));
        let skipped = admin.skip_messages(&topic, &subscription, range).await;
        let skipped = skipped.map_err(failed)?.into_iter();
        Ok(skipped
            .map(|(first, last)| IndexRange { first, last })
            .collect())
    }

    async fn peek_messages(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        limit: usize,
    ) -> ApiResult<Peeked> {
        let admin = self.client(url).map_err(failed)?.admin();
        let peeked = admin.peek_entries(topic, subscription, limit).await;
        answers::peeked(peeked.map_err(failed)?)
    }

    async fn create_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        place: Place,
        properties: &Properties,
    ) -> ApiResult<Index> {
        let (topic, subscription) = (topic.to_string(), subscription.to_string());
        let admin = self.client(url).map_err(failed)?.admin();
        let created = admin.create_subscription_with(&topic, &subscription, place, properties);
        created.await.map_err(failed)
    }

    async fn delete_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        force: bool,
    ) -> ApiResult<()> {
        let (topic, subscription) = (topic.to_string(), subscription.to_string());
        let admin = self.client(url).map_err(failed)?.admin();
        let deleted = admin.delete_subscription(&topic, &subscription, force);
        deleted.await.map_err(failed)
    }

    async fn seek_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        place: Place,
    ) -> ApiResult<Index> {
        let (topic, subscription) = (topic.to_string(), subscription.to_string());
        let admin = self.client(url).map_err(failed)?.admin();
        let moved = admin.seek_subscription(&topic, &subscription, place);
        moved.await.map_err(failed)
    }

    async fn append(&self, url: &str, topic: &TopicName, lines: &Lines) -> ApiResult<()> {
        let topic = self
            .client(url)
            .and_then(|client| client.topic(&topic.to_string()));
        let topic = topic.map_err(failed)?;
        let messages = lines.lines.iter().map(|line| Message::new(line.clone()));
        let messages: Vec<Message> = messages.collect();
        let appended = topic.append_as(&lines.producer, lines.sequence_id, &messages);
        appended.await.map(drop).map_err(failed)
    }

    async fn read_audit(&self, url: &str, read: ReadAudit) -> ApiResult<AuditPage> {
        let security = self.client(url).map_err(failed)?.security();
        let (tenant, part) = (read.tenant.as_deref(), (read.from, read.before));
        let page = security.read_audit(tenant, part, read.limit, read.wait);
        let page = page.await.map_err(failed)?;
        Ok(AuditPage {
            lines: page.lines,
            next: page.next,
            at_end: page.at_end,
            missing: page.missing,
        })
    }

    async fn clear_subscription(
        &self,
        url: &str,
        topic: &TopicName,
        subscription: &SubscriptionName,
        clear: Clear,
    ) -> ApiResult<u64> {
        let (topic, subscription) = (topic.to_string(), subscription.to_string());
        let admin = self.client(url).map_err(failed)?.admin();
        let options = ClearOptions {
            older_than: clear.older_than_ms.map(Duration::from_millis),
            dry_run: clear.dry_run,
        };
        let cleared = admin.clear_subscription(&topic, &subscription, options);
        cleared.await.map_err(failed)
    }
}

/// What the failure of a request to another broker means to the client that asked this one.
fn failed(error: ClientError) -> ApiError {
    let kind = told_kind(&error).unwrap_or_else(|| match error.kind() {
        Kind::Invalid => ErrorKind::InvalidArgument,
        Kind::NotFound => ErrorKind::NotFound,
        Kind::AlreadyExists => ErrorKind::AlreadyExists,
        Kind::Busy => ErrorKind::FailedPrecondition,
        Kind::Refused => ErrorKind::PermissionDenied,
        Kind::Fenced => ErrorKind::Fenced,
        Kind::Timeout => ErrorKind::Timeout,
        Kind::Damaged => ErrorKind::DataLoss,
        Kind::Connect | Kind::Unavailable | Kind::Closed => ErrorKind::Unavailable,
        // No session is opened here.
        Kind::Internal | Kind::EndOfTopic => ErrorKind::Internal,
    });
    let outcome = error.outcome();
    let failed = match error {
        ClientError::Broker(told) if !told.advice.is_empty() => {
            ApiError::new(kind, told.message).advise(told.advice)
        }
        error => ApiError::new(kind, error.to_string()),
    };
    failed.outcome(outcome)
}

/// The kinds of which the SDK makes one, told apart again: callers act differently.
fn told_kind(error: &ClientError) -> Option<ErrorKind> {
    match error.code()? {
        ErrorCode::QuotaExceeded => Some(ErrorKind::QuotaExceeded),
        ErrorCode::Overloaded => Some(ErrorKind::Overloaded),
        ErrorCode::StorageFull => Some(ErrorKind::StorageFull),
        ErrorCode::Incarnation => Some(ErrorKind::Incarnation),
        ErrorCode::Unimplemented => Some(ErrorKind::Unimplemented),
        ErrorCode::Terminated => Some(ErrorKind::Terminated),
        _ => None,
    }
}
