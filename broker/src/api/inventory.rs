//! Bookies and ledgers, as operators see them: what metadata says, read by whichever broker is
//! asked. Nothing is changed here.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_log::{TopicRecordCell, inventory};
use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::store::{MetadataStore, Versioned};
use aquifer_metadata::{scan, segments};
use aquifer_model::id::{BookieId, LedgerId};
use aquifer_model::inventory::{BookieView, LedgerView, ListedLedger};
use aquifer_model::topic::TopicName;
use aquifer_protocol_api::admin::{Page, PageRequest};
use futures::{StreamExt, TryStreamExt};

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::namespace::listing::{Listed, Lister, page_items};
use crate::topic::record::{check_partition, partitioned};

/// Records of ledgers that are read at once for a page.
const RECORDS_AT_ONCE: usize = 16;

impl Broker {
    fn metadata(&self) -> &dyn MetadataStore {
        self.shared.namespaces.store().as_ref()
    }

    pub(super) async fn bookies(&self, count: bool) -> Result<Vec<BookieView>, BrokerError> {
        if !count {
            return Ok(inventory::bookies(self.metadata()).await?);
        }
        // One request at a time reads the records of all ledgers. The semaphore is never closed.
        let _permit = self.shared.scanning.acquire().await;
        Ok(inventory::bookies_with_ledgers(self.metadata()).await?)
    }

    pub(super) async fn bookie(
        &self,
        bookie: BookieId,
        count: bool,
    ) -> Result<BookieView, BrokerError> {
        let views = self.bookies(count).await?;
        let found = views.into_iter().find(|view| view.bookie == bookie);
        found.ok_or_else(|| BrokerError::NotFound {
            what: "bookie",
            name: bookie.to_string(),
            advice: "list the bookies; one that is gone and has no record is named by ledgers only"
                .to_owned(),
        })
    }

    pub(super) async fn ledgers(
        &self,
        page: PageRequest,
    ) -> Result<Page<ListedLedger>, BrokerError> {
        let lister = Lister {
            store: self.metadata(),
            prefix: keys::LEDGERS_PREFIX.to_owned(),
        };
        let after = after(&page)?.map(keys::ledger);
        let look = |item: &Versioned| -> Result<Listed<ListedLedger>, BrokerError> {
            Ok(match item.key.parse() {
                Ok(Key::Ledger(id)) => Listed::Item(inventory::listed(id, item), id.0.to_string()),
                _ => Listed::Skip,
            })
        };
        lister.page(&page, after, look).await
    }

    pub(super) async fn ledgers_of(
        &self,
        topic: &TopicName,
        page: PageRequest,
    ) -> Result<Page<ListedLedger>, BrokerError> {
        let after = after(&page)?;
        let mut ids = self.ledger_ids(topic).await?;
        if let Some(after) = after {
            ids = ids.split_off(&LedgerId(after.0.saturating_add(1)));
        }
        let limit = page_items(&page);
        let next = match ids.len() > limit {
            true => ids.iter().nth(limit - 1).map(|id| id.0.to_string()),
            false => None,
        };
        let found = futures::stream::iter(ids.into_iter().take(limit)).map(|id| async move {
            let item = self.metadata().get(&keys::ledger(id)).await?;
            // One that was trimmed meanwhile is gone.
            Ok::<_, MetadataError>(item.map(|item| inventory::listed(id, &item)))
        });
        let found = found.buffered(RECORDS_AT_ONCE);
        let items = found.try_filter_map(|found| async move { Ok(found) });
        Ok(Page {
            items: items.try_collect().await?,
            next,
        })
    }

    /// The ledgers that a topic lists. The record is read before the pages: what moves from one to
    /// the other meanwhile is in both.
    async fn ledger_ids(&self, topic: &TopicName) -> Result<BTreeSet<LedgerId>, BrokerError> {
        self.shared.namespaces.check(topic.namespace()).await?;
        let ctx = Arc::clone(&self.shared.log);
        let cell = match TopicRecordCell::load(ctx, topic, Vec::new()).await? {
            Some(cell) if cell.is_deleting() => {
                return Err(BrokerError::Deleted(topic.to_string()));
            }
            Some(cell) => cell,
            // Not used yet, if its topic has it.
            None if topic.partition().is_some() => {
                check_partition(&self.shared, topic).await?;
                return Ok(BTreeSet::new());
            }
            None => return Err(BrokerError::no_topic(topic)),
        };
        let ranges = cell.ranges();
        if !ranges.is_empty() {
            return Err(partitioned(topic, &ranges));
        }
        let record = cell.record();
        let segments = record.segments.iter().chain(&record.cursor_segments);
        let mut ids: BTreeSet<LedgerId> = segments.map(|s| LedgerId(s.ledger_id)).collect();
        let take = |paged: &mut BTreeSet<LedgerId>, item: &Versioned| {
            let of_this_life = matches!(
                item.key.parse(),
                Ok(Key::SegmentPage(_, life, _)) if life == cell.incarnation()
            );
            if let (true, Some(page)) = (of_this_life, segments::listed(item)?) {
                paged.extend(page.ledgers);
            }
            Ok::<(), MetadataError>(())
        };
        let prefix = keys::segment_pages_prefix(topic);
        let (paged, _) = scan::each(self.metadata(), &prefix, BTreeSet::new, take).await?;
        ids.extend(paged);
        Ok(ids)
    }

    pub(super) async fn ledger(&self, ledger: LedgerId) -> Result<LedgerView, BrokerError> {
        let found = inventory::ledger(self.metadata(), ledger).await?;
        found.ok_or_else(|| BrokerError::NotFound {
            what: "ledger",
            name: ledger.to_string(),
            advice: "list the ledgers; a deleted one never comes back".to_owned(),
        })
    }
}

/// Behind which ledger a page begins.
fn after(page: &PageRequest) -> Result<Option<LedgerId>, BrokerError> {
    let Some(after) = &page.after else {
        return Ok(None);
    };
    let id = after.parse().map(LedgerId).map_err(|_| {
        BrokerError::invalid(
            format!("{after:?} is no ledger"),
            "pass the `next` of the page before",
        )
    })?;
    Ok(Some(id))
}
