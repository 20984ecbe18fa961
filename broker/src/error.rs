//! The errors of the broker and their one mapping to what protocols see.

use thiserror::Error;

/// Why the broker did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BrokerError {
    /// A setting is wrong.
    #[error("bad broker setting: {0}")]
    Config(String),
}
