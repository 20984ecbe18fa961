//! The parts of a server process, and the order in which they stop.
//!
//! Every role starts its parts from the bottom up and stops them from the top down, so that what a
//! part still has to finish finds the parts that it uses. The order of the stop is the same for all
//! roles; a role that lacks a part skips its step.
//!
//! Each part has a task group. A group that ends by itself has lost a task to a panic, and then the
//! process ends too: it must not go on acknowledging.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use aquifer_bookie::Bookie;
use aquifer_broker::Broker;
use aquifer_metadata::embedded::EmbeddedStore;
use aquifer_runtime::clock;
use aquifer_runtime::task::TaskGroup;
use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use tokio::sync::Mutex;

use crate::exit::CliError;
use crate::roles::greeting::Greeting;
use crate::roles::health::Health;
use crate::roles::membership::Membership;

/// How long a part may take to finish what it has begun.
const WORK_MAX: Duration = Duration::from_secs(15);
/// The same for parts that only answer: peers that keep their connections open are not waited for.
const ANSWERS_MAX: Duration = Duration::from_secs(2);
/// How long a broker may give its bundles away. What is left is taken over when its lease is gone.
const HAND_OVER_MAX: Duration = Duration::from_secs(40);
/// How long a bookie may flush. What is not flushed is in the journal.
const FLUSH_MAX: Duration = Duration::from_secs(60);

/// The tasks of one part, and how long they may take to end.
pub struct Group {
    tasks: TaskGroup,
    drain_max: Duration,
}

impl Group {
    fn new(name: &'static str, drain_max: Duration) -> Group {
        Group {
            tasks: TaskGroup::new(name),
            drain_max,
        }
    }

    /// Lets the tasks finish within their limit, and aborts the rest.
    async fn stop(&self) {
        self.tasks.drain(self.drain_max).await;
    }
}

impl Deref for Group {
    type Target = TaskGroup;

    fn deref(&self) -> &TaskGroup {
        &self.tasks
    }
}

/// The task groups of a process, in the order in which they stop. A role uses those that it has
/// parts for; the others stay empty.
pub struct Groups {
    /// What keeps a bookie announced.
    pub announcement: Group,
    /// Wire protocols of clients.
    pub protocols: Group,
    /// Auditing and repair of ledgers.
    pub autorecovery: Group,
    /// Offload of ledgers by an offloader.
    pub offload: Group,
    /// The storage API of the bookie.
    pub bookie_api: Group,
    /// Topics.
    pub broker: Group,
    /// Topic logs and ledgers.
    pub ledger: Group,
    /// Connections to bookies and brokers.
    pub transport: Group,
    /// Connections to the metadata store, or the embedded one.
    pub metadata: Group,
    /// Health checks and metrics.
    pub http: Group,
}

impl Groups {
    fn new() -> Groups {
        Groups {
            announcement: Group::new("announcement", ANSWERS_MAX),
            protocols: Group::new("protocols", WORK_MAX),
            autorecovery: Group::new("autorecovery", WORK_MAX),
            offload: Group::new("offload", WORK_MAX),
            bookie_api: Group::new("bookie-api", ANSWERS_MAX),
            broker: Group::new("broker", WORK_MAX),
            ledger: Group::new("ledger", WORK_MAX),
            transport: Group::new("transport", ANSWERS_MAX),
            metadata: Group::new("metadata", WORK_MAX),
            http: Group::new("http", ANSWERS_MAX),
        }
    }

    fn all(&self) -> [&Group; 10] {
        [
            &self.announcement,
            &self.protocols,
            &self.autorecovery,
            &self.offload,
            &self.bookie_api,
            &self.broker,
            &self.ledger,
            &self.transport,
            &self.metadata,
            &self.http,
        ]
    }
}

/// The parts of a process that have started. A start enters each part as soon as it is there, so
/// that the parts can be stopped in order wherever the start ends.
pub struct Parts {
    /// The tasks of all parts.
    pub groups: Groups,
    /// The place in a cluster.
    pub membership: Option<Membership>,
    /// The embedded metadata store.
    pub store: Option<Arc<EmbeddedStore>>,
    /// Storage.
    pub bookie: Option<Bookie>,
    /// Topics.
    pub broker: Option<Arc<Broker>>,
    /// Held during steps that are not cut short.
    whole: Arc<Mutex<()>>,
}

