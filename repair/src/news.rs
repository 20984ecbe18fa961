//! News from metadata for tasks that look at everything again when something changes.

use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::store::{Watch, WatchEvent};
use aquifer_runtime::clock;
use futures::FutureExt;

use crate::context::RepairContext;

/// From the first news to a look at all of them: changes come in bursts, and most are done by
/// then by the process that began them.
const COALESCE: Duration = Duration::from_secs(1);

/// Waits for changes below a prefix, or for time to pass where the store does not tell.
pub struct News {
    ctx: Arc<RepairContext>,
    prefix: String,
    watch: Option<Box<dyn Watch>>,
}

impl News {
    /// Of what is below a prefix, or at a key.
    #[must_use]
    pub fn of(ctx: &Arc<RepairContext>, prefix: &str) -> News {
        News {
            ctx: Arc::clone(ctx),
            prefix: prefix.to_owned(),
            watch: None,
        }
    }

    /// Returns a moment after something has changed, or when time is up.
    pub async fn wait(&mut self, at_most: Duration) {
        if self.watch.is_none() {
            // What happens between a round and this watch is found by the next poll.
            let store = &self.ctx.ledgers.store;
            if let Ok(page) = store.scan(&self.prefix, None, 1).await {
                self.watch = store.watch(&self.prefix, page.revision).await.ok();
            }
        }
        let Some(watch) = &mut self.watch else {
            return clock::sleep(at_most).await;
        };
        let next = clock::timeout(at_most, watch.next()).await;
        if matches!(next, Ok(None | Some(WatchEvent::Resync))) {
            self.watch = None;
        }
        if next.is_ok() {
            clock::sleep(COALESCE).await;
        }
        // What came meanwhile is looked at together.
        while let Some(watch) = &mut self.watch
            && let Some(next) = watch.next().now_or_never()
        {
            if matches!(next, None | Some(WatchEvent::Resync)) {
                self.watch = None;
            }
        }
    }
}
