//! The I/O commands that hosts draw.

use crate::association::Stage;
use crate::command::{Command, Io, IoOp, What};
use crate::content::{self, BAD, SECTOR};
use crate::facts::Namespace;
use crate::queries::RESERVE;
use crate::queue::Data;
use crate::reservations::{ACTIONS, Action, Reserve};
use crate::world::World;
use crate::{note, trace};
use nvmf_host::command;
use nvmf_proto::wire::Sqe;
use nvmf_proto::wire::copy::{CopyCommand, CopyFormat, CopyRange};
use nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_proto::wire::reservation::{ChangePtpl, ReservationType};
use nvmf_proto::wire::sqe::Fuse;

/// Blocks that a Write Uncorrectable marks at most: reads of others are to go on.
const MARKED: u64 = 4;

impl World {
    /// A host submits an I/O command; false if there is nobody who could.
    pub fn submit(&mut self) -> bool {
        if self.commands_left == 0 || self.calm {
            return false;
        }
        let association = self.rng.index(self.associations.len());
        let it = &self.associations[association];
        if it.stage != Stage::Up || it.silent {
            return false;
        }
        if it.plan.discovery {
            let asked = self.ask_discovery(association);
            self.commands_left -= u64::from(asked);
            return asked;
        }
        let queue = 1 + self.rng.index(it.queues.len() - 1);
        if self.rng.once_in(self.plan.queries) && self.ask(association) {
            self.commands_left -= 1;
            return true;
        }
        let it = &self.associations[association];
        if !it.queues[queue].has_room() {
            return false;
        }
        let pairs = it.queues[queue].has_room_for(2);
        self.commands_left -= 1;
        let subsystem = it.plan.subsystem;
        let host = it.host;
        let (mut io, mut queue) = (self.draw(subsystem, host, pairs), queue);
        if io.op.is_feature() {
            // It is an admin command.
            if self.associations[association].queues[0].has_room_for(RESERVE) {
                queue = 0;
            } else {
                io.op = IoOp::ReservationReport;
            }
        }
        let second = match &io.op {
            IoOp::FusedCompare(tags) => Some(Io {
                op: IoOp::FusedWrite(tags.clone()),
                write: Some(self.model.next_write()),
                ..io.clone()
            }),
            _ => None,
        };
        self.send_io(association, queue, io);
        if let Some(second) = second {
            self.send_io(association, queue, second);
        }
        true
    }

    /// Submits an I/O command on a queue that has room.
    pub fn send_io(&mut self, association: usize, queue: usize, io: Io) {
        let (sqe, data) = self.encode(&io);
        note!(
            "association {}: {} namespace {}, {} blocks at {}, write {}",
            association,
            io.op.name(),
            io.nsid,
            io.blocks,
            io.slba,
            io.write.unwrap_or_default()
        );
        let start = trace::stamp();
        let it = &self.associations[association];
        self.model.submitted(it.plan.subsystem, it.host, &io, start);
        let command = Command::new(What::Io(io), start, trace::now());
        let it = &mut self.associations[association];
        it.last_submit = trace::now();
        it.queues[queue].submit(sqe, data, command);
    }

