//! Administration of topics, partitioned and not.
//!
//! A partitioned topic is a record of the ranges of keys that its partitions hold; it stores
//! nothing itself. It is created before its partitions and deleted after them
//! (`topics/deletion.rs`), so that a crash in between leaves something that can be completed or
//! deleted again, and never partitions of a former life. Whichever broker is asked asks the owners
//! of the partitions.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::TopicRecordCell;
use aquifer_log::error::LogError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::store::Versioned;
use aquifer_model::content::TopicContent;
use aquifer_model::hash::KeyHash;
use aquifer_model::id::TopicIncarnation;
use aquifer_model::limits::PARTITIONS_MAX;
use aquifer_model::ranges::TopicRanges;
use aquifer_model::stats::TopicStats;
use aquifer_model::topic::{NamespaceName, TopicName};
use aquifer_proto::v1::TopicRecord;
use aquifer_protocol_api::access::Resource;
use aquifer_protocol_api::admin::{Deletion, Page, PageRequest, TopicDescription, TopicLayout};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_runtime::clock;
use futures::StreamExt;
use parking_lot::Mutex;

use crate::api::reach::{Reach, last_word};
use crate::broker::Broker;
use crate::bundle::ownership::Owned;
use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, parse};
use crate::peers::peer_url;
use crate::security::audit::cause::Create;
use crate::topic::event::Event;
use crate::topic::pull::Pull;
use crate::topic::record::{check_partition, find_or_create};
use crate::topics::deletion::{PARTS_AT_ONCE, parts_of};

/// How often the owner of a partition is looked for again, and the pause before.
pub(super) const HOPS_MAX: u32 = 20;
pub(super) const HOP_PAUSE: Duration = Duration::from_millis(50);

impl Broker {
    pub(super) async fn create_topic_at(
        &self,
        topic: &TopicName,
        partitions: u32,
        reach: Reach,
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
        if let Some(last) = partitions.checked_sub(1) {
            topic.checked_partition_name(last).map_err(|error| {
                BrokerError::invalid(
                    format!("the name is too long for a topic of {partitions} partitions: {error}"),
                    "choose a shorter name: the suffix -partition-N counts as well",
                )
            })?;
        }
        let here = self.create_with_partitions(topic, partitions);
        self.at_owner(reach, here, |peers, url| async move {
            peers.create_topic(&url, topic, partitions).await
        })
        .await
    }

    async fn create_with_partitions(
        &self,
        topic: &TopicName,
        partitions: u32,
    ) -> Result<(), BrokerError> {
        let ranges = TopicRanges::even(partitions);
        match self.create_record(topic, &ranges).await {
            // A topic of this name that is being deleted is deleted first.
            Err(BrokerError::AlreadyExists { what, name }) => {
                let gone = self.finish_deletion(topic).await?;
                gone.ok_or(BrokerError::AlreadyExists { what, name })?;
                let created = self.create_record(topic, &ranges).await;
                created.map_err(BrokerError::of_creation)?;
            }
            created => created.map_err(BrokerError::of_creation)?,
        }
        let parts = parts_of(topic, &ranges);
        let parts = futures::stream::iter(parts).map(|part| async move {
            // One that is not reached, or is another broker's, is created when it is first used.
            if let Err(error) = self.create_partition(&part).await {
                tracing::debug!(topic = %part, %error, "partition is created later");
            }
        });
        if partitions > 0 {
            let () = parts.buffer_unordered(PARTS_AT_ONCE).collect().await;
        }
        tracing::info!(%topic, partitions, "topic created");
        Ok(())
    }

    /// Finishes the deletion of a topic of this name, if there is one.
    async fn finish_deletion(&self, topic: &TopicName) -> Result<Option<()>, BrokerError> {
        let ctx = Arc::clone(&self.shared.log);
        let found = TopicRecordCell::load(ctx, topic, Vec::new()).await?;
        if found.is_some_and(|cell| !cell.is_deleting()) {
            return Ok(None);
        }
        match self.topics.delete(topic, true).await {
            Ok(()) | Err(BrokerError::NotFound { .. }) => Ok(Some(())),
            Err(error) => Err(error),
        }
    }

