//! How a run ends: faults stop, everything that is under way comes to its end, a fresh host finds
//! every byte where it has to be, and nothing is left behind.

use crate::association::{Association, Stage};
use crate::command::{Io, IoOp};
use crate::content::SECTOR;
use crate::network::lock;
use crate::world::{Outcome, World};
use crate::{note, plan, trace};
use nvmf_target::TargetStats;

/// Virtual time in which everything has to come to its end.
pub const PATIENCE: u64 = 300_000_000_000;

impl World {
    /// The whole of a run.
    pub fn play(&mut self) -> Outcome {
        self.run(PATIENCE, |world| world.commands_left == 0)?;
        if self.plan.cut_short {
            self.shut_down_in_the_middle()?;
            return self.start_anew();
        }
        self.calm_down();
        if !self.run(PATIENCE, |world| world.is_quiet())? {
            return Err(format!("it does not come to rest: {}", self.unrest()));
        }
        self.check_notices()?;
        if self.plan.limits.any() {
            // The fresh host is to find room.
            self.leave_all();
            if !self.run(PATIENCE, |world| world.is_empty())? {
                return Err(format!("something stays in the way: {}", self.unrest()));
            }
        }
        self.verify()?;
        self.leave_all();
        if !self.run(PATIENCE, |world| world.is_empty())? {
            return Err(format!("something stays behind: {}", self.unrest()));
        }
        self.shut_down()?;
        self.start_anew()
    }

    /// Faults are over.
    fn calm_down(&mut self) {
        self.heal();
        for index in 0..self.associations.len() {
            let it = &mut self.associations[index];
            // Who sends nothing any more is gone for good, and so is who is not there yet.
            if it.silent || it.excuse.is_some() || it.stage == Stage::Rising {
                self.give_up(index, true);
            }
            if let Stage::Down(at) = &mut self.associations[index].stage {
                *at = u64::MAX;
            }
        }
    }

    fn heal(&mut self) {
        note!("faults are over");
        self.calm = true;
        if let Some(store) = &self.model.store {
            store.behave();
        }
        for storage in &self.model.storage {
            if let Some(disk) = &storage.disk {
                disk.behave();
            }
        }
        for wire in &self.wires {
            let mut link = lock(&wire.link);
            for up in [true, false] {
                let pipe = if up { &mut link.up } else { &mut link.down };
                pipe.held_until = 0;
                pipe.flips = 0;
            }
        }
        for queue in self.associations.iter_mut().flat_map(|it| &mut it.queues) {
            queue.deaf_until = 0;
            queue.mute_until = 0;
        }
    }

    /// Whether nothing is under way that has to come to an end.
    fn is_quiet(&self) -> bool {
        let is_done = |it: &Association| !it.is_waiting() && it.stage != Stage::Restarting;
        let answered = self.associations.iter().all(is_done);
        answered && self.sim.target().stats().in_flight == 0
    }

    fn is_empty(&self) -> bool {
        self.sim.target().stats() == TargetStats::default() && self.wires.is_empty()
    }

    fn unrest(&self) -> String {
        let waiting: Vec<_> = self
            .associations
            .iter()
            .flat_map(|it| &it.queues)
            .flat_map(|q| q.commands().map(|c| (q.id, c.what.name(), c.cid)))
            .collect();
        let held: usize = self.disks().map(|d| d.pending()).sum();
        format!(
            "{:?}, {} requests held by disks, {} connections, commands {waiting:?}",
            self.sim.target().stats(),
            held,
            self.wires.len()
        )
    }

    fn disks(&self) -> impl Iterator<Item = &crate::disk::Disk> {
        self.model.storage.iter().filter_map(|s| s.disk.as_ref())
    }

    /// A fresh host reads everything, writes and reads again, by a way of its own.
    fn verify(&mut self) -> Outcome {
        note!("a fresh host comes");
        let namespaces: Vec<_> = (0..self.model.storage.len())
            .map(|index| (index as u32 + 1, index, 1))
            .collect();
        self.add_subsystem("nqn.2026-11.org.example:verify".to_owned(), &namespaces);
        self.add_listener("verify");
        let plan = plan::Association {
            subsystem: self.model.subsystems.len() - 1,
            listener: self.doors.len() - 1,
            queues: 1,
            entries: 32,
            depth: 4,
            ..plan::Association::PLAIN
        };
        let witness = self.associations.len();
        self.associations.push(Association::new(250, plan));
        self.rise(witness);
        if !self.run(PATIENCE, |world| {
            world.associations[witness].stage == Stage::Up
        })? {
            return Err("a fresh host cannot connect".to_owned());
        }
        for storage in 0..self.model.storage.len() {
            self.heal_marks(witness, storage)?;
            self.read_all(witness, storage)?;
            self.write_and_read(witness, storage)?;
        }
        Ok(())
    }

