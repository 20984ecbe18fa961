//! The errors of this crate, one enum per seam that can fail for a reason a person must act on.
//! Disk operations keep [`std::io::Error`]: their callers decide by its kind.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why an address could not be understood or bound.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The text is not an address.
    #[error(
        "{given:?} is not a listen address: give IP:PORT, for example 127.0.0.1:7650 or [::1]:7650"
    )]
    BadAddress {
        /// What was given.
        given: String,
    },
    /// Another socket listens there.
    #[error(
        "{address} is in use: stop the process that listens there, or give another address or port 0"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address belongs to no interface of this machine.
    #[error("{address} is not an address of this machine: listen on one that is, or on 0.0.0.0")]
    NotLocal {
        /// The address.
        address: SocketAddr,
    },
    /// The operating system refuses the port to this user.
    #[error("no permission to listen on {address}: give a port above 1023")]
    Denied {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}")]
    Io {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Why a configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A value has the wrong type or is out of range.
    #[error("{origin}: {message}")]
    Value {
        /// The file or environment variable that the value came from.
        origin: String,
        /// What is wrong with it.
        message: String,
    },
    /// The type of the configuration does not describe a table: an error of the program.
    #[error("the configuration type cannot be loaded: {0}")]
    Type(String),
}

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "{given:?} is not a log filter ({message}): give a level such as info, or target=level pairs"
    )]
    Filter {
        /// What was given.
        given: String,
        /// What the parser said.
        message: String,
    },
    /// The process already has a global subscriber.
    #[error("telemetry is already started in this process")]
    AlreadyStarted,
    /// The exporter of traces could not be built.
    #[error("cannot export traces to {endpoint:?}: {message}")]
    Exporter {
        /// The endpoint.
        endpoint: String,
        /// What the exporter said.
        message: String,
    },
    /// The metrics could not be set up.
    #[error("cannot set up metrics: {0}")]
    Metrics(String),
}

/// Why a task ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It panicked; the panic is logged and has shut its group down.
    #[error("task {task} panicked: {message}")]
    Panicked {
        /// The name of the task.
        task: &'static str,
        /// The message of the panic.
        message: String,
    },
    /// It was aborted, by a drain that ran out of time or by the end of the runtime.
    #[error("task {task} was aborted")]
    Aborted {
        /// The name of the task.
        task: &'static str,
    },
}
