//! `aquifer perf`.

use crate::args::PerfArgs;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;

/// Runs the command.
pub async fn run(args: PerfArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    tracing::debug!(?args, ?connect, json = out.is_json(), "not built");
    Err(CliError::failed("this command is not built yet"))
}
