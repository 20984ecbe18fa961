//! TLS between all processes of a cluster and its clients: who gets in, who does not, and
//! certificates that are renewed under load.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, ClientTlsConfig, Message, Place};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::http;
use aquifer_harness::server::{Server, ServerOptions, binary};
use aquifer_harness::wait::until;
use aquifer_runtime::clock::SystemClock;
use aquifer_runtime::net::tls::ClientTls;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Runs a command without a server's address in its environment.
fn aquifer(words: &[&str]) -> Result<std::process::Output> {
    let mut command = Command::new(binary());
    Ok(command.args(words).env_remove("AQUIFER_URL").output()?)
}

fn succeeded(words: &[&str]) -> Result<String> {
    let output = aquifer(words)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {stderr}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Exit code and standard error of a command that must fail.
fn refused(words: &[&str]) -> Result<(i32, String)> {
    let output = aquifer(words)?;
    let code = output.status.code().context("it ended by itself")?;
    ensure!(code != 0, "{words:?} succeeded");
    Ok((code, String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Whether a bookie answers a client that shows these files.
async fn enters(address: &str, files: &ClientTlsConfig) -> Result<bool> {
    let client = Arc::new(ClientTls::load(files, SystemClock::shared())?);
    let stream = TcpStream::connect(address).await?;
    let Ok(mut stream) = client.connect(stream, "127.0.0.1").await else {
        return Ok(false);
    };
    // The preface of HTTP/2, and settings without content: a server answers with its own.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    if stream.write_all(preface).await.is_err() {
        return Ok(false);
    }
    Ok(stream.read_u8().await.is_ok())
}

/// Without the authority, and in plain text.
fn strangers_are_told_what_is_wrong(url: &str) -> Result<()> {
    let (code, why) = refused(&["--url", url, "--timeout", "5s", "topic", "list"])?;
    ensure!(code == 3 || code == 2, "{code}: {why}");
    ensure!(
        why.contains("certificate") || why.contains("authorities"),
        "{why}"
    );
    let plain = url.replace("https://", "http://");
    let (code, why) = refused(&["--url", &plain, "--timeout", "5s", "topic", "list"])?;
    ensure!(code == 3, "{code}: {why}");
    ensure!(why.contains("https://"), "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_tls_serves_those_that_believe_it_and_opens_its_bookies_to_itself()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut cluster = Cluster::start(&data_dir, &["--tls", "--brokers", "2"])?;
    let ca = text(cluster.ca_file().context("it has an authority")?);
    let url = cluster.url().to_owned();
    ensure!(
        url.split(',').all(|url| url.starts_with("https://")),
        "{url}"
    );

    // Through both brokers, redirects between them, three bookies, and a bookie that dies.
    let flags = ["--url", &url, "--tls-ca-file", &ca];
    let with = |words: &[&'static str]| [&flags[..], words].concat();
    succeeded(&with(&["produce", "t", "one"]))?;
    let client = cluster.client()?;
    let producer = client.producer("t").open().await?;
    cluster.kill("bookie-1")?;
    for number in 0..20 {
        let sent = producer
            .send(Message::new(format!("message {number}")))
            .await;
        sent?;
    }
    let read = succeeded(&with(&["read", "t", "--from", "earliest", "--count", "21"]))?;
    ensure!(read.lines().count() == 21, "{read}");
    succeeded(&with(&["topic", "stats", "t"]))?;
    succeeded(&with(&["cluster", "brokers"]))?;

    strangers_are_told_what_is_wrong(&url)?;

    // A bookie lets in processes of the cluster, and neither users nor strangers.
    let dir = data_dir.join("tls");
    succeeded(&[
        "tls",
        "init",
        "--dir",
        &text(&dir),
        "--cluster",
        "dev",
        "--user",
        "alice",
    ])?;
    let other = folder.path().join("other");
    succeeded(&["tls", "init", "--dir", &text(&other), "--cluster", "dev"])?;
    let files = |signed: &Path, name: &str| ClientTlsConfig {
        ca_file: Some(dir.join("ca.pem")),
        cert_file: Some(signed.join(format!("{name}.pem"))),
        key_file: Some(signed.join(format!("{name}.key"))),
    };
    let bookie = cluster.process("bookie-2")?.address.clone();
    ensure!(enters(&bookie, &files(&dir, "broker")).await?, "a broker");
    ensure!(
        !enters(&bookie, &files(&dir, "user-alice")).await?,
        "a user"
    );
    ensure!(
        !enters(&bookie, &files(&dir, "server")).await?,
        "a server's certificate"
    );
    ensure!(
        !enters(&bookie, &files(&other, "broker")).await?,
        "a stranger"
    );
    let bare = ClientTlsConfig {
        ca_file: Some(dir.join("ca.pem")),
        ..ClientTlsConfig::default()
    };
    ensure!(!enters(&bookie, &bare).await?, "one without a certificate");
    cluster.check_logs()?;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_are_used_without_a_restart_or_a_lost_connection() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(&folder.path().join("data"), &["--tls"])?;
    let client = cluster.client()?;
    let producer = client.producer("t").open().await?;
    producer.send(Message::new("before")).await?;
    let dir = text(&folder.path().join("data").join("tls"));
    succeeded(&["tls", "init", "--dir", &dir, "--cluster", "dev", "--renew"])?;
    for name in ["broker-1", "bookie-1", "bookie-2", "bookie-3"] {
        cluster.signal(name, Signal::HUP)?;
        let at = cluster.process(name)?.http.clone();
        until(&format!("{name} uses its new certificate"), async || {
            let reloads = http::metric(&at, "aquifer_tls_reloads_total").await?;
            Ok((reloads >= 1.0).then_some(()))
        })
        .await?;
    }
    // The open connection goes on, and a new one is made with what is new.
    producer.send(Message::new("after")).await?;
    let again = cluster.client()?;
    let reader = again.reader("t").start(Place::Earliest).open().await?;
    for expected in ["before", "after"] {
        let message = reader.next().await?;
        ensure!(message.payload == expected.as_bytes(), "{message:?}");
    }
    cluster.check_logs()?;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_server_serves_tls_on_both_ports_and_says_what_is_wrong_with_files()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir: PathBuf = folder.path().join("tls");
    succeeded(&["tls", "init", "--dir", &text(&dir)])?;
    let file = |name: &str| text(&dir.join(name));
    let mut environment = Vec::new();
    for port in ["PROTOCOLS_GRPC", "HTTP"] {
        environment.push((format!("AQUIFER_{port}_TLS_CERT_FILE"), file("server.pem")));
        environment.push((format!("AQUIFER_{port}_TLS_KEY_FILE"), file("server.key")));
    }
    let options = ServerOptions {
        environment: environment.clone(),
        ..ServerOptions::default()
    };
    // The harness waits for what the server prints, not for an answer in plain text.
    let mut server = Server::start(&folder.path().join("data"), options).await?;
    let url = server.url().replace("http://", "https://");
    let ca = file("ca.pem");
    succeeded(&["--url", &url, "--tls-ca-file", &ca, "produce", "t", "m"])?;
    let tls = ClientTlsConfig {
        ca_file: Some(dir.join("ca.pem")),
        ..ClientTlsConfig::default()
    };
    let client = Client::builder().url(&url).tls(tls.clone()).build()?;
    client.connect().await?;

    let secret = ClientTls::load(&tls, SystemClock::shared())?;
    let stream = TcpStream::connect(server.http()).await?;
    // The port speaks HTTP/1 alone, and says so: a client of HTTP/2 finds nothing in common.
    ensure!(secret.connect(stream, "localhost").await.is_err());
    let plain = http::get(&server.http(), "/healthz")
        .await
        .unwrap_or_default();
    ensure!(!plain.contains("200"), "{plain}");
    server.stop()?;

    // A key that others can read.
    let key = dir.join("server.key");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&key, open)?;
    let mut start = Command::new(binary());
    let start = start
        .args([
            "standalone",
            "--data-dir",
            &text(&folder.path().join("other")),
        ])
        .args(["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"])
        .args(["--bookie-addr", "127.0.0.1:0"])
        .envs(environment)
        .output()?;
    let why = String::from_utf8_lossy(&start.stderr);
    ensure!(start.status.code() == Some(1), "{:?}: {why}", start.status);
    ensure!(why.contains("chmod 600"), "{why}");
    Ok(())
}
