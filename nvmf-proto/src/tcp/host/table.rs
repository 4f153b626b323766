//! The commands of one queue.

use super::HostData;
use crate::tcp::Slot;
use crate::wire::{SglDescriptor, Sqe};

/// Where a command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    /// Its capsule was not handed out yet: the controller cannot know of it.
    Queued,
    /// With the controller.
    Issued,
    /// Complete, but bytes of its buffer are still leaving.
    Completed,
}

/// What the controller may do with a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// Nothing.
    None,
    /// Nothing more: the capsule carries it.
    InCapsule,
    /// Ask for it by R2T.
    R2t,
    /// Send it.
    Read,
}

/// One command.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) sqe: Sqe,
    pub(super) generation: u16,
    pub(super) stage: Stage,
    pub(super) transfer: Transfer,
    pub(super) digest_ok: bool,
    /// Bytes of data.
    pub(super) len: u32,
    /// How many of them were received, or asked for by R2T.
    pub(super) moved: u32,
    /// R2Ts whose data has not been handed out in full.
    pub(super) r2ts: u32,
    /// Data PDUs that were handed out and have not left.
    pub(super) sending: u32,
}

/// A fixed table of commands, found by the CIDs that it gives out.
///
/// A CID is the index in its low bits and the generation above: the CID of a command that is
/// complete is not that of the slot's next one.
#[derive(Debug)]
pub(super) struct Table {
    entries: Box<[Entry]>,
    free: Vec<u16>,
    index_bits: u32,
    /// Generations are below this.
    generations: u16,
}

