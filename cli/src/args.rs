//! The command line, declared. Names and meanings here are a contract:
//! scripts rely on them, so flags may be added but not renamed.

mod audit;
mod backup;
mod cluster;
mod connect;
mod object;
mod plan;
mod policy;
mod properties;
mod reimport;
mod roles;
mod security;
mod storage;
mod tenancy;
mod tls;
mod trace;

use std::env::consts::{ARCH, OS};
use std::path::PathBuf;
use std::sync::LazyLock;

use aquifer_model::place::Place;
use aquifer_model::topic::{
    ConsumerName, NamespaceName, ProducerName, SubscriptionName, TopicName,
};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::args::properties::key_value;

pub use audit::{AuditCommand, AuditSearch};
pub use backup::{BackupCommand, NewName, WhichBackup};
pub use cluster::{ClusterCommand, ClusterToolArgs};
pub use connect::ConnectArgs;
pub use object::{ObjectCommand, StoreArgs};
pub use plan::PlanArgs;
pub use policy::{
    BacklogPart, CountName, OffloadPart, PolicyCommand, PolicyValue, RateName, RatePart,
};
pub use reimport::ReimportArgs;
pub use roles::{
    AutorecoveryArgs, BookieArgs, BrokerArgs, ClusterArgs, DevArgs, DevChildArgs, OffloaderArgs,
    StandaloneArgs,
};
pub use security::{
    AccessCommand, CompletionArgs, ContextCommand, GrantCommand, RoleCommand, ScopeArgs,
    TokenCommand,
};
pub use storage::{
    BookieCommand, DoctorArgs, LedgerArgs, LedgerCommand, SourceArgs, StateArg, SupportBundleArgs,
};
pub use tenancy::{
    ClearArgs, DeleteArgs, NamespaceArgs, NamespaceCommand, PeekArgs, ShowArgs, SubscriptionArgs,
    SubscriptionCommand, TenantArgs, TenantCommand,
};
pub use tls::{TlsCommand, TlsInitArgs};
pub use trace::{TraceArgs, TraceToArgs};

/// Where a broker listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7650";

/// Aquifer: streams on the surface, deep storage below.
#[derive(Debug, Parser)]
#[command(name = "aquifer", version, long_version = LONG_VERSION.as_str())]
#[command(arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where brokers are, and who the caller is.
    #[command(flatten)]
    pub connect: ConnectArgs,

    /// How results are printed: for people, or as one JSON object (one a line for streams).
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `--version` prints behind the name; `-V` prints the number alone. Release builds get the
/// commit from `tools/notice.sh`.
pub static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("AQUIFER_COMMIT").unwrap_or("unknown");
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    format!("{version} (commit {commit}, {build} build, {OS} {ARCH})")
});

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 cannot connect, 4 timed out, \
                          5 refused (permission, quota, fenced)";

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in one process: broker, bookie and metadata, on one data directory.
    Standalone(StandaloneArgs),
    /// Run a bookie, which stores ledgers, as a part of a cluster; or list and decommission
    /// bookies.
    Bookie(Box<BookieArgs>),
    /// Run a broker, which serves topics, as a part of a cluster.
    Broker(BrokerArgs),
    /// Run a repair worker and a candidate for the auditor, beside or instead of those in bookies.
    Autorecovery(AutorecoveryArgs),
    /// Write closed ledgers into objects, for brokers that leave it to offloaders.
    Offloader(OffloaderArgs),
    /// Run a cluster on this machine: etcd, bookies and brokers as processes of their own.
    Dev(DevArgs),
    /// Become another program that ends with the process that started it.
    #[command(hide = true)]
    DevChild(DevChildArgs),
    /// Publish messages; ends when every one is stored durably.
    Produce(ProduceArgs),
    /// Receive the messages of a subscription and acknowledge them.
    Consume(ConsumeArgs),
    /// Read a topic without leaving a subscription behind.
    Read(ReadArgs),
    /// Create, list, inspect and delete topics.
    Topic(TopicArgs),
    /// Create, list, move and delete subscriptions.
    Subscription(SubscriptionArgs),
    /// Create and list tenants, which own namespaces.
    Tenant(TenantArgs),
    /// Create and list namespaces, show and change their policies: replication, retention and more.
    Namespace(NamespaceArgs),
    /// Show brokers and bundles of a running cluster, and move bundles between brokers.
    Cluster(ClusterToolArgs),
    /// Show, check, close and delete single ledgers.
    Ledger(LedgerArgs),
    /// Back topics up into the place of objects, and bring them back.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// List, inspect, check and read objects of offloaded ledgers, without a cluster.
    #[command(subcommand)]
    Object(ObjectCommand),
    /// Check everything and report what needs a person; exit code 1 when something does.
    Doctor(DoctorArgs),
    /// Collect what a support engineer needs, without secrets, in one file.
    SupportBundle(SupportBundleArgs),
    /// Compute how large a cluster must be for a load.
    Plan(PlanArgs),
    /// Make certificates for a cluster, and show what certificates say.
    #[command(subcommand)]
    Tls(TlsCommand),
    /// Make, list, rotate and revoke tokens, by which callers say who they are.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Give, list and take back grants, which say what a principal may do.
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Make, list, change and delete roles, which are names for what grants allow.
    #[command(subcommand)]
    Role(RoleCommand),
    /// Show, search and check the record of what was changed and refused.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Ask who you are and what is allowed.
    #[command(subcommand)]
    Access(AccessCommand),
    /// Keep addresses, TLS files and tokens of clusters under names.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Print what makes a shell complete commands and flags.
    Completion(CompletionArgs),
    /// Measure this machine and a running server.
    Perf(PerfArgs),
}

