//! Writing an object into a store: small ones whole, larger ones in parts.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use aquifer_model::storage::StoredEntry;
use futures::future::{Either, select};
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};

use crate::error::{ColdError, ColdResult};
use crate::format::FormatError;
use crate::format::writer::{ObjectSpec, ObjectWriter, Written};
use crate::store::{ColdStore, PartSent, Upload};

/// Bytes of a part, at least.
pub const PART_BYTES_MIN: usize = 8 << 20;
/// Parts of an object, at most: stores take 10,000.
const PARTS_MAX: u64 = 9_000;

/// Parts of an upload that are sent at once, while the next one is filled.
pub const PARTS_SENDING_MAX: usize = 2;

/// An object that is being written into a store. It holds a block, the part that is being filled,
/// and those that are being sent.
pub struct ObjectUpload {
    store: Arc<dyn ColdStore>,
    name: String,
    part_bytes: usize,
    writer: ObjectWriter,
    upload: Option<Box<dyn Upload>>,
    sending: FuturesUnordered<PartSent>,
}

/// The bytes of each part of an object for a ledger of a length: all parts have the same.
#[must_use]
pub fn part_bytes(ledger_bytes: u64) -> usize {
    // The rows of entries come on top of their bytes: a half more is far beyond that.
    let least = ledger_bytes.saturating_add(ledger_bytes / 2) / PARTS_MAX;
    let least = usize::try_from(least).unwrap_or(usize::MAX / 2);
    least.max(PART_BYTES_MIN).next_multiple_of(1 << 20)
}

impl ObjectUpload {
    /// Sends nothing yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn ColdStore>,
        name: String,
        spec: ObjectSpec,
        part_bytes: usize,
    ) -> ObjectUpload {
        ObjectUpload {
            store,
            name,
            part_bytes: part_bytes.max(1),
            writer: ObjectWriter::new(spec),
            upload: None,
            sending: FuturesUnordered::new(),
        }
    }

    fn damaged(&self, error: &FormatError) -> ColdError {
        ColdError::damaged(&self.name, error)
    }

    /// Adds the next entry of the ledger.
    ///
    /// # Errors
    /// `Damaged` when it is not the next, or not as it was written.
    pub fn add(&mut self, entry: &StoredEntry) -> ColdResult<()> {
        let added = self.writer.add(entry);
        added.map_err(|error| self.damaged(&error))
    }

    /// Whether a part is full: [`ObjectUpload::send`] it before more is added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.writer.waiting_bytes() >= self.part_bytes
    }

    /// Whether the first part begins an upload that has to be noted first.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.upload.is_some()
    }

    /// Begins an upload in parts; answers what names it, to be noted before a part is sent.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin(&mut self) -> ColdResult<String> {
        let upload = self.store.begin(&self.name).await?;
        let id = upload.id().to_owned();
        self.upload = Some(upload);
        Ok(id)
    }

    /// Begins to send the parts that are full, and waits until no more than
    /// [`PARTS_SENDING_MAX`] are being sent.
    ///
    /// # Errors
    /// Those of the store, of any part.
    pub async fn send(&mut self) -> ColdResult<()> {
        let Some(upload) = &mut self.upload else {
            return Ok(());
        };
        while self.writer.waiting_bytes() >= self.part_bytes {
            while self.sending.len() >= PARTS_SENDING_MAX {
                self.sending.next().await.transpose()?;
            }
            let part = self.writer.take(self.part_bytes);
            self.sending.extend(part.map(|part| upload.part(part)));
        }
        Ok(())
    }

    /// Does some work while parts are being sent.
    ///
    /// # Errors
    /// Those of the store, of any part: the work is given up then.
    pub async fn while_sending<T>(&mut self, work: impl Future<Output = T>) -> ColdResult<T> {
        let mut work = pin!(work);
        loop {
            if self.sending.is_empty() {
                return Ok(work.await);
            }
            match select(&mut work, self.sending.next()).await {
                Either::Left((done, _)) => return Ok(done),
                Either::Right((sent, _)) => {
                    sent.transpose()?;
                }
            }
        }
    }

    /// Ends the object. After an error of the store it may be there all the same: only reading it
    /// back tells, which is to follow in any case (H23).
    ///
    /// # Errors
    /// `Damaged` when there is nothing to write.
    pub async fn complete(self) -> ColdResult<(Written, ColdResult<()>)> {
        let name = self.name;
        let (rest, written) = self
            .writer
            .finish()
            .map_err(|error| ColdError::damaged(&name, &error))?;
        let done = match self.upload {
            None => match self.store.put_new(&name, rest).await {
                // No other writer uses this name: an answer was lost.
                Err(ColdError::AlreadyExists(_)) => Ok(()),
                put => put,
            },
            Some(mut upload) => {
                self.sending.push(upload.part(rest));
                match self.sending.try_collect::<()>().await {
                    Ok(()) => upload.complete().await,
                    Err(error) => {
                        let _ = upload.abort().await; // the reaper does it again
                        Err(error)
                    }
                }
            }
        };
        Ok((written, done))
    }

    /// Gives the parts up.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn abort(self) -> ColdResult<()> {
        // Parts that are being sent end here.
        drop(self.sending);
        match self.upload {
            Some(upload) => upload.abort().await,
            None => Ok(()),
        }
    }
}
