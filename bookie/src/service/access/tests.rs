use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use aquifer_proto::PROTOCOL_VERSION;
use aquifer_proto::v1;
use aquifer_proto::v1::bookie_client::BookieClient;
use aquifer_proto::v1::ordered_request::Request as Kind;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::disk::RealDisk;
use aquifer_runtime::net::ListenAddress;
use aquifer_runtime::net::dial::Dialer;
use aquifer_runtime::net::tls::{
    ClientCertificates, ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig,
};
use aquifer_runtime::task::TaskGroup;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tonic::Code;
use tonic::transport::Endpoint;

use super::*;
use crate::tests::{config, deps};
use crate::{Bookie, service};

const ROLES: [&str; 6] = [
    "broker",
    "bookie",
    "autorecovery",
    "offloader",
    "tool",
    "guest",
];

/// Makes an authority and a certificate of each role in a directory.
fn certify(directory: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&key).unwrap();
    fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    for role in ROLES {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let name = format!("spiffe://east.aquifer/{role}/one");
        let name = SanType::URI(name.as_str().try_into().unwrap());
        params.subject_alt_names.push(name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(directory.join(format!("{role}.pem")), certificate.pem()).unwrap();
        let path = directory.join(format!("{role}.key"));
        fs::write(&path, key.serialize_pem()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

async fn connect(
    directory: &Path,
    role: &str,
    address: std::net::SocketAddr,
) -> BookieClient<tonic::transport::Channel> {
    let files = ClientTlsConfig {
        ca_file: Some(directory.join("ca.pem")),
        cert_file: Some(directory.join(format!("{role}.pem"))),
        key_file: Some(directory.join(format!("{role}.key"))),
    };
    let tls = ClientTls::load(&files, SystemClock::shared()).unwrap();
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
    let dialer = Dialer::new(Arc::new(tls));
    BookieClient::new(endpoint.connect_with_connector(dialer).await.unwrap())
}

/// Everything that changes something, with what it needs.
fn ordered() -> [(Kind, Need); 6] {
    let add = |recovery| {
        Kind::Add(v1::AddEntry {
            recovery,
            body: Bytes::from_static(b"x"),
            ..v1::AddEntry::default()
        })
    };
    let lac = v1::WriteLac {
        last_add_confirmed: 1,
    };
    let read = v1::RecoveryRead { entry_id: 1 };
    [
        (add(false), Need::Write),
        (Kind::WriteLac(lac), Need::Write),
        (add(true), Need::Recover),
        (Kind::Fence(v1::Fence {}), Need::Recover),
        (Kind::RecoveryRead(read), Need::Recover),
        (Kind::Delete(v1::DeleteLedger {}), Need::Delete),
    ]
}

fn is_refusal(message: &str) -> bool {
    message.contains("the role of this certificate may not")
}

/// One frame with every request of [`ordered`], numbered from 1.
fn frame(name: &str, bookie_id: &Bytes) -> v1::OrderedFrame {
    let requests = (1..).zip(ordered()).map(|(request_id, (request, _))| {
        v1::OrderedRequest {
            request_id,
            // Each has a ledger of its own, so that none is in the way of another.
            ledger_id: 100 + request_id,
            creation_token: Bytes::copy_from_slice(&[1; 16]),
            request: Some(request),
            ..v1::OrderedRequest::default()
        }
    });
    v1::OrderedFrame {
        open: Some(v1::OpenBookie {
            version: PROTOCOL_VERSION,
            bookie_id: bookie_id.clone(),
            cluster: String::new(),
            client_id: Bytes::copy_from_slice(name.as_bytes()),
        }),
        requests: requests.collect(),
    }
}

/// Over real connections: the role of the certificate decides each request of a stream by itself,
/// and each call.
#[tokio::test]
async fn each_request_is_decided_by_the_role_of_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    certify(path);
    let data = path.join("data");
    let bookie = Bookie::open(config(&data), deps(RealDisk::shared())).unwrap();
    let files = ServerTlsConfig {
        cert_file: Some(path.join("bookie.pem")),
        key_file: Some(path.join("bookie.key")),
        client_ca_file: Some(path.join("ca.pem")),
        client_certificates: ClientCertificates::Required,
    };
    let only = ("east", ROLES.as_slice());
    let tls = ServerTls::internal("bookie", &files, only, SystemClock::shared()).unwrap();
    let tasks = TaskGroup::new("server");
    let listen = ListenAddress::loopback_any_port();
    let served = service::serve(bookie.clone(), listen, tls, &tasks).await;
    let address = served.unwrap();
    let bookie_id = Bytes::copy_from_slice(&bookie.id().0);
    for (name, role) in [
        ("broker", Role::Broker),
        ("bookie", Role::Repair),
        ("autorecovery", Role::Repair),
        ("offloader", Role::Offload),
        ("tool", Role::Tool),
        ("guest", Role::Unknown),
    ] {
        let mut client = connect(path, name, address).await;
        let has = v1::HasRequest {
            bookie_id: bookie_id.clone(),
            ledger_id: 7,
            ..v1::HasRequest::default()
        };
        let denied = client.has(has).await.map_err(|status| status.code());
        let is_denied = denied.err() == Some(Code::PermissionDenied);
        assert_eq!(is_denied, role == Role::Unknown, "{name}");
        let frame = frame(name, &bookie_id);
        let stream = client.ordered(futures::stream::iter([frame])).await;
        if role == Role::Unknown {
            assert_eq!(stream.unwrap_err().code(), Code::PermissionDenied);
            continue;
        }
        let mut replies = stream.unwrap().into_inner();
        let mut answered = Vec::new();
        while let Some(more) = replies.message().await.unwrap() {
            answered.extend(more.replies);
        }
        assert_eq!(answered.len(), ordered().len(), "{name}");
        answered.sort_by_key(|reply| reply.request_id);
        for (reply, (_, need)) in answered.iter().zip(ordered()) {
            assert_eq!(
                is_refusal(&reply.message),
                !role.may(need),
                "{name} may {need}: {reply:?}"
            );
        }
    }
    tasks.drain(std::time::Duration::from_secs(5)).await;
    bookie.shutdown().await;
}

/// The table of the decisions, as the documents have it.
#[test]
fn only_brokers_write_and_only_what_is_known_does_something() {
    use Need::{Delete, Read, Recover, Write};
    for (role, may) in [
        (Role::Open, &[Read, Recover, Write, Delete][..]),
        (Role::Broker, &[Read, Recover, Write, Delete]),
        (Role::Repair, &[Read, Recover]),
        (Role::Offload, &[Read]),
        (Role::Tool, &[Read, Recover, Delete]),
        (Role::Unknown, &[]),
    ] {
        for need in [Read, Recover, Write, Delete] {
            assert_eq!(role.may(need), may.contains(&need), "{role:?} {need}");
        }
    }
}
