//! The audit log: what was changed, refused and ended, as JSON lines at the log target `audit` and
//! in the topic [`TOPIC`], which gets them from `waiting`.
//!
//! The lines of one process are a chain: each has its chain and a number, the digest of the line
//! before and its own, so that a line which is missing, changed or moved shows. A change has two
//! lines with the same request id: what is intended, before anything is done, and how it came out.
//! Refusals, and what consumers do all the time, are written at once the first time, and as counts
//! after that, so that a flood of them fills no disk.
//!
//! A checkpoint is a line that is signed with a key of the cluster: a process that has the
//! lines and not the key makes no other chain that holds. A checkpoint comes behind a number of
//! lines, after some time, and at the end of a clean stop.

pub(crate) mod cause;
pub(crate) mod ends;
mod refusals;
pub(crate) mod waiting;

use std::net::SocketAddr;
use std::time::Duration;

use aquifer_model::id::BrokerId;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::context::{Principal, RequestContext, RequestId};
use aquifer_protocol_api::error::{ErrorKind, Outcome};
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::secret::sha256_hex;
use aquifer_runtime::signing::{SigningKey, to_hex};
use parking_lot::Mutex;
use serde::Serialize;

use crate::security::audit::refusals::{Refusal, Refusals};
use crate::security::audit::waiting::Waiting;

/// The topic that has the lines of all brokers of a cluster.
pub(crate) const TOPIC: &str = "aquifer/system/audit";

/// The name of the secret of the cluster that checkpoints are signed with.
pub(crate) const KEY: &str = "audit";
/// The request that a checkpoint names.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// A checkpoint comes behind this many lines at the latest.
const SIGNED_LINES: u64 = 1_000;
/// And this time behind a line.
const SIGNED_WITHIN: Duration = Duration::from_secs(60);

/// What stands for the digest of the line before the first one.
const FIRST_PREV: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Longest text of a field, in bytes: names come from callers.
const TEXT_BYTES_MAX: usize = 256;

/// Requests that change something. Everything else is written only when it is refused.
const CHANGES: [&str; 40] = [
    "add_grant",
    "add_revocation",
    "begin_backup",
    "clear_subscription",
    "clear_subscription_dry_run",
    "create_namespace",
    "create_role",
    "create_subscription",
    "create_tenant",
    "create_token",
    "create_topic",
    "delete_namespace",
    "delete_namespace_dry_run",
    "delete_role",
    "delete_subscription",
    "delete_tenant",
    "delete_tenant_dry_run",
    "delete_topic",
    "delete_topic_dry_run",
    "finish_backup",
    "forget_backup",
    "grow_topic",
    "offload_topic",
    "reimport_topic",
    "remove_grant",
    "remove_revocation",
    "reset_subscriptions",
    "restore_access",
    "restore_topic",
    "revoke_token",
    "rotate_token",
    "seek_subscription",
    "skip_messages",
    "split_bundle",
    "take_over_producer",
    "terminate_topic",
    "transfer_bundle",
    "unload_topic",
    "update_policies",
    "update_role",
];

/// Those that consumers make all the time.
const FREQUENT: [&str; 2] = ["commit", "seek"];

/// Whether a request is recorded that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    Never,
    /// The first time, and counted after that.
    Often,
    Always,
}

impl Recorded {
    /// That of a request.
    pub(crate) fn of(request: &str) -> Recorded {
        if CHANGES.binary_search(&request).is_ok() {
            return Recorded::Always;
        }
        match FREQUENT.contains(&request) {
            true => Recorded::Often,
            false => Recorded::Never,
        }
    }
}

/// One line.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Record {
    chain: String,
    seq: u64,
    prev: String,
    time_ms: u64,
    request_id: String,
    principal: String,
    auth_method: &'static str,
    peer: Option<SocketAddr>,
    protocol: &'static str,
    request: String,
    action: &'static str,
    resource: String,
    /// Whose auditors may read it besides those of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<String>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// How often the same happened, where lines were left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

