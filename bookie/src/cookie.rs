//! The identity of a bookie's storage: one random id in a cookie in each of its directories.
//!
//! A missing or foreign cookie means a missing or swapped disk, which is undetected loss: the
//! bookie refuses to start (I5). The cookie of the data directory says when the others are
//! complete, so that a crash during the very first start is not taken for a loss.

use std::io;
use std::path::{Path, PathBuf};

use aquifer_model::id::BookieId;
use aquifer_runtime::disk::{Disk, DiskLock};
use aquifer_runtime::rng::Rng;

use crate::config::BookieConfig;
use crate::error::BookieOpenError;

const FILE_NAME: &str = "COOKIE";
const LOCK_NAME: &str = "LOCK";
const FIRST_LINE: &str = "aquifer bookie cookie v1";

/// What a cookie says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie {
    /// The identity.
    pub id: BookieId,
    /// In the data directory: whether all directories have been set up.
    pub complete: bool,
}

/// Wraps an error of a file operation with the path.
pub fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BookieOpenError {
    let path = path.to_owned();
    move |source| BookieOpenError::Io { path, source }
}

impl Cookie {
    /// The text of the cookie.
    #[must_use]
    pub fn encode(&self) -> String {
        let state = if self.complete { "complete" } else { "new" };
        let body = format!("{FIRST_LINE}\nid {}\nstate {state}\n", self.id);
        format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()))
    }

    /// Reads a cookie.
    #[must_use]
    pub fn decode(text: &[u8]) -> Option<Cookie> {
        let text = std::str::from_utf8(text).ok()?;
        let (body, checksum) = text.split_at_checked(text.find("crc32c ")?)?;
        let checksum = checksum.strip_prefix("crc32c ")?.strip_suffix('\n')?;
        if u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let id = lines.next()?.strip_prefix("id ")?.parse().ok()?;
        let complete = match lines.next()? {
            "state complete" => true,
            "state new" => false,
            _ => return None,
        };
        Some(Cookie { id, complete })
    }
}

/// Takes the lock of the data directory.
pub fn lock(disk: &dyn Disk, config: &BookieConfig) -> Result<DiskLock, BookieOpenError> {
    let path = config.data_dir.join(LOCK_NAME);
    disk.create_dir_all(&config.data_dir)
        .map_err(io_error(&config.data_dir))?;
    disk.lock_exclusive(&path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => BookieOpenError::Locked {
                path: config.data_dir.clone(),
            },
            _ => io_error(&path)(error),
        })
}

/// Reads and checks the cookies, or begins a new identity. The caller holds the lock, and calls
/// [`complete`] after it has set up a bookie whose cookie is not complete.
pub fn check(
    disk: &dyn Disk,
    config: &BookieConfig,
    rng: &dyn Rng,
) -> Result<Cookie, BookieOpenError> {
    let others = [&config.journal_dir, &config.ledger_dir];
    for directory in others {
        disk.create_dir_all(directory)
            .map_err(io_error(directory))?;
    }
    let own = read(disk, &config.data_dir)?;
    let cookie = match own {
        Some(cookie) => cookie,
        None => {
            for directory in others {
                if let Some(other) = read(disk, directory)? {
                    return Err(mismatch(
                        &config.data_dir,
                        format!(
                            "there is no cookie here, but {} belongs to bookie {}",
                            directory.display(),
                            other.id
                        ),
                    ));
                }
            }
            let cookie = Cookie {
                id: BookieId(rng.id16()),
                complete: false,
            };
            write(disk, &config.data_dir, &cookie)?;
            cookie
        }
    };
    for directory in others {
        match read(disk, directory)? {
            Some(other) if other.id == cookie.id => {}
            None if !cookie.complete => {}
            Some(other) => {
                let what = format!(
                    "it belongs to bookie {}, the data directory to {}",
                    other.id, cookie.id
                );
                return Err(mismatch(directory, what));
            }
            None => {
                let what = format!("the cookie of bookie {} is missing", cookie.id);
                return Err(mismatch(directory, what));
            }
        }
    }
    Ok(cookie)
}

