use super::super::rig::Rig;
use super::super::{Direct, FileEngine, FileNamespace, FileOptions};
use super::*;
use crate::ns::{Namespace, WorkerPool};
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;
const WRITE: Op = Op::Write { fua: false };

impl ReactorRing {
    fn with(ring: Ring) -> Self {
        Self(Rc::new(RefCell::new(State::Made(Rc::new(RefCell::new(
            ring,
        ))))))
    }

    /// What there is on older kernels.
    pub(in super::super) fn plain() -> Self {
        Self::with(Ring::plain().unwrap())
    }

    fn refused() -> Self {
        Self(Rc::new(RefCell::new(State::Refused("not here".to_owned()))))
    }
}

fn file_of(bytes: u64) -> (NamedTempFile, Arc<FileBackend>) {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    let backend = FileBackend::open(file.path(), &FileOptions::default()).unwrap();
    (file, Arc::new(backend))
}

/// Keeps what the ring hands over.
#[derive(Clone, Default)]
struct Others(Arc<Mutex<Vec<Request>>>);

impl Lane for Others {
    fn submit(&mut self, request: Request) {
        self.0.lock().unwrap().push(request);
    }
}

/// A lane that reads the end of a pipe, where reads wait for what the test writes.
fn of_pipe(ring: ReactorRing, others: Others) -> (Rig, File, Arc<FileBackend>) {
    let (from, to) = rustix::pipe::pipe().unwrap();
    let (_file, model) = file_of(MIB);
    let backend = Arc::new(Arc::into_inner(model).unwrap().reading(File::from(from)));
    let lane = UringLane::new(&ring, &backend, Box::new(others)).unwrap();
    (Rig::new(ring, |_| Box::new(lane)), File::from(to), backend)
}

#[test]
fn more_than_a_ring_holds_is_carried_out() {
    for ring in [ReactorRing::default(), ReactorRing::plain()] {
        let (_file, backend) = file_of(4 * MIB);
        let mut rig = Rig::of(&backend, FileEngine::Uring, ring);
        let count = 1000_u16;
        let block = |i: u16| [i.to_le_bytes(); 256].concat();
        for i in 0..count {
            rig.submit(WRITE, u64::from(i) * 512, &block(i));
        }
        for _ in 0..count {
            assert!(rig.next().status().is_success());
        }
        for i in 0..count {
            rig.submit(Op::Read, u64::from(i) * 512, &block(0));
        }
        for _ in 0..count {
            let mut done = rig.next();
            let i = u16::try_from(done.lba_range().slba).unwrap();
            assert!(*done.take_buf() == block(i), "{i}");
        }
    }
}

#[test]
fn lanes_of_a_reactor_share_one_ring_and_may_go_before_it() {
    let ring = ReactorRing::default();
    assert!(!ring.is_used());
    let files: Vec<_> = (0..50).map(|_| file_of(MIB)).collect();
    let mut rigs: Vec<Rig> = files
        .iter()
        .map(|(_, backend)| Rig::of(backend, FileEngine::Uring, ring.clone()))
        .collect();
    assert!(ring.is_used());
    for rig in &mut rigs {
        rig.submit(WRITE, 0, &[7; 4096]);
    }
    // One turn of the ring is for all.
    ring.turn();
    for rig in &mut rigs {
        assert!(rig.next().status().is_success());
    }
    drop(rigs);
    for (_, backend) in &files {
        assert_eq!(Arc::strong_count(backend), 1);
    }
}

#[test]
fn a_short_read_goes_on_where_it_ended() {
    for ring in [ReactorRing::default(), ReactorRing::plain()] {
        let (mut rig, mut pipe, _) = of_pipe(ring, Others::default());
        rig.submit(Op::Read, 0, &[0; 4096]);
        assert_eq!(rig.turn(), 0);
        for part in [&[1; 1000][..], &[2; 96], &[3; 3000]] {
            assert_eq!(rig.turn(), 0);
            pipe.write_all(part).unwrap();
        }
        let mut done = rig.next();
        assert!(done.status().is_success());
        let data = done.take_buf();
        assert_eq!(data[..1000], [1; 1000]);
        assert_eq!(data[1000..1096], [2; 96]);
        assert_eq!(data[1096..], [3; 3000]);
    }
}

/// The kernel hands over some at a time, and says only once that there are any.
#[test]
fn a_ring_that_ends_takes_all_that_is_finished() {
    let (mut rig, mut pipe, backend) = of_pipe(ReactorRing::default(), Others::default());
    for i in 0..100 {
        rig.submit(Op::Read, i * 512, &[0; 512]);
    }
    for _ in 0..10 {
        assert_eq!(rig.turn(), 0);
    }
    pipe.write_all(&[1; 100 * 512]).unwrap();
    rig.close();
    assert_eq!(Arc::strong_count(&backend), 1, "nothing is leaked");
}

