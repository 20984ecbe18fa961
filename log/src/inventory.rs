//! Bookies and ledgers as metadata shows them to people, for crates above that know no ledgers.

use std::collections::BTreeMap;

use aquifer_ledger::index::LedgerIndex;
use aquifer_ledger::members::{Member, Members};
use aquifer_ledger::{ledger_metadata, view};
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_model::id::{BookieId, LedgerId};
use aquifer_model::inventory::{BookieView, LedgerView, ListedLedger};

use crate::error::LogError;

/// The bookies that are registered, and those that have a record, by id.
///
/// # Errors
/// When they cannot be listed.
pub async fn bookies(store: &dyn MetadataStore) -> Result<Vec<BookieView>, LogError> {
    let members = Members::load(store).await?;
    Ok(members.iter().map(Member::view).collect())
}

/// The same with the ledgers of each counted, for which the records of all ledgers are read. Those
/// are there too of which only ledgers tell.
///
/// # Errors
/// When bookies or ledgers cannot be listed.
pub async fn bookies_with_ledgers(store: &dyn MetadataStore) -> Result<Vec<BookieView>, LogError> {
    let views = bookies(store).await?.into_iter();
    let mut views: BTreeMap<BookieId, BookieView> = views.map(|view| (view.bookie, view)).collect();
    let index = LedgerIndex::scan(store).await?;
    for bookie in index.bookies() {
        let away = || BookieView::away(bookie);
        views.entry(bookie).or_insert_with(away);
    }
    for view in views.values_mut() {
        view.ledgers = Some(index.count_of(view.bookie));
    }
    Ok(views.into_values().collect())
}

/// One ledger; `None` when it has no record.
///
/// # Errors
/// When the record cannot be read.
pub async fn ledger(
    store: &dyn MetadataStore,
    ledger: LedgerId,
) -> Result<Option<LedgerView>, LogError> {
    let info = ledger_metadata::load(store, ledger).await?;
    Ok(info.as_ref().map(LedgerView::from))
}

/// A ledger of a list, whose record is this value.
#[must_use]
pub fn listed(ledger: LedgerId, item: &Versioned) -> ListedLedger {
    view::listed(ledger, item)
}
