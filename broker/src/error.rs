//! The errors of the broker and their one mapping to what protocols see: kind, outcome, advice.

use aquifer_log::error::LogError;
use aquifer_metadata::error::MetadataError;
use aquifer_model::batch::BatchError;
use aquifer_model::format::FormatError;
use aquifer_model::listener::Listeners;
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::{NamespaceName, SubscriptionName, TopicName};
use aquifer_protocol_api::error::{ApiError, ErrorKind, Outcome};
use thiserror::Error;

/// Why the broker did not do what was asked. Cloned to all that wait for the same thing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BrokerError {
    /// A setting is wrong.
    #[error("bad broker setting: {0}")]
    Config(String),
    /// The request is wrong.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// What to do about it.
        advice: String,
    },
    /// Tenant, namespace, topic or subscription does not exist.
    #[error("{what} {name} does not exist")]
    NotFound {
        /// Which kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do about it.
        advice: String,
    },
    /// It exists already.
    #[error("{what} {name} exists already")]
    AlreadyExists {
        /// Which kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// It has another version than the request names.
    #[error("{what} have version {found}, not {wanted}")]
    Conflict {
        /// What was to change.
        what: String,
        /// The version that it has.
        found: u64,
        /// The version that the request names.
        wanted: u64,
    },
    /// It is in use.
    #[error("{0} has connected clients")]
    InUse(String),
    /// A bound of how many of something there may be is reached.
    #[error("{limit}: {scope} has {used} {what}, and at most {max} are allowed")]
    Quota {
        /// The policy.
        limit: &'static str,
        /// What is counted.
        what: &'static str,
        /// Whose count it is.
        scope: String,
        /// How many there are.
        used: u64,
        /// The bound.
        max: u64,
    },
    /// What subscriptions have not acknowledged is more than policy allows.
    #[error("{limit}: the backlog of {topic} has {backlog}")]
    BacklogQuota {
        /// The policy.
        limit: &'static str,
        /// The topic.
        topic: String,
        /// The backlog and its bound.
        backlog: String,
    },
    /// A rate did not let it pass in time.
    #[error("{limit}: {topic} takes no more at the moment")]
    Throttled {
        /// The limit.
        limit: &'static str,
        /// The topic.
        topic: String,
    },
    /// A message is larger than policy allows.
    #[error("messageBytesMax: a message of {bytes} bytes for {topic}, which takes at most {max}")]
    MessageTooLarge {
        /// The topic.
        topic: String,
        /// The message.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// Policy does not let consumers share a subscription in this way.
    #[error("subscriptionTypes: {topic} takes no consumers of type {kind:?}")]
    SubscriptionType {
        /// The topic.
        topic: String,
        /// The type.
        kind: SubscriptionType,
    },
    /// A live producer has the name.
    #[error("producer name {0} is in use by another producer")]
    ProducerBusy(String),
    /// A newer producer has taken the name.
    #[error("producer {0} was replaced by a newer one of its name")]
    ProducerFenced(String),
    /// A newer session of the same consumer is there.
    #[error("a newer session of this consumer has replaced this one")]
    ConsumerReplaced,
    /// The client knows another life of the topic.
    #[error("topic {0} was deleted and created again")]
    Incarnation(String),
    /// The record of a subscription is damaged.
    #[error("the record of what subscription {0} has acknowledged is damaged, and known in part")]
    Uncertain(String),
    /// The topic is gone under its clients.
    #[error("topic {0} was deleted")]
    Deleted(String),
    /// The topic takes no more messages.
    #[error("topic {0} is terminated: it takes no more messages")]
    Terminated(String),
    /// A frame number is missing or came twice.
    #[error("frame number {got} where {expected} was due")]
    FrameNumber {
        /// What was due.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// A body is damaged, breaks a bound, or has another format.
    #[error("batch is refused: {0}")]
    Body(#[from] FormatError),
    /// A batch names another producer than its session.
    #[error("batch of producer {got:?} in the session of {expected:?}")]
    ProducerName {
        /// The session's.
        expected: String,
        /// The batch's.
        got: String,
    },
    /// A batch names another producer object than its session, or none.
    #[error("batch of another producer instance than that of its session")]
    ProducerInstance,
    /// Some of a batch's sequence ids are stored and some are not.
    #[error("sequence ids {lowest} to {highest} are stored in part")]
    PartialDuplicate {
        /// First of the batch.
        lowest: u64,
        /// Last of the batch.
        highest: u64,
    },
    /// The session is over; its last event said why.
    #[error("the session is closed")]
    SessionClosed,
    /// A client does not take what it is sent.
    #[error("the client does not read what it asked for")]
    SlowClient,
    /// Another broker serves it.
    #[error("{what} is served by another broker")]
    Elsewhere {
        /// The bundle.
        what: String,
        /// Where the other broker is.
        at: Listeners,
    },
    /// What this broker knew of the bundles of a namespace is old.
    #[error("the bundles of {0} have changed")]
    BundlesChanged(String),
    /// The broker, or the topic on it, is going away.
    #[error("{0}")]
    Unloading(String),
    /// What the subscription's rules say.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The topic log did not do it.
    #[error("storage: {0}")]
    Log(#[from] LogError),
    /// The metadata store did not do it.
    #[error("metadata: {0}")]
    Metadata(#[from] MetadataError),
    /// The caller does not wait any longer.
    #[error("{0} took longer than its deadline")]
    Deadline(&'static str),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

impl BrokerError {
    /// A wrong request.
    pub(crate) fn invalid(message: impl Into<String>, advice: impl Into<String>) -> BrokerError {
        BrokerError::Invalid {
            message: message.into(),
            advice: advice.into(),
        }
    }

    /// A tenant does not exist.
    pub(crate) fn no_tenant(tenant: &str) -> BrokerError {
        BrokerError::NotFound {
            what: "tenant",
            name: tenant.to_owned(),
            advice: "create the tenant first, or correct its name".to_owned(),
        }
    }

    /// A namespace does not exist.
    pub(crate) fn no_namespace(namespace: &NamespaceName) -> BrokerError {
        BrokerError::NotFound {
            what: "namespace",
            name: namespace.to_string(),
            advice: "create the namespace first, or correct its name".to_owned(),
        }
    }

    /// A place was not found in a log.
    pub(crate) fn no_place(error: LogError) -> BrokerError {
        match error {
            LogError::Invalid(message) => BrokerError::invalid(
                message,
                "give an index, a time, earliest, latest, or a position of this topic",
            ),
            other => BrokerError::Log(other),
        }
    }

    /// A subscription does not exist.
    pub(crate) fn no_subscription(name: &SubscriptionName) -> BrokerError {
        BrokerError::NotFound {
            what: "subscription",
            name: name.to_string(),
            advice: "correct its name; the topic's statistics list the subscriptions".to_owned(),
        }
    }

    /// A topic does not exist.
    pub(crate) fn no_topic(name: &TopicName) -> BrokerError {
        BrokerError::NotFound {
            what: "topic",
            name: name.to_string(),
            advice: "create the topic first, correct its name, or let the namespace create topics \
                     automatically"
                .to_owned(),
        }
    }
}

/// The bound of tokens, grants, roles and revocations, as errors name it.
pub(crate) const RECORDS_LIMIT: &str = "records of security";
/// What to do when metadata is full.
const MAKE_ROOM: &str = "free space in the metadata store: docs/operations/cluster.md explains how; nothing has to \
     be deleted for it";

impl BrokerError {
    /// Whether the same request may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        ApiError::from(self.clone()).kind.is_retryable()
    }

    /// A topic has ended before it answered a request that it may have carried out.
    pub(crate) fn unknown_outcome() -> BrokerError {
        let text = "the topic was unloaded before the outcome was known";
        let error = ApiError::new(ErrorKind::Unavailable, text)
            .advise("look whether it was done, then try again");
        BrokerError::Api(error.outcome(Outcome::Unknown))
    }

    /// The same for a request that creates something: waiting for space in metadata does not help
    /// it.
    pub(crate) fn of_creation(self) -> BrokerError {
        let text = self.to_string();
        match self {
            BrokerError::Metadata(MetadataError::Full(_))
            | BrokerError::Log(LogError::Metadata(MetadataError::Full(_))) => {
                let error = ApiError::new(ErrorKind::QuotaExceeded, text).advise(MAKE_ROOM);
                BrokerError::Api(error.outcome(Outcome::NotApplied))
            }
            other => other,
        }
    }
}

/// Whether a topic continues after this, or is unloaded and loaded again.
pub(crate) fn topic_survives(error: &LogError) -> bool {
    match error {
        LogError::Overloaded | LogError::StorageFull(_) | LogError::Unavailable(_) => true,
        // It ends in order.
        LogError::HandedOver => true,
        LogError::Metadata(
            MetadataError::Unavailable(_)
            | MetadataError::UnknownOutcome(_)
            | MetadataError::Full(_),
        ) => true,
        LogError::Fenced
        | LogError::Closed
        | LogError::AlreadyExists
        | LogError::Damaged(_)
        | LogError::Limbo(_)
        | LogError::Invalid(_)
        | LogError::Metadata(_) => false,
    }
}

impl From<BrokerError> for ApiError {
    fn from(error: BrokerError) -> ApiError {
        let text = error.to_string();
        let api = |kind, advice: &str| ApiError::new(kind, text.clone()).advise(advice);
        match error {
            BrokerError::Api(error) => error,
            BrokerError::Log(error) => from_log(&error, text),
            BrokerError::Metadata(error) => from_metadata(&error, text),
            BrokerError::Body(error) => from_body(&error, text),
            BrokerError::Config(_) => api(ErrorKind::InvalidArgument, "correct the setting"),
            BrokerError::Invalid { advice, .. } => api(ErrorKind::InvalidArgument, &advice),
            BrokerError::NotFound { advice, .. } => api(ErrorKind::NotFound, &advice),
            BrokerError::AlreadyExists { .. } => {
                api(ErrorKind::AlreadyExists, "use it, or choose another name")
            }
            BrokerError::Conflict { .. } => api(
                ErrorKind::Conflict,
                "read it again, and decide by what it says now",
            ),
            BrokerError::InUse(_) => api(
                ErrorKind::FailedPrecondition,
                "close its producers and consumers first, or force it",
            ),
            BrokerError::Quota { .. }
            | BrokerError::BacklogQuota { .. }
            | BrokerError::Throttled { .. }
            | BrokerError::MessageTooLarge { .. }
            | BrokerError::SubscriptionType { .. } => from_limit(&error, text),
            BrokerError::ProducerBusy(_) => api(
                ErrorKind::ProducerBusy,
                "choose another name, or ask to take over",
            ),
            BrokerError::ProducerFenced(_) => api(
                ErrorKind::Fenced,
                "stop this producer: another one continues under its name",
            ),
            BrokerError::ConsumerReplaced => api(ErrorKind::Fenced, "its newer session continues"),
            BrokerError::Incarnation(_) => api(
                ErrorKind::Incarnation,
                "open a new producer, consumer or reader: positions and sequence ids started again",
            ),
            BrokerError::Uncertain(_) => uncertain(text),
            BrokerError::Deleted(_) => api(ErrorKind::NotFound, "create it again if it is needed"),
            BrokerError::Terminated(_) => api(
                ErrorKind::Terminated,
                "publish to another topic; what this one has can be read",
            ),
            BrokerError::FrameNumber { .. }
            | BrokerError::ProducerName { .. }
            | BrokerError::ProducerInstance
            | BrokerError::PartialDuplicate { .. } => from_frame(&error, text),
            BrokerError::SessionClosed => api(ErrorKind::Unavailable, "open a new session"),
            BrokerError::SlowClient => api(
                ErrorKind::Unavailable,
                "read events as fast as credit is granted, and open a new session",
            ),
            BrokerError::Unloading(_) | BrokerError::BundlesChanged(_) => {
                api(ErrorKind::Unavailable, "try again")
            }
            BrokerError::Elsewhere { at, .. } => redirect(text, at),
            BrokerError::Deadline(_) => api(
                ErrorKind::Timeout,
                "check whether it was done, or try again with a later deadline",
            )
            .outcome(Outcome::Unknown),
            BrokerError::Internal(_) => {
                api(ErrorKind::Internal, "report this with the broker's log")
                    .outcome(Outcome::Unknown)
            }
        }
    }
}

/// What is wrong with a published batch.
fn from_frame(error: &BrokerError, text: String) -> ApiError {
    let advice = match error {
        BrokerError::FrameNumber { .. } => "number frames from 1 per session, without gaps",
        BrokerError::PartialDuplicate { .. } => {
            "send batches again with the messages they had at first"
        }
        _ => "put the name that the broker answered, and the instance, into every batch",
    };
    ApiError::new(ErrorKind::InvalidArgument, text).advise(advice)
}

/// What a policy does not allow.
fn from_limit(error: &BrokerError, text: String) -> ApiError {
    let (kind, advice) = match error {
        BrokerError::Quota {
            limit: RECORDS_LIMIT,
            ..
        } => (
            ErrorKind::QuotaExceeded,
            "remove grants and roles that are not needed; tokens that were revoked and what has \
             expired count until they are removed, `auth.ended_kept_ms` after that",
        ),
        BrokerError::BacklogQuota { .. } => (
            ErrorKind::QuotaExceeded,
            "consume and acknowledge, delete subscriptions that are not used, or raise the policy",
        ),
        BrokerError::Throttled { .. } => (
            ErrorKind::Overloaded,
            "try again, publish less, or raise the policy",
        ),
        BrokerError::MessageTooLarge { .. } => (
            ErrorKind::TooLarge,
            "send smaller messages, or raise the policy where it is set",
        ),
        BrokerError::SubscriptionType { .. } => (
            ErrorKind::FailedPrecondition,
            "subscribe with a type that the policy allows, or change the policy",
        ),
        _ => (
            ErrorKind::QuotaExceeded,
            "close or delete those that are not used, or raise the policy where it is set",
        ),
    };
    ApiError::new(kind, text).advise(advice)
}

fn redirect(text: String, at: Listeners) -> ApiError {
    let mut error =
        ApiError::new(ErrorKind::Redirect, text).advise("ask the broker that serves it");
    error.redirect = Some(at);
    error
}

fn uncertain(text: String) -> ApiError {
    let advice = "let it continue from what is known with `aquifer subscription reset TOPIC`, which tells what may \
                  be delivered again; readers and other subscriptions are served meanwhile";
    ApiError::new(ErrorKind::DataLoss, text).advise(advice)
}

fn from_log(error: &LogError, text: String) -> ApiError {
    let (kind, outcome, advice) = match error {
        LogError::Overloaded => (
            ErrorKind::Overloaded,
            Outcome::NotApplied,
            "try again a little later",
        ),
        LogError::StorageFull(_) => (
            ErrorKind::StorageFull,
            Outcome::NotApplied,
            "free disk space, add bookies, or free space in metadata, as the message says; it \
             continues by itself then",
        ),
        LogError::Unavailable(_) => (ErrorKind::Unavailable, Outcome::Unknown, "try again"),
        // Another owner has taken over: a repeated request reaches it, or this one under a new
        // epoch. The client itself was not fenced.
        LogError::Fenced | LogError::Closed => (
            ErrorKind::Unavailable,
            Outcome::Unknown,
            "try again: the topic is being taken over",
        ),
        LogError::HandedOver => (
            ErrorKind::Unavailable,
            Outcome::NotApplied,
            "try again: the topic moves to another broker",
        ),
        LogError::AlreadyExists => (
            ErrorKind::AlreadyExists,
            Outcome::NotApplied,
            "use it, or choose another name",
        ),
        LogError::Damaged(_) => (
            ErrorKind::DataLoss,
            Outcome::Unknown,
            "look at the bookies' logs; `aquifer doctor` says which ledgers are damaged",
        ),
        LogError::Limbo(_) => (
            ErrorKind::DataLoss,
            Outcome::Unknown,
            "a bookie may have lost synced data: repair it, or accept the loss \
             (`--accept-loss`) to go on without",
        ),
        LogError::Metadata(error) => return from_metadata(error, text),
        LogError::Invalid(_) => (
            ErrorKind::Internal,
            Outcome::NotApplied,
            "report this with the broker's log",
        ),
    };
    ApiError::new(kind, text).advise(advice).outcome(outcome)
}

fn from_metadata(error: &MetadataError, text: String) -> ApiError {
    let (kind, outcome, advice) = match error {
        MetadataError::Conflict { .. } => (
            ErrorKind::Unavailable,
            Outcome::NotApplied,
            "try again: it was changed concurrently",
        ),
        MetadataError::Invalid(_) => (
            ErrorKind::Internal,
            Outcome::NotApplied,
            "report this with the broker's log",
        ),
        MetadataError::Denied(_) => (
            ErrorKind::Internal,
            Outcome::NotApplied,
            "let the broker's user read and write the keys of its cluster in the metadata store",
        ),
        MetadataError::Damaged { .. } => (
            ErrorKind::DataLoss,
            Outcome::NotApplied,
            "restore the metadata store from a backup",
        ),
        MetadataError::NewerFormat { .. } => (
            ErrorKind::Unavailable,
            Outcome::NotApplied,
            "upgrade this broker to the newest version that runs in the cluster",
        ),
        MetadataError::Unavailable(_) | MetadataError::SessionExpired => (
            ErrorKind::Unavailable,
            Outcome::NotApplied,
            "try again when the metadata store answers",
        ),
        MetadataError::Full(_) => (ErrorKind::StorageFull, Outcome::NotApplied, MAKE_ROOM),
        MetadataError::UnknownOutcome(_) => (
            ErrorKind::Unavailable,
            Outcome::Unknown,
            "look whether it was done, then try again",
        ),
    };
    ApiError::new(kind, text).advise(advice).outcome(outcome)
}

fn from_body(error: &FormatError, text: String) -> ApiError {
    let (kind, advice) = match error {
        FormatError::Batch(BatchError::Checksum { .. }) => (
            ErrorKind::Checksum,
            "send it again; if it happens again, look at the network and memory of both sides",
        ),
        FormatError::Extension(_) => (
            ErrorKind::TooLarge,
            "shorten the producer's name, schema version, origin or transaction id",
        ),
        FormatError::Batch(BatchError::TooLarge { .. }) => (
            ErrorKind::TooLarge,
            "send smaller messages, or fewer in a batch",
        ),
        FormatError::Unknown(_)
        | FormatError::Batch(
            BatchError::Short { .. }
            | BatchError::Magic(_)
            | BatchError::Inconsistent(_)
            | BatchError::Field(_)
            | BatchError::Compression(_),
        ) => (
            ErrorKind::InvalidArgument,
            "send native batches, or use a client and a broker of the same version",
        ),
    };
    ApiError::new(kind, text).advise(advice)
}
