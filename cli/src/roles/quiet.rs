//! Gives memory back while nothing is published: consumers at the tail have received what the cache
//! holds by then, and later readers read from the bookie. The same for blocks of objects while none
//! are read.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::cache::EntryCache;
use aquifer_log::offload::tier::ColdTier;
use aquifer_runtime::clock::sleep;
use aquifer_runtime::task::TaskGroup;

/// How often it looks; after a whole round without a new entry it is quiet.
const LOOK: Duration = Duration::from_secs(2);
/// What stays for consumers that come back.
const TAIL_BYTES: usize = 1 << 20;

/// Watches a cache until the group ends.
pub fn give_back_when_quiet(cache: EntryCache, tier: Arc<ColdTier>, tasks: &TaskGroup) {
    let token = tasks.shutdown_token();
    tasks.spawn("cache-shrink", async move {
        let mut before = cache.inserted();
        let mut read_before = tier.cache.reads_begun();
        loop {
            tokio::select! {
                () = token.wait() => return,
                () = sleep(LOOK) => {}
            }
            let now = cache.inserted();
            if now == before {
                cache.shrink_tail(TAIL_BYTES);
            }
            before = now;
            let read = tier.cache.reads_begun();
            if read == read_before {
                tier.cache.clear();
            }
            read_before = read;
        }
    });
}
