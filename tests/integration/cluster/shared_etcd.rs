//! Two clusters on one etcd: each sees its own bookies, brokers, tenants, topics, ledgers and
//! tokens, and nothing of the other, also where both have something of the same name.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use aquifer_client::{Client, ClientError, ClientTlsConfig, Message, Token};
use aquifer_harness::command;
use aquifer_harness::etcd::{Etcd, EtcdOptions};
use aquifer_harness::log;
use aquifer_harness::server::binary;
use aquifer_harness::wait::{until, within};
use aquifer_metadata::keys;
use serde_json::Value;

use crate::cluster::signals::Role;

/// In both clusters.
const TOPIC: &str = "persistent://public/default/orders";
/// In the first one alone.
const TENANT: &str = "acme";
const ONLY: &str = "persistent://public/default/returns";

/// An etcd, and where the clusters on it have their files.
struct Shared {
    etcd: Etcd,
    folder: tempfile::TempDir,
}

/// A cluster of one bookie and one broker.
struct Small {
    name: &'static str,
    bookie: Role,
    broker: Role,
}

impl Shared {
    async fn start() -> Result<Shared> {
        Ok(Shared {
            etcd: Etcd::start(EtcdOptions::members(1)).await?,
            folder: tempfile::tempdir()?,
        })
    }

    fn path(&self, cluster: &str, name: &str) -> PathBuf {
        self.folder.path().join(format!("{cluster}-{name}"))
    }

    /// A command for a cluster.
    fn command(&self, cluster: &str, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(words)
            .args(["--output", "json", "--cluster", cluster, "--metadata"])
            .arg(format!("etcd://{}", self.etcd.address(0)))
            .stdin(Stdio::null());
        command
    }

    /// What a tool prints of a cluster, an object a line.
    fn tool(&self, cluster: &str, words: &[&str]) -> Result<Vec<Value>> {
        let printed = command::run(&mut self.command(cluster, words))?;
        let objects = printed.lines().map(serde_json::from_str);
        Ok(objects.collect::<Result<_, _>>()?)
    }

    /// The ledgers of a cluster, as etcd has them.
    fn ledgers(&self, cluster: &str) -> Result<BTreeSet<u64>> {
        let found = self.tool(cluster, &["ledger", "list"])?;
        let ids = found.iter().map(|ledger| ledger["ledger"].as_u64());
        let ids: Option<BTreeSet<u64>> = ids.collect();
        ids.with_context(|| format!("{found:?}"))
    }

    fn start_role(&self, cluster: &str, role: &str, words: &[&str]) -> Result<Role> {
        let words = [&[role, "--http-addr", "127.0.0.1:0"][..], words].concat();
        let log = self.path(cluster, &format!("{role}.log"));
        Role::start(&mut self.command(cluster, &words), log)
    }

    /// Starts a cluster that demands nothing of clients.
    fn start_open(&self, name: &'static str) -> Result<Small> {
        let data_dir = self.path(name, "data").display().to_string();
        let bookie = ["--bookie-addr", "127.0.0.1:0", "--data-dir", &data_dir];
        let broker = ["--grpc-addr", "127.0.0.1:0", "--quorum", "1,1,1"];
        Ok(Small {
            name,
            bookie: self.start_role(name, "bookie", &bookie)?,
            broker: self.start_role(name, "broker", &broker)?,
        })
    }

    /// Starts a cluster that demands tokens, with certificates and an administrator of its own.
    fn start_guarded(&self, name: &'static str) -> Result<Small> {
        let text = |file: &str| self.path(name, file).display().to_string();
        let (tls, token) = (text("tls"), text("admin.token"));
        let mut init = Command::new(binary());
        init.args(["tls", "init", "--cluster", name, "--dir", &tls]);
        command::run(&mut init)?;
        let words = ["cluster", "init-auth", "--to-file", &token];
        command::run(&mut self.command(name, &words))?;

        let pair = |file: &str| {
            format!("cert_file = \"{tls}/{file}.pem\"\nkey_file = \"{tls}/{file}.key\"\n")
        };
        let internal = |role: &str| {
            let pair = pair(role);
            format!("[internal_tls]\n{pair}ca_file = \"{tls}/ca.pem\"\n")
        };
        let listener = format!(
            "[protocols.grpc.tls]\n{}client_ca_file = \"{tls}/ca.pem\"\n\
             client_certificates = \"optional\"\n",
            pair("server")
        );
        let (bookie, broker) = (text("bookie.toml"), text("broker.toml"));
        fs::write(&bookie, internal("bookie"))?;
        fs::write(&broker, internal("broker") + &listener)?;
        let data_dir = text("data");
        let bookie = [
            "--config",
            &bookie,
            "--bookie-addr",
            "127.0.0.1:0",
            "--data-dir",
            &data_dir,
        ];
        let broker = [
            "--config",
            &broker,
            "--auth",
            "--grpc-addr",
            "127.0.0.1:0",
            "--quorum",
            "1,1,1",
        ];
        Ok(Small {
            name,
            bookie: self.start_role(name, "bookie", &bookie)?,
            broker: self.start_role(name, "broker", &broker)?,
        })
    }