/// Arguments of `aquifer produce`.
#[derive(Debug, Args)]
pub struct ProduceArgs {
    /// The topic: NAME, TENANT/NAMESPACE/NAME or persistent://TENANT/NAMESPACE/NAME.
    pub topic: TopicName,

    /// The messages. Without any, and without --file, lines of standard input.
    #[arg(value_name = "MESSAGE")]
    pub messages: Vec<String>,

    /// Publish the lines of a file. With --producer-name the command may be repeated after a
    /// crash of either side: it stores the lines that are missing.
    #[arg(long, value_name = "PATH", conflicts_with = "messages")]
    pub file: Option<PathBuf>,

    /// Key of every message.
    #[arg(long, group = "key_source")]
    pub key: Option<String>,

    /// Lines are CSV with a header line; the key is this column.
    #[arg(long, value_name = "NAME", group = "key_source")]
    pub key_column: Option<String>,

    /// Lines are JSON; the key is what this JSON pointer finds, such as /user/id.
    #[arg(long, value_name = "/a/b", group = "key_source")]
    pub key_pointer: Option<String>,

    /// Name of the producer. With --file, the sequence id of a line is its number, and lines that
    /// the name has stored are not stored again; use one name per file. Otherwise the messages get
    /// the ids after the highest stored one, and a second run stores them again.
    #[arg(long, value_name = "NAME")]
    pub producer_name: Option<ProducerName>,

    /// Sequence id of the first line of --file: to store another file under the same name, behind
    /// what is there. Give the same again to resume. Default 0.
    #[arg(long, value_name = "ID", requires_all = ["file", "producer_name"])]
    pub sequence_from: Option<u64>,

    /// Resume without comparing the newest stored message with its line, for instance because
    /// retention has deleted it.
    #[arg(long, requires_all = ["file", "producer_name"])]
    pub no_check: bool,

    /// Which messages are traced.
    #[command(flatten)]
    pub trace: TraceArgs,

    /// A property of every message; may be given several times.
    #[arg(long = "property", value_name = "k=v", value_parser = key_value)]
    pub properties: Vec<(String, String)>,

    /// How batches are compressed.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub compression: CompressionArg,

    /// Maximum number of messages a second [default: unlimited].
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompressionArg {
    /// Not at all.
    None,
    /// LZ4: fast.
    Lz4,
    /// Zstandard: small.
    Zstd,
}

/// Arguments of `aquifer consume`.
#[derive(Debug, Args)]
pub struct ConsumeArgs {
    /// The topic.
    pub topic: TopicName,

    /// The subscription; created if it does not exist.
    #[arg(long, short, value_name = "S")]
    pub subscription: SubscriptionName,

    /// How its consumers share the messages.
    #[arg(long = "type", value_enum, default_value_t = SubscriptionTypeArg::Exclusive)]
    pub kind: SubscriptionTypeArg,

    /// Where a new subscription begins; times are `broker_time` of the JSON output.
    #[arg(long, default_value = "earliest", value_name = "PLACE")]
    pub from: Place,

    /// End after N messages.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,

    /// Wait for more at the end of the topic.
    #[arg(long)]
    pub follow: bool,

    /// Name of this consumer, for statistics.
    #[arg(long, value_name = "NAME")]
    pub consumer_name: Option<ConsumerName>,

