//! What must hold in every state.

use aquifer_model::id::EntryId;

use crate::model::Outcome;
use crate::model::settings::Setting;
use crate::model::world::{LEDGER, World, number_of};

impl World {
    /// How the ledger ended, if it has.
    pub(in crate::model) fn outcome(&self) -> Option<Outcome> {
        let closed = self.closed_entries()?;
        let fragments = self.record.fragments.clone().into_iter().collect();
        Some((self.acked, closed, fragments))
    }

    /// I1: what is acknowledged is durable on Qa bookies, but for those that were lost.
    #[must_use]
    pub fn acknowledged_is_durable(&self, setting: &Setting) -> bool {
        (0..self.acked).all(|entry| self.has_copies(setting, 0..setting.bookies, entry))
    }

    /// I2, I3, I4: a closed ledger has all that was or ever will be acknowledged, where a reader
    /// looks for it.
    #[must_use]
    pub fn closed_has_everything(&self, setting: &Setting) -> bool {
        let Some(entries) = self.closed_entries() else {
            return true;
        };
        self.acked <= entries
            && (0..entries).all(|entry| {
                let fragment = self.record.fragments.range(..=EntryId(entry)).next_back();
                let members = fragment.map(|(_, members)| members.as_slice());
                let set = setting.quorum.write_set(entry);
                let set = set.map(|position| number_of(members.unwrap_or_default()[position]));
                self.has_copies(setting, set, entry)
            })
    }

    /// H16: of a closed ledger, a bookie that lacks what it should have is marked.
    #[must_use]
    pub fn incomplete_is_marked(&self, setting: &Setting) -> bool {
        let Some(entries) = self.closed_entries().filter(|_| self.lost == 0) else {
            return true;
        };
        (0..entries).all(|entry| {
            let fragment = self.record.fragments.range(..=EntryId(entry)).next_back();
            let members = fragment.map(|(_, members)| members.as_slice());
            let set = setting.quorum.write_set(entry);
            let mut set = set.map(|position| members.unwrap_or_default()[position]);
            set.all(|id| {
                let bookie = &self.bookies[usize::from(number_of(id))];
                bookie.is_durable(LEDGER, EntryId(entry)) || self.record.doubted.contains(&id)
            })
        })
    }

    fn has_copies(&self, setting: &Setting, bookies: impl Iterator<Item = u8>, entry: u64) -> bool {
        let has = |number: &u8| {
            let bookie = &self.bookies[usize::from(*number)];
            bookie.is_durable(LEDGER, EntryId(entry))
        };
        bookies.filter(has).count() + usize::from(self.lost) >= setting.quorum.ack()
    }

    /// What is acknowledged and lacks a bookie that can still get it stays within its bound.
    #[must_use]
    pub fn bound_holds(&self, setting: &Setting) -> bool {
        self.writer.is_finished() || self.writer.kept_bytes() <= setting.kept_bytes_max
    }

    /// A recovery gives up only when something was lost.
    #[must_use]
    pub fn recovery_decides(&self, setting: &Setting) -> bool {
        let nothing_lost = self.losses_left == setting.losses
            && self.crashes_left == setting.crashes
            && self.lost == 0;
        self.aborts == 0 || !nothing_lost
    }
}
