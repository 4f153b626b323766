//! The memory of a RAM disk: one mapping, and a lock for each of its pages.

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{spin_loop, yield_now};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// What one lock stands for.
pub(super) const PAGE: usize = 4096;
/// What is taken and given back at a time: a huge page, where the system has them.
pub(super) const CHUNK: usize = if cfg!(all(loom, test)) {
    2 * PAGE
} else {
    2 << 20
};

/// Somebody writes to the page, or is about to.
const WRITER: u8 = 0x80;
/// The bits that count readers.
const READERS: u8 = 0x7f;
/// Looks at a lock before its waiter lets others run.
const SPINS: u32 = if cfg!(all(loom, test)) { 1 } else { 64 };

/// Sparse, zeroed memory that many read and write at a time.
///
/// Locks are held while bytes are copied, or handed to the kernel by one system call, and never
/// longer. Pages are locked in ascending order, and whoever waits for a page holds no
/// [`Shared`] got by [`Memory::try_share`]: so nobody waits for ever.
///
/// One mapping holds it all, and the kernel gives its pages as they are first written:
///
/// ```text
/// data, from a multiple of CHUNK | a CHUNK of zeroes | a lock per page | a flag per chunk
/// ```
///
/// What was never written is read from the zeroes, so that reading takes no memory.
pub(super) struct Memory {
    map: NonNull<u8>,
    map_len: usize,
    /// Where its parts begin.
    data: NonNull<u8>,
    zeroes: NonNull<u8>,
    locks: AtomicBytes,
    /// For each chunk: whether it may hold anything but zeroes. Changed by holders of a lock in
    /// the chunk only, from 1 to 0 by one who holds all of them.
    taken: AtomicBytes,
    len: usize,
}

