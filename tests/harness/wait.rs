//! Waiting on conditions.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use aquifer_runtime::clock::{SystemClock, sleep};

/// How long a test waits for something that must happen before it fails. Generous, because CI
/// machines stall; a passing test never waits that long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Polls `probe` until it gives a value.
///
/// # Errors
/// When the probe fails, or has no value within [`PATIENCE`].
pub async fn until<T, F, Fut>(what: &str, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let clock = SystemClock::shared();
    let start = clock.monotonic();
    loop {
        if let Some(value) = probe().await? {
            return Ok(value);
        }
        if clock.monotonic() - start > PATIENCE {
            bail!("waited {PATIENCE:?} in vain: {what}");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a future, failing the test when it does not end within [`PATIENCE`].
///
/// # Errors
/// The future's, or that it did not end.
pub async fn within<T>(what: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
    match aquifer_runtime::clock::timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => bail!("did not end within {PATIENCE:?}: {what}"),
    }
}
