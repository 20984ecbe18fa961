//! Settings of the balance of load between brokers. Those of the elected broker count: give every
//! broker the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::BrokerError;

/// Settings of the balance. A unit of load is a message or a KiB a second, in either direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalanceConfig {
    /// Whether this broker may lead, and then moves and splits bundles. Load is measured anyway.
    pub enabled: bool,
    /// How often load is measured, and reports are compared.
    pub period_ms: u64,
    /// What rates are over.
    pub window_ms: u64,
    /// A broker with more than this percentage of the mean, in two rounds after each other, begins
    /// to shed; one as far below it begins to be filled.
    pub start_percent: u32,
    /// It ends there.
    pub stop_percent: u32,
    /// How long a bundle that moved stays where it is.
    pub cooldown_ms: u64,
    /// Most of the whole load that moves in a minute, in percent.
    pub moved_percent_per_minute_max: u32,
    /// Most moves of a round.
    pub moves_per_round_max: u32,
    /// With fewer units than this in the whole cluster, nothing moves but a share of the topics to
    /// a broker that joins.
    pub units_min: u64,
    /// A bundle with more loaded topics is split.
    pub split_topics_max: u64,
    /// A bundle with more connected producers and consumers is split.
    pub split_sessions_max: u64,
    /// A bundle with more messages a second is split.
    pub split_messages_per_second_max: u64,
    /// A bundle with more bytes a second is split.
    pub split_bytes_per_second_max: u64,
    /// How long a part of a bundle that was split is not split again.
    pub split_cooldown_ms: u64,
    /// A namespace with this many owned bundles is split no further.
    pub split_bundles_max: u64,
}

impl Default for BalanceConfig {
    fn default() -> BalanceConfig {
        BalanceConfig {
            enabled: true,
            period_ms: 5_000,
            window_ms: 30_000,
            start_percent: 120,
            stop_percent: 108,
            cooldown_ms: 5 * 60 * 1000,
            moved_percent_per_minute_max: 30,
            moves_per_round_max: 16,
            units_min: 100,
            split_topics_max: 1_000,
            split_sessions_max: 2_000,
            split_messages_per_second_max: 30_000,
            split_bytes_per_second_max: 100 << 20,
            split_cooldown_ms: 30_000,
            split_bundles_max: 1_024,
        }
    }
}

impl BalanceConfig {
    pub(crate) fn period(&self) -> Duration {
        Duration::from_millis(self.period_ms)
    }

    pub(crate) fn window(&self) -> Duration {
        Duration::from_millis(self.window_ms)
    }

    pub(crate) fn cooldown(&self) -> Duration {
        Duration::from_millis(self.cooldown_ms)
    }

    pub(crate) fn split_cooldown(&self) -> Duration {
        Duration::from_millis(self.split_cooldown_ms)
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// When a value is out of its range; the text says which.
    pub(crate) fn validate(&self) -> Result<(), BrokerError> {
        let wrong = if self.period_ms < 100 {
            "balance.period_ms must be at least 100"
        } else if !(self.period_ms..=60 * self.period_ms).contains(&self.window_ms) {
            "balance.window_ms must be 1 to 60 times balance.period_ms"
        } else if !(101..=200).contains(&self.start_percent) {
            "balance.start_percent must be from 101 to 200"
        } else if !(101..=self.start_percent).contains(&self.stop_percent) {
            "balance.stop_percent must be from 101 to balance.start_percent"
        } else if !(1..=100).contains(&self.moved_percent_per_minute_max) {
            "balance.moved_percent_per_minute_max must be from 1 to 100"
        } else if self.moves_per_round_max == 0 {
            "balance.moves_per_round_max must be at least 1; balance.enabled turns all off"
        } else {
            return Ok(());
        };
        Err(BrokerError::Config(wrong.to_owned()))
    }
}
