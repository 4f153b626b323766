//! What was written when, and what may therefore be read after a crash.
//!
//! Every sector of 512 bytes says where it belongs and which command put it there, in all of its
//! bytes: whatever is read is the work of one command, or torn.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The unit in which devices keep what they are given, in bytes.
pub const SECTOR: usize = 512;

/// Random numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Moments of a run in the order in which they happened, shared by all who write.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// The next moment; the first is 1.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// What a sector holds: what the command that began at moment `version` wrote to the sector of
/// that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub sector: u64,
    pub version: u64,
}

impl Stamp {
    /// Nothing but zeroes.
    pub const ZEROES: Self = Self {
        sector: 0,
        version: 0,
    };

    fn words(self) -> impl Iterator<Item = [u8; 8]> {
        let Self { sector, version } = self;
        let seed = mix(sector ^ mix(version));
        let rest = (1..).map(move |n: u64| seed.wrapping_mul(2 * n + 1));
        [sector, version]
            .into_iter()
            .chain(rest)
            .map(u64::to_le_bytes)
    }

    /// Makes a sector of it.
    fn write(self, sector: &mut [u8]) {
        if self == Self::ZEROES {
            return sector.fill(0);
        }
        for (place, word) in sector.chunks_exact_mut(8).zip(self.words()) {
            place.copy_from_slice(&word);
        }
    }

    /// What a sector holds; `None` if no command has written that.
    pub fn read(sector: &[u8]) -> Option<Self> {
        let word = |at: usize| sector[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let stamp = Self {
            sector: word(0)?,
            version: word(8)?,
        };
        let mut whole = [0; SECTOR];
        stamp.write(&mut whole);
        (whole == sector).then_some(stamp)
    }
}

/// Data for the sectors from `first` on, as the command of this moment writes it.
pub fn data(first: u64, sectors: u64, version: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(sectors).unwrap() * SECTOR];
    for (place, sector) in data.chunks_exact_mut(SECTOR).zip(first..) {
        Stamp { sector, version }.write(place);
    }
    data
}

/// What sectors hold after a command.
#[derive(Clone, Debug)]
pub enum Content {
    /// [`data`] of the moment at which it began.
    Fresh,
    Zeroes,
    /// What was elsewhere.
    Copied(Vec<Stamp>),
    /// Zeroes, or what was there.
    MaybeZeroes,
}

/// A command that changes sectors.
#[derive(Clone, Debug)]
pub struct Deed {
    pub sectors: Range<u64>,
    pub content: Content,
    /// It completes when it is on stable storage.
    pub durable: bool,
    /// A moment before it was sent.
    pub begun: u64,
    /// A moment after it was acknowledged, if it was.
    pub ended: Option<u64>,
}

impl Deed {
    fn stamp(&self, sector: u64) -> Stamp {
        match &self.content {
            Content::Fresh => Stamp {
                sector,
                version: self.begun,
            },
            Content::Copied(stamps) => {
                stamps[usize::try_from(sector - self.sectors.start).unwrap()]
            }
            Content::Zeroes | Content::MaybeZeroes => Stamp::ZEROES,
        }
    }
}

/// What one host has done.
#[derive(Debug, Default)]
pub struct Journal {
    pub deeds: Vec<Deed>,
    /// Moments at which those flushes began that were acknowledged.
    pub flushes: Vec<u64>,
}

/// What must have survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Everything that was acknowledged.
    Acknowledged,
    /// What was acknowledged as durable, or before an acknowledged Flush was sent.
    Durable,
}

/// What a check has found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Commands that had to be there.
    pub kept: usize,
    /// Sectors that do not hold the last that was acknowledged, and need not.
    pub lost: usize,
}

/// What a namespace may hold.
#[derive(Debug)]
pub struct Ledger {
    block: u64,
    /// What was found last.
    base: Vec<Stamp>,
    journal: Journal,
}

impl Ledger {
    /// A namespace of zeroes, in logical blocks of so many sectors.
    pub fn new(sectors: usize, block: u64) -> Self {
        Self {
            block,
            base: vec![Stamp::ZEROES; sectors],
            journal: Journal::default(),
        }
    }

    pub fn add(&mut self, journal: Journal) {
        self.journal.deeds.extend(journal.deeds);
        self.journal.flushes.extend(journal.flushes);
    }

    /// Checks all that the namespace holds; that is what it holds from then on. `whole`: logical
    /// blocks do not tear.
    ///
    /// # Errors
    ///
    /// The first sector that holds what it must not, in words.
    pub fn check(&mut self, data: &[u8], promise: Promise, whole: bool) -> Result<Found, String> {
        assert_eq!(data.len(), self.base.len() * SECTOR);
        let Journal { deeds, flushes } = std::mem::take(&mut self.journal);
        let flushed = flushes.into_iter().max().unwrap_or(0);
        let kept = |deed: &Deed| match (promise, &deed.content, deed.ended) {
            (_, Content::MaybeZeroes, _) | (_, _, None) => false,
            (Promise::Acknowledged, _, Some(_)) => true,
            (Promise::Durable, _, Some(ended)) => deed.durable || ended < flushed,
        };
        let mut of_sector: Vec<Vec<&Deed>> = vec![Vec::new(); self.base.len()];
        for deed in &deeds {
            for sector in deed.sectors.clone() {
                of_sector[usize::try_from(sector).unwrap()].push(deed);
            }
        }
        let mut found = Found {
            kept: deeds.iter().filter(|deed| kept(deed)).count(),
            lost: 0,
        };
        let mut now = Vec::with_capacity(self.base.len());
        for (index, bytes) in data.chunks_exact(SECTOR).enumerate() {
            let (sector, deeds) = (index as u64, &of_sector[index]);
            let stamp = Stamp::read(bytes)
                .ok_or_else(|| format!("sector {sector} is torn: {:02x?}...", &bytes[..32]))?;
            // Whatever had ended when this began is over.
            let bar = deeds.iter().filter(|d| kept(d)).map(|d| d.begun).max();
            let may = |deed: &&&Deed| {
                deed.stamp(sector) == stamp && deed.ended.is_none_or(|ended| Some(ended) > bar)
            };
            let source = deeds.iter().filter(may).map(|deed| deed.begun).max();
            if source.is_none() && (bar.is_some() || self.base[index] != stamp) {
                return Err(format!(
                    "sector {sector} holds {stamp:?}; before {:?}, {promise:?} since moment {bar:?}: {deeds:#?}",
                    self.base[index]
                ));
            }
            let answered = deeds.iter().filter(|d| d.ended.is_some());
            found.lost += usize::from(answered.map(|d| d.begun).max() > source);
            now.push(stamp);
        }
        let block = usize::try_from(self.block).unwrap();
        for (index, stamps) in now.chunks_exact(block).enumerate() {
            let one = |list: &[Stamp]| {
                let zero = list.iter().all(|s| *s == Stamp::ZEROES);
                zero || list.iter().all(|s| s.version == list[0].version)
            };
            let was = &self.base[index * block..][..block];
            if whole && !one(stamps) && stamps != was {
                return Err(format!("block {index} is torn: {stamps:?}"));
            }
        }
        self.base = now;
        Ok(found)
    }
}
