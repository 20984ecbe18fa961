//! What goes wrong between clients and bookies.

use std::collections::VecDeque;

use aquifer_ledger::writer::machine::{AddReply, WriterEvent};
use aquifer_model::storage::BookieError;

use crate::bookie::Crash;
use crate::model::part::Part;
use crate::model::world::{Answer, Tag, World, number_of};

impl World {
    /// Everything between a client and a bookie is lost; the client learns that it does not know.
    pub(super) fn lose_link(&mut self, client: u8, bookie: u8) {
        let link = (client, bookie);
        let answers = self.answers.remove(&link).unwrap_or_default();
        let requests = self.requests.remove(&link).unwrap_or_default();
        let node = &self.bookies[usize::from(bookie)];
        let taken: Vec<Tag> = node
            .tickets()
            .filter(|t| t.client == client)
            .cloned()
            .collect();
        if !taken.is_empty() {
            self.bookie(bookie).forget(|tag| tag.client == client);
        }
        let tags = answers.iter().map(|(tag, _)| tag).chain(&taken);
        let tags = tags.chain(requests.iter().map(|(tag, _)| tag));
        let unknown = || Err(BookieError::Unreachable(String::new()));
        let lost: VecDeque<Answer> = tags
            .filter(|tag| !tag.again && self.listens(tag))
            .map(|tag| (tag.clone(), unknown()))
            .collect();
        self.answers.insert(link, Part::new(lost));
    }

    pub(super) fn give_up(&mut self, bookie: u8) -> Option<()> {
        self.losses_left = self.losses_left.checked_sub(1)?;
        let late = self.writer.laggards();
        let (position, id) = late.into_iter().find(|(_, id)| number_of(*id) == bookie)?;
        let entry = self.writer.first_kept();
        self.tell_writer(WriterEvent::Reply {
            position,
            bookie: id,
            entry,
            reply: AddReply::Failed,
        });
        Some(())
    }

    pub(super) fn crash(&mut self, bookie: u8, crash: Crash) -> Option<()> {
        self.crashes_left = self.crashes_left.checked_sub(1)?;
        for client in 0..=u8::try_from(self.recoverers.len()).unwrap_or(u8::MAX) {
            self.lose_link(client, bookie);
        }
        self.bookie(bookie).crash(crash);
        if matches!(crash, Crash::LostWrite | Crash::Wipe) {
            self.lost += 1;
        }
        Some(())
    }
}
