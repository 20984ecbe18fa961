//! The way from the command line to a broker, shared by all commands that use one.

use std::time::Duration;

use aquifer_client::{Client, ClientBuilder};
use aquifer_runtime::net::tls::ClientTlsConfig;

use crate::exit::CliError;

/// Bytes of unacknowledged messages that the client of a load may hold.
const LOAD_MEMORY_BYTES: usize = 256 * 1024 * 1024;

/// Where the brokers are and how long an operation may take.
#[derive(Debug, Clone)]
pub struct Connect {
    urls: Vec<String>,
    timeout: Duration,
    tls: ClientTlsConfig,
}

impl Connect {
    /// From the global arguments.
    pub fn new(urls: Vec<String>, timeout: Duration, tls: ClientTlsConfig) -> Connect {
        Connect { urls, timeout, tls }
    }

    /// How long one operation may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A client of these brokers. Nothing is connected yet.
    ///
    /// # Errors
    /// When an address is no URL, or another setting wrong.
    pub fn client(&self) -> Result<Client, CliError> {
        let builder = self.builder().urls(&self.urls);
        builder
            .build()
            .map_err(|error| CliError::usage(error.to_string()))
    }

    /// A client for a load: with memory for everything that a measurement leaves unacknowledged.
    ///
    /// # Errors
    /// When an address is no URL, or another setting wrong.
    pub fn load_client(&self) -> Result<Client, CliError> {
        let builder = self.builder().urls(&self.urls);
        let builder = builder.memory_limit_bytes(LOAD_MEMORY_BYTES);
        builder
            .build()
            .map_err(|error| CliError::usage(error.to_string()))
    }

    /// A client of one broker that was named by another.
    ///
    /// # Errors
    /// When its address is no URL.
    pub fn to(&self, url: &str) -> Result<Client, CliError> {
        Ok(self.builder().url(url).build()?)
    }

    fn builder(&self) -> ClientBuilder {
        let builder = Client::builder().operation_timeout(self.timeout);
        builder.tls(self.tls.clone())
    }
}
