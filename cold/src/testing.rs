//! An object store in memory, with faults, for tests of this crate and of those above it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::{ColdError, ColdResult};
use crate::store::{ColdStore, Listed, PartSent, Upload};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A length.
    Size,
    /// Bytes.
    Get,
    /// A whole object.
    Put,
    /// An upload.
    Begin,
    /// A part of one.
    Part,
    /// Its end.
    Complete,
    /// That it is given up.
    Abort,
    /// That an object goes.
    Delete,
    /// A listing.
    List,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails before it has an effect.
    Fails,
    /// It has its effect, and its answer is lost.
    AnswerLost,
    /// It never ends.
    Hangs,
    /// It waits until the store is healed, and has its effect then.
    Held,
    /// It is refused: credentials have expired, or a clock is wrong.
    Denied,
    /// The store says that there is no such object.
    Missing,
    /// Fewer bytes come than were asked for; other requests fail.
    Short,
    /// Other bytes come than were written; other requests fail.
    Garbled,
    /// It is answered as done, and what it wrote is not kept; other requests fail.
    Forgotten,
}

/// Decides about each request.
type Judge = Box<dyn FnMut(Op, &str) -> Option<Fault> + Send>;

/// A store in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryColdStore {
    shared: Arc<Mutex<State>>,
    healed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    /// By id: the name, and the parts by their numbers.
    uploads: BTreeMap<String, (String, BTreeMap<u32, Bytes>)>,
    next_upload: u64,
    judge: Option<Judge>,
    requests: Vec<(Op, String)>,
}

impl State {
    /// Turns a bit of each byte of an object; twice is nothing.
    fn garble(&mut self, name: &str) {
        for byte in self.objects.get_mut(name).into_iter().flatten() {
            *byte ^= 1;
        }
    }
}

impl MemoryColdStore {
    /// Lets every request be judged from now on.
    pub fn judge(&self, judge: impl FnMut(Op, &str) -> Option<Fault> + Send + 'static) {
        self.shared.lock().judge = Some(Box::new(judge));
    }

    /// Lets every request succeed again, and those go on that are held.
    pub fn heal(&self) {
        self.shared.lock().judge = None;
        self.healed.notify_waiters();
    }

    /// The names of its objects, without markers.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let state = self.shared.lock();
        let names = state.objects.keys();
        names
            .filter(|name| name.ends_with(".aqo"))
            .cloned()
            .collect()
    }

    /// Names of objects of which parts lie about.
    #[must_use]
    pub fn unfinished(&self) -> Vec<String> {
        let state = self.shared.lock();
        state
            .uploads
            .values()
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Changes the bytes of an object.
    ///
    /// # Panics
    /// When it does not exist.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(
            self.shared
                .lock()
                .objects
                .get_mut(name)
                .expect("the object exists"),
        );
    }

    /// Loses an object.
    pub fn lose(&self, name: &str) {
        self.shared.lock().objects.remove(name);
    }

    /// How many requests of a kind came since that was asked last.
    #[must_use]
    pub fn count(&self, op: Op) -> usize {
        let mut state = self.shared.lock();
        let found = state.requests.iter().filter(|(of, _)| *of == op).count();
        state.requests.retain(|(of, _)| *of != op);
        found
    }

    async fn change_state<T: Send>(
        &self,
        op: Op,
        name: &str,
        work: impl FnOnce(&mut State) -> ColdResult<T> + Send,
    ) -> ColdResult<T> {
        let healed = self.healed.notified();
        let fault = {
            let mut state = self.shared.lock();
            state.requests.push((op, name.to_owned()));
            state.judge.as_mut().and_then(|judge| judge(op, name))
        };
        let failed = || ColdError::Unavailable(format!("{op:?} {name} was made to fail"));
        match fault {
            None => work(&mut self.shared.lock()),
            Some(Fault::Held) => {
                healed.await;
                work(&mut self.shared.lock())
            }
            Some(Fault::AnswerLost) => {
                let _ = work(&mut self.shared.lock());
                Err(failed())
            }
            Some(Fault::Forgotten) if matches!(op, Op::Put | Op::Part | Op::Complete) => {
                let mut state = self.shared.lock();
                let before = (state.objects.clone(), state.uploads.clone());
                let done = work(&mut state);
                // An upload that has ended has ended.
                (state.objects, state.uploads) = match op {
                    Op::Complete => (before.0, std::mem::take(&mut state.uploads)),
                    _ => before,
                };
                done
            }
            Some(Fault::Garbled) if op == Op::Get => {
                let mut state = self.shared.lock();
                state.garble(name);
                let done = work(&mut state);
                state.garble(name);
                done
            }
            Some(Fault::Short) if op == Op::Get => Err(ColdError::Damaged {
                name: name.to_owned(),
                reason: "less came than was asked for".to_owned(),
            }),
            Some(Fault::Missing) => Err(ColdError::NotFound(name.to_owned())),
            Some(Fault::Denied) => Err(ColdError::Denied(format!("{op:?} {name}"))),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::Fails | Fault::Short | Fault::Garbled | Fault::Forgotten) => Err(failed()),
        }
    }
}

