//! A short run of the chaos tool with TLS and authentication: real processes under faults, and the
//! checkers. Longer runs are `make chaos`, and `make chaos ARGS="--secured --seconds 1200"`.

use std::process::Command;

use anyhow::{Result, ensure};
use aquifer_harness::server::binary;

/// What fits into a minute together with the start and the audit. Each of them comes.
const FAULTS: &str =
    "KillBookie,KillBroker,PowerLossOfAll,DrainBroker,CutConsumer,RotateCertificates,ExpireTokens";

#[test]
fn nothing_acknowledged_is_lost_in_a_short_run() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .env("AQUIFER_BIN", binary())
        // How soon clients continue is for longer runs to see: here the machine does more.
        .args(["--secured", "--seconds", "30", "--heal-seconds", "180"])
        .args(["--hold-ms", "2000", "--faults", FAULTS])
        .args(["--acknowledged-min", "500"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    eprintln!("{said}{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
