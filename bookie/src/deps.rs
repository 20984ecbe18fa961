//! What a bookie takes from its surroundings.

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::disk::SharedDisk;
use aquifer_runtime::rng::SharedRng;
use opentelemetry::metrics::Meter;

/// What a bookie takes from its surroundings.
#[derive(Clone)]
pub struct BookieDeps {
    /// Journal, mark and cookies; RocksDB always uses the real file system.
    pub disk: SharedDisk,
    /// Time.
    pub clock: SharedClock,
    /// Randomness, for the identity of a new bookie.
    pub rng: SharedRng,
    /// Where metrics go.
    pub meter: Meter,
}
