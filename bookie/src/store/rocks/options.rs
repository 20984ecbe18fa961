//! The settings of RocksDB: those that worked in measurements, with their reasons.

use rocksdb::{
    BlockBasedOptions, Cache, ChecksumType, ColumnFamilyDescriptor, DBCompressionType, Env, Error,
    LogLevel, Options,
};

use crate::config::BookieConfig;
use crate::store::rocks::keys;

const MIB: u64 = 1024 * 1024;
/// Two flush, and one removes files that are not needed any more: the pool for flushes does both,
/// and the files of a large ledger take a file system a second.
const FLUSH_THREADS: i32 = 3;
/// Full memtables of a family at which writes stop until one is flushed. With more than three
/// RocksDB slows writes down before it stops them, to far less than a flush takes in.
const MEMTABLES_MAX: i32 = 3;

/// Options of the database.
pub fn database(config: &BookieConfig, create: bool, direct: bool) -> Result<Options, Error> {
    let mut env = Env::new()?;
    env.set_high_priority_background_threads(FLUSH_THREADS);
    let mut options = Options::default();
    // Only a new bookie creates: an empty store in the place of a lost one would be silence.
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    // One flush takes all families up to the same point, so that what is flushed is a prefix of
    // the journal (H1).
    options.set_atomic_flush(true);
    // The decisive setting for throughput and tails: flushes do not fight for the page cache.
    options.set_use_direct_io_for_flush_and_compaction(direct);
    options.set_bytes_per_sync(MIB);
    options.set_max_open_files(i32::try_from(config.open_files_max).unwrap_or(i32::MAX));
    options.set_env(&env);
    // RocksDB takes a quarter of these for flushes: two, so that one computes while the other
    // waits for the disk. The rest is an upper bound for compactions, which move keys only.
    options.set_max_background_jobs(8);
    // Nothing else uses these files: what is read ahead is kept where it is bounded.
    options.set_use_direct_reads(direct);
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_skip_stats_update_on_db_open(true);
    options.set_max_manifest_file_size(16 << 20);
    options.set_manifest_preallocation_size(64 << 10);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    Ok(options)
}

/// The column families. With `compacts` off they are never compacted by themselves, and writes do
/// not wait for that either.
#[must_use]
pub fn families(
    config: &BookieConfig,
    cache: &Cache,
    compacts: bool,
) -> Vec<ColumnFamilyDescriptor> {
    let families = [
        ("default", small_family(cache)),
        (keys::LEDGERS, small_family(cache)),
        (keys::ENTRIES, entries_family(config, cache)),
    ];
    let families = families.into_iter().map(|(name, mut options)| {
        options.set_disable_auto_compactions(!compacts);
        ColumnFamilyDescriptor::new(name, options)
    });
    families.collect()
}

/// The block cache that all families share.
#[must_use]
pub fn cache(config: &BookieConfig) -> Cache {
    Cache::new_lru_cache(config.block_cache_bytes)
}

fn table(cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // CRC32C is computed in software by a default build of RocksDB: XXH3 is not.
    table.set_checksum_type(ChecksumType::XXH3);
    table.set_block_size(16 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table
}

fn small_family(cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(4 << 20);
    // A flush takes the memtables of all families, so the family with the fewest decides how many
    // can wait for it before writes stop.
    options.set_max_write_buffer_number(MEMTABLES_MAX);
    let mut table = table(cache);
    table.set_bloom_filter(10.0, false);
    options.set_block_based_table_factory(&table);
    options
}

fn entries_family(config: &BookieConfig, cache: &Cache) -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(config.memtable_bytes);
    options.set_max_write_buffer_number(MEMTABLES_MAX);
    options.set_target_file_size_base(64 * MIB);
    // Payloads above the bound stay out of the tree: compaction moves keys only. Blob collection
    // is off because entries are never overwritten; whole files go when their ledgers are deleted.
    // A flush makes a file of its own, of a memtable; `merge.rs` makes large ones of these.
    options.set_enable_blob_files(true);
    options.set_min_blob_size(u64::try_from(config.blob_bytes_min).unwrap_or(u64::MAX));
    options.set_blob_file_size(config.blob_file_bytes);
    options.set_enable_blob_gc(false);
    options.set_blob_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&table(cache));
    options
}
