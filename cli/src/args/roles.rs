//! The command line of servers.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use aquifer_model::listener::ListenerName;
use aquifer_model::quorum::Quorum;
use aquifer_runtime::net::ListenAddress;
use clap::Args;

use crate::args::storage::BookieCommand;

/// Arguments of `aquifer standalone`.
#[derive(Debug, Args)]
pub struct StandaloneArgs {
    /// Directory of all data; created if it does not exist [default: ./aquifer-data].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Address of the native gRPC API [default: 127.0.0.1:7650]; port 0 takes a free one.
    #[arg(long, value_name = "A:P")]
    pub grpc_addr: Option<ListenAddress>,

    /// Address of health checks, metrics and REST [default: 127.0.0.1:7680]; port 0 takes a free
    /// one.
    #[arg(long, value_name = "A:P")]
    pub http_addr: Option<ListenAddress>,

    /// Address of the bookie's storage API [default: 127.0.0.1:7651]; port 0 takes a free one.
    #[arg(long, value_name = "A:P")]
    pub bookie_addr: Option<ListenAddress>,

    /// Listen on addresses that other machines can reach, although clients are not authenticated.
    #[arg(long)]
    pub allow_remote: bool,

    /// Authenticate clients: they need tokens and grants. The first start writes the token of an
    /// administrator to DIR/admin.token.
    #[arg(long)]
    pub auth: bool,

    /// Give up data that is lost: ends limbo, sets damaged files aside, and prints what is missing.
    #[arg(long)]
    pub accept_loss: bool,

    /// Where closed ledgers are offloaded to: file:///DIRECTORY, s3://BUCKET/PREFIX,
    /// gs://BUCKET/PREFIX or az://CONTAINER/PREFIX [default: DIR/cold].
    #[arg(long, value_name = "URL")]
    pub cold_store: Option<String>,

    /// Configuration file (TOML). Environment variables AQUIFER_SECTION_KEY and flags go over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the configuration, print it and exit; unknown keys are errors.
    #[arg(long)]
    pub check_config: bool,
}

/// Arguments of every process of a cluster. User names and passwords are not among them: the
/// arguments of a process are not secret.
#[derive(Debug, Clone, Default, Args)]
pub struct ClusterArgs {
    /// The metadata store: etcd://HOST:PORT[,HOST:PORT…], or etcds:// for TLS. AQUIFER_METADATA;
    /// user, password and TLS files are in the section `etcd` [default: etcd://127.0.0.1:2379].
    #[arg(long, value_name = "URL")]
    pub metadata: Option<String>,

    /// Name of the cluster [default: aquifer].
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,

    /// How long a start waits for a metadata store that does not answer [default: 0s: it ends with
    /// exit code 3].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wait_for_metadata: Option<Duration>,

    /// Listen on addresses that other machines can reach, although clients are not authenticated.
    #[arg(long)]
    pub allow_remote: bool,

    /// Configuration file (TOML). Environment variables AQUIFER_SECTION_KEY and flags go over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Check the configuration, print it and exit; unknown keys are errors.
    #[arg(long)]
    pub check_config: bool,
}

/// Arguments of `aquifer bookie`.
#[derive(Debug, Default, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BookieArgs {
    /// Instead of running a bookie: what to do with the bookies of a cluster.
    #[command(subcommand)]
    pub command: Option<BookieCommand>,

    /// Directory of ledgers; created if it does not exist [default: ./aquifer-bookie].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Address of the storage API [default: 127.0.0.1:7651]; port 0 takes a free one.
    #[arg(long, value_name = "A:P")]
    pub bookie_addr: Option<ListenAddress>,

    /// Address that others connect to, where that is not the address it listens on.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,

    /// Address of health checks and metrics [default: 127.0.0.1:7681]; port 0 takes a free one.
    #[arg(long, value_name = "A:P")]
    pub http_addr: Option<ListenAddress>,

    /// Its failure domain: copies of an entry are spread over zones.
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,

    /// Maximum free space that it announces [default: what the disk has].
    #[arg(long, value_name = "BYTES")]
    pub capacity: Option<u64>,

    /// Give up data that is lost: ends limbo, sets damaged files aside, and prints what is missing.
    #[arg(long)]
    pub accept_loss: bool,

    /// Do not repair the cluster's ledgers: other bookies or `aquifer autorecovery` do.
    #[arg(long)]
    pub no_autorecovery: bool,

    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `aquifer broker`.
#[derive(Debug, Default, Args)]
pub struct BrokerArgs {
    /// Address of the native gRPC API [default: 127.0.0.1:7650]; port 0 takes a free one.
    #[arg(long, value_name = "A:P")]
    pub grpc_addr: Option<ListenAddress>,

    /// Address of health checks, metrics and REST [default: 127.0.0.1:7680]; port 0 takes a free
    /// one.
    #[arg(long, value_name = "A:P")]
    pub http_addr: Option<ListenAddress>,

