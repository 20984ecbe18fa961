//! Writing an object into a store: small ones whole, larger ones in parts.

use std::sync::Arc;

use aquifer_model::storage::StoredEntry;

use crate::error::{ColdError, ColdResult};
use crate::format::FormatError;
use crate::format::writer::{ObjectSpec, ObjectWriter, Written};
use crate::store::{ColdStore, Upload};

/// Bytes of a part, at least.
pub const PART_BYTES_MIN: usize = 8 << 20;
/// Parts of an object, at most: stores take 10,000.
const PARTS_MAX: u64 = 9_000;

/// An object that is being written into a store. It holds one part in memory, and a block.
pub struct ObjectUpload {
    store: Arc<dyn ColdStore>,
    name: String,
    part_bytes: usize,
    writer: ObjectWriter,
    upload: Option<Box<dyn Upload>>,
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

    /// Sends the parts that are full.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn send(&mut self) -> ColdResult<()> {
        let Some(upload) = &mut self.upload else {
            return Ok(());
        };
        while let Some(part) = self.writer.take(self.part_bytes) {
            upload.part(part).await?;
        }
        Ok(())
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
            Some(mut upload) => match upload.part(rest).await {
                Ok(()) => upload.complete().await,
                Err(error) => {
                    let _ = upload.abort().await; // the reaper does it again
                    Err(error)
                }
            },
        };
        Ok((written, done))
    }

    /// Gives the parts up.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn abort(self) -> ColdResult<()> {
        match self.upload {
            Some(upload) => upload.abort().await,
            None => Ok(()),
        }
    }
}
