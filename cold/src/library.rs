//! Object stores through the crate `object_store`: S3 and what speaks it, Google's, Azure's, and a
//! local directory. No type of the library leaves this module.
//!
//! A process that uses TLS installs its provider of cryptography first ([`open`] fails otherwise
//! in the library).

#[cfg(test)]
mod faults;
mod place;
#[cfg(test)]
mod s3_server;

use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use parking_lot::Mutex;

use self::place::{Patience, Place, Scheme, client, place_of, retries, s3};
use crate::config::StoreConfig;
use crate::error::{ColdError, ColdResult};
use crate::store::{ColdStore, Listed, PartSent, Upload};

/// A place through the library.
struct LibraryStore {
    store: Arc<dyn ObjectStore>,
    parts: Parts,
    /// What every name of the place begins with; without `/` at its end.
    prefix: String,
}

/// How objects of several parts are written.
enum Parts {
    /// By an id that another process can use too.
    Named(Arc<dyn MultipartStore>),
    /// Into a file beside, in this directory.
    Files(PathBuf),
}

/// Checks that a text names a place, without going there.
///
/// # Errors
/// `Config`.
pub fn check(url: &str) -> ColdResult<()> {
    place_of(url).map(drop)
}

/// Opens the place at a URL, by the rest of a configuration. Sends nothing yet; a local directory
/// is made where it does not exist.
///
/// # Errors
/// `Config` when the URL or a setting cannot be used.
pub fn open(url: &str, config: &StoreConfig) -> ColdResult<Arc<dyn ColdStore>> {
    open_with(url, config, Patience::default())
}

fn open_with(
    url: &str,
    config: &StoreConfig,
    patience: Patience,
) -> ColdResult<Arc<dyn ColdStore>> {
    let wrong = |error: Error| ColdError::Config(format!("{url}: {error}"));
    let (store, parts, prefix): (Arc<dyn ObjectStore>, Parts, &str) = match place_of(url)? {
        Place::Directory(path) => {
            let failed = |error: std::io::Error| {
                ColdError::Config(format!("{path} cannot be made: {error}"))
            };
            std::fs::create_dir_all(path).map_err(failed)?;
            let files = LocalFileSystem::new_with_prefix(path).map_err(wrong)?;
            let files = files.with_fsync(true);
            (Arc::new(files), Parts::Files(PathBuf::from(path)), "")
        }
        Place::Bucket {
            scheme: Scheme::S3,
            bucket,
            prefix,
        } => {
            let built = Arc::new(s3(bucket, config, patience)?.build().map_err(wrong)?);
            (built.clone(), Parts::Named(built), prefix)
        }
        Place::Bucket {
            scheme: Scheme::Google,
            bucket,
            prefix,
        } => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            let builder = builder
                .with_client_options(client(config, patience)?)
                .with_retry(retries(patience));
            let built = Arc::new(builder.build().map_err(wrong)?);
            (built.clone(), Parts::Named(built), prefix)
        }
        Place::Bucket {
            scheme: Scheme::Azure,
            bucket,
            prefix,
        } => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
            let builder = builder
                .with_client_options(client(config, patience)?)
                .with_retry(retries(patience));
            let built = Arc::new(builder.build().map_err(wrong)?);
            (built.clone(), Parts::Named(built), prefix)
        }
    };
    Ok(Arc::new(LibraryStore {
        store,
        parts,
        prefix: prefix.to_owned(),
    }))
}

/// What an error of the library asks for.
fn known(error: &Error) -> ColdError {
    match error {
        Error::NotFound { path, .. } => ColdError::NotFound(path.clone()),
        Error::AlreadyExists { path, .. } | Error::Precondition { path, .. } => {
            ColdError::AlreadyExists(path.clone())
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ColdError::Denied(error.to_string())
        }
        Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::UnknownConfigurationKey { .. } => ColdError::Config(error.to_string()),
        _ => ColdError::Unavailable(error.to_string()),
    }
}

impl LibraryStore {
    fn path(&self, name: &str) -> ColdResult<Path> {
        let full = match self.prefix.is_empty() {
            true => name.to_owned(),
            false => format!("{}/{name}", self.prefix),
        };
        Path::parse(&full).map_err(|error| ColdError::Config(error.to_string()))
    }

    /// The name of an object of the library's listing.
    fn name_of(&self, path: &Path) -> Option<String> {
        let path = path.as_ref();
        let name = match self.prefix.is_empty() {
            true => Some(path),
            false => path
                .strip_prefix(&self.prefix)
                .and_then(|rest| rest.strip_prefix('/')),
        };
        name.map(str::to_owned)
    }
}

