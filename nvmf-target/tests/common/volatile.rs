//! A device with a volatile cache, and a power supply that fails.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use super::ledger::Rng;
use nvmf_target::ns::{BlockDevice, NsError, NsInfo, Support};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a device does not do although it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    Flush,
    Fua,
}

/// A device that makes no more durable than it must: a write stays in the cache until a Flush that
/// begins after it has ended, or for good, and a write with FUA takes along nothing but itself.
#[derive(Debug)]
pub struct Volatile {
    info: NsInfo,
    /// Bytes that are kept or lost together: a sector or a logical block.
    unit: usize,
    lie: Option<Lie>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What stays when the power goes.
    medium: Vec<u8>,
    /// What is read while there is power.
    view: Vec<u8>,
    /// What was written to a unit and is not on the medium, oldest first.
    cached: BTreeMap<usize, Vec<Cached>>,
    writes: u64,
    /// Writes that have not ended.
    under_way: BTreeSet<u64>,
    /// Units that are still taken in, to the cache or the medium, before the power goes.
    energy: u64,
}

#[derive(Debug)]
struct Cached {
    write: u64,
    data: Vec<u8>,
}

impl Volatile {
    /// A device with this on its medium; `native`: FUA and Write Zeroes are its own.
    pub fn new(medium: Vec<u8>, block: u32, unit: usize, native: bool) -> Self {
        let blocks = medium.len() as u64 / u64::from(block);
        let mut info = NsInfo::new(block, blocks).with_volatile_cache();
        let support = if native {
            Support::Native
        } else {
            Support::Emulate
        };
        info.caps.fua = support;
        info.caps.write_zeroes = support;
        info.caps.deallocate = Support::Native;
        let state = State {
            view: medium.clone(),
            medium,
            cached: BTreeMap::new(),
            writes: 0,
            under_way: BTreeSet::new(),
            energy: u64::MAX,
        };
        Self {
            info,
            unit,
            lie: None,
            state: Mutex::new(state),
        }
    }

    pub fn lying(mut self, lie: Option<Lie>) -> Self {
        self.lie = lie;
        self
    }

    /// The power goes when so many more units have been taken in.
    pub fn goes_after(&self, units: u64) {
        self.state().energy = units;
    }

    /// The power goes. Returns what is on the medium then: of everything in the cache, any version
    /// or none has made it.
    pub fn cut(&self, rng: &mut Rng) -> Vec<u8> {
        let mut state = self.state();
        state.energy = 0;
        let cached = std::mem::take(&mut state.cached);
        let mut medium = state.medium.clone();
        for (unit, versions) in cached {
            let which = usize::try_from(rng.below(versions.len() as u64 + 1)).unwrap();
            if let Some(version) = versions.get(which) {
                medium[unit * self.unit..][..self.unit].copy_from_slice(&version.data);
            }
        }
        medium
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(
        &self,
        offset: u64,
        len: usize,
        data: Option<&[u8]>,
        fua: bool,
    ) -> Result<(), NsError> {
        let first = usize::try_from(offset).unwrap() / self.unit;
        let count = len / self.unit;
        let write = {
            let mut state = self.state();
            state.writes += 1;
            let write = state.writes;
            state.under_way.insert(write);
            write
        };
        // In an order of the device's own, and others come between.
        let start = usize::try_from(write).unwrap() * 7 % count;
        for at in (0..count).map(|n| (n + start) % count) {
            let mut state = self.state();
            state.spend()?;
            let bytes = match data {
                Some(data) => data[at * self.unit..][..self.unit].to_vec(),
                None => vec![0; self.unit],
            };
            let (unit, unit_at) = (first + at, (first + at) * self.unit);
            state.view[unit_at..][..self.unit].copy_from_slice(&bytes);
            if fua && self.lie != Some(Lie::Fua) {
                state.cached.remove(&unit);
                state.medium[unit_at..][..self.unit].copy_from_slice(&bytes);
            } else {
                let cached = state.cached.entry(unit).or_default();
                cached.push(Cached { write, data: bytes });
            }
        }
        self.state().under_way.remove(&write);
        Ok(())
    }
}

impl State {
    fn spend(&mut self) -> Result<(), NsError> {
        self.energy = self.energy.checked_sub(1).ok_or_else(no_power)?;
        Ok(())
    }
}

fn no_power() -> NsError {
    std::io::Error::other("there is no power").into()
}

impl BlockDevice for Volatile {
    fn info(&self) -> NsInfo {
        self.info.clone()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), NsError> {
        let state = self.state();
        if state.energy == 0 {
            return Err(no_power());
        }
        let offset = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&state.view[offset..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8], fua: bool) -> Result<(), NsError> {
        self.write(offset, buf.len(), Some(buf), fua)
    }

    fn flush(&self) -> Result<(), NsError> {
        if self.lie == Some(Lie::Flush) {
            return Ok(());
        }
        let (units, under_way, last) = {
            let state = self.state();
            let units: Vec<usize> = state.cached.keys().copied().collect();
            (units, state.under_way.clone(), state.writes)
        };
        for unit in units {
            let mut guard = self.state();
            let state = &mut *guard;
            state.spend()?;
            // What has ended when the Flush began, and what it has replaced.
            let Some(versions) = state.cached.get_mut(&unit) else {
                continue;
            };
            let ended = |v: &Cached| v.write <= last && !under_way.contains(&v.write);
            if let Some(newest) = versions.iter().rposition(ended) {
                let data = versions.drain(..=newest).next_back().unwrap().data;
                state.medium[unit * self.unit..][..self.unit].copy_from_slice(&data);
            }
            if versions.is_empty() {
                state.cached.remove(&unit);
            }
        }
        // Of an empty cache as well.
        self.state().spend()
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool, fua: bool) -> Result<(), NsError> {
        self.write(offset, usize::try_from(len).unwrap(), None, fua)
    }

    fn deallocate(&self, offset: u64, len: u64) -> Result<(), NsError> {
        self.write(offset, usize::try_from(len).unwrap(), None, false)
    }
}
