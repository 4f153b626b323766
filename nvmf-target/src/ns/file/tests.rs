use super::rig::Rig;
use super::*;
use crate::ns::Op;
use nvmf_proto::wire::Status;
use std::cell::RefCell;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tempfile::{NamedTempFile, TempDir};

const MIB: u64 = 1 << 20;

fn file_of(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn options(change: impl FnOnce(&mut FileOptions)) -> FileOptions {
    let mut options = FileOptions::default();
    change(&mut options);
    options
}

fn open(path: impl AsRef<Path>) -> FileBackend {
    FileBackend::open(path, &FileOptions::default()).unwrap()
}

fn shared(path: impl AsRef<Path>, options: &FileOptions) -> Arc<FileBackend> {
    Arc::new(FileBackend::open(path, options).unwrap())
}

/// The one line that says why it cannot be opened.
fn refusal(path: impl AsRef<Path>, options: &FileOptions) -> String {
    let path = path.as_ref();
    let text = FileBackend::open(path, options).unwrap_err().to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(!text.contains('\n'), "{text}");
    text
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 7 + i / 512 + seed) % 251).unwrap())
        .collect()
}

/// A device, called or through a lane.
trait Storage {
    fn run(&self, op: Op, offset: u64, data: &mut [u8]) -> Result<(), Status>;
}

impl Storage for FileBackend {
    fn run(&self, op: Op, offset: u64, data: &mut [u8]) -> Result<(), Status> {
        let len = data.len() as u64;
        let done = match op {
            Op::Read => self.read_at(offset, data),
            Op::Write { fua } => self.write_at(offset, data, fua),
            Op::WriteZeroes { deallocate, fua } => self.write_zeroes(offset, len, deallocate, fua),
            Op::Deallocate => BlockDevice::deallocate(self, offset, len),
            _ => self.flush(),
        };
        done.map_err(|err| err.status(op))
    }
}

impl Storage for RefCell<Rig> {
    fn run(&self, op: Op, offset: u64, data: &mut [u8]) -> Result<(), Status> {
        self.borrow_mut().run(op, offset, data)
    }
}

/// Reads, writes, zeroes and discards in all sizes and alignments, called and by each engine; a
/// `Vec` is the reference.
fn behaves(dev: &Arc<FileBackend>) {
    behaves_as(&**dev, dev);
    for (engine, ring) in [
        (FileEngine::Threads, ReactorRing::default()),
        (FileEngine::Uring, ReactorRing::default()),
        (FileEngine::Uring, ReactorRing::plain()),
    ] {
        behaves_as(&RefCell::new(Rig::of(dev, engine, ring)), dev);
    }
    dev.raw.write_zero_bytes(0, 64 << 10).unwrap();
    let mut got = vec![0xee; 64 << 10];
    dev.read_at(0, &mut got).unwrap();
    assert!(got.iter().all(|&byte| byte == 0));
    // Memory that direct I/O does not take.
    let block = usize::try_from(dev.info().block_size()).unwrap();
    let mut odd = vec![0; 3 * block + 1];
    let data = pattern(3 * block, 5);
    dev.write_at(0, &data, true).unwrap();
    dev.read_at(0, &mut odd[1..]).unwrap();
    assert_eq!(odd[1..], data);
}

fn behaves_as(storage: &dyn Storage, dev: &FileBackend) {
    let bytes = dev.info().bytes();
    let block = usize::try_from(dev.info().block_size()).unwrap();
    let mut want = pattern(usize::try_from(bytes).unwrap(), 0);
    let plain = Op::Write { fua: false };
    storage.run(plain, 0, &mut want).unwrap();
    let mut put = |blocks: std::ops::Range<usize>, seed: usize, op: Op| {
        let part = &mut want[blocks.start * block..blocks.end * block];
        if seed == 0 {
            part.fill(0);
        } else {
            part.copy_from_slice(&pattern(part.len(), seed));
        }
        let offset = (blocks.start * block) as u64;
        storage.run(op, offset, part).unwrap();
        let mut got = vec![0xee; usize::try_from(bytes).unwrap()];
        storage.run(Op::Read, 0, &mut got).unwrap();
        assert!(got == want, "{blocks:?} {seed}");
    };
    let zeroes = |deallocate, fua| Op::WriteZeroes { deallocate, fua };
    put(1..2, 1, plain);
    put(3..20, 2, Op::Write { fua: true });
    put(5..7, 0, zeroes(false, false));
    put(16..40, 0, zeroes(true, true));
    put(41..42, 0, zeroes(true, false));
    if dev.info().dealloc_reads_zero {
        put(90..120, 0, Op::Deallocate);
    }
    storage.run(Op::Flush, 0, &mut []).unwrap();
}

