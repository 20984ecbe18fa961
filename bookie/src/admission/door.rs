//! The door: checks that need no ledger, and the budgets.
//!
//! Each tenant has a part of the budget of adds. An add for which its part has no bytes is refused
//! as `Overloaded`, or waits here for callers in this process, which can keep what waits: a caller
//! that is refused comes back after a pause, and the journal idles meanwhile.

use std::time::Duration;

use aquifer_model::id::{LEDGER_ID_MAX, TenantKey};
use aquifer_model::limits::{ENTRY_BYTES_MAX, TENANT_WEIGHT_MAX};
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedOperation, OrderedRequest, ReplyCallback,
};
use aquifer_runtime::budget::{ByteBudget, BytePermit};
use aquifer_runtime::clock;

use crate::Bookie;
use crate::core::Core;
use crate::trace;

/// What a request costs beyond its data, in bytes of the budget.
pub(super) const REQUEST_BYTES: usize = 256;
/// How often a wait for the budget looks whether adds are taken at all: a store that fails gives no
/// bytes back, and its refusal must not wait for that.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of the budget that a normal add takes, and whether it may use the reserve of a full disk;
/// nothing for other requests, which have their own.
fn bytes_of(request: &OrderedRequest) -> Option<(usize, bool)> {
    match &request.operation {
        OrderedOperation::Add(add) if !add.recovery => {
            Some((add.data.len() + REQUEST_BYTES, add.reserve))
        }
        _ => None,
    }
}

impl Bookie {
    /// Submits a request; never blocks. Requests for one ledger take effect in the order in which
    /// they were submitted. `reply` is called exactly once, from any thread, possibly before this
    /// returns.
    pub fn submit(&self, request: OrderedRequest, reply: ReplyCallback) {
        self.submit_with(None, request, reply);
    }

    /// Gives a tenant a weight: its shares of this bookie while it has too much to do.
    pub fn weigh(&self, tenant: TenantKey, weight: u32) {
        let weight = weight.clamp(1, TENANT_WEIGHT_MAX);
        let shared = &self.core.shared;
        shared.turns.weigh(tenant, weight);
        shared.adds.weigh(tenant, weight);
    }

    /// The same, but an add for which the budget has no bytes now comes back instead of being
    /// answered `Overloaded`: give it to [`Bookie::submit_when_free`].
    #[must_use = "what comes back was not submitted"]
    pub fn try_submit(
        &self,
        request: OrderedRequest,
        reply: ReplyCallback,
    ) -> Option<(OrderedRequest, ReplyCallback)> {
        let shared = &self.core.shared;
        let takes = |(_, reserve): &(usize, bool)| shared.mode.check_class(*reserve).is_ok();
        let taken = match bytes_of(&request).filter(takes) {
            Some((bytes, _)) => match shared.adds.of(request.tenant).try_acquire(bytes) {
                Some(taken) => Some(taken),
                None => return Some((request, reply)),
            },
            None => None,
        };
        self.submit_with(taken, request, reply);
        None
    }

    /// Waits until the budget has bytes for a request, and submits it. A request that is refused
    /// for another reason does not wait.
    pub async fn submit_when_free(&self, request: OrderedRequest, reply: ReplyCallback) {
        let taken = match bytes_of(&request) {
            Some((bytes, reserve)) => {
                let budget = self.core.shared.adds.of(request.tenant);
                self.core.wait_for_bytes(&budget, bytes, reserve).await
            }
            None => None,
        };
        self.submit_with(taken, request, reply);
    }

    /// Lets a request in or refuses it; `taken` is what a normal add takes of the budget, if that
    /// was taken already.
    fn submit_with(
        &self,
        taken: Option<BytePermit>,
        mut request: OrderedRequest,
        reply: ReplyCallback,
    ) {
        let reply = trace::follow(&mut request, reply);
        match self.core.let_in(&request, taken) {
            Ok(permit) => self.core.enter(request, reply, permit),
            Err(error) => {
                self.core.shared.metrics.refused(&error);
                reply(Err(error));
            }
        }
    }
}

impl Core {
    /// Checks that need no ledger, and takes the budget.
    fn let_in(
        &self,
        request: &OrderedRequest,
        taken: Option<BytePermit>,
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
            taken.or_else(|| self.shared.adds.of(request.tenant).try_acquire(bytes))
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

    async fn wait_for_bytes(
        &self,
        budget: &ByteBudget,
        bytes: usize,
        reserve: bool,
    ) -> Option<BytePermit> {
        while self.shared.mode.check().is_ok() && self.shared.mode.check_class(reserve).is_ok() {
            if let Ok(taken) = clock::timeout(LOOK, budget.acquire(bytes)).await {
                return Some(taken);
            }
        }
        None
    }
}