impl Table {
    /// A table of `len` entries, 1 to 65,535.
    pub(super) fn new(len: u32) -> Self {
        let len = u16::try_from(len).unwrap_or(u16::MAX).max(1);
        let index_bits = u16::BITS - (len - 1).leading_zeros();
        // All generation bits set is left out, so that no CID is FFFFh: Error Information log pages
        // use that for "no command" (NVMe Base 2.1, Error Information Log Entry).
        let generations = (1u32 << (u16::BITS - index_bits)) - 1;
        let entry = |_| Entry {
            sqe: Sqe::default(),
            generation: 0,
            stage: Stage::Free,
            transfer: Transfer::None,
            digest_ok: true,
            len: 0,
            moved: 0,
            r2ts: 0,
            sending: 0,
        };
        Self {
            entries: (0..len).map(entry).collect(),
            free: (0..len).rev().collect(),
            index_bits,
            generations: u16::try_from(generations).unwrap_or(u16::MAX).max(1),
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn free_count(&self) -> usize {
        self.free.len()
    }

    /// The entry of a slot that is in use and not stale.
    pub(super) fn get(&self, slot: Slot) -> Option<&Entry> {
        self.entries
            .get(slot.index())
            .filter(|e| e.stage != Stage::Free && e.generation == slot.generation())
    }

    /// As [`Table::get`].
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries
            .get_mut(slot.index())
            .filter(|e| e.stage != Stage::Free && e.generation == slot.generation())
    }

    /// Takes a slot for a command and finishes its SQE.
    pub(super) fn take(&mut self, mut sqe: Sqe, data: HostData, in_capsule: u32) -> Option<Slot> {
        let index = self.free.pop()?;
        let entry = self.entries.get_mut(usize::from(index))?;
        let (transfer, len) = match data {
            HostData::None | HostData::AsIs => (Transfer::None, 0),
            HostData::Write { len: 0, .. } | HostData::Read { len: 0 } => (Transfer::None, 0),
            HostData::Write {
                len,
                in_capsule: true,
            } if len <= in_capsule => (Transfer::InCapsule, len),
            HostData::Write { len, .. } => (Transfer::R2t, len),
            HostData::Read { len } => (Transfer::Read, len),
        };
        match (data, transfer) {
            (HostData::AsIs, _) => {}
            (_, Transfer::InCapsule) => sqe.set_sgl(SglDescriptor::in_capsule(len)),
            _ => sqe.set_sgl(SglDescriptor::transport(len)),
        }
        // With 16 index bits there is one generation, 0, and a shift by 16 gives 0 as well.
        let high = u32::from(entry.generation) << self.index_bits;
        sqe.set_cid(index | u16::try_from(high).unwrap_or_default());
        let generation = entry.generation;
        *entry = Entry {
            sqe,
            generation,
            stage: Stage::Queued,
            transfer,
            digest_ok: true,
            len,
            moved: 0,
            r2ts: 0,
            sending: 0,
        };
        Some(Slot::new(index, generation))
    }

    /// The command with the controller that a CID names.
    pub(super) fn issued(&mut self, cid: u16) -> Option<(Slot, &mut Entry)> {
        let mask = u16::try_from((1u32 << self.index_bits) - 1).unwrap_or(u16::MAX);
        let generation = cid.checked_shr(self.index_bits).unwrap_or_default();
        let slot = Slot::new(cid & mask, generation);
        let entry = self.get_mut(slot).filter(|e| e.stage == Stage::Issued)?;
        Some((slot, entry))
    }

    /// Marks a command complete; its slot is free at once or when its last data has left.
    pub(super) fn complete(&mut self, slot: Slot) {
        let Some(entry) = self.get_mut(slot) else {
            return;
        };
        entry.stage = Stage::Completed;
        self.release_if_idle(slot);
    }

    /// Takes note that one data PDU of a command has left.
    pub(super) fn sent(&mut self, slot: Slot) {
        let Some(entry) = self.get_mut(slot) else {
            return;
        };
        entry.sending = entry.sending.saturating_sub(1);
        self.release_if_idle(slot);
    }

    fn release_if_idle(&mut self, slot: Slot) {
        let generations = self.generations;
        let Some(entry) = self.get_mut(slot) else {
            return;
        };
        if entry.stage == Stage::Completed && entry.sending == 0 {
            entry.stage = Stage::Free;
            entry.generation = (entry.generation + 1) % generations;
            #[expect(clippy::cast_possible_truncation, reason = "indexes are made from u16")]
            self.free.push(slot.index() as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cids_are_unique_and_never_ffff() {
        for len in [1, 2, 3, 31, 127, 128, 1023, 65_535] {
            let mut table = Table::new(len);
            let mut seen = vec![false; 1 << 16];
            for _ in 0..len {
                let slot = table
                    .take(Sqe::default(), HostData::None, 0)
                    .expect("a slot is free");
                let cid = table.get(slot).expect("taken").sqe.cid();
                assert_ne!(cid, u16::MAX, "len {len}");
                assert!(
                    !std::mem::replace(&mut seen[usize::from(cid)], true),
                    "len {len}"
                );
                table.get_mut(slot).expect("taken").stage = Stage::Issued;
                assert_eq!(table.issued(cid).map(|(s, _)| s), Some(slot));
            }
            assert_eq!(table.take(Sqe::default(), HostData::None, 0), None);
        }
    }

    #[test]
    fn a_slot_used_again_has_another_cid() {
        let mut table = Table::new(1);
        let mut last = None;
        for _ in 0..70_000 {
            let slot = table
                .take(Sqe::default(), HostData::None, 0)
                .expect("a slot is free");
            let cid = table.get(slot).expect("taken").sqe.cid();
            assert_ne!(Some(cid), last);
            assert_ne!(cid, u16::MAX);
            table.complete(slot);
            assert!(table.get(slot).is_none());
            last = Some(cid);
        }
    }

    #[test]
    fn a_slot_is_free_when_complete_and_sent() {
        let mut table = Table::new(1);
        let slot = table
            .take(Sqe::default(), HostData::None, 0)
            .expect("a slot is free");
        table.get_mut(slot).expect("taken").sending = 2;
        table.complete(slot);
        assert_eq!(table.free_count(), 0);
        table.sent(slot);
        assert_eq!(table.free_count(), 0);
        table.sent(slot);
        assert_eq!(table.free_count(), 1);
        table.sent(slot);
        assert_eq!(table.free_count(), 1, "a stale slot is ignored");
    }
}
