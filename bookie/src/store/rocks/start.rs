//! How the database is opened at a start. Files that are damaged stay where they are until the loss
//! is accepted; one that cannot be opened at all is set aside at once, which is limbo, because it
//! hides what is whole.

use std::sync::Arc;

use crate::config::BookieConfig;
use crate::journal::replay::Loss;
use crate::report::{DamageReport, SetAsideReport};
use crate::store::rocks::db::{self, Db};
use crate::store::rocks::{RocksStore, files, set_aside};
use crate::store::{Opened, StoreError};

/// Files that one start sets aside one after the other.
const SET_ASIDE_MAX: usize = 32;

/// Opens the database of a bookie, or creates that of a new one.
pub fn open(config: &BookieConfig, is_new: bool) -> Result<Opened, StoreError> {
    let mut set_aside = None;
    for _ in 0..SET_ASIDE_MAX {
        if let Some(report) = set_aside::begun(config) {
            let outcome = set_aside::finish(config, report)?;
            tracing::warn!(?outcome, "damaged files of the ledger store were set aside");
            set_aside = Some(outcome);
        }
        let known = match Db::open(config, is_new) {
            Ok(db) => match db.damage() {
                Ok(None) => return Ok(opened(config, db, None, set_aside)),
                Ok(Some(known)) => Ok(known),
                Err(StoreError::Damaged(what)) => Err(what),
                Err(error) => return Err(error),
            },
            // Only where a table file is named: without the others nothing is known of what the
            // database has. One that is missing may be found again.
            Err(StoreError::Damaged(what)) if may_lack(config, &what) => Err(what),
            Err(error) => return Err(error),
        };
        let db = Db::open_damaged(config)?;
        match known {
            Err(what) => lose_file(config, db, &what)?,
            Ok(known) => {
                let report = db.look_at_damage(Some(known), None)?;
                if !config.accept_loss {
                    return Ok(opened(config, db, Some(report), set_aside));
                }
                if config.cluster.is_some() {
                    lose(&db, &report)?;
                }
                drop(db);
                set_aside::begin(config, &report)?;
            }
        }
    }
    Err(StoreError::Damaged("too many of its files".to_owned()))
}

fn opened(
    config: &BookieConfig,
    db: Db,
    damage: Option<DamageReport>,
    set_aside: Option<SetAsideReport>,
) -> Opened {
    Opened {
        store: Arc::new(RocksStore::new(config, db)),
        damage,
        set_aside,
    }
}

/// Sets a file aside of which nothing can be read.
fn lose_file(config: &BookieConfig, db: Db, what: &str) -> Result<(), StoreError> {
    let report = db.look_at_damage(None, Some(what))?;
    lose(&db, &report)?;
    set_aside::drop_files(config, db, &report)
}

/// Notes that what damaged files had is lost.
fn lose(db: &Db, report: &DamageReport) -> Result<(), StoreError> {
    let reason = format!("damaged files of the ledger store were set aside: {report}");
    tracing::error!(reason, "limbo");
    let lost = Loss {
        first: 0,
        last: 0,
        reason,
    };
    let all = Loss::merge(db.loss()?, Some(lost));
    db.set_loss(all.as_ref(), None)
}

/// Whether the start may go on without the table file that an error names.
fn may_lack(config: &BookieConfig, error: &str) -> bool {
    let path = files::named(error).map(|name| db::directory(config).join(name));
    path.is_some_and(|path| path.exists() || config.accept_loss)
}
