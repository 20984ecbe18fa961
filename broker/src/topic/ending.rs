//! How a topic ends: because another broker owns its bundle, it is deleted, its log cannot
//! continue, or it is not used. A graceful end finishes what is in flight and seals the ledgers.

use std::sync::Arc;
use std::time::Duration;

use aquifer_log::error::LogError;
use aquifer_model::id::Index;
use aquifer_runtime::clock;

use crate::error::{BrokerError, topic_survives};
use crate::topic::event::{Departure, Inbox, Reply};
use crate::topic::trimming::Rest;
use crate::topic::{Topic, at_rest, trimming};

/// How long an ending topic waits for what is in flight.
const END_DEADLINE: Duration = Duration::from_secs(10);

impl Topic {
    /// Another broker owns the bundle now, and waits for a moment until the ledgers are sealed.
    /// Until that is this topic's turn, sessions go on with the ledgers that are open, and none
    /// begins (H21).
    pub(super) fn hand_over(&mut self, departure: Arc<Departure>) {
        if let Some(owned) = &departure.sealing {
            self.cell.hand_over(vec![owned.guard.clone()]);
        }
        self.delivery_right.handed_over(self.cx.now());
        self.cx.life.depart(departure);
    }

    /// Another broker owns the bundle now. One to which it was handed over waits until the ledgers
    /// are sealed; one that took it over does not, and fences.
    pub(super) fn moved_away(&mut self, departure: Arc<Departure>) {
        let is_sealing = departure.sealing.is_some();
        let error = departure.error(&self.cx.name);
        self.hand_over(departure);
        self.end(&error, is_sealing);
    }

    pub(super) fn delete(&mut self, force: bool, reply: Reply<()>) {
        if let Some(error) = self.cx.life.departed(&self.cx.name) {
            let _ = reply.send(Err(error));
            return;
        }
        self.drop_dead_sessions();
        if !force && self.is_used() {
            let _ = reply.send(Err(BrokerError::InUse(self.cx.name.to_string())));
            return;
        }
        let error = BrokerError::Deleted(self.cx.name.to_string());
        self.fail_sessions(&error);
        self.end(&error, true);
        let _ = reply.send(Ok(()));
    }

    pub(super) fn unload(&mut self) {
        let text = "the topic is being unloaded on command".to_owned();
        self.end(&BrokerError::Unloading(text), true);
    }

    pub(super) fn shutdown(&mut self) {
        let error = BrokerError::Unloading("this broker is shutting down".to_owned());
        self.end(&error, true);
    }

    /// Begins to end. A graceful end finishes what is in flight and seals the ledgers.
    pub(super) fn end(&mut self, error: &BrokerError, graceful: bool) {
        let deadline = self.cx.now() + END_DEADLINE;
        if self.cx.life.is_ending() {
            self.cx.life.end(error, graceful, deadline);
            return;
        }
        tracing::debug!(topic = %self.cx.name, reason = %error, graceful, "topic is ending");
        self.publishing.refuse_waiting(error);
        self.attachments.refuse_waiting(error);
        if graceful {
            self.publishing.end_all(&self.cx, error);
            // Spares the next load a long replay, and keeps how often messages were delivered that
            // no consumer has acknowledged.
            if trimming::is_replay_long(self.publishing.since_snapshot())
                || self.attachments.has_redelivered()
            {
                self.cursors.want_snapshot();
            }
        } else {
            self.publishing.fail_all(&self.cx, error);
        }
        self.cx.life.end(error, graceful, deadline);
    }

    /// Ends a topic whose log cannot continue; the next request loads it again.
    pub(super) fn broken(&mut self, error: &LogError) {
        tracing::warn!(topic = %self.cx.name, %error, "topic is unloaded and will be loaded again");
        let leaving = self.cx.life.departed(&self.cx.name);
        let told = leaving.unwrap_or_else(|| BrokerError::Log(error.clone()));
        self.end(&told, false);
        if matches!(error, LogError::Fenced) {
            self.cx.life.fenced();
        }
    }

    /// Whether a failure of storage leaves the topic in place; ends it otherwise.
    pub(super) fn survives(&mut self, error: &LogError) -> bool {
        let survives = topic_survives(error);
        if !survives {
            self.broken(error);
        } else if *error == LogError::HandedOver
            && let Some(refusal) = self.cx.refusal()
        {
            // Before its turn: it cannot continue with the ledgers that are open.
            self.end(&refusal, true);
        }
        survives
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.publishing.is_quiet() && self.cursors.is_quiet(self.attachments.is_whole())
    }

    pub(super) fn is_over(&self) -> bool {
        self.cx.life.is_over(self.cx.now(), || self.is_quiet())
    }

    /// Whether clients are connected or about to be.
    pub(super) fn is_used(&self) -> bool {
        self.publishing.is_used() || self.attachments.has_consumers()
    }

    pub(super) fn fail_sessions(&mut self, error: &BrokerError) {
        self.publishing.fail_all(&self.cx, error);
        self.attachments.fail_all(&self.cx, error);
    }

    /// Refuses what is still in the mailbox, tells the clients, closes the logs.
    pub(super) async fn finish(&mut self, mut inbox: Inbox) -> Option<Rest> {
        inbox.receiver.close();
        while inbox.receiver.try_recv().is_ok() {}
        let ending = self.cx.life.take()?;
        self.fail_sessions(&ending.error);
        if ending.fenced {
            let owned = self.delivery_right.owned();
            self.cx.shared.ownership.lost(owned);
            return None;
        }
        if ending.graceful {
            self.note_at_rest();
        }
        let topic = &self.cx.name;
        let mut sealed = 0;
        for log in [&self.cx.log, self.cursors.log()] {
            match clock::timeout(END_DEADLINE, log.close()).await {
                Ok(Ok(())) => sealed += 1,
                // The next load of the topic recovers the ledger.
                Ok(Err(error)) => tracing::debug!(%topic, %error, "ledger was not sealed"),
                Err(_) => tracing::debug!(%topic, "ledger was not sealed in time"),
            }
        }
        let is_deleted = matches!(ending.error, BrokerError::Deleted(_));
        // Another owner goes on at once, and what is deleted needs no note.
        if sealed == 2 && ending.graceful && !is_deleted && !self.cx.life.is_departing() {
            match clock::timeout(END_DEADLINE, at_rest::keep(&self.cell)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%topic, %error, "backlog was not noted"),
                Err(_) => tracing::debug!(%topic, "backlog was not noted in time"),
            }
        }
        tracing::debug!(%topic, "topic unloaded");
        (sealed == 2 && ending.graceful).then(|| Rest {
            revision: self.cell.revision(),
            limit: match self.attachments.is_whole() {
                true => self.trim_limit(),
                false => Index(0),
            },
        })
    }
}