// SAFETY: the mapping is plain memory without thread affinity. Its data is reached through
// `Shared` and `Exclusive` only, which the locks keep apart, and its locks and flags are atomic.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Memory of `len` bytes, or what the system says against it.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let data_len = len.checked_next_multiple_of(CHUNK).ok_or_else(too_large)?;
        // To align the data, and the zeroes.
        let map_len = data_len
            .checked_add(2 * CHUNK + data_len / PAGE + data_len / CHUNK)
            .ok_or_else(too_large)?;
        // SAFETY: a new anonymous private mapping at an address of the kernel's choice aliases
        // nothing.
        let map = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let map = NonNull::new(map.cast::<u8>())
            .ok_or_else(|| io::Error::other("the kernel mapped the disk at address 0"))?;
        let (pages, chunks) = (data_len / PAGE, data_len / CHUNK);
        // SAFETY: the start moves by less than CHUNK, and what follows adds up to no more than
        // `map_len` with that. The kernel has initialised it, and nothing but the `AtomicBytes`
        // goes to locks and flags.
        let (data, zeroes, locks, taken) = unsafe {
            let data = map.add(map.addr().get().wrapping_neg() % CHUNK);
            let zeroes = data.add(data_len);
            let locks = zeroes.add(CHUNK);
            let taken = AtomicBytes::new(locks.add(pages), chunks);
            (data, zeroes, AtomicBytes::new(locks, pages), taken)
        };
        let memory = Self {
            map,
            map_len,
            data,
            zeroes,
            locks,
            taken,
            len,
        };
        // A last chunk that is not whole is not worth a huge page.
        let whole = len - len % CHUNK;
        // SAFETY: the range is the data's, nobody uses it yet, and this advice changes no contents.
        // Where there are no huge pages it fails, and nothing is lost.
        let _ = unsafe { madvise(data.as_ptr().cast(), whole, Advice::LinuxHugepage) };
        Ok(memory)
    }

    fn locks(&self) -> &[AtomicU8] {
        // SAFETY: the mapping lives as long as `self`.
        unsafe { self.locks.get() }
    }

    fn taken(&self) -> &[AtomicU8] {
        // SAFETY: as in `locks`.
        unsafe { self.taken.get() }
    }

    /// Whether a chunk has ever been written since it was last given back. A write that is under
    /// way may be behind this.
    pub(super) fn is_taken(&self, chunk: usize) -> bool {
        self.taken()[chunk].load(Ordering::Acquire) != 0
    }

    /// Bytes of memory taken, in whole chunks.
    pub(super) fn taken_bytes(&self) -> usize {
        let taken = |flag: &&AtomicU8| flag.load(Ordering::Relaxed) != 0;
        self.taken().iter().filter(taken).count() * CHUNK
    }

    /// The pages of a range of bytes.
    fn pages(&self, at: usize, len: usize) -> Range<usize> {
        assert!(
            at <= self.len && len <= self.len - at,
            "a range outside the disk"
        );
        at / PAGE..(at + len).div_ceil(PAGE)
    }

    /// Locks a range against writers, waiting for those that are at it.
    pub(super) fn share(&self, at: usize, len: usize) -> Shared<'_> {
        let pages = self.pages(at, len);
        for lock in &self.locks()[pages.clone()] {
            wait_until(|| try_share(lock));
        }
        self.shared(pages, at, len)
    }

    /// Locks a range against writers, if nobody writes there.
    pub(super) fn try_share(&self, at: usize, len: usize) -> Option<Shared<'_>> {
        let pages = self.pages(at, len);
        let locks = &self.locks()[pages.clone()];
        if let [lock] = locks {
            return try_share(lock).then(|| self.shared(pages, at, len));
        }
        if let Some(busy) = locks.iter().position(|lock| !try_share(lock)) {
            locks[..busy].iter().for_each(unshare);
            return None;
        }
        Some(self.shared(pages, at, len))
    }

    /// What is locked.
    fn shared(&self, pages: Range<usize>, at: usize, len: usize) -> Shared<'_> {
        let flags = &self.taken()[at / CHUNK..(at + len).div_ceil(CHUNK)];
        let blank = || match flags {
            [flag] => flag.load(Ordering::Relaxed) == 0,
            flags => flags.iter().all(|flag| flag.load(Ordering::Relaxed) == 0),
        };
        let start = if len <= CHUNK && blank() {
            self.zeroes
        } else {
            // SAFETY: `pages` has checked that the range lies in the data.
            unsafe { self.data.add(at) }
        };
        Shared {
            memory: self,
            pages,
            start,
            len,
        }
    }

    /// Locks a range against all others, waiting for those that are at it.
    pub(super) fn exclude(&self, at: usize, len: usize) -> Exclusive<'_> {
        let pages = self.pages(at, len);
        for lock in &self.locks()[pages.clone()] {
            while lock.fetch_or(WRITER, Ordering::Acquire) & WRITER != 0 {
                // Without writing: the line is needed by who is at it.
                wait_until(|| lock.load(Ordering::Relaxed) & WRITER == 0);
            }
            wait_until(|| lock.load(Ordering::Acquire) & READERS == 0);
        }
        Exclusive {
            memory: self,
            pages,
            at,
            len,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: these are address and length of the mapping made in `new`, and nothing borrows
        // from it any more.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

/// Atomic bytes of a mapping, without a claim to it; in a model they have memory of their own.
#[cfg(not(all(loom, test)))]
struct AtomicBytes {
    first: NonNull<AtomicU8>,
    count: usize,
}

#[cfg(not(all(loom, test)))]
impl AtomicBytes {
    /// # Safety
    ///
    /// `first` is the address of `count` initialised bytes that are used as these atomics only.
    const unsafe fn new(first: NonNull<u8>, count: usize) -> Self {
        let first = first.cast();
        Self { first, count }
    }

    /// # Safety
    ///
    /// The mapping is still there, and stays as long as what is returned.
    const unsafe fn get(&self) -> &[AtomicU8] {
        // SAFETY: as the callers of this and of `new` say.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

#[cfg(all(loom, test))]
struct AtomicBytes(Vec<AtomicU8>);

#[cfg(all(loom, test))]
impl AtomicBytes {
    /// # Safety
    ///
    /// None is asked for here.
    unsafe fn new(_: NonNull<u8>, count: usize) -> Self {
        Self((0..count).map(|_| AtomicU8::new(0)).collect())
    }

    /// # Safety
    ///
    /// None is asked for here.
    unsafe fn get(&self) -> &[AtomicU8] {
        &self.0
    }
}

fn try_share(lock: &AtomicU8) -> bool {
    let mut state = lock.load(Ordering::Relaxed);
    // A writer that waits keeps new readers out, so that they do not keep it out for ever.
    while state < READERS {
        match lock.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => state = now,
        }
    }
    false
}

fn unshare(lock: &AtomicU8) {
    lock.fetch_sub(1, Ordering::Release);
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let mut spins = 0;
    while !done() {
        if spins < SPINS {
            spins += 1;
            spin_loop();
        } else {
            yield_now();
        }
    }
}

/// Bytes that nobody changes while this lives.
pub(in crate::ns) struct Shared<'a> {
    memory: &'a Memory,
    pages: Range<usize>,
    start: NonNull<u8>,
    len: usize,
}

impl Deref for Shared<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialised memory inside the mapping: zeroes that are never written, or data
        // whose pages are locked against writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        match &self.memory.locks()[self.pages.clone()] {
            [lock] => unshare(lock),
            locks => locks.iter().for_each(unshare),
        }
    }
}

