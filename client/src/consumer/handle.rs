//! Opening a consumer or reader on every partition, and ending it: the session tasks are tied to
//! the handle.

use std::sync::Arc;

use aquifer_model::topic::TopicName;
use aquifer_runtime::task::TaskHandle;
use futures::StreamExt;

use crate::consumer::receiver::Receiver;
use crate::consumer::session::ConsumeSession;
use crate::consumer::settings::Settings;
use crate::context::Context;
use crate::error::{ClientError, Outcome, Result};
use crate::lookup;
use crate::retry::Deadline;
use crate::session::Driver;

/// Partitions that are opened at once.
const OPENING_MAX: usize = 16;
/// Owns the session tasks: dropping it ends the consumer or reader.
pub(crate) struct Handle {
    pub(crate) receiver: Arc<Receiver>,
    tasks: Vec<TaskHandle<()>>,
}

impl Handle {
    /// Subscribes to every partition and starts the tasks that stay subscribed.
    pub(crate) async fn open(
        context: Arc<Context>,
        topic: &str,
        settings: Settings,
    ) -> Result<Handle> {
        settings.check()?;
        let topic: TopicName = topic.parse()?;
        let deadline = Deadline::after(context.operation_timeout);
        let layout = lookup::layout(&context, &topic, deadline).await?;
        if settings.purpose.keeps_key_order() {
            layout.check_order()?;
        }
        let topics = layout.parts();
        let count = topics.len();
        let receiver = Arc::new(Receiver::new(context, settings, topics));
        let mut handle = Handle {
            receiver: Arc::clone(&receiver),
            tasks: Vec::with_capacity(count),
        };
        let opening = (0..count).map(|at| {
            let session = ConsumeSession::new(Arc::clone(&receiver), at);
            Driver::open(session, deadline)
        });
        let mut opening = futures::stream::iter(opening).buffered(OPENING_MAX);
        while let Some(driver) = opening.next().await {
            let tasks = &receiver.context.tasks;
            let task = tasks.spawn("consume session", driver?.drive());
            handle.tasks.push(task);
        }
        drop(opening);
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tasks.iter().for_each(TaskHandle::abort);
        self.receiver.fail(&ClientError::Closed {
            what: self.receiver.settings.purpose.what(),
            outcome: Outcome::Unknown,
        });
        (0..self.receiver.partitions()).for_each(|at| self.receiver.ended(at));
    }
}
