//! Arguments of `aquifer tls`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::roles::settings::DEFAULT_CLUSTER;

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Make an authority and, signed by it, certificates for servers, for the processes of a
    /// cluster and for users. What exists stays as it is, so that the command may be repeated to
    /// add some.
    Init(TlsInitArgs),
    /// Show what the certificates of files say.
    Show {
        /// Files with certificates (PEM).
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Arguments of `aquifer tls init`.
#[derive(Debug, Args)]
pub struct TlsInitArgs {
    /// Where certificates and keys go; keys can be read by their owner alone.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// The cluster whose processes are certified.
    #[arg(long, env = "AQUIFER_CLUSTER", default_value = DEFAULT_CLUSTER)]
    pub cluster: String,

    /// Host names and addresses at which servers are reached, besides localhost.
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,

    /// Users to make a certificate for.
    #[arg(long = "user", value_name = "NAME")]
    pub users: Vec<String>,

    /// How long certificates are valid, in days; the authority is for ten times as long.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub days: u32,

    /// Make all certificates again, with the same authority.
    #[arg(long)]
    pub renew: bool,
}