/// Bytes that nobody else sees while this lives.
pub(super) struct Exclusive<'a> {
    memory: &'a Memory,
    pages: Range<usize>,
    at: usize,
    len: usize,
}

impl Exclusive<'_> {
    fn chunks(&self) -> Range<usize> {
        self.at / CHUNK..(self.at + self.len).div_ceil(CHUNK)
    }

    /// Makes it all zeroes. Memory of whole chunks is given back.
    pub(super) fn clear(&mut self) {
        for chunk in self.chunks() {
            let flag = &self.memory.taken()[chunk];
            if flag.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let start = (chunk * CHUNK).max(self.at) - self.at;
            let end = ((chunk + 1) * CHUNK).min(self.at + self.len) - self.at;
            // The last chunk of a disk may be shorter.
            let whole = end - start == CHUNK.min(self.memory.len - chunk * CHUNK);
            if whole && self.give_back(chunk) {
                flag.store(0, Ordering::Relaxed);
            } else {
                self.part_mut(start..end).fill(0);
            }
        }
    }

    /// A part of the bytes.
    fn part_mut(&mut self, part: Range<usize>) -> &mut [u8] {
        assert!(part.start <= part.end && part.end <= self.len);
        // SAFETY: initialised memory inside the mapping whose pages are locked for `self` alone,
        // and `&mut self` is the only way to it.
        unsafe {
            let start = self.memory.data.add(self.at + part.start);
            std::slice::from_raw_parts_mut(start.as_ptr(), part.len())
        }
    }

    /// Gives a chunk's memory back to the system, which makes it zeroes.
    fn give_back(&mut self, chunk: usize) -> bool {
        // SAFETY: the chunk lies in the mapping, whose memory is private and anonymous, so that
        // it reads as zeroes afterwards; all of its pages that belong to the disk are locked
        // against all others, and no reference to them exists while `self` is borrowed.
        let done = unsafe {
            let start = self.memory.data.add(chunk * CHUNK);
            madvise(start.as_ptr().cast(), CHUNK, Advice::LinuxDontNeed)
        };
        done.is_ok()
    }
}

impl Deref for Exclusive<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialised memory inside the mapping whose pages are locked for `self` alone.
        unsafe {
            let start = self.memory.data.add(self.at);
            std::slice::from_raw_parts(start.as_ptr(), self.len)
        }
    }
}

