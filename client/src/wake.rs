//! State behind a lock, whose changes wake tasks after the lock is released.
//!
//! A change of the state puts the tasks to wake into a [`Wakers`]. Dropping it wakes them, so that
//! no caller can forget to; [`Guarded`] drops it after it has released the lock, so that a task
//! that is woken does not wait for the lock.

use std::task::Waker;

use parking_lot::Mutex;

/// Tasks to be woken. Most changes wake none or one: those allocate nothing.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Wakers {
    /// Adds a task, if there is one.
    pub(crate) fn add(&mut self, waker: Option<Waker>) {
        match &self.first {
            None => self.first = waker,
            Some(_) => self.more.extend(waker),
        }
    }

    /// Adds many tasks.
    pub(crate) fn add_all(&mut self, mut wakers: Vec<Waker>) {
        match self.more.is_empty() {
            true => self.more = wakers,
            false => self.more.append(&mut wakers),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }
}

impl Drop for Wakers {
    fn drop(&mut self) {
        let first = self.first.take();
        first.into_iter().for_each(Waker::wake);
        self.more.drain(..).for_each(Waker::wake);
    }
}

/// A state behind a lock. The lock is held for moments only and never across an await.
#[derive(Debug)]
pub(crate) struct Guarded<T> {
    state: Mutex<T>,
}

impl<T> Guarded<T> {
    pub(crate) fn new(state: T) -> Guarded<T> {
        Guarded {
            state: Mutex::new(state),
        }
    }

    /// Looks at the state.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.state.lock())
    }

    /// Changes the state, and wakes.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T, &mut Wakers) -> R) -> R {
        let mut wakers = Wakers::default();
        let result = {
            let mut state = self.state.lock();
            change(&mut state, &mut wakers)
        };
        drop(wakers);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    /// Counts how often it is woken while the lock is free.
    struct Probe {
        guarded: Guarded<Option<Waker>>,
        woken: AtomicUsize,
    }

    impl Wake for Probe {
        fn wake(self: Arc<Probe>) {
            if self.guarded.state.try_lock().is_some() {
                self.woken.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn all_are_woken_once_and_after_the_lock_is_released() {
        let probe = Arc::new(Probe {
            guarded: Guarded::new(None),
            woken: AtomicUsize::new(0),
        });
        let waker = || Waker::from(Arc::clone(&probe));
        probe.guarded.change(|state, _| *state = Some(waker()));
        probe.guarded.change(|state, wakers| {
            wakers.add(state.take());
            wakers.add(state.take());
            wakers.add_all(vec![waker(), waker()]);
            wakers.add(Some(waker()));
        });
        assert_eq!(probe.woken.load(Ordering::Relaxed), 4);
        assert!(probe.guarded.read(Option::is_none));
    }
}
