//! Ledgers for people: what their records say.

use aquifer_metadata::store::Versioned;
use aquifer_model::id::LedgerId;
use aquifer_model::inventory::{LedgerView, ListedLedger};

use crate::ledger_metadata::{LedgerInfo, LedgerState};
use crate::offload::Offload;

impl From<&LedgerInfo> for LedgerView {
    fn from(info: &LedgerInfo) -> LedgerView {
        let (state, end) = match info.state {
            LedgerState::Open => ("open", None),
            LedgerState::InRecovery => ("in-recovery", None),
            LedgerState::Closed(end) => (closed_state(info.offload.as_ref()), Some(end)),
        };
        LedgerView {
            ledger: info.id,
            state,
            quorum: info.quorum,
            last_entry: end.and_then(|end| end.last_entry),
            length_bytes: end.map_or(0, |end| end.length),
            fragments: info
                .fragments
                .iter()
                .map(|(first, members)| (*first, members.clone()))
                .collect(),
            home: info.home.clone(),
            created_ms: info.created_ms,
            recovery_epoch: info.recovery_epoch,
        }
    }
}

fn closed_state(offload: Option<&Offload>) -> &'static str {
    match offload {
        None => "closed",
        Some(Offload::Claimed { .. }) => "offloading",
        Some(Offload::Stored { .. }) => "offloaded",
    }
}

/// A ledger of a list, whose record is this value.
#[must_use]
pub fn listed(ledger: LedgerId, item: &Versioned) -> ListedLedger {
    let info = LedgerInfo::decode(ledger, item);
    ListedLedger {
        ledger,
        record: info
            .as_ref()
            .map(LedgerView::from)
            .map_err(ToString::to_string),
    }
}
