//! The seam to object stores.
//!
//! What every implementation promises:
//! - An object appears whole or not at all.
//! - [`ColdStore::get`] answers exactly the bytes that were asked for, or an error.
//! - A name is a path of segments with `/` between; it is relative to the place of the store.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::ColdResult;

/// An object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the store's clock, in milliseconds since 1970.
    pub modified_ms: u64,
}

/// A place with objects.
#[async_trait]
pub trait ColdStore: Send + Sync + 'static {
    /// The length of an object.
    ///
    /// # Errors
    /// `NotFound`, which proves nothing alone.
    async fn size(&self, name: &str) -> ColdResult<u64>;

    /// A part of an object, exactly as long as was asked for.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when the object is shorter.
    async fn get(&self, name: &str, range: Range<u64>) -> ColdResult<Bytes>;

    /// Writes a small object, durably, unless there is one of the name.
    ///
    /// # Errors
    /// `AlreadyExists`, which may be this very call's own object when an answer was lost.
    async fn put_new(&self, name: &str, bytes: Bytes) -> ColdResult<()>;

    /// Begins an object of several parts.
    async fn begin(&self, name: &str) -> ColdResult<Box<dyn Upload>>;

    /// Gives up the parts of an upload whose process is gone.
    async fn abort(&self, name: &str, upload_id: &str) -> ColdResult<()>;

    /// Deletes an object, and what an upload of its name left behind in this place. One that does
    /// not exist is deleted.
    async fn delete(&self, name: &str) -> ColdResult<()>;

    /// Objects whose names are below a path and behind `after`, in order, at most `count`; fewer
    /// only when there are no more. [`each`](crate::listing::each) shows all of them.
    async fn list(&self, below: &str, after: Option<&str>, count: usize)
    -> ColdResult<Vec<Listed>>;
}

/// A part that is being sent: it is there once this answers.
pub type PartSent = BoxFuture<'static, ColdResult<()>>;

/// An object that is being written in parts. Dropping it leaves them: complete it or give it up.
#[async_trait]
pub trait Upload: Send {
    /// What names the upload to [`ColdStore::abort`]; empty where nothing has to.
    fn id(&self) -> &str;

    /// Adds a part behind the others; several may be sent at once. All but the last must
    /// have the same length.
    fn part(&mut self, bytes: Bytes) -> PartSent;

    /// Makes the object appear, durably, once all parts have been sent. After an error it may have
    /// appeared.
    async fn complete(self: Box<Self>) -> ColdResult<()>;

    /// Gives the parts up.
    async fn abort(self: Box<Self>) -> ColdResult<()>;
}