    /// `pairs`: there is room for two.
    fn draw(&mut self, subsystem: usize, host: usize, pairs: bool) -> Io {
        let of = &self.model.subsystems[subsystem];
        let nsids: Vec<u32> = of.namespaces.keys().copied().collect();
        let nsid = self.rng.pick(&nsids);
        let namespace = of.namespace(nsid).unwrap_or(Namespace {
            storage: 0,
            blocks: 8,
            block_size: 512,
            group: 1,
        });
        let mix = self.plan.mix;
        let mut roll = self.rng.below(mix.weights.iter().sum());
        let kind = mix
            .weights
            .iter()
            .position(|weight| {
                let hit = roll < *weight;
                roll = roll.saturating_sub(*weight);
                hit
            })
            .unwrap_or(0);
        let most = mix.span.min(self.model.max_transfer / namespace.block_size);
        let mut blocks = self.rng.amount(most as usize) as u64;
        if self.rng.once_in(100) {
            blocks = self.model.max_transfer / namespace.block_size + 1;
        }
        let hot = mix.hot.min(namespace.blocks);
        let mut slba = self.rng.below(hot);
        if !self.rng.once_in(50) {
            // As a rule it is inside.
            blocks = blocks.min(namespace.blocks);
            slba = slba.min(namespace.blocks - blocks);
        }
        let mut io = Io {
            op: IoOp::Read,
            nsid,
            slba,
            blocks,
            fua: self.rng.once_in(6),
            write: None,
            block_size: namespace.block_size,
        };
        io.op = match kind {
            0 => IoOp::Read,
            1 => IoOp::Write,
            2 => IoOp::WriteZeroes,
            3 => IoOp::Compare(self.guess(namespace.storage, &io)),
            4 => IoOp::Verify,
            5 => IoOp::Flush,
            6 => IoOp::Deallocate(self.ranges(io.blocks, namespace.blocks)),
            7 => match self.sources(&io, namespace.blocks) {
                Some(ranges) => IoOp::Copy(ranges),
                None => IoOp::Verify,
            },
            9 => self.reservation(subsystem, host, nsid),
            10 => IoOp::Uncorrectable,
            _ if pairs => IoOp::FusedCompare(self.guess(namespace.storage, &io)),
            _ => IoOp::Read,
        };
        match io.op {
            IoOp::Flush | IoOp::Deallocate(_) | IoOp::Reservation(_) | IoOp::ReservationReport => {
                (io.slba, io.blocks, io.fua) = (0, 1, false);
            }
            // Both halves are about the same blocks, and only one can have it.
            IoOp::FusedCompare(_) => io.fua = false,
            IoOp::Uncorrectable => {
                io.fua = false;
                io.blocks = io.blocks.min(MARKED);
            }
            _ => {}
        }
        if matches!(
            io.op,
            IoOp::Write
                | IoOp::WriteZeroes
                | IoOp::Deallocate(_)
                | IoOp::Copy(_)
                | IoOp::Uncorrectable
        ) {
            io.write = Some(self.model.next_write());
        }
        io
    }

    /// A reservation command that makes sense, as a rule; a report while another is under way.
    fn reservation(&mut self, subsystem: usize, host: usize, nsid: u32) -> IoOp {
        let reservations = self.model.reservations_of(subsystem, nsid);
        if reservations.is_busy() || self.rng.once_in(5) {
            return IoOp::ReservationReport;
        }
        let keys = reservations.guess().keys.clone();
        let own = keys.get(&host).copied();
        let action = match own {
            None if !self.rng.once_in(6) => Action::Register,
            _ => self.rng.pick(&ACTIONS),
        };
        let others: Vec<u64> = keys.values().copied().chain([0]).collect();
        let other = match action {
            Action::Preempt | Action::PreemptAndAbort => self.rng.pick(&others),
            _ => self.rng.range(0, 4),
        };
        let wrong = self.rng.once_in(10);
        let registers = matches!(
            action,
            Action::Register | Action::Unregister | Action::Replace
        );
        // Of other actions it is wrong.
        let iekey = self.rng.once_in(if registers { 4 } else { 20 });
        let persists = self.model.store.is_some() || wrong;
        let cptpl = match self.rng.below(8) {
            _ if action == Action::Persist => self.rng.pick(&[ChangePtpl::SET, ChangePtpl::CLEAR]),
            0..4 if registers && persists => ChangePtpl::SET,
            4 if registers => ChangePtpl::CLEAR,
            5 if registers && wrong => ChangePtpl(1),
            _ => ChangePtpl::NONE,
        };
        IoOp::Reservation(Reserve {
            action,
            key: own.filter(|_| !wrong).unwrap_or(9),
            other,
            rtype: ReservationType(self.rng.range(1, 6) as u8),
            iekey,
            cptpl,
        })
    }

    /// Some ranges of a namespace, as a rule inside.
    fn ranges(&mut self, most: u64, size: u64) -> Vec<(u64, u64)> {
        let out = u64::from(self.rng.once_in(50));
        let count = self.rng.range(1, 4);
        let mut range = || {
            let blocks = 1 + self.rng.below(most.min(size));
            (self.rng.below(size - blocks + 1) + out * size, blocks)
        };
        (0..count).map(|_| range()).collect()
    }