    /// A client of a cluster that demands tokens, with this one.
    fn client(&self, cluster: &Small, token: Token) -> Result<Client> {
        let tls = ClientTlsConfig {
            ca_file: Some(self.path(cluster.name, "tls").join("ca.pem")),
            ..ClientTlsConfig::default()
        };
        let client = Client::builder().url(cluster.broker.field("url")?);
        Ok(client.tls(tls).token(token).build()?)
    }

    /// The administrator's token of a cluster.
    fn admin(&self, cluster: &Small) -> Result<Token> {
        let text = fs::read_to_string(self.path(cluster.name, "admin.token"))?;
        Ok(Token::new(text.trim()))
    }
}

impl Small {
    fn client(&self) -> Result<Client> {
        Ok(Client::builder().url(self.broker.field("url")?).build()?)
    }

    async fn stop(self) -> Result<()> {
        let name = self.name;
        let broker = self.broker.terminate().await;
        broker.with_context(|| format!("the broker of {name}"))?;
        let bookie = self.bookie.terminate().await;
        bookie.with_context(|| format!("the bookie of {name}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_on_one_etcd_see_only_themselves() -> Result<()> {
    let shared = Shared::start().await?;
    let north = shared.start_open("north")?;
    let south = shared.start_open("south")?;
    within("processes", processes_are_apart(&shared, &north)).await?;
    within("processes", processes_are_apart(&shared, &south)).await?;
    within("topics", topics_are_apart(&north, &south)).await?;
    within("a deletion", a_deletion_is_of_one(&shared, &north, &south)).await?;

    // Nothing lies beside the two.
    let found = shared.etcd.ctl(&["get", "", "--prefix", "--keys-only"])?;
    let roots = [keys::root("north"), keys::root("south")];
    for root in &roots {
        ensure!(
            found.lines().any(|key| key.starts_with(root)),
            "{root} in {found}"
        );
    }
    let mut lines = found.lines().filter(|line| !line.is_empty());
    let other = lines.find(|key| !roots.iter().any(|root| key.starts_with(root)));
    ensure!(other.is_none(), "{other:?}");

    // One that ends takes nothing of the other along.
    north.stop().await?;
    within("processes", processes_are_apart(&shared, &south)).await?;
    ensure!(payloads(&south.client()?, TOPIC).await? == ["south", "more"]);
    south.stop().await
}

/// A cluster has its own bookie and broker, and no other.
async fn processes_are_apart(shared: &Shared, cluster: &Small) -> Result<()> {
    let bookies = shared.tool(cluster.name, &["bookie", "list"])?;
    let ids: Vec<&str> = bookies
        .iter()
        .filter_map(|one| one["bookie"].as_str())
        .collect();
    ensure!(ids == [cluster.bookie.field("id")?], "{bookies:?}");
    let client = cluster.client()?;
    let admin = client.admin();
    let bookies = admin.list_bookies(false).await?;
    let ids: Vec<&str> = bookies.iter().map(|one| one.bookie.as_str()).collect();
    ensure!(ids == [cluster.bookie.field("id")?], "{bookies:?}");
    let brokers = admin.list_brokers().await?;
    let ids: Vec<&str> = brokers.iter().map(|one| one.broker.as_str()).collect();
    ensure!(ids == [cluster.broker.field("id")?], "{brokers:?}");
    Ok(())
}

/// Tenants and topics of one are not there in the other, and topics of the same name are two.
async fn topics_are_apart(north: &Small, south: &Small) -> Result<()> {
    let (first, second) = (north.client()?, south.client()?);
    first.admin().create_tenant(TENANT).await?;
    publish(&first, ONLY, "north").await?;
    publish(&first, TOPIC, "north").await?;
    publish(&second, TOPIC, "south").await?;
    for (client, topics, has_tenant) in [
        (&first, &[TOPIC, ONLY][..], true),
        (&second, &[TOPIC][..], false),
    ] {
        let tenants = client.admin().list_tenants().await?;
        let found = tenants.iter().any(|tenant| tenant == TENANT);
        ensure!(found == has_tenant, "{tenants:?}");
        let listed = client.admin().list_topics("public/default").await?;
        let names: Vec<&str> = listed.iter().map(|one| one.topic.as_str()).collect();
        ensure!(names == topics, "{listed:?}");
    }
    ensure!(payloads(&first, TOPIC).await? == ["north"]);
    ensure!(payloads(&second, TOPIC).await? == ["south"]);
    Ok(())
}

/// A topic that is deleted in one, with its ledgers, stays in the other with all that it has.
async fn a_deletion_is_of_one(shared: &Shared, north: &Small, south: &Small) -> Result<()> {
    let (first, second) = (north.client()?, south.client()?);
    let of_topic = first.admin().list_topic_ledgers(TOPIC).await?;
    let of_topic: BTreeSet<u64> = of_topic.iter().map(|one| one.ledger.0).collect();
    let before = shared.ledgers("north")?;
    ensure!(!of_topic.is_empty() && of_topic.is_subset(&before));
    let kept = shared.ledgers("south")?;
    ensure!(!kept.is_empty());

    first.admin().delete_topic(TOPIC, true).await?;
    until("the ledgers of the topic are deleted", || async {
        let left = shared.ledgers("north")?;
        Ok(left.is_disjoint(&of_topic).then_some(()))
    })
    .await?;
    let listed = first.admin().list_topics("public/default").await?;
    let names: Vec<&str> = listed.iter().map(|one| one.topic.as_str()).collect();
    ensure!(names == [ONLY], "{listed:?}");

    // It is loaded again, from metadata and its bookie.
    second.admin().unload_topic(TOPIC).await?;
    ensure!(payloads(&second, TOPIC).await? == ["south"]);
    publish(&second, TOPIC, "more").await?;
    ensure!(payloads(&second, TOPIC).await? == ["south", "more"]);
    let now = shared.ledgers("south")?;
    ensure!(kept.is_subset(&now), "{kept:?} in {now:?}");
    shared.tool("south", &["ledger", "verify"])?;
    Ok(())
}

async fn publish(client: &Client, topic: &str, text: &str) -> Result<()> {
    let producer = client.producer(topic).open().await?;
    producer.send(Message::new(text.to_owned())).await?;
    Ok(producer.close().await?)
}

/// What is in a topic.
async fn payloads(client: &Client, topic: &str) -> Result<Vec<String>> {
    let log = within("reading the log", log::read(client, topic)).await?;
    let texts = log.into_iter().map(|one| String::from_utf8(one.payload));
    Ok(texts.collect::<Result<_, _>>()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_cluster_is_refused_by_the_other_on_the_same_etcd() -> Result<()> {
    let shared = Shared::start().await?;
    let north = shared.start_guarded("north")?;
    let south = shared.start_guarded("south")?;
    for (own, other) in [(&north, &south), (&south, &north)] {
        within("tokens", tokens_are_apart(&shared, own, other)).await?;
    }
    north.stop().await?;
    south.stop().await
}

/// Tokens of a cluster are accepted there, and are neither accepted nor listed in the other one.
async fn tokens_are_apart(shared: &Shared, own: &Small, other: &Small) -> Result<()> {
    let client = shared.client(own, shared.admin(own)?)?;
    let admin = client.security();
    // Both make one of this name.
    let made = admin.create_token("app", None, None).await?;
    let tokens = [
        (shared.admin(own)?, "token:admin"),
        (made.token.clone(), "token:app"),
    ];
    for (token, principal) in tokens {
        let here = shared.client(own, token.clone())?;
        let who = here.security().who_am_i().await?;
        ensure!(who.principal.as_deref() == Some(principal), "{who:?}");
        let there = shared.client(other, token)?;
        match there.security().who_am_i().await {
            Err(ClientError::Unauthenticated(_)) => {}
            answer => bail!(
                "{} of {} in {}: {answer:?}",
                principal,
                own.name,
                other.name
            ),
        }
    }
    let there = shared.client(other, shared.admin(other)?)?;
    let there = there.security().list_tokens(None).await?;
    ensure!(!there.is_empty(), "its administrator has a token");
    ensure!(there.iter().all(|token| token.id != made.info.id));
    let here = admin.list_tokens(None).await?;
    ensure!(here.iter().any(|token| token.id == made.info.id));
    Ok(())
}
