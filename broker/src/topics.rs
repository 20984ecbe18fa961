//! The loaded topics of the broker: a keyed map with single-flight loading and unloading.
//!
//! Invariants: at most one object per topic name exists at a time, so that a topic is opened only
//! after its former object has closed; a failed object is never repaired, only replaced.

pub(crate) mod deletion;
mod queue;
pub(crate) mod removal;
mod rests;
mod running;
mod unloading;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_model::id::TopicIncarnation;
use aquifer_model::topic::TopicName;
use aquifer_runtime::clock;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::bundle::{Bundle, topic_hash};
use crate::context::Context;
use crate::error::BrokerError;
use crate::security::audit::cause::Create;
use crate::topic::event::{Departure, Event};
use crate::topic::handle::TopicHandle;
use crate::topic::load::{self, Loaded};
use crate::topic::pull::{Door, Pull};
use crate::topic::record::find_or_create;
use crate::topic::trimming::Rest;
use crate::topics::deletion::Deletions;
use crate::topics::queue::LoadQueue;
use crate::topics::removal::Removals;
use crate::topics::rests::Rests;
use crate::traffic::Sample;
use crate::traffic::furthest::Furthest;

/// How often it is looked whether topics are left.
const EMPTY_TICK: Duration = Duration::from_millis(20);
/// Times that a request follows a topic that goes away under it.
const ATTEMPTS_MAX: u32 = 5;

/// What comes of a load.
type Outcome = watch::Receiver<Option<Result<TopicHandle, BrokerError>>>;

/// What of a topic is there.
enum Slot {
    /// It is being loaded; the outcome comes here. It ends at once if its bundle has moved
    /// meanwhile.
    Loading(Outcome, Option<Arc<Departure>>),
    /// It serves, or is going away.
    Loaded(TopicHandle),
    /// It is being deleted; the channel closes when that is over.
    Deleting(watch::Receiver<()>),
}

/// A topic that is being loaded.
pub(crate) struct Loading(Outcome);

impl Loading {
    /// Waits for the topic; `None` when it could not be loaded.
    pub(crate) async fn loaded(mut self) -> Option<TopicHandle> {
        let outcome = self.0.wait_for(Option::is_some).await.ok()?;
        outcome.as_ref()?.as_ref().ok().cloned()
    }
}

/// Keeps a topic from being loaded while it is deleted.
pub(crate) struct DeleteGuard {
    topics: Arc<Topics>,
    name: TopicName,
    _over: watch::Sender<()>,
}

impl Drop for DeleteGuard {
    fn drop(&mut self) {
        self.topics.map.lock().remove(&self.name);
    }
}

/// The loaded topics.
pub(crate) struct Topics {
    shared: Arc<Context>,
    map: Mutex<HashMap<TopicName, Slot>>,
    loads: Arc<LoadQueue>,
    /// What topics were left with that were unloaded.
    rests: Rests,
    deletions: Deletions,
    removals: Removals,
}

/// What a look into the map says to do.
enum Step {
    Use(TopicHandle),
    WaitLoaded(Outcome),
    /// Its bundle is another broker's.
    Leaves(TopicHandle),
    WaitDeleted(watch::Receiver<()>),
    WaitEnded(TopicHandle),
}

impl Topics {
    pub(crate) fn new(shared: Arc<Context>) -> Arc<Topics> {
        Arc::new(Topics {
            loads: LoadQueue::new(shared.config.topic_loads_max),
            rests: Rests::default(),
            shared,
            map: Mutex::new(HashMap::new()),
            deletions: Deletions::default(),
            removals: Removals::default(),
        })
    }

    /// The topic's object; loads it if it is not loaded, creates it if that is allowed.
    pub(crate) async fn get(
        self: &Arc<Self>,
        name: &TopicName,
        create: &Create,
    ) -> Result<TopicHandle, BrokerError> {
        loop {
            self.shared.check_open()?;
            match self.step(name, create) {
                Step::Use(handle) => return Ok(handle),
                Step::WaitLoaded(mut loading) => {
                    let loaded = match loading.wait_for(Option::is_some).await {
                        Ok(outcome) => outcome.clone(),
                        Err(_) => None,
                    };
                    match loaded {
                        Some(Ok(handle)) if handle.is_leaving() => {
                            self.gone_from(name, &handle).await?;
                        }
                        Some(Ok(handle)) => return Ok(handle),
                        // A load for a request that may not create answers "not found".
                        Some(Err(BrokerError::NotFound { .. })) if create.is_allowed() => {
                            create_first(&self.shared, name, create).await?;
                        }
                        Some(Err(error)) => return Err(error),
                        None => {
                            return Err(BrokerError::Unloading(
                                "the topic's load was given up".to_owned(),
                            ));
                        }
                    }
                }
                Step::Leaves(handle) => self.gone_from(name, &handle).await?,
                Step::WaitDeleted(mut over) => while over.changed().await.is_ok() {},
                Step::WaitEnded(handle) => handle.wait_ended().await,
            }
        }
    }