/// Everything of a new bookie is set up: writes the cookies of all directories.
pub fn complete(
    disk: &dyn Disk,
    config: &BookieConfig,
    cookie: &Cookie,
) -> Result<(), BookieOpenError> {
    let complete = Cookie {
        complete: true,
        ..*cookie
    };
    // The data directory comes last: it says that the others are complete.
    for directory in [&config.journal_dir, &config.ledger_dir, &config.data_dir] {
        write(disk, directory, &complete)?;
    }
    Ok(())
}

fn path_in(directory: &Path) -> PathBuf {
    directory.join(FILE_NAME)
}

fn mismatch(directory: &Path, what: String) -> BookieOpenError {
    BookieOpenError::Cookie {
        path: path_in(directory),
        what,
    }
}

fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<Cookie>, BookieOpenError> {
    let path = path_in(directory);
    match disk.read(&path) {
        Ok(text) => Cookie::decode(&text)
            .map(Some)
            .ok_or_else(|| mismatch(directory, "the cookie is damaged".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(&path)(error)),
    }
}

fn write(disk: &dyn Disk, directory: &Path, cookie: &Cookie) -> Result<(), BookieOpenError> {
    let path = path_in(directory);
    disk.write_atomic(&path, cookie.encode().as_bytes())
        .map_err(io_error(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_runtime::disk::SimDisk;
    use aquifer_runtime::rng::SeededRng;
    use proptest::prelude::*;

    fn checked(disk: &SimDisk, seed: u64) -> Result<Cookie, BookieOpenError> {
        let config = BookieConfig::in_directory("/b");
        let _lock = lock(disk, &config)?;
        check(disk, &config, &SeededRng::new(seed))
    }

    #[test]
    fn an_identity_is_drawn_once_and_survives_a_crash_during_setup() {
        let (disk, config) = (SimDisk::new(), BookieConfig::in_directory("/b"));
        let first = checked(&disk, 1).unwrap();
        disk.crash(&SeededRng::new(9));
        let second = checked(&disk, 2).unwrap();
        assert_eq!(first, second);
        complete(&disk, &config, &second).unwrap();
        let third = checked(&disk, 3).unwrap();
        assert_eq!(third.id, first.id);
        assert!(third.complete);
    }

    #[test]
    fn missing_foreign_and_damaged_cookies_are_refused() {
        for directory in ["/b", "/b/journal", "/b/ledgers"] {
            let fresh = || {
                let (disk, config) = (SimDisk::new(), BookieConfig::in_directory("/b"));
                let cookie = checked(&disk, 1).unwrap();
                complete(&disk, &config, &cookie).unwrap();
                disk
            };
            let path = path_in(Path::new(directory));
            let refused = |disk: &SimDisk| {
                let error = checked(disk, 2).unwrap_err();
                assert!(
                    matches!(error, BookieOpenError::Cookie { .. }),
                    "{directory}: {error}"
                );
            };
            let missing = fresh();
            missing.remove(&path).unwrap();
            refused(&missing);
            let damaged = fresh();
            damaged.flip_bit(&path, 30, 1).unwrap();
            refused(&damaged);
            let foreign = fresh();
            let other = Cookie {
                id: BookieId([9; 16]),
                complete: true,
            };
            foreign
                .write_atomic(&path, other.encode().as_bytes())
                .unwrap();
            refused(&foreign);
        }
    }

    #[test]
    fn a_second_process_is_refused() {
        let (disk, config) = (SimDisk::new(), BookieConfig::in_directory("/b"));
        let _held = lock(&disk, &config).unwrap();
        let error = lock(&disk, &config).unwrap_err();
        assert!(matches!(error, BookieOpenError::Locked { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Cookie::decode(text.as_bytes());
            let _ = Cookie::decode(&bytes);
        }
    }
}
