//! Administration of topics, partitioned and not.
//!
//! A partitioned topic is a record that says how many partitions there are; it stores nothing. It
//! is created before its partitions and deleted after them, so that a crash in between leaves
//! something that can be completed or deleted again, and never partitions of a former life.

use std::sync::Arc;

use aquifer_ledger::error::LogError;
use aquifer_ledger::managed::TopicRecordCell;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::Versioned;
use aquifer_model::id::TopicIncarnation;
use aquifer_model::limits::PARTITIONS_MAX;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1::TopicRecord;
use aquifer_protocol_api::broker::{Page, PageRequest, TopicDescription, TopicStats};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, parse};
use crate::ownership::Owned;
use crate::topic::event::Event;
use crate::topic::load::{self, no_topic};

impl Broker {
    pub(super) async fn make_topic(
        &self,
        topic: &TopicName,
        partitions: u32,
    ) -> Result<(), BrokerError> {
        if topic.partition().is_some() {
            return Err(BrokerError::invalid(
                format!("{topic} is the name of a partition"),
                "create the topic with partitions instead; they are created with it",
            ));
        }
        if partitions > PARTITIONS_MAX {
            return Err(BrokerError::invalid(
                format!("{partitions} partitions are more than {PARTITIONS_MAX}"),
                "ask for fewer partitions",
            ));
        }
        let created = self.create_record(topic, partitions).await;
        created.map_err(BrokerError::of_creation)?;
        for number in 0..partitions {
            // One that is not reached, or is another broker's, is created when it is first used.
            match self.create_record(&topic.partition_name(number), 0).await {
                Ok(()) | Err(BrokerError::AlreadyExists { .. } | BrokerError::Elsewhere { .. }) => {
                }
                Err(error) => return Err(error.of_creation()),
            }
        }
        tracing::info!(%topic, partitions, "topic created");
        Ok(())
    }

    async fn create_record(&self, topic: &TopicName, partitions: u32) -> Result<(), BrokerError> {
        // Says which of tenant and namespace is missing.
        self.shared.namespaces.policies(topic.namespace()).await?;
        let owned = self.shared.own(topic).await?;
        let ctx = Arc::clone(&self.shared.log);
        let guards = vec![owned.guard.clone()];
        match TopicRecordCell::create(ctx, topic, partitions, guards).await {
            Ok(_) => Ok(()),
            Err(LogError::AlreadyExists) => Err(BrokerError::AlreadyExists {
                what: "topic",
                name: topic.to_string(),
            }),
            Err(error) => Err(self.lost_if_fenced(&owned, error).await),
        }
    }

    async fn lost_if_fenced(&self, owned: &Owned, error: LogError) -> BrokerError {
        if error == LogError::Fenced {
            self.shared.ownership.lost(owned).await;
        }
        error.into()
    }

