//! The connections of a reactor.

use crate::conn::Conn;

/// The connections of a reactor, by index and generation.
#[derive(Default)]
pub(super) struct Conns {
    slots: Vec<(u32, Option<Box<Conn>>)>,
    free: Vec<u32>,
    count: usize,
}

impl Conns {
    /// Bit 63 stays clear, for lane tokens.
    pub(super) fn next_id(&self) -> u64 {
        let index = self.free.last().map_or(self.slots.len(), |&i| i as usize);
        let generation = self.slots.get(index).map_or(0, |slot| slot.0);
        u64::from(generation & 0x7fff_fffe) << 32 | index as u64
    }

    pub(super) fn insert(&mut self, conn: Box<Conn>) {
        match self.free.pop() {
            Some(index) => self.slots[index as usize].1 = Some(conn),
            None => self.slots.push((0, Some(conn))),
        }
        self.count += 1;
    }

    pub(super) fn get(&mut self, id: u64) -> Option<&mut Conn> {
        let conn = self
            .slots
            .get_mut((id & 0xffff_ffff) as usize)?
            .1
            .as_deref_mut()?;
        (conn.id() == id).then_some(conn)
    }

    pub(super) fn remove(&mut self, id: u64) {
        let index = id & 0xffff_ffff;
        if self.get(id).is_some()
            && let Some(slot) = self.slots.get_mut(index as usize)
        {
            slot.0 = slot.0.wrapping_add(2);
            slot.1 = None;
            self.free.extend(u32::try_from(index));
            self.count -= 1;
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.slots
            .iter_mut()
            .filter_map(|(_, conn)| conn.as_deref_mut())
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.slots
            .iter()
            .filter_map(|(_, conn)| conn.as_ref().map(|c| c.id()))
            .collect()
    }
}