#[test]
fn a_file_behaves_directly_and_through_the_page_cache() {
    for (direct, block) in [
        (Direct::Auto, 512),
        (Direct::Off, 512),
        (Direct::Auto, 4096),
        (Direct::Off, 65536),
    ] {
        let file = file_of(8 * MIB);
        let options = options(|o| (o.direct, o.block_size) = (direct, Some(block)));
        let dev = shared(file.path(), &options);
        assert_eq!(dev.info().block_size(), block);
        assert!(direct == Direct::Auto || !dev.is_direct());
        behaves(&dev);
    }
}

#[test]
fn a_file_in_memory_behaves() {
    let Ok(file) = NamedTempFile::new_in("/dev/shm") else {
        return;
    };
    file.as_file().set_len(2 * MIB).unwrap();
    behaves(&Arc::new(open(file.path())));
}

#[test]
fn what_the_file_system_cannot_is_remembered_and_done_by_writing() {
    let file = file_of(MIB);
    let dev = Arc::new(open(file.path()));
    dev.punches.store(false, Ordering::Relaxed);
    dev.zeroes.store(false, Ordering::Relaxed);
    behaves(&dev);
}

#[test]
fn info_tells_what_was_asked_for_and_found() {
    let file = file_of(3 * MIB);
    let ids = options(|o| (o.uuid, o.nguid, o.eui64) = ([1; 16], [2; 16], [3; 8]));
    let info = FileBackend::open(file.path(), &ids).unwrap().info();
    assert_eq!((info.block_size(), info.bytes()), (512, 3 * MIB));
    assert_eq!(
        (info.uuid, info.nguid, info.eui64),
        ([1; 16], [2; 16], [3; 8])
    );
    assert!(info.volatile_cache && !info.read_only);
    assert_eq!(
        (info.caps.flush, info.caps.fua, info.caps.write_zeroes),
        (Support::Native, Support::Native, Support::Native)
    );
    assert_eq!(
        info.dealloc_reads_zero,
        info.caps.deallocate == Support::Native
    );
    assert!(info.preferred_write.is_multiple_of(512));
}

#[test]
fn a_hole_gives_memory_back() {
    let file = file_of(4 * MIB);
    let dev = open(file.path());
    if dev.info().caps.deallocate != Support::Native {
        return;
    }
    dev.write_at(0, &pattern(4 << 20, 1), true).unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    dev.deallocate(MIB, 2 * MIB).unwrap();
    dev.flush().unwrap();
    let after = file.as_file().metadata().unwrap();
    assert!(
        after.blocks() + 2048 <= before,
        "{} {before}",
        after.blocks()
    );
    assert_eq!(after.len(), 4 * MIB);
}

#[test]
fn reading_past_a_truncated_end_fails_and_gives_no_garbage() {
    for direct in [Direct::Auto, Direct::Off] {
        let file = file_of(MIB);
        let dev = shared(file.path(), &options(|o| o.direct = direct));
        file.as_file().set_len(MIB / 2 + 4096).unwrap();
        let mut buf = vec![0; 8192];
        dev.read_at(MIB / 2 - 4096, &mut buf).unwrap();
        let err = dev.read_at(MIB / 2, &mut buf).unwrap_err();
        assert!(err.to_string().contains("truncated"), "{err}");
        assert_eq!(err.status(Op::Read), Status::UNRECOVERED_READ_ERROR);
        dev.read_at(MIB - 512, &mut buf[..512]).unwrap_err();
        for engine in [FileEngine::Threads, FileEngine::Uring] {
            let mut rig = Rig::of(&dev, engine, ReactorRing::default());
            rig.run(Op::Read, MIB / 2 - 4096, &mut buf).unwrap();
            for at in [MIB / 2, MIB - 8192] {
                let err = rig.run(Op::Read, at, &mut buf).unwrap_err();
                assert_eq!(err, Status::UNRECOVERED_READ_ERROR);
            }
        }
    }
}