    /// What to do with messages that cannot be read: report them on standard error, acknowledge
    /// them and go on, with exit code 1 in the end; or end, leaving them unacknowledged.
    #[arg(long, value_enum, default_value_t = OnDamageArg::Skip)]
    pub on_damage: OnDamageArg,

    /// Where spans of traced messages go.
    #[command(flatten)]
    pub trace: TraceToArgs,
}

/// What to do with messages that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnDamageArg {
    /// Report them and go on behind them.
    Skip,
    /// End.
    Stop,
}

/// How the consumers of a subscription share its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SubscriptionTypeArg {
    /// One consumer.
    Exclusive,
    /// Each message to one of many.
    Shared,
    /// One consumer, others stand by.
    Failover,
    /// Each key to one of many.
    KeyShared,
}

/// Arguments of `aquifer read`.
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// The topic.
    pub topic: TopicName,

    /// Where to begin: earliest, latest, an index, a position L:E, a time or @milliseconds. Times
    /// are those at which the broker took messages: `broker_time` of the JSON output.
    #[arg(long, default_value = "earliest", value_name = "PLACE")]
    pub from: Place,

    /// End after N messages.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,

    /// Wait for more at the end of the topic.
    #[arg(long)]
    pub follow: bool,

    /// What to do with messages that cannot be read: report them on standard error and go on, with
    /// exit code 1 in the end; or end.
    #[arg(long, value_enum, default_value_t = OnDamageArg::Skip)]
    pub on_damage: OnDamageArg,
}

