//! Byte budgets: what a component may hold in memory at once (I13). Acquiring waits in first-come
//! order, so that a large request is not starved by small ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A bounded number of bytes, shared by its clones.
#[derive(Debug, Clone)]
pub struct ByteBudget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    semaphore: Arc<Semaphore>,
    capacity_bytes: usize,
    used_bytes: AtomicUsize,
    /// The semaphore counts at most `u32::MAX` units at once; a unit is `1 << unit_shift` bytes.
    unit_shift: u32,
    units: u32,
}

/// Bytes taken from a budget, given back on drop.
#[derive(Debug)]
#[must_use = "the bytes are given back when the permit is dropped"]
pub struct BytePermit {
    inner: Arc<Inner>,
    bytes: usize,
    units: OwnedSemaphorePermit,
}

impl ByteBudget {
    /// A budget of `capacity_bytes`.
    pub fn new(capacity_bytes: usize) -> Self {
        let mut unit_shift = 0;
        let units = loop {
            match u32::try_from(capacity_bytes >> unit_shift) {
                Ok(units) => break units,
                Err(_) => unit_shift += 1,
            }
        };
        let permits = usize::try_from(units)
            .unwrap_or(Semaphore::MAX_PERMITS)
            .min(Semaphore::MAX_PERMITS);
        Self {
            inner: Arc::new(Inner {
                semaphore: Arc::new(Semaphore::new(permits)),
                capacity_bytes,
                used_bytes: AtomicUsize::new(0),
                unit_shift,
                units,
            }),
        }
    }

    /// Waits until the bytes are free and takes them. A request above the capacity takes the
    /// whole capacity: it runs alone instead of never.
    pub async fn acquire(&self, bytes: usize) -> BytePermit {
        let (bytes, units) = self.inner.clamp(bytes);
        let permit = Arc::clone(&self.inner.semaphore)
            .acquire_many_owned(units)
            .await
            .expect("the semaphore of a budget is never closed");
        self.inner.permit(bytes, permit)
    }

    /// Takes the bytes when they are free now and nobody waits for them.
    pub fn try_acquire(&self, bytes: usize) -> Option<BytePermit> {
        let (bytes, units) = self.inner.clamp(bytes);
        let permit = Arc::clone(&self.inner.semaphore)
            .try_acquire_many_owned(units)
            .ok()?;
        Some(self.inner.permit(bytes, permit))
    }

    /// Bytes that permits hold now.
    pub fn used_bytes(&self) -> usize {
        self.inner.used_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the permits may hold together.
    pub fn capacity_bytes(&self) -> usize {
        self.inner.capacity_bytes
    }
}

impl Inner {
    /// The bytes a request really takes, and its units, rounded up.
    fn clamp(&self, bytes: usize) -> (usize, u32) {
        let bytes = bytes.min(self.capacity_bytes);
        let mask = (1_usize << self.unit_shift) - 1;
        let units = (bytes >> self.unit_shift) + usize::from(bytes & mask != 0);
        (
            bytes,
            u32::try_from(units).unwrap_or(self.units).min(self.units),
        )
    }

    fn permit(self: &Arc<Self>, bytes: usize, units: OwnedSemaphorePermit) -> BytePermit {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        BytePermit {
            inner: Arc::clone(self),
            bytes,
            units,
        }
    }
}

impl BytePermit {
    /// How many bytes this permit holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what is above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let (bytes, units) = self.inner.clamp(bytes.min(self.bytes));
        let kept = usize::try_from(units).unwrap_or(usize::MAX);
        let surplus = self.units.num_permits().saturating_sub(kept);
        drop(self.units.split(surplus));
        self.inner
            .used_bytes
            .fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        self.inner
            .used_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::task::noop_waker;
    use std::pin::pin;
    use std::task::{Context, Poll};

    use super::*;

    #[test]
    fn a_permit_gives_back_what_it_does_not_need() {
        for capacity in [1_000, 1 << 40] {
            let budget = ByteBudget::new(capacity);
            let mut permit = budget.try_acquire(capacity).unwrap();
            assert!(budget.try_acquire(1).is_none());
            permit.shrink_to(capacity / 4);
            assert_eq!(budget.used_bytes(), capacity / 4);
            permit.shrink_to(capacity);
            assert_eq!(permit.bytes(), capacity / 4);
            let rest = budget.try_acquire(capacity / 2).unwrap();
            drop((permit, rest));
            assert_eq!(budget.used_bytes(), 0);
            assert!(budget.try_acquire(capacity).is_some());
        }
    }

    #[tokio::test]
    async fn permits_bound_the_bytes_in_use() {
        let budget = ByteBudget::new(100);
        let first = budget.acquire(60).await;
        assert!(budget.try_acquire(41).is_none());
        let second = budget.try_acquire(40).expect("40 bytes are free");
        assert_eq!(budget.used_bytes(), 100);
        drop(first);
        assert_eq!(budget.used_bytes(), 40);
        assert_eq!(second.bytes(), 40);
    }

    #[tokio::test]
    async fn a_request_above_the_capacity_runs_alone() {
        let budget = ByteBudget::new(10);
        let all = budget.acquire(1_000).await;
        assert_eq!(all.bytes(), 10);
        assert!(budget.try_acquire(1).is_none());
        drop(all);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn waiting_is_first_come_first_served() {
        let budget = ByteBudget::new(10);
        let held = budget.acquire(6).await;
        let waker = noop_waker();
        let mut context = Context::from_waker(&waker);
        let mut large = pin!(budget.acquire(8));
        assert!(large.as_mut().poll(&mut context).is_pending());
        let mut small = pin!(budget.acquire(1));
        assert!(
            small.as_mut().poll(&mut context).is_pending(),
            "a small request must not overtake a large one"
        );
        drop(held);
        assert!(matches!(large.as_mut().poll(&mut context), Poll::Ready(_)));
        assert!(small.now_or_never().is_some());
    }

    #[tokio::test]
    async fn budgets_above_four_gibibytes_work() {
        let capacity = 64_usize << 30;
        let budget = ByteBudget::new(capacity);
        let half = budget.acquire(capacity / 2).await;
        assert!(budget.try_acquire(capacity / 2 + (1 << 20)).is_none());
        let rest = budget.try_acquire(capacity / 2 - (1 << 20));
        assert!(rest.is_some());
        drop(half);
    }
}
