//! The contract of [`Disk`], run on both implementations, so that what passes on the simulated
//! disk means something on the real one.

use super::*;

const CREATE: OpenOptions = OpenOptions {
    create: true,
    direct: false,
};

fn both(check: fn(&dyn Disk, &Path)) {
    let directory = tempfile::tempdir().unwrap();
    check(&RealDisk, &directory.path().join("data"));
    let disk = SimDisk::new();
    check(&disk, Path::new("/data"));
}

#[test]
fn directories_are_created_with_their_parents_and_listed_in_order() {
    both(|disk, root| {
        let deep = root.join("x/y");
        disk.create_dir_all(&deep).unwrap();
        disk.create_dir_all(&deep).unwrap();
        disk.write_atomic(&root.join("b"), b"").unwrap();
        disk.write_atomic(&root.join("a"), b"").unwrap();
        disk.write_atomic(&deep.join("hidden"), b"").unwrap();
        let listed = disk.list(root).unwrap();
        assert_eq!(listed, [root.join("a"), root.join("b"), root.join("x")]);
        assert!(disk.exists(&deep).unwrap());
        assert!(!disk.exists(&root.join("none")).unwrap());
        disk.sync_dir(root).unwrap();
        let missing = disk.list(&root.join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(disk.create_dir_all(&root.join("a")).is_err());
    });
}

#[test]
fn files_open_only_when_they_exist_or_shall_be_created() {
    both(|disk, root| {
        disk.create_dir_all(root).unwrap();
        let path = root.join("file");
        let missing = disk.open(&path, OpenOptions::default()).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            disk.read(&path).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        disk.open(&path, CREATE)
            .unwrap()
            .write_all_at(0, b"kept")
            .unwrap();
        let again = disk.open(&path, CREATE).unwrap();
        assert_eq!(again.len().unwrap(), 4, "creating does not truncate");
        let orphan = disk.open(&root.join("none/file"), CREATE).unwrap_err();
        assert_eq!(orphan.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn reads_and_writes_are_positioned() {
    both(|disk, root| {
        disk.create_dir_all(root).unwrap();
        let file = disk.open(&root.join("file"), CREATE).unwrap();
        assert!(file.is_empty().unwrap());
        file.write_all_at(5, b"world").unwrap();
        file.write_all_at(0, b"hello").unwrap();
        let mut buf = [9; 20];
        assert_eq!(file.read_at(0, &mut buf).unwrap(), 10);
        assert_eq!(&buf[..10], b"helloworld");
        assert_eq!(
            file.read_at(10, &mut buf).unwrap(),
            0,
            "the end of the file"
        );
        assert_eq!(file.read_at(100, &mut buf).unwrap(), 0, "beyond it");
        let short = file.read_exact_at(5, &mut buf[..6]).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(3).unwrap();
        file.set_len(6).unwrap();
        file.read_exact_at(0, &mut buf[..6]).unwrap();
        assert_eq!(
            &buf[..6],
            b"hel\0\0\0",
            "what was cut off comes back as zeros"
        );
        file.write_all_at(8, b"!").unwrap();
        file.read_exact_at(6, &mut buf[..3]).unwrap();
        assert_eq!(&buf[..3], b"\0\0!", "a gap reads as zeros");
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 9);
    });
}

#[test]
fn names_move_and_vanish_under_open_handles() {
    both(|disk, root| {
        disk.create_dir_all(root).unwrap();
        let (a, b) = (root.join("a"), root.join("b"));
        disk.write_atomic(&a, b"from a").unwrap();
        disk.write_atomic(&b, b"from b").unwrap();
        let replaced = disk.open(&b, OpenOptions::default()).unwrap();
        disk.rename(&a, &b).unwrap();
        assert_eq!(disk.read(&b).unwrap(), b"from a");
        assert!(!disk.exists(&a).unwrap());
        let mut buf = [0; 6];
        replaced.read_exact_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"from b", "an open handle keeps its file");
        disk.remove(&b).unwrap();
        assert_eq!(disk.remove(&b).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(disk.rename(&b, &a).is_err());
    });
}

#[test]
fn an_atomic_write_replaces_the_whole_file_and_leaves_nothing_behind() {
    both(|disk, root| {
        disk.create_dir_all(root).unwrap();
        let path = root.join("file");
        disk.write_atomic(&path, b"a longer content").unwrap();
        disk.write_atomic(&path, b"short").unwrap();
        assert_eq!(disk.read(&path).unwrap(), b"short");
        assert_eq!(disk.list(root).unwrap(), [path]);
    });
}

#[test]
fn a_lock_has_one_holder_and_is_released_on_drop() {
    both(|disk, root| {
        disk.create_dir_all(root).unwrap();
        let path = root.join("lock");
        let held = disk.lock_exclusive(&path).unwrap();
        let taken = disk.lock_exclusive(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        disk.lock_exclusive(&path).unwrap();
    });
}

#[test]
fn direct_files_read_back_aligned_blocks() {
    both(|disk, root| {
        disk.create_dir_all(root).unwrap();
        let direct = OpenOptions {
            create: true,
            direct: true,
        };
        let file = disk.open(&root.join("file"), direct).unwrap();
        let mut buffer = AlignedBuffer::with_capacity(2 * BLOCK_BYTES);
        buffer.extend_from_slice(&[7; BLOCK_BYTES + 1]);
        buffer.pad_to_block();
        let block = u64::try_from(BLOCK_BYTES).unwrap();
        file.write_all_at(block, buffer.as_slice()).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 3 * block);
        let mut back = AlignedBuffer::with_capacity(0);
        back.resize(2 * BLOCK_BYTES);
        file.read_exact_at(block, back.as_mut_slice()).unwrap();
        assert_eq!(back.as_slice(), buffer.as_slice());
    });
}

#[test]
fn space_is_reported_for_what_exists() {
    both(|disk, root| {
        disk.create_dir_all(root).unwrap();
        let space = disk.space(root).unwrap();
        assert!(space.total_bytes > 0 && space.available_bytes <= space.total_bytes);
        assert!(disk.space(&root.join("none")).is_err());
    });
}
