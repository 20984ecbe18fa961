//! Clients that do not keep to the protocol: each gets an error that says what was wrong, and does
//! not get in the way of others.

use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1::bookie_client::BookieClient;
use aquifer_proto::v1::ordered_request::Request as Kind;
use aquifer_runtime::disk::RealDisk;
use bytes::Bytes;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use crate::tests::{add, config, deps};

struct Served {
    bookie: Bookie,
    client: BookieClient<Channel>,
    tasks: TaskGroup,
    _directory: tempfile::TempDir,
}

async fn serving() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let bookie = Bookie::open(config(directory.path()), deps(RealDisk::shared())).unwrap();
    let tasks = TaskGroup::new("server");
    let listen = ListenAddress::loopback_any_port();
    let bound = serve(bookie.clone(), listen, None, &tasks).await.unwrap();
    let client = BookieClient::connect(format!("http://{bound}"))
        .await
        .unwrap();
    Served {
        bookie,
        client,
        tasks,
        _directory: directory,
    }
}

impl Served {
    fn open(&self) -> v1::OpenBookie {
        v1::OpenBookie {
            version: PROTOCOL_VERSION,
            bookie_id: Bytes::copy_from_slice(&self.bookie.id().0),
            cluster: String::new(),
            client_id: Bytes::from_static(b"stranger"),
        }
    }

    /// Sends frames on a new stream; returns the replies and how the stream ended.
    async fn exchange(
        &self,
        frames: Vec<v1::OrderedFrame>,
    ) -> (Vec<v1::OrderedReply>, Code, String) {
        let stream = futures::stream::iter(frames);
        let mut replies = self
            .client
            .clone()
            .ordered(stream)
            .await
            .unwrap()
            .into_inner();
        let mut all = Vec::new();
        loop {
            match replies.message().await {
                Ok(Some(more)) => all.extend(more.replies),
                Ok(None) => return (all, Code::Ok, String::new()),
                Err(status) => return (all, status.code(), status.message().to_owned()),
            }
        }
    }

    /// Sends requests on a well-opened stream; returns their outcomes.
    async fn outcomes(&self, requests: Vec<(u64, [u8; 16], Kind)>) -> Vec<v1::BookieStatus> {
        let requests = (1..)
            .zip(requests)
            .map(|(id, (ledger, token, kind))| request(id, ledger, token, kind));
        let frame = v1::OrderedFrame {
            open: Some(self.open()),
            requests: requests.collect(),
        };
        let (mut replies, code, message) = self.exchange(vec![frame]).await;
        assert_eq!((code, message.as_str()), (Code::Ok, ""));
        replies.sort_by_key(|reply| reply.request_id);
        replies.iter().map(v1::OrderedReply::status).collect()
    }

    async fn end(self) {
        drop(self.client);
        self.tasks.drain(Duration::from_secs(10)).await;
        self.bookie.shutdown().await;
    }
}

fn request(request_id: u64, ledger_id: u64, token: [u8; 16], kind: Kind) -> v1::OrderedRequest {
    v1::OrderedRequest {
        request_id,
        ledger_id,
        creation_token: Bytes::copy_from_slice(&token),
        tenant: 0,
        weight: 0,
        request: Some(kind),
    }
}

fn entry(ledger: u64, entry: u64) -> Kind {
    let add = add(ledger, entry, 10);
    Kind::Add(v1::AddEntry {
        entry_id: entry,
        last_add_confirmed: add.last_add_confirmed.map(|lac| lac.0),
        ledger_length: add.ledger_length,
        digest: add.digest,
        recovery: false,
        reserve: false,
        head: add.data.head,
        body: add.data.body,
        trace: bytes::Bytes::new(),
    })
}

const OURS: [u8; 16] = [1; 16];
const THEIRS: [u8; 16] = [2; 16];