#[test]
fn the_end_of_a_file_inside_a_read_fails_it() {
    let (mut rig, mut pipe, _) = of_pipe(ReactorRing::default(), Others::default());
    rig.submit(Op::Read, 8192, &[0; 4096]);
    pipe.write_all(&[1; 512]).unwrap();
    drop(pipe);
    let mut done = rig.next();
    assert_eq!(done.status(), Status::UNRECOVERED_READ_ERROR);
    let note = done.take_note().unwrap();
    assert!(note.contains("ends at byte 8704"), "{note}");
}

#[test]
fn an_error_of_the_kernel_is_the_one_that_a_blocking_call_has() {
    let (mut rig, _pipe, _) = of_pipe(ReactorRing::default(), Others::default());
    // The end of a pipe that is read cannot be written.
    assert_eq!(
        rig.run(WRITE, 0, &mut [0; 512]),
        Err(Status::NAMESPACE_WRITE_PROTECTED.dnr())
    );
    assert_eq!(rig.run(Op::Flush, 0, &mut []), Err(Status::WRITE_FAULT));
}

#[test]
fn what_would_block_and_what_the_ring_has_not_go_to_the_threads() {
    let others = Others::default();
    let (mut rig, _pipe, backend) = of_pipe(ReactorRing::default(), others.clone());
    let zeroes = Op::WriteZeroes {
        deallocate: true,
        fua: false,
    };
    rig.submit(zeroes, 0, &[0; 512]);
    let read = rig.request(Op::Read, 0, 4096);
    let file = Rc::new(OpenFile {
        backend,
        threads: RefCell::new(Box::new(others.clone())),
    });
    settle(read, &file, Outcome::WouldBlock);
    let handed: Vec<Op> = others.0.lock().unwrap().iter().map(Request::op).collect();
    assert_eq!(handed, [zeroes, Op::Read]);
}

#[test]
fn what_the_kernel_has_not_seen_is_given_back() {
    let (_file, backend) = file_of(MIB);
    let mut rig = Rig::of(&backend, FileEngine::Uring, ReactorRing::default());
    rig.submit(WRITE, 0, &[1; 512]);
    let wanted = rig.request(WRITE, 512, 512);
    let id = wanted.id();
    rig.lane.submit(wanted);
    let back = rig.lane.abort(id).unwrap();
    assert_eq!((back.id(), back.op()), (id, WRITE));
    assert!(rig.lane.abort(id).is_none());
    drop(back.withdraw(Status::ABORT_REQUESTED));
    assert!(rig.next().status().is_success());
    assert_eq!(rig.turn(), 0);
}

#[test]
fn what_waits_in_the_kernel_is_cut_short() {
    for ring in [ReactorRing::default(), ReactorRing::plain()] {
        let (mut rig, _pipe, _) = of_pipe(ring, Others::default());
        let read = rig.request(Op::Read, 0, 4096);
        let id = read.id();
        rig.lane.submit(read);
        rig.turn();
        assert!(rig.lane.abort(id).is_none());
        // More than once is once.
        assert!(rig.lane.abort(id).is_none());
        assert_eq!(rig.next().status(), Status::ABORT_REQUESTED);
        assert!(rig.lane.abort(id).is_none());
    }
}

#[test]
fn completions_that_found_no_room_are_fetched_without_another_event() {
    let ring = ReactorRing::with(Ring::small());
    let (mut rig, _pipe, _) = of_pipe(ring.clone(), Others::default());
    let reads: Vec<_> = (0..4)
        .map(|i| rig.request(Op::Read, i * 512, 512))
        .collect();
    let ids: Vec<_> = reads.iter().map(Request::id).collect();
    for read in reads {
        rig.lane.submit(read);
    }
    assert_eq!(rig.turn(), 0);
    for id in ids {
        assert!(rig.lane.abort(id).is_none());
    }
    // Those of the reads, and those of what cuts them short.
    assert!(ring.owes());
    while ring.owes() {
        ring.turn();
    }
    assert_eq!(rig.collect(), 4);
}

#[test]
fn what_has_begun_runs_to_its_end() {
    let (mut rig, mut pipe, _) = of_pipe(ReactorRing::default(), Others::default());
    let read = rig.request(Op::Read, 0, 4096);
    let id = read.id();
    rig.lane.submit(read);
    rig.turn();
    pipe.write_all(&[1; 96]).unwrap();
    while rustix::io::ioctl_fionread(&pipe).unwrap() != 0 {
        rig.turn();
    }
    rig.turn();
    assert!(rig.lane.abort(id).is_none());
    assert_eq!(rig.turn(), 0);
    pipe.write_all(&[2; 4000]).unwrap();
    let mut done = rig.next();
    assert!(done.status().is_success());
    assert_eq!(done.take_buf()[96..], [2; 4000]);
}

