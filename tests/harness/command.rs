//! Tools of the system, run to their end.

use std::io;
use std::process::Command;

use anyhow::{Result, ensure};

/// Runs a command and returns what it printed.
///
/// # Errors
/// When it is missing or fails, with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(missing(&program))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Why a program cannot be started, and what to do about it.
pub fn missing(program: &str) -> impl Fn(io::Error) -> anyhow::Error {
    let program = program.to_owned();
    move |error| {
        anyhow::anyhow!("{program} cannot be run ({error}): tools/prerequisites.sh installs it")
    }
}
