//! What a marked ledger needs: pure decisions from its record, its mark and the members of the
//! cluster.

use std::collections::BTreeMap;

use aquifer_ledger::duties;
use aquifer_ledger::ledger_metadata::{LedgerInfo, LedgerState};
use aquifer_ledger::marks::Mark;
use aquifer_ledger::members::Members;
use aquifer_model::id::{BookieId, EntryId};

use crate::copy::{Depth, Run};

/// What is wrong with a position of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Care {
    /// Its bookie is there; see so closely what it holds from an entry on, and complete that.
    Verify(Depth, EntryId),
    /// Its bookie is lost or leaving; copy to another and swap.
    Replace,
}

/// One position of one fragment that needs care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Work {
    /// First entry of the fragment.
    pub(crate) first: EntryId,
    /// Last entry of the fragment; `None` when it has none, and then only the member matters.
    pub(crate) last: Option<EntryId>,
    /// The position.
    pub(crate) position: usize,
    /// The bookie that is there.
    pub(crate) bookie: BookieId,
    /// What is to be done.
    pub(crate) care: Care,
}

impl Work {
    /// What the position stores of its fragment.
    pub(crate) fn runs(&self, info: &LedgerInfo) -> impl Iterator<Item = Run> + use<> {
        self.runs_from(info, EntryId::FIRST)
    }

    /// What of that is in doubt.
    pub(crate) fn doubtful(&self, info: &LedgerInfo) -> impl Iterator<Item = Run> + use<> {
        match self.care {
            Care::Verify(_, from) => self.runs_from(info, from),
            Care::Replace => self.runs_from(info, EntryId::FIRST),
        }
    }

    fn runs_from(&self, info: &LedgerInfo, from: EntryId) -> impl Iterator<Item = Run> + use<> {
        let (quorum, position) = (info.quorum, self.position);
        let first = self.first.max(from);
        let last = self.last.filter(|last| first <= *last);
        let found = last.map(|last| duties::ranges(quorum, position, first, last));
        found.into_iter().flatten()
    }
}

/// Everything that a ledger needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// Positions of fragments whose extent is fixed.
    pub(crate) work: Vec<Work>,
    /// The last fragment is open and has lost a member: unless its writer replaces that soon, the
    /// ledger must be recovered.
    pub(crate) recover: bool,
    /// Something cannot be decided yet: the mark stays.
    pub(crate) wait: bool,
}

enum Judgement {
    Trust,
    Wait,
    Needs(Care),
}

fn judge(bookie: BookieId, mark: &Mark, members: &Members) -> Judgement {
    let registered = members.is_registered(bookie);
    let lost = mark.lost.contains(&bookie);
    if members.is_leaving(bookie) || (lost && !registered) {
        return Judgement::Needs(Care::Replace);
    }
    let incomplete_from = match lost {
        true => Some(EntryId::FIRST),
        false => mark.incomplete.get(&bookie).copied(),
    };
    let care = match (mark.doubted.contains(&bookie), incomplete_from) {
        (true, _) => Care::Verify(Depth::Bytes, EntryId::FIRST),
        (false, Some(first)) => Care::Verify(Depth::Keys, first),
        (false, None) => return Judgement::Trust,
    };
    match registered {
        true => Judgement::Needs(care),
        false => Judgement::Wait,
    }
}

/// Decides what a ledger needs.
pub(crate) fn plan(info: &LedgerInfo, mark: &Mark, members: &Members) -> Plan {
    let mut plan = Plan::default();
    for fragment in info.duties().fragments() {
        for (position, bookie) in fragment.members.iter().enumerate() {
            match judge(*bookie, mark, members) {
                Judgement::Trust => {}
                Judgement::Wait => plan.wait = true,
                Judgement::Needs(care) if fragment.fixed => plan.work.push(Work {
                    first: fragment.first,
                    last: fragment.last,
                    position,
                    bookie: *bookie,
                    care,
                }),
                Judgement::Needs(Care::Replace) => plan.recover = true,
                // It is back, and its writer knows what it has acknowledged since.
                Judgement::Needs(Care::Verify(..)) if mark.lost.contains(bookie) => {}
                Judgement::Needs(Care::Verify(..)) => plan.wait = true,
            }
        }
    }
    plan
}

