//! Where the brokers of a process put objects of ledgers, and what reading them may take.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aquifer_cold::cache::{CacheBytes, ObjectCache};
use aquifer_cold::config::StoreConfig;
use aquifer_cold::counted::{ColdMetrics, Counted};
use aquifer_cold::disk::{DISK_CACHE_BYTES_MIN, DiskCache};
use aquifer_cold::format::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN};
use aquifer_cold::library;
use aquifer_cold::location::Locations;
use aquifer_cold::store::ColdStore;
use aquifer_log::offload::tier::{ColdTier, OffloadSettings};
use aquifer_metadata::store::MetadataStore;
use aquifer_model::id::BrokerId;
use aquifer_model::policy::offload::{OffloadCompression, OffloadPolicy};
use aquifer_runtime::clock;
use aquifer_runtime::telemetry::Telemetry;
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

/// Which processes write ledgers into objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OffloadBy {
    /// The brokers that own the topics.
    #[default]
    Brokers,
    /// `aquifer offloader`: brokers say what is due.
    Offloaders,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ColdConfig {
    /// The place of objects, and the way there.
    #[serde(flatten)]
    pub place: StoreConfig,
    /// A closed ledger is offloaded when its last entry is older, in milliseconds, where no policy
    /// says otherwise; 0: not by age.
    pub offload_after_ms: u64,
    /// How long copies at bookies stay after an object was verified, in milliseconds, where no
    /// policy says otherwise.
    pub lag_ms: u64,
    /// Which processes offload, of a cluster.
    pub offload_by: OffloadBy,
    /// Ledgers that are offloaded at once.
    pub workers_max: usize,
    /// Raw bytes of a block.
    pub block_bytes: usize,
    /// Whether blocks are compressed, where no policy says otherwise.
    pub compression: CompressionSetting,
    /// Bytes of ledgers that are offloaded in a second; 0: no bound.
    pub upload_bytes_per_second_max: u64,
    /// In what time each object is read again and checked, in milliseconds; 0: never.
    pub scrub_pass_ms: u64,
    /// Bytes that are read for that in a second; 0: no bound.
    pub scrub_bytes_per_second_max: u64,
    /// Bytes of indexes of objects that are kept in memory.
    pub index_cache_bytes_max: usize,
    /// Bytes of blocks of objects that are kept in memory.
    pub block_cache_bytes_max: usize,
    /// Bytes of reads from objects that are under way.
    pub read_bytes_max: usize,
    /// A directory for blocks of objects, of this process alone; empty: none.
    pub disk_cache_dir: PathBuf,
    /// Bytes of blocks there.
    pub disk_cache_bytes_max: u64,
}

impl Default for ColdConfig {
    fn default() -> ColdConfig {
        let (settings, bytes) = (OffloadSettings::default(), CacheBytes::default());
        ColdConfig {
            place: StoreConfig::default(),
            offload_after_ms: settings.policy.age_ms.unwrap_or(0),
            lag_ms: settings.policy.lag_ms,
            offload_by: OffloadBy::default(),
            workers_max: settings.workers_max,
            block_bytes: settings.block_bytes,
            compression: CompressionSetting::default(),
            upload_bytes_per_second_max: settings.upload_rate.unwrap_or(0),
            scrub_pass_ms: settings.scrub_pass.map_or(0, clock::millis),
            scrub_bytes_per_second_max: settings.scrub_rate.unwrap_or(0),
            index_cache_bytes_max: bytes.indexes,
            block_cache_bytes_max: bytes.blocks,
            read_bytes_max: bytes.reads,
            disk_cache_dir: PathBuf::new(),
            disk_cache_bytes_max: 10 << 30,
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
        if self.has_disk_cache() && self.disk_cache_bytes_max < DISK_CACHE_BYTES_MIN {
            return Err(CliError::usage(format!(
                "cold.disk_cache_bytes_max must be at least {DISK_CACHE_BYTES_MIN}"
            )));
        }
        Ok(())
    }

    fn has_disk_cache(&self) -> bool {
        !self.disk_cache_dir.as_os_str().is_empty()
    }

    /// What was read of objects lately.
    fn cache(&self, seams: &Seams) -> Result<ObjectCache, CliError> {
        let bytes = CacheBytes {
            indexes: self.index_cache_bytes_max,
            blocks: self.block_cache_bytes_max,
            reads: self.read_bytes_max,
        };
        let cache = ObjectCache::new(bytes, Arc::clone(&seams.clock));
        if !self.has_disk_cache() {
            return Ok(cache);
        }
        let (directory, bytes_max) = (&self.disk_cache_dir, self.disk_cache_bytes_max);
        let (disk, clock) = (Arc::clone(&seams.disk), Arc::clone(&seams.clock));
        let opened = DiskCache::open(disk, directory, bytes_max, clock);
        let opened = opened.map_err(|error| {
            let what = match error.kind() {
                io::ErrorKind::WouldBlock => "another process uses it".to_owned(),
                _ => error.to_string(),
            };
            let directory = directory.display();
            CliError::usage(format!("cold.disk_cache_dir {directory}: {what}"))
                .advise("give each process a directory of its own that it can write to")
        })?;
        Ok(cache.with_disk(opened))
    }

    /// What the logs of a process share for objects.
    ///
    /// # Errors
    /// When the directory of the disk cache cannot be used: exit code 2.
    pub fn tier(
        &self,
        cluster: &str,
        metadata: Arc<dyn MetadataStore>,
        seams: &Seams,
        telemetry: &Telemetry,
    ) -> Result<ColdTier, CliError> {
        let place = self.place.clone();
        let metrics = ColdMetrics::new(&telemetry.meter("aquifer_cold"));
        let opener = Box::new(move |url: &str| {
            let store = library::open(url, &place)?;
            let counted = Counted::new(store, metrics.clone());
            Ok(Arc::new(counted) as Arc<dyn ColdStore>)
        });
        let sources = (Arc::clone(&seams.clock), Arc::clone(&seams.rng));
        let locations = Locations::new(metadata, sources, cluster, &self.place.store, opener);
        let cache = self.cache(seams)?;
        let is_local = self.place.store.starts_with("file:");
        let settings = OffloadSettings {
            policy: OffloadPolicy {
                age_ms: Some(self.offload_after_ms).filter(|ms| *ms > 0),
                lag_ms: self.lag_ms,
                compression: match self.compression {
                    CompressionSetting::Remote if is_local => OffloadCompression::None,
                    CompressionSetting::Remote | CompressionSetting::Auto => {
                        OffloadCompression::Auto
                    }
                    CompressionSetting::None => OffloadCompression::None,
                },
                ..OffloadPolicy::default()
            },
            workers_max: self.workers_max,
            block_bytes: self.block_bytes,
            leaves_to_offloaders: self.offload_by == OffloadBy::Offloaders,
            upload_rate: Some(self.upload_bytes_per_second_max).filter(|rate| *rate > 0),
            scrub_pass: (self.scrub_pass_ms > 0).then(|| Duration::from_millis(self.scrub_pass_ms)),
            scrub_rate: Some(self.scrub_bytes_per_second_max).filter(|rate| *rate > 0),
            ..OffloadSettings::default()
        };
        let process = (BrokerId(seams.rng.id16()), Arc::clone(&seams.clock));
        Ok(ColdTier::new(locations, cache, settings, process))
    }
}
