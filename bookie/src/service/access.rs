//! What the processes of a cluster may ask of a bookie, by the role in their certificates.
//!
//! Invariant: where the port has certificates, each request is decided on by itself. Brokers alone
//! write ledgers. A process that repairs reads, fences, and adds what recovery and copies need; it
//! deletes nothing here, because each bookie carries out the deletions that name it. An offloader
//! reads alone. A role that is not known may do nothing.

use std::fmt;

use aquifer_model::storage::{AddEntry, BookieError, BookieResult, OrderedOperation};
use aquifer_runtime::net::stream::PeerInfo;
use tonic::{Request, Status};

/// The role of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Any process: the port has no certificates.
    Open,
    Broker,
    /// A bookie or an autorecovery process.
    Repair,
    /// An offloader.
    Offload,
    /// A tool of an operator.
    Tool,
    /// None that is known.
    Unknown,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Read,
    /// Recovery of a ledger, or the copy of an entry.
    Recover,
    /// What the writer of a ledger does.
    Write,
    Delete,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Need::Read => "read ledgers",
            Need::Recover => "recover ledgers",
            Need::Write => "write ledgers",
            Need::Delete => "delete ledgers",
        })
    }
}

impl Role {
    /// The role of the caller of a request, at a port that has certificates or has none.
    pub(super) fn of<T>(request: &Request<T>, is_secret: bool) -> Role {
        if !is_secret {
            return Role::Open;
        }
        let peer = request.extensions().get::<PeerInfo>();
        let certificate = peer.and_then(|peer| peer.certificate.get());
        let name = certificate.and_then(|certificate| certificate.internal());
        name.map_or(Role::Unknown, |name| Role::named(&name.role))
    }

    fn named(role: &str) -> Role {
        match role {
            "broker" => Role::Broker,
            "bookie" | "autorecovery" => Role::Repair,
            "offloader" => Role::Offload,
            "tool" => Role::Tool,
            _ => Role::Unknown,
        }
    }

    const fn may(self, need: Need) -> bool {
        match self {
            Role::Open | Role::Broker => true,
            Role::Repair => matches!(need, Need::Read | Need::Recover),
            Role::Offload => matches!(need, Need::Read),
            Role::Tool => matches!(need, Need::Read | Need::Recover | Need::Delete),
            Role::Unknown => false,
        }
    }

    fn refusal(need: Need) -> String {
        format!("the role of this certificate may not {need} on a bookie: use that of a broker")
    }

    /// Refuses a call.
    pub(super) fn check(self, need: Need) -> Result<(), Status> {
        match self.may(need) {
            true => Ok(()),
            false => Err(Status::permission_denied(Role::refusal(need))),
        }
    }

    /// Refuses one request of a stream, which goes on.
    pub(super) fn check_ordered(self, operation: &OrderedOperation) -> BookieResult<()> {
        let need = need_of(operation);
        match self.may(need) {
            true => Ok(()),
            false => Err(BookieError::Invalid(Role::refusal(need))),
        }
    }
}

fn need_of(operation: &OrderedOperation) -> Need {
    match operation {
        OrderedOperation::Add(AddEntry { recovery: true, .. })
        | OrderedOperation::Fence
        | OrderedOperation::RecoveryRead(_) => Need::Recover,
        OrderedOperation::Add(_) | OrderedOperation::WriteLac(_) => Need::Write,
        OrderedOperation::Delete => Need::Delete,
    }
}

#[cfg(test)]
mod tests;
