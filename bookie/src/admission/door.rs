//! The door: checks that need no ledger, and the budgets.
//!
//! Each tenant has a part of the budget of adds. An add for which there is no room is refused as `Overloaded`, or waits here for callers in this
//! process, which can keep what waits: a caller that is refused comes back after a pause, and the
//! journal idles meanwhile.

use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::LEDGER_ID_MAX;
use aquifer_model::limits::ENTRY_BYTES_MAX;
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedRequest, ReplyCallback,
};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use aquifer_runtime::clock;

use crate::core::Core;

/// What a request costs beyond its data, in bytes of the budget.
pub(super) const REQUEST_BYTES: usize = 256;
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
    /// Checks that need no ledger, and takes the budget.
    pub(super) fn let_in(
        &self,
        request: &OrderedRequest,
        room: Option<BytePermit>,
    ) -> BookieResult<BytePermit> {
        self.shared.mode.check()?;
        if request.ledger.0 > LEDGER_ID_MAX {
            return Err(BookieError::Invalid("ledger id above 2^53 - 1".to_owned()));
        }
        let OrderedOperation::Add(add) = &request.operation else {
            return self
                .shared
                .control
                .try_acquire(REQUEST_BYTES)
                .ok_or(BookieError::Overloaded);
        };
        if add.data.len() > ENTRY_BYTES_MAX {
            return Err(BookieError::Invalid(format!(
                "an entry has at most {ENTRY_BYTES_MAX} bytes, this one {}",
                add.data.len()
            )));
        }
        // The largest id stays free, so that there is always a next one.
        if add.entry.0 == u64::MAX {
            return Err(BookieError::Invalid("entry id too large".to_owned()));
        }
        let bytes = add.data.len() + REQUEST_BYTES;
        let permit = if add.recovery {
            self.shared.control.try_acquire(bytes)
        } else {
            self.shared.mode.check_class(add.reserve)?;
            room.or_else(|| self.shared.adds.of(request.tenant).try_acquire(bytes))
        };
        let permit = permit.ok_or(BookieError::Overloaded)?;
        if !add.is_intact(request.ledger) {
            return Err(BookieError::Digest(format!(
                "entry {}:{} as it arrived",
                request.ledger, add.entry
            )));
        }
        Ok(permit)
    }

    /// Submits a request, unless it is an add for which there is no room now: that comes back.
    pub(crate) fn try_submit(
        self: &Arc<Self>,
        request: OrderedRequest,
        reply: ReplyCallback,
    ) -> Option<(OrderedRequest, ReplyCallback)> {
        let taken = |(_, reserve): &(usize, bool)| self.shared.mode.check_class(*reserve).is_ok();
        let room = match room_of(&request).filter(taken) {
            Some((bytes, _)) => match self.shared.adds.of(request.tenant).try_acquire(bytes) {
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
            Some((bytes, reserve)) => {
                let budget = self.shared.adds.of(request.tenant);
                self.wait_for_room(&budget, bytes, reserve).await
            }
            None => None,
        };
        self.submit_into(room, request, reply);
    }

    async fn wait_for_room(
        &self,
        budget: &ByteBudget,
        bytes: usize,
        reserve: bool,
    ) -> Option<BytePermit> {
        while self.shared.mode.check().is_ok() && self.shared.mode.check_class(reserve).is_ok() {
            if let Ok(room) = clock::timeout(LOOK, budget.acquire(bytes)).await {
                return Some(room);
            }
        }
        None
    }
}
