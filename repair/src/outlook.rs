//! Whether what is to be moved has somewhere to go: without that, waiting is in vain.
//!
//! Answers are for people. Bookies come and go, and nothing is decided by them.

use aquifer_ledger::deletion;
use aquifer_ledger::error::LedgerError;
use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::marks::Mark;
use aquifer_ledger::members::{Member, Members};
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::scan;
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_model::id::BookieId;

/// Marks that are looked at.
const MARKS_MAX: usize = 1_000;

/// Ledgers that have to leave a bookie, and what there is for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outlook {
    /// Ledgers that are to be moved.
    pub ledgers: u64,
    /// Those of them that no writable bookie could take now: all hold them already.
    pub stuck: u64,
    /// The largest ensemble among those.
    pub ensemble: usize,
    /// Writable bookies that could take ledgers.
    pub writable: usize,
}

impl Outlook {
    fn new(members: &Members, but: Option<BookieId>) -> Outlook {
        let takers = members.iter().filter(|member| is_writable(member));
        Outlook {
            writable: takers.filter(|member| Some(member.id) != but).count(),
            ..Outlook::default()
        }
    }

    /// Counts a ledger from which the bookies that `leaves` names are to be moved.
    fn add(&mut self, info: &LedgerInfo, members: &Members, leaves: impl Fn(BookieId) -> bool) {
        let to_move = |members: &&[BookieId]| members.iter().any(|bookie| leaves(*bookie));
        let fragments = info.duties().fragments().map(|fragment| fragment.members);
        let mut fragments = fragments.filter(to_move).peekable();
        if fragments.peek().is_none() {
            return;
        }
        self.ledgers += 1;
        let has_place = |beside: &[BookieId]| {
            let mut takers = members.iter().filter(|member| is_writable(member));
            takers.any(|member| !beside.contains(&member.id))
        };
        if !fragments.all(has_place) {
            self.stuck += 1;
            self.ensemble = self.ensemble.max(info.quorum.ensemble());
        }
    }
}

fn is_writable(member: &Member) -> bool {
    let registration = member.registration.as_ref();
    !member.is_leaving() && registration.is_some_and(|registration| !registration.read_only)
}

/// The ledgers of one bookie, were they to leave it now. Records that cannot be read are left out,
/// and so are ledgers that are being deleted.
///
/// # Errors
/// When metadata cannot be read.
pub async fn of_bookie(
    store: &dyn MetadataStore,
    bookie: BookieId,
) -> Result<Outlook, LedgerError> {
    let members = Members::load(store).await?;
    let going = deletion::going(store).await?;
    let take = |outlook: &mut Outlook, item: &Versioned| {
        if let Ok(Key::Ledger(id)) = item.key.parse()
            && !going.contains(&id)
            && let Ok(info) = LedgerInfo::decode(id, item)
        {
            outlook.add(&info, &members, |member| member == bookie);
        }
        Ok::<(), LedgerError>(())
    };
    let start = || Outlook::new(&members, Some(bookie));
    let (outlook, _) = scan::each(store, keys::LEDGERS_PREFIX, start, take).await?;
    Ok(outlook)
}

/// The marked ledgers that are to leave bookies which are lost, or are to be emptied; at most a
/// bounded number of marks is read.
///
/// # Errors
/// When metadata cannot be read.
pub async fn of_marks(
    store: &dyn MetadataStore,
    members: &Members,
) -> Result<Outlook, LedgerError> {
    let mut outlook = Outlook::new(members, None);
    let found = store.scan(keys::UNDER_REPLICATED_PREFIX, None, MARKS_MAX);
    for item in found.await?.items {
        // What cannot be read is named elsewhere; a ledger that is gone needs nothing.
        let Ok(mark) = Mark::decode(&item) else {
            continue;
        };
        let Some(stored) = store.get(&keys::ledger(mark.ledger)).await? else {
            continue;
        };
        let Ok(info) = LedgerInfo::decode(mark.ledger, &stored) else {
            continue;
        };
        outlook.add(&info, members, |bookie| {
            let lost = mark.lost.contains(&bookie) && !members.is_registered(bookie);
            lost || members.is_leaving(bookie)
        });
    }
    Ok(outlook)
}
