//! A result that many waiters share: one allocation per batch or request, none per message.
//!
//! Set once, never changed. Wakers are bounded by the number of waiters that exist.

use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::wake::Wakers;

/// A value that arrives later.
#[derive(Debug)]
pub(crate) struct Completion<T> {
    value: OnceLock<T>,
    wakers: Mutex<Vec<Waker>>,
}

impl<T> Default for Completion<T> {
    fn default() -> Completion<T> {
        Completion {
            value: OnceLock::new(),
            wakers: Mutex::new(Vec::new()),
        }
    }
}

impl<T> Completion<T> {
    /// Sets the value and wakes all waiters; the first value stays.
    pub(crate) fn set(&self, value: T) {
        self.set_and(value, &mut Wakers::default());
    }

    /// The same under a lock: the waiters are woken with others, after it is released.
    pub(crate) fn set_and(&self, value: T, wakers: &mut Wakers) {
        if self.value.set(value).is_err() {
            return;
        }
        wakers.add_all(std::mem::take(&mut *self.wakers.lock()));
    }

    /// The value, once it is there. `slot` belongs to the waiter and starts as `None`.
    pub(crate) fn poll(&self, slot: &mut Option<usize>, cx: &mut Context<'_>) -> Poll<&T> {
        if let Some(value) = self.value.get() {
            return Poll::Ready(value);
        }
        let mut wakers = self.wakers.lock();
        // The value is set before the wakers are taken, so a waiter that finds none here is in
        // the list in time.
        if let Some(value) = self.value.get() {
            return Poll::Ready(value);
        }
        match slot.and_then(|at| wakers.get_mut(at)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                *slot = Some(wakers.len());
                wakers.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Waits for the value.
    pub(crate) async fn wait(&self) -> &T {
        let mut slot = None;
        std::future::poll_fn(|cx| match self.poll(&mut slot, cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        })
        .await;
        self.value
            .get()
            .expect("poll is ready only when the value is set")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn every_waiter_gets_the_first_value() {
        let completion = Arc::new(Completion::default());
        let early = Arc::clone(&completion);
        let waiters = futures::future::join_all((0..3).map(|_| async { *early.wait().await }));
        let set = async {
            completion.set(1);
            completion.set(2);
        };
        let (values, ()) = futures::join!(waiters, set);
        assert_eq!(values, [1, 1, 1]);
        assert_eq!(completion.wait().now_or_never(), Some(&1));
    }

    #[test]
    fn one_waiter_keeps_one_waker_however_often_it_polls() {
        let completion = Completion::<u8>::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut slot = None;
        for _ in 0..10 {
            assert!(completion.poll(&mut slot, &mut cx).is_pending());
        }
        assert_eq!(completion.wakers.lock().len(), 1);
    }
}
