//! Moving a subscription or reader: asked for once at a time, sent again after a reconnect. So the
//! place is one that does not move meanwhile, where the caller may know it (`receiver.rs`).

use std::sync::Arc;

use aquifer_model::id::{Index, SeekEpoch};
use aquifer_model::place::Place;
use aquifer_proto::v1;
use aquifer_runtime::clock::Instant;

use crate::consumer::inbox::refusals::is_for_the_moment;
use crate::consumer::inbox::{Inbox, SeekOutcome};
use crate::error::ClientError;
use crate::wake::Wakers;

/// A seek that the broker has not confirmed.
#[derive(Debug)]
pub(super) struct PendingSeek {
    pub(super) request_id: u64,
    pub(super) place: Place,
    pub(super) outcome: Arc<SeekOutcome>,
    pub(super) is_sent: bool,
}

impl Inbox {
    /// The broker has moved the subscription, for this consumer or for another (id 0).
    pub(crate) fn seek_done(
        &mut self,
        session: u64,
        done: v1::SeekDone,
        now: Instant,
        wakers: &mut Wakers,
    ) {
        if session != self.session {
            return;
        }
        let ours = |seek: &mut PendingSeek| seek.is_sent && seek.request_id == done.request_id;
        if let Some(refusal) = done.error {
            // Everything stays where it is.
            let error: ClientError = refusal.into();
            if is_for_the_moment(&error) {
                if let Some(seek) = self.seek.as_mut()
                    && ours(seek)
                {
                    seek.is_sent = false;
                }
                self.refusals.hold_back(now);
                error.remember(&mut self.last_error);
            } else if let Some(seek) = self.seek.take_if(ours) {
                seek.outcome.set_and(Err(error), wakers);
            }
            return;
        }
        self.has_ended = false;
        self.last_error = None;
        self.advance_seek_epoch(SeekEpoch(done.seek_epoch), wakers);
        self.role.moved_to(done.index);
        if let Some(seek) = self.seek.take_if(ours) {
            seek.outcome.set_and(Ok(Index(done.index)), wakers);
        }
        self.wake_for_credit(wakers);
    }

    /// Asks for a seek; `Err` is the outcome of one that must end first.
    pub(crate) fn seek(
        &mut self,
        place: Place,
        wakers: &mut Wakers,
    ) -> std::result::Result<Arc<SeekOutcome>, Arc<SeekOutcome>> {
        if let Some(seek) = &self.seek {
            return Err(Arc::clone(&seek.outcome));
        }
        self.last_seek_id += 1;
        let outcome = Arc::new(SeekOutcome::default());
        self.seek = Some(PendingSeek {
            request_id: self.last_seek_id,
            place,
            outcome: Arc::clone(&outcome),
            is_sent: false,
        });
        wakers.add(self.stream.take());
        Ok(outcome)
    }

    /// This seek is not waited for any more.
    pub(crate) fn abandon_seek(&mut self, outcome: &Arc<SeekOutcome>, wakers: &mut Wakers) {
        let ours = |seek: &mut PendingSeek| Arc::ptr_eq(&seek.outcome, outcome);
        if let Some(seek) = self.seek.take_if(ours) {
            // A seek that is queued behind it must not wait for it for ever.
            let error = ClientError::closed("seek");
            seek.outcome.set_and(Err(error), wakers);
        }
    }
}
