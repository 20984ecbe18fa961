//! Load of a broker, a bundle or a topic: what brokers report and what is balanced.

use crate::bundle::BundleRange;
use crate::id::BrokerId;
use crate::topic::NamespaceName;

/// Bytes that count as much as a message.
const BYTES_PER_UNIT: f64 = 1024.0;

/// Rates over the window of the broker that measured, and current counts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Messages published per second.
    pub messages_in_per_second: f64,
    /// Bytes published per second.
    pub bytes_in_per_second: f64,
    /// Messages delivered per second.
    pub messages_out_per_second: f64,
    /// Bytes delivered per second.
    pub bytes_out_per_second: f64,
    /// Loaded topics.
    pub topics: u64,
    /// Connected producers and consumers.
    pub sessions: u64,
}

impl Load {
    /// One number to compare by: a message counts one, and so does a KiB, in either direction.
    #[must_use]
    pub fn units(&self) -> f64 {
        self.messages_per_second() + self.bytes_per_second() / BYTES_PER_UNIT
    }

    /// Messages in both directions per second.
    #[must_use]
    pub fn messages_per_second(&self) -> f64 {
        self.messages_in_per_second + self.messages_out_per_second
    }

    /// Bytes in both directions per second.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes_in_per_second + self.bytes_out_per_second
    }
}

impl std::ops::AddAssign for Load {
    fn add_assign(&mut self, other: Load) {
        self.messages_in_per_second += other.messages_in_per_second;
        self.bytes_in_per_second += other.bytes_in_per_second;
        self.messages_out_per_second += other.messages_out_per_second;
        self.bytes_out_per_second += other.bytes_out_per_second;
        self.topics += other.topics;
        self.sessions += other.sessions;
    }
}

impl std::iter::Sum for Load {
    fn sum<I: Iterator<Item = Load>>(loads: I) -> Load {
        loads.fold(Load::default(), |mut sum, load| {
            sum += load;
            sum
        })
    }
}

/// The load of a bundle at its owner.
#[derive(Debug, Clone, PartialEq)]
pub struct BundleLoad {
    /// Whose topics.
    pub namespace: NamespaceName,
    /// Which of them, by hash.
    pub range: BundleRange,
    /// Their load.
    pub load: Load,
    /// The hash in front of which a split leaves about half of the load on either side; `None` with
    /// fewer than two loaded topics, or when all of them have the same hash.
    pub split_at: Option<u32>,
    /// How long ago another broker handed it over; `None` when none did.
    pub handed_over_ms: Option<u64>,
}

/// What a broker says about its load.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadReport {
    /// The broker that says so.
    pub broker: BrokerId,
    /// The time that the rates are over; 0 when it has not measured yet.
    pub window_ms: u64,
    /// Everything.
    pub total: Load,
    /// The bundles that it owns.
    pub bundles: Vec<BundleLoad>,
}
