//! Opening a producer on one partition, and ending it: the session task is tied to the handle.

use std::sync::Arc;

use aquifer_runtime::task::TaskHandle;

use crate::error::{ClientError, Outcome, Result};
use crate::producer::partition::Partition;
use crate::producer::session::ProduceSession;
use crate::retry::Deadline;
use crate::session::Driver;

/// Owns a partition's session task: dropping it ends the producer on that partition.
pub(crate) struct Handle {
    pub(crate) partition: Arc<Partition>,
    task: TaskHandle<()>,
}

impl Handle {
    /// Opens the first session and starts the task that keeps one open.
    pub(crate) async fn open(partition: Partition, deadline: Deadline) -> Result<Handle> {
        let partition = Arc::new(partition);
        let session = ProduceSession::new(Arc::clone(&partition));
        let driver = Driver::open(session, deadline).await?;
        let tasks = &partition.context.tasks;
        let task = tasks.spawn("producer session", driver.drive());
        Ok(Handle { partition, task })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
        let error = ClientError::Closed {
            what: "producer",
            outcome: Outcome::Unknown,
        };
        self.partition.fail(&error, true);
        self.partition.ended.set(());
    }
}