/// Arguments of `aquifer topic`.
#[derive(Debug, Args)]
pub struct TopicArgs {
    /// What to do with topics.
    #[command(subcommand)]
    pub command: TopicCommand,
}

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic.
    Create {
        /// The topic.
        topic: TopicName,
        /// Number of partitions; 0 makes a topic that is not partitioned.
        #[arg(long, default_value_t = 0, value_name = "N")]
        partitions: u32,
    },
    /// List the topics of a namespace.
    List {
        /// The namespace: TENANT/NAMESPACE.
        #[arg(default_value = "public/default")]
        namespace: NamespaceName,
    },
    /// Show what a topic holds, its producers and subscriptions, and their backlog.
    Stats {
        /// The topic.
        topic: TopicName,
    },
    /// Write closed ledgers of a topic into objects; the cluster needs a place for them
    /// (--cold-store).
    Offload {
        /// The topic, or a partition.
        topic: TopicName,
        /// Only ledgers that end at or before this place.
        #[arg(long, default_value = "latest", value_name = "PLACE")]
        before: Place,
        /// Wait until they are all offloaded.
        #[arg(long)]
        wait: bool,
    },
    /// Bring ledgers of a topic back to bookies that only objects have; the objects stay.
    Reimport(ReimportArgs),
    /// Give a partitioned topic more partitions. Brokers refuse that: it is not built yet.
    Grow {
        /// The topic.
        topic: TopicName,
        /// How many it is to have.
        #[arg(long, value_name = "N")]
        partitions: u32,
    },
    /// Close a topic where it is served; its clients reconnect, and it is loaded again.
    Unload {
        /// The topic, or a partition.
        topic: TopicName,
    },
    /// Let a topic take no more messages, for good; consumers read to its end and are told so.
    Terminate {
        /// The topic, or a partition.
        topic: TopicName,
    },
    /// Read and change the policies of a topic; its partitions have them too.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Delete a topic with its subscriptions and data.
    Delete {
        /// The topic.
        topic: TopicName,
        /// Delete it although producers or consumers are connected.
        #[arg(long)]
        force: bool,
        /// Say what it holds and whether it is used, and delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Arguments of `aquifer perf`.
#[derive(Debug, Args)]
pub struct PerfArgs {
    /// What to measure.
    #[command(subcommand)]
    pub command: PerfCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum PerfCommand {
    /// Calibrate the disk: write and fdatasync into a pre-zeroed file at 4 KiB, 64 KiB and 1 MiB.
    Disk {
        /// The directory whose disk is measured.
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
        /// Seconds for each size.
        #[arg(long, default_value_t = 2.0, value_name = "S")]
        seconds: f64,
    },
    /// Publish as fast as possible, or at a rate.
    Produce(PublishLoadArgs),
    /// Consume a backlog, or what is published.
    Consume(LoadArgs),
    /// Publish and consume, and measure the time between; each consumer receives everything.
    E2e(LoadArgs),
}

/// Arguments of `aquifer perf produce`.
#[derive(Debug, Clone, Args)]
pub struct PublishLoadArgs {
    /// What is sent.
    #[command(flatten)]
    pub load: LoadArgs,

    /// Publish to N topics at once, T-0 to T-(N-1), each with --producers producers.
    #[arg(long, value_name = "N")]
    pub topics: Option<usize>,
}

/// The load of a measurement.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// The topic; without it one is created, and deleted at the end.
    #[arg(long, value_name = "T")]
    pub topic: Option<TopicName>,

    /// Bytes of each message.
    #[arg(long, default_value_t = 1024, value_name = "BYTES")]
    pub size: usize,

    /// Number of messages.
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub count: Option<u64>,

    /// Duration in seconds [default: 10, unless --count is given].
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,

    /// Maximum number of unacknowledged messages of one producer.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub window: usize,

    /// Messages a second of all producers together [default: unlimited].
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,

    /// Number of producers.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub producers: usize,

    /// Number of consumers.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub consumers: usize,

    /// How batches are compressed.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    pub compression: CompressionArg,

    /// Which messages are traced.
    #[command(flatten)]
    pub trace: TraceArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_long_version_names_commit_and_build() {
        let (command, version) = (Cli::command(), env!("CARGO_PKG_VERSION"));
        assert_eq!(command.render_version(), format!("aquifer {version}\n"));
        let long = command.render_long_version();
        let begin = format!("aquifer {version} (commit ");
        let end = format!(" build, {OS} {ARCH})\n");
        assert!(long.starts_with(&begin) && long.ends_with(&end), "{long}");
    }

    fn parses(line: &str) {
        let words = std::iter::once("aquifer").chain(line.split(' '));
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{line}: {error}");
        }
    }

    #[test]
    fn the_contract_of_the_command_line_parses() {
        for line in [
            "standalone --data-dir d --grpc-addr 127.0.0.1:0 --http-addr localhost:0",
            "standalone --bookie-addr [::1]:0 --allow-remote --accept-loss --config f --check-config",
            "bookie --data-dir d --bookie-addr 127.0.0.1:0 --advertise b1.example:7651 --zone a",
            "bookie --metadata etcd://a:2379,b:2379 --cluster c --capacity 1000 --accept-loss",
            "broker --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --advertise http://b:7650",
            "broker --metadata etcd://a:2379 --cluster c --quorum 3,3,2",
            "broker --listener outside=0.0.0.0:7660 --advertise b:1 --advertise outside=http://b.example:1",
            "dev --bookies 5 --brokers 1 --data-dir d --supervise --output json",
            "produce t hello world --key k --property a=b --producer-name p",
            "produce public/default/t --file lines --key-column tailnum",
            "produce persistent://public/default/t --key-pointer /a/b",
            "consume t --subscription s --type key-shared --from latest --count 3 --follow",
            "read t --from 7:3 --follow --url http://a:1,http://b:2 --output json",
            "read t --from 2026-01-31T12:00:00Z --on-damage stop",
            "--output json topic create t --partitions 4",
            "topic list",
            "topic stats t",
            "topic delete t --force",
            "topic offload t --before 2026-01-31T12:00:00Z --wait",
            "topic reimport t --from 42 --to 4711 --wait",
            "topic reimport t --cancel",
            "object list s3://bucket/prefix --endpoint http://h:1 --allow-http",
            "object inspect file:///d/a.aqo",
            "object verify file:///d/a.aqo",
            "object cat file:///d/a.aqo --from 7 --count 2",
            "subscription create t s --from latest",
            "subscription list t",
            "subscription seek t s @1769860800000",
            "subscription delete t s --force",
        ] {
            parses(line);
        }
    }

    #[test]
    fn the_contract_of_the_operators_command_line_parses() {
        for line in [
            "backup create s3://bucket/prefix --tenant acme",
            "backup create s3://bucket/prefix --topic t",
            "backup list file:///d",
            "backup show file:///d --cluster c",
            "backup verify file:///d --deep",
            "backup expire s3://bucket/prefix --keep 7",
            "backup restore file:///d --tenant acme --topic t --dry-run --trim-after 0s",
            "backup restore file:///d --at 2026-01-31T12:00:00Z --tenant acme --as globex",
            "backup show file:///d --at 2026-01-31T12:00:00",
            "tenant create acme",
            "tenant list",
            "namespace create acme/shop --policy persistence=3,3,2 --policy retention.time=forever",
            "namespace list acme",
            "namespace show",
            "namespace policy set acme/shop retention.size=10GiB rollover.age=1h deduplication=off",
            "tenant policy get acme --effective --output json",
            "topic policy unset acme/shop/orders retention rollover --if-version 7",
            "bookie list --data-dir d",
            "bookie list --metadata etcd://a:2379,b:2379 --cluster c",
            "bookie cookie 000102030405060708090a0b0c0d0e0f",
            "bookie decommission 000102030405060708090a0b0c0d0e0f --repair-here",
            "bookie decommission 000102030405060708090a0b0c0d0e0f --undo --output json",
            "ledger list --state in-recovery --count 3",
            "ledger list --bookie 000102030405060708090a0b0c0d0e0f",
            "ledger inspect 7",
            "ledger recover 7 --data-dir d",
            "ledger delete 7 --force",
            "ledger verify 7 8 --mark --rate 1000",
            "doctor --data-dir d",
            "perf disk",
            "perf produce --topic t --size 10 --count 5 --window 7 --rate 100 --producers 2",
            "perf consume --seconds 3 --consumers 2",
            "perf e2e",
            "cluster init-auth --metadata etcd://a:2379 --cluster c --to-file admin.token",
            "dev --auth",
            "perf produce --topics 1000 --topic t --window 10",
            "token create billing --tenant acme --expires 90d --to-file billing.token",
            "token list --tenant acme --token-file admin.token",
            "token inspect billing.token",
            "token rotate k3v --grace 1h --to-file billing.token",
            "token revoke k3v --context prod",
            "grant add token:acme/billing consumer --topic acme/shop/orders* --subscription b*",
            "grant add jwt:idp:alice --actions describe,produce --namespace acme/shop --expires 30d",
            "grant list --tenant acme --principal token:acme/billing --output json",
            "grant remove 7f2 --tenant acme",
            "access check token:acme/billing consume acme/shop/orders-eu --subscription audit",
            "access whoami --token aqf_x",
            "context set prod --url https://b:7650 --token-file t --tls-ca-file ca.pem",
            "context use prod",
            "completion bash",
        ] {
            parses(line);
        }
    }

    #[test]
    fn bad_names_and_contradictions_are_usage_errors() {
        for line in [
            "standalone --grpc-addr nowhere",
            "broker --quorum 2,3,2",
            "broker --quorum 3",
            "bookie --metadata etcd://a:1 --metadata-password secret",
            "produce ../t m",
            "produce t m --file x",
            "produce t --key a --key-column b",
            "produce t m --property novalue",
            "consume t",
            "read t --from nowhere",
            "read t --timeout 0s",
            "topic list --timeout soon",
            "perf produce --count 1 --seconds 1",
            "namespace create acme",
            "namespace create acme/shop --policy rollover.entries=0",
            "namespace policy set acme/shop",
            "namespace policy unset acme/shop quotas",
            "tenant create a/b",
            "namespace policy set acme/shop retention.size=10GB",
            "subscription seek t s nowhere",
            "bookie decommission short",
            "bookie decommission 000102030405060708090a0b0c0d0e0f --undo --no-wait",
            "ledger inspect -1",
            "grant add token:x",
            "grant add token:x producer --actions consume",
            "grant add token:x producer --tenant a --topic a/b/c",
            "grant add token:x producer --topic a/b",
            "access check token:x produce a/b/c/d",
            "token create x --expires soon",
            "topic list --token a --token-file b",
            "completion tcsh",
            "doctor --data-dir d --metadata etcd://a:1",
        ] {
            let words = std::iter::once("aquifer").chain(line.split(' '));
            let error = Cli::try_parse_from(words).map(|_| ()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    /// Leaves of the tree of commands; policies have the same ones at each level.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
        let mut subcommands = visible.filter(|c| c.get_name() != "policy").peekable();
        if subcommands.peek().is_none() {
            found.push(path.to_owned());
        }
        for subcommand in subcommands {
            let path = format!("{path} {}", subcommand.get_name());
            leaves(subcommand, &path, found);
        }
    }

    #[test]
    fn every_command_is_in_the_reference() {
        let page = include_str!("../../docs/cli.md");
        let mut commands = Vec::new();
        leaves(&Cli::command(), "aquifer", &mut commands);
        assert!(commands.len() > 30, "{commands:?}");
        for command in commands {
            assert!(page.contains(&format!("`{command}")), "{command}");
        }
    }
}
