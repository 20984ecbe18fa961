//! The topic's metadata record.

use std::sync::Arc;

use aquifer_metadata::store::Guard;
use aquifer_model::id::TopicIncarnation;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;

use crate::context::LogContext;
use crate::error::LogError;

/// A topic's metadata record with its revision, changed only by compare-and-swap under guards
/// (I6). Both logs of a topic share it.
pub struct TopicRecordCell {
    record: v1::TopicRecord,
    incarnation: TopicIncarnation,
}

const UNFINISHED: &str = "the topic log is not finished";

impl TopicRecordCell {
    /// Loads the record of an existing topic. Every later change compares `guards` too.
    ///
    /// # Errors
    /// When metadata cannot be read or is damaged.
    pub async fn load(
        _ctx: Arc<LogContext>,
        _topic: &TopicName,
        _guards: Vec<Guard>,
    ) -> Result<Option<Arc<TopicRecordCell>>, LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// Creates a topic with a new incarnation; `partitions` above 0 makes the record of a
    /// partitioned topic, which stores nothing itself.
    ///
    /// # Errors
    /// [`LogError::AlreadyExists`].
    pub async fn create(
        _ctx: Arc<LogContext>,
        _topic: &TopicName,
        _partitions: u32,
        _guards: Vec<Guard>,
    ) -> Result<Arc<TopicRecordCell>, LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }

    /// The record as this process knows it.
    #[must_use]
    pub fn record(&self) -> v1::TopicRecord {
        self.record.clone()
    }

    /// Which life of the topic's name this is.
    #[must_use]
    pub fn incarnation(&self) -> TopicIncarnation {
        self.incarnation
    }

    /// Deletes the topic with its ledgers. Close its logs before. Once this has returned, what a
    /// crash leaves behind is finished by [`super::sweep_intents`].
    ///
    /// # Errors
    /// When metadata cannot be changed.
    pub async fn delete(&self) -> Result<(), LogError> {
        Err(LogError::Unavailable(UNFINISHED.to_owned()))
    }
}
