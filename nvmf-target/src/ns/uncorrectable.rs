//! Blocks that a host has marked as invalid with Write Uncorrectable.

use super::{LbaRange, Op};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The marked blocks of one backend. They are known to the target alone, and forgotten when the
/// backend is not served any more.
#[derive(Debug, Default)]
pub(crate) struct Uncorrectable {
    /// There are some: all that is looked at while there are none.
    any: AtomicBool,
    /// First block and the one behind the last, disjoint and not even adjacent.
    ranges: Mutex<BTreeMap<u64, u64>>,
}

impl Uncorrectable {
    /// Ranges that are remembered at most: a host is not to fill the memory with them.
    const MAX: usize = 4096;

    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Marks blocks; false if there are too many ranges.
    pub(crate) fn mark(&self, range: LbaRange) -> bool {
        let mut ranges = self.lock();
        let (mut start, mut end) = (range.slba, range.slba + range.blocks);
        while let Some((&first, &last)) = ranges.range(..=end).next_back()
            && last >= start
        {
            (start, end) = (start.min(first), end.max(last));
            ranges.remove(&first);
        }
        ranges.insert(start, end);
        // Taken together with others it may be no more ranges than before.
        let fits = ranges.len() <= Self::MAX;
        if !fits {
            ranges.remove(&start);
        }
        self.any.store(true, Ordering::Release);
        fits
    }

    /// Blocks have been written: they are valid again.
    pub(crate) fn clear(&self, range: LbaRange) {
        let mut ranges = self.lock();
        let (start, end) = (range.slba, range.slba + range.blocks);
        while let Some((&first, &last)) = ranges.range(..end).next_back()
            && last > start
        {
            ranges.remove(&first);
            if first < start {
                ranges.insert(first, start);
            }
            if last > end {
                ranges.insert(end, last);
            }
        }
        self.any.store(!ranges.is_empty(), Ordering::Release);
    }

    /// Whether a request has to read blocks that are marked.
    pub(crate) fn spoils(&self, op: Op, range: LbaRange) -> bool {
        let reads = matches!(
            op,
            Op::Read | Op::Compare | Op::CompareAndWrite { .. } | Op::Verify
        );
        let end = range.slba + range.blocks;
        reads
            && matches!(self.lock().range(..end).next_back(), Some((_, &last)) if last > range.slba)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(slba: u64, blocks: u64) -> LbaRange {
        LbaRange { slba, blocks }
    }

    /// Against a plain list of blocks, with every range of a small namespace.
    #[test]
    fn marks_and_clears_as_a_list_of_blocks_would() {
        const BLOCKS: usize = 12;
        let at = |slba: usize, end: usize| range(slba as u64, (end - slba) as u64);
        let marked = Uncorrectable::default();
        let mut list = [false; BLOCKS];
        let mut seed: usize = 1;
        for _ in 0..3000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let slba = (seed >> 33) % BLOCKS;
            let end = slba + 1 + (seed >> 40) % (BLOCKS - slba);
            let mark = seed >> 62 == 0;
            if mark {
                assert!(marked.mark(at(slba, end)));
            } else {
                marked.clear(at(slba, end));
            }
            list[slba..end].fill(mark);
            for start in 0..BLOCKS {
                for end in start + 1..=BLOCKS {
                    let spoilt = list[start..end].contains(&true);
                    assert_eq!(marked.spoils(Op::Read, at(start, end)), spoilt);
                }
            }
            assert_eq!(marked.any(), list.contains(&true));
            assert!(marked.lock().len() <= BLOCKS.div_ceil(2));
        }
    }

    #[test]
    fn there_is_a_limit() {
        let marked = Uncorrectable::default();
        for i in 0..Uncorrectable::MAX as u64 {
            assert!(marked.mark(range(i * 2, 1)));
        }
        assert!(!marked.mark(range(1 << 20, 1)));
        assert!(!marked.spoils(Op::Read, range(1 << 20, 1)));
        // What joins others needs no more room.
        assert!(marked.mark(range(1, 1)));
        assert!(marked.mark(range(1 << 20, 1)));
        assert!(!marked.spoils(Op::Write { fua: false }, range(0, 1)));
    }
}
