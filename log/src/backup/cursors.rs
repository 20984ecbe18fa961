//! The subscriptions and producers of a topic that is restored: written through its ordinary log.

use std::sync::Arc;

use aquifer_model::entry::EntryFlags;
use aquifer_model::extensions::Extensions;
use aquifer_model::format::FORMAT_CURSOR;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::context::LogContext;
use crate::error::LogError;
use crate::record::restoring::RestoringTopic;
use crate::topic_log::TopicLog;
use crate::types::{Append, AppendSink, Appended, LogKind, LogOptions};

/// Waits for one append at a time.
#[derive(Default)]
struct OneByOne(Mutex<Option<oneshot::Sender<Result<Appended, LogError>>>>);

impl AppendSink for OneByOne {
    fn appended(&self, _tag: u64, outcome: Result<Appended, LogError>) {
        if let Some(waiting) = self.0.lock().take() {
            // The restore may have been given up.
            let _ = waiting.send(outcome);
        }
    }
}

impl RestoringTopic {
    /// Writes records of a snapshot into the log of the topic's cursors, and seals that. Written
    /// again, they come to the same.
    ///
    /// # Errors
    /// Those of the log.
    pub async fn write_cursors(
        &self,
        ctx: &Arc<LogContext>,
        options: LogOptions,
        records: &[Bytes],
    ) -> Result<(), LogError> {
        if records.is_empty() {
            return Ok(());
        }
        let cell = Arc::clone(self.cell());
        let log = TopicLog::open(Arc::clone(ctx), cell, LogKind::Cursors, options).await?;
        let written = write(&log, records).await;
        let closed = log.close().await;
        written.and(closed)
    }
}

async fn write(log: &TopicLog, records: &[Bytes]) -> Result<(), LogError> {
    let waiting = Arc::new(OneByOne::default());
    let sink: Arc<dyn AppendSink> = waiting.clone();
    for (record, tag) in records.iter().zip(1..) {
        let (tell, outcome) = oneshot::channel();
        *waiting.0.lock() = Some(tell);
        let append = Append {
            format: FORMAT_CURSOR,
            message_count: 1,
            flags: EntryFlags::default(),
            extensions: Extensions::default(),
            body: record.clone(),
            tag,
            trace: None,
        };
        log.append(append, &sink)?;
        let gone = || LogError::Unavailable("the process is shutting down".to_owned());
        outcome.await.unwrap_or_else(|_| Err(gone()))?;
    }
    Ok(())
}
