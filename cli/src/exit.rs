//! How a command ends when it does not succeed. The codes are a contract (design.md section 16).

use std::io;
use std::process::ExitCode;

use thiserror::Error;

/// Exit codes; 0 is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything that has no code of its own.
    Failed = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// No broker could be reached.
    CannotConnect = 3,
    /// It took too long.
    TimedOut = 4,
    /// Permission, quota, fenced.
    Refused = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed: for the person who typed it.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct CliError {
    exit: Exit,
    message: String,
    advice: String,
    silent: bool,
}

impl CliError {
    /// An error with its exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> CliError {
        CliError {
            exit,
            message: message.into(),
            advice: String::new(),
            silent: false,
        }
    }

    /// Exit code 1.
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Failed, message)
    }

    /// Exit code 2.
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Usage, message)
    }

    /// Exit code 4.
    pub fn timed_out(message: impl Into<String>) -> CliError {
        CliError::new(Exit::TimedOut, message)
    }

    /// The same error with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> CliError {
        self.advice = advice.into();
        self
    }

    /// What cannot be written to standard output. Whoever closed the pipe does not want to hear
    /// of it, so that `aquifer read t | head -1` prints one line and nothing else.
    pub fn stdout(error: &io::Error) -> CliError {
        CliError {
            silent: error.kind() == io::ErrorKind::BrokenPipe,
            ..CliError::failed(format!("cannot write to standard output: {error}"))
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// What to do about it; may be empty.
    pub fn advice(&self) -> &str {
        &self.advice
    }

    /// Whether nothing is to be printed.
    pub fn is_silent(&self) -> bool {
        self.silent
    }
}