impl Record {
    /// A line about a caller's request.
    pub(crate) fn of(ctx: &RequestContext, access: &Access) -> Record {
        let record = Record::about(&ctx.principal, ctx.protocol, access.request);
        let record = record.on(access.action, access.subject());
        record.came_from(ctx.peer)
    }

    /// About an action on something.
    pub(crate) fn on(self, action: Action, resource: &Resource) -> Record {
        Record {
            resource: shortened(&resource.to_string()),
            tenant: resource.tenant().map(shortened),
            action: action.name(),
            ..self
        }
    }

    /// Of what is about to be done.
    fn intended(self) -> Record {
        Record {
            outcome: "intended",
            ..self
        }
    }

    /// A line about a principal.
    pub(crate) fn about(principal: &Principal, protocol: &'static str, request: &str) -> Record {
        let identity = principal.identity();
        Record {
            principal: shortened(principal.name()),
            auth_method: identity.map_or("none", |identity| identity.method.name()),
            protocol,
            request: shortened(request),
            ..Record::default()
        }
    }

    /// Of what happened so often besides what is written.
    fn counted(kind: Refusal, count: u64) -> Record {
        Record {
            principal: kind.who,
            request: kind.request,
            resource: kind.resource,
            tenant: kind.tenant,
            count: Some(count),
            ..Record::default()
        }
    }

    pub(crate) fn came_from(self, peer: Option<SocketAddr>) -> Record {
        Record { peer, ..self }
    }

    pub(crate) fn named(self, request_id: &RequestId) -> Record {
        Record {
            request_id: request_id.to_string(),
            ..self
        }
    }

    pub(crate) fn allowed(self, grant: Option<String>) -> Record {
        Record {
            decision: "allowed",
            grant,
            ..self
        }
    }

    pub(crate) fn detail(self, detail: &str) -> Record {
        Record {
            detail: Some(shortened(detail)),
            ..self
        }
    }

    /// With how it came out; `None`: well.
    pub(crate) fn ended(self, error: Option<(ErrorKind, Outcome)>) -> Record {
        let outcome = match error {
            None => "done",
            Some((_, Outcome::NotApplied)) => "failed",
            Some((_, Outcome::Applied | Outcome::Unknown)) => "unknown",
        };
        Record {
            outcome,
            error_code: error.map(|(kind, _)| format!("{kind:?}")),
            ..self
        }
    }

    pub(crate) fn refused(self, kind: ErrorKind) -> Record {
        Record {
            decision: "denied",
            outcome: "failed",
            error_code: Some(format!("{kind:?}")),
            ..self
        }
    }
}

/// The chain of lines of this process.
pub(crate) struct Audit {
    clock: SharedClock,
    key: SigningKey,
    chain: Mutex<Chain>,
    /// What the topic does not have yet.
    pub(crate) waiting: Waiting,
    refusals: Mutex<Refusals>,
    /// What was let in, and is done all the time.
    frequent: Mutex<Refusals>,
}

struct Chain {
    id: String,
    seq: u64,
    prev: String,
    /// Lines since the last checkpoint, and when the first of them was written.
    unsigned: u64,
    unsigned_since: Duration,
}

impl Audit {
    pub(crate) fn new(broker: BrokerId, clock: SharedClock, key: SigningKey) -> Audit {
        Audit {
            refusals: Mutex::new(Refusals::new(clock.monotonic())),
            frequent: Mutex::new(Refusals::new(clock.monotonic())),
            clock,
            key,
            waiting: Waiting::default(),
            chain: Mutex::new(Chain {
                id: broker.to_string(),
                seq: 0,
                prev: FIRST_PREV.to_owned(),
                unsigned: 0,
                unsigned_since: Duration::ZERO,
            }),
        }
    }

    /// By which others know the signatures of checkpoints.
    pub(crate) fn public_key(&self) -> Vec<u8> {
        self.key.public().to_vec()
    }

