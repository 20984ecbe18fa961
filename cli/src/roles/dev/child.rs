//! The way from this program to a child of `aquifer dev`: a short life as `aquifer dev-child`,
//! which asks the kernel to be killed when its parent dies, and then becomes the child's program.
//! So the children need to know nothing of it, etcd among them, and a cluster whose `aquifer dev`
//! was killed leaves nothing behind.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::args::DevChildArgs;
use crate::exit::CliError;

/// Becomes the program. It returns only when that fails.
///
/// # Errors
/// When the parent is gone already, or the program cannot be started.
pub fn run(args: DevChildArgs) -> Result<(), CliError> {
    // Everything that is acknowledged is synced, so the hardest signal is good enough, and the
    // only one that leaves no doubt.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| CliError::failed(format!("cannot follow the parent process: {error}")))?;
    // It may have died before the request.
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(args.parent) {
        return Err(CliError::failed(
            "the process that started this one has ended",
        ));
    }
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(CliError::usage("no program is given"));
    };
    let error = Command::new(program).args(arguments).exec();
    let program = program.to_string_lossy();
    Err(CliError::failed(format!("cannot start {program}: {error}")))
}
