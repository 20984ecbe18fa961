//! Whether another owner has taken over a log, as far as bookies tell: for an owner that has lost
//! its lease and cannot ask metadata (H9).
//!
//! An owner that takes over first fences a bookie of every ack quorum of every write set. As long
//! as all bookies of one ack quorum say that the ledger is not fenced, that was not done when they
//! were asked. Bookies that failed do not count: they may have been replaced in metadata without an
//! answer, and then others are fenced instead of them. Neither does a ledger that is being closed:
//! an owner that takes over may find it closed, and has nothing to fence.

use std::time::Duration;

use aquifer_ledger::writer::driver::LedgerWriter;
use aquifer_model::quorum::Quorum;
use aquifer_model::storage::TailWait;
use aquifer_runtime::clock;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::state::{LogInner, Phase};

/// How long bookies are waited for: what they prove is good for little longer.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// What bookies say of the ledger that a log writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// No other owner had taken over when they were asked.
    None,
    /// Another owner takes over, or has.
    Fenced,
    /// Too few answered, or no ledger is open.
    Unknown,
}

impl LogInner {
    /// Whether the log writes to a ledger that is not about to end.
    pub(crate) fn is_open(&self) -> bool {
        self.open_ledger().is_some()
    }

    pub(crate) async fn probe_fence(&self) -> Fence {
        let Some(writer) = self.open_ledger() else {
            return Fence::Unknown;
        };
        let (members, quorum) = (writer.members(), writer.quorum());
        let wait = TailWait {
            ledger: writer.ledger(),
            token: Some(writer.token()),
            above: None,
            limit: Duration::ZERO,
        };
        let mut asked: FuturesUnordered<_> = members
            .iter()
            .enumerate()
            .filter_map(|(position, bookie)| bookie.map(|bookie| (position, bookie)))
            .map(|(position, bookie)| async move {
                (
                    position,
                    self.ctx.ledgers.transport.wait(bookie, wait).await,
                )
            })
            .collect();
        let mut unfenced = vec![false; members.len()];
        let answers = async {
            while let Some((position, answer)) = asked.next().await {
                match answer {
                    Ok(tail) if tail.fenced => return Fence::Fenced,
                    Ok(_) => unfenced[position] = true,
                    // Neither yes nor no.
                    Err(_) => {}
                }
                if is_open(quorum, &unfenced) {
                    return Fence::None;
                }
            }
            Fence::Unknown
        };
        let answered = clock::timeout(ANSWER_MAX, answers).await;
        let answered = answered.unwrap_or(Fence::Unknown);
        // What has begun meanwhile began before the last answer.
        let now = self.open_ledger().map(|now| now.ledger());
        match answered {
            Fence::None if now != Some(writer.ledger()) => Fence::Unknown,
            answered => answered,
        }
    }

    /// The writer of the ledger that takes entries, unless that is about to end.
    fn open_ledger(&self) -> Option<LedgerWriter> {
        let state = self.state.lock();
        let current = state.current.as_ref();
        let current = current.filter(|_| state.phase == Phase::Ready)?;
        Some(current.writer.clone())
    }
}

/// Whether an ack quorum of some write set is not fenced.
fn is_open(quorum: Quorum, unfenced: &[bool]) -> bool {
    let members = unfenced.len();
    let write = quorum.write().min(members);
    (0..members).any(|first| {
        let set = (first..first + write).map(|at| unfenced[at % members]);
        set.filter(|unfenced| *unfenced).count() >= quorum.ack()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_quorum_of_one_write_set_proves_it() {
        let quorum = |ensemble, write, ack| Quorum::new(ensemble, write, ack).unwrap();
        assert!(is_open(quorum(3, 3, 2), &[true, false, true]));
        assert!(!is_open(quorum(3, 3, 2), &[true, false, false]));
        assert!(is_open(quorum(1, 1, 1), &[true]));
        assert!(!is_open(quorum(1, 1, 1), &[false]));
        // Write sets are 01, 12, 23, 30: two that are no neighbours prove nothing.
        assert!(!is_open(quorum(4, 2, 2), &[true, false, true, false]));
        assert!(is_open(quorum(4, 2, 2), &[true, false, false, true]));
        assert!(!is_open(quorum(3, 3, 2), &[]));
    }
}
