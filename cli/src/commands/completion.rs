//! `aquifer completion`: what makes a shell complete commands.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::{Cli, CompletionArgs};
use crate::exit::CliError;
use crate::output::Output;

/// Runs the command.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &CompletionArgs, out: &Output) -> Result<(), CliError> {
    let mut script = Vec::new();
    let shell = Shell::from(args.shell);
    clap_complete::generate(shell, &mut Cli::command(), "aquifer", &mut script);
    out.line(script.trim_ascii_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_learns_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "aquifer", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["produce", "rotate", "token-file"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