#[test]
fn a_ring_that_ends_leaves_memory_to_the_kernel_that_it_still_uses() {
    let mut ring = Ring::new().unwrap();
    ring.set_patience(Duration::ZERO);
    let (mut rig, mut pipe, backend) = of_pipe(ReactorRing::with(ring), Others::default());
    rig.submit(Op::Read, 0, &[0; 4096]);
    assert_eq!(rig.turn(), 0);
    let lent = rig.pool.total_bytes() - rig.pool.free_bytes();
    rig.submit(Op::Read, 4096, &[0; 4096]);
    rig.close();
    rig.pool.reclaim();
    assert_eq!(rig.pool.total_bytes() - rig.pool.free_bytes(), lent);
    // Held for ever, with what the kernel may still fill.
    assert!(Arc::strong_count(&backend) > 1);
    let _ = pipe.write_all(&[1; 4096]);
}

#[test]
fn a_ring_that_ends_waits_for_what_is_under_way() {
    let (_file, backend) = file_of(MIB);
    let mut rig = Rig::of(&backend, FileEngine::Uring, ReactorRing::default());
    for i in 0..64 {
        rig.submit(WRITE, i * 4096, &[1; 4096]);
    }
    rig.lane.commit();
    rig.turn();
    rig.close();
    rig.pool.reclaim();
    assert_eq!(Arc::strong_count(&backend), 1);
}

/// A reactor's first lanes are opened when all hosts come at once, and descriptors may be short.
#[test]
fn a_ring_that_could_not_be_had_for_a_moment_is_had_later() {
    let failing = |errno: Errno| move || Err(errno.into());
    let ring = ReactorRing::default();
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN] {
        ring.get(failing(errno)).unwrap_err();
        assert!(!ring.is_used());
    }
    ring.get(Ring::new).unwrap();
    assert!(ring.is_used());
    for errno in [Errno::NOSYS, Errno::PERM, Errno::ACCESS, Errno::INVAL] {
        let ring = ReactorRing::default();
        let why = ring.get(failing(errno)).unwrap_err();
        assert_eq!(ring.get(Ring::new).unwrap_err(), why);
        assert!(!ring.is_used());
    }
    // Neither does a namespace give up what its reactors may get.
    let (_file, backend) = file_of(MIB);
    let workers = Arc::new(WorkerPool::new(1));
    let busy = Err(Errno::MFILE.into());
    let namespace = FileNamespace::choose(backend, FileEngine::Auto, &workers, busy).unwrap();
    assert!(namespace.is_uring());
}

#[test]
fn without_a_ring_there_are_threads() {
    let (_file, backend) = file_of(MIB);
    let workers = Arc::new(WorkerPool::new(1));
    let mut rig = Rig::of(&backend, FileEngine::Auto, ReactorRing::refused());
    rig.run(WRITE, 0, &mut [3; 512]).unwrap();
    let mut data = [0; 512];
    rig.run(Op::Read, 0, &mut data).unwrap();
    assert_eq!(data, [3; 512]);

    let choose = |engine| {
        let refused = Err(io::Error::from_raw_os_error(1));
        FileNamespace::choose(Arc::clone(&backend), engine, &workers, refused)
    };
    assert!(!choose(FileEngine::Auto).unwrap().is_uring());
    assert!(!choose(FileEngine::Threads).unwrap().is_uring());
    let err = choose(FileEngine::Uring).unwrap_err().to_string();
    assert!(
        err.contains("no io_uring") && err.contains("not permitted"),
        "{err}"
    );
    let forced = FileNamespace::new(backend, FileEngine::Uring, &workers).unwrap();
    let cx = crate::ns::LaneCx {
        depth: 1,
        reactor: 0,
        uring: ReactorRing::refused(),
    };
    let err = forced.open_lane(&cx).err().unwrap().to_string();
    assert!(err.contains("not here"), "{err}");
}

#[test]
fn direct_and_buffered_files_flush() {
    for direct in [Direct::Auto, Direct::Off] {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(MIB).unwrap();
        let options = FileOptions {
            direct,
            ..FileOptions::default()
        };
        let backend = Arc::new(FileBackend::open(file.path(), &options).unwrap());
        let mut rig = Rig::of(&backend, FileEngine::Uring, ReactorRing::default());
        rig.run(Op::Write { fua: true }, 0, &mut [4; 4096]).unwrap();
        rig.run(Op::Flush, 0, &mut []).unwrap();
    }
}
