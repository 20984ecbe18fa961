//! Pages of the older segments of a topic's messages.
//!
//! The topic's record lists the newest segments. When it is full, a rollover moves its oldest ones
//! into a page, a key below the record (`keys::segment_page`), in the transaction of the rollover.
//! The key has the incarnation: a topic that is being restored has pages of its own, beside those
//! of another that has its name.
//! So a rollover writes a bounded number of bytes however many ledgers the topic has. The cursor
//! log has no pages: it is trimmed to its newest snapshot.
//!
//! Invariants:
//! - The record has the numbers of its pages, `first_page..end_page`, and what their segments have
//!   in bytes. A page changes only in a transaction that also writes the record over the revision
//!   from which it was decided. So pages that were read between two reads of one revision of the
//!   record belong to it, a segment is always in one page or in the record, and a former owner can
//!   change neither.
//! - Only sealed segments are in pages. A page is written once; after that it is only shortened
//!   from the front, the first page before all others, and deleted with its last segment.
//! - The record keeps a segment while there are pages.
//! - Pages that do not fit together are refused, with what to do about it: nothing is appended,
//!   trimmed or deleted on a guess.

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::store::{Expect, MetadataStore, Operation, Revision, Versioned};
use aquifer_metadata::{keys, record, scan};
use aquifer_model::id::{LedgerId, TopicIncarnation};
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use bytes::Bytes;

use crate::error::LogError;
use crate::record::{TopicRecordCell, note_removed};

pub use crate::types::Paging;

/// Attempts to read the record and its pages in one state while another process changes them.
const READS_MAX: usize = 8;

/// A page as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    number: u32,
    key: String,
    incarnation: Bytes,
    segments: Vec<v1::SegmentRecord>,
    revision: Revision,
}

const UNKNOWN: &str = "its topic's record does not know of this page";

/// What is wrong with a page, and what to do.
fn damaged(key: &str, what: &str) -> MetadataError {
    MetadataError::Damaged {
        key: key.to_owned(),
        reason: format!(
            "{what}; it lists ledgers of a topic: do not delete it, restore this key and the record \
             of its topic from one backup of the metadata store"
        ),
    }
}

/// Whether some segments of a topic are in pages.
pub(crate) fn has_pages(record: &v1::TopicRecord) -> bool {
    record.first_page != record.end_page
}

/// The key of a page of a record.
fn page_key(
    topic: &TopicName,
    record: &v1::TopicRecord,
    page: u32,
) -> Result<String, MetadataError> {
    let incarnation = TopicIncarnation::try_from(record.incarnation.as_ref());
    let malformed = |_| damaged(&keys::topic(topic), "its incarnation is malformed");
    Ok(keys::segment_page(
        topic,
        incarnation.map_err(malformed)?,
        page,
    ))
}

/// Moves the oldest segments of a record into a page if the record is full. All but the last
/// segment of `record` must be sealed.
pub(crate) fn move_oldest(
    topic: &TopicName,
    record: &mut v1::TopicRecord,
    paging: Paging,
) -> Result<Option<Operation>, LogError> {
    let (kept, page) = (paging.kept.max(2), paging.page.max(1));
    if record.segments.len() <= kept + page {
        return Ok(None);
    }
    let key = page_key(topic, record, record.end_page)?;
    if record.segments[..page]
        .iter()
        .any(|segment| !segment.sealed)
    {
        let error = damaged(
            &keys::topic(topic),
            "a segment before its last is not sealed",
        );
        return Err(error.into());
    }
    let next = record.end_page.checked_add(1);
    let moved: Vec<v1::SegmentRecord> = record.segments.drain(..page).collect();
    record.paged_bytes = record.paged_bytes.saturating_add(bytes_of(&moved));
    record.end_page = next.ok_or_else(|| damaged(&key, "no page can follow it"))?;
    Ok(Some(Operation::Put {
        value: record::encode(v1::SegmentPageRecord {
            incarnation: record.incarnation.clone(),
            segments: moved,
        }),
        key,
        expect: Expect::Absent,
    }))
}

/// The error of a rollover that found the key of its new page in use.
pub(crate) fn page_in_use(key: &str) -> LogError {
    damaged(key, UNKNOWN).into()
}

fn bytes_of(segments: &[v1::SegmentRecord]) -> u64 {
    let bytes = segments.iter().map(|segment| segment.bytes);
    bytes.fold(0, u64::saturating_add)
}

