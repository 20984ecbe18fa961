//! The audit log: what was changed, refused and ended, as JSON lines at the log target `audit` and
//! in the topic [`TOPIC`], which gets them from `waiting`.
//!
//! The lines of one process are a chain: each has its chain and a number, the digest of the line
//! before and its own, so that a line which is missing, changed or moved shows. A change has two
//! lines with the same request id: what is intended, before anything is done, and how it came out.
//! Refusals, and what consumers do all the time, are written at once the first time, and as counts
//! after that, so that a flood of them fills no disk.

pub(crate) mod cause;
mod refusals;
pub(crate) mod waiting;

use std::net::SocketAddr;

use aquifer_model::id::BrokerId;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::context::{Principal, RequestContext, RequestId};
use aquifer_protocol_api::error::{ErrorKind, Outcome};
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::secret::sha256_hex;
use parking_lot::Mutex;
use serde::Serialize;

use crate::security::audit::refusals::{Refusal, Refusals};
use crate::security::audit::waiting::Waiting;

/// The topic that has the lines of all brokers of a cluster.
pub(crate) const TOPIC: &str = "aquifer/system/audit";

/// What stands for the digest of the line before the first one.
const FIRST_PREV: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Longest text of a field, in bytes: names come from callers.
const TEXT_BYTES_MAX: usize = 256;

/// Requests that change something. Everything else is written only when it is refused.
const CHANGES: [&str; 39] = [
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
}

impl Audit {
    pub(crate) fn new(broker: BrokerId, clock: SharedClock) -> Audit {
        Audit {
            refusals: Mutex::new(Refusals::new(clock.monotonic())),
            frequent: Mutex::new(Refusals::new(clock.monotonic())),
            clock,
            waiting: Waiting::default(),
            chain: Mutex::new(Chain {
                id: broker.to_string(),
                seq: 0,
                prev: FIRST_PREV.to_owned(),
            }),
        }
    }

    /// Writes a line.
    pub(crate) fn write(&self, record: Record) {
        let mut chain = self.chain.lock();
        let (line, hash) = line(record, &chain, self.clock.wall_ms());
        chain.seq += 1;
        chain.prev = hash;
        // Within the lock, so that lines come in their order.
        tracing::info!(target: "audit", "{line}");
        self.waiting.push(&line);
    }

    /// Writes that the broker has started or is about to stop.
    pub(crate) fn mark(&self, request: &str) {
        let record = Record::about(&Principal::Anonymous, "process", request);
        let record = record.on(Action::Operate, &Resource::Cluster);
        self.write(record.allowed(None).ended(None));
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

    /// Writes what was counted, when it is time.
    pub(crate) fn flush(&self) {
        let now = self.clock.monotonic();
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

/// The line of a record, and its digest, which is that of the line without it.
fn line(record: Record, chain: &Chain, time_ms: u64) -> (String, String) {
    let record = Record {
        chain: chain.id.clone(),
        seq: chain.seq,
        prev: chain.prev.clone(),
        time_ms,
        ..record
    };
    // A record of texts and numbers can always be written.
    let mut text = serde_json::to_string(&record).unwrap_or_default();
    let hash = sha256_hex(text.as_bytes());
    if text.pop().is_some() {
        text.push_str(&format!(",\"hash\":\"{hash}\"}}"));
    }
    (text, hash)
}

/// The network of an address: who has one address of it has others.
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
    use super::*;

    #[test]
    fn lines_are_a_chain_and_one_line_each() {
        let evil = "x\r\n{\"seq\":0}\u{1b}[31m".repeat(100);
        let record = Record::about(&Principal::Anonymous, "grpc", &evil).detail(&evil);
        let mut chain = Chain {
            id: "b1".to_owned(),
            seq: 0,
            prev: FIRST_PREV.to_owned(),
        };
        let (first, hash) = line(record.clone(), &chain, 7);
        (chain.seq, chain.prev) = (1, hash.clone());
        let (second, _) = line(record, &chain, 8);
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
