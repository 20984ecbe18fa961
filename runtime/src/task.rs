//! Tasks that have an owner. Every task belongs to a [`TaskGroup`]: a panic in one is logged,
//! remembered, and shuts the group down, because state that a panic left half changed must not
//! go on acknowledging. A group ends in two steps: [`TaskGroup::shutdown`] asks, and
//! [`TaskGroup::drain`] waits for a while and then aborts.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
pub use crate::error::TaskError;

/// How long a drain waits for aborted tasks to be dropped. Only a task that blocks its thread
/// takes longer, and such a task cannot be stopped at all.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// A named set of supervised tasks that shut down together. Clones share the set.
#[derive(Debug, Clone)]
pub struct TaskGroup {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    tracker: TaskTracker,
    token: CancellationToken,
    failed: Mutex<Option<String>>,
    running: Mutex<HashMap<u64, AbortHandle>>,
    next_id: AtomicU64,
}

/// Tells a task that its group shuts down.
#[derive(Debug, Clone)]
pub struct ShutdownToken {
    token: CancellationToken,
}

/// A running task; dropping it lets the task go on.
#[derive(Debug)]
pub struct TaskHandle<T> {
    task: &'static str,
    handle: JoinHandle<Result<T, TaskError>>,
}

impl TaskGroup {
    /// An empty group; its name appears in logs.
    #[must_use]
    pub fn new(name: impl Into<String>) -> TaskGroup {
        TaskGroup {
            inner: Arc::new(Inner {
                name: name.into(),
                tracker: TaskTracker::new(),
                token: CancellationToken::new(),
                failed: Mutex::new(None),
                running: Mutex::new(HashMap::new()),
                next_id: AtomicU64::new(0),
            }),
        }
    }

    /// The name of the group.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Starts a task on the current runtime.
    pub fn spawn<F>(&self, task: &'static str, future: F) -> TaskHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let id = inner.next_id.fetch_add(1, Ordering::Relaxed);
        let registration = Registration {
            inner: Arc::clone(&inner),
            id,
        };
        let supervised = async move {
            let result = AssertUnwindSafe(future).catch_unwind().await;
            let result = result.map_err(|panic| registration.inner.record_panic(task, &*panic));
            drop(registration);
            result
        };
        let handle = {
            // The lock is held across the spawn, so that a task that ends at once removes its
            // abort handle after it was inserted and not before.
            let mut running = inner.running.lock();
            let handle = inner.tracker.spawn(supervised);
            running.insert(id, handle.abort_handle());
            handle
        };
        TaskHandle { task, handle }
    }

    /// A token that tasks of this group, and threads that work for it, watch.
    #[must_use]
    pub fn shutdown_token(&self) -> ShutdownToken {
        // A child has a lock of its own: tasks that wait in a loop do not meet at that of the
        // group.
        ShutdownToken {
            token: self.inner.token.child_token(),
        }
    }

    /// Asks every task to end. It returns at once, and asking again changes nothing.
    pub fn shutdown(&self) {
        self.inner.token.cancel();
    }

    /// The first failure of this group, such as the panic of a task, if there was one.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.inner.failed.lock().clone()
    }

    /// Shuts the group down because something that its tasks rely on failed.
    pub fn fail(&self, why: &str) {
        tracing::error!(group = self.name(), why, "a task group failed");
        let mut failed = self.inner.failed.lock();
        failed.get_or_insert_with(|| why.to_owned());
        drop(failed);
        self.shutdown();
    }

    /// How many tasks run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.inner.tracker.len()
    }

    /// Shuts down, waits until every task has ended or the deadline has passed, and aborts the
    /// rest. Returns how many were aborted.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.shutdown();
        self.inner.tracker.close();
        if clock::timeout(deadline, self.inner.tracker.wait())
            .await
            .is_ok()
        {
            return 0;
        }
        let handles: Vec<AbortHandle> = self.inner.running.lock().values().cloned().collect();
        for handle in &handles {
            handle.abort();
        }
        tracing::warn!(
            group = self.inner.name,
            tasks = handles.len(),
            "tasks aborted at the deadline of a drain"
        );
        let dropped = clock::timeout(ABORT_GRACE, self.inner.tracker.wait()).await;
        if dropped.is_err() {
            tracing::warn!(
                group = self.inner.name,
                tasks = self.inner.tracker.len(),
                "aborted tasks still hold their threads"
            );
        }
        handles.len()
    }
}

