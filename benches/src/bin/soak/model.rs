//! What the blocks of a load host hold: a model in a file, so that the next host knows what the one
//! that was killed had done and what it was about to do.

use crate::random::mix;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Names the contents of a block: a number that no two blocks that were ever written share.
/// [`ZEROES`] are zeroes.
pub(crate) type Stamp = u64;

pub(crate) const ZEROES: Stamp = 0;
/// There is no second possibility.
const NONE: Stamp = u64::MAX;

const HEADER: u64 = 8;
const ENTRY: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// What it holds.
    now: Stamp,
    /// Or this, if a command may have been carried out.
    or: Stamp,
}

impl Block {
    const fn is_certain(self) -> bool {
        self.or == NONE
    }
}

/// A block that holds something that was never written there, or not last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// Its number in the region.
    pub(crate) block: usize,
    pub(crate) found: Option<Stamp>,
    pub(crate) expected: (Stamp, Option<Stamp>),
}

/// The blocks of a region. A block has one command at most: every read has one right answer, or two
/// if what became of a command is not known.
#[derive(Debug)]
pub(crate) struct Model {
    file: File,
    generation: u64,
    blocks: Vec<Block>,
    busy: Vec<bool>,
}

impl Model {
    /// The model in a file; of zeroes if there is none.
    pub(crate) fn open(path: &Path, len: usize) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut model = Self {
            file,
            generation: 0,
            blocks: vec![
                Block {
                    now: ZEROES,
                    or: NONE,
                };
                len
            ],
            busy: vec![false; len],
        };
        let bytes = HEADER + (len * ENTRY) as u64;
        if model.file.metadata()?.len() != bytes {
            model.file.set_len(bytes)?;
            model.save(0..len)?;
            return Ok(model);
        }
        let mut header = [0; 8];
        model.file.read_exact_at(&mut header, 0)?;
        model.generation = u64::from_le_bytes(header);
        let mut entries = vec![0; len * ENTRY];
        model.file.read_exact_at(&mut entries, HEADER)?;
        for (block, entry) in model.blocks.iter_mut().zip(entries.as_chunks::<ENTRY>().0) {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *entry;
            *block = Block {
                now: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                or: u64::from_le_bytes([i, j, k, l, m, n, o, p]),
            };
        }
        Ok(model)
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The generation of the daemon that [`Model::forget`] was told last.
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }

    /// All is zeroes from now on: a RAM disk of a new daemon.
    pub(crate) fn forget(&mut self, generation: u64) -> io::Result<()> {
        self.blocks.fill(Block {
            now: ZEROES,
            or: NONE,
        });
        self.save(0..self.len())?;
        self.generation = generation;
        self.file.write_all_at(&generation.to_le_bytes(), 0)
    }

    /// Takes as many of the blocks as have no command, from the first on.
    pub(crate) fn claim(&mut self, wanted: Range<usize>) -> Option<Range<usize>> {
        let start = wanted.start;
        let free = self.busy[wanted].iter().take_while(|busy| !**busy).count();
        let range = start..start + free;
        self.busy[range.clone()].fill(true);
        (free > 0).then_some(range)
    }

    pub(crate) fn release(&mut self, range: Range<usize>) {
        self.busy[range].fill(false);
    }

    pub(crate) fn release_all(&mut self) {
        self.busy.fill(false);
    }

    pub(crate) fn is_certain(&self, range: Range<usize>) -> bool {
        self.blocks[range].iter().all(|block| block.is_certain())
    }

    pub(crate) fn stamps(&self, range: Range<usize>) -> impl Iterator<Item = Stamp> {
        self.blocks[range].iter().map(|block| block.now)
    }

    /// A command may put these there from now on. What is there is certain.
    pub(crate) fn intend(
        &mut self,
        range: Range<usize>,
        stamps: impl IntoIterator<Item = Stamp>,
    ) -> io::Result<()> {
        for (block, stamp) in self.blocks[range.clone()].iter_mut().zip(stamps) {
            block.or = stamp;
        }
        self.save(range)
    }

    /// The command of [`Model::intend`] has been carried out.
    pub(crate) fn settle(&mut self, range: Range<usize>) -> io::Result<()> {
        for block in &mut self.blocks[range.clone()] {
            *block = Block {
                now: block.or,
                or: NONE,
            };
        }
        self.save(range)
    }

    /// Judges what was read, and takes from it what became of commands that were not answered.
    pub(crate) fn observe(
        &mut self,
        range: Range<usize>,
        data: &[u8],
        block_size: usize,
    ) -> io::Result<Result<(), Mismatch>> {
        let mut resolved = false;
        for (number, bytes) in range.clone().zip(data.chunks_exact(block_size)) {
            let block = &mut self.blocks[number];
            if block.is_certain() && holds(bytes, block.now) {
                continue;
            }
            let found = stamp_of(bytes);
            if block.is_certain() || !(found == Some(block.now) || found == Some(block.or)) {
                return Ok(Err(Mismatch {
                    block: number,
                    found,
                    expected: (block.now, (!block.is_certain()).then_some(block.or)),
                }));
            }
            *block = Block {
                now: found.unwrap_or(ZEROES),
                or: NONE,
            };
            resolved = true;
        }
        if resolved {
            self.save(range)?;
        }
        Ok(Ok(()))
    }

    fn save(&self, range: Range<usize>) -> io::Result<()> {
        let entry = |block: &Block| [block.now.to_le_bytes(), block.or.to_le_bytes()].concat();
        let start = HEADER + (range.start * ENTRY) as u64;
        let bytes: Vec<u8> = self.blocks[range].iter().flat_map(entry).collect();
        self.file.write_all_at(&bytes, start)
    }
}

