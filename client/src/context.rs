//! What producers, consumers, readers and administration of one client share. Depends on none of
//! them.

use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::rng::SharedRng;
use aquifer_runtime::task::TaskGroup;
use tokio::sync::Semaphore;

use crate::connection::Pool;

/// The shared part of a client.
pub(crate) struct Context {
    pub(crate) pool: Pool,
    pub(crate) operation_timeout: Duration,
    /// Bytes that producers may still take.
    pub(crate) memory: Arc<Semaphore>,
    pub(crate) memory_limit_bytes: usize,
    pub(crate) clock: SharedClock,
    pub(crate) rng: SharedRng,
    pub(crate) tasks: TaskGroup,
}
