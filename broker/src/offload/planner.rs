//! Topics that are not loaded, and have something to be offloaded or copies to be dropped.
//!
//! The walk of the retention sweep reads the record of every topic anyway; it offers those that are
//! due here. They wait in a short queue, and are loaded some at a time: a topic does the work
//! itself, as if a client had loaded it, and goes when it is done. So there is one place where
//! ledgers are offloaded, and the owner of a bundle is the only one that loads its topics.
//!
//! It costs no metadata reads beside those of the walk, but for a topic whose last ledger a crash
//! left open: one more. Nothing is kept for a topic that is not due.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aquifer_log::offload::figures::Behind;
use aquifer_log::offload::planned::{Terms, planned};
use aquifer_metadata::store::Versioned;
use aquifer_model::id::Index;
use aquifer_model::policy::EffectivePolicies;
use aquifer_model::topic::TopicName;
use aquifer_proto::v1::TopicRecord;
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::event::Event;
use crate::topics::Topics;

/// Topics that wait for their visit; those behind them are next in the round that follows.
const QUEUE_MAX: usize = 256;
/// Topics that are visited at once, and the pause after each visit: some ten loads a second.
const VISITS_AT_ONCE: usize = 4;
const VISIT_PAUSE: Duration = Duration::from_millis(400);
/// How long its last look may take.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// How long a visit waits for the load and the work of its topic, which goes on behind it.
const WORK_MAX: Duration = Duration::from_secs(600);
const WORK_TICK: Duration = Duration::from_millis(250);
/// Least time between two visits of a topic: something may keep it from being offloaded.
const AGAIN_MIN: Duration = Duration::from_secs(120);

/// See the module.
pub(crate) struct Planner {
    topics: Arc<Topics>,
    state: Mutex<State>,
    came: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<TopicName>,
    /// Topics that wait, and when others were visited, on the monotonic clock.
    seen: HashMap<TopicName, Option<Duration>>,
    /// What is due so far in this round.
    behind: Behind,
    /// The first key in this round that found no place: the next round begins there.
    next_from: Option<String>,
    /// Where this round begins.
    from: Option<String>,
}

impl Planner {
    /// Starts to visit topics that are offered; `None` where nothing is offloaded.
    pub(crate) fn start(topics: &Arc<Topics>) -> Option<Arc<Planner>> {
        let shared = topics.shared();
        let tier = shared.log.cold.as_ref()?;
        if !tier.locations.takes_objects() {
            return None;
        }
        let planner = Arc::new(Planner {
            topics: Arc::clone(topics),
            state: Mutex::default(),
            came: Notify::new(),
        });
        for _ in 0..VISITS_AT_ONCE {
            let (planner, token) = (Arc::clone(&planner), shared.tasks.shutdown_token());
            shared.tasks.spawn("offload-visits", async move {
                tokio::select! {
                    () = planner.visits() => {}
                    () = token.wait() => {}
                }
            });
        }
        Some(planner)
    }

    /// A walk over all topics begins.
    pub(crate) fn round_begins(&self) {
        let now = self.topics.shared().clock.monotonic();
        let mut state = self.state.lock();
        let is_recent = |at: &Option<Duration>| at.is_none_or(|at| now < at + AGAIN_MIN);
        state.seen.retain(|_, at| is_recent(at));
        state.behind = Behind::default();
        state.from = state.next_from.take();
    }

    /// It has seen all topics.
    pub(crate) fn round_ends(&self) {
        if let Some(tier) = &self.topics.shared().log.cold {
            tier.figures.set_unloaded(self.state.lock().behind);
        }
    }

    /// Looks at a topic that is not loaded.
    pub(crate) async fn look(
        &self,
        topic: &TopicName,
        stored: &Versioned,
        record: &TopicRecord,
        policies: &EffectivePolicies,
    ) {
        let shared = self.topics.shared();
        let unneeded = self.topics.rests().limit(topic, stored.revision);
        let terms = Terms {
            policy: policies.offload,
            retention: policies.retention,
            unneeded: unneeded.unwrap_or(Index(u64::MAX)),
            pressed: shared
                .log
                .cold
                .as_ref()
                .is_some_and(|tier| tier.pressure.is_on()),
            now_ms: shared.clock.wall_ms(),
        };
        let store = shared.namespaces.store().as_ref();
        match planned(store, record, &terms).await {
            Ok(planned) if planned.is_due() => self.offer(&stored.key, topic, planned.behind),
            Ok(_) => {}
            Err(error) => tracing::debug!(%topic, %error, "no look at what is to be offloaded"),
        }
    }

    fn offer(&self, key: &str, topic: &TopicName, behind: Behind) {
        let mut state = self.state.lock();
        state.behind = state.behind.and(behind);
        let is_before = state.from.as_ref().is_some_and(|from| key < from.as_str());
        if is_before || state.seen.contains_key(topic) {
            return;
        }
        if state.queue.len() >= QUEUE_MAX {
            state.next_from.get_or_insert_with(|| key.to_owned());
            return;
        }
        state.seen.insert(topic.clone(), None);
        state.queue.push_back(topic.clone());
        drop(state);
        self.came.notify_one();
    }

    async fn visits(&self) {
        loop {
            let next = self.state.lock().queue.pop_front();
            let Some(topic) = next else {
                self.came.notified().await;
                continue;
            };
            self.visit(&topic).await;
            let now = self.topics.shared().clock.monotonic();
            self.state.lock().seen.insert(topic, Some(now));
            clock::sleep(VISIT_PAUSE).await;
        }
    }

    async fn visit(&self, topic: &TopicName) {
        let topics = &self.topics;
        topics.shared().metrics.offload_visits.add(1, &[]);
        match clock::timeout(WORK_MAX, self.work(topic)).await {
            Ok(Ok(())) => {}
            // Another owner looks after it, or it is gone.
            Ok(Err(BrokerError::Elsewhere { .. } | BrokerError::NotFound { .. })) => return,
            Ok(Err(error)) => {
                tracing::debug!(%topic, %error, "topic was not loaded to be offloaded");
                return;
            }
            Err(_) => tracing::debug!(%topic, "topic is still being offloaded"),
        }
        // It looks then whether it may go.
        if topics.is_there(topic) {
            let looked = topics.ask(topic, &Create::Never, Event::Trim);
            let _ = clock::timeout(LOOK_MAX, looked).await;
        }
    }

    /// Has a topic loaded, and leads it from step to step: offload, snapshot, drop of copies.
    async fn work(&self, topic: &TopicName) -> Result<(), BrokerError> {
        loop {
            let log = self
                .topics
                .ask(topic, &Create::Never, Event::Offload)
                .await?;
            clock::sleep(WORK_TICK).await;
            if !log.awaits_offload(Index(u64::MAX)) || !self.topics.is_there(topic) {
                return Ok(());
            }
        }
    }
}
