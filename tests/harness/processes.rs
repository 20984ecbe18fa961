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

/// An unused directory, in the usual temporary one or in that of `AQUIFER_MEASURE_DIR`.
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
/// When it does not exist.
pub fn etcd(cluster: &Cluster) -> Result<String> {
    let mut processes = cluster.processes().iter();
    let etcd = processes.find(|process| process.role == "etcd");
    Ok(etcd.context("a cluster has etcd")?.address.clone())
}

/// `/proc` counts CPU time in hundredths of a second on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// CPU seconds since it started.
    pub cpu_seconds: f64,
    /// Resident now, in bytes.
    pub resident_bytes: f64,
    /// Most resident ever, or since the kernel was told to forget the peak.
    pub peak_bytes: f64,
}

/// What a process uses.
///
/// # Errors
/// When it has ended.
pub fn usage(pid: i32) -> Result<Usage> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let gone = || format!("process {pid} has ended");
    let stat = read("stat").with_context(gone)?;
    let status = read("status").with_context(gone)?;
    parse_usage(&stat, &status).context("the kernel does not say what it uses")
}

fn parse_usage(stat: &str, status: &str) -> Option<Usage> {
    // The name of the process is in parentheses and may contain anything, so count from its end.
    let after_name: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| after_name.get(at)?.parse::<f64>().ok();
    let kib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(Usage {
        cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
        resident_bytes: kib("VmRSS:")? * 1024.0,
        peak_bytes: kib("VmHWM:")? * 1024.0,
    })
}

/// Memory of a process.
///
/// # Errors
/// When it has ended.
pub fn resident_bytes(pid: i32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most memory of a process since it began.
///
/// # Errors
/// When it has ended.
pub fn peak_resident_bytes(pid: i32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: i32, what: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(what));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.with_context(|| what.to_owned())?.parse::<u64>()? * 1024)
}

/// Bytes of all files below a directory.
///
/// # Errors
/// When it does not exist.
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

#[test]
fn usage_is_read_from_proc() {
    let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 9 0 0";
    let status = "Name:\ta\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
    assert_eq!(
        parse_usage(stat, status),
        Some(Usage {
            cpu_seconds: 3.0,
            resident_bytes: 1_048_576.0,
            peak_bytes: 2_097_152.0,
        })
    );
    assert_eq!(parse_usage("7 (a) S", status), None);
    assert_eq!(parse_usage(stat, ""), None);
}