    /// What may be marked is read, which says if it is, and written: then it is not any more.
    fn heal_marks(&mut self, witness: usize, storage: usize) -> Outcome {
        let of = &self.model.storage[storage];
        let (blocks, block_size) = (of.blocks, of.block_size);
        let per_block = block_size / SECTOR as u64;
        for slba in 0..blocks {
            let now = trace::stamp();
            let versions = &self.model.storage[storage].versions;
            let mut sectors = slba * per_block..(slba + 1) * per_block;
            if !sectors.any(|sector| versions.may_be_marked(sector, now)) {
                continue;
            }
            for op in [IoOp::Read, IoOp::Write] {
                let write = matches!(op, IoOp::Write).then(|| self.model.next_write());
                let io = Io {
                    op,
                    nsid: storage as u32 + 1,
                    slba,
                    blocks: 1,
                    fua: false,
                    write,
                    block_size,
                };
                self.send_io(witness, 1, io);
                self.finish(witness)?;
            }
        }
        Ok(())
    }

    fn read_all(&mut self, witness: usize, storage: usize) -> Outcome {
        let of = &self.model.storage[storage];
        let (blocks, block_size) = (of.blocks, of.block_size);
        let step = (8192 / block_size).max(1);
        let mut slba = 0;
        while slba < blocks {
            let count = step.min(blocks - slba);
            let io = Io {
                op: IoOp::Read,
                nsid: storage as u32 + 1,
                slba,
                blocks: count,
                fua: false,
                write: None,
                block_size,
            };
            self.send_io(witness, 1, io);
            slba += count;
            self.finish(witness)?;
        }
        Ok(())
    }

    fn write_and_read(&mut self, witness: usize, storage: usize) -> Outcome {
        let of = &self.model.storage[storage];
        let (blocks, block_size) = (of.blocks, of.block_size);
        let slba = self.rng.below(blocks);
        let write = Some(self.model.next_write());
        for (op, write) in [(IoOp::Write, write), (IoOp::Read, None)] {
            let io = Io {
                op,
                nsid: storage as u32 + 1,
                slba,
                blocks: 1,
                fua: false,
                write,
                block_size,
            };
            self.send_io(witness, 1, io);
            self.finish(witness)?;
        }
        Ok(())
    }

    pub fn finish(&mut self, witness: usize) -> Outcome {
        let done = self.run(PATIENCE, |world| !world.associations[witness].is_waiting())?;
        if done && self.associations[witness].stage == Stage::Up {
            Ok(())
        } else {
            Err("a fresh host is not served".to_owned())
        }
    }

    /// All hosts go.
    pub fn leave_all(&mut self) {
        for index in 0..self.associations.len() {
            let reset = self.rng.once_in(2);
            self.give_up(index, reset);
        }
    }

    /// The target is shut down while its hosts have commands under way: what it has acknowledged is
    /// where it has to be.
    fn shut_down_in_the_middle(&mut self) -> Outcome {
        for it in &mut self.associations {
            it.excuse = Some("the target is shut down");
        }
        self.heal();
        self.shut_down()?;
        // What is on its way to hosts they still get.
        self.run(PATIENCE, |world| {
            world.associations.iter().all(|it| !it.is_waiting())
        })?;
        let now = trace::stamp();
        for (index, storage) in self.model.storage.iter_mut().enumerate() {
            let Some(disk) = storage.disk.clone() else {
                continue;
            };
            disk.with_data(|data| storage.check_unmarked(data, now))
                .map_err(|why| format!("storage {index} after a shutdown: {why}"))?;
            let owed = disk.owes(0..disk.sectors(), now);
            if let Some(sector) = owed.filter(|_| self.plan.faults.remove == 0) {
                return Err(format!(
                    "storage {index}: sector {sector} is only in the cache after a shutdown"
                ));
            }
        }
        Ok(())
    }

    /// The target ends, and with it everything that it holds.
    pub fn shut_down(&mut self) -> Outcome {
        note!("the target is shut down");
        self.sim.begin_shutdown();
        if !self.run(PATIENCE, |world| world.sim.is_over())? {
            return Err("the target does not end".to_owned());
        }
        if let Some(disk) = self.disks().find(|disk| disk.pending() > 0) {
            return Err(format!("{} requests are in a disk", disk.pending()));
        }
        match self.disks().find(|disk| disk.lanes() > 0) {
            Some(disk) => Err(format!("{} lanes of a disk are open", disk.lanes())),
            None => Ok(()),
        }
    }
}
