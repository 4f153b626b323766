//! I/O buffers: a bounded pool per reactor, and the owned buffers that it lends.
//!
//! The pool is one anonymous mapping of the configured size; its pages take memory when they are
//! first written. Blocks are powers of two from 4 KiB up, kept on one free list per size and
//! joined again only when a larger block is wanted, so that taking and returning a block costs a
//! push and a pop, and the block used last (still in the CPU's cache) is the next to go out.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex};
use crate::wake::Waker;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::PoisonError;

/// Size and alignment of the smallest block.
pub(crate) const BLOCK: usize = 4096;
const BLOCK_SHIFT: u32 = BLOCK.trailing_zeros();

/// The pool's mapping. Unmapped when the pool and the last buffer are gone.
struct Arena {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory without thread affinity. Access goes through `IoBuf`s, each
// of which owns its block alone.
unsafe impl Send for Arena {}
// SAFETY: as above; a shared `Arena` gives no access to the memory by itself.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous private mapping at an address of the kernel's choice aliases
        // nothing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base = NonNull::new(base.cast())
            .ok_or_else(|| io::Error::other("the kernel mapped the buffer pool at address 0"))?;
        Ok(Self { base, len })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of the mapping made in `new`, and no `IoBuf` is left:
        // each holds an `Arc` of the `Home` that owns this arena.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What a buffer keeps of its pool: the memory, and the way back from another thread.
struct Home {
    arena: Arena,
    returned: Mutex<Vec<Block>>,
    any_returned: AtomicBool,
    waker: Waker,
}

/// A block of the arena: number of its first 4 KiB unit, and log2 of its size in units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    unit: u32,
    order: u8,
}

/// A buffer of contiguous, 4 KiB aligned memory, owned by whoever holds it.
///
/// Dereferences to its bytes. Dropping it returns the memory to its pool, from any thread. The
/// contents are whatever the last user left; whoever fills it for a peer fills all of it.
pub(crate) struct IoBuf {
    ptr: NonNull<u8>,
    len: usize,
    block: Block,
    /// `None` in a buffer without memory.
    home: Option<Arc<Home>>,
}

// SAFETY: an `IoBuf` owns its block of the arena alone, and the arena outlives it by `home`.
unsafe impl Send for IoBuf {}
// SAFETY: `&IoBuf` gives shared access to plain bytes only.
unsafe impl Sync for IoBuf {}

impl IoBuf {
    /// A buffer of no bytes, for requests without data.
    #[must_use]
    pub(crate) const fn empty() -> Self {
        Self {
            ptr: NonNull::dangling(),
            len: 0,
            block: Block { unit: 0, order: 0 },
            home: None,
        }
    }
}

impl IoBuf {
    /// Bytes of the pool that the buffer takes up.
    pub(crate) const fn footprint(&self) -> usize {
        if self.home.is_some() {
            BLOCK << self.block.order
        } else {
            0
        }
    }
}

impl IoBuf {
    /// Makes it shorter, or as long again as it was, at most as the memory that it has.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(self.footprint());
    }
}

