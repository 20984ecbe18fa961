//! The storage service as its clients see it: requests to the wire, answers from it.

use aquifer_model::id::{CreationToken, EntryId};
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, Presence,
    PresenceRange, ReadRange, StoredEntry, TailState, TailWait,
};
use bytes::Bytes;

use crate::v1;
use crate::v1::BookieStatus;
use crate::v1::ordered_request::Request as Kind;

/// A request as it travels.
#[must_use]
pub fn wire_request(request_id: u64, request: OrderedRequest) -> v1::OrderedRequest {
    let kind = match request.operation {
        OrderedOperation::Add(add) => Kind::Add(v1::AddEntry {
            entry_id: add.entry.0,
            last_add_confirmed: add.last_add_confirmed.map(|lac| lac.0),
            ledger_length: add.ledger_length,
            digest: add.digest,
            recovery: add.recovery,
            reserve: add.reserve,
            head: add.data.head,
            body: add.data.body,
            trace: match add.trace {
                Some(trace) => Bytes::copy_from_slice(&trace.to_bytes()),
                None => Bytes::new(),
            },
        }),
        OrderedOperation::Fence => Kind::Fence(v1::Fence {}),
        OrderedOperation::RecoveryRead(entry) => {
            Kind::RecoveryRead(v1::RecoveryRead { entry_id: entry.0 })
        }
        OrderedOperation::WriteLac(lac) => Kind::WriteLac(v1::WriteLac {
            last_add_confirmed: lac.0,
        }),
        OrderedOperation::Delete => Kind::Delete(v1::DeleteLedger {}),
    };
    v1::OrderedRequest {
        request_id,
        ledger_id: request.ledger.0,
        creation_token: Bytes::copy_from_slice(&request.token.0),
        tenant: request.tenant.0,
        weight: 0,
        request: Some(kind),
    }
}

/// A read as it travels. Bounds beyond 32 bits are cut, which the reader allows for: an answer may
/// always be shorter than what was asked for.
#[must_use]
pub fn wire_read(range: &ReadRange, bookie_id: Bytes) -> v1::ReadRequest {
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    v1::ReadRequest {
        ledger_id: range.ledger.0,
        first_entry_id: range.first.0,
        last_entry_id: range.last.0,
        bytes_max: size(range.bytes_max),
        entries_max: size(range.entries_max),
        prefix_bytes: range.prefix_bytes.map(size),
        bookie_id,
        creation_token: wire_token(range.token),
    }
}

/// A question for entries as it travels.
#[must_use]
pub fn wire_has(range: &PresenceRange, bookie_id: Bytes) -> v1::HasRequest {
    v1::HasRequest {
        ledger_id: range.ledger.0,
        first_entry_id: range.first.0,
        last_entry_id: range.last.0,
        bookie_id,
        creation_token: wire_token(range.token),
    }
}

/// Which entries of a range a bookie has, from its reply.
///
/// # Errors
/// What the bookie answered, or that its answer does not fit the question.
pub fn presence(reply: v1::HasReply, range: &PresenceRange) -> BookieResult<Presence> {
    failure(reply.status(), reply.message)?;
    let until = EntryId(reply.until_entry_id);
    let runs = reply.runs.iter();
    let runs = runs.map(|run| (EntryId(run.first_entry_id), EntryId(run.last_entry_id)));
    let runs: Vec<(EntryId, EntryId)> = runs.collect();
    let ordered = runs.windows(2).all(|pair| pair[0].1 < pair[1].0);
    let within =
        |run: &(EntryId, EntryId)| range.first <= run.0 && run.0 <= run.1 && run.1 <= until;
    let answers = range.first <= until && until <= range.last;
    if !answers || !ordered || !runs.iter().all(within) {
        let what = "the bookie answered about other entries than those asked for";
        return Err(BookieError::Io(what.to_owned()));
    }
    Ok(Presence {
        runs,
        until,
        bytes: reply.read_bytes,
    })
}

/// A wait as it travels.
#[must_use]
pub fn wire_wait(wait: &TailWait, bookie_id: Bytes) -> v1::WaitRequest {
    v1::WaitRequest {
        ledger_id: wait.ledger.0,
        above: wait.above.map(|entry| entry.0),
        timeout_ms: u32::try_from(wait.limit.as_millis()).unwrap_or(u32::MAX),
        bookie_id,
        creation_token: wire_token(wait.token),
    }
}

fn wire_token(token: Option<CreationToken>) -> Bytes {
    token.map_or_else(Bytes::new, |token| Bytes::copy_from_slice(&token.0))
}

/// What a wait brought, from its reply.
///
/// # Errors
/// What the bookie answered.
pub fn tail_state(reply: v1::WaitReply) -> BookieResult<TailState> {
    failure(reply.status(), reply.message)?;
    Ok(TailState {
        last_add_confirmed: reply.last_add_confirmed.map(EntryId),
        fenced: reply.fenced,
    })
}

/// What became of a request, from its reply.
///
/// # Errors
/// What the bookie answered.
pub fn outcome(reply: v1::OrderedReply) -> BookieResult<OrderedReply> {
    failure(reply.status(), reply.message)?;
    Ok(match reply.entry {
        Some(entry) => OrderedReply::Entry(stored_entry(entry)),
        None => OrderedReply::Done {
            last_add_confirmed: reply.last_add_confirmed.map(EntryId),
        },
    })
}

/// An entry from the wire.
#[must_use]
pub fn stored_entry(entry: v1::StoredEntry) -> StoredEntry {
    StoredEntry {
        entry: EntryId(entry.entry_id),
        last_add_confirmed: entry.last_add_confirmed.map(EntryId),
        ledger_length: entry.ledger_length,
        digest: entry.digest,
        data: entry.data,
    }
}

/// The failure that a code means. A code of a later version leaves everything unknown.
///
/// # Errors
/// Always, but for `Ok`.
pub fn failure(status: BookieStatus, message: String) -> BookieResult<()> {
    Err(match status {
        BookieStatus::Ok => return Ok(()),
        BookieStatus::Unspecified => BookieError::Io(format!(
            "the bookie answered with an unknown code: {message}"
        )),
        BookieStatus::NoSuchLedger => BookieError::NoSuchLedger,
        BookieStatus::NoSuchEntry => BookieError::NoSuchEntry,
        BookieStatus::Fenced => BookieError::Fenced,
        BookieStatus::Limbo => BookieError::Limbo,
        BookieStatus::Overloaded => BookieError::Overloaded,
        BookieStatus::ReadOnly => BookieError::ReadOnly(message),
        BookieStatus::IoError => BookieError::Io(message),
        BookieStatus::Digest => BookieError::Digest(message),
        BookieStatus::EndHidden => BookieError::EndHidden(message),
        BookieStatus::Token => BookieError::Token,
        BookieStatus::Conflict => BookieError::Conflict,
        BookieStatus::Deleted => BookieError::Deleted,
        BookieStatus::Invalid => BookieError::Invalid(message),
        BookieStatus::ShuttingDown => BookieError::ShuttingDown,
    })
}
