//! The port of operation: what belongs to the cluster.

use aquifer_model::bundle::BundleRange;
use aquifer_model::id::{BookieId, BrokerId, LedgerId};
use aquifer_model::inventory::{BookieView, LedgerView, ListedLedger};
use aquifer_model::listener::Listeners;
use aquifer_model::load::LoadReport;
use aquifer_model::topic::{NamespaceName, TopicName};
use async_trait::async_trait;

use crate::admin::{Page, PageRequest};
use crate::context::RequestContext;
use crate::error::ApiResult;

/// What operators of the cluster do: brokers and bundles, and a look at bookies and ledgers. What
/// changes these, the tools do (`docs/operations/storage.md`).
#[async_trait]
pub trait Operator: Send + Sync + 'static {
    /// The brokers that are announced; a standalone server is its only one.
    async fn list_brokers(&self, ctx: &RequestContext) -> ApiResult<Vec<BrokerInfo>>;

    /// The bundles of a namespace, in order, and who owns them.
    async fn list_bundles(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
    ) -> ApiResult<Vec<BundleInfo>>;

    /// Moves a bundle to a broker, or to any other; answers who it is.
    async fn transfer_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        broker: Option<BrokerId>,
    ) -> ApiResult<BrokerInfo>;

    /// Splits a bundle in front of a hash, or where that halves its load as far as its owner knows,
    /// or in its middle; both parts stay where they are.
    async fn split_bundle(
        &self,
        ctx: &RequestContext,
        namespace: NamespaceName,
        bundle: BundleRange,
        at: Option<u32>,
    ) -> ApiResult<[BundleRange; 2]>;

    /// The load of this broker.
    async fn load_report(&self, ctx: &RequestContext) -> ApiResult<LoadReport>;

    /// The bookies that are registered, and those that have a record, by id. To count the ledgers
    /// of each, the records of all ledgers are read; then those are there too that only ledgers
    /// name.
    async fn list_bookies(
        &self,
        ctx: &RequestContext,
        count_ledgers: bool,
    ) -> ApiResult<Vec<BookieView>>;

    /// One bookie.
    async fn get_bookie(
        &self,
        ctx: &RequestContext,
        bookie: BookieId,
        count_ledgers: bool,
    ) -> ApiResult<BookieView>;

    /// Lists ledgers in the order of their ids.
    async fn list_ledgers(
        &self,
        ctx: &RequestContext,
        page: PageRequest,
    ) -> ApiResult<Page<ListedLedger>>;

    /// Lists the ledgers of a topic or a partition, those of its cursor log too, in the order of
    /// their ids.
    async fn list_topic_ledgers(
        &self,
        ctx: &RequestContext,
        topic: TopicName,
        page: PageRequest,
    ) -> ApiResult<Page<ListedLedger>>;

    /// One ledger.
    async fn get_ledger(&self, ctx: &RequestContext, ledger: LedgerId) -> ApiResult<LedgerView>;
}

/// A broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Random per process start.
    pub broker: BrokerId,
    /// Where it is reached; none for a standalone server.
    pub listeners: Listeners,
    /// What it runs.
    pub version: String,
    /// Whether it is about to end.
    pub draining: bool,
    /// Whether it is the one that answers.
    pub is_self: bool,
}

/// A bundle: a range of a namespace's topics, by hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleInfo {
    /// Its hashes.
    pub range: BundleRange,
    /// Its owner; `None` when it was not used yet.
    pub broker: Option<BrokerId>,
    /// Where the owner is; `None` when it is gone.
    pub listeners: Option<Listeners>,
    /// The owner's epoch.
    pub epoch: u64,
}
