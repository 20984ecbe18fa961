//! What shows in metadata that a process owns a topic. Every change of the topic and of its ledgers
//! compares it (I4).

use std::sync::Arc;

use aquifer_metadata::store::Guard;
use parking_lot::Mutex;

/// Guards that may be rewritten while the owner stays the same, as when its bundle is split. A
/// record and the writers of its ledgers share them: with the former ones a writer would take
/// itself for fenced.
#[derive(Debug, Clone, Default)]
pub struct Guards(Arc<Mutex<Right>>);

/// What an owner may change, and what shows that.
#[derive(Debug, Clone, Default)]
pub struct Right {
    /// What every change compares.
    pub guards: Vec<Guard>,
    /// The topic is handed over: what is open may be sealed and what is old trimmed, and no ledger
    /// is opened any more (H21).
    pub sealing_only: bool,
}

impl Guards {
    /// Guards of an owner that may change everything.
    #[must_use]
    pub fn new(guards: Vec<Guard>) -> Guards {
        Guards(Arc::new(Mutex::new(Right {
            guards,
            sealing_only: false,
        })))
    }

    /// The current guards.
    #[must_use]
    pub fn now(&self) -> Vec<Guard> {
        self.0.lock().guards.clone()
    }

    /// The guards together with what they are good for: a change that is allowed is made under
    /// these and no others.
    #[must_use]
    pub fn right(&self) -> Right {
        self.0.lock().clone()
    }

    /// Replaces the guards; what they are good for stays.
    pub fn set(&self, guards: Vec<Guard>) {
        self.0.lock().guards = guards;
    }

    /// Replaces the guards by those of a hand-over, good for sealing and trimming only (H21).
    pub fn hand_over(&self, guards: Vec<Guard>) {
        *self.0.lock() = Right {
            guards,
            sealing_only: true,
        };
    }
}
