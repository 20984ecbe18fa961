//! The topic of the audit log: brokers write what `security::audit` has lines of, and callers read
//! what they may.
//!
//! Invariants:
//! - A line that is in the topic is there once: each broker appends under a name of its own, with
//!   ascending sequence ids, and repeats a batch as it was (I8).
//! - Nothing waits for the topic. While it cannot be written the lines wait in bounded memory, and
//!   the log of the process has them.
//! - A checkpoint is remembered in metadata once the topic has it.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::batch::{
    Batch, BatchBuilder, BatchError, BatchFields, Compression, MessageRecord, MessageRow,
};
use aquifer_model::format::{FORMAT_NATIVE, native};
use aquifer_model::id::Index;
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, Retention};
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::pull::{Append, Locate, Read, ReadLimits, StoredBatch};
use aquifer_protocol_api::security::{AuditPage, ReadAudit};
use aquifer_runtime::clock;
use bytes::{Bytes, BytesMut};
use serde::Deserialize;

use crate::api::reach::Reach;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::peers::{Lines, peer_url};
use crate::security::audit::cause::Create;
use crate::security::audit::{TOPIC, ends};
use crate::security::{Guard, principal};

/// How long lines are kept.
const RETENTION: Duration = Duration::from_secs(400 * 86_400);
/// First and longest pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a broker that stops waits for its last lines.
const LAST_LINES_WAIT: Duration = Duration::from_secs(2);
/// How long a caller waits for a first line at most.
const NOTHING_YET_WAIT_MAX: Duration = Duration::from_secs(1);
/// Most lines of one answer.
const LINES_MAX: u32 = 1_000;
/// Bytes of the topic that one request looks through.
const SCAN_BYTES: usize = 1 << 20;

/// Writes the lines of a broker to the topic until the process ends.
pub(crate) fn start(broker: &Arc<Broker>) {
    let Some(guard) = broker.shared.guard.clone() else {
        return;
    };
    guard.audit.mark("start_broker");
    let (tasks, broker) = (&broker.shared.tasks, Arc::clone(broker));
    let token = tasks.shutdown_token();
    tasks.spawn("audit", async move {
        tokio::select! {
            () = broker.write_lines(&guard) => {}
            () = token.wait() => {}
        }
    });
}

/// The last line of a broker that stops, and what waits before it: until they are stored, or for
/// a moment.
pub(crate) async fn stop(broker: &Broker) {
    let Some(guard) = &broker.shared.guard else {
        return;
    };
    guard.audit.mark("stop_broker");
    guard.audit.checkpoint();
    let stored = clock::timeout(LAST_LINES_WAIT, guard.audit.waiting.emptied()).await;
    if stored.is_err() {
        tracing::warn!("the last lines of the audit log are in the log of this process only");
    }
}

