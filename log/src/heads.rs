//! Reading on by heads only, for callers that need no bodies: what producers have stored is told by
//! the heads of entries.

use aquifer_ledger::ledger_metadata::LedgerInfo;
use aquifer_ledger::reader::Wanted;
use aquifer_model::entry::{EntryError, EntryHead, HEAD_BYTES_MAX};
use aquifer_model::id::EntryId;
use aquifer_model::storage::StoredEntry;

use crate::error::LogError;
use crate::read::{HEAD_BYTES_USUAL, ReadPoint, damaged};
use crate::state::LogInner;
use crate::types::{Found, LogHead, Place};

impl LogInner {
    /// As [`LogInner::read_or_skip`], by heads.
    pub(crate) async fn read_heads_or_skip(
        &self,
        at: &mut ReadPoint,
        entries_max: usize,
    ) -> Result<Found<LogHead>, LogError> {
        let mut reads = 0;
        loop {
            let error = match self.read_heads(at, entries_max).await {
                Ok(heads) => return Ok(Found::Entries(heads)),
                Err(error) => error,
            };
            if let Some((damage, reason)) = self.pass_damage(at, error, &mut reads).await? {
                return Ok(Found::Damaged(damage, reason));
            }
        }
    }

    /// As [`LogInner::read`], by heads.
    async fn read_heads(
        &self,
        at: &mut ReadPoint,
        entries_max: usize,
    ) -> Result<Vec<LogHead>, LogError> {
        loop {
            at.index = at.index.max(self.first());
            match self.read_page_of_heads(at, entries_max).await {
                // What a trim took away under the read is no damage.
                Err(_) if at.index < self.first() => {}
                read => return read,
            }
        }
    }

    /// Heads of one ledger from the one on that holds `at.index`; the point moves behind them. None
    /// at the end of the log.
    async fn read_page_of_heads(
        &self,
        at: &mut ReadPoint,
        entries_max: usize,
    ) -> Result<Vec<LogHead>, LogError> {
        loop {
            if at.index >= self.end() {
                return Ok(Vec::new());
            }
            let place = match self.known_place(at) {
                Some(place) => place,
                None => self.search(at.index).await?,
            };
            let (first, segment) = self.resolved(place)?;
            // As many bytes whatever the length: long heads cost more reads, and none is read
            // twice.
            let (prefix, entries_max) = match at.has_long_heads {
                false => (HEAD_BYTES_USUAL, entries_max),
                true => (
                    HEAD_BYTES_MAX,
                    entries_max.div_ceil(HEAD_BYTES_MAX / HEAD_BYTES_USUAL),
                ),
            };
            let wanted = Wanted {
                first: first.entry,
                last: segment.last_entry().unwrap_or(first.entry),
                bytes_max: entries_max.saturating_mul(prefix),
                entries_max,
                prefix_bytes: Some(prefix),
            };
            let (info, stored) = self.read_entries(segment.ledger, wanted).await?;
            let (heads, passed) = usable(&info, &stored, at)?;
            match (heads.last(), passed) {
                (Some(last), _) => {
                    at.index = last.head.end_index();
                    at.next = Some(Place {
                        index: at.index,
                        ledger: last.ledger,
                        entry: last.entry.next(),
                    });
                    return Ok(heads);
                }
                (None, Some(passed)) => {
                    at.next = Some(Place {
                        index: at.index,
                        ledger: info.id,
                        entry: passed.next(),
                    });
                }
                // The first one is long: it is read again, as long as heads may be.
                (None, None) if at.has_long_heads && prefix == HEAD_BYTES_USUAL => {}
                (None, None) => {
                    let what = "it does not hold the index that is wanted";
                    return Err(damaged(&info, first.entry, what));
                }
            }
        }
    }
}

/// The heads of a page from the one on that holds `at.index`, as far as they follow each other, and
/// the last entry before it.
fn usable(
    info: &LedgerInfo,
    page: &[StoredEntry],
    at: &mut ReadPoint,
) -> Result<(Vec<LogHead>, Option<EntryId>), LogError> {
    let mut heads: Vec<LogHead> = Vec::with_capacity(page.len());
    let (mut wanted, mut passed) = (at.index, None);
    for stored in page {
        let head = match EntryHead::decode(&stored.data) {
            Ok((head, _)) => head,
            Err(EntryError::Length { .. }) if !at.has_long_heads => {
                at.has_long_heads = true;
                break;
            }
            // What is wrong with a later one is found when it is the first.
            Err(_) if !heads.is_empty() => break,
            Err(error) => return Err(damaged(info, stored.entry, &error.to_string())),
        };
        // A search that could not read a head may have come out before what is wanted.
        if heads.is_empty() && head.end_index() <= wanted {
            passed = Some(stored.entry);
            continue;
        }
        let is_next = match heads.is_empty() {
            true => head.base_index <= wanted,
            false => head.base_index == wanted,
        };
        if !is_next {
            break;
        }
        wanted = head.end_index();
        heads.push(LogHead {
            ledger: info.id,
            entry: stored.entry,
            head,
            ledger_bytes: stored.ledger_length,
        });
    }
    Ok((heads, passed))
}
