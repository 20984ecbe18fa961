//! Garbage in the keys of metadata, as a wrong program or a bad backup leaves it: named by the
//! tools, with an exit code, and harmless.

use anyhow::{Result, ensure};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::server::aquifer;

use crate::operators::{id_of, tool, wait_for_doctor};

const ROOT: &str = "/aquifer/v1/dev/";
const STRANGER: &str = "000102030405060708090a0b0c0d0e0f";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_metadata_is_named_and_harms_nobody() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = Cluster::start(&folder.path().join("cluster"), &[])?;
    let produce = |cluster: &Cluster, message: &str| {
        let output = aquifer(cluster.url(), &["produce", "t", message])?;
        ensure!(output.status.success(), "{output:?}");
        anyhow::Ok(())
    };
    produce(&cluster, "one")?;
    wait_for_doctor(&cluster, 0, "processes repair").await?;
    let bookie = id_of(&cluster, "bookie-1")?;

    let keys = [
        "l/0000000000000777".to_owned(),
        "l/not-a-number".to_owned(),
        format!("bookies/{STRANGER}"),
        "bookies/unknown".to_owned(),
        format!("cookies/{STRANGER}"),
        "cookies/unknown".to_owned(),
        "u/0000000000000777".to_owned(),
        "u/nothing".to_owned(),
        "g/0000000000000777".to_owned(),
        "g/nothing".to_owned(),
    ];
    for key in &keys {
        cluster.etcdctl(&["put", &format!("{ROOT}{key}"), "garbage"])?;
    }
    let doctor = tool(&cluster, &["doctor"])?;
    ensure!(doctor.code == Some(1), "{doctor:?}");
    let problems: Vec<String> = doctor.objects.iter().map(ToString::to_string).collect();
    for key in &keys {
        ensure!(
            problems.iter().any(|problem| problem.contains(key)),
            "{key}: {problems:?}"
        );
    }
    let listed = tool(&cluster, &["ledger", "list"])?;
    ensure!(listed.code == Some(1), "{listed:?}");
    ensure!(
        listed.said.contains("2 records are unreadable"),
        "{listed:?}"
    );
    ensure!(!listed.objects.is_empty(), "what can be read is listed");
    let shown = tool(&cluster, &["ledger", "inspect", "777"])?;
    ensure!(
        shown.code == Some(1) && shown.said.contains("damaged"),
        "{shown:?}"
    );
    let deleted = tool(&cluster, &["ledger", "delete", "777", "--force"])?;
    ensure!(deleted.code == Some(1), "{deleted:?}");
    // A record that cannot be read may name the bookie.
    let leave = tool(&cluster, &["bookie", "decommission", &bookie])?;
    ensure!(leave.code == Some(1), "{leave:?}");
    ensure!(leave.said.contains("cannot be read"), "{leave:?}");
    tool(&cluster, &["bookie", "decommission", &bookie, "--undo"])?.ok()?;

    // Topics go on, also in processes that start among the garbage.
    produce(&cluster, "two")?;
    cluster.kill("broker-1")?;
    cluster.start_again("broker-1")?;
    cluster.kill("bookie-1")?;
    cluster.start_again("bookie-1")?;
    produce(&cluster, "three")?;
    let read = aquifer(cluster.url(), &["read", "t"])?;
    ensure!(read.stdout == b"one\ntwo\nthree\n", "{read:?}");

    // Nothing was removed; without the garbage all is well.
    for key in &keys {
        let deleted = cluster.etcdctl(&["del", &format!("{ROOT}{key}")])?;
        ensure!(deleted.trim() == "1", "{key}: {deleted}");
    }
    wait_for_doctor(&cluster, 0, "3 bookies are announced").await?;
    cluster.stop()?;
    cluster.check_logs()
}
