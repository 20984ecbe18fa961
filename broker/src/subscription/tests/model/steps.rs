//! What may happen to a subscription in the model.

use proptest::prelude::*;
use proptest::sample::Index as Pick;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Append(Vec<u32>),
    Attach {
        priority: i32,
    },
    Detach(Pick),
    Credit {
        consumer: Pick,
        messages: u64,
        entries: u64,
    },
    /// Begins a read, or delivers the one that is under way.
    Read,
    /// Begins a read and delivers it at once.
    Deliver,
    Acknowledge {
        consumer: Pick,
        first: Pick,
        len: u64,
        cumulative: bool,
    },
    Nack {
        consumer: Pick,
        first: Pick,
        len: u64,
    },
    Seek(Pick),
    /// This many of the logged changes become durable.
    Confirm(Pick),
    /// The owner dies with what is not durable; the counts of a snapshot may be left.
    Restart {
        snapshot: bool,
    },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let pick = any::<Pick>;
    prop_oneof![
        6 => proptest::collection::vec(1u32..6, 1..5).prop_map(Step::Append),
        4 => (0i32..3).prop_map(|priority| Step::Attach { priority }),
        1 => pick().prop_map(Step::Detach),
        8 => (pick(), 0u64..12, 0u64..6).prop_map(|(consumer, messages, entries)| Step::Credit {
            consumer,
            messages,
            entries,
        }),
        4 => Just(Step::Read),
        12 => Just(Step::Deliver),
        8 => (pick(), pick(), 0u64..6, any::<bool>()).prop_map(
            |(consumer, first, len, cumulative)| Step::Acknowledge {
                consumer,
                first,
                len,
                cumulative,
            }
        ),
        3 => (pick(), pick(), 0u64..6)
            .prop_map(|(consumer, first, len)| Step::Nack { consumer, first, len }),
        1 => pick().prop_map(Step::Seek),
        3 => pick().prop_map(Step::Confirm),
        1 => any::<bool>().prop_map(|snapshot| Step::Restart { snapshot }),
    ]
}

#[derive(Default)]
pub(super) struct Account {
    pub(super) priority: i32,
    pub(super) granted: (u64, u64),
    pub(super) used: (u64, u64),
}

impl Account {
    pub(super) fn has_credit(&self) -> bool {
        self.used.0 < self.granted.0 && self.used.1 < self.granted.1
    }
}
