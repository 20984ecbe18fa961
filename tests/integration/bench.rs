//! A quick run of two parts of the performance suite: it drives the shipped binary and reports what
//! it promises. Figures are not checked; `make bench` measures.

use std::process::Command;

use anyhow::{Result, ensure};
use aquifer_harness::server::binary;
use serde_json::Value;

fn bench(arguments: &[&str]) -> Result<std::process::Output> {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .env("AQUIFER_BIN", binary())
        .args(arguments)
        .output()?;
    Ok(output)
}

#[test]
fn the_suite_reports_rows_beside_their_targets() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let directory = folder.path().to_string_lossy();
    let arguments = ["--quick", "--only", "start,latency", "--dir", &directory];
    let output = bench(&arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let results: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(results["quick"], true);
    assert!(results["machine"]["version"].is_string(), "{results}");
    let calibration = results["calibration"].as_array().map(Vec::len);
    assert_eq!(calibration, Some(3), "{results}");
    let rows = results["rows"].as_array().cloned().unwrap_or_default();
    let names: Vec<_> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "start to ready, new data directory",
            "binary",
            "end-to-end latency at 1,000 msg/s, p50",
            "end-to-end latency at 1,000 msg/s, p99",
        ]
    );
    for row in &rows {
        assert!(row["measured"].as_f64() > Some(0.0), "{row}");
        assert!(
            row["target"].is_number() && row["met"].is_boolean(),
            "{row}"
        );
        let durability = row["durability"].as_str().unwrap_or_default();
        assert!(durability.starts_with("synced"), "{row}");
        assert!(
            said.contains(row["name"].as_str().unwrap_or("no name")),
            "{said}"
        );
    }
    // Nothing stays behind.
    assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
    Ok(())
}

#[test]
fn a_part_that_does_not_exist_is_refused() -> Result<()> {
    let output = bench(&["--only", "nothing"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("idle-memory"),
        "{said}"
    );
    Ok(())
}
