//! The way to bookies: gRPC between processes, a function call in standalone.

use aquifer_model::id::{BookieId, TenantKey};
use aquifer_model::storage::{
    BookieResult, OrderedRequest, Presence, PresenceRange, ReadBatch, ReadRange, ReplyCallback,
    TailState, TailWait,
};
use async_trait::async_trait;

/// Carries requests to bookies and answers back. Implementations: `bookie_client` (gRPC), and the
/// in-process one that standalone wires up.
#[async_trait]
pub trait BookieTransport: Send + Sync + 'static {
    /// Submits a request to the one ordered stream of this process to `bookie`; never blocks.
    /// `reply` is called exactly once. When the way breaks, every request without an answer gets
    /// `Unreachable`, and requests submitted later never overtake them.
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback);

    /// Reads entries, outside the ordered stream. Every entry of the answer is digest-verified by
    /// the caller unless it asked for prefixes, or [`checks_reads`](Self::checks_reads) says that
    /// it was.
    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch>;

    /// Asks which entries a bookie holds, outside the ordered stream.
    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence>;

    /// Whether the entries of every answer to [`read`](Self::read) were digest-verified in this
    /// process, so that the caller need not. Not what comes over a wire.
    fn checks_reads(&self) -> bool {
        false
    }

    /// Says what a tenant weighs, so that its requests and those of others share bookies by that.
    /// One without turns of its own does nothing.
    fn weigh(&self, _tenant: TenantKey, _weight: u32) {}

    /// Waits for news of a ledger's end, outside the ordered stream.
    async fn wait(&self, bookie: BookieId, wait: TailWait) -> BookieResult<TailState>;
}
