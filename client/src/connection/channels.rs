//! The streams of one broker over as many connections as they need. A connection has a bound of
//! streams, which calls must never wait for; and its flow control is shared, so that producers
//! which the broker holds back would hold back acknowledgements too: they have connections of
//! their own.

use std::sync::Arc;

use tokio::sync::Mutex;
use tonic::transport::Channel;

use crate::error::{ClientError, Result};

/// Streams of one connection, unless the broker allows less.
const STREAMS_MAX: usize = 1024;
/// Streams that are kept free for calls.
const CALLS_RESERVE: usize = 64;
/// Connections of a kind to one broker.
const CHANNELS_MAX: usize = 16;

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Batches to the broker.
    Produce,
    /// Deliveries from it.
    Consume,
}

/// The connections to one broker.
#[derive(Debug)]
pub(super) struct Channels {
    produce: Mutex<Vec<SharedChannel>>,
    /// The first one is that of calls.
    consume: Mutex<Vec<SharedChannel>>,
    streams_max: usize,
}

/// One connection. Each stream on it holds a clone of its count.
#[derive(Debug)]
struct SharedChannel {
    channel: Channel,
    streams: Arc<()>,
}

/// A place for a stream on a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    _stream: Arc<()>,
}

impl Channels {
    /// `calls` is the connection that is there already; `allowed` the streams that the broker
    /// allows on one, 0 where it does not say.
    pub(super) fn new(calls: Channel, allowed: u32) -> Channels {
        let allowed = match usize::try_from(allowed) {
            Ok(0) | Err(_) => STREAMS_MAX,
            Ok(allowed) => allowed,
        };
        let first = SharedChannel {
            channel: calls,
            streams: Arc::default(),
        };
        Channels {
            produce: Mutex::default(),
            consume: Mutex::new(vec![first]),
            streams_max: allowed.min(STREAMS_MAX),
        }
    }

    /// A place on the first connection that has one; `dial` makes another when none has.
    pub(super) async fn take<F>(
        &self,
        kind: Kind,
        dial: impl FnOnce() -> F,
    ) -> Result<(Channel, Slot)>
    where
        F: Future<Output = Result<Channel>>,
    {
        let (channels, what) = match kind {
            Kind::Produce => (&self.produce, "producers"),
            Kind::Consume => (&self.consume, "consumers and readers"),
        };
        let mut channels = channels.lock().await;
        for (at, shared) in channels.iter().enumerate() {
            let carries_calls = kind == Kind::Consume && at == 0;
            let reserve = if carries_calls { CALLS_RESERVE } else { 0 };
            // Leaves at least one, however few the broker allows.
            let most = self.streams_max.saturating_sub(reserve).max(1);
            if Arc::strong_count(&shared.streams) <= most {
                return Ok(shared.place());
            }
        }
        if channels.len() >= CHANNELS_MAX {
            let open: usize = channels.iter().map(SharedChannel::open).sum();
            return Err(ClientError::Invalid(format!(
                "this client has {open} {what} open at one broker, and no more fit into its \
                 {CHANNELS_MAX} connections: use another client for more"
            )));
        }
        let shared = SharedChannel {
            channel: Box::pin(dial()).await?,
            streams: Arc::default(),
        };
        let place = shared.place();
        channels.push(shared);
        Ok(place)
    }
}

impl SharedChannel {
    fn open(&self) -> usize {
        Arc::strong_count(&self.streams) - 1
    }

    fn place(&self) -> (Channel, Slot) {
        let slot = Slot {
            _stream: Arc::clone(&self.streams),
        };
        (self.channel.clone(), slot)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tonic::transport::Endpoint;

    use super::*;

    fn channel() -> Channel {
        Endpoint::from_static("http://127.0.0.1:1").connect_lazy()
    }

    #[tokio::test]
    async fn connections_are_made_as_streams_need_them_up_to_a_bound_that_is_named() {
        let channels = Channels::new(channel(), 100);
        let dialed = Cell::new(0);
        let take = async |kind| {
            let dial = || {
                dialed.set(dialed.get() + 1);
                std::future::ready(Ok(channel()))
            };
            channels.take(kind, dial).await.map(|(_, slot)| slot)
        };
        let mut slots = Vec::new();
        for _ in 0..100 - CALLS_RESERVE {
            slots.push(take(Kind::Consume).await.unwrap());
        }
        assert_eq!(dialed.get(), 0, "they share the connection of calls");
        slots.push(take(Kind::Consume).await.unwrap());
        assert_eq!(dialed.get(), 1, "calls keep some streams");
        let produce = take(Kind::Produce).await.unwrap();
        assert_eq!(dialed.get(), 2, "producers have connections of their own");
        drop(produce);
        while slots.len() < (100 - CALLS_RESERVE) + 100 * (CHANNELS_MAX - 1) {
            slots.push(take(Kind::Consume).await.unwrap());
        }
        assert_eq!(dialed.get(), CHANNELS_MAX);
        let error = take(Kind::Consume).await.unwrap_err();
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("1536 consumers"), "{error}");
        slots.pop();
        take(Kind::Consume)
            .await
            .expect("a place that was given back");
    }

    #[tokio::test]
    async fn a_broker_that_allows_few_streams_gets_few_on_each() {
        let channels = Channels::new(channel(), 2);
        let mut slots = Vec::new();
        for _ in 0..6 {
            let dial = || std::future::ready(Ok(channel()));
            slots.push(channels.take(Kind::Produce, dial).await.unwrap().1);
        }
        assert_eq!(channels.produce.lock().await.len(), 3);
    }
}