/// Zeroes must not stand where data was, as they do in a file that grows again.
#[test]
fn behind_the_end_that_was_seen_nothing_is_read_or_written_until_refresh() {
    let at = MIB / 2 + 4096;
    for (direct, engine) in [
        (Direct::Auto, FileEngine::Threads),
        (Direct::Auto, FileEngine::Uring),
        (Direct::Off, FileEngine::Uring),
    ] {
        let file = file_of(MIB);
        let dev = shared(file.path(), &options(|o| o.direct = direct));
        let mut hosts = [engine, engine].map(|e| Rig::of(&dev, e, ReactorRing::default()));
        file.as_file().set_len(at).unwrap();
        let mut data = pattern(4096, 3);
        let failed = hosts[0].run(Op::Read, MIB - 8192, &mut data).unwrap_err();
        assert_eq!(failed, Status::UNRECOVERED_READ_ERROR);
        let zeroes = |deallocate| Op::WriteZeroes {
            deallocate,
            fua: false,
        };
        let writes = [
            Op::Write { fua: false },
            Op::Write { fua: true },
            zeroes(false),
            zeroes(true),
            Op::Deallocate,
        ];
        for host in &mut hosts {
            for op in writes {
                for offset in [at - 2048, at, MIB - 4096] {
                    let failed = host.run(op, offset, &mut data).unwrap_err();
                    assert_eq!(failed, Status::WRITE_FAULT, "{op:?} at {offset}");
                }
                host.run(op, at - 4096, &mut data).unwrap();
            }
            host.run(Op::Flush, 0, &mut []).unwrap();
        }
        assert_eq!(file.as_file().metadata().unwrap().len(), at);
        // Who makes it longer does not bring back what it held.
        file.as_file().set_len(MIB).unwrap();
        for host in &mut hosts {
            host.run(Op::Read, at - 4096, &mut data).unwrap();
            host.run(Op::Read, at, &mut data).unwrap_err();
        }
        assert!(!dev.refresh().unwrap());
        for host in &mut hosts {
            host.run(Op::Write { fua: false }, at, &mut data).unwrap();
            host.run(Op::Read, at, &mut data).unwrap();
        }
    }
}

#[test]
fn refresh_refuses_a_file_that_its_path_does_not_lead_to_any_more() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(MIB).unwrap();
    let dev = open(&path);
    let refused = |what: &str| {
        let text = dev.refresh().unwrap_err().to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains(what), "{text}");
        assert_eq!(dev.info().bytes(), MIB);
    };
    let aside = dir.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    refused("deleted or moved");
    std::fs::create_dir(&path).unwrap();
    refused("replaced");
    std::fs::remove_dir(&path).unwrap();
    File::create(&path).unwrap().set_len(2 * MIB).unwrap();
    refused("replaced");
    // What is served goes on.
    dev.write_at(0, &[1; 512], true).unwrap();
    std::fs::remove_file(&path).unwrap();
    symlink(&aside, &path).unwrap();
    assert!(!dev.refresh().unwrap());
}

