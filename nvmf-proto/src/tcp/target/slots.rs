//! The table of commands: who is in which slot, and what it waits for.

use super::Done;
use crate::tcp::Slot;
use crate::wire::Status;

/// What a slot's command is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No command.
    Free,
    /// The driver's `receive` or `complete`.
    Decision,
    /// The rest of its in-capsule data.
    InCapsule,
    /// The R2T to be handed over.
    R2tQueued,
    /// H2CData.
    H2cData,
    /// H2CData that nobody wants any more: the command has been completed.
    Abandoned,
    /// The driver's `complete`: all data has come.
    Execution,
    /// The response to be handed over.
    ResponseQueued,
    /// The response to leave.
    Leaving,
}

impl State {
    /// The command has no outcome yet.
    const fn is_undecided(self) -> bool {
        match self {
            Self::Decision
            | Self::InCapsule
            | Self::R2tQueued
            | Self::H2cData
            | Self::Execution => true,
            Self::Free | Self::Abandoned | Self::ResponseQueued | Self::Leaving => false,
        }
    }
}

/// One slot of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    generation: u16,
    /// Of the command in the slot.
    pub(super) cid: u16,
    pub(super) state: State,
    /// The bit of `cid` in the bitmap was set for this command, not for another with the same CID.
    owns_cid: bool,
    /// An R2T with this slot's TTAG has been handed over.
    pub(super) r2t_sent: bool,
    /// No data digest was wrong so far.
    pub(super) digest_ok: bool,
    /// R2TL: bytes of H2CData wanted.
    pub(super) wanted: u32,
    /// DATAO of the next H2CData.
    pub(super) next: u32,
    /// The outcome, once there is one.
    pub(super) done: Done,
}

impl Entry {
    const FREE: Self = Self {
        generation: 0,
        cid: 0,
        state: State::Free,
        owns_cid: false,
        r2t_sent: false,
        digest_ok: true,
        wanted: 0,
        next: 0,
        done: Done {
            status: Status::SUCCESS,
            result: 0,
            data_len: 0,
        },
    };
}

/// Words of 64 bits for all 65,536 CIDs.
const CID_WORDS: usize = 1 << 10;

/// Which CIDs are in use: one bit for each.
#[derive(Debug, Default)]
struct Cids(Box<[u64]>);

impl Cids {
    fn all_free() -> Self {
        Self(vec![0; CID_WORDS].into_boxed_slice())
    }

    /// Marks a CID; false if it was marked already.
    fn insert(&mut self, cid: u16) -> bool {
        let Some(word) = self.0.get_mut(usize::from(cid >> 6)) else {
            return true;
        };
        let bit = 1 << (cid & 63);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    fn contains(&self, cid: u16) -> bool {
        let word = self.0.get(usize::from(cid >> 6));
        word.is_some_and(|word| word & 1 << (cid & 63) != 0)
    }

    fn remove(&mut self, cid: u16) {
        if let Some(word) = self.0.get_mut(usize::from(cid >> 6)) {
            *word &= !(1 << (cid & 63));
        }
    }
}

/// The table of commands of one queue.
#[derive(Debug)]
pub(super) struct Slots {
    entries: Vec<Entry>,
    /// Indices of free slots; the one freed last is used first, for it is still in the cache.
    free: Vec<u16>,
    /// Empty while there is one slot only: two commands in it cannot conflict.
    cids: Cids,
    /// Low bits of a TTAG that hold the index; the rest holds the generation.
    index_bits: u32,
    /// Slots in state `H2cData` or `Abandoned`.
    expecting: usize,
}

impl Slots {
    /// A table for one command.
    pub(super) fn new() -> Self {
        Self {
            entries: vec![Entry::FREE],
            free: vec![0],
            cids: Cids::default(),
            index_bits: 0,
            expecting: 0,
        }
    }

    /// Bytes of a table of so many entries.
    pub(super) const fn bytes(entries: usize) -> usize {
        entries * (size_of::<Entry>() + size_of::<u16>()) + CID_WORDS * size_of::<u64>()
    }

