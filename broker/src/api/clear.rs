//! Giving up what a subscription has not acknowledged, in one topic or partition.
//!
//! What is old is found before the owner is asked, beside its task: a broker's times never go back
//! within a topic, so the place stays what it is. The life of the topic goes with it, so that
//! nothing of another topic of the name is given up.

use aquifer_model::place::Place;
use aquifer_model::topic::{SubscriptionName, TopicName};
use aquifer_protocol_api::admin::Clear;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::pull::{ClearTo, Pull};

impl Broker {
    /// Answers how many messages are given up. Whether it may be asked `again` is for the caller to
    /// say.
    pub(super) async fn clear_here(
        &self,
        topic: &TopicName,
        subscription: &SubscriptionName,
        clear: Clear,
        again: bool,
    ) -> Result<u64, BrokerError> {
        let mut to = ClearTo {
            subscription: subscription.clone(),
            incarnation: None,
            index: None,
            dry_run: clear.dry_run,
        };
        if let Some(age_ms) = clear.older_than_ms {
            let before = self.shared.clock.wall_ms().saturating_sub(age_ms);
            let door = self.topics.door(topic).await?;
            let index = door.log.locate(Place::TimeMs(before)).await;
            to.index = Some(index.map_err(BrokerError::no_place)?);
            to.incarnation = Some(door.incarnation);
        }
        let clear = |reply| Pull::Clear(Box::new(to.clone()), reply).event();
        let cleared = self
            .topics
            .ask_again_if(again, topic, &Create::Never, clear);
        cleared.await
    }
}