    /// Writes a line.
    pub(crate) fn write(&self, record: Record) {
        let mut chain = self.chain.lock();
        if chain.unsigned == 0 {
            chain.unsigned_since = self.clock.monotonic();
        }
        chain.unsigned += 1;
        self.append(&mut chain, record, None);
        if chain.unsigned >= SIGNED_LINES {
            self.sign(&mut chain);
        }
    }

    /// Writes a checkpoint, if there are lines that no other follows.
    pub(crate) fn checkpoint(&self) {
        let mut chain = self.chain.lock();
        if chain.unsigned > 0 {
            self.sign(&mut chain);
        }
    }

    fn sign(&self, chain: &mut Chain) {
        chain.unsigned = 0;
        let record = of_process(CHECKPOINT);
        self.append(chain, record, Some(&self.key));
    }

    /// Within the lock of the chain, so that lines come in their order.
    fn append(&self, chain: &mut Chain, record: Record, key: Option<&SigningKey>) {
        let (line, hash) = line(record, chain, self.clock.wall_ms(), key);
        chain.seq += 1;
        chain.prev = hash;
        tracing::info!(target: "audit", "{line}");
        self.waiting.push(&line);
    }

    /// Writes that the broker has started or is about to stop.
    pub(crate) fn mark(&self, request: &str) {
        self.write(of_process(request));
    }

    /// Writes what is about to be done.
    pub(crate) fn intend(&self, record: &Record) {
        self.write(record.clone().intended());
    }

    /// Writes a refusal, or counts it.
    pub(crate) fn refuse(&self, record: Record) {
        let now = self.clock.monotonic();
        let is_written = self.refusals.lock().is_written(kind(&record), now);
        if is_written {
            self.write(record);
        }
    }

    /// Whether what is done all the time is written this time; it is counted otherwise.
    pub(crate) fn is_written(&self, record: &Record) -> bool {
        let now = self.clock.monotonic();
        self.frequent.lock().is_written(kind(record), now)
    }

    /// Writes what was counted, and a checkpoint, when it is time.
    pub(crate) fn flush(&self) {
        let now = self.clock.monotonic();
        self.flush_counts(now);
        let since = self.chain.lock().unsigned_since;
        if now.saturating_sub(since) >= SIGNED_WITHIN {
            self.checkpoint();
        }
    }

    fn flush_counts(&self, now: Duration) {
        let refused = self.refusals.lock().due(now);
        for (kind, count) in refused {
            self.write(Record {
                decision: "denied",
                outcome: "failed",
                error_code: Some(kind.code.clone()),
                ..Record::counted(kind, count)
            });
        }
        let done = self.frequent.lock().due(now);
        for (kind, count) in done {
            self.write(Record {
                decision: "allowed",
                outcome: "counted",
                ..Record::counted(kind, count)
            });
        }
    }
}

/// About this process itself.
fn of_process(request: &str) -> Record {
    let record = Record::about(&Principal::Anonymous, "process", request);
    let record = record.on(Action::Operate, &Resource::Cluster);
    record.allowed(None).ended(None)
}

/// What makes lines the same.
fn kind(record: &Record) -> Refusal {
    Refusal {
        who: match record.principal.is_empty() || record.auth_method == "none" {
            true => record.peer.map_or_else(String::new, network),
            false => record.principal.clone(),
        },
        request: record.request.clone(),
        resource: record.resource.clone(),
        code: record.error_code.clone().unwrap_or_default(),
        tenant: record.tenant.clone(),
    }
}

/// The line of a record, and its digest, which is that of the line without it. A signature is that
/// of the line without both.
fn line(record: Record, chain: &Chain, time_ms: u64, key: Option<&SigningKey>) -> (String, String) {
    let record = Record {
        chain: chain.id.clone(),
        seq: chain.seq,
        prev: chain.prev.clone(),
        time_ms,
        ..record
    };
    // A record of texts and numbers can always be written.
    let mut text = serde_json::to_string(&record).unwrap_or_default();
    if let Some(key) = key {
        let signature = to_hex(&key.sign(text.as_bytes()));
        add_field(&mut text, "signature", &signature);
    }
    let hash = sha256_hex(text.as_bytes());
    add_field(&mut text, "hash", &hash);
    (text, hash)
}

