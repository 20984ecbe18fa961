//! What shows in metadata that a process owns a topic. Every change of the topic and of its ledgers
//! compares it (I4).

use std::sync::Arc;

use aquifer_metadata::store::Guard;
use parking_lot::Mutex;

/// Guards that may be written anew while the owner stays the same, as when its bundle is split. A
/// record and the writers of its ledgers share them: with the former ones a writer would take itself
/// for fenced.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guards(Arc<Mutex<Vec<Guard>>>);

impl Guards {
    pub(crate) fn new(guards: Vec<Guard>) -> Guards {
        Guards(Arc::new(Mutex::new(guards)))
    }

    pub(crate) fn now(&self) -> Vec<Guard> {
        self.0.lock().clone()
    }

    pub(crate) fn set(&self, guards: Vec<Guard>) {
        *self.0.lock() = guards;
    }
}
