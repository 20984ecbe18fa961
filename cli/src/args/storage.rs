//! Arguments of the tools for operators: bookies, ledgers, and the doctor.

use std::path::PathBuf;

use aquifer_model::id::{BookieId, LedgerId};
use clap::{Args, Subcommand, ValueEnum};

/// What a tool examines.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// The metadata store of a cluster: etcd://HOST:PORT[,HOST:PORT…], or etcds:// for TLS.
    /// AQUIFER_METADATA; user, password and TLS files are in the section `etcd` of the
    /// configuration, as for servers.
    #[arg(long, global = true, value_name = "URL", conflicts_with = "data_dir")]
    pub metadata: Option<String>,

    /// The name of the cluster [default: aquifer].
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,

    /// The data directory of a standalone server that is stopped, where no cluster is named
    /// [default: ./aquifer-data].
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// The configuration file of a server of the cluster, or of the standalone server.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What to do with bookies.
#[derive(Debug, Subcommand)]
pub enum BookieCommand {
    /// List bookies: those that are announced, and absent ones that ledgers name.
    List {
        /// What to examine.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Show the permanent record of a bookie's identity.
    Cookie {
        /// The bookie.
        bookie: BookieId,
        /// What to examine.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Move everything off a bookie, then remove it for good.
    Decommission {
        /// The bookie.
        bookie: BookieId,
        /// Return at once: the cluster's repair workers move its ledgers. Call again to finish.
        #[arg(long, conflicts_with_all = ["repair_here", "undo"])]
        no_wait: bool,
        /// Copy in this process too, instead of leaving it to the bookies' repair workers.
        #[arg(long, conflicts_with = "undo")]
        repair_here: bool,
        /// Begin although some of its ledgers have no bookie to go to yet.
        #[arg(long, conflicts_with = "undo")]
        force: bool,
        /// Continue when the bookie is away and no other has some of its entries: give these up.
        #[arg(long, conflicts_with_all = ["no_wait", "undo"])]
        accept_loss: bool,
        /// Take it back: the bookie may hold ledgers again.
        #[arg(long)]
        undo: bool,
        /// What to examine.
        #[command(flatten)]
        source: SourceArgs,
    },
}

impl BookieCommand {
    /// What it examines.
    pub fn source(&self) -> &SourceArgs {
        match self {
            BookieCommand::List { source }
            | BookieCommand::Cookie { source, .. }
            | BookieCommand::Decommission { source, .. } => source,
        }
    }
}

/// Arguments of `aquifer ledger`.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// What to examine.
    #[command(flatten)]
    pub source: SourceArgs,
    /// What to do with ledgers.
    #[command(subcommand)]
    pub command: LedgerCommand,
}

/// States of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    /// It has a writer.
    Open,
    /// It is being closed.
    InRecovery,
    /// It never changes again.
    Closed,
}

/// What to do with ledgers.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// List ledgers in order of their ids.
    List {
        /// Only those in this state.
        #[arg(long, value_enum)]
        state: Option<StateArg>,
        /// Only those that name this bookie.
        #[arg(long, value_name = "ID")]
        bookie: Option<BookieId>,
        /// End after N ledgers.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Show the record of a ledger and where its entries are.
    Inspect {
        /// The ledger.
        #[arg(value_parser = ledger_id)]
        ledger: LedgerId,
    },
    /// Read the entries of a ledger, also of one that is still written, as far as they are
    /// confirmed.
    Read {
        /// The ledger.
        #[arg(value_parser = ledger_id)]
        ledger: LedgerId,
        /// First entry.
        #[arg(long, value_name = "ENTRY", default_value_t = 0)]
        from: u64,
        /// End after N entries.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// Wait for more, until the ledger is closed.
        #[arg(long)]
        follow: bool,
    },
    /// Close a ledger whose writer is gone. A writer that is still there is fenced.
    Recover {
        /// The ledger.
        #[arg(value_parser = ledger_id)]
        ledger: LedgerId,
    },
    /// Delete a ledger from all its bookies.
    Delete {
        /// The ledger.
        #[arg(value_parser = ledger_id)]
        ledger: LedgerId,
        /// Delete it although a topic refers to it: that topic loses these messages.
        #[arg(long)]
        force: bool,
    },
    /// Read every replica of every entry; exit code 1 when one is missing or damaged.
    Verify {
        /// The ledgers; all without any.
        #[arg(value_parser = ledger_id)]
        ledgers: Vec<LedgerId>,
        /// Mark ledgers that lack copies, so that they are repaired.
        #[arg(long)]
        mark: bool,
        /// Maximum number of bytes read a second.
        #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
        rate: u64,
    },
}

/// Arguments of `aquifer doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// What to examine.
    #[command(flatten)]
    pub source: SourceArgs,

    /// Fail on warnings too: before an upgrade nothing may be missing.
    #[arg(long)]
    pub strict: bool,

    /// HTTP ports of processes to look at too, for clocks, certificates and backlogs: those of
    /// health checks and metrics.
    #[arg(long, value_delimiter = ',', value_name = "URL[,URL…]")]
    pub http: Vec<String>,
}

/// Arguments of `aquifer support-bundle`.
#[derive(Debug, Args)]
pub struct SupportBundleArgs {
    /// The cluster, and with --config whose settings are collected.
    #[command(flatten)]
    pub source: SourceArgs,

    /// The new file [default: aquifer-support-TIME.tar.gz].
    #[arg(long, value_name = "PATH")]
    pub to_file: Option<PathBuf>,

    /// HTTP ports of processes, whose health and metrics are collected.
    #[arg(long, value_delimiter = ',', value_name = "URL[,URL…]")]
    pub http: Vec<String>,

    /// A directory with logs, the ends of which are collected.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
}

fn ledger_id(text: &str) -> Result<LedgerId, String> {
    let id: Result<u64, _> = text.parse();
    id.map(LedgerId)
        .map_err(|_| "a ledger is named by its number".to_owned())
}
