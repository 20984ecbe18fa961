//! Topics of an earlier backup come back under other names, beside those that run.

use anyhow::{Context, Result, ensure};
use aquifer_harness::server::{Server, aquifer};

use crate::backup::{
    Lines, MESSAGES, TOPICS, acknowledge_half, json, lines, namespace, options, publish, read_all,
    rest,
};

/// By the last part of the names of topics alone.
fn local(lines: Lines) -> Lines {
    let of = |((topic, index), payload): ((String, u64), Vec<u8>)| {
        let name = topic.rsplit('/').next().unwrap_or_default().to_owned();
        ((name, index), payload)
    };
    lines.into_iter().map(of).collect()
}

#[tokio::test]
async fn topics_of_an_earlier_time_come_back_beside_those_of_now() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = format!("file://{}", folder.path().join("store").display());
    let mut server = Server::start(&folder.path().join("data"), options(&place)).await?;
    let client = server.client()?;
    namespace(&client).await?;
    let [plain, parts] = [TOPICS[0], TOPICS[2]];
    for topic in [plain, parts] {
        publish(&client, topic, &lines()?).await?;
    }
    let left = acknowledge_half(&client, plain).await?;
    let before = read_all(&client, plain, MESSAGES).await?;
    let before_parts = read_all(&client, parts, MESSAGES).await?;
    let url = server.url();
    json(&url, &["backup", "create", &place])?;
    let listed = json(&url, &["backup", "list", &place])?;
    let first = listed[0]["finished"].as_str().context("finished")?;
    publish(&client, plain, &[b"later".to_vec()]).await?;
    json(&url, &["backup", "create", &place])?;

    let restore = |more: &[&str]| {
        let all = ["backup", "restore", &place, "--at", first, "--tenant"];
        json(
            &url,
            &[&all[..], &["public", "--as", "globex"], more].concat(),
        )
    };
    // One, and a partitioned one with three partitions, of which nothing is asked once it is there.
    for (more, outcome, count) in [
        (&["--dry-run"][..], "would be restored", 5),
        (&[][..], "restored", 5),
        (&[][..], "done", 2),
    ] {
        let mut rows = restore(more)?;
        // A dry run names tenants, namespaces, policies and the total too.
        rows.retain(|row| !row["topic"].is_null());
        let is_as = |row: &serde_json::Value| {
            let name = row["as"].as_str().unwrap_or_default();
            row["outcome"] == outcome && name.starts_with("persistent://globex/flights/")
        };
        ensure!(rows.len() == count && rows.iter().all(is_as), "{rows:?}");
    }
    let copy = "globex/flights/a";
    ensure!(local(read_all(&client, copy, MESSAGES).await?) == local(before));
    let copied_parts = read_all(&client, "globex/flights/parts", MESSAGES).await?;
    ensure!(local(copied_parts) == local(before_parts.clone()));
    let left_of_copy = rest(&client, copy, left.len()).await?;
    ensure!(local(left_of_copy) == local(left.clone()));

    // What runs is as it was, also where a copy is wanted in its place.
    let wanted = ["backup", "restore", &place, "--topic", plain, "--as", parts];
    let refused = aquifer(&url, &wanted)?;
    let said = String::from_utf8_lossy(&refused.stdout);
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(said.contains("exists, and is no copy of"), "{refused:?}");
    ensure!(read_all(&client, parts, MESSAGES).await? == before_parts);
    ensure!(rest(&client, plain, left.len()).await? == left);
    let now = read_all(&client, plain, MESSAGES + 1).await?;
    ensure!(now.into_values().next_back() == Some(b"later".to_vec()));
    let early = ["backup", "show", &place, "--at", "2001-01-01T00:00:00Z"];
    ensure!(aquifer(&url, &early)?.status.code() == Some(1));
    server.stop()?;
    server.check_logs()
}
