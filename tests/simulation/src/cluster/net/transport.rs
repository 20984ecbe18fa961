//! What a process asks of the bookies: each request is an event of the network.

use std::sync::Arc;

use aquifer_ledger::transport::BookieTransport;
use aquifer_model::id::BookieId;
use aquifer_model::storage::{
    BookieError, BookieResult, OrderedRequest, Presence, PresenceRange, ReadBatch, ReadRange,
    ReplyCallback, TailState, TailWait,
};
use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::cluster::ids::number_of;
use crate::cluster::net::{Event, Net};

/// The way of a process to the bookies.
pub(super) struct Transport {
    pub(super) net: Arc<Net>,
    pub(super) process: u32,
}

#[async_trait]
impl BookieTransport for Transport {
    fn submit(&self, bookie: BookieId, request: OrderedRequest, reply: ReplyCallback) {
        self.net
            .submit((self.process, number_of(bookie)), request, reply);
    }

    async fn read(&self, bookie: BookieId, range: ReadRange) -> BookieResult<ReadBatch> {
        let (answer, answered) = oneshot::channel();
        let pair = (self.process, number_of(bookie));
        {
            let now = self.net.now();
            let mut state = self.net.state.lock();
            let at = now + self.net.delay(false);
            if usize::from(pair.1) >= state.nodes.len() {
                return Err(BookieError::Unreachable("no such bookie".to_owned()));
            }
            state.plan(at, Event::Read(pair, range, answer));
        }
        self.net.wake.notify_one();
        match answered.await {
            Ok(result) => result,
            // A dead process hears nothing.
            Err(_) => std::future::pending().await,
        }
    }

    async fn has(&self, bookie: BookieId, range: PresenceRange) -> BookieResult<Presence> {
        let (answer, answered) = oneshot::channel();
        let pair = (self.process, number_of(bookie));
        {
            let at = self.net.now() + self.net.delay(false);
            let mut state = self.net.state.lock();
            if usize::from(pair.1) >= state.nodes.len() {
                return Err(BookieError::Unreachable("no such bookie".to_owned()));
            }
            state.plan(at, Event::Has(pair, range, answer));
        }
        self.net.wake.notify_one();
        match answered.await {
            Ok(result) => result,
            // A dead process hears nothing.
            Err(_) => std::future::pending().await,
        }
    }

    async fn wait(&self, _bookie: BookieId, _wait: TailWait) -> BookieResult<TailState> {
        Err(BookieError::Invalid(
            "owners read what they have acknowledged".to_owned(),
        ))
    }
}
