//! Damaged files of the ledger store: which they are and which ledgers they may have touched (H17).
//!
//! Reads serve what is whole, and repair writes entries anew beside their damaged blocks. But a file
//! that a compaction cannot read stops all compactions, so from then on none runs, here and after
//! every start, until a start sets the files aside. What is known is stored in RocksDB.

use std::collections::BTreeSet;

use aquifer_model::id::{EntryId, LedgerId};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bytes_at::u64_at;
use crate::report::{DamageReport, DamagedFile};

const VERSION: u8 = 1;
/// Files that are remembered by name; more of them are found when these are set aside.
pub const FILES_MAX: usize = 64;
/// Longest description of a file that is stored.
const WHAT_BYTES_MAX: usize = 1024;
/// Entries that are remembered as told of.
const TOLD_MAX: usize = 1024;

/// What a running bookie knows of damaged files.
pub struct Damage {
    report: Mutex<Option<DamageReport>>,
    news: watch::Sender<()>,
    told: Mutex<BTreeSet<(LedgerId, EntryId)>>,
}

impl Damage {
    /// Known damage, or none.
    #[must_use]
    pub fn new(report: Option<DamageReport>) -> Damage {
        Damage {
            news: watch::Sender::new(()),
            report: Mutex::new(report),
            told: Mutex::default(),
        }
    }

    /// Whether an entry that cannot be read is to be told of at once: readers ask for the same one
    /// again and again, and each is told of once until many others were.
    pub fn is_news(&self, ledger: LedgerId, entry: EntryId) -> bool {
        let mut told = self.told.lock();
        if told.len() >= TOLD_MAX && !told.contains(&(ledger, entry)) {
            told.clear();
        }
        told.insert((ledger, entry))
    }

    /// What is known.
    pub fn report(&self) -> Option<DamageReport> {
        self.report.lock().clone()
    }

    /// More is known.
    pub fn found(&self, report: DamageReport) {
        *self.report.lock() = Some(report);
        self.news.send_replace(());
    }

    /// Waits until something else is known than `before`, and says what.
    pub async fn wait(&self, before: Option<&DamageReport>) -> DamageReport {
        let mut news = self.news.subscribe();
        loop {
            match self.report() {
                Some(report) if Some(&report) != before => return report,
                _ => {}
            }
            if news.changed().await.is_err() {
                // The sender lives as long as self.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The stored bytes of a report.
#[must_use]
pub fn encode(report: &DamageReport) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    for file in report.files.iter().take(FILES_MAX) {
        bytes.extend_from_slice(&file.first.0.to_le_bytes());
        bytes.extend_from_slice(&file.last.0.to_le_bytes());
        for text in [&file.name, &file.what] {
            let mut end = text.len().min(WHAT_BYTES_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            bytes.extend_from_slice(&(end as u64).to_le_bytes());
            bytes.extend_from_slice(&text.as_bytes()[..end]);
        }
    }
    bytes
}

/// Reads stored bytes. Damaged ones still mean damage, of whatever files.
#[must_use]
pub fn decode(bytes: &[u8]) -> DamageReport {
    let mut report = DamageReport::default();
    let mut rest = match bytes.split_first() {
        Some((&VERSION, rest)) => rest,
        _ => return report,
    };
    while !rest.is_empty() && report.files.len() < FILES_MAX {
        match file(rest) {
            Some((file, behind)) => {
                report.files.push(file);
                rest = behind;
            }
            None => break,
        }
    }
    report
}

fn file(bytes: &[u8]) -> Option<(DamagedFile, &[u8])> {
    let (ids, rest) = bytes.split_at_checked(16)?;
    let (name, rest) = text(rest)?;
    let (what, rest) = text(rest)?;
    let file = DamagedFile {
        name,
        first: LedgerId(u64_at(ids, 0)),
        last: LedgerId(u64_at(ids, 8)),
        what,
    };
    Some((file, rest))
}

fn text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = bytes.split_at_checked(8)?;
    let len = usize::try_from(u64_at(len, 0)).ok()?;
    let (text, rest) = rest.split_at_checked(len)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_is_news_once_until_many_others_were() {
        let damage = Damage::new(None);
        let ledger = LedgerId(7);
        let last = EntryId(TOLD_MAX as u64 - 1);
        for entry in 0..=last.0 {
            assert!(damage.is_news(ledger, EntryId(entry)));
        }
        assert!(!damage.is_news(ledger, last));
        assert!(!damage.is_news(ledger, EntryId::FIRST));
        assert!(damage.is_news(LedgerId(8), last));
        assert!(
            damage.is_news(ledger, EntryId::FIRST),
            "room was made for others"
        );
    }

    proptest! {
        #[test]
        fn reports_round_trip(files in prop::collection::vec(
            ("[0-9]{6}\\.sst", any::<u64>(), any::<u64>(), ".{0,50}"), 0..4)
        ) {
            let files = files.into_iter().map(|(name, first, last, what)| DamagedFile {
                name,
                first: LedgerId(first),
                last: LedgerId(last),
                what,
            });
            let report = DamageReport { files: files.collect() };
            prop_assert_eq!(decode(&encode(&report)), report);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&bytes);
        }
    }
}
