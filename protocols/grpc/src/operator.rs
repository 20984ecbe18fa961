//! Operation of the cluster: every method parses, calls once and converts.

use aquifer_model::id::{BookieId, LedgerId};
use aquifer_model::inventory::{BookieView, LedgerView, ListedLedger};
use aquifer_model::listener::{Listener, ListenerName, Listeners};
use aquifer_proto::v1;
use aquifer_protocol_api::error::ApiResult;
use aquifer_protocol_api::operator::BrokerInfo;
use tonic::{Request, async_trait};

use crate::convert::{bundle, invalid, namespace, optional_broker, page, topic};
use crate::service::{Answer, Service};

/// The state of a ledger whose record cannot be read.
const UNREADABLE: &str = "unreadable";

#[async_trait]
impl v1::operator_server::Operator for Service {
    async fn list_brokers(
        &self,
        request: Request<v1::ListBrokersRequest>,
    ) -> Answer<v1::ListBrokersResponse> {
        let listener = self.listener.clone();
        self.unary("list_brokers", request, |broker, ctx, _| async move {
            let brokers = broker.list_brokers(&ctx).await?.into_iter();
            let brokers = brokers.map(|found| wire_broker(found, &listener));
            Ok(v1::ListBrokersResponse {
                brokers: brokers.collect(),
            })
        })
        .await
    }

    async fn list_bundles(
        &self,
        request: Request<v1::ListBundlesRequest>,
    ) -> Answer<v1::ListBundlesResponse> {
        let listener = self.listener.clone();
        self.unary("list_bundles", request, |broker, ctx, r| async move {
            let bundles = broker.list_bundles(&ctx, namespace(&r.namespace)?).await?;
            let bundles = bundles.into_iter().map(|bundle| v1::BundleInfo {
                bundle: bundle.range.to_string(),
                broker: bundle.broker.map_or_else(String::new, |id| id.to_string()),
                url: bundle
                    .listeners
                    .map_or_else(String::new, |at| url_of(&at, &listener)),
                epoch: bundle.epoch,
            });
            Ok(v1::ListBundlesResponse {
                bundles: bundles.collect(),
            })
        })
        .await
    }

    async fn transfer_bundle(
        &self,
        request: Request<v1::TransferBundleRequest>,
    ) -> Answer<v1::TransferBundleResponse> {
        let listener = self.listener.clone();
        self.unary("transfer_bundle", request, |broker, ctx, r| async move {
            let (namespace, range) = (namespace(&r.namespace)?, bundle(&r.bundle)?);
            let target = optional_broker(&r.broker)?;
            let chosen = broker
                .transfer_bundle(&ctx, namespace, range, target)
                .await?;
            Ok(v1::TransferBundleResponse {
                broker: chosen.broker.to_string(),
                url: url_of(&chosen.listeners, &listener),
            })
        })
        .await
    }

    async fn split_bundle(
        &self,
        request: Request<v1::SplitBundleRequest>,
    ) -> Answer<v1::SplitBundleResponse> {
        self.unary("split_bundle", request, |broker, ctx, r| async move {
            let (namespace, range) = (namespace(&r.namespace)?, bundle(&r.bundle)?);
            let parts = broker.split_bundle(&ctx, namespace, range, r.at).await?;
            Ok(v1::SplitBundleResponse {
                bundles: parts.iter().map(ToString::to_string).collect(),
            })
        })
        .await
    }

    async fn load_report(
        &self,
        request: Request<v1::LoadReportRequest>,
    ) -> Answer<v1::LoadReportResponse> {
        self.unary("load_report", request, |broker, ctx, _| async move {
            Ok(broker.load_report(&ctx).await?.into())
        })
        .await
    }

    async fn list_bookies(
        &self,
        request: Request<v1::ListBookiesRequest>,
    ) -> Answer<v1::ListBookiesResponse> {
        self.unary("list_bookies", request, |broker, ctx, r| async move {
            let bookies = broker.list_bookies(&ctx, r.count_ledgers).await?;
            Ok(v1::ListBookiesResponse {
                bookies: bookies.into_iter().map(wire_bookie).collect(),
            })
        })
        .await
    }

    async fn get_bookie(
        &self,
        request: Request<v1::GetBookieRequest>,
    ) -> Answer<v1::GetBookieResponse> {
        self.unary("get_bookie", request, |broker, ctx, r| async move {
            let bookie: BookieId = r
                .bookie
                .parse()
                .map_err(|_| invalid("a bookie is named by its id, 32 hexadecimal digits"))?;
            let found = broker.get_bookie(&ctx, bookie, r.count_ledgers).await?;
            Ok(v1::GetBookieResponse {
                bookie: Some(wire_bookie(found)),
            })
        })
        .await
    }

