//! Requests that stand alone, as a client without any cleverness sends them.

use std::time::Duration;

use aquifer_model::id::{EntryId, Index, LedgerId, TopicIncarnation};
use aquifer_model::limits::FRAME_BYTES_MAX;
use aquifer_model::place::Place;
use aquifer_model::position::Position;
use aquifer_proto::v1;
use aquifer_proto::v1::pull_client::PullClient as Wire;
use aquifer_protocol_api::conformance::Refusal;
use aquifer_protocol_api::conformance::pull::PullClient;
use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::producer::StoredAt;
use aquifer_protocol_api::pull::{
    Appended, Located, LocatedMessage, ReadBatches, ReadLimits, StoredBatch, TopicBounds,
};
use async_trait::async_trait;
use bytes::Bytes;
use tonic::transport::Channel;

use crate::raw::{RawClient, unary};

impl RawClient {
    fn pull(&self) -> Wire<Channel> {
        Wire::new(self.channel.clone()).max_decoding_message_size(FRAME_BYTES_MAX)
    }
}

fn life(bytes: &Bytes) -> TopicIncarnation {
    TopicIncarnation::try_from(bytes.as_ref()).unwrap()
}

fn bounds(bounds: Option<v1::TopicBounds>) -> TopicBounds {
    let bounds = bounds.unwrap();
    TopicBounds {
        incarnation: life(&bounds.topic_incarnation),
        first: Index(bounds.first_index),
        visible_end: Index(bounds.visible_end_index),
        end: Index(bounds.end_index),
    }
}

fn batch(batch: v1::StoredBatch) -> StoredBatch {
    StoredBatch {
        at: StoredAt {
            ledger: LedgerId(batch.ledger_id),
            entry: EntryId(batch.entry_id),
            base_index: Index(batch.base_index),
        },
        message_count: batch.message_count,
        broker_time_ms: batch.broker_time_ms,
        format: u16::try_from(batch.format).unwrap(),
        body: batch.body,
        held: Held::default(),
    }
}

#[async_trait]
impl PullClient for RawClient {
    async fn append(&self, topic: &str, body: Bytes) -> Result<Appended, Refusal> {
        let request = v1::AppendRequest {
            topic: topic.to_owned(),
            format: 1,
            body,
            ..v1::AppendRequest::default()
        };
        let answer = self.pull().append(request).await;
        let answer = answer.map_err(|status| unary(&status))?.into_inner();
        let stored = StoredAt {
            ledger: LedgerId(answer.ledger_id),
            entry: EntryId(answer.entry_id),
            base_index: Index(answer.base_index),
        };
        Ok(Appended {
            incarnation: life(&answer.topic_incarnation),
            stored: (!answer.position_unknown).then_some(stored),
            message_count: answer.message_count,
            broker_time_ms: answer.broker_time_ms,
            duplicate: answer.duplicate,
        })
    }

    async fn read(
        &self,
        topic: &str,
        from: Index,
        limits: ReadLimits,
        wait: Duration,
    ) -> Result<ReadBatches, Refusal> {
        let request = v1::ReadTopicRequest {
            topic: topic.to_owned(),
            topic_incarnation: None,
            from_index: from.0,
            bytes_max: limits.bytes_max as u64,
            batches_max: u32::try_from(limits.batches_max).unwrap(),
            bytes_min: limits.bytes_min as u64,
            wait_ms: u64::try_from(wait.as_millis()).unwrap(),
        };
        let answer = self.pull().read(request).await;
        let answer = answer.map_err(|status| unary(&status))?.into_inner();
        assert_eq!(answer.gap, None, "the fake has everything");
        Ok(ReadBatches {
            bounds: bounds(answer.bounds),
            batches: answer.batches.into_iter().map(batch).collect(),
            gap: None,
            next: Index(answer.next_index),
        })
    }

    async fn locate(&self, topic: &str, place: Place) -> Result<Located, Refusal> {
        let request = v1::LocateRequest {
            topic: topic.to_owned(),
            topic_incarnation: None,
            place: place.to_string(),
        };
        let answer = self.pull().locate(request).await;
        let answer = answer.map_err(|status| unary(&status))?.into_inner();
        let message = answer.message.map(|message| LocatedMessage {
            position: Position {
                ledger: LedgerId(message.ledger_id),
                entry: EntryId(message.entry_id),
                batch_index: message.batch_index,
            },
            broker_time_ms: message.broker_time_ms,
        });
        let index = Index(answer.index);
        Ok(Located { index, message })
    }

    async fn bounds(&self, topic: &str) -> Result<TopicBounds, Refusal> {
        let topic = topic.to_owned();
        let answer = self.pull().bounds(v1::BoundsRequest { topic }).await;
        let answer = answer.map_err(|status| unary(&status))?.into_inner();
        Ok(bounds(answer.bounds))
    }

    async fn commit(
        &self,
        topic: &str,
        subscription: &str,
        index: Index,
        create: bool,
    ) -> Result<Index, Refusal> {
        let request = v1::CommitRequest {
            topic: topic.to_owned(),
            topic_incarnation: None,
            subscription: subscription.to_owned(),
            index: index.0,
            create,
        };
        let answer = self.pull().commit(request).await;
        let answer = answer.map_err(|status| unary(&status))?.into_inner();
        Ok(Index(answer.index))
    }

    async fn committed(&self, topic: &str, subscription: &str) -> Result<Option<Index>, Refusal> {
        let request = v1::CommittedRequest {
            topic: topic.to_owned(),
            subscription: subscription.to_owned(),
        };
        let answer = self.pull().committed(request).await;
        let answer = answer.map_err(|status| unary(&status))?.into_inner();
        Ok(answer.index.map(Index))
    }
}