#[test]
fn refresh_follows_the_size_and_tells_the_subsystem() {
    let file = file_of(MIB);
    let dev = open(file.path());
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let notify: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    dev.subscribe(NsSink(Arc::downgrade(&notify)));
    assert!(!dev.refresh().unwrap());
    file.as_file().set_len(4 * MIB).unwrap();
    assert_eq!(dev.info().bytes(), MIB);
    assert!(dev.refresh().unwrap());
    assert_eq!(
        (dev.info().bytes(), told.load(Ordering::Relaxed)),
        (4 * MIB, 1)
    );
    dev.write_at(4 * MIB - 512, &[9; 512], false).unwrap();
    file.as_file().set_len(512).unwrap();
    assert!(dev.refresh().unwrap());
    assert_eq!((dev.info().blocks, told.load(Ordering::Relaxed)), (1, 2));
    for bad in [0, 1000] {
        file.as_file().set_len(bad).unwrap();
        assert!(
            dev.refresh()
                .unwrap_err()
                .to_string()
                .contains("block size")
        );
        assert_eq!((dev.info().blocks, told.load(Ordering::Relaxed)), (1, 2));
    }
}

#[test]
fn the_same_file_is_known_by_any_name_and_served_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(MIB).unwrap();
    let (hard, soft) = (dir.path().join("hard"), dir.path().join("soft"));
    std::fs::hard_link(&path, &hard).unwrap();
    symlink(&path, &soft).unwrap();
    let dev = open(&path);
    let read_only = options(|o| o.read_only = true);
    for name in [&path, &hard, &soft] {
        assert_eq!(FileId::of(name).unwrap(), dev.id());
        assert!(refusal(name, &FileOptions::default()).contains("in use"));
        assert!(refusal(name, &read_only).contains("in use"));
    }
    assert_ne!(FileId::of(file_of(MIB).path()).unwrap(), dev.id());
    drop(dev);
    let readers = [&path, &hard].map(|name| FileBackend::open(name, &read_only).unwrap());
    assert!(refusal(&path, &FileOptions::default()).contains("in use"));
    drop(readers);
    open(&path);
}

#[test]
fn a_file_that_is_in_use_is_waited_for() {
    let file = file_of(MIB);
    let dev = open(file.path());
    // It is free as soon as somebody waits for it.
    let (path, (begun, has_begun)) = (file.path().to_owned(), std::sync::mpsc::channel());
    let waiting = thread::spawn(move || {
        begun.send(()).unwrap();
        FileBackend::open(path, &options(|o| o.wait = Duration::from_secs(60)))
    });
    has_begun.recv().unwrap();
    drop(dev);
    let _dev = waiting.join().unwrap().unwrap();
    let briefly = options(|o| o.wait = Duration::from_millis(1));
    assert!(refusal(file.path(), &briefly).contains("in use"));
}

#[test]
fn what_cannot_be_served_is_refused_in_one_line() {
    let dir = TempDir::new().unwrap();
    let default = FileOptions::default();
    assert!(
        refusal(dir.path(), &default).contains("is a directory; a regular file or a block device")
    );
    assert!(refusal("/dev/null", &default).contains("is a character device"));
    let read_only = options(|o| o.read_only = true);
    for (path, what) in [
        ("/sys/kernel/mm/transparent_hugepage/enabled", "sysfs"),
        ("/proc/version", "procfs"),
    ] {
        if Path::new(path).exists() {
            assert!(refusal(path, &read_only).contains(what));
        }
    }
    assert!(refusal(dir.path().join("none"), &default).contains("No such file"));
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(refusal(&socket, &default).contains("is a socket"));
    let fifo = dir.path().join("fifo");
    if Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .is_ok_and(|status| status.success())
    {
        assert!(refusal(&fifo, &default).contains("is a FIFO"));
    }
    assert!(refusal(file_of(0).path(), &default).contains("0 bytes"));
    let odd = refusal(file_of(1000).path(), &default);
    assert!(
        odd.contains("1000 bytes") && odd.contains("block size, 512 bytes"),
        "{odd}"
    );
    let blocks = options(|o| o.block_size = Some(4096));
    assert!(refusal(file_of(4096 + 512).path(), &blocks).contains("4096 bytes"));
    for size in [0, 256, 1000, 131_072] {
        let odd = options(|o| o.block_size = Some(size));
        assert!(refusal(file_of(MIB).path(), &odd).contains("a power of two from 512 to 65536"));
    }
}

