//! Tools of the system, run to their end.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_runtime::task::spawn_thread;

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

/// How long a process may take to print its first line; generous, because CI machines stall.
const FIRST_LINE: Duration = Duration::from_mins(2);

/// The first line that a process prints to its piped output.
///
/// # Errors
/// When its output is not piped, cannot be read, or has no line within two minutes.
pub fn first_line(child: &mut Child) -> Result<String> {
    let stdout = child.stdout.take().context("stdout is piped")?;
    let (sender, receiver) = mpsc::sync_channel(1);
    spawn_thread("first-line", move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // A caller that does not wait any more does not need it.
        let _ = sender.send(read.map(|_| line));
    })?;
    let line = receiver.recv_timeout(FIRST_LINE);
    Ok(line.context("the process has printed no line")??)
}

/// Why a program cannot be started, and what to do about it.
pub fn missing(program: &str) -> impl Fn(io::Error) -> anyhow::Error {
    let program = program.to_owned();
    move |error| {
        anyhow::anyhow!("{program} cannot be run ({error}): tools/prerequisites.sh installs it")
    }
}
