//! The way to the one bookie of this process: a function call.

use aquifer_bookie::Bookie;
use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::BookieId;
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedRequest, ReadBatch, ReadRange, ReplyCallback, TailState,
    TailWait,
};
use async_trait::async_trait;

/// Carries requests to the bookie of this process. The order in which requests are submitted is
/// the order in which the bookie takes them.
pub struct InProcess(pub Bookie);

impl InProcess {
    /// Ledgers may name a bookie that this directory had before: it cannot be asked.
    fn check(&self, bookie: BookieId) -> BookieResult<()> {
        if bookie == self.0.id() {
            return Ok(());
        }
        let here = self.0.id();
        Err(BookieError::Unreachable(format!(
            "bookie {bookie} is not the one of this process, {here}"
        )))
    }
}

#[async_trait]
impl BookieTransport for InProcess {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        match self.check(bookie) {
            Ok(()) => self.0.submit(request, reply),
            Err(error) => reply(Err(error)),
        }
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        self.check(bookie)?;
        self.0.read(range).await
    }

    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState> {
        self.check(bookie)?;
        self.0.wait(wait).await
    }
}

#[cfg(test)]
mod tests;