#[test]
fn a_file_without_write_permission_is_served_read_only_or_not_at_all() {
    let file = file_of(MIB);
    file.as_file().write_all_at(b"kept", 0).unwrap();
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o444))
        .unwrap();
    // Permissions do not stop root.
    if File::options().write(true).open(file.path()).is_err() {
        assert!(refusal(file.path(), &FileOptions::default()).contains("cannot be written"));
    }
    let dev = FileBackend::open(file.path(), &options(|o| o.read_only = true)).unwrap();
    assert!(dev.info().read_only);
    assert_eq!(dev.info().caps.deallocate, Support::None);
    let mut buf = [0; 512];
    dev.read_at(0, &mut buf).unwrap();
    assert_eq!(&buf[..4], b"kept");
    let err = dev.write_at(0, &buf, false).unwrap_err();
    assert_eq!(
        err.status(Op::Write { fua: false }),
        Status::NAMESPACE_WRITE_PROTECTED.dnr()
    );
    dev.flush().unwrap();
    let dev = Arc::new(dev);
    for engine in [FileEngine::Threads, FileEngine::Uring] {
        let mut rig = Rig::of(&dev, engine, ReactorRing::default());
        rig.run(Op::Read, 0, &mut buf).unwrap();
        let err = rig.run(Op::Write { fua: true }, 0, &mut buf).unwrap_err();
        assert_eq!(err, Status::NAMESPACE_WRITE_PROTECTED.dnr());
    }
}

/// A loop device over a file; detached when dropped.
struct Loop {
    node: String,
    _file: NamedTempFile,
}

impl Loop {
    /// `None` without the privilege or the tool: the test passes without having run.
    fn new(bytes: u64, arguments: &[&str]) -> Option<Self> {
        Self::over(NamedTempFile::new().unwrap(), bytes, arguments)
    }

    fn over(file: NamedTempFile, bytes: u64, arguments: &[&str]) -> Option<Self> {
        file.as_file().set_len(bytes).unwrap();
        let mut command = Command::new("losetup");
        let output = command
            .args(["--find", "--show"])
            .args(arguments)
            .arg(file.path())
            .output()
            .ok()?;
        let node = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output
            .status
            .success()
            .then_some(Self { node, _file: file })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["--detach", &self.node])
            .status();
    }
}

#[test]
fn a_block_device_behaves() {
    for direct in [Direct::Auto, Direct::Off] {
        let Some(disk) = Loop::new(8 * MIB, &[]) else {
            return;
        };
        let dev = shared(&disk.node, &options(|o| o.direct = direct));
        assert_eq!(dev.is_direct(), direct == Direct::Auto);
        assert_eq!(
            (dev.info().block_size(), dev.info().bytes()),
            (512, 8 * MIB)
        );
        assert!(!dev.info().dealloc_reads_zero);
        behaves(&dev);
        dev.deallocate(MIB, MIB).unwrap();
        assert!(matches!(dev.id(), FileId::Device { .. }));
        assert!(refusal(&disk.node, &FileOptions::default()).contains("in use"));
    }
}

/// A loop device that has less space than it says: what it is given fails when it is written back.
struct Thin {
    disk: Option<Loop>,
    dir: TempDir,
}

impl Thin {
    /// `None` without the privilege or the tools.
    fn new() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", "size=64k", "none"]);
        if !mount.arg(dir.path()).status().is_ok_and(|s| s.success()) {
            return None;
        }
        let mut thin = Self { disk: None, dir };
        let file = NamedTempFile::new_in(thin.dir.path()).unwrap();
        thin.disk = Some(Loop::over(file, 8 * MIB, &[])?);
        Some(thin)
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        self.disk = None;
        let mut umount = Command::new("umount");
        let _ = umount.arg("--lazy").arg(self.dir.path()).status();
    }
}