    async fn list_ledgers(
        &self,
        request: Request<v1::ListLedgersRequest>,
    ) -> Answer<v1::ListLedgersResponse> {
        self.unary("list_ledgers", request, |broker, ctx, r| async move {
            let found = broker.list_ledgers(&ctx, page(r.after, r.limit)?).await?;
            Ok(v1::ListLedgersResponse {
                ledgers: found.items.into_iter().map(wire_listed).collect(),
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn list_topic_ledgers(
        &self,
        request: Request<v1::ListTopicLedgersRequest>,
    ) -> Answer<v1::ListTopicLedgersResponse> {
        self.unary("list_topic_ledgers", request, |broker, ctx, r| async move {
            let page = page(r.after, r.limit)?;
            let found = broker
                .list_topic_ledgers(&ctx, topic(&r.topic)?, page)
                .await?;
            Ok(v1::ListTopicLedgersResponse {
                ledgers: found.items.into_iter().map(wire_listed).collect(),
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn get_ledger(
        &self,
        request: Request<v1::GetLedgerRequest>,
    ) -> Answer<v1::GetLedgerResponse> {
        self.unary("get_ledger", request, |broker, ctx, r| async move {
            let found = broker.get_ledger(&ctx, ledger(&r.ledger)?).await?;
            Ok(v1::GetLedgerResponse {
                ledger: Some(wire_ledger(found)),
            })
        })
        .await
    }
}

fn ledger(text: &str) -> ApiResult<LedgerId> {
    let id: Result<u64, _> = text.parse();
    id.map(LedgerId)
        .map_err(|_| invalid("a ledger is named by its number"))
}

fn count(bookies: usize) -> u32 {
    u32::try_from(bookies).unwrap_or(u32::MAX)
}

fn wire_bookie(bookie: BookieView) -> v1::BookieInfo {
    v1::BookieInfo {
        bookie: bookie.bookie.to_string(),
        state: bookie.state.to_owned(),
        address: bookie.address,
        zone: bookie.zone,
        free_bytes: bookie.free_bytes,
        capacity_bytes: bookie.capacity_bytes,
        draining: bookie.draining,
        decommissioned_ms: bookie.decommissioned_ms,
        limbo_since_ms: bookie.limbo_since_ms,
        directories: bookie.directories,
        ledgers: bookie.ledgers,
    }
}

fn wire_listed(found: ListedLedger) -> v1::LedgerInfo {
    match found.record {
        Ok(view) => wire_ledger(view),
        Err(error) => v1::LedgerInfo {
            ledger_id: found.ledger.0,
            state: UNREADABLE.to_owned(),
            error,
            ..v1::LedgerInfo::default()
        },
    }
}

fn wire_ledger(view: LedgerView) -> v1::LedgerInfo {
    let fragments = view.fragments.into_iter();
    let fragments = fragments.map(|(first, members)| v1::LedgerFragment {
        first_entry_id: first.0,
        bookies: members.iter().map(ToString::to_string).collect(),
    });
    v1::LedgerInfo {
        ledger_id: view.ledger.0,
        state: view.state.to_owned(),
        ensemble: count(view.quorum.ensemble()),
        write_quorum: count(view.quorum.write()),
        ack_quorum: count(view.quorum.ack()),
        last_entry_id: view.last_entry.map(|entry| entry.0),
        bytes: view.length_bytes,
        home: view.home,
        created_ms: view.created_ms,
        recovery_epoch: view.recovery_epoch,
        fragments: fragments.collect(),
        error: String::new(),
    }
}

/// Where a client that came in through a listener reaches another broker.
fn url_of(at: &Listeners, listener: &ListenerName) -> String {
    at.url(listener).unwrap_or_default().to_owned()
}

fn wire_broker(broker: BrokerInfo, listener: &ListenerName) -> v1::BrokerInfo {
    let wire = |listener: &Listener| v1::Listener {
        name: listener.name.to_string(),
        url: listener.url.clone(),
    };
    v1::BrokerInfo {
        broker: broker.broker.to_string(),
        url: url_of(&broker.listeners, listener),
        listeners: broker.listeners.iter().map(wire).collect(),
        version: broker.version,
        draining: broker.draining,
        self_: broker.is_self,
    }
}