/// All segments of a topic's messages, oldest first: those of its pages, which are `pages` and no
/// others, and those of its record.
///
/// # Errors
/// `Damaged`, with the key that does not fit and what to do.
pub fn assemble(
    topic: &TopicName,
    record: &v1::TopicRecord,
    pages: &[Versioned],
) -> Result<Vec<v1::SegmentRecord>, MetadataError> {
    let mut all: Vec<v1::SegmentRecord> = Vec::new();
    let mut wanted = record.first_page;
    for stored in pages {
        let key = page_key(topic, record, wanted)?;
        if stored.key != key || wanted >= record.end_page {
            return Err(match stored.key > key && wanted < record.end_page {
                true => damaged(&key, "the page is missing"),
                false => damaged(&stored.key, UNKNOWN),
            });
        }
        let page = Page::decode(topic, record, wanted, stored)?;
        let order = follows(all.last(), &page.segments);
        order.map_err(|what| damaged(&key, &what))?;
        all.extend(page.segments);
        wanted += 1;
    }
    if wanted != record.end_page {
        let missing = page_key(topic, record, wanted)?;
        return Err(damaged(&missing, "the page is missing"));
    }
    let key = keys::topic(topic);
    if bytes_of(&all) != record.paged_bytes {
        return Err(damaged(&key, "its pages have other segments than it says"));
    }
    if !all.is_empty() {
        let first = record.segments.first();
        let first = first.ok_or_else(|| damaged(&key, "it has pages, and no segment"))?;
        follows(all.last(), std::slice::from_ref(first)).map_err(|what| damaged(&key, &what))?;
    }
    all.extend(record.segments.iter().cloned());
    Ok(all)
}

/// Whether segments follow each other and a former one without gap or overlap.
fn follows(
    former: Option<&v1::SegmentRecord>,
    segments: &[v1::SegmentRecord],
) -> Result<(), String> {
    let before = former.into_iter().chain(segments);
    let after = segments.iter().skip(usize::from(former.is_none()));
    for (one, two) in before.zip(after) {
        if one.end_index != two.first_index {
            return Err(format!(
                "ledger {} ends at index {}, and ledger {} behind it begins at {}",
                one.ledger_id, one.end_index, two.ledger_id, two.first_index
            ));
        }
        if one.ledger_id >= two.ledger_id {
            return Err(format!(
                "ledger {} is listed before ledger {}",
                one.ledger_id, two.ledger_id
            ));
        }
    }
    Ok(())
}

/// The first page of a record, read on its own: for topics that are not loaded. `None` if the
/// record has no pages.
///
/// # Errors
/// When it cannot be read, or is missing: then the topic has been trimmed since the record was
/// read, or metadata is damaged.
pub(crate) async fn first_page(
    store: &dyn MetadataStore,
    topic: &TopicName,
    record: &v1::TopicRecord,
) -> Result<Option<Page>, MetadataError> {
    if !has_pages(record) {
        return Ok(None);
    }
    let key = page_key(topic, record, record.first_page)?;
    let stored = store.get(&key).await?;
    let stored = stored.ok_or_else(|| damaged(&key, "the page is missing"))?;
    Page::decode(topic, record, record.first_page, &stored).map(Some)
}

impl Page {
    fn decode(
        topic: &TopicName,
        record: &v1::TopicRecord,
        number: u32,
        stored: &Versioned,
    ) -> Result<Page, MetadataError> {
        let key = page_key(topic, record, number)?;
        let found: v1::SegmentPageRecord = record::decode(stored)?;
        let is_bad = |segment: &v1::SegmentRecord| {
            !segment.sealed || segment.end_index < segment.first_index
        };
        let what = match () {
            () if stored.key != key => "it is not the page that was read",
            () if found.incarnation != record.incarnation => "it belongs to another topic",
            () if found.segments.is_empty() => "the page is empty",
            () if found.segments.iter().any(is_bad) => "a segment of it is not sealed",
            () => {
                return Ok(Page {
                    number,
                    key,
                    incarnation: found.incarnation,
                    segments: found.segments,
                    revision: stored.revision,
                });
            }
        };
        Err(damaged(&stored.key, what))
    }

    /// Its segments, oldest first; never empty.
    pub(crate) fn segments(&self) -> &[v1::SegmentRecord] {
        &self.segments
    }

    /// Its ledgers.
    pub(crate) fn ledgers(&self) -> impl Iterator<Item = LedgerId> {
        self.segments.iter().map(|s| LedgerId(s.ledger_id))
    }

    /// The change that takes segments off its front.
    fn without(&self, count: usize) -> Operation {
        let (key, expect) = (self.key.clone(), Expect::Revision(self.revision));
        match self.segments.get(count..) {
            None | Some([]) => Operation::Delete { key, expect },
            Some(rest) => Operation::Put {
                value: record::encode(v1::SegmentPageRecord {
                    incarnation: self.incarnation.clone(),
                    segments: rest.to_vec(),
                }),
                key,
                expect,
            },
        }
    }

