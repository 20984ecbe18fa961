//! Opening of producers: who gets a name, and when.
//!
//! A name is opened when nothing of it is in flight, so the highest persisted sequence id that is
//! answered is final. Whoever loses a name is told before the new one is answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aquifer_model::limits::{BATCH_BYTES_MAX, PRODUCERS_PER_TOPIC_MAX};
use aquifer_model::topic::ProducerName;
use aquifer_protocol_api::producer::{OpenProducer, ProducerOpened, ProducerSession};
use tokio::sync::mpsc;

use crate::error::BrokerError;
use crate::topic::Topic;
use crate::topic::dedup::Opener;
use crate::topic::event::{Reply, SessionId};
use crate::topic::producer::Port;
use crate::topic::publish::Session;

impl Topic {
    pub(in crate::topic) fn open_producer(
        &mut self,
        request: OpenProducer,
        reply: Reply<ProducerSession>,
    ) {
        let refusal = self
            .refusal()
            .or_else(|| self.check_open_producer(&request).err());
        if let Some(error) = refusal {
            let _ = reply.send(Err(error));
            return;
        }
        let mut request = request;
        let name = match request.name.take() {
            Some(name) => name,
            None => ProducerName::drawn(self.shared.rng.id16()),
        };
        if let Err(error) = self.claim_name(&name, &request) {
            let _ = reply.send(Err(error));
            return;
        }
        request.name = Some(name.clone());
        // A former wait of the same name is overtaken.
        let waiting = std::mem::take(&mut self.publishing.opening);
        for (other, reply) in waiting {
            if other.name.as_ref() == Some(&name) {
                let _ = reply.send(Err(BrokerError::ProducerFenced(name.to_string())));
            } else {
                self.publishing.opening.push((other, reply));
            }
        }
        self.publishing.opening.push((request, reply));
        self.open_waiting();
    }

    fn check_open_producer(&self, request: &OpenProducer) -> Result<(), BrokerError> {
        self.check_incarnation(request.incarnation)?;
        let publishing = &self.publishing;
        if publishing.sessions.len() + publishing.opening.len() >= PRODUCERS_PER_TOPIC_MAX {
            return Err(BrokerError::Quota {
                what: "the number of producers of a topic",
                max: PRODUCERS_PER_TOPIC_MAX,
            });
        }
        Ok(())
    }

    /// Decides who has a name; whoever loses it is told.
    fn claim_name(
        &mut self,
        name: &ProducerName,
        request: &OpenProducer,
    ) -> Result<(), BrokerError> {
        let opener = Opener {
            instance: request.instance,
            epoch: request.epoch,
        };
        // Who knows the topic's life has had the name before.
        let returning = request.incarnation.is_some();
        if !(self.publishing.dedup).admits(name, opener, returning) {
            return Err(BrokerError::ProducerFenced(name.to_string()));
        }
        let waiting = self
            .publishing
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
        let Some(&session_id) = self.publishing.names.get(name) else {
            return Ok(());
        };
        let Some(session) = self.publishing.sessions.get(&session_id) else {
            return Ok(());
        };
        let foreign = session.opener.instance != request.instance;
        if foreign && !session.receipts.is_closed() && !request.take_over {
            return Err(BrokerError::ProducerBusy(name.to_string()));
        }
        self.fail_session(session_id, &BrokerError::ProducerFenced(name.to_string()));
        Ok(())
    }

    /// Opens what has waited until nothing of its name was in flight.
    pub(super) fn open_waiting(&mut self) {
        if self.publishing.opening.is_empty() || self.publishing.failed {
            return;
        }
        let waiting = std::mem::take(&mut self.publishing.opening);
        for (request, reply) in waiting {
            if reply.is_closed() {
                continue;
            }
            let in_flight = request
                .name
                .as_ref()
                .is_some_and(|name| self.publishing.dedup.has_in_flight(name));
            if in_flight {
                self.publishing.opening.push((request, reply));
                continue;
            }
            // An unread answer drops the session, which closes it.
            let _ = reply.send(self.open_now(request));
        }
    }

    fn open_now(&mut self, request: OpenProducer) -> Result<ProducerSession, BrokerError> {
        let name = request
            .name
            .ok_or_else(|| BrokerError::Internal("a producer without a name".to_owned()))?;
        let opener = Opener {
            instance: request.instance,
            epoch: request.epoch,
        };
        self.publishing.dedup.connect(&name, opener)?;
        let session_id = SessionId(self.publishing.next_session);
        self.publishing.next_session += 1;
        let places = self.shared.config.producer_frames_in_flight_max;
        let (receipts, receiver) = mpsc::channel(places + 1);
        let last = receipts.clone().try_reserve_owned().ok();
        let closed = Arc::new(AtomicBool::new(false));
        let opened = ProducerOpened {
            name: name.clone(),
            last_sequence_id: self.publishing.dedup.last_sequence_id(&name),
            last_index: self.publishing.dedup.last_index(&name),
            incarnation: self.incarnation,
            owner_epoch: self.epoch(),
            batch_bytes_max: BATCH_BYTES_MAX as u64,
            deduplication: self.policies.borrow().deduplication,
        };
        let port = Port {
            shared: Arc::clone(&self.shared),
            session: session_id,
            name: name.clone(),
            instance: opener.instance,
            next_number: 1,
            receipts: receipts.clone(),
            mailbox: self.mailbox.clone(),
            closed: Arc::clone(&closed),
            budget: self.rooms.publish.clone(),
            held: None,
        };
        self.publishing.names.insert(name.clone(), session_id);
        let session = Session {
            name,
            receipts,
            last,
            closed,
            pending: VecDeque::new(),
            stalled: VecDeque::new(),
            doom: None,
            opener,
        };
        tracing::debug!(topic = %self.name, producer = %session.name, epoch = opener.epoch, "producer opened");
        self.publishing.sessions.insert(session_id, session);
        self.shared.metrics.producers.add(1, &[]);
        self.counters.session_opened();
        self.last_used = self.now();
        Ok(ProducerSession {
            opened,
            port: Box::new(port),
            receipts: receiver,
            room: Some(self.rooms.publish.clone()),
        })
    }
}
