//! A server with `--auth`, as a process: its first token, what it asks for, what it writes down.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use aquifer_harness::server::{Server, ServerOptions, binary};
use aquifer_proto::v1;
use aquifer_proto::v1::admin_client::AdminClient;
use aquifer_proto::v1::security_client::SecurityClient;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::net::dial::Dialer;
use aquifer_runtime::net::tls::{ClientTls, ClientTlsConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

fn with<T>(message: T, token: &str) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse()?;
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

async fn connect(server: &Server) -> Result<Channel> {
    Ok(Endpoint::from_shared(server.url())?.connect().await?)
}

/// The first line that a path of the HTTP port answers.
async fn status(server: &Server, path: &str, token: Option<&str>) -> Result<String> {
    let mut stream = TcpStream::connect(server.http()).await?;
    let credential = token.map_or_else(String::new, |token| {
        format!("Authorization: Bearer {token}\r\n")
    });
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n{credential}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let first = answer.lines().next().context("an answer")?;
    Ok(first.to_owned())
}

/// Metrics are for those that may describe the cluster; whether it serves is told to all.
async fn check_metrics(server: &Server, admin: &str, app: &str) -> Result<()> {
    ensure!(status(server, "/healthz", None).await?.contains("200"));
    ensure!(status(server, "/metrics", None).await?.contains("401"));
    ensure!(status(server, "/metrics", Some(app)).await?.contains("403"));
    ensure!(
        status(server, "/metrics", Some(admin))
            .await?
            .contains("200")
    );
    Ok(())
}

fn check_log(server: &Server, secrets: &[&str]) -> Result<()> {
    // The chain of what was done, and no secret anywhere.
    let log = server.log();
    for said in [
        "\\\"request\\\":\\\"create_topic\\\"",
        "\\\"request\\\":\\\"revoke_token\\\"",
        "\\\"decision\\\":\\\"denied\\\"",
    ] {
        let plain = said.replace('\\', "");
        ensure!(
            log.contains(said) || log.contains(&plain),
            "no {plain} in the log"
        );
    }
    for secret in secrets {
        ensure!(!log.contains(&secret[31..]), "a secret is in the log");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_asks_who_calls_and_writes_down_what_they_change() -> Result<()> {
    let dir = TempDir::new()?;
    let data = dir.path().join("data");
    let options = ServerOptions {
        arguments: vec!["--auth".to_owned()],
        ..ServerOptions::default()
    };
    let server = Server::start(&data, options).await?;
    let path = data.join("admin.token");
    ensure!(fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600);
    let admin = fs::read_to_string(&path)?.trim().to_owned();
    let mut topics = AdminClient::new(connect(&server).await?);
    let create = |name: &str| v1::CreateTopicRequest {
        topic: name.to_owned(),
        partitions: 0,
    };
    let refused = topics.create_topic(create("orders")).await;
    ensure!(refused.is_err_and(|status| status.code() == Code::Unauthenticated));
    topics.create_topic(with(create("orders"), &admin)?).await?;
    let mut security = SecurityClient::new(connect(&server).await?);
    let request = v1::CreateTokenRequest {
        name: "app".to_owned(),
        ..v1::CreateTokenRequest::default()
    };
    let made = security
        .create_token(with(request, &admin)?)
        .await?
        .into_inner();
    let app = made.secret;
    let refused = topics.create_topic(with(create("returns"), &app)?).await;
    ensure!(refused.is_err_and(|status| status.code() == Code::PermissionDenied));
    let grant = v1::AddGrantRequest {
        principal: "token:app".to_owned(),
        role: "developer".to_owned(),
        scope: Some(v1::GrantScope {
            tenant: "public".to_owned(),
            namespace: "default".to_owned(),
            topic: "re*".to_owned(),
        }),
        ..v1::AddGrantRequest::default()
    };
    security.add_grant(with(grant, &admin)?).await?;
    topics.create_topic(with(create("returns"), &app)?).await?;
    let listed = topics.list_topics(with(
        v1::ListTopicsRequest {
            namespace: "public/default".to_owned(),
            ..v1::ListTopicsRequest::default()
        },
        &app,
    )?);
    let listed = listed.await?.into_inner().topics;
    ensure!(
        listed.len() == 1 && listed[0].topic.ends_with("/returns"),
        "{listed:?}"
    );
    check_metrics(&server, &admin, &app).await?;
    let revoke = v1::RevokeTokenRequest {
        id: made.token.context("a token")?.id,
    };
    security.revoke_token(with(revoke, &admin)?).await?;
    let refused = topics.create_topic(with(create("rest"), &app)?).await;
    ensure!(refused.is_err_and(|status| status.code() == Code::Unauthenticated));
    check_log(&server, &[&admin, &app])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_a_credential_and_a_token_goes_before_it() -> Result<()> {
    let folder = TempDir::new()?;
    let dir = folder.path().join("tls");
    let mut init = Command::new(binary());
    init.args(["tls", "init", "--user", "alice", "--dir"])
        .arg(&dir);
    ensure!(init.env_remove("AQUIFER_URL").output()?.status.success());
    let set = |key: &str, value: String| (format!("AQUIFER_PROTOCOLS_GRPC_TLS_{key}"), value);
    let file = |name: &str| dir.join(name).display().to_string();
    let options = ServerOptions {
        arguments: vec!["--auth".to_owned()],
        environment: vec![
            set("CERT_FILE", file("server.pem")),
            set("KEY_FILE", file("server.key")),
            set("CLIENT_CA_FILE", file("ca.pem")),
            set("CLIENT_CERTIFICATES", "optional".to_owned()),
        ],
        ..ServerOptions::default()
    };
    let data = folder.path().join("data");
    let server = Server::start(&data, options).await?;
    let admin = fs::read_to_string(data.join("admin.token"))?
        .trim()
        .to_owned();
    let bare = ClientTlsConfig {
        ca_file: Some(dir.join("ca.pem")),
        ..ClientTlsConfig::default()
    };
    let alice = ClientTlsConfig {
        cert_file: Some(dir.join("user-alice.pem")),
        key_file: Some(dir.join("user-alice.key")),
        ..bare.clone()
    };
    let url = server.url().replace("http://", "https://");
    let connect = async |files: &ClientTlsConfig| -> Result<SecurityClient<Channel>> {
        let tls = Arc::new(ClientTls::load(files, SystemClock::shared())?);
        let address = Dialer::address(&url).context("an address with TLS")?;
        let endpoint = Endpoint::from_shared(address)?;
        let channel = endpoint.connect_with_connector(Dialer::new(tls)).await?;
        Ok(SecurityClient::new(channel))
    };
    let mut known = connect(&alice).await?;
    let said = known.who_am_i(v1::WhoAmIRequest {}).await?.into_inner();
    ensure!(
        said.principal.starts_with("cert:") && said.principal.contains("alice"),
        "{said:?}"
    );
    let said = known.who_am_i(with(v1::WhoAmIRequest {}, &admin)?).await?;
    ensure!(said.into_inner().principal == "token:admin");
    let bad = known.who_am_i(with(v1::WhoAmIRequest {}, "aqf_x")?).await;
    ensure!(bad.is_err_and(|status| status.code() == Code::Unauthenticated));
    let mut unknown = connect(&bare).await?;
    let refused = unknown.who_am_i(v1::WhoAmIRequest {}).await;
    ensure!(refused.is_err_and(|status| status.code() == Code::Unauthenticated));
    server.check_logs()
}
