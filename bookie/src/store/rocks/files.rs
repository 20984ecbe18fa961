//! The files of RocksDB that are damaged: which one an error names, and which ledgers lie in it.

use aquifer_model::id::{LEDGER_ID_MAX, LedgerId};

use crate::report::{DamageReport, DamagedFile};
use crate::store::StoreError;
use crate::store::rocks::db::Db;
use crate::store::rocks::keys;
use crate::store::rocks::notes::{self, FILES_MAX};

const SUFFIX: &str = ".sst";

/// The name of the table file that an error of RocksDB names.
#[must_use]
pub fn named(error: &str) -> Option<String> {
    let end = error.find(SUFFIX)?;
    let digits = error[..end].bytes().rev();
    let count = digits.take_while(u8::is_ascii_digit).count();
    (count > 0).then(|| error[end - count..end + SUFFIX.len()].to_owned())
}

impl Db {
    /// The stored report of damaged files.
    pub fn damage(&self) -> Result<Option<DamageReport>, StoreError> {
        let stored = self.rocks.get(keys::DAMAGE)?;
        Ok(stored.map(|bytes| notes::decode_damage(&bytes)))
    }

    /// Stores a report durably.
    pub fn set_damage(&self, report: Option<&DamageReport>) -> Result<(), StoreError> {
        let mut batch = self.batch();
        batch.set_damage(report.map(notes::encode_damage).as_deref());
        batch.write()?;
        self.flush()
    }

    /// What an error tells of damaged files, together with what was known and with files that are
    /// missing or cut short.
    pub fn look_at_damage(
        &self,
        known: Option<DamageReport>,
        error: Option<&str>,
    ) -> Result<DamageReport, StoreError> {
        let mut report = known.unwrap_or_default();
        let mut found = Vec::new();
        if let Some(error) = error {
            found.push((named(error).unwrap_or_default(), error.to_owned()));
        }
        found.extend(self.incomplete_files()?);
        for (name, what) in found {
            let is_new = report.files.iter().all(|file| file.name != name);
            if is_new && report.files.len() < FILES_MAX {
                let (first, last) = self.ledgers_in(&name)?;
                report.files.push(DamagedFile {
                    name,
                    first,
                    last,
                    what,
                });
            }
        }
        Ok(report)
    }

    /// Table files that are not there or have another size than when they were written.
    fn incomplete_files(&self) -> Result<Vec<(String, String)>, StoreError> {
        let mut found = Vec::new();
        for file in self.rocks.live_files()? {
            let name = file.name.trim_start_matches('/').to_owned();
            let path = self.rocks.path().join(&name);
            let what = match path.metadata().map(|found| found.len()) {
                Ok(len) if usize::try_from(len) == Ok(file.size) => continue,
                Ok(len) => format!("it has {len} bytes instead of {}", file.size),
                Err(error) => error.to_string(),
            };
            found.push((name, what));
        }
        Ok(found)
    }

    /// The table file of a family that was written last.
    #[cfg(test)]
    pub fn newest_file(&self, family: &str) -> Result<String, StoreError> {
        let live = self.rocks.live_files()?.into_iter();
        let names = live.filter(|file| file.column_family_name == family);
        let newest = names.map(|file| file.name.trim_start_matches('/').to_owned());
        Ok(newest.max().unwrap_or_default())
    }

    /// How many table files of a family are as flushes left them; four of them are compacted.
    #[cfg(test)]
    pub fn flushed_files(&self, family: &str) -> Result<usize, StoreError> {
        let live = self.rocks.live_files()?.into_iter();
        let of_family = live.filter(|file| file.column_family_name == family && file.level == 0);
        Ok(of_family.count())
    }

    /// The first and the last ledger of which a file may have something; of a file that is not
    /// known, or that has none of their keys, all.
    pub fn ledgers_in(&self, name: &str) -> Result<(LedgerId, LedgerId), StoreError> {
        let all = (LedgerId(0), LedgerId(LEDGER_ID_MAX));
        let live = self.rocks.live_files()?;
        let file = live.into_iter().find(|file| {
            file.name.trim_start_matches('/') == name && file.column_family_name != "default"
        });
        let Some(file) = file else {
            return Ok(all);
        };
        let ledger = |key: Option<Vec<u8>>| keys::ledger_of(key?.get(..8)?);
        match (ledger(file.start_key), ledger(file.end_key)) {
            (Some(first), Some(last)) => Ok((first, last)),
            _ => Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_error_is_found() {
        let error = "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in \
                     /d/rocksdb/000017.sst offset 0 size 16384";
        assert_eq!(named(error).as_deref(), Some("000017.sst"));
        for error in ["Corruption: bad", "x.sst", ".sst", "/a/000017.blob"] {
            assert_eq!(named(error), None, "{error}");
        }
    }
}