/// Takes the memory.
impl DerefMut for Exclusive<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        for flag in &self.memory.taken()[self.chunks()] {
            flag.store(1, Ordering::Relaxed);
        }
        self.part_mut(0..self.len)
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        for lock in &self.memory.locks()[self.pages.clone()] {
            lock.store(0, Ordering::Release);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn writers_and_readers_keep_each_other_out() {
        let memory = Memory::new(4 * PAGE).unwrap();
        let writer = memory.exclude(PAGE, 10);
        assert!(memory.try_share(0, PAGE).is_some());
        assert!(memory.try_share(PAGE + 100, 1).is_none(), "the same page");
        assert!(memory.try_share(0, 3 * PAGE).is_none());
        drop(writer);
        let all = memory.try_share(0, 4 * PAGE).unwrap();
        assert!(memory.try_share(PAGE, 1).is_some(), "readers share");
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                memory.exclude(PAGE, 1)[0] = 7;
                written.store(true, Ordering::SeqCst);
            });
            // A writer that waits keeps new readers out.
            while memory.try_share(PAGE, 1).is_some() {
                yield_now();
            }
            assert!(!written.load(Ordering::SeqCst));
            assert_eq!(all[PAGE], 0);
            drop(all);
            waits.join().unwrap();
        });
        assert_eq!(memory.share(PAGE, 1)[0], 7);
    }

    #[test]
    fn a_page_has_room_for_so_many_readers() {
        let memory = Memory::new(PAGE).unwrap();
        let readers: Vec<_> = (0..READERS).map(|_| memory.try_share(0, 1)).collect();
        assert!(readers.iter().all(Option::is_some));
        assert!(memory.try_share(0, 1).is_none());
        drop(readers);
        memory.exclude(0, 1)[0] = 1;
    }

    #[test]
    fn ranges_of_many_threads_are_whole() {
        let memory = Memory::new(CHUNK + 3 * PAGE).unwrap();
        let rounds: u8 = if cfg!(miri) { 3 } else { 200 };
        let (at, len) = (CHUNK - 2 * PAGE - 100, 4 * PAGE);
        let uniform = |bytes: &[u8]| bytes.iter().all(|&byte| byte == bytes[0]);
        std::thread::scope(|scope| {
            let memory = &memory;
            for start in [at, at + 1] {
                scope.spawn(move || {
                    for n in 0..rounds {
                        let mut bytes = memory.exclude(at, len + 1);
                        assert!(uniform(&bytes[1..len]), "{start}");
                        bytes.fill(n);
                        drop(bytes);
                        memory.exclude(at, len + 1).clear();
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(move || {
                    for _ in 0..rounds {
                        assert!(uniform(&memory.share(at, len + 1)));
                        if let Some(bytes) = memory.try_share(at, len + 1) {
                            assert!(uniform(&bytes));
                        }
                    }
                });
            }
        });
        assert!(memory.share(0, CHUNK).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn chunks_are_given_back_whole() {
        let memory = Memory::new(CHUNK + PAGE).unwrap();
        memory.exclude(CHUNK - 1, 2).fill(9);
        assert_eq!(memory.taken_bytes(), 2 * CHUNK);
        memory.exclude(CHUNK, PAGE).clear();
        assert_eq!(memory.taken_bytes(), CHUNK, "the last one is shorter");
        memory.exclude(0, CHUNK - 1).clear();
        assert_eq!(memory.share(CHUNK - 1, 2)[..], [9, 0]);
        memory.exclude(0, CHUNK).clear();
        assert_eq!(memory.taken_bytes(), 0);
        assert_eq!(memory.share(CHUNK - 1, 2)[..], [0, 0]);
    }
}

/// The lock of a page in every order of its steps; see [`crate::loom_models`]. Of two writers that
/// wait for each other loom's schedule may run one for ever, so that there is one here.
#[cfg(all(loom, test))]
mod loom_tests {
    use super::*;
    use crate::loom_models::model;
    use loom::cell::UnsafeCell;
    use loom::thread;
    use std::sync::Arc;

    /// Memory of one page, and what tells loom of accesses to it.
    struct Watched {
        memory: Memory,
        page: UnsafeCell<()>,
    }

    impl Watched {
        fn write(&self, value: u8) {
            let mut bytes = self.memory.exclude(0, PAGE);
            self.page.with_mut(|_| ());
            bytes.fill(value);
        }

        fn check(&self, bytes: &Shared<'_>) -> u8 {
            self.page.with(|_| ());
            assert!(bytes.iter().all(|&byte| byte == bytes[0]), "half a write");
            bytes[0]
        }

        fn read(&self) -> u8 {
            self.check(&self.memory.share(0, PAGE))
        }
    }

    #[test]
    fn readers_and_a_writer_keep_each_other_out() {
        model(|| {
            let disk = Arc::new(Watched {
                memory: Memory::new(PAGE).unwrap(),
                page: UnsafeCell::new(()),
            });
            let writer = {
                let disk = Arc::clone(&disk);
                thread::spawn(move || disk.write(1))
            };
            let reader = {
                let disk = Arc::clone(&disk);
                thread::spawn(move || disk.read())
            };
            assert!(disk.read() <= 1);
            writer.join().unwrap();
            assert!(reader.join().unwrap() <= 1);
            let left = disk.memory.try_share(0, PAGE).unwrap();
            assert_eq!(disk.check(&left), 1);
        });
    }
}