    /// Says where a topic is served that leaves. When that is here again, waits for the former
    /// object.
    async fn gone_from(&self, name: &TopicName, handle: &TopicHandle) -> Result<(), BrokerError> {
        self.shared.own(name).await?;
        handle.wait_ended().await;
        Ok(())
    }

    fn step(self: &Arc<Self>, name: &TopicName, create: &Create) -> Step {
        let mut map = self.map.lock();
        match map.get(name) {
            Some(Slot::Loading(loading, _)) => {
                self.loads.wanted(name);
                Step::WaitLoaded(loading.clone())
            }
            Some(Slot::Loaded(handle)) if handle.is_leaving() => Step::Leaves(handle.clone()),
            Some(Slot::Deleting(over)) => Step::WaitDeleted(over.clone()),
            Some(Slot::Loaded(handle)) if handle.mailbox.is_closed() => {
                Step::WaitEnded(handle.clone())
            }
            Some(Slot::Loaded(handle)) => Step::Use(handle.clone()),
            None => {
                let (sender, receiver) = watch::channel(None);
                map.insert(name.clone(), Slot::Loading(receiver.clone(), None));
                let (topics, name) = (Arc::clone(self), name.clone());
                let create = create.clone();
                // The load belongs to no request: a caller that goes away leaves it running
                // for the next one.
                self.shared.tasks.spawn("topic-load", async move {
                    let turn = topics.loads.turn(&name).await;
                    let outcome = load::load(&topics.shared, &name, &create).await;
                    drop(turn);
                    sender.send_replace(Some(topics.loaded(&name, outcome)));
                });
                Step::WaitLoaded(receiver)
            }
        }
    }

    /// Puts a topic that was loaded into the map, and starts its task.
    fn loaded(
        self: &Arc<Self>,
        name: &TopicName,
        outcome: Result<Loaded, BrokerError>,
    ) -> Result<TopicHandle, BrokerError> {
        let mut map = self.map.lock();
        match outcome {
            Ok(loaded) => {
                let Loaded {
                    topic,
                    inbox,
                    handle,
                    ended,
                } = loaded;
                let slot = map.insert(name.clone(), Slot::Loaded(handle.clone()));
                if let Some(Slot::Loading(_, Some(departure))) = slot {
                    handle.leave(&departure, false);
                }
                drop(map);
                let topics = Arc::clone(self);
                let (name, id) = (name.clone(), handle.id);
                self.shared.tasks.spawn("topic", async move {
                    let rest = topic.run(inbox).await;
                    topics.ended(&name, id, rest);
                    // Requests that wait for the end look into the map next.
                    drop(ended);
                });
                Ok(handle)
            }
            Err(error) => {
                tracing::debug!(topic = %name, %error, "topic was not loaded");
                map.remove(name);
                Err(error)
            }
        }
    }

    /// Takes an object that has ended out of the map.
    fn ended(&self, name: &TopicName, id: u64, rest: Option<Rest>) {
        if let Some(rest) = rest {
            self.rests.note(name, rest);
        }
        let mut map = self.map.lock();
        if matches!(map.get(name), Some(Slot::Loaded(handle)) if handle.id == id) {
            map.remove(name);
        }
    }

    /// What topics were left with that were unloaded.
    pub(crate) fn rests(&self) -> &Rests {
        &self.rests
    }

    /// Whether a topic is loaded, or being loaded or deleted.
    pub(crate) fn is_there(&self, name: &TopicName) -> bool {
        self.map.lock().contains_key(name)
    }

    /// Which life of its name a topic is, if it is loaded.
    pub(crate) fn incarnation_of(&self, name: &TopicName) -> Option<TopicIncarnation> {
        match self.map.lock().get(name) {
            Some(Slot::Loaded(handle)) => Some(handle.incarnation),
            _ => None,
        }
    }

