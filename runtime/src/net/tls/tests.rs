//! Whole handshakes over real sockets, with certificates that are made here.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::clock::{Clock as _, ManualClock, SharedClock, SystemClock};
use crate::net::stream::ServerStream;
use crate::net::{ListenAddress, bind};

const ALICE: &str = "spiffe://example/alice";
const BROKER: &str = "spiffe://east.aquifer/broker/b1";

/// An authority, and a directory for what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    fn new() -> Authority {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Authority { issuer, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Signs a certificate for loopback and these names; answers its files.
    fn sign(&self, name: &str, uris: &[&str]) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        for uri in uris {
            let uri = SanType::URI((*uri).try_into().unwrap());
            params.subject_alt_names.push(uri);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert, secret) = (self.path(name), self.path(&format!("{name}.key")));
        fs::write(&cert, certificate.pem()).unwrap();
        write_key(&secret, &key.serialize_pem());
        (cert, secret)
    }

    fn server(&self, wanted: ClientCertificates) -> ServerTlsConfig {
        let (cert, key) = self.sign("server.pem", &[BROKER]);
        ServerTlsConfig {
            cert_file: Some(cert),
            key_file: Some(key),
            client_ca_file: (wanted != ClientCertificates::None).then(|| self.ca()),
            client_certificates: wanted,
        }
    }

    fn client(&self, uris: &[&str]) -> ClientTlsConfig {
        let (cert, key) = self.sign("client.pem", uris);
        ClientTlsConfig {
            ca_file: Some(self.ca()),
            cert_file: Some(cert),
            key_file: Some(key),
        }
    }
}

fn write_key(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn system() -> SharedClock {
    SystemClock::shared()
}

fn server_tls(files: &ServerTlsConfig) -> Arc<ServerTls> {
    ServerTls::http2("test", files, system()).unwrap().unwrap()
}

fn client_tls(files: &ClientTlsConfig) -> ClientTls {
    ClientTls::load(files, system()).unwrap()
}

/// One exchange of a byte each way. What the client saw, and the certificate that the server saw.
async fn exchange(
    server: &Arc<ServerTls>,
    client: &ClientTls,
) -> (io::Result<()>, Option<PeerCertificate>) {
    let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
    let dial = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = client.connect(stream, "127.0.0.1").await?;
        stream.write_all(b"?").await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"!");
        Ok(())
    };
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = ServerStream::new(stream, Some(server));
        let mut asked = [0];
        if stream.read_exact(&mut asked).await.is_ok() {
            stream.write_all(b"!").await.unwrap();
            stream.flush().await.unwrap();
        }
        stream.peer_certificate().cloned()
    };
    tokio::join!(dial, serve)
}

#[tokio::test]
async fn a_client_with_a_certificate_is_known_by_its_name() {
    let authority = Authority::new();
    let server = server_tls(&authority.server(ClientCertificates::Required));
    let client = client_tls(&authority.client(&[ALICE]));
    let (done, peer) = exchange(&server, &client).await;
    done.unwrap();
    assert_eq!(peer.as_ref().unwrap().name(), Some(ALICE));
    assert!(server.still_accepts(peer.as_ref().unwrap()));
}

#[tokio::test]
async fn a_name_counts_only_alone_and_never_from_the_subject() {
    let authority = Authority::new();
    let server = server_tls(&authority.server(ClientCertificates::Required));
    let two = client_tls(&authority.client(&[ALICE, "spiffe://example/bob"]));
    let (done, peer) = exchange(&server, &two).await;
    done.unwrap();
    assert_eq!(peer.as_ref().unwrap().name(), None);
    // The subject that the library makes up is no name; the address is no host name.
    let none = client_tls(&authority.client(&[]));
    let (done, peer) = exchange(&server, &none).await;
    done.unwrap();
    assert_eq!(peer.as_ref().unwrap().name(), None);
}

#[tokio::test]
async fn who_shows_no_certificate_or_a_strange_one_is_refused_where_it_is_required() {
    let authority = Authority::new();
    let required = server_tls(&authority.server(ClientCertificates::Required));
    let optional = server_tls(&authority.server(ClientCertificates::Optional));
    let bare = client_tls(&ClientTlsConfig {
        ca_file: Some(authority.ca()),
        ..ClientTlsConfig::default()
    });
    assert!(exchange(&required, &bare).await.0.is_err());
    let (done, peer) = exchange(&optional, &bare).await;
    done.unwrap();
    assert!(peer.is_none());

    let other = Authority::new();
    let strange = client_tls(&ClientTlsConfig {
        ca_file: Some(authority.ca()),
        ..other.client(&[ALICE])
    });
    for server in [&required, &optional] {
        let (done, peer) = exchange(server, &strange).await;
        assert!(done.is_err());
        assert!(peer.is_none());
    }
}

