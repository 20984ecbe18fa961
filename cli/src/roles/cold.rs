//! Where the brokers of a process put objects of ledgers, and what reading them may take.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::cache::{CacheBytes, ObjectCache};
use aquifer_cold::config::StoreConfig;
use aquifer_cold::format::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Compression};
use aquifer_cold::library;
use aquifer_cold::location::Locations;
use aquifer_log::offload::tier::{ColdTier, OffloadSettings};
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::BrokerId;
use aquifer_runtime::clock;
use serde::{Deserialize, Serialize};

use crate::exit::CliError;
use crate::roles::storage::Seams;

/// The directory of objects in the data directory of a standalone server.
const COLD_DIRECTORY: &str = "cold";

/// Whether blocks of objects are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressionSetting {
    /// In stores that are reached over a network, where it saves something.
    #[default]
    Remote,
    /// Where it saves something.
    Auto,
    /// Never.
    None,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ColdConfig {
    /// The place of objects, and the way there.
    #[serde(flatten)]
    pub place: StoreConfig,
    /// A closed ledger is offloaded when its last entry is older, in milliseconds; 0: only on
    /// command.
    pub offload_after_ms: u64,
    /// How long copies at bookies stay after an object was verified, in milliseconds.
    pub lag_ms: u64,
    /// Ledgers that are offloaded at once.
    pub workers_max: usize,
    /// Raw bytes of a block.
    pub block_bytes: usize,
    /// Whether blocks are compressed.
    pub compression: CompressionSetting,
    /// Bytes of indexes of objects that are kept in memory.
    pub index_cache_bytes_max: usize,
    /// Bytes of blocks of objects that are kept in memory.
    pub block_cache_bytes_max: usize,
    /// Bytes of reads from objects that are under way.
    pub read_bytes_max: usize,
}

impl Default for ColdConfig {
    fn default() -> ColdConfig {
        let (settings, bytes) = (OffloadSettings::default(), CacheBytes::default());
        ColdConfig {
            place: StoreConfig::default(),
            offload_after_ms: settings.after.map_or(0, clock::millis),
            lag_ms: clock::millis(settings.lag),
            workers_max: settings.workers_max,
            block_bytes: settings.block_bytes,
            compression: CompressionSetting::default(),
            index_cache_bytes_max: bytes.indexes,
            block_cache_bytes_max: bytes.blocks,
            read_bytes_max: bytes.reads,
        }
    }
}

impl ColdConfig {
    /// Puts a flag over it.
    pub fn apply(&mut self, store: Option<&str>) {
        if let Some(store) = store {
            store.clone_into(&mut self.place.store);
        }
    }

    /// Puts the place into the data directory, where no other was given.
    ///
    /// # Errors
    /// When the path of that is no text: exit code 2.
    pub fn place_in(&mut self, data_dir: &Path) -> Result<(), CliError> {
        if !self.place.store.is_empty() {
            return Ok(());
        }
        let path = std::path::absolute(data_dir.join(COLD_DIRECTORY));
        let path = path.map_err(|error| CliError::usage(error.to_string()))?;
        let text = path.to_str().ok_or_else(|| {
            CliError::usage(format!("{} is no text", path.display()))
                .advise("give the place of objects with --cold-store")
        })?;
        self.place.store = format!("file://{text}");
        Ok(())
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn check(&self) -> Result<(), CliError> {
        if !self.place.store.is_empty() {
            let place = library::check(&self.place.store);
            place.map_err(|error| CliError::usage(error.to_string()))?;
        }
        if !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&self.block_bytes) {
            return Err(CliError::usage(format!(
                "cold.block_bytes must be between {BLOCK_BYTES_MIN} and {BLOCK_BYTES_MAX}"
            )));
        }
        if self.workers_max == 0 {
            return Err(CliError::usage("cold.workers_max must be at least 1"));
        }
        Ok(())
    }

    /// What the logs of a process share for objects.
    pub fn tier(&self, cluster: &str, metadata: Arc<dyn MetadataStore>, seams: &Seams) -> ColdTier {
        let place = self.place.clone();
        let opener = Box::new(move |url: &str| library::open(url, &place));
        let sources = (Arc::clone(&seams.clock), Arc::clone(&seams.rng));
        let locations = Locations::new(metadata, sources, cluster, &self.place.store, opener);
        let cache = ObjectCache::new(CacheBytes {
            indexes: self.index_cache_bytes_max,
            blocks: self.block_cache_bytes_max,
            reads: self.read_bytes_max,
        });
        let is_local = self.place.store.starts_with("file:");
        let settings = OffloadSettings {
            after: Some(self.offload_after_ms)
                .filter(|ms| *ms > 0)
                .map(Duration::from_millis),
            lag: Duration::from_millis(self.lag_ms),
            workers_max: self.workers_max,
            block_bytes: self.block_bytes,
            compression: match self.compression {
                CompressionSetting::Remote if is_local => Compression::None,
                CompressionSetting::Remote | CompressionSetting::Auto => Compression::Auto,
                CompressionSetting::None => Compression::None,
            },
            ..OffloadSettings::default()
        };
        ColdTier::new(locations, cache, settings, BrokerId(seams.rng.id16()))
    }
}