#[tokio::test]
async fn requests_out_of_order_end_the_stream_before_they_are_taken() {
    let served = serving().await;
    let open = Some(served.open());
    let frame = |open, ids: &[u64]| v1::OrderedFrame {
        open,
        requests: ids
            .iter()
            .map(|id| request(*id, 1, OURS, entry(1, *id)))
            .collect(),
    };
    for ids in [&[2][..], &[1, 3], &[1, 1], &[0]] {
        let (replies, code, message) = served.exchange(vec![frame(open.clone(), ids)]).await;
        assert_eq!(code, Code::InvalidArgument, "{ids:?}");
        assert!(message.contains("ids have no gaps"), "{message}");
        assert!(replies.iter().all(|reply| reply.request_id == 1), "{ids:?}");
    }
    let (_, code, message) = served.exchange(vec![frame(None, &[1])]).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("must have `open`"), "{message}");
    let again = vec![frame(open.clone(), &[1]), frame(open.clone(), &[2])];
    let (_, code, message) = served.exchange(again).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("first frame only"), "{message}");
    served.end().await;
}

#[tokio::test]
async fn a_client_of_another_bookie_version_or_name_is_turned_away() {
    let served = serving().await;
    let exchange = async |open: v1::OpenBookie| {
        let frame = v1::OrderedFrame {
            open: Some(open),
            requests: Vec::new(),
        };
        let (_, code, message) = served.exchange(vec![frame]).await;
        (code, message)
    };
    // The address may be that of another bookie's successor.
    let stranger = v1::OpenBookie {
        bookie_id: Bytes::from_static(&[9; 16]),
        ..served.open()
    };
    let (code, message) = exchange(stranger).await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.contains("this is bookie"), "{message}");
    let later = v1::OpenBookie {
        version: PROTOCOL_VERSION + 1,
        ..served.open()
    };
    let (code, message) = exchange(later).await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(
        message.contains("unsupported protocol version"),
        "{message}"
    );
    let long = v1::OpenBookie {
        client_id: vec![0; 1000].into(),
        ..served.open()
    };
    assert_eq!(exchange(long).await.0, Code::InvalidArgument);
    served.end().await;
}

#[tokio::test]
async fn fenced_deleted_and_stolen_ledgers_are_refused_by_name() {
    use v1::BookieStatus::{Conflict, Deleted, Digest, Fenced, Invalid, Ok, Token};
    let served = serving().await;
    let mut spoiled = entry(1, 1);
    if let Kind::Add(add) = &mut spoiled {
        add.digest ^= 1;
    }
    let mut other = entry(1, 0);
    if let Kind::Add(add) = &mut other {
        let data = aquifer_model::entry::EntryData {
            head: Bytes::new(),
            body: Bytes::from_static(b"other bytes"),
        };
        let changed = aquifer_model::storage::AddEntry::new(
            aquifer_model::id::LedgerId(1),
            aquifer_model::id::EntryId(0),
            None,
            11,
            data.clone(),
        );
        (add.digest, add.ledger_length) = (changed.digest, 11);
        (add.head, add.body) = (data.head, data.body);
    }
    let outcomes = served
        .outcomes(vec![
            (1, OURS, entry(1, 0)),
            (1, THEIRS, entry(1, 1)),
            (1, THEIRS, Kind::Fence(v1::Fence {})),
            (1, THEIRS, Kind::Delete(v1::DeleteLedger {})),
            (1, OURS, spoiled),
            (1, OURS, other),
            (1, OURS, Kind::Fence(v1::Fence {})),
            (1, OURS, entry(1, 1)),
            (1, OURS, Kind::Delete(v1::DeleteLedger {})),
            (1, OURS, entry(1, 1)),
            (1, OURS, Kind::Fence(v1::Fence {})),
            (u64::MAX, OURS, entry(1, 1)),
        ])
        .await;
    let expected = [
        Ok, Token, Token, Token, Digest, Conflict, Ok, Fenced, Ok, Deleted, Deleted, Invalid,
    ];
    assert_eq!(outcomes, expected);
    // Others are served as before.
    assert_eq!(served.outcomes(vec![(3, OURS, entry(3, 0))]).await, [Ok]);
    served.end().await;
}
