//! What a backup has of a loaded topic beside its messages.

use crate::error::BrokerError;
use crate::topic::Topic;
use crate::topic::pull::Cursors;

impl Topic {
    /// The subscriptions and producers as they are now.
    pub(super) fn capture(&mut self) -> Result<Cursors, BrokerError> {
        let door = self.door(None)?;
        if !self.attachments.is_whole() {
            return Err(BrokerError::invalid(
                format!("the record of subscriptions of {} is damaged", self.cx.name),
                "let them go on with `aquifer subscription reset`, then back it up",
            ));
        }
        Ok(Cursors {
            door,
            subscriptions: self.attachments.snapshot(),
            producers: self.publishing.producers(),
            dedup_index: self.publishing.persisted_end(),
        })
    }
}
