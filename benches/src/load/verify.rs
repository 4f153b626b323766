//! What blocks hold, for runs that check what they read.

/// The contents of a part of a namespace, as generations: how often each I/O-sized block was
/// written. Never more than one I/O is under way on a block, so every read has one right answer.
#[derive(Debug)]
pub(super) struct Contents {
    generations: Vec<u32>,
    busy: Vec<bool>,
}

impl Contents {
    /// `blocks` blocks of which nothing is known.
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            generations: vec![0; blocks],
            busy: vec![false; blocks],
        }
    }

    /// The first block from `block` on that no I/O is under way on. There has to be one.
    pub(super) fn claim(&mut self, mut block: usize) -> usize {
        while self.busy[block] {
            block = (block + 1) % self.busy.len();
        }
        self.busy[block] = true;
        block
    }

    /// The I/O on a block is complete.
    pub(super) fn release(&mut self, block: usize) {
        self.busy[block] = false;
    }

    /// Fills the buffer of a write with what the block holds from then on.
    pub(super) fn write(&mut self, block: usize, buffer: &mut [u8]) {
        // 0 says that nothing is known.
        self.generations[block] = self.generations[block].wrapping_add(1).max(1);
        for (to, word) in buffer
            .chunks_exact_mut(8)
            .zip(pattern(block, self.generations[block]))
        {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Where a read first returned something else than the last write wrote.
    pub(super) fn check(&self, block: usize, buffer: &[u8]) -> Option<usize> {
        let generation = self.generations[block];
        if generation == 0 {
            return None;
        }
        let words = buffer.chunks_exact(8).zip(pattern(block, generation));
        words
            .map(|(got, word)| got == word.to_le_bytes())
            .position(|same| !same)
            .map(|word| word * 8)
    }
}

/// Words that differ between any two blocks and generations, and within a block.
fn pattern(block: usize, generation: u32) -> impl Iterator<Item = u64> {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut word = (block as u64) << 32 ^ u64::from(generation);
    std::iter::repeat_with(move || {
        word = word.wrapping_mul(STEP).wrapping_add(STEP);
        word ^ word >> 29
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_right_and_nothing_else() {
        let mut contents = Contents::new(4);
        let (mut old, mut new, mut other) = (vec![0; 4096], vec![0; 4096], vec![0; 4096]);
        assert_eq!(contents.check(1, &old), None, "nothing is known");
        contents.write(1, &mut old);
        contents.write(1, &mut new);
        contents.write(2, &mut other);
        assert_eq!(contents.check(1, &new), None);
        assert_eq!(contents.check(1, &old), Some(0));
        assert_eq!(contents.check(1, &other), Some(0));
        new[4001] ^= 1;
        assert_eq!(contents.check(1, &new), Some(4000));
    }

    #[test]
    fn a_block_has_one_user() {
        let mut contents = Contents::new(3);
        assert_eq!([2, 2, 2].map(|block| contents.claim(block)), [2, 0, 1]);
        contents.release(0);
        assert_eq!(contents.claim(1), 0);
    }
}