    /// Makes the table larger; the command in slot 0 stays where it is.
    pub(super) fn grow(&mut self, entries: usize) {
        self.entries.resize(entries, Entry::FREE);
        self.cids = Cids::all_free();
        self.index_bits = entries.next_power_of_two().trailing_zeros();
        let mut first_free = 0;
        if let Some(connect) = self.entries.first_mut().filter(|e| e.state != State::Free) {
            connect.owns_cid = self.cids.insert(connect.cid);
            first_free = 1;
        }
        self.free = (first_free..entries)
            .rev()
            .filter_map(|i| u16::try_from(i).ok())
            .collect();
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn live(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// No command can be taken.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// No command can be taken, and none will end before the host has sent more data.
    pub(super) fn is_deadlocked(&self) -> bool {
        self.free.is_empty() && self.expecting == self.entries.len()
    }

    /// Puts a command into a free slot. The result says too whether its CID is in use already.
    pub(super) fn take(&mut self, cid: u16) -> Option<(Slot, bool)> {
        let index = self.free.pop()?;
        let entry = self.entries.get_mut(usize::from(index))?;
        let owns_cid = self.cids.insert(cid);
        *entry = Entry {
            generation: entry.generation,
            cid,
            state: State::Decision,
            owns_cid,
            ..Entry::FREE
        };
        Some((Slot::new(index, entry.generation), !owns_cid))
    }

    /// The command that has a CID to itself and no outcome yet.
    pub(super) fn find(&self, cid: u16) -> Option<Slot> {
        // A CID that nobody uses, and that costs no search.
        if !self.cids.contains(cid) {
            return None;
        }
        let is_it = |e: &Entry| e.owns_cid && e.cid == cid && e.state.is_undecided();
        let index = self.entries.iter().position(is_it)?;
        let generation = self.entries.get(index)?.generation;
        Some(Slot::new(u16::try_from(index).ok()?, generation))
    }

    /// The entry of a live command; nothing if the slot is stale.
    pub(super) fn get(&self, slot: Slot) -> Option<&Entry> {
        self.entries
            .get(slot.index())
            .filter(|e| e.generation == slot.generation() && e.state != State::Free)
    }

    /// The entry of a live command; nothing if the slot is stale.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries
            .get_mut(slot.index())
            .filter(|e| e.generation == slot.generation() && e.state != State::Free)
    }

    /// The response has been handed over: from here on the host may use the CID again.
    pub(super) fn release_cid(&mut self, slot: Slot) {
        let Some(entry) = self.get_mut(slot) else {
            return;
        };
        if std::mem::take(&mut entry.owns_cid) {
            let cid = entry.cid;
            self.cids.remove(cid);
        }
    }

    /// The response has left: the slot is free for another command.
    pub(super) fn release(&mut self, slot: Slot) {
        let Some(entry) = self.get_mut(slot) else {
            return;
        };
        entry.state = State::Free;
        entry.generation = entry.generation.wrapping_add(1);
        #[expect(clippy::cast_possible_truncation, reason = "made from a u16")]
        self.free.push(slot.index() as u16);
    }

    /// The TTAG of a slot's R2T: index and as much of the generation as fits, so that a tag of an
    /// earlier command in the same slot is not taken for this one's.
    pub(super) fn ttag(&self, slot: Slot) -> u16 {
        let generation = u32::from(slot.generation()) << self.index_bits;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "what does not fit is left out"
        )]
        {
            (generation as u16) | (slot.index() as u16)
        }
    }

    /// The live command that a TTAG belongs to.
    pub(super) fn by_ttag(&mut self, ttag: u16) -> Option<(Slot, &mut Entry)> {
        let index = u32::from(ttag) & ((1 << self.index_bits) - 1);
        let index = u16::try_from(index).ok()?;
        let entry = self.entries.get(usize::from(index))?;
        let slot = Slot::new(index, entry.generation);
        if self.ttag(slot) != ttag {
            return None;
        }
        self.get_mut(slot).map(|entry| (slot, entry))
    }

    /// The R2T has been handed over: H2CData is expected.
    pub(super) fn expect_data(&mut self, slot: Slot) {
        if let Some(entry) = self.get_mut(slot) {
            entry.state = State::H2cData;
            entry.r2t_sent = true;
            self.expecting += 1;
        }
    }

    /// The last H2CData has come.
    pub(super) fn data_complete(&mut self) {
        self.expecting = self.expecting.saturating_sub(1);
    }
}
