//! A small pool of threads for work that reads RocksDB: reads, and the loading of ledger state.
//!
//! The queues are not bounded here: every job carries a permit of one of the byte budgets.

use std::collections::VecDeque;
use std::sync::Arc;

use aquifer_runtime::task::spawn_thread;
use parking_lot::{Condvar, Mutex};

/// Work for the pool.
pub type Job = Box<dyn FnOnce() + Send>;

/// What goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Admission and recovery.
    Control,
    /// Reads.
    Read,
}

/// The pool. Threads start when there is work for them.
pub struct Workers {
    shared: Arc<Shared>,
    threads_max: usize,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    control: VecDeque<Job>,
    reads: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Workers {
    /// A pool of at most so many threads.
    #[must_use]
    pub fn new(threads_max: usize) -> Workers {
        Workers {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                wake: Condvar::new(),
            }),
            threads_max,
        }
    }

    /// Queues a job. Without a thread to run it, it runs here.
    pub fn run(&self, priority: Priority, job: Job) {
        let mut state = self.shared.state.lock();
        match priority {
            Priority::Control => state.control.push_back(job),
            Priority::Read => state.reads.push_back(job),
        }
        let queued = state.control.len() + state.reads.len();
        if state.idle < queued && state.threads < self.threads_max {
            state.threads += 1;
            let shared = Arc::clone(&self.shared);
            if let Err(error) = spawn_thread("bookie-read", move || shared.work()) {
                tracing::warn!(%error, "no thread for reads");
                state.threads -= 1;
                if state.threads == 0
                    && let Some(job) = state
                        .control
                        .pop_front()
                        .or_else(|| state.reads.pop_front())
                {
                    drop(state);
                    job();
                    return;
                }
            }
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Ends the threads after what is queued.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state.lock();
                loop {
                    let job = state
                        .control
                        .pop_front()
                        .or_else(|| state.reads.pop_front());
                    if let Some(job) = job {
                        break job;
                    }
                    if state.closed {
                        state.threads -= 1;
                        return;
                    }
                    state.idle += 1;
                    self.wake.wait(&mut state);
                    state.idle -= 1;
                }
            };
            job();
        }
    }
}