    async fn create_partition(&self, part: &TopicName) -> Result<(), BrokerError> {
        let owned = self.shared.own(part).await?;
        // It is part of its topic, whose creation is recorded.
        let create = Create::For(None);
        find_or_create(&self.shared, part, &create, &owned)
            .await
            .map(drop)
    }

    async fn create_record(
        &self,
        topic: &TopicName,
        ranges: &TopicRanges,
    ) -> Result<(), BrokerError> {
        // Says which of tenant and namespace is missing.
        let namespaces = &self.shared.namespaces;
        let namespace = namespaces.taking_topics(topic.namespace()).await?;
        let owned = self.shared.own(topic).await?;
        let ctx = Arc::clone(&self.shared.log);
        let guards = vec![owned.guard.clone()];
        let exists = || BrokerError::AlreadyExists {
            what: "topic",
            name: topic.to_string(),
        };
        if let Err(error) = self.shared.check_topics(topic, ranges.partitions()).await {
            let found = TopicRecordCell::load(ctx, topic, Vec::new()).await?;
            return Err(found.map_or(error, |_| exists()));
        }
        let ranges = ranges.clone();
        let created = TopicRecordCell::create_while_holds(ctx, topic, ranges, guards, namespace);
        match created.await {
            Ok(_) => Ok(()),
            Err(LogError::AlreadyExists) => Err(exists()),
            Err(error) => Err(self.lost_if_fenced(&owned, error)),
        }
    }

    fn lost_if_fenced(&self, owned: &Owned, error: LogError) -> BrokerError {
        if error == LogError::Fenced {
            self.shared.ownership.lost(owned);
        }
        error.into()
    }

