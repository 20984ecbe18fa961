//! A producer session, as a protocol sees it.

use aquifer_model::id::{EntryId, Index, LedgerId, OwnerEpoch, ProducerInstance, TopicIncarnation};
use aquifer_model::topic::{ProducerName, TopicName};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::ApiResult;
use crate::session::SessionEnd;

/// Request to open a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenProducer {
    /// One topic or partition, never a partitioned topic as a whole.
    pub topic: TopicName,
    /// `None`: the broker draws one.
    pub name: Option<ProducerName>,
    /// The producer object.
    pub instance: ProducerInstance,
    /// Counts the reconnects of the instance; an older one is fenced.
    pub epoch: u64,
    /// Fence a live foreign instance of the name instead of answering `ProducerBusy`.
    pub take_over: bool,
    /// The topic's life that the producer knows, on reconnect.
    pub incarnation: Option<TopicIncarnation>,
}

/// An open producer. Dropping `port` or `receipts` closes it.
pub struct ProducerSession {
    /// What the broker decided.
    pub opened: ProducerOpened,
    /// Where frames go.
    pub port: Box<dyn ProducerPort>,
    /// Receipts in frame order; an error is the last item. Its capacity covers every frame that may
    /// be in flight, so the broker never waits for a slow client here.
    pub receipts: mpsc::Receiver<ApiResult<Receipt>>,
    /// What frames take their bytes from. A handler that takes them here before it reads a frame
    /// hands them over with it: then nothing is in memory that no budget counts.
    pub room: Option<ByteBudget>,
    /// Tells when the session must end because its caller may no longer produce.
    pub end: SessionEnd,
}

/// What the broker decided about a producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerOpened {
    /// Its name.
    pub name: ProducerName,
    /// Highest persisted sequence id of the name.
    pub last_sequence_id: Option<u64>,
    /// Index of the first message of the batch that ends with that id.
    pub last_index: Option<Index>,
    /// The topic's life.
    pub incarnation: TopicIncarnation,
    /// The owner's epoch.
    pub owner_epoch: OwnerEpoch,
    /// Largest batch, in bytes.
    pub batch_bytes_max: u64,
    /// Whether the broker drops messages that it has already stored for this producer.
    pub deduplication: bool,
}

/// Where a protocol puts the frames of a producer.
#[async_trait]
pub trait ProducerPort: Send {
    /// Hands frames over, in order; waits while the broker's or producer's bytes in flight are
    /// exhausted. Bytes that were taken from [`ProducerSession::room`] for these frames come with
    /// them as `held`, and are used first. Outcomes come as receipts; after the first failed frame
    /// all later ones fail (H7).
    ///
    /// # Errors
    /// When the producer is closed.
    async fn publish(
        &mut self,
        frames: Vec<PublishFrame>,
        held: Option<BytePermit>,
    ) -> ApiResult<()>;
}

/// One body to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishFrame {
    /// From 1 per session, without gaps.
    pub number: u64,
    /// Format of the body (`model::format`).
    pub format: u16,
    /// The body as the client sent it.
    pub body: Bytes,
}

/// A batch is stored, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The frame.
    pub frame_number: u64,
    /// Where it is; `None` for a duplicate from before the remembered window.
    pub stored: Option<StoredAt>,
    /// It was stored before, and `stored` is where the original is.
    pub duplicate: bool,
}

/// Where a batch is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredAt {
    /// The ledger.
    pub ledger: LedgerId,
    /// The entry.
    pub entry: EntryId,
    /// Index of its first message.
    pub base_index: Index,
}
