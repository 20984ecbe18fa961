//! The identity of a bookie's storage: one random id in a cookie in each of its directories.
//!
//! A missing or foreign cookie means a missing or swapped disk, which is undetected loss: the
//! bookie refuses to start (I5). The cookie of the data directory says when the others are
//! complete, so that a crash during the very first start is not taken for a loss. For a bookie of a
//! cluster it also says whether the cluster knows it: until then it has served no client, and its
//! identity may still be written to metadata ([`crate::registration`]).

use std::io;
use std::path::{Path, PathBuf};

use aquifer_model::checksum;
use aquifer_model::id::BookieId;
use aquifer_runtime::disk::{Disk, DiskLock};
use aquifer_runtime::rng::Rng;

use crate::config::BookieConfig;
use crate::error::BookieOpenError;

const FILE_NAME: &str = "COOKIE";
const LOCK_NAME: &str = "LOCK";
const FIRST_LINE: &str = "aquifer bookie cookie v1";

/// What a cookie says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// The identity.
    pub id: BookieId,
    /// The cluster that it belongs to; `None` for the storage of a standalone server.
    pub cluster: Option<String>,
    /// In the data directory: how far setting up has come.
    pub setup: Setup,
}

/// How far the setup of a bookie has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Not every directory has been set up.
    New,
    /// Everything is set up here, and metadata may not know this bookie yet.
    Joining,
    /// Done.
    Complete,
}

impl Setup {
    const ALL: [Setup; 3] = [Setup::New, Setup::Joining, Setup::Complete];

    fn name(self) -> &'static str {
        match self {
            Setup::New => "new",
            Setup::Joining => "joining",
            Setup::Complete => "complete",
        }
    }
}

/// Wraps an error of a file operation with the path.
pub fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BookieOpenError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BookieOpenError::Full {
            path,
            message: source.to_string(),
        },
        _ => BookieOpenError::Io { path, source },
    }
}

impl Cookie {
    /// The text of the cookie.
    #[must_use]
    pub fn encode(&self) -> String {
        let cluster = self.cluster.as_ref();
        let cluster = cluster.map_or(String::new(), |name| format!("cluster {name}\n"));
        let state = self.setup.name();
        let body = format!("{FIRST_LINE}\nid {}\n{cluster}state {state}\n", self.id);
        format!("{body}crc32c {:08x}\n", checksum::crc32c(body.as_bytes()))
    }