/// The words of a block: the stamp, and what follows from it.
fn words(stamp: Stamp) -> impl Iterator<Item = u64> {
    let follows = (1..).map(move |place: u64| match stamp {
        ZEROES => 0,
        _ => mix(stamp ^ place << 56 ^ place),
    });
    std::iter::once(stamp).chain(follows)
}

/// Fills a block.
pub(crate) fn fill(block: &mut [u8], stamp: Stamp) {
    for (to, word) in block.as_chunks_mut::<8>().0.iter_mut().zip(words(stamp)) {
        *to = word.to_le_bytes();
    }
}

fn holds(block: &[u8], stamp: Stamp) -> bool {
    let chunks = block.as_chunks::<8>().0.iter();
    chunks
        .zip(words(stamp))
        .all(|(bytes, word)| *bytes == word.to_le_bytes())
}

/// What a block was filled with; `None` if not with one thing.
pub(crate) fn stamp_of(block: &[u8]) -> Option<Stamp> {
    let stamp = u64::from_le_bytes(*block.first_chunk()?);
    holds(block, stamp).then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of a file of its own, which is gone when the test ends.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("nvmf-soak-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn block(stamp: Stamp) -> [u8; 512] {
        let mut bytes = [0; 512];
        fill(&mut bytes, stamp);
        bytes
    }

    #[test]
    fn a_block_says_what_it_is() {
        assert_eq!(block(ZEROES), [0; 512]);
        for stamp in [1, 2, 1 << 48, u64::MAX - 1] {
            assert_eq!(stamp_of(&block(stamp)), Some(stamp));
            for byte in [0, 8, 100, 511] {
                let mut bad = block(stamp);
                bad[byte] ^= 1;
                assert_eq!(stamp_of(&bad), None, "{stamp} {byte}");
            }
        }
    }

    #[test]
    fn what_was_answered_is_there_and_what_was_not_may_be() {
        let scratch = Scratch::new("model");
        let mut model = Model::open(&scratch.0, 4).unwrap();
        assert_eq!(model.claim(1..3), Some(1..3));
        assert_eq!(model.claim(0..4), Some(0..1));
        assert_eq!(model.claim(1..4), None);
        model.intend(1..3, [7, 8]).unwrap();
        // Whoever comes after a kill knows both possibilities.
        let mut next = Model::open(&scratch.0, 4).unwrap();
        assert!(next.is_certain(0..1) && !next.is_certain(1..2) && !next.is_certain(2..3));
        let data = [block(ZEROES), block(8)].concat();
        assert_eq!(next.observe(1..3, &data, 512).unwrap(), Ok(()));
        assert!(next.is_certain(0..4));
        let data = [block(7), block(8)].concat();
        let mismatch = next.observe(1..3, &data, 512).unwrap().unwrap_err();
        assert_eq!((mismatch.block, mismatch.found), (1, Some(7)));

        model.settle(1..3).unwrap();
        model.release(1..3);
        let mut next = Model::open(&scratch.0, 4).unwrap();
        assert_eq!(next.stamps(0..4).collect::<Vec<_>>(), [0, 7, 8, 0]);
        let torn = [&block(7)[..256], &block(9)[256..]].concat();
        let mismatch = next.observe(1..2, &torn, 512).unwrap().unwrap_err();
        assert_eq!((mismatch.found, mismatch.expected), (None, (7, None)));
        next.forget(4).unwrap();
        let next = Model::open(&scratch.0, 4).unwrap();
        assert_eq!((next.generation(), next.stamps(1..2).next()), (4, Some(0)));
    }
}