    /// The source of a Copy to the blocks of a command: as many blocks, and others, in one or two
    /// ranges. None if there is no room for that.
    fn sources(&mut self, io: &Io, size: u64) -> Option<Vec<(u64, u64)>> {
        let blocks = io.blocks;
        let before = io.slba.min(size);
        let behind = (io.slba + blocks).min(size);
        let (from, room) = if before >= blocks {
            (0, before)
        } else {
            (behind, size - behind)
        };
        let slba = from + self.rng.below(room.checked_sub(blocks)? + 1);
        let cut = self.rng.below(blocks);
        let halves = [(slba + cut, blocks - cut), (slba, cut)];
        Some(halves.into_iter().filter(|(_, n)| *n > 0).collect())
    }

    /// What the sectors of a command may hold at this moment.
    fn guess(&mut self, storage: usize, io: &Io) -> Vec<u64> {
        let now = trace::stamp();
        let versions = &self.model.storage[storage].versions;
        io.sectors()
            .map(|sector| {
                let mut may = versions.possible(sector, now);
                may.retain(|tag| *tag != BAD);
                match may.len() {
                    0 => 0,
                    count => may[self.rng.index(count)],
                }
            })
            .collect()
    }

    fn encode(&mut self, io: &Io) -> (Sqe, Data) {
        let Io {
            nsid, slba, blocks, ..
        } = *io;
        let blocks = blocks as u32;
        let bytes = blocks * io.block_size as u32;
        let in_capsule = self.rng.once_in(2);
        let (sqe, data) = match &io.op {
            IoOp::Read => (command::read(nsid, slba, blocks), Data::Read(bytes)),
            IoOp::Write | IoOp::FusedWrite(_) => {
                let sectors = io.sectors();
                let count = sectors.end - sectors.start;
                let data = content::data(io.write.unwrap_or_default(), sectors.start, count);
                (
                    command::write(nsid, slba, blocks),
                    Data::Write(data, in_capsule),
                )
            }
            IoOp::WriteZeroes => (
                command::write_zeroes(nsid, slba, blocks, self.rng.once_in(2)),
                Data::None,
            ),
            IoOp::Compare(tags) | IoOp::FusedCompare(tags) => {
                let mut data = vec![0; bytes as usize];
                for (sector, &tag) in data.chunks_exact_mut(SECTOR).zip(tags) {
                    content::fill(sector, tag);
                }
                (
                    command::compare(nsid, slba, blocks),
                    Data::Write(data, in_capsule),
                )
            }
            IoOp::Verify => (command::verify(nsid, slba, blocks), Data::None),
            IoOp::Uncorrectable => (command::write_uncorrectable(nsid, slba, blocks), Data::None),
            IoOp::Flush => (command::flush(nsid), Data::None),
            IoOp::Deallocate(ranges) => {
                let range = |&(slba, blocks): &(u64, u64)| DsmRange {
                    context: 0,
                    length: blocks as u32,
                    slba,
                };
                let data = ranges.iter().flat_map(|r| range(r).encode()).collect();
                let count = ranges.len() as u16;
                (
                    command::dataset_management(nsid, count, DsmAttributes::DEALLOCATE),
                    Data::Write(data, in_capsule),
                )
            }
            IoOp::Reservation(reserve) => {
                let (sqe, data) = reserve.encode(nsid);
                let data = match reserve.action {
                    Action::Persist => Data::None,
                    _ => Data::Write(data, in_capsule),
                };
                (sqe, data)
            }
            IoOp::ReservationReport => {
                let bytes = 64 * 8;
                (
                    command::reservation_report(nsid, bytes, true),
                    Data::Read(bytes),
                )
            }
            IoOp::Copy(ranges) => {
                let range = |&(slba, blocks): &(u64, u64)| CopyRange {
                    slba,
                    blocks: blocks as u32,
                    ..CopyRange::default()
                };
                let data = ranges.iter().flat_map(|r| range(r).encode()).collect();
                let copy = CopyCommand {
                    sdlba: slba,
                    range_count: ranges.len() as u16,
                    format: CopyFormat::SAME_NAMESPACE,
                };
                (command::copy(nsid, &copy), Data::Write(data, in_capsule))
            }
        };
        let sqe = match io.op {
            IoOp::FusedCompare(_) => command::fused(sqe, Fuse::First),
            IoOp::FusedWrite(_) => command::fused(sqe, Fuse::Second),
            _ => sqe,
        };
        let sqe = if io.fua { command::with_fua(sqe) } else { sqe };
        (sqe, data)
    }
}