    /// Asks a topic, loading it if needed; follows it when it is just being unloaded.
    pub(crate) async fn ask<T, F>(
        self: &Arc<Self>,
        name: &TopicName,
        create: &Create,
        request: F,
    ) -> Result<T, BrokerError>
    where
        F: Fn(oneshot::Sender<Result<T, BrokerError>>) -> Event,
    {
        self.ask_again_if(true, name, create, request).await
    }

    /// The same for a change: one that must not be made twice is not asked for again once the topic
    /// may have begun with it.
    pub(crate) async fn ask_again_if<T, F>(
        self: &Arc<Self>,
        may_be_repeated: bool,
        name: &TopicName,
        create: &Create,
        request: F,
    ) -> Result<T, BrokerError>
    where
        F: Fn(oneshot::Sender<Result<T, BrokerError>>) -> Event,
    {
        for _ in 0..ATTEMPTS_MAX {
            let handle = self.get(name, create).await?;
            let (reply, answer) = oneshot::channel();
            if handle.mailbox.send(request(reply)).await.is_ok() {
                match answer.await {
                    Ok(answer) => return answer,
                    Err(_) if !may_be_repeated => return Err(BrokerError::unknown_outcome()),
                    Err(_) => {}
                }
            }
            handle.wait_ended().await;
        }
        Err(unloading_again())
    }

    /// The way into a topic that is there, for requests that its task does not answer itself.
    pub(crate) async fn door(self: &Arc<Self>, name: &TopicName) -> Result<Door, BrokerError> {
        let door = |reply| Pull::Door(None, reply).event();
        self.ask(name, &Create::Never, door).await
    }

    /// Makes a topic's object go away and keeps it away until the guard is dropped.
    pub(crate) async fn begin_delete(
        self: &Arc<Self>,
        name: &TopicName,
        force: bool,
    ) -> Result<DeleteGuard, BrokerError> {
        loop {
            let (over, receiver) = watch::channel(());
            let step = {
                let mut map = self.map.lock();
                match map.get(name) {
                    None => {
                        map.insert(name.clone(), Slot::Deleting(receiver));
                        None
                    }
                    Some(Slot::Loading(loading, _)) => Some(Step::WaitLoaded(loading.clone())),
                    Some(Slot::Deleting(over)) => Some(Step::WaitDeleted(over.clone())),
                    Some(Slot::Loaded(handle)) if handle.mailbox.is_closed() => {
                        Some(Step::WaitEnded(handle.clone()))
                    }
                    Some(Slot::Loaded(handle)) => Some(Step::Use(handle.clone())),
                }
            };
            match step {
                None => {
                    return Ok(DeleteGuard {
                        topics: Arc::clone(self),
                        name: name.clone(),
                        _over: over,
                    });
                }
                Some(Step::Use(handle)) => {
                    let (reply, answer) = oneshot::channel();
                    if handle
                        .mailbox
                        .send(Event::Delete { force, reply })
                        .await
                        .is_ok()
                        && let Ok(answer) = answer.await
                    {
                        answer?;
                    }
                    handle.wait_ended().await;
                }
                Some(Step::WaitLoaded(mut loading)) => {
                    // Either way the next look into the map tells.
                    let _ = loading.wait_for(Option::is_some).await;
                }
                Some(Step::WaitDeleted(mut over)) => while over.changed().await.is_ok() {},
                Some(Step::WaitEnded(handle) | Step::Leaves(handle)) => handle.wait_ended().await,
            }
        }
    }

    /// Closes all topics; returns how many were still there at the deadline.
    pub(crate) async fn close_all(&self, deadline: Duration) -> usize {
        let closing = async {
            loop {
                let Some(step) = self.any() else { return };
                match step {
                    Step::WaitLoaded(mut loading) => {
                        let _ = loading.wait_for(Option::is_some).await;
                    }
                    Step::WaitDeleted(mut over) => while over.changed().await.is_ok() {},
                    Step::Use(handle) | Step::WaitEnded(handle) | Step::Leaves(handle) => {
                        handle.wait_ended().await;
                    }
                }
            }
        };
        for handle in self.handles() {
            handle.shutdown();
        }
        let _ = clock::timeout(deadline, closing).await;
        self.map.lock().len()
    }