#[tokio::test]
async fn a_server_of_another_authority_host_or_role_is_not_talked_to() {
    let authority = Authority::new();
    let server = server_tls(&authority.server(ClientCertificates::None));
    let other = Authority::new();
    let strange = client_tls(&other.client(&[ALICE]));
    assert!(exchange(&server, &strange).await.0.is_err());

    let files = authority.client(&[ALICE]);
    let right = client_tls(&files).only("east", "broker");
    exchange(&server, &right).await.0.unwrap();
    for (cluster, role) in [("west", "broker"), ("east", "bookie")] {
        let client = client_tls(&files).only(cluster, role);
        let error = exchange(&server, &client).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains(role), "{error}");
    }

    let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let accepted = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = ServerStream::new(stream, Some(&server));
        stream.read_u8().await
    };
    let client = client_tls(&files);
    let (dialed, served) = tokio::join!(client.connect(stream, "broker.example"), accepted);
    assert!(
        dialed
            .unwrap_err()
            .to_string()
            .contains("not valid for name")
    );
    assert!(served.is_err());
}

#[tokio::test]
async fn an_internal_port_lets_in_roles_of_its_cluster_alone() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Required);
    let only = ("east", ["broker", "bookie"].as_slice());
    let server = ServerTls::internal("bookie", &files, only, system());
    let server = server.unwrap().unwrap();
    for (name, enters) in [
        (BROKER, true),
        ("spiffe://east.aquifer/bookie/k", true),
        ("spiffe://east.aquifer/admin/k", false),
        ("spiffe://west.aquifer/broker/b1", false),
        (ALICE, false),
    ] {
        let client = client_tls(&authority.client(&[name]));
        let (done, _) = exchange(&server, &client).await;
        assert_eq!(done.is_ok(), enters, "{name}");
    }
}

#[tokio::test]
async fn plain_text_at_a_port_with_tls_ends_with_an_error() {
    let authority = Authority::new();
    let server = server_tls(&authority.server(ClientCertificates::None));
    let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = ServerStream::new(stream, Some(&server));
    assert!(stream.read_u8().await.is_err());
    assert!(stream.read_u8().await.is_err(), "and stays ended");
}

/// HTTP/2 writes its settings before it reads anything.
#[tokio::test]
async fn a_peer_that_never_shakes_hands_is_given_up_by_reads_and_writes() {
    let authority = Authority::new();
    let server = server_tls(&authority.server(ClientCertificates::None));
    let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
    let mut silent = Vec::new();
    let mut accepted = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(address).await.unwrap());
        let (stream, _) = listener.accept().await.unwrap();
        accepted.push(ServerStream::new(stream, Some(&server)));
    }
    // Virtual time from here on: the wait is over at once.
    tokio::time::pause();
    let late = accepted[0].write_all(b"settings").await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    let late = accepted[1].read_u8().await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_reload_is_whole_or_leaves_the_former_certificates() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Required);
    let server = server_tls(&files);
    let client = client_tls(&authority.client(&[ALICE]));
    assert_eq!(server.reload().unwrap(), Reloaded::Unchanged);

    // A certificate without its key, then a file without certificates.
    let cert = files.cert_file.clone().unwrap();
    let before = fs::read(&cert).unwrap();
    let (foreign, _) = authority.sign("foreign.pem", &[BROKER]);
    fs::copy(foreign, &cert).unwrap();
    let error = server.reload().unwrap_err();
    assert!(matches!(error, TlsError::Refused { .. }), "{error}");
    fs::write(&cert, "no PEM").unwrap();
    let error = server.reload().unwrap_err();
    assert!(matches!(error, TlsError::Content { .. }), "{error}");
    let (done, peer) = exchange(&server, &client).await;
    done.unwrap();

    // Another authority for clients: new connections are refused and open ones are not accepted.
    fs::write(&cert, before).unwrap();
    let other = Authority::new();
    fs::copy(other.ca(), files.client_ca_file.as_ref().unwrap()).unwrap();
    assert!(server.still_accepts(peer.as_ref().unwrap()));
    assert_eq!(server.reload().unwrap(), Reloaded::Changed);
    assert!(!server.still_accepts(peer.as_ref().unwrap()));
    assert!(exchange(&server, &client).await.0.is_err());
}