#[async_trait]
impl ColdStore for LibraryStore {
    async fn size(&self, name: &str) -> ColdResult<u64> {
        let found = self.store.head(&self.path(name)?).await;
        Ok(found.map_err(|error| known(&error))?.size)
    }

    async fn get(&self, name: &str, range: Range<u64>) -> ColdResult<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let path = self.path(name)?;
        let found = self.store.get_range(&path, range).await;
        let bytes = found.map_err(|error| known(&error))?;
        // A body that ends early is no error to the library.
        if bytes.len() as u64 != wanted {
            return Err(ColdError::Damaged {
                name: name.to_owned(),
                reason: format!("{wanted} bytes were asked for, {} came", bytes.len()),
            });
        }
        Ok(bytes)
    }

    async fn put_new(&self, name: &str, bytes: Bytes) -> ColdResult<()> {
        let payload = PutPayload::from_bytes(bytes);
        let path = self.path(name)?;
        let put = self.store.put_opts(&path, payload, PutMode::Create.into());
        put.await.map(drop).map_err(|error| known(&error))
    }

    async fn begin(&self, name: &str) -> ColdResult<Box<dyn Upload>> {
        let path = self.path(name)?;
        match &self.parts {
            Parts::Named(store) => {
                let id = store.create_multipart(&path).await;
                Ok(Box::new(NamedUpload {
                    store: Arc::clone(store),
                    path,
                    id: id.map_err(|error| known(&error))?,
                    parts: Arc::default(),
                }))
            }
            Parts::Files(_) => {
                let upload = self.store.put_multipart(&path).await;
                let upload = upload.map_err(|error| known(&error))?;
                Ok(Box::new(FileUpload(upload)))
            }
        }
    }

    async fn abort(&self, name: &str, upload_id: &str) -> ColdResult<()> {
        let path = self.path(name)?;
        let Parts::Named(store) = &self.parts else {
            return Ok(());
        };
        let aborted = store.abort_multipart(&path, &upload_id.to_owned()).await;
        match aborted.map_err(|error| known(&error)) {
            Err(ColdError::NotFound(_)) => Ok(()),
            // Azure has no such request, and forgets parts after a week.
            Err(ColdError::Config(_)) => Ok(()),
            done => done,
        }
    }

    async fn delete(&self, name: &str) -> ColdResult<()> {
        let path = self.path(name)?;
        if let Parts::Files(root) = &self.parts {
            remove_parts(&root.join(path.as_ref())).await?;
        }
        let deleted = self.store.delete(&path).await;
        match deleted.map_err(|error| known(&error)) {
            Err(ColdError::NotFound(_)) => Ok(()),
            done => done,
        }
    }

    async fn list(
        &self,
        below: &str,
        after: Option<&str>,
        count: usize,
    ) -> ColdResult<Vec<Listed>> {
        let below = match (below.is_empty(), self.prefix.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Path::parse(&self.prefix)),
            (false, _) => Some(Ok(self.path(below)?)),
        };
        let below = below.transpose();
        let below = below.map_err(|error| ColdError::Config(error.to_string()))?;
        let mut found = match after {
            Some(after) => self
                .store
                .list_with_offset(below.as_ref(), &self.path(after)?),
            None => self.store.list(below.as_ref()),
        };
        let mut listed = Vec::new();
        // A local directory lists in no order: all of it is sorted.
        let sorts = matches!(self.parts, Parts::Files(_));
        while sorts || listed.len() < count {
            let next = found.try_next().await.map_err(|error| known(&error))?;
            let Some(object) = next else { break };
            if let Some(name) = self.name_of(&object.location) {
                listed.push(Listed {
                    name,
                    bytes: object.size,
                    modified_ms: u64::try_from(object.last_modified.timestamp_millis())
                        .unwrap_or(u64::MAX),
                });
            }
        }
        listed.sort_by(|one, two| one.name.cmp(&two.name));
        listed.truncate(count);
        Ok(listed)
    }
}

