//! Watches: a task for each reads etcd's stream into a bounded queue. It reconnects where the
//! stream breaks and goes on exactly after what it has queued, so that no reader sees a gap or an
//! event twice. When the consumer is slow the task lets go of the stream and takes it up again
//! once there is room, so that unread events never hold up the connection that others use.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aquifer_runtime::task::ShutdownToken;
use async_trait::async_trait;
use etcd_client::proto::{PbEvent, PbWatchResponse};
use etcd_client::{Client, Error, WatchOptions, WatchStream};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::MetadataError;
use crate::etcd::errors::{Failure, classify};
use crate::etcd::shared::Shared;
use crate::etcd::space::{Space, number, revision};
use crate::store::{Revision, Watch, WatchEvent};

/// Events, and their bytes, that wait for a consumer before the stream is let go of. One message
/// of etcd may come on top.
const QUEUED_EVENTS_MAX: usize = 4_096;
const QUEUED_BYTES_MAX: usize = 2 << 20;
/// What an event takes besides its key and value, roughly.
const EVENT_BYTES: usize = 128;
/// The type of an event that removes a key; the other is 0.
const DELETE: i32 = 1;

/// How far a watch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    /// The latest revision of which something was seen.
    revision: i64,
    /// How many of its events were seen; `None` when that is all of them.
    partial: Option<usize>,
}

impl Position {
    fn after(revision: Revision) -> Position {
        Position {
            revision: number(revision),
            partial: None,
        }
    }

    /// From which revision the stream has to go on.
    fn start(self) -> i64 {
        match self.partial {
            Some(_) => self.revision,
            None => self.revision.saturating_add(1),
        }
    }
}

/// Takes the events of a stream in order and drops what an earlier stream has brought.
struct Reader<'a> {
    space: &'a Space,
    position: Position,
    /// Events of the latest revision that this stream brings again.
    again: usize,
}

/// What a message brought.
enum Brought {
    Events(Vec<WatchEvent>),
    /// The history that is wanted is gone.
    Compacted,
    /// etcd ended the watch for another reason.
    Ended(String),
}

impl<'a> Reader<'a> {
    fn new(space: &'a Space, position: Position) -> Reader<'a> {
        Reader {
            space,
            position,
            again: position.partial.unwrap_or(0),
        }
    }

    fn read(&mut self, message: PbWatchResponse) -> Brought {
        if message.canceled {
            return if message.compact_revision > 0 {
                Brought::Compacted
            } else {
                Brought::Ended(message.cancel_reason)
            };
        }
        if message.events.is_empty() {
            // A progress notification: everything up to here was sent. The answer to the
            // creation looks alike, but says nothing of the kind.
            let at = message.header.map_or(0, |header| header.revision);
            if !message.created && at >= self.position.revision {
                self.position = Position {
                    revision: at,
                    partial: None,
                };
            }
            return Brought::Events(Vec::new());
        }
        let mut events = Vec::with_capacity(message.events.len());
        for event in message.events {
            events.extend(self.event(event));
        }
        if !message.fragment {
            // Only a fragment ends within a revision.
            self.position.partial = None;
            self.again = 0;
        }
        Brought::Events(events)
    }

    fn event(&mut self, event: PbEvent) -> Option<WatchEvent> {
        let Some(found) = event.kv else {
            tracing::warn!("an event of etcd without a key is ignored");
            return None;
        };
        let at = found.mod_revision;
        if at < self.position.start() {
            return None;
        }
        if at > self.position.revision {
            self.again = 0;
            self.position = Position {
                revision: at,
                partial: Some(0),
            };
        }
        if self.again > 0 {
            self.again -= 1;
            return None;
        }
        self.position.partial = self.position.partial.map(|seen| seen + 1);
        if event.r#type == DELETE {
            let key = self.space.relative(&found.key)?;
            return Some(WatchEvent::Delete {
                key,
                revision: revision(at),
            });
        }
        self.space.item(found).map(WatchEvent::Put)
    }
}

/// Events that wait for the consumer.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<Queued>,
    filled: Notify,
    drained: Notify,
}

#[derive(Debug, Default)]
struct Queued {
    events: VecDeque<WatchEvent>,
    bytes: usize,
    ended: bool,
}

impl Queue {
    fn push(&self, events: Vec<WatchEvent>) {
        if events.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        state.bytes += events.iter().map(bytes_of).sum::<usize>();
        state.events.extend(events);
        drop(state);
        self.filled.notify_one();
    }

    fn end(&self) {
        self.state.lock().ended = true;
        self.filled.notify_one();
    }

    fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.events.len() >= QUEUED_EVENTS_MAX || state.bytes >= QUEUED_BYTES_MAX
    }

    /// Waits until the consumer has caught up for the most part.
    async fn room(&self) {
        loop {
            let drained = self.drained.notified();
            {
                let state = self.state.lock();
                if state.events.len() <= QUEUED_EVENTS_MAX / 2
                    && state.bytes <= QUEUED_BYTES_MAX / 2
                {
                    return;
                }
            }
            drained.await;
        }
    }

    /// The next event; `None` when there are none and the watch is over.
    async fn pop(&self) -> Option<WatchEvent> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(event) = state.events.pop_front() {
                    state.bytes -= bytes_of(&event);
                    drop(state);
                    self.drained.notify_one();
                    return Some(event);
                }
                if state.ended {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

fn bytes_of(event: &WatchEvent) -> usize {
    EVENT_BYTES
        + match event {
            WatchEvent::Put(item) => item.key.len() + item.value.len(),
            WatchEvent::Delete { key, .. } => key.len(),
            WatchEvent::Resync => 0,
        }
}

/// A watch of a store in etcd.
pub(super) struct EtcdWatch {
    queue: Arc<Queue>,
    closed: CancellationToken,
    _held: DropGuard,
}

impl EtcdWatch {
    pub(super) fn start(shared: &Arc<Shared>, prefix: &str, after: Revision) -> EtcdWatch {
        let queue = Arc::new(Queue::default());
        let dropped = CancellationToken::new();
        let follower = Follower {
            shared: Arc::clone(shared),
            range: shared.space.range(prefix),
            queue: Arc::clone(&queue),
            position: Position::after(after),
            heard: false,
        };
        let shutdown = shared.tasks.shutdown_token();
        let ended = ended(shared.closed.clone(), dropped.clone(), shutdown);
        // The task ends with the watch, the store or the process; its handle is not needed.
        drop(shared.tasks.spawn("metadata-watch", follower.run(ended)));
        EtcdWatch {
            queue,
            closed: shared.closed.clone(),
            _held: dropped.drop_guard(),
        }
    }
}

async fn ended(closed: CancellationToken, dropped: CancellationToken, shutdown: ShutdownToken) {
    tokio::select! {
        () = closed.cancelled() => {}
        () = dropped.cancelled() => {}
        () = shutdown.wait() => {}
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Option<WatchEvent> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            event = self.queue.pop() => event,
        }
    }
}

/// The task of a watch.
struct Follower {
    shared: Arc<Shared>,
    range: (Vec<u8>, Vec<u8>),
    queue: Arc<Queue>,
    position: Position,
    /// The last stream was of use.
    heard: bool,
}

/// Ends a queue however its task ends.
struct EndOnDrop(Arc<Queue>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Follower {
    async fn run(mut self, ended: impl Future<Output = ()>) {
        let _end = EndOnDrop(Arc::clone(&self.queue));
        tokio::select! {
            () = self.follow() => {}
            () = ended => {}
        }
    }

    /// Follows until the history is gone.
    async fn follow(&mut self) {
        let mut tries = 0;
        loop {
            self.queue.room().await;
            self.heard = false;
            match self.open().await {
                Ok((mut stream, failures)) => {
                    let is_compacted = self.read(&mut stream, failures).await;
                    let restarts = &self.shared.watch_restarts;
                    restarts.fetch_add(1, Ordering::Relaxed);
                    if is_compacted {
                        self.queue.push(vec![WatchEvent::Resync]);
                        return;
                    }
                }
                Err(failure) => {
                    let error = MetadataError::from(failure);
                    tracing::debug!(%error, "a watch has no connection to etcd");
                }
            }
            if self.heard {
                tries = 0;
            }
            self.shared.endpoints.pause(&mut tries).await;
        }
    }

    async fn open(&self) -> Result<(WatchStream, watch::Receiver<u64>), Failure> {
        let (from, to) = self.range.clone();
        let options = WatchOptions::new()
            .with_range(to)
            .with_start_revision(self.position.start())
            .with_progress_notify()
            .with_fragment();
        let endpoints = &self.shared.endpoints;
        let open =
            |client: Client| async move { client.watch_client().watch(from, Some(options)).await };
        let opened = endpoints
            .attempt_at(endpoints.attempt_timeout(), open)
            .await;
        let (stream, endpoint) = opened?;
        let mut failures = endpoint.failures();
        failures.mark_unchanged();
        Ok((stream, failures))
    }

    /// Reads a stream until it ends or the queue is full. Returns whether history was lost.
    async fn read(&mut self, stream: &mut WatchStream, mut failures: watch::Receiver<u64>) -> bool {
        let space = &self.shared.space;
        let mut reader = Reader::new(space, self.position);
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                // A request got no answer from this member: another one may have the events.
                _ = failures.changed() => return false,
            };
            match message {
                Ok(Some(message)) => match reader.read(message.0) {
                    Brought::Events(events) => {
                        self.heard = true;
                        self.position = reader.position;
                        self.queue.push(events);
                    }
                    Brought::Compacted => return true,
                    Brought::Ended(reason) => {
                        self.interrupted(&reason).await;
                        return false;
                    }
                },
                Ok(None) => return false,
                Err(error) => {
                    self.broken(&error).await;
                    return false;
                }
            }
            if self.queue.is_full() {
                return false;
            }
        }
    }

    /// etcd ended the watch: because it wants new credentials, as far as is known.
    async fn interrupted(&self, reason: &str) {
        tracing::warn!(reason, "etcd ended a watch, starting it again");
        let login = |client: Client| async move { client.refresh_token().await };
        let endpoints = &self.shared.endpoints;
        let login = endpoints.attempt(endpoints.attempt_timeout(), login).await;
        if let Err(failure) = login {
            tracing::debug!(?failure, "the login for a watch failed");
        }
    }

    async fn broken(&self, error: &Error) {
        let failure = classify(error);
        tracing::debug!(?failure, "a watch lost its connection to etcd");
        if matches!(failure, Failure::Login(_)) {
            self.interrupted("the login has expired").await;
        }
    }
}

#[cfg(test)]
mod tests;