    /// Reads a cookie.
    #[must_use]
    pub fn decode(text: &[u8]) -> Option<Cookie> {
        let text = std::str::from_utf8(text).ok()?;
        let (body, checksum) = text.split_at_checked(text.find("crc32c ")?)?;
        let checksum = checksum.strip_prefix("crc32c ")?.strip_suffix('\n')?;
        if u32::from_str_radix(checksum, 16).ok()? != checksum::crc32c(body.as_bytes()) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let id = lines.next()?.strip_prefix("id ")?.parse().ok()?;
        let mut line = lines.next()?;
        let cluster = line.strip_prefix("cluster ").map(str::to_owned);
        if cluster.is_some() {
            line = lines.next()?;
        }
        let state = line.strip_prefix("state ")?;
        let setup = Setup::ALL.into_iter().find(|one| one.name() == state)?;
        Some(Cookie { id, cluster, setup })
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
                cluster: config.cluster.clone(),
                setup: Setup::New,
            };
            write(disk, &config.data_dir, &cookie)?;
            cookie
        }
    };
    same_cluster(config, &cookie)?;
    for directory in others {
        match read(disk, directory)? {
            Some(other) if other.id == cookie.id => {}
            None if cookie.setup == Setup::New => {}
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

/// Whether the storage belongs to the cluster that it is opened for.
fn same_cluster(config: &BookieConfig, cookie: &Cookie) -> Result<(), BookieOpenError> {
    let what = match (&cookie.cluster, &config.cluster) {
        (own, wanted) if own == wanted => return Ok(()),
        (Some(own), Some(wanted)) => {
            format!("it belongs to a bookie of cluster {own}, not of {wanted}")
        }
        (None, Some(wanted)) => {
            format!("it belongs to a standalone server and cannot join cluster {wanted}")
        }
        (Some(own), None) => {
            format!("it belongs to a bookie of cluster {own}, which is no standalone server")
        }
        // Covered by the first arm.
        (None, None) => return Ok(()),
    };
    Err(BookieOpenError::Cluster {
        path: path_in(&config.data_dir),
        what,
    })
}

/// Everything of a new bookie is set up here: writes the cookies of all directories. A bookie of
/// a cluster joins it next.
pub fn complete(
    disk: &dyn Disk,
    config: &BookieConfig,
    cookie: &Cookie,
) -> Result<Cookie, BookieOpenError> {
    let setup = match cookie.cluster {
        Some(_) => Setup::Joining,
        None => Setup::Complete,
    };
    advance(disk, config, cookie, setup)
}

/// The cluster's metadata knows this bookie: from now on it must.
pub fn joined(
    disk: &dyn Disk,
    config: &BookieConfig,
    cookie: &Cookie,
) -> Result<Cookie, BookieOpenError> {
    advance(disk, config, cookie, Setup::Complete)
}

fn advance(
    disk: &dyn Disk,
    config: &BookieConfig,
    cookie: &Cookie,
    setup: Setup,
) -> Result<Cookie, BookieOpenError> {
    let advanced = Cookie {
        setup,
        ..cookie.clone()
    };
    // The data directory comes last: it says that the others are there.
    for directory in [&config.journal_dir, &config.ledger_dir, &config.data_dir] {
        write(disk, directory, &advanced)?;
    }
    Ok(advanced)
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
        assert_eq!(third.setup, Setup::Complete);
    }

    #[test]
    fn a_bookie_of_a_cluster_is_complete_only_after_it_joined() {
        let disk = SimDisk::new();
        let config = |cluster: Option<&str>| BookieConfig {
            cluster: cluster.map(str::to_owned),
            ..BookieConfig::in_directory("/b")
        };
        let open = |cluster| check(&disk, &config(cluster), &SeededRng::new(1));
        let ours = config(Some("ours"));
        let new = open(Some("ours")).unwrap();
        let joining = complete(&disk, &ours, &new).unwrap();
        assert_eq!(open(Some("ours")).unwrap(), joining);
        assert_eq!(joining.setup, Setup::Joining);
        joined(&disk, &ours, &joining).unwrap();
        let complete = open(Some("ours")).unwrap();
        assert_eq!((complete.id, complete.setup), (new.id, Setup::Complete));
        for other in [Some("theirs"), None] {
            let error = open(other).unwrap_err();
            assert!(matches!(error, BookieOpenError::Cluster { .. }), "{error}");
            assert!(error.to_string().contains("cluster ours"), "{error}");
        }
    }

    #[test]
    fn storage_of_a_standalone_server_joins_no_cluster() {
        let (disk, config) = (SimDisk::new(), BookieConfig::in_directory("/b"));
        let new = checked(&disk, 1).unwrap();
        complete(&disk, &config, &new).unwrap();
        let config = BookieConfig {
            cluster: Some("ours".to_owned()),
            ..config
        };
        let error = check(&disk, &config, &SeededRng::new(1)).unwrap_err();
        assert!(error.to_string().contains("standalone"), "{error}");
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
                cluster: None,
                setup: Setup::Complete,
            };
            foreign
                .write_atomic(&path, other.encode().as_bytes())
                .unwrap();
            refused(&foreign);
        }
    }

    /// The stored text: it may never change while bookies have such cookies.
    #[test]
    fn golden_text_stays() {
        let cookie = |cluster: Option<&str>, setup| Cookie {
            id: BookieId(crate::tests::counting(1)),
            cluster: cluster.map(str::to_owned),
            setup,
        };
        let golden = [
            (
                cookie(None, Setup::Complete),
                include_str!("cookie/golden_v1_standalone.txt"),
            ),
            (
                cookie(Some("north"), Setup::Joining),
                include_str!("cookie/golden_v1_cluster.txt"),
            ),
        ];
        for (cookie, text) in golden {
            assert_eq!(cookie.encode(), text);
            assert_eq!(Cookie::decode(text.as_bytes()), Some(cookie));
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

        #[test]
        fn cookies_round_trip(
            id in any::<[u8; 16]>(),
            cluster in prop::option::of("[A-Za-z0-9_.-]{1,64}"),
            setup in 0..3usize,
        ) {
            let cookie = Cookie { id: BookieId(id), cluster, setup: Setup::ALL[setup] };
            prop_assert_eq!(Cookie::decode(cookie.encode().as_bytes()), Some(cookie));
        }
    }
}