impl Default for IoBuf {
    fn default() -> Self {
        Self::empty()
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` is valid for `len` initialised bytes (the mapping is zero-filled by the
        // kernel) that this buffer owns alone, or dangling with `len` 0.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only access to the block.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// Most buffers that are dropped are empty ones: the others are given back to their pool.
impl Drop for IoBuf {
    #[inline]
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.take_back(self.block);
        }
    }
}

impl Home {
    #[cold]
    fn take_back(&self, block: Block) {
        self.returned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(block);
        self.any_returned.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A reactor's pool of buffers. Not shared: buffers that are dropped elsewhere come back through
/// [`BufPool::reclaim`].
pub(crate) struct BufPool {
    home: Arc<Home>,
    /// Reference counts of `home` without a buffer: lending one costs no atomic operation.
    spare: Vec<Arc<Home>>,
    free: Vec<Vec<u32>>,
    free_units: usize,
    total_units: usize,
    /// Blocks came back since the last attempt to join them.
    uncoalesced: bool,
}

impl BufPool {
    /// A pool of `bytes` bytes (rounded up to a multiple of `max_buffer`), for buffers of up to
    /// `max_buffer` bytes (a power of two). `waker` is woken when a buffer is dropped elsewhere.
    pub(crate) fn new(bytes: usize, max_buffer: usize, waker: Waker) -> io::Result<Self> {
        let top = max_buffer.max(BLOCK).next_power_of_two();
        let bytes = bytes.max(top).next_multiple_of(top);
        let orders = (top >> BLOCK_SHIFT).trailing_zeros() as usize + 1;
        let total_units = bytes >> BLOCK_SHIFT;
        // Room on the lists, so that early bursts do not make them grow.
        let mut free: Vec<Vec<u32>> = std::iter::repeat_with(|| Vec::with_capacity(256))
            .take(orders)
            .collect();
        let step = top >> BLOCK_SHIFT;
        if let Some(largest) = free.last_mut() {
            // Backwards, so that the first blocks to go out are those at the arena's start.
            largest.extend((0..total_units).step_by(step).rev().map(unit_number));
        }
        let home = Arc::new(Home {
            arena: Arena::new(bytes)?,
            returned: Mutex::default(),
            any_returned: AtomicBool::new(false),
            waker,
        });
        let (spare, uncoalesced) = (Vec::with_capacity(256), false);
        Ok(Self {
            home,
            spare,
            free,
            free_units: total_units,
            total_units,
            uncoalesced,
        })
    }

    /// Bytes that no buffer holds, and that are promised to none.
    pub(crate) const fn free_bytes(&self) -> usize {
        self.free_units << BLOCK_SHIFT
    }

    /// Bytes in all.
    pub(crate) const fn total_bytes(&self) -> usize {
        self.total_units << BLOCK_SHIFT
    }

    /// Lends a buffer of `len` bytes, `None` while there is no memory for it.
    pub(crate) fn take(&mut self, len: usize) -> Option<IoBuf> {
        if len == 0 {
            return Some(IoBuf::empty());
        }
        let units = len.div_ceil(BLOCK).next_power_of_two();
        // The rest is promised.
        if units > self.free_units {
            return None;
        }
        let buf = self.lend(len, units)?;
        self.free_units -= units;
        Some(buf)
    }

    /// Sets a smallest block aside for [`BufPool::redeem`], without saying which; false if there is
    /// none.
    pub(crate) fn promise(&mut self) -> bool {
        let kept = self.free_units > 0;
        self.free_units -= usize::from(kept);
        kept
    }

    /// Takes a promise back.
    pub(crate) const fn release_promise(&mut self) {
        self.free_units += 1;
    }

    /// Lends the block that was promised, for a buffer of `len` bytes, at most [`BLOCK`].
    pub(crate) fn redeem(&mut self, len: usize) -> Option<IoBuf> {
        self.lend(len.min(BLOCK), 1)
    }

    fn lend(&mut self, len: usize, units: usize) -> Option<IoBuf> {
        let order = units.trailing_zeros() as usize;
        let unit = match self.free.get_mut(order)?.pop() {
            Some(unit) => unit,
            None => self.split(order)?,
        };
        let home = self.spare.pop().unwrap_or_else(|| Arc::clone(&self.home));
        // SAFETY: the block lies inside the arena: units come from `new`, and splitting and
        // joining stay inside the blocks that they are given.
        let ptr = unsafe { home.arena.base.add((unit as usize) << BLOCK_SHIFT) };
        #[expect(clippy::cast_possible_truncation, reason = "log2 of a size")]
        let block = Block {
            unit,
            order: order as u8,
        };
        Some(IoBuf {
            ptr,
            len,
            block,
            home: Some(home),
        })
    }

    /// Whether a buffer is one of this pool's.
    pub(crate) fn owns(&self, buf: &IoBuf) -> bool {
        buf.home
            .as_ref()
            .is_some_and(|home| Arc::ptr_eq(home, &self.home))
    }

    /// Takes a buffer back; one of another pool goes home by itself.
    pub(crate) fn give(&mut self, mut buf: IoBuf) {
        if self.owns(&buf)
            && let Some(home) = buf.home.take()
        {
            self.spare.push(home);
            self.release(buf.block);
        }
    }

    /// Takes in what was dropped on other threads; says whether there was anything.
    pub(crate) fn reclaim(&mut self) -> bool {
        if !self.home.any_returned.load(Ordering::Acquire) {
            return false;
        }
        let blocks = {
            let mut returned = self
                .home
                .returned
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.home.any_returned.store(false, Ordering::Release);
            std::mem::take(&mut *returned)
        };
        for &block in &blocks {
            self.release(block);
        }
        !blocks.is_empty()
    }

    fn release(&mut self, block: Block) {
        let order = usize::from(block.order);
        self.free_units += 1 << order;
        self.free[order].push(block.unit);
        self.uncoalesced = true;
    }

    /// Makes a block of `order` out of a larger one.
    fn split(&mut self, order: usize) -> Option<u32> {
        let larger = |free: &[Vec<u32>]| (order + 1..free.len()).find(|&o| !free[o].is_empty());
        let from = match larger(&self.free) {
            Some(from) => from,
            None if self.uncoalesced && self.free_units >= 1 << order => {
                self.coalesce();
                if let Some(unit) = self.free[order].pop() {
                    return Some(unit);
                }
                larger(&self.free)?
            }
            None => return None,
        };
        let unit = self.free[from].pop()?;
        for o in (order..from).rev() {
            self.free[o].push(unit + (1 << o));
        }
        Some(unit)
    }

    /// Joins free neighbours, smallest blocks first.
    fn coalesce(&mut self) {
        self.uncoalesced = false;
        for order in 0..self.free.len() - 1 {
            let size = 1 << order;
            let mut blocks = std::mem::take(&mut self.free[order]);
            blocks.sort_unstable_by(|a, b| b.cmp(a));
            let mut kept = Vec::with_capacity(blocks.capacity());
            let mut rest = blocks.as_slice();
            while let Some((&unit, tail)) = rest.split_first() {
                rest = tail;
                match tail.first() {
                    Some(&below) if unit & size != 0 && below == unit - size => {
                        self.free[order + 1].push(below);
                        rest = &tail[1..];
                    }
                    _ => kept.push(unit),
                }
            }
            self.free[order] = kept;
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a pool is below 16 TiB: `TargetConfig::validate`"
)]
const fn unit_number(unit: usize) -> u32 {
    unit as u32
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool")
            .field("free", &self.free_bytes())
            .field("total", &self.total_bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(bytes: usize, max: usize) -> BufPool {
        BufPool::new(bytes, max, Waker::new().unwrap()).unwrap()
    }

    #[test]
    fn lends_all_of_it_and_no_more() {
        let mut p = pool(1 << 20, 1 << 18);
        let mut held: Vec<IoBuf> = (0..256).map(|_| p.take(100).unwrap()).collect();
        assert!(p.take(1).is_none());
        assert_eq!(p.free_bytes(), 0);
        let mut addresses: Vec<_> = held.iter().map(|b| b.as_ptr() as usize).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 256);
        assert!(addresses.iter().all(|a| a % BLOCK == 0));
        for buf in held.drain(..) {
            p.give(buf);
        }
        assert_eq!(p.free_bytes(), 1 << 20);
    }

    #[test]
    fn small_blocks_become_a_large_one_again() {
        let mut p = pool(1 << 20, 1 << 20);
        let small: Vec<_> = (0..256).map(|_| p.take(4096).unwrap()).collect();
        for buf in small {
            p.give(buf);
        }
        let big = p.take(1 << 20).unwrap();
        assert_eq!(big.len(), 1 << 20);
        assert!(p.take(1).is_none());
        p.give(big);
        assert!(p.take((1 << 20) + 1).is_none(), "beyond the largest block");
    }

    #[test]
    fn a_buffer_dropped_on_another_thread_comes_back() {
        let mut p = pool(8192, 8192);
        let mut buf = p.take(5000).unwrap();
        buf[4999] = 7;
        std::thread::spawn(move || drop(buf)).join().unwrap();
        assert!(p.take(8192).is_none());
        assert!(p.reclaim());
        assert!(p.take(8192).is_some());
    }

    #[test]
    fn promises_are_kept() {
        let mut p = pool(16 << 10, 16 << 10);
        assert!(p.promise());
        assert!(p.take(16 << 10).is_none(), "a part of it is promised");
        let held: Vec<_> = (0..3).map(|_| p.take(4096).unwrap()).collect();
        assert_eq!(p.free_bytes(), 0);
        assert!(p.take(1).is_none() && !p.promise());
        let buf = p.redeem(100).unwrap();
        assert_eq!((buf.len(), p.free_bytes()), (100, 0));
        held.into_iter().for_each(|buf| p.give(buf));
        p.give(buf);
        assert!(p.promise());
        p.release_promise();
        assert!(p.take(16 << 10).is_some());
    }

    #[test]
    fn buffers_outlive_their_pool() {
        let mut p = pool(8192, 4096);
        let mut buf = p.take(4096).unwrap();
        drop(p);
        buf.fill(3);
        assert!(buf.iter().all(|&b| b == 3));
    }

    #[test]
    fn a_strange_buffer_goes_home() {
        let mut a = pool(4096, 4096);
        let mut b = pool(4096, 4096);
        let buf = a.take(4096).unwrap();
        b.give(buf);
        assert_eq!((a.free_bytes(), b.free_bytes()), (0, 4096));
        assert!(a.reclaim());
        assert_eq!(a.free_bytes(), 4096);
    }
}