#[async_trait]
impl ColdStore for MemoryColdStore {
    async fn size(&self, name: &str) -> ColdResult<u64> {
        let work = |state: &mut State| {
            let object = state.objects.get(name);
            let object = object.ok_or_else(|| ColdError::NotFound(name.to_owned()))?;
            Ok(object.len() as u64)
        };
        self.change_state(Op::Size, name, work).await
    }

    async fn get(&self, name: &str, range: Range<u64>) -> ColdResult<Bytes> {
        let work = |state: &mut State| {
            let object = state.objects.get(name);
            let object = object.ok_or_else(|| ColdError::NotFound(name.to_owned()))?;
            let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let found = object.get(place(range.start)..place(range.end));
            let found = found.ok_or_else(|| ColdError::Damaged {
                name: name.to_owned(),
                reason: "it is shorter".to_owned(),
            })?;
            Ok(Bytes::copy_from_slice(found))
        };
        self.change_state(Op::Get, name, work).await
    }

    async fn put_new(&self, name: &str, bytes: Bytes) -> ColdResult<()> {
        let work = |state: &mut State| {
            if state.objects.contains_key(name) {
                return Err(ColdError::AlreadyExists(name.to_owned()));
            }
            state.objects.insert(name.to_owned(), bytes.to_vec());
            Ok(())
        };
        self.change_state(Op::Put, name, work).await
    }

    async fn begin(&self, name: &str) -> ColdResult<Box<dyn Upload>> {
        let work = |state: &mut State| {
            state.next_upload += 1;
            let id = format!("upload-{}", state.next_upload);
            let begun = (name.to_owned(), BTreeMap::new());
            state.uploads.insert(id.clone(), begun);
            Ok(id)
        };
        let id = self.change_state(Op::Begin, name, work).await?;
        Ok(Box::new(MemoryUpload {
            store: self.clone(),
            name: name.to_owned(),
            id,
            parts: 0,
        }))
    }

    async fn abort(&self, name: &str, upload_id: &str) -> ColdResult<()> {
        let work = |state: &mut State| {
            state.uploads.remove(upload_id);
            Ok(())
        };
        self.change_state(Op::Abort, name, work).await
    }

    async fn delete(&self, name: &str) -> ColdResult<()> {
        let work = |state: &mut State| {
            state.objects.remove(name);
            Ok(())
        };
        self.change_state(Op::Delete, name, work).await
    }

    async fn list(
        &self,
        below: &str,
        after: Option<&str>,
        count: usize,
    ) -> ColdResult<Vec<Listed>> {
        let work = |state: &mut State| {
            let prefix = format!("{below}/");
            let objects = state.objects.iter();
            let objects = objects.filter(|(name, _)| below.is_empty() || name.starts_with(&prefix));
            let objects = objects.filter(|(name, _)| Some(name.as_str()) > after);
            let listed = objects.map(|(name, bytes)| Listed {
                name: name.clone(),
                bytes: bytes.len() as u64,
                // As old as can be: names tell when attempts began.
                modified_ms: 0,
            });
            Ok(listed.take(count).collect())
        };
        self.change_state(Op::List, below, work).await
    }
}

struct MemoryUpload {
    store: MemoryColdStore,
    name: String,
    id: String,
    parts: u32,
}

#[async_trait]
impl Upload for MemoryUpload {
    fn id(&self) -> &str {
        &self.id
    }

    fn part(&mut self, bytes: Bytes) -> PartSent {
        let (store, name, id) = (self.store.clone(), self.name.clone(), self.id.clone());
        let number = self.parts;
        self.parts += 1;
        Box::pin(async move {
            let work = |state: &mut State| match state.uploads.get_mut(&id) {
                Some((_, parts)) => {
                    parts.insert(number, bytes);
                    Ok(())
                }
                None => Err(ColdError::NotFound(name.clone())),
            };
            store.change_state(Op::Part, &name, work).await
        })
    }

    async fn complete(self: Box<Self>) -> ColdResult<()> {
        let work = |state: &mut State| match state.uploads.remove(&self.id) {
            Some((name, parts)) => {
                let parts: Vec<Bytes> = parts.into_values().collect();
                state.objects.insert(name, parts.concat());
                Ok(())
            }
            None => Err(ColdError::NotFound(self.name.clone())),
        };
        self.store
            .change_state(Op::Complete, &self.name, work)
            .await
    }

    async fn abort(self: Box<Self>) -> ColdResult<()> {
        self.store.abort(&self.name, &self.id).await
    }
}
