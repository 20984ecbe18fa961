//! How closely limits are held.

use anyhow::Result;
use aquifer_model::policy::rate::Rate;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate};

use crate::Suite;
use crate::row::{Bound, Row};

/// Messages a second that the topic takes.
const RATE: u64 = 10_000;
/// The producer sends as fast as it may for this long.
const SECONDS: u64 = 30;

impl Suite {
    /// A topic with a publish rate, and a producer that would send many times as much. What passes
    /// beyond the rate is its burst, a second of it.
    pub(crate) async fn limited(&mut self) -> Result<()> {
        let (topic, client) = (self.topic(), self.client()?);
        client.admin().create_topic(&topic, 0).await?;
        let limit = Rate {
            messages: Some(RATE),
            ..Rate::UNLIMITED
        };
        let update = PolicyUpdate {
            set: Policies {
                publish_rate: Some(limit),
                ..Policies::default()
            },
            ..PolicyUpdate::default()
        };
        let scope = PolicyScope::Topic(topic.parse()?);
        client.admin().update_policies(&scope, update).await?;
        let load = self.load(self.seconds(SECONDS), 1_000).topic(&topic);
        let published = load.produce().await?.complete()?;
        self.remove(&client, &[topic]).await?;
        let wanted = RATE as f64;
        let off = (published.messages_per_second - wanted).abs() / wanted * 100.0;
        let row = Row::new(
            "publish at a limit of 10,000 msg/s, off by",
            off,
            "%",
            Bound::AtMost,
            5.0,
        );
        let note = format!(
            "{:.0} msg/s over {:.1} s",
            published.messages_per_second, published.seconds
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}