impl Broker {
    async fn write_lines(&self, guard: &Guard) {
        let mut next_id = 0;
        loop {
            let lines = guard.audit.waiting.first().await;
            let end = ends::last_of(lines.iter().map(|line| &**line));
            let lines: Vec<Bytes> = lines
                .iter()
                .map(|line| Bytes::copy_from_slice(line.as_bytes()))
                .collect();
            let count = lines.len();
            let lines = Lines {
                producer: format!("audit-{}", self.id()),
                sequence_id: next_id,
                lines,
            };
            let mut pause = PAUSE_MIN;
            while let Err(error) = self.append_lines(&lines).await {
                if pause == PAUSE_MIN {
                    tracing::warn!(%error, "the audit topic takes no lines; the log has them");
                }
                clock::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            next_id += count as u64;
            if let Some(end) = end
                && let Err(error) = ends::remember(guard.records.store(), &end).await
            {
                tracing::warn!(%error, "a checkpoint of the audit log is not remembered");
            }
            guard.audit.waiting.done(count);
            let left_out = guard.audit.waiting.take_left_out();
            if left_out > 0 {
                tracing::warn!(lines = left_out, "lines are missing in the audit topic");
            }
        }
    }

    /// Appends at the broker that serves the topic.
    async fn append_lines(&self, lines: &Lines) -> Result<(), BrokerError> {
        let topic = audit_topic()?;
        match self.append_lines_here(&topic, lines).await {
            Err(BrokerError::NotFound { .. }) => {
                self.create_audit_namespace(&topic).await?;
                self.append_lines_here(&topic, lines).await
            }
            Err(BrokerError::Elsewhere { what, at }) => match &self.shared.peers {
                Some(peers) => {
                    let appended = peers.append(peer_url(&at), &topic, lines).await;
                    appended.map_err(BrokerError::from)
                }
                None => Err(BrokerError::Elsewhere { what, at }),
            },
            done => done,
        }
    }

    async fn append_lines_here(&self, topic: &TopicName, lines: &Lines) -> Result<(), BrokerError> {
        let now_ms = self.shared.clock.wall_ms();
        let body = batch_of(lines, now_ms).map_err(|error| {
            BrokerError::Internal(format!("lines of the audit log fit into no batch: {error}"))
        })?;
        let append = Append {
            topic: topic.clone(),
            incarnation: None,
            format: FORMAT_NATIVE,
            body,
            held: Held::default(),
        };
        let ctx = RequestContext::of(principal::own(self.id()), "internal");
        let appended = self.append_or_create(&ctx, append, &Create::For(None));
        appended.await.map(drop)
    }

    /// Creates tenant and namespace of the topic.
    async fn create_audit_namespace(&self, topic: &TopicName) -> Result<(), BrokerError> {
        let namespaces = &self.shared.namespaces;
        let policies = Policies {
            retention: Some(Retention {
                time_ms: Some(clock::millis(RETENTION)),
                size_bytes: Some(0),
            }),
            auto_create_topics: Some(true),
            deduplication: Some(true),
            ..Policies::default()
        };
        match namespaces.create_tenant(topic.namespace().tenant()).await {
            Ok(()) | Err(BrokerError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        match self
            .create_namespace_record(topic.namespace(), policies)
            .await
        {
            Ok(_) | Err(BrokerError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Lines from a place on: all of them, or those of a tenant. For a caller that cannot go to
    /// the broker that serves the topic, that broker is asked for the same.
    pub(super) async fn read_audit_lines(
        &self,
        ctx: &RequestContext,
        request: ReadAudit,
    ) -> Result<AuditPage, BrokerError> {
        let read = ReadAudit {
            // The owner knows nothing of the time that this caller has.
            wait: self.read_wait(ctx, request.wait),
            ..request.clone()
        };
        let here = self.read_audit_lines_here(ctx, request);
        self.at_owner(Reach::of(ctx), here, |peers, url| async move {
            peers.read_audit(&url, read).await
        })
        .await
    }

    async fn read_audit_lines_here(
        &self,
        ctx: &RequestContext,
        request: ReadAudit,
    ) -> Result<AuditPage, BrokerError> {
        let topic = audit_topic()?;
        let from = match request.from {
            Place::Index(index) => index,
            place => {
                let topic = topic.clone();
                let located = self.locate_place(Locate {
                    topic,
                    incarnation: None,
                    place,
                });
                match located.await {
                    Ok(located) => located.index,
                    // Nothing was written yet.
                    Err(BrokerError::NotFound { .. }) => return Ok(nothing_yet(request.wait).await),
                    Err(error) => return Err(error),
                }
            }
        };
        let limits = ReadLimits {
            bytes_max: SCAN_BYTES,
            batches_max: LINES_MAX as usize,
            bytes_min: 1,
        };
        let read = Read {
            topic,
            incarnation: None,
            from,
            limits,
            wait: request.wait,
        };
        let found = match self.read_batches(ctx, read).await {
            Ok(found) => found,
            Err(BrokerError::NotFound { .. }) => return Ok(nothing_yet(request.wait).await),
            Err(error) => return Err(error),
        };
        let before = request.before.unwrap_or(Index(u64::MAX));
        let limit = request.limit.clamp(1, LINES_MAX) as usize;
        let mut page = AuditPage {
            lines: Vec::new(),
            next: found.next,
            at_end: false,
            missing: u64::from(found.gap.is_some()),
        };
        'batches: for batch in &found.batches {
            for (index, line) in lines_of(batch) {
                if index < from {
                    continue;
                }
                if index >= before {
                    page.next = before;
                    break 'batches;
                }
                let Some(line) = line else {
                    page.missing += 1;
                    continue;
                };
                if !is_for(request.tenant.as_deref(), &line) {
                    continue;
                }
                if page.lines.len() == limit {
                    page.next = index;
                    break 'batches;
                }
                page.lines.push(line);
            }
        }
        page.at_end = page.next >= found.bounds.visible_end.min(before);
        Ok(page)
    }
}

/// The page of a topic that has no line yet. It is not asked for again and again at once.
async fn nothing_yet(wait: Duration) -> AuditPage {
    clock::sleep(wait.min(NOTHING_YET_WAIT_MAX)).await;
    AuditPage {
        at_end: true,
        ..AuditPage::default()
    }
}

fn audit_topic() -> Result<TopicName, BrokerError> {
    let topic = TOPIC.parse::<TopicName>();
    topic.map_err(|error| BrokerError::Internal(error.to_string()))
}

/// One message for each line, not compressed, so that brokers can read them.
fn batch_of(lines: &Lines, now_ms: u64) -> Result<Bytes, BatchError> {
    let bytes = lines.lines.iter().map(Bytes::len).sum();
    let mut builder = BatchBuilder::new(BytesMut::new(), lines.lines.len(), bytes);
    for (delta, line) in (0..).zip(&lines.lines) {
        let record = MessageRecord {
            value: line.clone(),
            ..MessageRecord::default()
        };
        let row = MessageRow {
            sequence_delta: delta,
            ..MessageRow::default()
        };
        builder.push(&record, row)?;
    }
    let more = lines.lines.len().saturating_sub(1) as u64;
    let fields = BatchFields {
        producer_name: Bytes::copy_from_slice(lines.producer.as_bytes()),
        lowest_sequence_id: lines.sequence_id,
        highest_sequence_id: lines.sequence_id.saturating_add(more),
        publish_time_ms: now_ms,
        uncompressed_bytes: u32::try_from(builder.payload().len()).unwrap_or(u32::MAX),
        ..BatchFields::default()
    };
    builder.finish(&fields)
}

/// The lines of a batch with their indexes; `None` for what is not a line: only brokers may append,
/// so that it is damage.
fn lines_of(stored: &StoredBatch) -> impl Iterator<Item = (Index, Option<String>)> + use<> {
    let batch = native(stored.format, &stored.body).ok();
    let batch = batch.filter(|batch| batch.fields().compression == Compression::None);
    let mut payload = batch.as_ref().map(Batch::payload).unwrap_or_default();
    let rows: Vec<MessageRow> = batch.iter().flat_map(Batch::rows).collect();
    let base = stored.at.base_index;
    (0..stored.message_count).map(move |number| {
        let line = rows.get(number as usize).and_then(|row| {
            let size = row.size_bytes as usize;
            let record = (size <= payload.len()).then(|| payload.split_to(size))?;
            let record = MessageRecord::decode(record).ok()?;
            String::from_utf8(record.value.to_vec()).ok()
        });
        (base.plus(u64::from(number)), line)
    })
}

/// Whether a line is about a tenant; without one every line is wanted.
fn is_for(tenant: Option<&str>, line: &str) -> bool {
    #[derive(Deserialize)]
    struct Said {
        tenant: Option<String>,
    }
    let Some(tenant) = tenant else {
        return true;
    };
    let said = serde_json::from_str::<Said>(line).ok();
    said.and_then(|said| said.tenant).as_deref() == Some(tenant)
}

#[cfg(test)]
mod tests {
    use aquifer_model::id::{EntryId, LedgerId};
    use aquifer_protocol_api::producer::StoredAt;

    use super::*;

    fn stored(body: Bytes, message_count: u32) -> StoredBatch {
        StoredBatch {
            at: StoredAt {
                ledger: LedgerId(1),
                entry: EntryId(2),
                base_index: Index(40),
            },
            message_count,
            broker_time_ms: 1,
            format: FORMAT_NATIVE,
            body,
            held: Held::default(),
        }
    }

    #[test]
    fn lines_come_back_with_their_indexes_and_damage_is_counted() {
        let texts = ["{\"tenant\":\"acme\"}", "{}", "{\"tenant\":\"other\"}"];
        let lines = Lines {
            producer: "audit-1".to_owned(),
            sequence_id: 7,
            lines: texts.map(Bytes::from).to_vec(),
        };
        let body = batch_of(&lines, 5).unwrap();
        let found: Vec<_> = lines_of(&stored(body.clone(), 3)).collect();
        let expected = (40..)
            .map(Index)
            .zip(texts.map(|text| Some(text.to_owned())));
        assert_eq!(found, expected.collect::<Vec<_>>());
        let fields = Batch::parse(body).unwrap().fields().clone();
        assert_eq!(
            (fields.lowest_sequence_id, fields.highest_sequence_id),
            (7, 9)
        );

        let damaged: Vec<_> = lines_of(&stored(Bytes::from_static(b"no batch"), 2)).collect();
        assert_eq!(damaged, [(Index(40), None), (Index(41), None)]);
    }

    #[test]
    fn a_tenant_sees_its_lines_only() {
        assert!(is_for(None, "whatever"));
        assert!(is_for(Some("acme"), "{\"seq\":1,\"tenant\":\"acme\"}"));
        assert!(!is_for(Some("acme"), "{\"seq\":1,\"tenant\":\"acme2\"}"));
        assert!(!is_for(Some("acme"), "{\"seq\":1,\"detail\":\"acme\"}"));
        assert!(!is_for(Some("acme"), "no line"));
    }
}