    /// Has the topics of a bundle leave that is another broker's. From here on no session begins
    /// with them. Returns those that are loaded; those that are being loaded end by themselves.
    pub(crate) fn leave(&self, bundle: &Bundle, departure: &Arc<Departure>) -> Vec<TopicHandle> {
        let mut leaving = Vec::new();
        for (name, slot) in &mut *self.map.lock() {
            match slot {
                _ if !bundle.contains(name) => {}
                Slot::Loaded(handle) => {
                    handle.leave(departure, departure.sealing.is_some());
                    leaving.push(handle.clone());
                }
                Slot::Loading(_, leaves) => *leaves = Some(Arc::clone(departure)),
                Slot::Deleting(_) => {}
            }
        }
        leaving
    }

    /// The loaded topics of a bundle, and those that are just being loaded.
    pub(crate) fn of_bundle(&self, bundle: &Bundle) -> (Vec<TopicHandle>, Vec<Loading>) {
        let (mut loaded, mut loading) = (Vec::new(), Vec::new());
        for (name, slot) in &*self.map.lock() {
            match slot {
                _ if !bundle.contains(name) => {}
                Slot::Loaded(handle) => loaded.push(handle.clone()),
                Slot::Loading(outcome, _) => loading.push(Loading(outcome.clone())),
                Slot::Deleting(_) => {}
            }
        }
        (loaded, loading)
    }

    /// Waits until no topic is left, at most until the deadline.
    pub(crate) async fn wait_empty(&self, deadline: Duration) {
        let started = self.shared.clock.monotonic();
        while !self.map.lock().is_empty() {
            if self.shared.clock.monotonic().saturating_sub(started) > deadline {
                return;
            }
            clock::sleep(EMPTY_TICK).await;
        }
    }

    /// What the loaded topics have counted.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let map = self.map.lock();
        let samples = map.iter().filter_map(|(name, slot)| match slot {
            Slot::Loaded(handle) => Some(Sample {
                id: handle.id,
                namespace: name.namespace().clone(),
                hash: topic_hash(name),
                loaded: handle.counters.loaded(),
                counted: handle.counters.now(),
                behind: handle.counters.backlog(),
            }),
            Slot::Loading(..) | Slot::Deleting(_) => None,
        });
        samples.collect()
    }

    /// The subscriptions of loaded topics that are furthest behind.
    pub(crate) fn furthest(&self, max: usize) -> Furthest {
        let loaded: Vec<(TopicName, TopicHandle)> = {
            let map = self.map.lock();
            let loaded = map.iter().filter_map(|(name, slot)| match slot {
                Slot::Loaded(handle) => Some((name.clone(), handle.clone())),
                Slot::Loading(..) | Slot::Deleting(_) => None,
            });
            loaded.collect()
        };
        let mut furthest = Furthest::of_at_most(max);
        for (name, handle) in loaded {
            for lag in handle.counters.lags() {
                furthest.add(&name, lag);
            }
        }
        furthest
    }

    /// Whether a topic is loaded and has said itself how far behind its subscriptions are.
    pub(crate) fn tells_lags(&self, name: &TopicName) -> bool {
        match self.map.lock().get(name) {
            Some(Slot::Loaded(handle)) => handle.counters.has_lags(),
            _ => false,
        }
    }

    fn handles(&self) -> Vec<TopicHandle> {
        let map = self.map.lock();
        map.values()
            .filter_map(|slot| match slot {
                Slot::Loaded(handle) => Some(handle.clone()),
                Slot::Loading(..) | Slot::Deleting(_) => None,
            })
            .collect()
    }

    fn any(&self) -> Option<Step> {
        let map = self.map.lock();
        map.values().next().map(|slot| match slot {
            Slot::Loading(loading, _) => Step::WaitLoaded(loading.clone()),
            Slot::Deleting(over) => Step::WaitDeleted(over.clone()),
            Slot::Loaded(handle) => {
                // One that was being loaded when the others were told.
                handle.shutdown();
                Step::WaitEnded(handle.clone())
            }
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Context> {
        &self.shared
    }
}

fn unloading_again() -> BrokerError {
    BrokerError::Unloading("the topic is being unloaded again and again".to_owned())
}

async fn create_first(
    shared: &Arc<Context>,
    name: &TopicName,
    create: &Create,
) -> Result<(), BrokerError> {
    let owned = shared.own(name).await?;
    find_or_create(shared, name, create, &owned).await.map(drop)
}
