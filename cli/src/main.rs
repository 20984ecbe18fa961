//! The binary `aquifer`: every role of a node and the tools of its users.
//!
//! This file only parses arguments and starts what they name. `roles/` wires the parts of a server
//! together, `commands/` are programs against the client SDK; neither contains behaviour of the
//! messaging system itself.

mod args;
mod certificates;
mod commands;
mod connect;
mod contexts;
mod exit;
mod first_token;
mod output;
mod perf;
mod private_file;
mod probe;
mod roles;
mod tool;
mod traced;

use std::process::ExitCode;
use std::time::Duration;

use aquifer_runtime::clock::{Clock, SystemClock};
use aquifer_runtime::net::tls::install_provider;
use clap::Parser;

use crate::args::{Cli, Command};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;

/// Memory that was freed goes back to the system within five seconds (see `.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Threads that run tasks. Two saturate a disk; the journal and RocksDB have their own.
const WORKER_THREADS: usize = 2;
/// How long threads that have used RocksDB may take to end before the process does: what they have
/// of it is destroyed with locks that do not outlive `main`.
const THREADS_END: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let began = SystemClock.monotonic();
    install_provider();
    let cli = Cli::parse();
    let out = Output::new(cli.output);
    let result = run(cli, began, &out).and_then(|()| out.flush());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What was already produced is shown before the error is.
            let _ = out.flush();
            out.error(&error);
            error.exit().into()
        }
    }
}

fn run(cli: Cli, began: Duration, out: &Output) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("aquifer-worker")
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start the runtime: {error}")))?;
    if cli.connect.token.is_some() {
        out.note("warning: --token shows in the list of processes: use --token-file");
    }
    let connect = Connect::new(cli.connect);
    let has_storage = matches!(
        cli.command,
        Command::Standalone(_)
            | Command::Bookie(_)
            | Command::Ledger(_)
            | Command::Doctor(_)
            | Command::SupportBundle(_)
    );
    let result = runtime.block_on(dispatch(cli.command, &connect, began, out));
    if has_storage {
        runtime.shutdown_timeout(THREADS_END);
    } else {
        // A thread that is blocked on a terminal must not keep the process from ending.
        runtime.shutdown_background();
    }
    result
}

/// Runs what a command names.
async fn dispatch(
    command: Command,
    connect: &Connect,
    began: Duration,
    out: &Output,
) -> Result<(), CliError> {
    match command {
        Command::Standalone(args) => roles::standalone::run(args, began, out).await,
        Command::Bookie(mut args) => match args.command.take() {
            Some(command) => commands::bookie::run(command, out).await,
            None => roles::bookie::run(*args, began, out).await,
        },
        Command::Broker(args) => roles::broker::run(args, began, out).await,
        Command::Autorecovery(args) => roles::autorecovery::run(args, began, out).await,
        Command::Offloader(args) => roles::offloader::run(args, began, out).await,
        Command::Dev(args) => roles::dev::run(args, began, out).await,
        Command::DevChild(args) => roles::dev::child::run(args),
        Command::Produce(args) => commands::produce::run(args, connect, out).await,
        Command::Consume(args) => commands::consume::run(args, connect, out).await,
        Command::Read(args) => commands::read::run(args, connect, out).await,
        Command::Topic(args) => commands::topic::run(args, connect, out).await,
        Command::Subscription(args) => commands::subscription::run(args, connect, out).await,
        Command::Tenant(args) => commands::tenancy::tenant(args, connect, out).await,
        Command::Namespace(args) => commands::tenancy::namespace(args, connect, out).await,
        Command::Cluster(args) => commands::cluster::run(args, connect, out).await,
        Command::Ledger(args) => commands::ledger::run(args, out).await,
        Command::Backup(command) => commands::backup::run(command, connect, out).await,
        Command::Object(command) => commands::object::run(command, out).await,
        Command::Doctor(args) => commands::doctor::run(args, connect, out).await,
        Command::SupportBundle(args) => commands::support_bundle::run(args, connect, out).await,
        Command::Plan(args) => commands::plan::run(&args, out),
        Command::Tls(command) => commands::tls::run(command, out),
        Command::Token(command) => commands::token::run(command, connect, out).await,
        Command::Role(command) => commands::role::run(command, connect, out).await,
        Command::Grant(command) => commands::security::grant(command, connect, out).await,
        Command::Audit(command) => commands::audit::run(command, connect, out).await,
        Command::Access(command) => commands::security::access(command, connect, out).await,
        Command::Context(command) => commands::context::run(command, connect, out),
        Command::Completion(args) => commands::completion::run(&args, out),
        Command::Perf(args) => commands::perf::run(args, connect, out).await,
    }
}
