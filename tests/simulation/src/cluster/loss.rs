//! A bookie is gone for good after everything else is over, and one entry of it is nowhere else:
//! every other entry gets its copies again, and the place of that one is kept (I2, H16).

use std::sync::Arc;
use std::time::Duration;

use aquifer_ledger::error::LedgerError;
use aquifer_ledger::marks::{self, Mark};
use aquifer_metadata::store::{Expect, MetadataStore, Operation, Transaction, Versioned};
use aquifer_metadata::{keys, record, scan};
use aquifer_model::id::{BookieId, EntryId, LedgerId};
use aquifer_proto::v1;
use aquifer_runtime::clock::sleep;

use crate::bookie::Crash;
use crate::cluster::context::Cluster;
use crate::cluster::ids::number_of;
use crate::cluster::repair::{incomplete_entry, worker};

const LEDGERS_MAX: usize = 100_000;
/// Rounds of repair, each after a pause that is longer than a failed ledger is put off.
const ROUNDS: usize = 6;
const PAUSE: Duration = Duration::from_secs(400);

/// Loses an entry and a bookie, repairs, and looks at what became of the ledger.
pub(super) async fn run(cluster: &Arc<Cluster>) -> Result<(), LedgerError> {
    let quorum = cluster.shape.quorum;
    let has_spare = usize::from(cluster.shape.bookies) > quorum.ensemble();
    if !has_spare || quorum.write() < 2 {
        return Ok(());
    }
    let (_, context) = cluster.process();
    let store = &*context.ledgers.store;
    let Some((ledger, record)) = choose(cluster, store).await? else {
        return Ok(());
    };
    let last = record.last_entry_id.unwrap_or(0);
    let hole = EntryId(cluster.rng.below(last));
    let named = member_of(cluster, &record, hole);
    cluster.history.copies_move();
    for number in (0..cluster.shape.bookies).filter(|number| *number != number_of(named)) {
        let lose = |node: &mut crate::cluster::node::Node| node.bookie.lose_entry(ledger, hole);
        cluster.net.change_node(number, lose);
    }
    cluster.net.crash(number_of(named), Crash::Wipe, 0);
    unregister(store, named).await?;
    let mark = Mark::new(ledger, &record.home, "simulated loss", 0).lost([named]);
    marks::write(store, &mark).await?;
    let mut worker = worker(cluster).await?;
    for _ in 0..ROUNDS {
        worker.round().await?;
        sleep(PAUSE).await;
    }
    let Some(stored) = store.get(&keys::ledger(ledger)).await? else {
        return Ok(());
    };
    if let Some(incomplete) = incomplete_entry(cluster, ledger, &stored, Some(hole))? {
        cluster.history.violation(format!(
            "I2: entry {ledger}:{incomplete} stays incomplete because {ledger}:{hole} is nowhere"
        ));
    }
    let repaired: v1::LedgerRecord = record::decode(&stored)?;
    if !members_at(&repaired, hole).contains(&named) {
        cluster.history.violation(format!(
            "H16: the place of {ledger}:{hole} was given away, and no bookie has it"
        ));
    }
    Ok(())
}

/// A closed ledger with two entries at least.
async fn choose(
    cluster: &Cluster,
    store: &dyn MetadataStore,
) -> Result<Option<(LedgerId, v1::LedgerRecord)>, LedgerError> {
    let (ledgers, _) = scan::all(store, keys::LEDGERS_PREFIX, LEDGERS_MAX).await?;
    let mut fit = Vec::new();
    for stored in &ledgers {
        if let Some(found) = fits(store, stored).await? {
            fit.push(found);
        }
    }
    if fit.is_empty() {
        return Ok(None);
    }
    let at = cluster.rng.below(fit.len() as u64);
    Ok(Some(fit.swap_remove(usize::try_from(at).unwrap_or(0))))
}

async fn fits(
    store: &dyn MetadataStore,
    stored: &Versioned,
) -> Result<Option<(LedgerId, v1::LedgerRecord)>, LedgerError> {
    let Ok(keys::Key::Ledger(id)) = stored.key.parse() else {
        return Ok(None);
    };
    let going = store.get(&keys::deletion(id)).await?.is_some();
    let ledger: v1::LedgerRecord = record::decode(stored)?;
    let fit = !going
        && ledger.state() == v1::LedgerState::Closed
        && ledger.last_entry_id.is_some_and(|last| last > 0);
    Ok(fit.then_some((id, ledger)))
}

/// The members of the fragment of an entry.
fn members_at(ledger: &v1::LedgerRecord, entry: EntryId) -> Vec<BookieId> {
    let mut fragments = ledger.fragments.iter().rev();
    let fragment = fragments.find(|fragment| fragment.first_entry_id <= entry.0);
    let bookies = fragment.map(|fragment| fragment.bookies.as_slice());
    let bookies = bookies.unwrap_or_default().iter();
    bookies
        .filter_map(|bytes| BookieId::try_from(&bytes[..]).ok())
        .collect()
}

/// One of the bookies that store an entry.
fn member_of(cluster: &Cluster, ledger: &v1::LedgerRecord, entry: EntryId) -> BookieId {
    let quorum = cluster.shape.quorum;
    let members = members_at(ledger, entry);
    let write_set: Vec<usize> = quorum.write_set(entry.0).collect();
    let at = cluster.rng.below(write_set.len() as u64);
    let position = write_set[usize::try_from(at).unwrap_or(0)];
    members[position]
}

async fn unregister(store: &dyn MetadataStore, bookie: BookieId) -> Result<(), LedgerError> {
    let gone = Transaction {
        partition: keys::CLUSTER_PARTITION.to_owned(),
        guards: Vec::new(),
        operations: vec![Operation::Delete {
            key: keys::bookie(bookie),
            expect: Expect::Any,
        }],
    };
    // If the answer is lost it is done all the same.
    let _ = store.commit(gone).await;
    Ok(())
}
