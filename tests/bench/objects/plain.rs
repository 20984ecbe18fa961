//! The same bytes by plain requests of the same library: what offload and reading back are compared
//! with. As many requests are on their way as a broker has.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use aquifer_cold::store::ColdStore;
use aquifer_runtime::clock::{Clock, SystemClock};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::objects::moved::Moved;
use crate::objects::requests::Requests;

/// Bytes of a request.
const PART_BYTES: u64 = 8 << 20;
/// Objects at once.
const OBJECTS: usize = 2;
/// Parts of an object at once.
const PARTS: usize = 2;
/// Objects of a listing.
const LISTED_MAX: usize = 10_000;

/// The objects of a place.
pub struct Plain {
    store: Arc<dyn ColdStore>,
    objects: Vec<(String, u64)>,
}

fn parts(bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let starts = (0..bytes.div_ceil(PART_BYTES)).map(|number| number * PART_BYTES);
    starts.map(move |start| start..(start + PART_BYTES).min(bytes))
}

fn copy_of(number: usize) -> String {
    format!("plain/{number}")
}

impl Plain {
    /// Those that a server has written.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn of(store: &Arc<dyn ColdStore>) -> Result<Plain> {
        let listed = store.list("", None, LISTED_MAX).await?;
        let objects = listed
            .into_iter()
            .filter(|found| found.name.ends_with(".aqo"));
        let objects: Vec<_> = objects.map(|found| (found.name, found.bytes)).collect();
        ensure!(!objects.is_empty(), "there are no objects");
        Ok(Plain {
            store: Arc::clone(store),
            objects,
        })
    }

    async fn read(&self, name: &str, bytes: u64) -> Result<Vec<Bytes>> {
        let reads = stream::iter(parts(bytes).collect::<Vec<_>>())
            .map(|range| async move { self.store.get(name, range).await });
        Ok(reads.buffered(PARTS).try_collect().await?)
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn get(&self) -> Result<Moved> {
        let began = SystemClock.monotonic();
        let reads = stream::iter(&self.objects).map(|(name, bytes)| async move {
            let read = self.read(name, *bytes).await?;
            anyhow::Ok(read.iter().map(Bytes::len).sum::<usize>())
        });
        let read: Vec<usize> = reads.buffer_unordered(OBJECTS).try_collect().await?;
        Ok(moved(began, read.into_iter().sum()))
    }

    /// Writes them once more, under other names.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn put(&self) -> Result<Moved> {
        // Not part of the time: as many as are written at once are in memory.
        let (mut seconds, mut bytes) = (0.0, 0);
        let numbered: Vec<_> = self.objects.iter().enumerate().collect();
        for some in numbered.chunks(OBJECTS) {
            let mut read = Vec::new();
            for (number, (name, bytes)) in some {
                read.push((*number, self.read(name, *bytes).await?));
            }
            bytes += read
                .iter()
                .flat_map(|(_, parts)| parts)
                .map(Bytes::len)
                .sum::<usize>();
            let began = SystemClock.monotonic();
            let writes = read
                .into_iter()
                .map(|(number, parts)| self.write(number, parts));
            futures::future::try_join_all(writes).await?;
            seconds += SystemClock.monotonic().saturating_sub(began).as_secs_f64();
        }
        Ok(Moved {
            bytes: bytes as f64,
            seconds,
            requests: Requests::default(),
        })
    }

    async fn write(&self, number: usize, parts: Vec<Bytes>) -> Result<()> {
        let mut upload = self.store.begin(&copy_of(number)).await?;
        let mut sent = stream::iter(parts)
            .map(|part| upload.part(part))
            .buffer_unordered(PARTS);
        while let Some(sent) = sent.next().await {
            sent?;
        }
        drop(sent);
        Ok(upload.complete().await?)
    }

    /// Deletes what was written.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn remove(&self) -> Result<()> {
        for number in 0..self.objects.len() {
            let deleted = self.store.delete(&copy_of(number)).await;
            deleted.with_context(|| copy_of(number))?;
        }
        Ok(())
    }
}

fn moved(began: std::time::Duration, bytes: usize) -> Moved {
    Moved {
        bytes: bytes as f64,
        seconds: SystemClock.monotonic().saturating_sub(began).as_secs_f64(),
        requests: Requests::default(),
    }
}

#[test]
fn parts_are_the_whole() {
    let all: Vec<_> = parts(PART_BYTES * 2 + 5).collect();
    assert_eq!(all.len(), 3);
    assert_eq!(all[2], PART_BYTES * 2..PART_BYTES * 2 + 5);
    assert_eq!(parts(PART_BYTES).count(), 1);
}