    /// What that changes in the topic's record.
    fn note_without(&self, count: usize, record: &mut v1::TopicRecord) -> Result<(), LogError> {
        if !has_pages(record) || record.first_page != self.number {
            return Err(LogError::Fenced);
        }
        let removed = &self.segments[..count.min(self.segments.len())];
        record.paged_bytes = record.paged_bytes.saturating_sub(bytes_of(removed));
        if removed.len() == self.segments.len() {
            record.first_page += 1;
        }
        note_trimmed(record, removed.to_vec());
        Ok(())
    }
}

/// Notes what says, once they are gone, that these segments were the first of the log.
pub(crate) fn note_trimmed(record: &mut v1::TopicRecord, removed: Vec<v1::SegmentRecord>) {
    let end = removed.last().map_or(0, |segment| segment.end_index);
    record.trimmed_index = record.trimmed_index.max(end);
    note_removed(record, removed);
}

impl TopicRecordCell {
    /// Whether some segments are in pages, as far as this process knows.
    pub(crate) fn has_pages(&self) -> bool {
        has_pages(&self.record())
    }

    /// The record, and all segments of its messages, those in pages included. Reads nothing if
    /// there are no pages.
    pub(crate) async fn all_segments(
        &self,
    ) -> Result<(v1::TopicRecord, Vec<v1::SegmentRecord>), LogError> {
        for _ in 0..READS_MAX {
            let (record, revision) = self.record_at();
            if !has_pages(&record) {
                let segments = record.segments.clone();
                return Ok((record, segments));
            }
            // Their number is bounded by the ledgers that metadata holds: 48,000 have 1,000 pages.
            let prefix = keys::segment_pages_of(self.topic(), self.incarnation());
            let store = &*self.ctx().ledgers.store;
            let (pages, _) = scan::all(store, &prefix, usize::MAX).await?;
            self.refresh().await?;
            if self.revision() == revision {
                let segments = assemble(self.topic(), &record, &pages)?;
                return Ok((record, segments));
            }
        }
        let changing = "the segments of the topic keep changing".to_owned();
        Err(LogError::Unavailable(changing))
    }

    /// The page that is trimmed next; `None` if there are no pages.
    pub(crate) async fn first_page(&self) -> Result<Option<Page>, LogError> {
        let store = &*self.ctx().ledgers.store;
        let (record, revision) = self.record_at();
        match first_page(store, self.topic(), &record).await {
            Ok(page) => Ok(page),
            // By this process, which goes on; or by another owner, which was found out just now.
            Err(MetadataError::Damaged { .. })
                if self.revision() != revision || self.refresh().await? =>
            {
                Err(LogError::Unavailable("the page was trimmed".to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the first segments off the first page together with `operations`: the intents to
    /// delete their ledgers.
    ///
    /// # Errors
    /// [`LogError::Fenced`] when the page is not as it was read: another owner has trimmed it.
    pub(crate) async fn shorten_page(
        &self,
        page: &Page,
        count: usize,
        mut operations: Vec<Operation>,
    ) -> Result<(), LogError> {
        operations.push(page.without(count));
        let change = |record: &mut v1::TopicRecord| page.note_without(count, record);
        match self.update(operations, change).await {
            Err(LogError::Metadata(MetadataError::Conflict { key, .. })) if key == page.key => {
                Err(LogError::Fenced)
            }
            outcome => outcome.map(drop),
        }
    }

    /// Takes the first segments off the record together with `operations`, as
    /// [`shorten_page`](Self::shorten_page) does with those of a page.
    pub(crate) async fn shorten_record(
        &self,
        ledgers: &[LedgerId],
        operations: Vec<Operation>,
    ) -> Result<(), LogError> {
        let change = |record: &mut v1::TopicRecord| {
            // A rollover of this process, or another owner, has moved them into a page.
            if has_pages(record) {
                return Err(LogError::Fenced);
            }
            let removed = drain_front(&mut record.segments, ledgers)?;
            note_trimmed(record, removed);
            Ok(())
        };
        self.update(operations, change).await.map(drop)
    }
}

/// Takes the segments of these ledgers, which must be the first ones, off a list.
pub(crate) fn drain_front(
    segments: &mut Vec<v1::SegmentRecord>,
    ledgers: &[LedgerId],
) -> Result<Vec<v1::SegmentRecord>, LogError> {
    let front = segments.iter().map(|s| LedgerId(s.ledger_id));
    if front.take(ledgers.len()).ne(ledgers.iter().copied()) {
        return Err(LogError::Fenced);
    }
    Ok(segments.drain(..ledgers.len()).collect())
}