/// Removes the files `NAME#N` that uploads of a name have left in a directory.
async fn remove_parts(file: &FilePath) -> ColdResult<()> {
    let failed = |error: std::io::Error| ColdError::Unavailable(error.to_string());
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
        return Ok(());
    };
    let begins = format!("{}#", name.to_string_lossy());
    let mut entries = match tokio::fs::read_dir(directory).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        if entry.file_name().to_string_lossy().starts_with(&begins) {
            tokio::fs::remove_file(entry.path()).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// An upload that has an id.
struct NamedUpload {
    store: Arc<dyn MultipartStore>,
    path: Path,
    id: String,
    /// By number; those that are on their way have no id yet.
    parts: Arc<Mutex<Vec<Option<PartId>>>>,
}

#[async_trait]
impl Upload for NamedUpload {
    fn id(&self) -> &str {
        &self.id
    }

    fn part(&mut self, bytes: Bytes) -> PartSent {
        let (store, parts) = (Arc::clone(&self.store), Arc::clone(&self.parts));
        let (path, id) = (self.path.clone(), self.id.clone());
        let number = {
            let mut parts = parts.lock();
            parts.push(None);
            parts.len() - 1
        };
        Box::pin(async move {
            let payload = PutPayload::from_bytes(bytes);
            let put = store.put_part(&path, &id, number, payload).await;
            parts.lock()[number] = Some(put.map_err(|error| known(&error))?);
            Ok(())
        })
    }

    async fn complete(self: Box<Self>) -> ColdResult<()> {
        let parts = self.parts.lock().drain(..).collect::<Option<Vec<_>>>();
        let missing = || ColdError::Unavailable(format!("{}: a part was not sent", self.path));
        let parts = parts.ok_or_else(missing)?;
        let done = self.store.complete_multipart(&self.path, &self.id, parts);
        done.await.map(drop).map_err(|error| known(&error))
    }

    async fn abort(self: Box<Self>) -> ColdResult<()> {
        let done = self.store.abort_multipart(&self.path, &self.id).await;
        done.map_err(|error| known(&error))
    }
}

/// An upload into a file beside.
struct FileUpload(Box<dyn MultipartUpload>);

#[async_trait]
impl Upload for FileUpload {
    fn id(&self) -> &str {
        ""
    }

    fn part(&mut self, bytes: Bytes) -> PartSent {
        let put = self.0.put_part(PutPayload::from_bytes(bytes));
        Box::pin(async move { put.await.map_err(|error| known(&error)) })
    }

    async fn complete(mut self: Box<Self>) -> ColdResult<()> {
        let done = self.0.complete().await;
        done.map(drop).map_err(|error| known(&error))
    }

    async fn abort(mut self: Box<Self>) -> ColdResult<()> {
        self.0.abort().await.map_err(|error| known(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_keeps_the_promises_of_the_seam() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().display());
        let store = open(&url, &StoreConfig::default()).unwrap();
        let put = |name| store.put_new(name, Bytes::from_static(b"0123456789"));
        put("a/b/one").await.unwrap();
        assert!(matches!(
            put("a/b/one").await,
            Err(ColdError::AlreadyExists(_))
        ));
        assert_eq!(store.size("a/b/one").await, Ok(10));
        assert_eq!(
            store.get("a/b/one", 2..5).await,
            Ok(Bytes::from_static(b"234"))
        );
        let beyond = store.get("a/b/one", 2..50).await;
        assert!(
            matches!(beyond, Err(ColdError::Damaged { .. })),
            "{beyond:?}"
        );
        let mut upload = store.begin("a/c/two").await.unwrap();
        upload.part(Bytes::from_static(b"abc")).await.unwrap();
        upload.part(Bytes::from_static(b"de")).await.unwrap();
        let absent = store.size("a/c/two").await;
        assert!(matches!(absent, Err(ColdError::NotFound(_))), "{absent:?}");
        upload.complete().await.unwrap();
        assert_eq!(
            store.get("a/c/two", 0..5).await,
            Ok(Bytes::from_static(b"abcde"))
        );
        let names = |found: Vec<Listed>| found.into_iter().map(|o| o.name).collect::<Vec<_>>();
        let all = store.list("", None, 10).await.unwrap();
        assert_eq!(names(all), ["a/b/one", "a/c/two"]);
        let behind = store.list("a", Some("a/b/one"), 10).await.unwrap();
        assert_eq!(names(behind), ["a/c/two"]);
        // What a process that was killed leaves goes with the name.
        let mut left = store.begin("a/c/three").await.unwrap();
        left.part(Bytes::from_static(b"abc")).await.unwrap();
        std::mem::forget(left);
        let files = || {
            std::fs::read_dir(directory.path().join("a/c"))
                .unwrap()
                .count()
        };
        assert_eq!(files(), 2);
        for name in ["a/c/three", "a/c/two", "a/c/two"] {
            store.delete(name).await.unwrap();
        }
        assert_eq!(files(), 0);
    }
}