#[tokio::test]
async fn a_removed_authority_ends_open_connections() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Required);
    let server = server_tls(&files);
    let client = client_tls(&authority.client(&[ALICE]));
    let (listener, address) = bind(ListenAddress::loopback_any_port()).await.unwrap();
    let dial = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = client.connect(stream, "127.0.0.1").await.unwrap();
        stream.write_all(b"?").await.unwrap();
        stream
    };
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = ServerStream::new(stream, Some(&server));
        assert_eq!(stream.read_u8().await.unwrap(), b'?');
        stream
    };
    let (_open, mut served) = tokio::join!(dial, serve);
    let other = Authority::new();
    fs::copy(other.ca(), files.client_ca_file.as_ref().unwrap()).unwrap();
    server.reload().unwrap();
    // Virtual time from here on: the wait is over at once.
    tokio::time::pause();
    let error = served.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn what_is_over_by_the_process_clock_is_refused() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::Required);
    let clock = ManualClock::new(SystemClock.wall_ms());
    let server = ServerTls::http2("test", &files, clock.clone())
        .unwrap()
        .unwrap();
    let client = client_tls(&authority.client(&[ALICE]));
    let (done, peer) = exchange(&server, &client).await;
    done.unwrap();
    let end = server.expires_s().unwrap();
    clock.set_wall_ms((end + 1) * 1_000);
    assert!(!server.still_accepts(peer.as_ref().unwrap()));
    assert!(exchange(&server, &client).await.0.is_err());
    let error = ServerTls::http2("test", &files, clock).unwrap_err();
    assert!(matches!(error, TlsError::Expired { .. }), "{error}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let authority = Authority::new();
    let files = authority.server(ClientCertificates::None);
    let key = files.key_file.clone().unwrap();
    for (mode, refused) in [(0o644, true), (0o620, true), (0o640, false), (0o400, false)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let loaded = ServerTls::http2("test", &files, system());
        match loaded {
            Err(TlsError::OpenKey { .. }) => assert!(refused, "{mode:o}"),
            other => assert!(other.is_ok() && !refused, "{mode:o}: {other:?}"),
        }
    }
}

#[test]
fn half_a_configuration_is_refused_with_the_missing_key() {
    let some = |name: &str| Some(PathBuf::from(name));
    let mut files = ServerTlsConfig::default();
    files.validate().unwrap();
    assert!(!files.is_on());
    files.cert_file = some("cert.pem");
    assert!(files.validate().unwrap_err().contains("key_file"));
    files.key_file = some("key.pem");
    files.validate().unwrap();
    files.client_certificates = ClientCertificates::Required;
    assert!(files.validate().unwrap_err().contains("client_ca_file"));
    files.client_ca_file = some("ca.pem");
    files.validate().unwrap();
    files.client_certificates = ClientCertificates::None;
    assert!(
        files
            .validate()
            .unwrap_err()
            .contains("client_certificates")
    );
}

#[test]
fn nothing_readable_panics() {
    let directory = tempfile::tempdir().unwrap();
    let missing = ServerTlsConfig {
        cert_file: Some(directory.path().join("none")),
        key_file: Some(directory.path().join("none")),
        ..ServerTlsConfig::default()
    };
    let error = ServerTls::http2("test", &missing, system()).unwrap_err();
    assert!(matches!(error, TlsError::Read { .. }), "{error}");
}

proptest! {
    #[test]
    fn internal_names_survive_their_text_and_others_are_refused(
        cluster in "[a-z0-9.-]{1,20}",
        role in "[a-z]{1,12}",
        name in "[A-Za-z0-9_.-]{1,20}",
        other in "\\PC{0,60}",
    ) {
        let given = InternalName { cluster, role, name };
        prop_assert_eq!(given.to_string().parse::<InternalName>().unwrap(), given);
        if let Ok(parsed) = other.parse::<InternalName>() {
            prop_assert_eq!(parsed.to_string(), other);
        }
    }
}

#[tokio::test]
async fn the_systems_authorities_or_advice() {
    // A machine without a list of authorities gets an error that says what to give.
    match ClientTls::load(&ClientTlsConfig::default(), system()) {
        Ok(_) => {}
        Err(error) => assert!(error.to_string().contains("--tls-ca-file"), "{error}"),
    }
}
