//! How a command ends when it does not succeed. The codes are a contract.

use std::io;
use std::process::ExitCode;

use aquifer_client::{ClientError, ErrorKind};
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

    /// The same error with what was going on.
    #[must_use]
    pub fn context(mut self, what: impl AsRef<str>) -> CliError {
        self.message = format!("{}: {}", what.as_ref(), self.message);
        self
    }

    /// The same error with what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> CliError {
        self.advice = advice.into();
        self
    }

    /// An exit code alone: what there is to say was printed as the result.
    pub fn silent(exit: Exit) -> CliError {
        CliError {
            silent: true,
            ..CliError::new(exit, "")
        }
    }

    /// A failed write to standard output. A closed pipe is not reported, so that
    /// `aquifer read t | head -1` prints one line and nothing else.
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

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        let exit = match (&error, error.kind()) {
            (
                ClientError::Url { .. }
                | ClientError::Name(_)
                | ClientError::Invalid(_)
                | ClientError::Credential {
                    retryable: false, ..
                },
                _,
            ) => Exit::Usage,
            (_, ErrorKind::Connect) => Exit::CannotConnect,
            (_, ErrorKind::Timeout) => Exit::TimedOut,
            (_, ErrorKind::Refused | ErrorKind::Fenced) => Exit::Refused,
            (
                _,
                ErrorKind::Invalid
                | ErrorKind::NotFound
                | ErrorKind::AlreadyExists
                | ErrorKind::Busy
                | ErrorKind::Unavailable
                | ErrorKind::Damaged
                | ErrorKind::Closed
                | ErrorKind::EndOfTopic
                | ErrorKind::Internal,
            ) => Exit::Failed,
        };
        let advice = match &error {
            ClientError::Unauthenticated(_) => {
                "give a token with --token-file, AQUIFER_TOKEN_FILE or a context; `aquifer token \
                 inspect` shows which one a file holds"
            }
            ClientError::PermissionDenied(_) => "`aquifer access whoami` shows what you may do",
            _ => "",
        };
        CliError::new(exit, error.to_string()).advise(advice)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aquifer_client::error::BrokerError;
    use aquifer_client::{ErrorCode, Outcome};

    use super::*;

    #[test]
    fn failures_of_the_client_have_the_contracts_codes() {
        let code = |error: ClientError| CliError::from(error).exit();
        let tried = "http://127.0.0.1:1: refused".to_owned();
        assert_eq!(code(ClientError::Connect { tried }), Exit::CannotConnect);
        assert_eq!(
            code(ClientError::Timeout {
                what: "a send",
                after: Duration::from_secs(1),
                outcome: Outcome::Unknown,
                last: None,
            }),
            Exit::TimedOut
        );
        assert_eq!(
            code(ClientError::Url {
                given: "x".to_owned(),
                reason: "no scheme".to_owned(),
            }),
            Exit::Usage
        );
        let outcome = Outcome::NotApplied;
        let what = "producer";
        let broker = Box::new(BrokerError {
            code: ErrorCode::PermissionDenied,
            retryable: true,
            outcome,
            message: "no".to_owned(),
            advice: String::new(),
            redirect_url: None,
        });
        assert_eq!(
            code(ClientError::PermissionDenied(broker.clone())),
            Exit::Refused
        );
        let error = CliError::from(ClientError::Unauthenticated(broker));
        assert_eq!(error.exit(), Exit::Refused);
        assert!(error.advice().contains("--token-file"), "{error:?}");
        let credential = |retryable| ClientError::Credential {
            reason: "no file".to_owned(),
            retryable,
        };
        assert_eq!(code(credential(false)), Exit::Usage);
        assert_eq!(code(credential(true)), Exit::Failed);
        assert_eq!(code(ClientError::Closed { what, outcome }), Exit::Failed);
    }
}
