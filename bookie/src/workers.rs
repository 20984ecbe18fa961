//! A small pool of threads for work that reads the store: reads, and the loading of ledger state.
//!
//! The queues are not bounded here: every job carries a permit of one of the byte budgets.

use std::collections::VecDeque;
use std::sync::Arc;

use aquifer_runtime::task::spawn_vital_thread;
use parking_lot::{Condvar, Mutex};

use crate::shared::Shared;

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
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    threads_max: usize,
    /// Those that were started, until they are joined.
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

struct Pool {
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
    /// A pool of as many threads as the settings say.
    #[must_use]
    pub fn new(shared: &Arc<Shared>) -> Workers {
        Workers {
            threads_max: shared.config.read_threads,
            shared: Arc::clone(shared),
            threads: Mutex::default(),
            pool: Arc::new(Pool {
                state: Mutex::default(),
                wake: Condvar::new(),
            }),
        }
    }

    /// Queues a job. Without a thread to run it, it runs here.
    pub fn run(&self, priority: Priority, job: Job) {
        let mut state = self.pool.state.lock();
        match priority {
            Priority::Control => state.control.push_back(job),
            Priority::Read => state.reads.push_back(job),
        }
        let queued = state.control.len() + state.reads.len();
        if state.idle < queued && state.threads < self.threads_max {
            state.threads += 1;
            match self.start_thread() {
                Ok(thread) => self.threads.lock().push(thread),
                Err(error) => {
                    tracing::warn!(%error, "no thread for reads");
                    state.threads -= 1;
                    if state.threads == 0
                        && let Some(job) = state.next()
                    {
                        drop(state);
                        job();
                        return;
                    }
                }
            }
        }
        drop(state);
        self.pool.wake.notify_one();
    }

    fn start_thread(&self) -> std::io::Result<std::thread::JoinHandle<()>> {
        let (pool, shared) = (Arc::clone(&self.pool), Arc::clone(&self.shared));
        // A job that panics leaves its ledger busy for ever.
        let on_panic = move |why: &str| shared.mode.fail(why);
        spawn_vital_thread("bookie-read", move || pool.work(), on_panic)
    }

    /// Ends the threads after what is queued, and gives them to be joined: a thread that has used
    /// RocksDB must be gone before the process ends, because its thread-local state is destroyed
    /// with locks that the end of a process destroys, too.
    #[must_use = "the threads must be joined"]
    pub fn close(&self) -> Vec<std::thread::JoinHandle<()>> {
        self.pool.state.lock().closed = true;
        self.pool.wake.notify_all();
        std::mem::take(&mut *self.threads.lock())
    }
}

impl State {
    fn next(&mut self) -> Option<Job> {
        self.control.pop_front().or_else(|| self.reads.pop_front())
    }
}

impl Pool {
    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state.lock();
                loop {
                    if let Some(job) = state.next() {
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
