//! A `.tar.gz` file: the parts of the format that regular files with short names need.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

const BLOCK: usize = 512;
/// Longest name of a file.
const NAME_BYTES_MAX: usize = 100;

/// An archive that is written.
pub struct Archive {
    out: GzEncoder<File>,
    modified_s: u64,
}

impl Archive {
    /// Creates the file, which only its owner can read.
    ///
    /// # Errors
    /// When it exists, or cannot be written.
    pub fn create(path: &Path, modified_s: u64) -> io::Result<Archive> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Archive {
            out: GzEncoder::new(file, Compression::default()),
            modified_s,
        })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When the name is too long, or the archive cannot be written.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.out
            .write_all(&header(name, bytes.len(), self.modified_s)?)?;
        self.out.write_all(bytes)?;
        let rest = bytes.len() % BLOCK;
        let padding = (BLOCK - rest) % BLOCK;
        self.out.write_all(&[0; BLOCK][..padding])
    }

    /// Completes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.finish()?.sync_all()
    }
}

/// The header of a regular file, as POSIX (ustar) has it.
fn header(name: &str, bytes: usize, modified_s: u64) -> io::Result<[u8; BLOCK]> {
    if name.len() > NAME_BYTES_MAX {
        return Err(io::Error::other(format!("{name}: the name is too long")));
    }
    let mut header = [0; BLOCK];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{bytes:011o}\0").as_bytes());
    put(136, format!("{modified_s:011o}\0").as_bytes());
    // The sum is taken with blanks in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar.gz");
        let mut archive = Archive::create(&path, 1_700_000_000).unwrap();
        archive.add("a/one.txt", b"one").unwrap();
        archive.add("a/two.txt", &[b'x'; 1024]).unwrap();
        assert!(archive.add(&"n".repeat(101), b"").is_err());
        archive.finish().unwrap();
        assert!(Archive::create(&path, 0).is_err(), "it is not overwritten");
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(&path).arg("-C").arg(folder.path());
        let output = tar.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(read("a/one.txt"), b"one");
        assert_eq!(read("a/two.txt"), [b'x'; 1024]);
    }
}
