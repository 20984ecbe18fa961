//! Closing a topic on command: it ends in order, as one that is idle does, and the next request
//! loads it again.

use std::sync::Arc;

use aquifer_model::topic::TopicName;

use crate::error::BrokerError;
use crate::topics::{Slot, Step, Topics};

impl Topics {
    /// Closes a topic that this broker owns. Answers whether it was loaded.
    ///
    /// # Errors
    /// `Elsewhere`, and what keeps the owner from being known.
    pub(crate) async fn unload(self: &Arc<Self>, topic: &TopicName) -> Result<bool, BrokerError> {
        self.shared.own(topic).await?;
        let mut asked = None;
        loop {
            let step = match self.map.lock().get(topic) {
                None => return Ok(asked.is_some()),
                Some(Slot::Loading(loading, _)) => Step::WaitLoaded(loading.clone()),
                Some(Slot::Deleting(over)) => Step::WaitDeleted(over.clone()),
                Some(Slot::Loaded(handle)) => Step::Use(handle.clone()),
            };
            match step {
                // Its clients have loaded it again.
                Step::Use(handle) if asked.is_some_and(|id| id != handle.id) => return Ok(true),
                Step::Use(handle) | Step::WaitEnded(handle) | Step::Leaves(handle) => {
                    asked = Some(handle.id);
                    handle.unload();
                    handle.wait_ended().await;
                }
                Step::WaitLoaded(_) if asked.is_some() => return Ok(true),
                Step::WaitLoaded(mut loading) => {
                    // Either way the next look into the map tells.
                    let _ = loading.wait_for(Option::is_some).await;
                }
                Step::WaitDeleted(mut over) => while over.changed().await.is_ok() {},
            }
        }
    }
}