    pub(super) async fn describe(
        &self,
        topic: TopicName,
        create: bool,
    ) -> Result<TopicDescription, BrokerError> {
        // Anybody may look; only the owner creates.
        self.shared.namespaces.policies(topic.namespace()).await?;
        // What is served here is known without metadata, so that clients of open topics may come
        // and go while it is away (H8). A partitioned topic is never loaded.
        if let Some(incarnation) = self.topics.incarnation_of(&topic) {
            return Ok(TopicDescription {
                topic,
                partitions: 0,
                incarnation,
            });
        }
        let ctx = Arc::clone(&self.shared.log);
        let cell = match TopicRecordCell::load(ctx, &topic, Vec::new()).await {
            Ok(Some(cell)) => cell,
            // Its owner may know, and where that is needs no metadata.
            Err(error) if error.is_retryable() => {
                self.shared.own(&topic).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
            Ok(None) => {
                let owned = self.shared.own(&topic).await?;
                load::record(&self.shared, &topic, create, &owned).await?
            }
        };
        Ok(TopicDescription {
            topic,
            partitions: cell.record().partitions,
            incarnation: cell.incarnation(),
        })
    }

    pub(super) async fn topics_of(
        &self,
        namespace: &NamespaceName,
        page: PageRequest,
    ) -> Result<Page<TopicDescription>, BrokerError> {
        self.shared.namespaces.policies(namespace).await?;
        let lister = Lister {
            store: self.shared.namespaces.store().as_ref(),
            prefix: keys::topics_prefix(namespace),
        };
        let after = match &page.after {
            None => None,
            Some(after) => {
                let topic = TopicName::new(namespace.clone(), after).map_err(|error| {
                    BrokerError::invalid(error.to_string(), "pass the `next` of the page before")
                })?;
                Some(keys::topic(&topic))
            }
        };
        lister.page(&page, after, look_topic).await
    }

    /// The partitions of a topic, or the topic itself.
    async fn parts(&self, topic: &TopicName) -> Result<(u32, Vec<TopicName>), BrokerError> {
        let ctx = Arc::clone(&self.shared.log);
        let partitions = match TopicRecordCell::load(ctx, topic, Vec::new()).await? {
            Some(cell) => cell.record().partitions,
            None if topic.partition().is_some() => 0,
            None => {
                self.shared.namespaces.policies(topic.namespace()).await?;
                return Err(no_topic(topic));
            }
        };
        Ok((partitions, topic.parts(partitions)))
    }

    pub(super) async fn stats_of(&self, topic: &TopicName) -> Result<TopicStats, BrokerError> {
        let (partitions, parts) = self.parts(topic).await?;
        let mut sum = TopicStats {
            partitions,
            ..TopicStats::default()
        };
        for part in parts {
            let stats = self.topics.ask(&part, false, Event::Stats).await?;
            add(&mut sum, stats);
        }
        Ok(sum)
    }

    pub(super) async fn remove_topic(
        &self,
        topic: &TopicName,
        force: bool,
    ) -> Result<(), BrokerError> {
        // Another owner is to be asked before anything happens.
        self.shared.own(topic).await?;
        let (partitions, parts) = self.parts(topic).await?;
        // Keeps the base name away too, so that partitions are not made anew meanwhile.
        let mut guards = Vec::new();
        if partitions > 0 {
            guards.push(self.topics.begin_delete(topic, force).await?);
        }
        for part in &parts {
            guards.push(self.topics.begin_delete(part, force).await?);
        }
        for part in &parts {
            self.delete_record(part).await?;
        }
        if partitions > 0 {
            self.delete_record(topic).await?;
        }
        drop(guards);
        tracing::info!(%topic, partitions, "topic deleted");
        Ok(())
    }

    async fn delete_record(&self, topic: &TopicName) -> Result<(), BrokerError> {
        let ctx = || Arc::clone(&self.shared.log);
        // Of a partition that is gone nobody has to be the owner.
        let found = TopicRecordCell::load(ctx(), topic, Vec::new()).await?;
        if found.is_none() {
            return Ok(());
        }
        let owned = self.shared.own(topic).await?;
        let cell = TopicRecordCell::load(ctx(), topic, vec![owned.guard.clone()]).await?;
        let Some(cell) = cell else { return Ok(()) };
        match cell.delete().await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.lost_if_fenced(&owned, error).await),
        }
    }
}

/// What a key means to a list of topics: partitions are not listed apart.
fn look_topic(versioned: &Versioned) -> Result<Listed<TopicDescription>, BrokerError> {
    let Key::Topic(topic) = parse(versioned)? else {
        return Ok(Listed::Skip);
    };
    if topic.partition().is_some() {
        return Ok(Listed::Skip);
    }
    let record: TopicRecord = record::decode(versioned)?;
    let incarnation = TopicIncarnation::try_from(record.incarnation.as_ref()).map_err(|error| {
        aquifer_metadata::error::MetadataError::Damaged {
            key: versioned.key.clone(),
            reason: error.to_string(),
        }
    })?;
    let name = topic.name().to_owned();
    let description = TopicDescription {
        topic,
        partitions: record.partitions,
        incarnation,
    };
    Ok(Listed::Item(description, name))
}

/// Adds a partition's figures to those of its topic.
fn add(sum: &mut TopicStats, stats: TopicStats) {
    sum.first_index.0 += stats.first_index.0;
    sum.end_index.0 += stats.end_index.0;
    sum.stored_bytes += stats.stored_bytes;
    sum.entries += stats.entries;
    sum.ledgers.extend(stats.ledgers);
    sum.messages_in += stats.messages_in;
    sum.bytes_in += stats.bytes_in;
    sum.messages_out += stats.messages_out;
    sum.bytes_out += stats.bytes_out;
    sum.producers.extend(stats.producers);
    for subscription in stats.subscriptions {
        let known = sum
            .subscriptions
            .iter_mut()
            .find(|known| known.durable && known.name == subscription.name);
        match known {
            Some(known) if subscription.durable => {
                known.mark_delete.0 += subscription.mark_delete.0;
                known.backlog_messages += subscription.backlog_messages;
                known.unacknowledged_messages += subscription.unacknowledged_messages;
                known.acknowledged_ranges += subscription.acknowledged_ranges;
                known.consumers.extend(subscription.consumers);
            }
            Some(_) | None => sum.subscriptions.push(subscription),
        }
    }
}
