//! Opening of producers: which request gets a name, and when.
//!
//! A name is opened when nothing of it is in flight, so the highest persisted sequence id that is
//! answered is final. The session that loses a name is told before the new one is answered.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aquifer_model::limits::BATCH_BYTES_MAX;
use aquifer_model::topic::ProducerName;
use aquifer_protocol_api::producer::{OpenProducer, ProducerOpened, ProducerSession};
use aquifer_protocol_api::session::SessionEnd;
use tokio::sync::mpsc;

use crate::error::BrokerError;
use crate::quota::producers::Publisher;
use crate::quota::publish_limits::PublishLimits;
use crate::topic::context::TopicContext;
use crate::topic::dedup::Opener;
use crate::topic::event::{Reply, SessionId};
use crate::topic::producer::Port;
use crate::topic::publishing::Publishing;
use crate::topic::publishing::session::Session;

impl Publishing {
    /// Opens a session, at once or when nothing of its name is in flight.
    pub(in crate::topic) fn open(
        &mut self,
        cx: &TopicContext,
        request: OpenProducer,
        reply: Reply<ProducerSession>,
    ) {
        let refusal = cx
            .publish_refusal()
            .or_else(|| self.check_open(cx, &request).err());
        if let Some(error) = refusal {
            let _ = reply.send(Err(error));
            return;
        }
        let mut request = request;
        let name = match request.name.take() {
            Some(name) => name,
            None => ProducerName::drawn(cx.shared.rng.id16()),
        };
        if let Err(error) = self.claim_name(cx, &name, &request) {
            let _ = reply.send(Err(error));
            return;
        }
        request.name = Some(name.clone());
        // A former wait of the same name is overtaken.
        let waiting = std::mem::take(&mut self.opening);
        for (other, reply) in waiting {
            if other.name.as_ref() == Some(&name) {
                let _ = reply.send(Err(BrokerError::ProducerFenced(name.to_string())));
            } else {
                self.opening.push((other, reply));
            }
        }
        self.opening.push((request, reply));
        self.open_waiting(cx);
    }

    fn check_open(&self, cx: &TopicContext, request: &OpenProducer) -> Result<(), BrokerError> {
        cx.check_incarnation(request.incarnation)?;
        // One that comes back takes its own place.
        let name = request.name.as_ref();
        let is_back = name.is_some_and(|name| {
            let waits = |(other, _): &(OpenProducer, _)| other.name.as_ref() == Some(name);
            self.names.contains_key(name) || self.opening.iter().any(waits)
        });
        let used = (self.sessions.len() + self.opening.len()).saturating_sub(is_back.into());
        let max = cx.policies.borrow().counts.producers;
        cx.check_count("counts.producers", "producers", used as u64, max)
    }

    /// Decides whether a request may have a name; the session that loses it is told.
    fn claim_name(
        &mut self,
        cx: &TopicContext,
        name: &ProducerName,
        request: &OpenProducer,
    ) -> Result<(), BrokerError> {
        let opener = Opener {
            instance: request.instance,
            epoch: request.epoch,
        };
        // A client that knows the topic's incarnation has had the name before.
        let returning = request.incarnation.is_some();
        if !self.dedup.admits(name, opener, returning) {
            return Err(BrokerError::ProducerFenced(name.to_string()));
        }
        let waiting = self
            .opening
            .iter()
            .find(|(other, _)| other.name.as_ref() == Some(name));
        if let Some((other, reply)) = waiting
            && other.instance != request.instance
            && !reply.is_closed()
            && !request.take_over
        {
            return Err(BrokerError::ProducerBusy(name.to_string()));
        }
        let Some(&session_id) = self.names.get(name) else {
            return Ok(());
        };
        let Some(session) = self.sessions.get(&session_id) else {
            return Ok(());
        };
        let foreign = session.opener.instance != request.instance;
        if foreign && !session.is_dead() && !request.take_over {
            return Err(BrokerError::ProducerBusy(name.to_string()));
        }
        self.fail(
            cx,
            session_id,
            &BrokerError::ProducerFenced(name.to_string()),
        );
        Ok(())
    }

    /// Opens what has waited until nothing of its name was in flight.
    pub(super) fn open_waiting(&mut self, cx: &TopicContext) {
        if self.opening.is_empty() || self.appends.failed {
            return;
        }
        let waiting = std::mem::take(&mut self.opening);
        for (request, reply) in waiting {
            if reply.is_closed() {
                continue;
            }
            let in_flight = request
                .name
                .as_ref()
                .is_some_and(|name| self.dedup.has_in_flight(name));
            if in_flight {
                self.opening.push((request, reply));
                continue;
            }
            // An unread answer drops the session, which closes it.
            let _ = reply.send(self.open_now(cx, request));
        }
    }

    fn open_now(
        &mut self,
        cx: &TopicContext,
        request: OpenProducer,
    ) -> Result<ProducerSession, BrokerError> {
        let name = request
            .name
            .ok_or_else(|| BrokerError::Internal("a producer without a name".to_owned()))?;
        let opener = Opener {
            instance: request.instance,
            epoch: request.epoch,
        };
        self.dedup.connect(&name, opener)?;
        let session_id = SessionId(self.next_session);
        self.next_session += 1;
        let places = cx.shared.config.producer_frames_in_flight_max;
        let (receipts, receiver) = mpsc::channel(places + 1);
        let closed = Arc::new(AtomicBool::new(false));
        let opened = ProducerOpened {
            name: name.clone(),
            last_sequence_id: self.dedup.last_sequence_id(&name),
            last_index: self.dedup.last_index(&name),
            incarnation: cx.incarnation,
            owner_epoch: cx.epoch,
            batch_bytes_max: BATCH_BYTES_MAX as u64,
            deduplication: cx.policies.borrow().deduplication,
        };
        let port = Port {
            shared: Arc::clone(&cx.shared),
            session: session_id,
            topic: cx.name.clone(),
            name: name.clone(),
            instance: opener.instance,
            next_number: 1,
            receipts: receipts.clone(),
            mailbox: cx.mailbox.clone(),
            closed: Arc::clone(&closed),
            budget: cx.budgets.publish.clone(),
            limits: PublishLimits::new(Arc::clone(&cx.rates), Publisher::Named(name.clone())),
            is_refused: false,
        };
        self.names.insert(name.clone(), session_id);
        let session = Session::new(name, opener, receipts, closed);
        tracing::debug!(topic = %cx.name, producer = %session.name, epoch = opener.epoch, "producer opened");
        self.sessions.insert(session_id, session);
        cx.shared.metrics.producers.add(1, &[]);
        cx.counters.session_opened();
        self.last_used = cx.now();
        Ok(ProducerSession {
            opened,
            port: Box::new(port),
            receipts: receiver,
            room: Some(cx.budgets.publish.clone()),
            end: SessionEnd::never(),
        })
    }
}