/// The kernel tells one Flush of what it could not write back. Whoever flushes after that is told as
/// well: it may have been his.
#[test]
fn what_cannot_be_written_back_no_flush_hides() {
    for engine in [FileEngine::Threads, FileEngine::Uring] {
        let Some(thin) = Thin::new() else { return };
        let node = &thin.disk.as_ref().unwrap().node;
        let dev = shared(node, &options(|o| o.direct = Direct::Off));
        let mut data = pattern(1 << 20, 1);
        let mut hosts = [engine; 2].map(|e| Rig::of(&dev, e, ReactorRing::default()));
        for (host, at) in hosts.iter_mut().zip([0, MIB]) {
            host.run(Op::Write { fua: false }, at, &mut data).unwrap();
        }
        for host in &mut hosts {
            host.run(Op::Flush, 0, &mut []).unwrap_err();
            let fua = Op::Write { fua: true };
            host.run(fua, 0, &mut data[..512]).unwrap_err();
        }
        // All else goes on.
        hosts[0].run(Op::Read, 4 * MIB, &mut data).unwrap();
        drop(hosts);
        drop(dev);
        // What was lost then is not held against the next one.
        shared(node, &options(|o| o.direct = Direct::Off))
            .flush()
            .unwrap();
    }
}

/// What the kernel tells a write with FUA, a Flush is not told any more, if both use one open file.
#[test]
fn what_a_write_with_fua_is_told_a_flush_hears_as_well() {
    for engine in [FileEngine::Threads, FileEngine::Uring] {
        let Some(thin) = Thin::new() else { return };
        let node = &thin.disk.as_ref().unwrap().node;
        let dev = shared(node, &options(|o| o.direct = Direct::Off));
        let mut host = Rig::of(&dev, engine, ReactorRing::default());
        let mut data = pattern(1 << 20, 1);
        host.run(Op::Write { fua: false }, 0, &mut data).unwrap();
        // The kernel writes back what it wants to, and nobody is told.
        let everything = File::open(node).unwrap();
        everything.sync_all().unwrap_err();
        let fua = Op::Write { fua: true };
        host.run(fua, 4 * MIB, &mut data[..4096]).unwrap_err();
        host.run(Op::Flush, 0, &mut []).unwrap_err();
        host.run(Op::Flush, 0, &mut []).unwrap_err();
    }
}

/// What the kernel could not write back it tells one of the writes with FUA that wait for theirs, and
/// not the one whose data it was.
#[test]
fn writes_with_fua_are_told_of_their_own_data_whoever_else_writes() {
    let Some(thin) = Thin::new() else { return };
    let node = &thin.disk.as_ref().unwrap().node;
    let data = pattern(4096, 1);
    for round in 0..20 {
        let dev = shared(node, &options(|o| o.direct = Direct::Off));
        let believed: Vec<u64> = thread::scope(|scope| {
            let write = |thread: u64| {
                let (dev, data) = (&dev, &data);
                move || {
                    let at = (0..8).map(|at| (1 + (thread * 8 + at)) * (64 << 10));
                    let is_ok = |&at: &u64| dev.write_at(at, data, true).is_ok();
                    at.filter(is_ok).collect::<Vec<_>>()
                }
            };
            let threads: Vec<_> = (0..8).map(|t| scope.spawn(write(t))).collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .collect()
        });
        drop(dev);
        let past = shared(
            node,
            &options(|o| (o.direct, o.read_only) = (Direct::On, true)),
        );
        let mut found = pattern(4096, 2);
        for at in believed {
            past.read_at(at, &mut found).unwrap();
            assert!(found == data, "at {at} in round {round}");
        }
    }
}

