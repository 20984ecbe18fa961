//! Work that belongs to no request: requests for the same share one task, which goes on when they
//! end.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use aquifer_runtime::task::TaskGroup;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::BrokerError;

type Outcome<T> = watch::Receiver<Option<Result<T, BrokerError>>>;

/// The outcome of what runs.
pub(super) struct Answer<T>(Outcome<T>);

/// What runs, by what it is about.
pub(super) struct Running<K, T>(Arc<Mutex<HashMap<K, Outcome<T>>>>);

impl<K, T> Default for Running<K, T> {
    fn default() -> Running<K, T> {
        Running(Arc::default())
    }
}

impl<K, T> Running<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Begins work, unless there is work about the same.
    pub(super) fn begin<F>(
        &self,
        tasks: &TaskGroup,
        name: &'static str,
        key: K,
        work: F,
    ) -> Answer<T>
    where
        F: Future<Output = Result<T, BrokerError>> + Send + 'static,
    {
        let mut running = self.0.lock();
        if let Some(outcome) = running.get(&key) {
            return Answer(outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        running.insert(key.clone(), outcome.clone());
        let all = Arc::clone(&self.0);
        tasks.spawn(name, async move {
            let done = work.await;
            all.lock().remove(&key);
            sender.send_replace(Some(done));
        });
        Answer(outcome)
    }

    /// How much runs of which the key is like this.
    pub(super) fn count(&self, is_like: impl Fn(&K) -> bool) -> usize {
        self.0.lock().keys().filter(|key| is_like(key)).count()
    }

    /// The outcomes of all that runs.
    #[cfg(test)]
    pub(super) fn answers(&self) -> Vec<Answer<T>> {
        self.0.lock().values().cloned().map(Answer).collect()
    }
}

impl<T: Clone> Answer<T> {
    /// Waits for the outcome.
    ///
    /// # Errors
    /// That of the work; `Unloading` when the process ends before it.
    pub(super) async fn wait(mut self) -> Result<T, BrokerError> {
        let outcome = self.0.wait_for(Option::is_some).await;
        let outcome = outcome.map_or(None, |outcome| outcome.clone());
        let gone = || BrokerError::Unloading("the deletion was given up".to_owned());
        outcome.unwrap_or_else(|| Err(gone()))
    }
}