/// Puts a field behind the others of an object.
fn add_field(object: &mut String, name: &str, value: &str) {
    if object.pop().is_some() {
        object.push_str(&format!(",\"{name}\":\"{value}\"}}"));
    }
}

/// The network of an address: a peer with one address of it has others.
fn network(peer: SocketAddr) -> String {
    match peer {
        SocketAddr::V4(peer) => {
            let [a, b, c, _] = peer.ip().octets();
            format!("{a}.{b}.{c}.0/24")
        }
        SocketAddr::V6(peer) => {
            let [a, b, c, d, ..] = peer.ip().segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::clock::SystemClock;
    use aquifer_runtime::signing::{from_hex, is_signed};

    use super::*;

    /// One behind many lines, one at the end, and no second one behind a checkpoint.
    #[test]
    fn checkpoints_follow_lines_and_are_signed() {
        let key = SigningKey::from_seed(&[1; 32]);
        let audit = Audit::new(BrokerId([7; 16]), SystemClock::shared(), key);
        audit.checkpoint();
        for _ in 0..=SIGNED_LINES {
            audit.mark("start_broker");
        }
        audit.checkpoint();
        audit.checkpoint();
        let mut lines = Vec::new();
        loop {
            let some = audit.waiting.lines();
            if some.is_empty() {
                break;
            }
            audit.waiting.done(some.len());
            lines.extend(some);
        }
        let signed = lines.iter().filter(|line| line.contains("\"signature\""));
        let mut numbers = Vec::new();
        for line in signed {
            let parsed: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(parsed["request"], CHECKPOINT);
            let signature = from_hex(parsed["signature"].as_str().unwrap()).unwrap();
            let (text, _) = line.split_once(",\"signature\"").unwrap();
            let text = format!("{text}}}");
            assert!(is_signed(&audit.public_key(), text.as_bytes(), &signature));
            numbers.push(parsed["seq"].as_u64().unwrap());
        }
        assert_eq!(numbers, [SIGNED_LINES, SIGNED_LINES + 2]);
    }

    #[test]
    fn lines_are_a_chain_and_one_line_each() {
        let evil = "x\r\n{\"seq\":0}\u{1b}[31m".repeat(100);
        let record = Record::about(&Principal::Anonymous, "grpc", &evil).detail(&evil);
        let mut chain = Chain {
            id: "b1".to_owned(),
            seq: 0,
            prev: FIRST_PREV.to_owned(),
            unsigned: 0,
            unsigned_since: Duration::ZERO,
        };
        let (first, hash) = line(record.clone(), &chain, 7, None);
        (chain.seq, chain.prev) = (1, hash.clone());
        let (second, _) = line(record, &chain, 8, None);
        for text in [&first, &second] {
            assert!(!text.contains(['\n', '\r', '\u{1b}']), "{text}");
            assert!(text.len() < 2_000, "{}", text.len());
            let parsed: serde_json::Value = serde_json::from_str(text).unwrap();
            let said = parsed["hash"].as_str().unwrap();
            let (before, _) = text.rsplit_once(",\"hash\"").unwrap();
            assert_eq!(sha256_hex(format!("{before}}}").as_bytes()), said);
        }
        let second: serde_json::Value = serde_json::from_str(&second).unwrap();
        assert_eq!(second["prev"], hash);
    }

    #[test]
    fn changes_are_in_order() {
        assert!(CHANGES.is_sorted(), "they are searched");
        let recorded = [
            "create_topic",
            "take_over_producer",
            "commit",
            "list_topics",
        ];
        let recorded = recorded.map(Recorded::of);
        let expected = [
            Recorded::Always,
            Recorded::Always,
            Recorded::Often,
            Recorded::Never,
        ];
        assert_eq!(recorded, expected);
    }
}
