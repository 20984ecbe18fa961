//! Reading on by heads only, for callers that need no bodies: what producers have stored is told by
//! the heads of entries.

use aquifer_model::entry::{EntryError, EntryHead};

use crate::error::LogError;
use crate::managed::read::{HEAD_BYTES_USUAL, Place, ReadPoint, damaged, head_at};
use crate::managed::search::READS_MAX;
use crate::managed::state::LogInner;
use crate::managed::types::{Found, LogHead};
use crate::reader::{Wanted, read_range};

impl LogInner {
    /// As [`LogInner::read_or_skip`], by heads.
    pub(crate) async fn read_heads_or_skip(
        &self,
        at: &mut ReadPoint,
        entries_max: usize,
    ) -> Result<Found<LogHead>, LogError> {
        let mut last = String::new();
        for _ in 0..READS_MAX {
            at.index = at.index.max(self.first());
            match self.read_heads(at, entries_max).await {
                Ok(heads) => return Ok(Found::Entries(heads)),
                // What a trim took away under the read is no damage.
                Err(_) if at.index < self.first() => continue,
                Err(LogError::Damaged(reason)) => last = reason,
                Err(error) => return Err(error),
            }
            let damage = self.skip_damaged(at).await?;
            if damage.end > damage.from {
                return Ok(Found::Damaged(damage, last));
            }
        }
        Err(LogError::Unavailable(last))
    }

    /// Heads of one ledger from a point on, which moves behind them; none at the end of the log.
    async fn read_heads(
        &self,
        at: &mut ReadPoint,
        entries_max: usize,
    ) -> Result<Vec<LogHead>, LogError> {
        if at.index >= self.end() {
            return Ok(Vec::new());
        }
        let place = match self.known_place(at) {
            Some(place) => place,
            None => self.search(at.index).await?,
        };
        let (first, segment) = self.settled(place)?;
        let last = segment.last_entry().unwrap_or(first.entry);
        let wanted = Wanted {
            first: first.entry,
            last,
            bytes_max: entries_max.saturating_mul(HEAD_BYTES_USUAL),
            entries_max,
            prefix_bytes: Some(HEAD_BYTES_USUAL),
        };
        let mut info = self.info(segment.ledger).await?;
        let stored = loop {
            match read_range(&self.ctx, &info, wanted).await {
                Ok(stored) => break stored,
                Err(error) => info = self.newer(&info, error.into()).await?,
            }
        };
        let mut heads: Vec<LogHead> = Vec::with_capacity(stored.len());
        for stored in &stored {
            let head = match EntryHead::decode(&stored.data) {
                Ok((head, _)) => head,
                // What is wrong with a later one is found when it is the first.
                Err(_) if !heads.is_empty() => break,
                Err(EntryError::Length { .. }) => head_at(&self.ctx, &info, stored.entry).await?,
                Err(error) => return Err(damaged(&info, stored.entry, &error.to_string())),
            };
            let is_next = heads
                .last()
                .is_none_or(|before| before.head.end_index() == head.base_index);
            if !is_next {
                break;
            }
            heads.push(LogHead {
                ledger: info.id,
                entry: stored.entry,
                head,
                ledger_bytes: stored.ledger_length,
            });
        }
        match heads.last() {
            Some(last) if last.head.end_index() > at.index => {
                at.index = last.head.end_index();
                at.next = Some(Place {
                    index: at.index,
                    ledger: last.ledger,
                    entry: last.entry.next(),
                });
                Ok(heads)
            }
            _ => Err(damaged(
                &info,
                first.entry,
                "it does not hold the index that is wanted",
            )),
        }
    }
}
