//! Ledgers of a cluster that runs: shown, read while they are written, verified, closed, deleted.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::server::aquifer;
use aquifer_harness::wait::{until, within};

use crate::operators::{QUICK, id_of, tool, wait_for_doctor, wait_for_state, wait_whole};

fn publish(cluster: &Cluster, message: &str) -> Result<()> {
    let output = aquifer(cluster.url(), &["produce", "kept", message])?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// The ledger that a topic writes, and its state.
fn ledger_of(cluster: &Cluster, topic: &str) -> Result<(String, String)> {
    let topic = format!("persistent://public/default/{topic}");
    let mut last = None;
    for ledger in tool(cluster, &["ledger", "list"])?.ok()? {
        let id = ledger["ledger"].to_string();
        let shown = tool(cluster, &["ledger", "inspect", &id])?.ok()?;
        if shown[0]["topic"] == *topic {
            let state = shown[0]["state"].as_str().context("a text")?.to_owned();
            last = Some((id, state));
        }
    }
    last.with_context(|| format!("no ledger of {topic}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledgers_are_read_closed_verified_and_deleted_while_the_cluster_runs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(&folder.path().join("cluster"), &[])?;
    for message in ["one", "two", "three"] {
        publish(&cluster, message)?;
    }
    let (ledger, state) = ledger_of(&cluster, "kept")?;
    ensure!(state == "open", "{state}");
    // A tool that does not own it reads it as far as it is confirmed, without effect on the owner.
    let entries = until("three confirmed entries", || async {
        let read = tool(&cluster, &["ledger", "read", &ledger])?.ok()?;
        Ok((read.len() == 3).then_some(read))
    });
    let entries = entries.await?;
    ensure!(
        entries[2]["entry"] == 2 && entries[2]["base_index"] == 2,
        "{entries:?}"
    );
    let some = ["ledger", "read", &ledger, "--from", "1", "--count", "1"];
    ensure!(tool(&cluster, &some)?.ok()? == [entries[1].clone()]);
    publish(&cluster, "four")?;

    // A reader that follows gets what comes, and ends when the ledger does.
    let mut follow = crate::operators::command(&cluster, &["ledger", "read", &ledger, "--follow"])?;
    let follow = follow.stdout(Stdio::piped()).spawn()?;
    let recovered = tool(&cluster, &["ledger", "recover", &ledger])?.ok()?;
    ensure!(recovered[0]["state"] == "closed", "{recovered:?}");
    ensure!(recovered[0]["last_entry"] == 3, "{recovered:?}");
    let followed = within("the end of the reader", async {
        Ok(tokio::task::spawn_blocking(|| follow.wait_with_output()).await??)
    });
    let followed = followed.await?;
    ensure!(followed.status.success(), "{followed:?}");
    let lines = String::from_utf8(followed.stdout)?;
    ensure!(lines.lines().count() == 4, "{lines}");

    // The topic goes on in another ledger; nothing is lost.
    publish(&cluster, "five")?;
    let read = aquifer(cluster.url(), &["read", "kept"])?;
    ensure!(read.stdout == b"one\ntwo\nthree\nfour\nfive\n", "{read:?}");
    let whole = tool(&cluster, &["ledger", "verify", &ledger])?.ok()?;
    ensure!(whole[0]["replicas"] == 3, "{whole:?}");

    let refused = tool(&cluster, &["ledger", "delete", &ledger])?;
    ensure!(refused.code == Some(5), "{refused:?}");
    ensure!(refused.said.contains("holds messages of"), "{refused:?}");
    let deleted = tool(&cluster, &["ledger", "delete", &ledger, "--force"])?.ok()?;
    ensure!(deleted[0]["bookies_waiting"] == 0, "{deleted:?}");
    let gone = tool(&cluster, &["ledger", "inspect", &ledger])?;
    ensure!(
        gone.code == Some(1) && gone.said.contains("no ledger"),
        "{gone:?}"
    );
    ensure!(gone.said.contains("aquifer ledger list"), "{gone:?}");
    let gone = tool(&cluster, &["ledger", "read", &ledger])?;
    ensure!(gone.code == Some(1), "{gone:?}");
    // One that is gone is told, and keeps no other from being looked at.
    let (other, _) = ledger_of(&cluster, "kept")?;
    let gone = tool(&cluster, &["ledger", "verify", &ledger, &other])?;
    ensure!(gone.code == Some(1), "{gone:?}");
    ensure!(gone.said.contains("1 ledgers could not"), "{gone:?}");
    ensure!(
        gone.objects[0]["error"] == *format!("there is no ledger {ledger}"),
        "{gone:?}"
    );
    wait_whole(&cluster).await?;
    cluster.stop()?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_tells_a_healthy_cluster_from_one_that_lost_a_bookie() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start_with(&folder.path().join("cluster"), &[], &QUICK)?;
    publish(&cluster, "one")?;
    wait_for_doctor(&cluster, 0, "3 processes repair ledgers").await?;
    // A cluster that no bookie joined is not a healthy one.
    let metadata = cluster.metadata()?;
    let nobodys = ["doctor", "--metadata", &metadata, "--cluster", "nobodys"];
    let asked = aquifer(cluster.url(), &nobodys)?;
    let said = String::from_utf8_lossy(&asked.stderr);
    ensure!(
        asked.status.code() == Some(1) && said.contains("nobodys") && said.contains("--cluster"),
        "{asked:?}"
    );
    let victim = id_of(&cluster, "bookie-2")?;
    cluster.kill("bookie-2")?;
    // As long as its lease lasts it is announced, and the doctor tries.
    wait_for_doctor(&cluster, 1, &victim).await?;
    wait_for_doctor(&cluster, 1, "and is away").await?;
    ensure!(crate::operators::state_of(&cluster, &victim)? == "away");
    cluster.start_again("bookie-2")?;
    wait_for_state(&cluster, &victim, "writable").await?;
    wait_for_doctor(&cluster, 0, "3 bookies are announced").await?;
    publish(&cluster, "two")?;
    cluster.stop()?;
    cluster.check_logs()
}
