//! A topic that takes no more messages, for good.
//!
//! It is recorded first, while producers go on. Then no session begins, those that are open end
//! behind what they have in flight, and when the outcome of all of that is known, the end of the
//! topic is final: it is answered, and told to consumers that have everything. So what is
//! acknowledged to a producer is always before the end that consumers are told, and a crash at any
//! point leaves a topic that goes on or one that is terminated.

use std::sync::Arc;

use aquifer_log::error::LogError;
use aquifer_metadata::error::MetadataError;
use aquifer_model::id::Index;

use crate::error::BrokerError;
use crate::topic::Topic;
use crate::topic::event::{Event, Life, Reply};
use crate::topic::lifecycle::Termination;

impl Topic {
    /// The topic is to end in some way, or to take no more messages.
    pub(super) fn life(&mut self, event: Life) {
        match event {
            Life::Terminate(reply) => self.terminate(reply),
            Life::Terminated(recorded) => self.terminated(recorded),
            Life::Unload => self.unload(),
            Life::Shutdown => self.shutdown(),
        }
    }

    /// Lets the topic take no more messages.
    fn terminate(&mut self, reply: Reply<Index>) {
        if let Some(error) = self.cx.refusal() {
            return drop(reply.send(Err(error)));
        }
        if self.cx.termination == Termination::Ended {
            return drop(reply.send(Ok(self.cx.visible_end())));
        }
        self.terminating.push(reply);
        if self.terminating.len() > 1 || self.cx.termination == Termination::Closing {
            return;
        }
        let (cell, mailbox) = (Arc::clone(&self.cell), self.cx.mailbox.clone());
        self.cx.shared.tasks.spawn("topic-terminate", async move {
            let recorded = cell.mark_terminated().await;
            mailbox.urgent(Event::Life(Life::Terminated(recorded)));
        });
    }

    /// It is recorded, or could not be.
    fn terminated(&mut self, recorded: Result<(), LogError>) {
        if self.cx.life.is_ending() {
            // The requests follow the topic to its next owner, which reads the record.
            self.terminating.clear();
            return;
        }
        let Err(error) = recorded else {
            self.cx.termination = Termination::Closing;
            let told = BrokerError::Terminated(self.cx.name.to_string());
            self.publishing.refuse_waiting(&told);
            self.publishing.end_all(&self.cx, &told);
            return;
        };
        tracing::warn!(topic = %self.cx.name, %error, "topic is not terminated");
        for reply in std::mem::take(&mut self.terminating) {
            let _ = reply.send(Err(BrokerError::Log(error.clone())));
        }
        match error {
            // The record tells when it is read again.
            LogError::Metadata(MetadataError::UnknownOutcome(_)) => self.unload(),
            error => {
                self.survives(&error);
            }
        }
    }

    /// Once nothing is in flight the end is final.
    pub(super) fn finish_termination(&mut self) {
        let is_due = self.cx.termination == Termination::Closing
            && self.publishing.is_quiet()
            && !self.cx.life.is_ending();
        if !is_due {
            return;
        }
        self.cx.termination = Termination::Ended;
        let end = self.cx.visible_end();
        tracing::info!(topic = %self.cx.name, %end, "topic is terminated");
        for reply in std::mem::take(&mut self.terminating) {
            let _ = reply.send(Ok(end));
        }
        self.attachments.wake_at_end();
    }
}
