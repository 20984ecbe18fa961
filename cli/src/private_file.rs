//! Files that only their owner may read.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::exit::CliError;

const MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// A new file that is still empty, and is removed unless it is filled: what is to go into it is
/// asked for only once there is a place for it.
pub struct NewFile {
    path: PathBuf,
    file: fs::File,
    is_filled: bool,
}

impl NewFile {
    /// Makes it.
    ///
    /// # Errors
    /// When something of this name exists, or it cannot be made.
    pub fn create(path: &Path) -> Result<NewFile, CliError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let message = format!("{} exists, and is not overwritten", path.display());
                CliError::failed(message).advise("give another file, or remove that one first")
            }
            _ => unwritable(path, &error),
        })?;
        Ok(NewFile {
            path: path.to_owned(),
            file,
            is_filled: false,
        })
    }

    /// Writes what it is for, to the disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn fill(mut self, text: &str) -> Result<(), CliError> {
        let written = writeln!(self.file, "{text}").and_then(|()| self.file.sync_all());
        written.map_err(|error| unwritable(&self.path, &error))?;
        self.is_filled = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_filled {
            // Only an empty file stays where this fails.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes a file in one step, so that a process that reads it again never sees a part of it.
///
/// # Errors
/// What the file system says.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // What an attempt that was cut off has left may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Makes the directory of a file, for its owner alone.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory_of(path: &Path) -> Result<(), CliError> {
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    let mut builder = fs::DirBuilder::new();
    let made = builder
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory);
    made.map_err(|error| unwritable(directory, &error))
}

/// What it means that a file cannot be written.
pub fn unwritable(path: &Path, error: &io::Error) -> CliError {
    CliError::failed(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_new_file_overwrites_nothing_and_goes_when_it_is_not_filled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        drop(NewFile::create(&path).unwrap());
        assert!(!path.exists());
        NewFile::create(&path).unwrap().fill("text").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "text\n");
        assert_eq!(mode(&path), MODE);
        let error = NewFile::create(&path).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text\n");
    }

    #[test]
    fn a_replaced_file_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/config");
        make_directory_of(&path).unwrap();
        assert_eq!(mode(path.parent().unwrap()), DIRECTORY_MODE);
        fs::write(&path, "old").unwrap();
        fs::write(folder.path().join("a/b/config.new"), "left over").unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(mode(&path), MODE);
    }
}