/// A server that serves, beside its parts.
pub struct Server {
    /// What health checks answer.
    pub health: Health,
    /// Where health checks and metrics are.
    pub http_url: String,
    /// What it prints when it serves.
    pub greeting: Greeting,
}

/// Marks the steps of a start that are not cut short: what such a step makes must be entered into
/// the parts, or it would be dropped without a stop.
#[derive(Clone)]
pub struct Steps {
    whole: Arc<Mutex<()>>,
}

impl Steps {
    /// Runs a step to its end, whether or not a signal comes meanwhile. What it makes is entered
    /// before anything else is awaited.
    pub async fn whole<T>(&self, step: impl Future<Output = T>) -> T {
        let _held = self.whole.lock().await;
        step.await
    }

    /// Waits until no such step runs.
    pub async fn between(&self) {
        drop(self.whole.lock().await);
    }
}

impl Parts {
    /// None have started.
    pub fn new() -> Parts {
        Parts {
            groups: Groups::new(),
            membership: None,
            store: None,
            bookie: None,
            broker: None,
            whole: Arc::default(),
        }
    }

    /// The marks of its start.
    pub fn steps(&self) -> Steps {
        Steps {
            whole: Arc::clone(&self.whole),
        }
    }

    /// Waits until a group has ended by itself or the bookie has failed, and says why.
    pub async fn failed(&self) -> String {
        let mut watched: Vec<BoxFuture<'_, String>> = Vec::new();
        if let Some(bookie) = &self.bookie {
            watched.push(bookie.failed().boxed());
        }
        for group in self.groups.all() {
            let token = group.shutdown_token();
            let reason = async move {
                token.wait().await;
                let reason = group.failed().unwrap_or_else(|| "it ended".to_owned());
                format!("{}: {reason}", group.name())
            };
            watched.push(reason.boxed());
        }
        select_all(watched).await.0
    }

    /// Stops every part in good order. It ends within the sum of the limits, whatever a part waits
    /// for: an orchestrator would kill the process later, with less in order.
    ///
    /// # Errors
    /// When a part did not end in time. Nothing that was acknowledged is lost by that.
    pub async fn shutdown(&self) -> Result<(), CliError> {
        let groups = &self.groups;
        groups.announcement.stop().await;
        if let Some(membership) = &self.membership {
            if let Some(broker) = &self.broker {
                // While it still serves, so that clients learn where to go.
                // The next owner of what is left fences.
                let _ = within(
                    "the hand-over of bundles",
                    HAND_OVER_MAX,
                    broker.hand_over(),
                )
                .await;
            }
            // Locks go with the lease: other processes take up at once what is left half done.
            membership.withdraw().await;
        }
        groups.protocols.stop().await;
        groups.autorecovery.stop().await;
        // Others take it for dead only later than this may take.
        groups.offload.stop().await;
        groups.bookie_api.stop().await;
        if let Some(broker) = &self.broker {
            broker.shutdown().await;
        }
        groups.broker.stop().await;
        groups.ledger.stop().await;
        groups.transport.stop().await;
        let flushed = match &self.bookie {
            Some(bookie) => within("the flush of storage", FLUSH_MAX, bookie.shutdown()).await,
            None => Ok(()),
        };
        if let Some(membership) = &self.membership {
            // Without an answer of etcd its lease expires.
            let closing = membership.close();
            let _ = within("the end of the connection to etcd", ANSWERS_MAX, closing).await;
        }
        let closed = match &self.store {
            Some(store) => within("the end of the metadata store", WORK_MAX, store.close()).await,
            None => Ok(()),
        };
        groups.metadata.stop().await;
        groups.http.stop().await;
        flushed.and(closed)
    }
}

/// Waits for a step of the stop, but not for ever.
///
/// # Errors
/// When the time is over.
async fn within(
    what: &str,
    limit: Duration,
    step: impl Future<Output = ()>,
) -> Result<(), CliError> {
    clock::timeout(limit, step).await.map_err(|_| {
        let seconds = limit.as_secs();
        let message = format!("{what} took longer than {seconds} s: the process ends without it");
        tracing::warn!("{message}");
        CliError::failed(message)
            .advise("no acknowledged message is lost; the next start replays the journal")
    })
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_step_of_the_stop_is_not_waited_for_for_ever() {
        let limit = Duration::from_millis(1);
        let error = within("the flush", limit, pending()).await.unwrap_err();
        assert!(error.to_string().starts_with("the flush took"), "{error}");
        assert!(within("the flush", FLUSH_MAX, async {}).await.is_ok());
    }
}