    /// Address that clients and other brokers connect to, where that is not the address it listens
    /// on; NAME=URL for that of a further listener.
    #[arg(long, value_name = "[NAME=]URL")]
    pub advertise: Vec<String>,

    /// Authenticate clients: they need tokens and grants. Brokers know each other by the
    /// certificates of `internal_tls`.
    #[arg(long)]
    pub auth: bool,

    /// Address of a further listener of the native gRPC API, for a network that reaches the broker
    /// in a way of its own; its clients are redirected to the same listener of other brokers.
    #[arg(long = "listener", value_name = "NAME=A:P", value_parser = listener)]
    pub listeners: Vec<(ListenerName, ListenAddress)>,

    /// Bookies of a ledger, copies of an entry, and copies that an acknowledgement waits for,
    /// where no policy sets them [default: 3,3,2].
    #[arg(long, value_name = "E,Qw,Qa", value_parser = quorum)]
    pub quorum: Option<Quorum>,

    /// Zones that the copies of every entry must be in [default: as many as there are, if
    /// possible].
    #[arg(long, value_name = "N")]
    pub zones_min: Option<usize>,

    /// Where closed ledgers are offloaded to: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX,
    /// az://CONTAINER/PREFIX or file:///DIRECTORY [default: nowhere].
    #[arg(long, value_name = "URL")]
    pub cold_store: Option<String>,

    /// How long a failed bookie is waited for while the others form ack quorums [default: 0s].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub ensemble_change_delay: Option<Duration>,

    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `aquifer autorecovery`.
#[derive(Debug, Default, Args)]
pub struct AutorecoveryArgs {
    /// Address of health checks and metrics [default: 127.0.0.1:7682]; port 0 takes a free one.
    #[arg(long, value_name = "A:P")]
    pub http_addr: Option<ListenAddress>,

    /// Bytes a second that all repair of the cluster may read together [default: 32 MiB]; give
    /// every process that repairs the same value.
    #[arg(long, value_name = "BYTES")]
    pub repair_rate: Option<u64>,

    /// How long a bookie may be away before its ledgers are copied to others [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub lost_after: Option<Duration>,

    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `aquifer offloader`.
#[derive(Debug, Default, Args)]
pub struct OffloaderArgs {
    /// Address of health checks and metrics [default: 127.0.0.1:7683]; port 0 takes a free one.
    #[arg(long, value_name = "A:P")]
    pub http_addr: Option<ListenAddress>,

    /// Where closed ledgers are offloaded to: what the brokers have as --cold-store.
    #[arg(long, value_name = "URL")]
    pub cold_store: Option<String>,

    /// Ledgers that it offloads at once, each with up to 64 MiB of memory [default: 2].
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Arguments of `aquifer dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// How many bookies.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub bookies: u16,

    /// How many brokers.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub brokers: u16,

    /// Where everything is stored; data of an earlier run is used again.
    #[arg(long, value_name = "DIR", default_value = "aquifer-dev")]
    pub data_dir: PathBuf,

    /// Address of the first broker; port 0 takes a free one. Everything else is on free ports.
    #[arg(long, value_name = "A:P", default_value = "127.0.0.1:7650")]
    pub grpc_addr: ListenAddress,

    /// Restart processes that die.
    #[arg(long)]
    pub supervise: bool,

    /// Use TLS between clients, brokers and bookies, with certificates that are made in DIR/tls.
    #[arg(long)]
    pub tls: bool,

    /// Demand tokens of callers, with TLS. The administrator's is written to DIR/admin.token.
    #[arg(long)]
    pub auth: bool,
}

/// Arguments of `aquifer dev-child`.
#[derive(Debug, Args)]
pub struct DevChildArgs {
    /// The process that must live.
    pub parent: i32,

    /// The program with its arguments.
    #[arg(required = true, last = true)]
    pub command: Vec<OsString>,
}

/// A listener by its name.
fn listener(text: &str) -> Result<(ListenerName, ListenAddress), String> {
    let (name, address) = text
        .split_once('=')
        .ok_or_else(|| "a listener is NAME=ADDRESS:PORT".to_owned())?;
    let name = name.parse::<ListenerName>();
    let address = address.parse::<ListenAddress>();
    Ok((
        name.map_err(|error| error.to_string())?,
        address.map_err(|error| error.to_string())?,
    ))
}

/// Three numbers that make a quorum.
pub(super) fn quorum(text: &str) -> Result<Quorum, String> {
    let numbers: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
    match numbers.as_deref() {
        Ok([ensemble, write, ack]) => {
            Quorum::new(*ensemble, *write, *ack).map_err(|error| error.to_string())
        }
        _ => Err("a quorum is three numbers, E,Qw,Qa".to_owned()),
    }
}
