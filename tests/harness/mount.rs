//! File systems of our own: small ones to fill, and ones to cut the power of. Needs root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// Whether this process may mount; tests that need it say so and end when it may not.
#[must_use]
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
        && run("unshare", &["--mount", "true"]).is_ok()
        && Path::new("/dev/loop-control").exists()
}

/// A file system that is unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    image: Option<PathBuf>,
}

impl Mount {
    /// An ext4 file system in an image file under `folder`.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn ext4(folder: &Path, bytes: u64) -> Result<Mount> {
        let image = folder.join("disk.ext4");
        File::create(&image)?.set_len(bytes)?;
        run("mkfs.ext4", &["-q", "-F", text(&image)?])?;
        let mut mount = Mount {
            path: folder.join("mnt"),
            image: Some(image),
        };
        fs::create_dir_all(&mount.path)?;
        mount.mount()?;
        Ok(mount)
    }

    /// A tmpfs of `bytes`.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn tmpfs(folder: &Path, bytes: u64) -> Result<Mount> {
        let path = folder.join("mnt");
        fs::create_dir_all(&path)?;
        let size = format!("size={bytes}");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &size, "tmpfs", text(&path)?],
        )?;
        Ok(Mount { path, image: None })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn mount(&mut self) -> Result<()> {
        let image = self
            .image
            .as_ref()
            .context("only images are mounted again")?;
        run("mount", &["-o", "loop", text(image)?, text(&self.path)?])
    }

    /// Cuts the power: from now on no write reaches the image, and what was not synced is gone.
    /// The ext4 shutdown ioctl without log flush, issued by perl, which every
    /// Debian has, because Rust would need `unsafe` for it.
    ///
    /// # Errors
    /// When the ioctl is refused.
    pub fn cut_power(&self) -> Result<()> {
        let script = r#"open(my $d, "<", $ARGV[0]) or die "open: $!"; my $flag = pack("L", 2);
            ioctl($d, 0x8004587d, $flag) or die "shutdown: $!";"#;
        run("perl", &["-e", script, text(&self.path)?])
    }

    /// Unmounts and mounts again: the machine comes back.
    ///
    /// # Errors
    /// When something still uses it.
    pub fn power_up(&mut self) -> Result<()> {
        run("umount", &[text(&self.path)?])?;
        self.mount()
    }

    /// Bytes that are free.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn available(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Mounts it read-only or writable again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let option = if read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        run("mount", &["-o", option, text(&self.path)?])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Ok(path) = text(&self.path) {
            let _ = run("umount", &["-l", path]);
        }
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("test paths are UTF-8")
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    command::run(Command::new(program).args(arguments)).map(drop)
}