/// Fragments that one repair of a position makes of one, at most: a fragment is kept in the
/// ledger's record, which has a bound.
const HOLES_MAX: usize = 32;

/// The fragments of a ledger once a bookie has taken over what a position stores, but for entries
/// that no bookie has: there the bookie that is lost keeps its place, because it may come back with
/// them (H16). `None` when that changes nothing, because no bookie has anything.
pub(crate) fn split(
    info: &LedgerInfo,
    work: &Work,
    to: BookieId,
    holes: &[(EntryId, EntryId)],
) -> Option<BTreeMap<EntryId, Vec<BookieId>>> {
    let current = info.duties().members_from(work.first)?.to_vec();
    let mut taken = current.clone();
    *taken.get_mut(work.position)? = to;
    let mut fragments = info.fragments.clone();
    fragments.remove(&work.first);
    let mut next = work.first;
    for (from, until) in coarse(holes) {
        if next < from {
            fragments.insert(next, taken.clone());
        }
        fragments.insert(from, current.clone());
        next = until.next();
    }
    if next == work.first || work.last.is_some_and(|last| next <= last) {
        fragments.insert(next, taken.clone());
    }
    if matches!(info.state, LedgerState::Closed(_)) {
        join(&mut fragments);
    }
    (fragments != info.fragments).then_some(fragments)
}

/// Makes one of neighbours with the same members. Only of a closed ledger: the last fragment of
/// another is known by where it begins.
fn join(fragments: &mut BTreeMap<EntryId, Vec<BookieId>>) {
    let mut before = None;
    fragments.retain(|_, members| {
        let differs = before.as_ref() != Some(members);
        before = Some(members.clone());
        differs
    });
}

/// So few holes that a record can tell them apart: what lies between those that are nearest to each
/// other is taken for a part of them.
fn coarse(holes: &[(EntryId, EntryId)]) -> Vec<(EntryId, EntryId)> {
    let between = |pair: &[(EntryId, EntryId)]| pair[1].0.0 - pair[0].1.0;
    let mut distances: Vec<u64> = holes.windows(2).map(between).collect();
    distances.sort_unstable_by(|one, other| other.cmp(one));
    // Nothing is as near as 0.
    let near = distances.get(HOLES_MAX - 1).copied().unwrap_or(0);
    let mut found: Vec<(EntryId, EntryId)> = Vec::new();
    for hole in holes {
        match found.last_mut() {
            Some(last) if hole.0.0 - last.1.0 <= near => last.1 = hole.1,
            _ => found.push(*hole),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aquifer_model::quorum::Quorum;

    use super::*;

    #[test]
    fn a_ledger_that_ends_before_its_last_fragment_needs_no_entries_there() {
        use aquifer_metadata::store::Revision;
        use aquifer_model::id::{CreationToken, LedgerId};

        use aquifer_ledger::writer::machine::LedgerEnd;

        let bookies = |n: u8| vec![BookieId([n; 16]), BookieId([9; 16])];
        let info = LedgerInfo {
            id: LedgerId(1),
            token: CreationToken([1; 16]),
            quorum: Quorum::new(2, 2, 1).unwrap(),
            state: LedgerState::Closed(LedgerEnd {
                last_entry: Some(EntryId(4)),
                length: 1,
            }),
            fragments: BTreeMap::from([
                (EntryId(0), bookies(1)),
                (EntryId(3), bookies(2)),
                (EntryId(5), bookies(3)),
            ]),
            home: String::new(),
            recovery_epoch: 0,
            created_ms: 0,
            offload: None,
            revision: Revision(1),
        };
        let mark = Mark::new(LedgerId(1), "", "test", 0).lost([BookieId([9; 16])]);
        let plan = plan(&info, &mark, &Members::default());
        let ranges: Vec<_> = plan.work.iter().map(|w| (w.first.0, w.last)).collect();
        assert_eq!(
            ranges,
            [(0, Some(EntryId(2))), (3, Some(EntryId(4))), (5, None)]
        );
        assert!(!plan.recover && !plan.wait);
    }
}