/// Of a regular file something may be in the page cache although it is read and written past it, so
/// what one host is told holds for all; a device past the page cache has nothing there.
#[test]
fn what_one_host_is_told_is_lost_holds_for_all_hosts_of_a_file() {
    let fua = Op::Write { fua: true };
    let lost = || Err(std::io::Error::from(Errno::IO));
    let mut data = pattern(512, 1);
    for direct in [Direct::Auto, Direct::Off] {
        let file = file_of(MIB);
        let dev = shared(file.path(), &options(|o| o.direct = direct));
        let mut hosts = [FileEngine::Threads, FileEngine::Uring]
            .map(|engine| Rig::of(&dev, engine, ReactorRing::default()));
        // A write speaks for itself.
        dev.promised(fua, lost()).unwrap_err();
        dev.promised(Op::Write { fua: false }, lost()).unwrap_err();
        for host in &mut hosts {
            host.run(Op::Flush, 0, &mut []).unwrap();
        }
        dev.promised(Op::Flush, lost()).unwrap_err();
        for host in &mut hosts {
            host.run(Op::Flush, 0, &mut []).unwrap_err();
            host.run(fua, 0, &mut data).unwrap_err();
            let zeroes = Op::WriteZeroes {
                deallocate: false,
                fua: true,
            };
            host.run(zeroes, 0, &mut data).unwrap_err();
            host.run(Op::Write { fua: false }, 0, &mut data).unwrap();
            host.run(Op::Read, 0, &mut data).unwrap();
        }
        drop((hosts, dev));
        open(file.path()).flush().unwrap();
    }
    let Some(disk) = Loop::new(MIB, &[]) else {
        return;
    };
    let dev = FileBackend::open(&disk.node, &options(|o| o.direct = Direct::On)).unwrap();
    dev.promised(Op::Flush, lost()).unwrap_err();
    dev.flush().unwrap();
}

impl Loop {
    /// What the kernel has counted for the device: sectors written, and flushes of its cache
    /// (Documentation/block/stat.rst).
    fn counted(&self) -> (u64, u64) {
        let name = self.node.strip_prefix("/dev/").unwrap();
        let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let fields: Vec<u64> = text
            .split_whitespace()
            .map(|f| f.parse().unwrap())
            .collect();
        // Flushes are counted since Linux 5.5.
        (fields[6], fields[15])
    }
}

/// What is acknowledged as durable the device has, and has been told to keep, by every engine. The
/// counters are the kernel's, of what has gone to the device and of its flushes.
#[test]
fn fua_and_flush_reach_the_device_before_they_are_over() {
    for direct in [Direct::On, Direct::Off] {
        let Some(disk) = Loop::new(8 * MIB, &[]) else {
            return;
        };
        let dev = shared(&disk.node, &options(|o| o.direct = direct));
        for (engine, ring) in [
            (FileEngine::Threads, ReactorRing::default()),
            (FileEngine::Uring, ReactorRing::default()),
            (FileEngine::Uring, ReactorRing::plain()),
        ] {
            let mut rig = Rig::of(&dev, engine, ring);
            let mut durable = |what: &str, sectors: u64, ops: &[(Op, usize)]| {
                let before = disk.counted();
                for &(op, len) in ops {
                    rig.run(op, MIB, &mut vec![7; len]).unwrap();
                }
                let after = disk.counted();
                let what = format!("{what}, {engine:?}, {direct:?}: {before:?}, {after:?}");
                assert!(after.0 >= before.0 + sectors, "{what}");
                assert!(after.1 > before.1, "{what}");
            };
            let write = |fua| Op::Write { fua };
            let zeroes = Op::WriteZeroes {
                deallocate: false,
                fua: true,
            };
            durable("FUA", 128, &[(write(true), 64 << 10)]);
            durable("Flush", 128, &[(write(false), 64 << 10), (Op::Flush, 0)]);
            // How a loop device makes zeroes is its own affair.
            durable("Write Zeroes", 0, &[(zeroes, 64 << 10)]);
        }
    }
}

#[test]
fn a_block_device_sets_the_least_block_size() {
    let Some(disk) = Loop::new(8 * MIB, &["--sector-size", "4096"]) else {
        return;
    };
    assert_eq!(open(&disk.node).info().block_size(), 4096);
    let small = options(|o| o.block_size = Some(512));
    assert!(refusal(&disk.node, &small).contains("a power of two from 4096 to 65536"));
    behaves(&Arc::new(open(&disk.node)));
}

#[test]
fn a_read_only_block_device_is_served_read_only_or_not_at_all() {
    let Some(disk) = Loop::new(MIB, &["--read-only"]) else {
        return;
    };
    assert!(refusal(&disk.node, &FileOptions::default()).contains("cannot be written"));
    let dev = FileBackend::open(&disk.node, &options(|o| o.read_only = true)).unwrap();
    dev.read_at(0, &mut [0; 512]).unwrap();
}