impl Inner {
    fn record_panic(&self, task: &'static str, panic: &(dyn Any + Send)) -> TaskError {
        let message = panic_message(panic);
        tracing::error!(group = self.name, task, panic = message, "task panicked");
        self.failed
            .lock()
            .get_or_insert_with(|| format!("{task}: {message}"));
        self.token.cancel();
        TaskError::Panicked { task, message }
    }
}

/// Takes a task out of its group's list when it ends or is dropped.
struct Registration {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inner.running.lock().remove(&self.id);
    }
}

impl ShutdownToken {
    /// Whether shutdown was asked for.
    #[must_use]
    pub fn is_shutdown(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until shutdown is asked for.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }
}

impl<T> TaskHandle<T> {
    /// Aborts the task at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Whether the task has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Future for TaskHandle<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let task = self.task;
        Pin::new(&mut self.handle)
            .poll(context)
            .map(|joined| joined.unwrap_or(Err(TaskError::Aborted { task })))
    }
}

/// Starts a named thread, for work that blocks: fsync, checksums, embedded stores. A panic ends
/// the thread only; it is logged, and `join` reports it.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that starts threads"
)]
pub fn spawn_thread<T, F>(name: &str, body: F) -> io::Result<std::thread::JoinHandle<T>>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let thread = name.to_owned();
    std::thread::Builder::new()
        .name(thread.clone())
        .spawn(
            move || match std::panic::catch_unwind(AssertUnwindSafe(body)) {
                Ok(result) => result,
                Err(panic) => {
                    tracing::error!(thread, panic = panic_message(&*panic), "thread panicked");
                    std::panic::resume_unwind(panic)
                }
            },
        )
}

/// Starts a thread that others rely on: when it panics, `on_panic` is told on it, so that the code
/// that waits for the thread fails instead of waiting for ever.
pub fn spawn_vital_thread<F>(
    name: &str,
    body: F,
    on_panic: impl FnOnce(&str) + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    let thread = name.to_owned();
    spawn_thread(name, move || {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(body));
        if let Err(panic) = ended {
            let message = panic_message(&*panic);
            on_panic(&format!("thread {thread} panicked: {message}"));
            std::panic::resume_unwind(panic);
        }
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_returns_its_result_and_leaves_the_group() {
        let group = TaskGroup::new("test");
        assert_eq!(group.spawn("sum", async { 1 + 1 }).await, Ok(2));
        assert_eq!(group.drain(Duration::from_secs(5)).await, 0);
        assert_eq!(group.running(), 0);
        assert!(group.inner.running.lock().is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_recorded_and_shuts_the_group_down() {
        let group = TaskGroup::new("test");
        let token = group.shutdown_token();
        let waiter = group.spawn("waiter", async move { token.wait().await });
        let error = group
            .spawn("broken", async { panic!("state is broken") })
            .await
            .map(|(): ()| ())
            .unwrap_err();
        assert!(matches!(error, TaskError::Panicked { task: "broken", .. }));
        assert_eq!(waiter.await, Ok(()), "the others are asked to end");
        assert_eq!(group.failed().as_deref(), Some("broken: state is broken"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_tasks_that_end_and_aborts_those_that_do_not() {
        let group = TaskGroup::new("test");
        let token = group.shutdown_token();
        let polite = group.spawn("polite", async move {
            token.wait().await;
            clock::sleep(Duration::from_secs(1)).await;
            "done"
        });
        let stubborn = group.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(group.drain(Duration::from_secs(10)).await, 1);
        assert_eq!(polite.await, Ok("done"));
        assert_eq!(stubborn.await, Err(TaskError::Aborted { task: "stubborn" }));
        assert!(group.shutdown_token().is_shutdown());
        assert_eq!(group.failed(), None);
    }

    #[test]
    fn a_thread_has_its_name_and_reports_its_panic() {
        let named = spawn_thread("aquifer-test", || {
            std::thread::current().name().map(str::to_owned)
        });
        let name = named.unwrap().join().unwrap();
        assert_eq!(name.as_deref(), Some("aquifer-test"));
        let broken = spawn_thread("aquifer-broken", || panic!("no")).unwrap();
        assert!(broken.join().map(|(): ()| ()).is_err());
    }
}
