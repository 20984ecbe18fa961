//! Brokers with a listener besides the default one, as a network has it that reaches them in a way
//! of its own: its clients are redirected to the same listener of other brokers, and to no other.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, Message, Place};
use aquifer_harness::cluster::Cluster;
use aquifer_harness::command::first_line;
use aquifer_harness::server::aquifer;
use aquifer_harness::wait::within;
use aquifer_proto::ERROR_TRAILER;
use aquifer_proto::v1::pull_client::PullClient;
use aquifer_proto::v1::{BoundsRequest, ErrorCode, ErrorDetail};
use prost::Message as _;
use serde_json::Value;
use tonic::transport::Endpoint;

const TOPICS: usize = 24;

/// A broker that a test has started; killed when dropped.
struct Broker {
    child: Child,
    /// Its addresses, by listener.
    urls: BTreeMap<String, String>,
}

impl Broker {
    /// Starts a broker of the cluster again, with further listeners on free ports.
    fn start(cluster: &Cluster, name: &str, listeners: &[&str]) -> Result<Broker> {
        let command = &cluster.process(name)?.command;
        let further = listeners
            .iter()
            .map(|one| format!(" --listener {one}=127.0.0.1:0"));
        let further: String = further.collect();
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {command}{further}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let greeting = first_line(&mut child)?;
        let greeting: Value = serde_json::from_str(&greeting)
            .with_context(|| format!("the greeting of {name}: {greeting:?}"))?;
        let urls = greeting["listeners"].as_object().context("listeners")?;
        let url = |(name, url): (&String, &Value)| Some((name.clone(), url.as_str()?.to_owned()));
        let urls = urls.iter().filter_map(url).collect();
        Ok(Broker { child, urls })
    }

    fn url(&self, listener: &str) -> Result<&str> {
        let url = self.urls.get(listener);
        url.map(String::as_str)
            .with_context(|| format!("no {listener} in {:?}", self.urls))
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn topic(number: usize) -> String {
    format!("public/default/listened-{number}")
}

/// What a broker says of topics that others serve, to a client that came in at an address.
async fn redirects(url: &str) -> Result<Vec<ErrorDetail>> {
    let channel = Endpoint::from_shared(url.to_owned())?.connect().await?;
    let mut client = PullClient::new(channel);
    let mut all = Vec::new();
    for number in 0..TOPICS {
        let topic = topic(number);
        let Err(status) = client.bounds(BoundsRequest { topic }).await else {
            continue;
        };
        let trailer = status
            .metadata()
            .get_bin(ERROR_TRAILER)
            .context("a detail")?;
        all.push(ErrorDetail::decode(trailer.to_bytes()?)?);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_redirected_within_the_listener_that_they_came_in_through() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cluster = crate::cluster::start(folder.path(), &["--bookies", "1", "--brokers", "2"])?;
    for name in ["broker-1", "broker-2"] {
        cluster.terminate(name)?;
    }
    let first = Broker::start(&cluster, "broker-1", &["outside", "edge"])?;
    let second = Broker::start(&cluster, "broker-2", &["outside"])?;
    // Through one listener of one broker every topic is found.
    let client = Client::builder().url(first.url("outside")?).build()?;
    for number in 0..TOPICS {
        let publish = async {
            let producer = client.producer(&topic(number)).open().await?;
            producer.send(Message::new(number.to_string())).await?;
            Ok(producer.close().await?)
        };
        within("a message to be stored", publish).await?;
    }
    for listener in ["default", "outside"] {
        let (one, other) = (first.url(listener)?, second.url(listener)?);
        for (asked, named) in [(one, other), (other, one)] {
            let redirects = redirects(asked).await?;
            ensure!(!redirects.is_empty(), "{asked} serves all topics");
            for redirect in redirects {
                ensure!(redirect.code() == ErrorCode::Redirect, "{redirect:?}");
                ensure!(redirect.redirect_url == named, "{redirect:?}");
            }
        }
        // What tools are told is of the same network.
        let listed = aquifer(one, &["--output", "json", "cluster", "brokers"])?;
        for broker in String::from_utf8(listed.stdout)?.lines() {
            let broker: Value = serde_json::from_str(broker)?;
            let url = broker["url"].as_str().context("a URL")?;
            ensure!([one, other].contains(&url), "{broker}");
            ensure!(broker["listeners"][listener] == url, "{broker}");
            ensure!(broker["load"].is_object(), "it was reached: {broker}");
        }
    }
    // A listener that the other broker does not have leads nowhere, and that is said.
    let nowhere = redirects(first.url("edge")?).await?;
    ensure!(!nowhere.is_empty());
    for detail in nowhere {
        ensure!(detail.code() == ErrorCode::Unavailable && detail.redirect_url.is_empty());
        ensure!(detail.advice.contains("--listener edge="), "{detail:?}");
    }
    // Brokers ask each other through the default one, whatever the client came through.
    let admin = client.admin();
    admin.create_topic("parts", 8).await?;
    admin
        .create_subscription("parts", "desk", Place::Latest)
        .await?;
    let stats = admin.topic_stats("parts").await?;
    ensure!(stats.subscriptions.len() == 1, "{:?}", stats.subscriptions);
    drop((first, second));
    cluster.stop()
}
