//! Two ways to visit fewer states without hiding anything.

use std::collections::VecDeque;

use aquifer_model::storage::{OrderedOperation, OrderedRequest};

use super::{Answer, Heard, LEDGER, Link, World};
use crate::model::settings::Setting;

impl World {
    /// An answer that means nothing to a machine now never will: it is taken at once, so that
    /// states do not differ by when it is.
    pub(super) fn forget_what_changes_nothing(&mut self) {
        let links: Vec<Link> = self.answers.keys().copied().collect();
        for link in links {
            while let Some(answer) = self.answers.get(&link).and_then(VecDeque::front)
                && !self.matters(link.1, answer)
            {
                self.answers.entry(link).or_default().pop_front();
            }
        }
    }

    fn matters(&self, bookie: u8, (tag, result): &Answer) -> bool {
        if !self.listens(tag) {
            return false;
        }
        match self.event_of(bookie, tag, result) {
            Heard::Writer(event) => {
                let (mut machine, mut actions) = (self.writer.clone(), Vec::new());
                machine.on(event, &mut actions);
                !actions.is_empty() || machine != self.writer
            }
            Heard::Recoverer(event) => {
                let slot = usize::from(tag.client - 1);
                let Some(recoverer) = &self.recoverers[slot] else {
                    return false;
                };
                let (mut machine, mut actions) = (recoverer.machine.clone(), Vec::new());
                machine.on(event, &mut actions);
                !actions.is_empty() || machine != recoverer.machine
            }
        }
    }

    /// The oldest request of a link that can be served before anything else without hiding
    /// anything: all faults have happened, and it reads from, or is refused by, a bookie that is
    /// fenced, where nothing that it sees can change any more.
    pub(in crate::model) fn served_first(&self, setting: &Setting) -> Option<Link> {
        let faults_left = self.losses_left + self.duplicates_left + self.crashes_left;
        if faults_left > 0 || setting.journal || setting.defect.is_some() || setting.recoverers > 1
        {
            return None;
        }
        let is_free = |(_, bookie): &Link, request: &OrderedRequest| {
            self.bookies[usize::from(*bookie)].is_fenced(LEDGER)
                && match &request.operation {
                    OrderedOperation::Add(add) => !add.recovery,
                    OrderedOperation::Fence | OrderedOperation::RecoveryRead(_) => true,
                    OrderedOperation::WriteLac(_) | OrderedOperation::Delete => false,
                }
        };
        let mut heads = self
            .requests
            .iter()
            .filter_map(|(link, queue)| Some((link, queue.front()?)));
        let found = heads.find(|(link, (_, request))| is_free(link, request));
        found.map(|(link, _)| *link)
    }
}