    pub(super) async fn describe(
        &self,
        topic: TopicName,
        create: &Create,
    ) -> Result<TopicLayout, BrokerError> {
        // Any broker may look; only the owner creates.
        self.shared.namespaces.check(topic.namespace()).await?;
        // What is served here is known without metadata, so that clients of open topics may come
        // and go while it is away (H8). A partitioned topic is never loaded.
        if let Some(incarnation) = self.topics.incarnation_of(&topic) {
            return Ok(TopicLayout {
                topic,
                ranges: TopicRanges::default(),
                // A topic with another one is not loaded.
                key_hash: KeyHash::default(),
                incarnation,
            });
        }
        let ctx = Arc::clone(&self.shared.log);
        let cell = match TopicRecordCell::load(ctx, &topic, Vec::new()).await {
            Ok(Some(cell)) if cell.is_deleting() => {
                let gone = self.being_deleted(&topic);
                // A client that would create it may do so when it is gone.
                return Err(match create.is_allowed() {
                    true => BrokerError::Unloading(gone.to_string()),
                    false => gone,
                });
            }
            Ok(Some(cell)) => cell,
            // Its owner may know, and where that is needs no metadata.
            Err(error) if error.is_retryable() => {
                self.shared.own(&topic).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
            // What is only looked at is never created, and any broker sees that it is not there.
            Ok(None) if !create.is_allowed() => {
                if topic.partition().is_some() {
                    check_partition(&self.shared, &topic).await?;
                }
                return Err(BrokerError::no_topic(&topic));
            }
            Ok(None) => {
                let owned = self.shared.own(&topic).await?;
                find_or_create(&self.shared, &topic, create, &owned).await?
            }
        };
        Ok(TopicLayout {
            topic,
            ranges: cell.ranges(),
            key_hash: cell.key_hash(),
            incarnation: cell.incarnation(),
        })
    }

    pub(super) async fn list_topics_page(
        &self,
        ctx: &RequestContext,
        namespace: &NamespaceName,
        page: PageRequest,
    ) -> Result<Page<TopicDescription>, BrokerError> {
        let exists = self.shared.namespaces.check(namespace).await;
        if let Some(nothing) = self.unseen(ctx, Resource::Namespace(namespace.clone()), exists)? {
            return Ok(nothing);
        }
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
        let deleting = Mutex::new(Vec::new());
        let look = |versioned: &Versioned| -> Result<Listed<TopicDescription>, BrokerError> {
            Ok(match look_topic(versioned, &deleting)? {
                Listed::Item(found, name)
                    if !self.sees(ctx, &Resource::Topic(found.topic.clone())) =>
                {
                    Listed::Hidden(name)
                }
                listed => listed,
            })
        };
        let found = lister.page_for_caller(&page, after, look).await?;
        for topic in deleting.into_inner() {
            self.topics.resume_deletion(&topic);
        }
        Ok(found)
    }

    /// A topic that is not loaded is loaded for it: where its subscriptions stand is in its cursor
    /// log and nowhere else, so a backlog costs the reading of that log either way, and only the
    /// owner of the bundle knows whether what it reads is the end. Nothing is created or written,
    /// except that a ledger which a dead owner left open is recovered, because its end is not known
    /// before. A look at statistics is not a use: the topic is unloaded as without it. For frequent
    /// figures read the metrics, for which nothing is loaded.
    pub(super) async fn stats_of(
        &self,
        topic: &TopicName,
        reach: Reach,
    ) -> Result<TopicStats, BrokerError> {
        let ctx = Arc::clone(&self.shared.log);
        let ranges = match TopicRecordCell::load(ctx, topic, Vec::new()).await? {
            Some(cell) if cell.is_deleting() => return Err(self.being_deleted(topic)),
            Some(cell) => cell.ranges(),
            None if topic.partition().is_some() => {
                // Not used yet, if its topic has it.
                check_partition(&self.shared, topic).await?;
                return Ok(TopicStats::default());
            }
            None => {
                self.shared.namespaces.check(topic.namespace()).await?;
                return Err(BrokerError::no_topic(topic));
            }
        };
        if ranges.is_empty() {
            let here = self.stats_here(topic);
            return self
                .at_owner(reach, here, |peers, url| async move {
                    peers.topic_stats(&url, topic).await
                })
                .await;
        }
        let mut sum = TopicStats {
            partitions: ranges.partitions(),
            ..TopicStats::default()
        };
        let mut parts = futures::stream::iter(parts_of(topic, &ranges))
            .map(|part| self.stats_of_part(part))
            .buffered(PARTS_AT_ONCE);
        while let Some(stats) = parts.next().await {
            add(&mut sum, stats?);
        }
        Ok(sum)
    }

    async fn stats_here(&self, topic: &TopicName) -> Result<TopicStats, BrokerError> {
        // Where its ledgers are is in their records, which the topic itself does not wait for.
        let log = |reply| Pull::Log(reply).event();
        let log = self.topics.ask(topic, &Create::Never, log).await?;
        if let Err(error) = log.learn_offload().await {
            // What was known before is told; statistics need no metadata.
            tracing::debug!(%topic, %error, "statistics without where the ledgers are");
        }
        self.topics.ask(topic, &Create::Never, Event::Stats).await
    }

    /// Statistics of a partition, wherever it is served.
    async fn stats_of_part(&self, part: TopicName) -> Result<TopicStats, BrokerError> {
        let mut hops = 0;
        loop {
            let owner = match self.topics.ask(&part, &Create::Never, Event::Stats).await {
                // Not used yet.
                Err(BrokerError::NotFound { .. }) => return Ok(TopicStats::default()),
                Err(BrokerError::Elsewhere { at, .. }) => at,
                answer => return answer,
            };
            let peers = self.shared.peers()?;
            match peers.topic_stats(peer_url(&owner), &part).await {
                Ok(stats) => return Ok(stats),
                Err(error) if error.kind == ErrorKind::NotFound => {
                    return Ok(TopicStats::default());
                }
                // It moves meanwhile.
                Err(error) if error.kind.is_retryable() && hops < HOPS_MAX => hops += 1,
                Err(error) => return Err(last_word(error).into()),
            }
            clock::sleep(HOP_PAUSE).await;
        }
    }

    pub(super) async fn delete_topic_at(
        &self,
        topic: &TopicName,
        how: Deletion,
        reach: Reach,
    ) -> Result<(), BrokerError> {
        self.shared.namespaces.check(topic.namespace()).await?;
        let here = async {
            match how {
                Deletion::Check => self.topics.check_unused(topic).await,
                _ if topic.partition().is_some() => self.topics.delete_partition(topic).await,
                Deletion::IfUnused => self.topics.delete(topic, false).await,
                Deletion::Force => self.topics.delete(topic, true).await,
            }
        };
        self.at_owner(reach, here, |peers, url| async move {
            peers.delete_topic(&url, topic, how).await
        })
        .await
    }

    /// What a deletion would delete. One that would be refused whether it is forced or not fails.
    pub(super) async fn delete_dry_run(
        &self,
        topic: &TopicName,
        reach: Reach,
    ) -> Result<TopicContent, BrokerError> {
        if topic.partition().is_some() {
            self.topics.check_deletable(topic).await?;
        }
        let stats = self.stats_of(topic, reach).await?;
        let durable = stats.subscriptions.iter().filter(|found| found.durable);
        Ok(TopicContent {
            partitions: stats.partitions,
            messages: stats.end_index.0.saturating_sub(stats.first_index.0),
            stored_bytes: stats.stored_bytes,
            subscriptions: durable.count() as u64,
            in_use: stats.is_in_use(),
        })
    }

    /// What is said of a topic that is being deleted, which goes on thereby.
    fn being_deleted(&self, topic: &TopicName) -> BrokerError {
        self.topics.resume_deletion(topic);
        BrokerError::Deleted(topic.to_string())
    }
}

/// What a key means to a list of topics: partitions are not listed apart.
fn look_topic(
    versioned: &Versioned,
    deleting: &Mutex<Vec<TopicName>>,
) -> Result<Listed<TopicDescription>, BrokerError> {
    let topic = match parse(versioned)? {
        Key::Topic(topic) => topic,
        Key::SegmentPage(topic, ..) => {
            return Ok(Listed::SkipUnder(keys::segment_pages_prefix(&topic)));
        }
        _ => return Ok(Listed::Skip),
    };
    if topic.partition().is_some() {
        return Ok(Listed::Skip);
    }
    let record: TopicRecord = record::decode(versioned)?;
    if record.deleting {
        let name = topic.name().to_owned();
        deleting.lock().push(topic);
        return Ok(Listed::Hidden(name));
    }
    let incarnation = TopicIncarnation::try_from(record.incarnation.as_ref()).map_err(|error| {
        aquifer_metadata::error::MetadataError::Damaged {
            key: versioned.key.clone(),
            reason: error.to_string(),
        }
    })?;
    let name = topic.name().to_owned();
    let description = TopicDescription {
        topic,
        partitions: u32::try_from(record.ranges.len()).unwrap_or(u32::MAX),
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
    sum.held_back_by = sum.held_back_by.take().or(stats.held_back_by);
    sum.ends.extend(stats.ends);
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
                known.damaged_messages += subscription.damaged_messages;
                known.acknowledged_ranges += subscription.acknowledged_ranges;
                known.consumers.extend(subscription.consumers);
                known.held_back_by = known.held_back_by.take().or(subscription.held_back_by);
            }
            Some(_) | None => sum.subscriptions.push(subscription),
        }
    }
}
