//! Wire ↔ model of the storage service. What comes in is a stranger's bytes: it gives a request or
//! an error, never a panic. The digest of an add is checked by the bookie itself.

use std::time::Duration;

use aquifer_model::entry::EntryData;
use aquifer_model::id::{BookieId, CreationToken, EntryId, LEDGER_ID_MAX, LedgerId, TenantKey};
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::{
    AddEntry, BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, Presence,
    PresenceRange, ReadRange, StoredEntry, TailWait,
};
use aquifer_model::trace::TraceContext;
use aquifer_proto::v1;
use aquifer_proto::v1::ordered_request::Request as Kind;
use tonic::Status;

use crate::service::status;

/// Entries and bytes of one read, whatever the client asks for.
const READ_ENTRIES_MAX: usize = 65_536;
const READ_BYTES_MAX: usize = 64 << 20;

/// Whether a client talks to the bookie that it means.
pub(super) fn check_bookie(named: &[u8], here: BookieId) -> Result<(), Status> {
    match BookieId::try_from(named) {
        Ok(named) if named == here => Ok(()),
        Ok(named) => Err(Status::failed_precondition(format!(
            "this is bookie {here}, not {named}: the address belongs to another now"
        ))),
        Err(error) => Err(Status::invalid_argument(error.to_string())),
    }
}

/// Whether a client belongs to the cluster of this bookie. Ledger ids of two clusters are the
/// same numbers: one must never write into the other.
pub(super) fn check_cluster(named: &str, here: &str) -> Result<(), Status> {
    if named == here {
        return Ok(());
    }
    let name = |cluster: &str| match cluster {
        "" => "no cluster".to_owned(),
        name => format!("cluster {name:?}"),
    };
    Err(Status::failed_precondition(format!(
        "this bookie belongs to {}, the client to {}",
        name(here),
        name(named)
    )))
}

fn ledger(id: u64) -> BookieResult<LedgerId> {
    if id > LEDGER_ID_MAX {
        return Err(BookieError::Invalid(format!("ledger id {id} is too large")));
    }
    Ok(LedgerId(id))
}

/// One request of an ordered stream.
pub(super) fn request(request: v1::OrderedRequest) -> BookieResult<OrderedRequest> {
    let token = CreationToken::try_from(request.creation_token.as_ref())
        .map_err(|error| BookieError::Invalid(error.to_string()))?;
    let operation = match request.request {
        Some(Kind::Add(add)) => OrderedOperation::Add(add_entry(add)?),
        Some(Kind::Fence(v1::Fence {})) => OrderedOperation::Fence,
        Some(Kind::RecoveryRead(read)) => OrderedOperation::RecoveryRead(EntryId(read.entry_id)),
        Some(Kind::WriteLac(lac)) => OrderedOperation::WriteLac(EntryId(lac.last_add_confirmed)),
        Some(Kind::Delete(v1::DeleteLedger {})) => OrderedOperation::Delete,
        None => return Err(BookieError::Invalid("the request is empty".to_owned())),
    };
    Ok(OrderedRequest {
        ledger: ledger(request.ledger_id)?,
        token,
        tenant: TenantKey(request.tenant),
        operation,
    })
}

fn add_entry(add: v1::AddEntry) -> BookieResult<AddEntry> {
    let bytes = add.head.len().saturating_add(add.body.len());
    if bytes > ENTRY_BYTES_MAX {
        let message = format!("the entry has {bytes} bytes, at most {ENTRY_BYTES_MAX} are allowed");
        return Err(BookieError::Invalid(message));
    }
    Ok(AddEntry {
        entry: EntryId(add.entry_id),
        last_add_confirmed: add.last_add_confirmed.map(EntryId),
        ledger_length: add.ledger_length,
        digest: add.digest,
        recovery: add.recovery,
        reserve: add.reserve,
        data: EntryData {
            head: add.head,
            body: add.body,
        },
        // A trace is a hint: a malformed one is left out.
        trace: TraceContext::from_bytes(&add.trace),
    })
}

/// The token that a read compares; absent in one that takes any ledger of that id.
fn known_token(bytes: &[u8]) -> Result<Option<CreationToken>, Status> {
    let token = (!bytes.is_empty()).then(|| CreationToken::try_from(bytes));
    let token = token.transpose();
    token.map_err(|error| Status::invalid_argument(error.to_string()))
}

/// What a read asks for, within bounds.
pub(super) fn read_range(request: &v1::ReadRequest) -> Result<ReadRange, Status> {
    let size = |n: u32, max: usize| usize::try_from(n).unwrap_or(max).clamp(1, max);
    let ledger = ledger(request.ledger_id).map_err(|e| Status::invalid_argument(e.to_string()))?;
    if request.first_entry_id > request.last_entry_id {
        return Err(Status::invalid_argument("the range of entries is empty"));
    }
    Ok(ReadRange {
        ledger,
        token: known_token(&request.creation_token)?,
        first: EntryId(request.first_entry_id),
        last: EntryId(request.last_entry_id),
        bytes_max: size(request.bytes_max, READ_BYTES_MAX),
        entries_max: size(request.entries_max, READ_ENTRIES_MAX),
        prefix_bytes: request.prefix_bytes.map(|n| size(n, ENTRY_BYTES_MAX)),
    })
}

/// Which entries a client asks for.
pub(super) fn presence_range(request: &v1::HasRequest) -> Result<PresenceRange, Status> {
    let ledger = ledger(request.ledger_id).map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(PresenceRange {
        ledger,
        token: known_token(&request.creation_token)?,
        first: EntryId(request.first_entry_id),
        last: EntryId(request.last_entry_id),
    })
}

