//! Clients that others make from what we publish: gRPC stubs that `grpcio-tools` generates from the
//! .proto files, and `schemathesis` with the OpenAPI document of a running server. Both are
//! installed into a Python of their own below the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;

use crate::security::support::Secured;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/interop");
const PROTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/proto");
/// What the pinned packages and their installation need.
const USABLE: &str = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))";
/// How long pip may take in all, and waits for an answer, in seconds.
const INSTALL_SECONDS: &str = "240";
const ANSWER_SECONDS: &str = "15";
/// How `timeout` ends when that is over.
const TIMED_OUT: i32 = 124;
/// What pip says of an index that it does not reach, or that breaks off.
const UNREACHABLE: [&str; 8] = [
    "from versions: none",
    "Connection aborted",
    "Connection broken",
    "HTTP error 5",
    "IncompleteRead",
    "Max retries exceeded",
    "TimeoutError",
    "timed out",
];
/// How long schemathesis makes up requests, each time.
const SECONDS: &str = "20";
/// How long it waits for an answer. Generous, because CI machines stall.
const ANSWERED_SECONDS: &str = "120";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

/// A Python with the packages of `requirements.txt`; `None`, with the reason printed, where Python
/// is not installed, or pip reaches no index of packages or has not got them from it in time. It is
/// tried once. Packages that do not fit are an error.
fn python() -> Result<Option<PathBuf>> {
    static IN_VAIN: Mutex<bool> = Mutex::new(false);
    let mut in_vain = IN_VAIN.lock().expect("no holder panics");
    if *in_vain {
        eprintln!("skipped: pip could not install what it needs, as another test says");
        return Ok(None);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-python");
    let requirements = Path::new(FOLDER).join("requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let (python, installed) = (folder.join("bin/python"), folder.join("installed"));
    if fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        return Ok(Some(python));
    }
    let usable = Command::new("python3").args(["-c", USABLE]).output();
    if !usable.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a Python from 3.10 on with ensurepip and venv is not installed");
        return Ok(None);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let made = Command::new("python3")
        .args(["-m", "venv"])
        .arg(&folder)
        .output()?;
    ensure!(made.status.success(), "{}", said(&made));
    let pip = Command::new("timeout")
        .args(["--kill-after", ANSWER_SECONDS, INSTALL_SECONDS])
        .arg(&python)
        .args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--retries", "1", "--timeout", ANSWER_SECONDS])
        .args(["--disable-pip-version-check", "--requirement"])
        .arg(&requirements)
        .output()?;
    let why = said(&pip);
    // Killed where it did not end by itself.
    let is_late = matches!(pip.status.code(), Some(TIMED_OUT) | None);
    if is_late || (!pip.status.success() && UNREACHABLE.iter().any(|text| why.contains(text))) {
        eprintln!("skipped: pip reaches no index of packages, or it is too slow: {why}");
        *in_vain = true;
        return Ok(None);
    }
    ensure!(pip.status.success(), "{why}");
    fs::write(&installed, wanted)?;
    Ok(Some(python))
}

/// Everything that a tool has printed.
fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{err}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_grpcio_tools_administers_a_secured_cluster() -> Result<()> {
    let Some(python) = python()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let data_dir = folder.path().join("data");
    let mut cluster = Cluster::start(&data_dir, &["--auth"])?;
    let address = cluster.url().strip_prefix("https://");
    let address = address.context("a cluster with tokens has TLS")?;
    let output = Command::new(&python)
        .arg(Path::new(FOLDER).join("administer.py"))
        .arg(PROTOS)
        .arg(folder.path().join("generated"))
        .arg(address)
        .arg(cluster.ca_file().context("it has an authority")?)
        .arg(data_dir.join("admin.token"))
        .output()?;
    ensure!(output.status.success(), "{}", said(&output));
    cluster.stop()?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_server_error_and_no_answer_beyond_the_document() -> Result<()> {
    let Some(python) = python()? else {
        return Ok(());
    };
    let mut secured = Secured::start().await?;
    let _acme = secured.tenant("acme")?;
    secured.as_admin(&["topic", "create", "acme/shop/orders"])?;
    let _other = secured.tenant("other")?;
    let grant = ["grant", "add", "token:other/app", "developer"];
    secured.as_admin(&[&grant[..], &["--tenant", "other"]].concat())?;
    secured.as_admin(&["produce", "other/shop/plans", "one"])?;
    let token = fs::read_to_string(secured.admin())?;
    for config in ["known.toml", "any.toml"] {
        let output = Command::new(&python)
            .args(["-m", "schemathesis.cli", "--no-color", "--config-file"])
            .arg(Path::new(FOLDER).join(config))
            .args(["run", "--phases", "coverage,fuzzing", "--seed", "1"])
            .args(["--max-examples", "5", "--max-time", SECONDS])
            .args(["--request-timeout", ANSWERED_SECONDS, "--no-shrink"])
            .args(["--warnings", "off"])
            // What is not built says so with 501.
            .args(["--exclude-operation-id", "GrowTopic"])
            // It takes ids from earlier answers: that of its own token is among them.
            .args(["--exclude-operation-id", "RevokeToken"])
            .args(["--exclude-operation-id", "RotateToken"])
            .args(["--checks", CHECKS])
            .arg(format!(
                "http://{}/api/v1/openapi.json",
                secured.server.http()
            ))
            .env("AQUIFER_TOKEN", token.trim())
            // It keeps examples that failed where it runs.
            .current_dir(secured.path(""))
            .output()?;
        ensure!(output.status.success(), "{config}: {}", said(&output));
        // Had it ended its own token, it would have seen little but that it is not known.
        secured.as_admin(&["access", "whoami"])?;
    }
    // What was there before may be gone: ids from earlier answers are there to be removed.
    let _after = secured.tenant("after")?;
    secured.as_admin(&["produce", "after/shop/plans", "kept"])?;
    let kept = secured.as_admin(&["read", "after/shop/plans"])?;
    ensure!(kept == "kept\n", "{kept}");
    secured.server.stop()?;
    secured.server.check_logs()
}
