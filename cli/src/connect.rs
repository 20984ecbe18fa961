//! The way from the command line to a broker, shared by all commands that use one.

use std::time::Duration;

/// Where the brokers are and how long an operation may take.
#[derive(Debug, Clone)]
pub struct Connect {
    urls: Vec<String>,
    timeout: Duration,
}

impl Connect {
    /// From the global arguments.
    pub fn new(urls: Vec<String>, timeout: Duration) -> Connect {
        Connect { urls, timeout }
    }

    /// The addresses of the brokers.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// How long one operation may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}
