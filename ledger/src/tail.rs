//! Reads of a ledger by a process that does not own it, up to its moving end.
//!
//! Bookies tell the last-add-confirmed that writers carried to them; whatever is confirmed is read
//! like anything else. A reader never makes anything confirmed, and never fences.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::{EntryId, LedgerId};
use aquifer_model::storage::{StoredEntry, TailState, TailWait};
use aquifer_runtime::clock;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::context::LedgerContext;
use crate::error::LedgerError;
use crate::ledger_metadata::{self, LedgerInfo, LedgerState};
use crate::reader::{Wanted, read_range};

/// A reader at the end of a ledger.
pub struct TailReader {
    ctx: Arc<LedgerContext>,
    info: LedgerInfo,
    next: EntryId,
    confirmed: Option<EntryId>,
}

/// What one read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailRead {
    /// The next entries, at least one.
    Entries(Vec<StoredEntry>),
    /// Time was up.
    Nothing,
    /// The ledger is closed, and everything was read.
    End,
}

impl TailReader {
    /// A reader from `from` on.
    ///
    /// # Errors
    /// When the ledger's record is missing, damaged or cannot be read.
    pub async fn open(
        ctx: Arc<LedgerContext>,
        ledger: LedgerId,
        from: EntryId,
    ) -> Result<TailReader, LedgerError> {
        let info = ledger_metadata::load_existing(&*ctx.store, ledger).await?;
        Ok(TailReader {
            ctx,
            info,
            next: from,
            confirmed: None,
        })
    }

    /// Reads what is confirmed from the reader's place on; waits for it up to `wait`.
    ///
    /// # Errors
    /// [`LedgerError::Unreadable`] when no replica serves a confirmed entry.
    pub async fn next(
        &mut self,
        bytes_max: usize,
        entries_max: usize,
        wait: Duration,
    ) -> Result<TailRead, LedgerError> {
        if self.confirmed < Some(self.next) && !self.is_closed() {
            self.wait(wait).await?;
        }
        if let LedgerState::Closed(end) = self.info.state {
            self.confirmed = end.last_entry;
        }
        let last = match self.confirmed {
            Some(last) if last >= self.next => last,
            _ if self.is_closed() => return Ok(TailRead::End),
            _ => return Ok(TailRead::Nothing),
        };
        let wanted = Wanted {
            first: self.next,
            last,
            bytes_max,
            entries_max,
            prefix_bytes: None,
        };
        let entries = read_range(&self.ctx, &self.info, wanted).await?;
        if let Some(last) = entries.last() {
            self.next = last.entry.next();
        }
        Ok(TailRead::Entries(entries))
    }

    fn is_closed(&self) -> bool {
        matches!(self.info.state, LedgerState::Closed(_))
    }

    /// Waits until more is confirmed, the ledger is closed, or time is up.
    async fn wait(&mut self, wait: Duration) -> Result<(), LedgerError> {
        let news = self.news(wait).await;
        if let Some(tail) = news
            && tail.last_add_confirmed >= Some(self.next)
        {
            self.confirmed = tail.last_add_confirmed;
            return Ok(());
        }
        // A fence, or other members, or nothing: metadata knows.
        let store = &*self.ctx.store;
        self.info = ledger_metadata::load_existing(store, self.info.id).await?;
        if !self.is_closed() && news.is_some_and(|tail| tail.fenced) {
            // A recovery is in progress, and its end is not told by bookies.
            clock::sleep(wait.min(self.ctx.settings.retry_backoff_max)).await;
            self.info = ledger_metadata::load_existing(store, self.info.id).await?;
        }
        Ok(())
    }

    /// Asks all members of the last fragment; the first with news wins.
    async fn news(&self, limit: Duration) -> Option<TailState> {
        let wait = TailWait {
            ledger: self.info.id,
            token: Some(self.info.token),
            above: self.next.0.checked_sub(1).map(EntryId),
            limit,
        };
        let (_, members) = self.info.last_fragment();
        let mut asked: FuturesUnordered<_> = members
            .into_iter()
            .map(|bookie| self.ctx.transport.wait(bookie, wait))
            .collect();
        let first = async {
            while let Some(answer) = asked.next().await {
                match answer {
                    Ok(tail) if tail.fenced || tail.last_add_confirmed > wait.above => {
                        return Some(tail);
                    }
                    // It does not know the ledger yet, or does not answer.
                    Ok(_) | Err(_) => {}
                }
            }
            None
        };
        let answer = clock::timeout(limit.saturating_add(ANSWER), first).await;
        answer.unwrap_or(None)
    }
}

/// How long answers may travel after the wait at the bookies is over.
const ANSWER: Duration = Duration::from_secs(1);
