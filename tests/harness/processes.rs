//! What processes and files of a cluster take.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::config::env;
use aquifer_runtime::rng::{Rng, SystemRng};
use rustix::process::{Pid, test_kill_process};
use serde_json::Value;

use crate::cluster::Cluster;

/// A directory that nobody uses, in the usual temporary one or in that of `AQUIFER_MEASURE_DIR`.
///
/// # Errors
/// When it cannot be made.
pub fn directory() -> Result<PathBuf> {
    let parent = env("AQUIFER_MEASURE_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = parent.join(format!("aquifer-measure-{:x}", SystemRng.next_u64()));
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Where etcd is.
///
/// # Errors
/// When there is none.
pub fn etcd(cluster: &Cluster) -> Result<String> {
    let mut processes = cluster.processes().iter();
    let etcd = processes.find(|process| process.role == "etcd");
    Ok(etcd.context("a cluster has etcd")?.address.clone())
}

/// Memory of a process.
///
/// # Errors
/// When it has ended.
pub fn resident_bytes(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("VmRSS")?.parse::<u64>()? * 1024)
}

/// Bytes of all files below a directory.
///
/// # Errors
/// When there is none.
pub fn size_of(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A file may be removed between the two.
        sum += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path())?,
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
    }
    Ok(sum)
}

/// Waits until a process has ended.
///
/// # Errors
/// When it does not within a minute.
pub fn wait_gone(pid: i32) -> Result<()> {
    let pid = Pid::from_raw(pid).context("a process id is not 0")?;
    let began = SystemClock.monotonic();
    while test_kill_process(pid).is_ok() {
        let waited = SystemClock.monotonic() - began;
        ensure!(waited.as_secs() < 60, "it does not end");
        std::thread::yield_now();
    }
    Ok(())
}

/// What etcd stores.
#[derive(Debug, Clone, Copy)]
pub struct EtcdStatus {
    /// Rises by one with every transaction that writes.
    pub revision: u64,
    /// Size of its database file.
    pub bytes: u64,
}

/// Asks etcd what it stores.
///
/// # Errors
/// When it does not answer.
pub fn etcd_status(etcd: &str) -> Result<EtcdStatus> {
    let status = etcdctl(etcd, &["endpoint", "status", "--write-out", "json"])?;
    let status = &status[0]["Status"];
    let revision = status["header"]["revision"].as_u64();
    Ok(EtcdStatus {
        revision: revision.context("a revision")?,
        bytes: status["dbSize"].as_u64().context("a size")?,
    })
}

/// Lets etcd forget all but the present, and gives back what that took.
///
/// # Errors
/// When it does not answer.
pub fn compact(etcd: &str) -> Result<()> {
    let revision = etcd_status(etcd)?.revision.to_string();
    etcdctl(etcd, &["compact", "--physical", &revision])?;
    etcdctl(etcd, &["defrag"])?;
    Ok(())
}

fn etcdctl(etcd: &str, arguments: &[&str]) -> Result<Value> {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", etcd, "--command-timeout", "60s"])
        .args(arguments)
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "etcdctl {arguments:?}: {told}");
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}