/// Which entries there are.
pub(super) fn has_reply(found: BookieResult<Presence>) -> v1::HasReply {
    match found {
        Ok(found) => v1::HasReply {
            status: v1::BookieStatus::Ok.into(),
            message: String::new(),
            runs: found
                .runs
                .iter()
                .map(|(first, last)| v1::EntryRange {
                    first_entry_id: first.0,
                    last_entry_id: last.0,
                })
                .collect(),
            until_entry_id: found.until.0,
            read_bytes: found.bytes,
        },
        Err(error) => v1::HasReply {
            status: status::code(&error).into(),
            message: status::detail(&error),
            ..v1::HasReply::default()
        },
    }
}

/// What a wait asks for. Its limit is bounded where it is waited.
pub(super) fn tail_wait(request: &v1::WaitRequest) -> Result<TailWait, Status> {
    let ledger = ledger(request.ledger_id).map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(TailWait {
        ledger,
        token: known_token(&request.creation_token)?,
        above: request.above.map(EntryId),
        limit: Duration::from_millis(u64::from(request.timeout_ms)),
    })
}

/// What became of a request.
pub(super) fn reply(request_id: u64, outcome: BookieResult<OrderedReply>) -> v1::OrderedReply {
    let mut reply = v1::OrderedReply {
        request_id,
        ..v1::OrderedReply::default()
    };
    match outcome {
        Ok(OrderedReply::Done { last_add_confirmed }) => {
            reply.set_status(v1::BookieStatus::Ok);
            reply.last_add_confirmed = last_add_confirmed.map(|entry| entry.0);
        }
        Ok(OrderedReply::Entry(entry)) => {
            reply.set_status(v1::BookieStatus::Ok);
            reply.entry = Some(wire_entry(entry));
        }
        Err(error) => {
            reply.set_status(status::code(&error));
            reply.message = status::detail(&error);
        }
    }
    reply
}

pub(super) fn wire_entry(entry: StoredEntry) -> v1::StoredEntry {
    v1::StoredEntry {
        entry_id: entry.entry.0,
        last_add_confirmed: entry.last_add_confirmed.map(|lac| lac.0),
        ledger_length: entry.ledger_length,
        digest: entry.digest,
        data: entry.data,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    proptest! {
        /// Arbitrary bytes give a request within bounds or an error, never a panic.
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(frame) = v1::OrderedFrame::decode(bytes.as_slice()) {
                for one in frame.requests {
                    let _ = request(one);
                }
            }
            if let Ok(one) = v1::OrderedRequest::decode(bytes.as_slice()) {
                let _ = request(one);
            }
            if let Ok(wait) = v1::WaitRequest::decode(bytes.as_slice()) {
                let _ = tail_wait(&wait);
            }
            if let Ok(has) = v1::HasRequest::decode(bytes.as_slice()) {
                let _ = presence_range(&has);
            }
            if let Ok(read) = v1::ReadRequest::decode(bytes.as_slice())
                && let Ok(range) = read_range(&read)
            {
                prop_assert!(range.first <= range.last && range.bytes_max <= READ_BYTES_MAX);
            }
        }
    }

    #[test]
    fn a_client_of_another_cluster_or_bookie_is_told_so() {
        let here = BookieId([1; 16]);
        assert!(check_bookie(&here.0, here).is_ok());
        let other = check_bookie(&[2; 16], here).unwrap_err();
        assert_eq!(other.code(), tonic::Code::FailedPrecondition);
        assert!(other.message().contains("belongs to another"), "{other}");
        assert!(check_bookie(&[2; 15], here).is_err());
        assert!(check_cluster("ours", "ours").is_ok() && check_cluster("", "").is_ok());
        for (named, here) in [("theirs", "ours"), ("", "ours"), ("theirs", "")] {
            let refused = check_cluster(named, here).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
            assert!(refused.message().contains("cluster"), "{refused}");
        }
    }

    #[test]
    fn an_add_comes_through_unchanged() {
        let data = EntryData {
            head: "head".into(),
            body: "body".into(),
        };
        let add = AddEntry {
            trace: TraceContext::new([1; 16], [2; 8]),
            ..AddEntry::new(LedgerId(7), EntryId(3), Some(EntryId(2)), 99, data.clone())
        };
        let wire = v1::OrderedRequest {
            request_id: 1,
            ledger_id: 7,
            creation_token: vec![5; 16].into(),
            tenant: 77,
            weight: 0,
            request: Some(Kind::Add(v1::AddEntry {
                entry_id: 3,
                last_add_confirmed: Some(2),
                ledger_length: 99,
                digest: add.digest,
                recovery: false,
                reserve: false,
                head: data.head,
                body: data.body,
                trace: [[1_u8; 16].as_slice(), &[2; 8]].concat().into(),
            })),
        };
        let expected = OrderedRequest {
            ledger: LedgerId(7),
            token: CreationToken([5; 16]),
            tenant: TenantKey(77),
            operation: OrderedOperation::Add(add),
        };
        assert_eq!(request(wire.clone()), Ok(expected));
        let short = v1::OrderedRequest {
            creation_token: vec![5; 15].into(),
            ..wire.clone()
        };
        assert!(matches!(request(short), Err(BookieError::Invalid(_))));
        let large = v1::OrderedRequest {
            ledger_id: LEDGER_ID_MAX + 1,
            ..wire
        };
        assert!(matches!(request(large), Err(BookieError::Invalid(_))));
    }
}
