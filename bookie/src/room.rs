//! Adds that wait for room instead of being refused: for callers in this process, who can keep
//! what waits. Whoever is refused as `Overloaded` comes back after a pause, and the journal idles
//! meanwhile.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::storage::{OrderedOperation, OrderedRequest, ReplyCallback};
use aquifer_runtime::budget::BytePermit;
use aquifer_runtime::clock;

use crate::admission::REQUEST_BYTES;
use crate::core::Core;

/// How often a wait for room looks whether adds are taken at all: a store that fails gives no
/// room back, and its refusal must not wait for that.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of the budget that a normal add takes, and whether it may use the reserve of a full disk;
/// nothing for other requests, which have their own.
fn room_of(request: &OrderedRequest) -> Option<(usize, bool)> {
    match &request.operation {
        OrderedOperation::Add(add) if !add.recovery => {
            Some((add.data.len() + REQUEST_BYTES, add.reserve))
        }
        _ => None,
    }
}

impl Core {
    /// Submits a request, unless it is an add for which there is no room now: that comes back.
    pub(crate) fn try_submit(
        self: &Arc<Self>,
        request: OrderedRequest,
        reply: ReplyCallback,
    ) -> Option<(OrderedRequest, ReplyCallback)> {
        let taken = |(_, reserve): &(usize, bool)| self.shared.mode.check_class(*reserve).is_ok();
        let room = match room_of(&request).filter(taken) {
            Some((bytes, _)) => match self.shared.adds.try_acquire(bytes) {
                Some(room) => Some(room),
                None => return Some((request, reply)),
            },
            None => None,
        };
        self.submit_into(room, request, reply);
        None
    }

    /// Submits a request, an add once there is room for it. What is refused for another reason
    /// is refused at once.
    pub(crate) async fn submit_when_room(
        self: &Arc<Self>,
        request: OrderedRequest,
        reply: ReplyCallback,
    ) {
        let room = match room_of(&request) {
            Some((bytes, reserve)) => self.wait_for_room(bytes, reserve).await,
            None => None,
        };
        self.submit_into(room, request, reply);
    }

    async fn wait_for_room(&self, bytes: usize, reserve: bool) -> Option<BytePermit> {
        while self.shared.mode.check().is_ok() && self.shared.mode.check_class(reserve).is_ok() {
            if let Ok(room) = clock::timeout(LOOK, self.shared.adds.acquire(bytes)).await {
                return Some(room);
            }
        }
        None
    }
}
