//! The settings of an embedded store.

use std::time::Duration;

/// The settings of an embedded store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Memory for cached pages, in bytes.
    pub cache_bytes: usize,
    /// Changes that a watch may lag behind before it has to scan again.
    pub history_events: usize,
    /// The same, in bytes.
    pub history_bytes: usize,
    /// Files up to this size are verified as a whole when they are opened. The checksum of each
    /// value is verified whenever it is read, whatever the size.
    pub verify_bytes_max: u64,
    /// How long a scan may pause between two pages.
    pub scan_idle_max: Duration,
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions {
            cache_bytes: 16 << 20,
            history_events: 10_000,
            history_bytes: 8 << 20,
            verify_bytes_max: 64 << 20,
            scan_idle_max: Duration::from_secs(30),
        }
    }
}
