//! Commands of the NVM command set: checks, requests to the lanes, completions.

use super::{Conn, Queue};
use crate::buf::IoBuf;
use crate::ctrl::admin::Transfer;
use crate::ctrl::{NsEntry, NsTable};
use crate::ns::{LbaRange, Op, Route, Support};
use crate::reactor::Cx;
use nvmf_proto::tcp::Slot;
use nvmf_proto::tcp::target::Done;
use nvmf_proto::wire::dsm::{DsmAttributes, DsmCommand, DsmRange};
use nvmf_proto::wire::fabrics::{FabricsType, disconnect_recfmt};
use nvmf_proto::wire::identify::NSID_BROADCAST;
use nvmf_proto::wire::{NvmOpcode, Sqe, Status};
use std::sync::Arc;

/// Write Zeroes, CDW12 bit 25: Deallocate.
const DEAC: u32 = 1 << 25;
/// Zeroes that an emulated Write Zeroes writes at a time, bytes.
const ZEROES: u64 = 128 << 10;

/// What follows when a backend has finished a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum After {
    /// The response.
    #[default]
    Respond,
    /// A Flush, for a write with FUA on a backend that has no such thing.
    Flush { nsid: u32 },
    /// The rest of an emulated Write Zeroes.
    Zeroes {
        nsid: u32,
        rest: LbaRange,
        fua: bool,
    },
}

/// An I/O command that has passed its checks.
#[derive(Debug)]
pub(super) enum IoPlan {
    Rw {
        entry: Arc<NsEntry>,
        write: bool,
        range: LbaRange,
        len: u32,
        fua: bool,
    },
    Flush(Arc<NsEntry>),
    FlushAll,
    WriteZeroes {
        entry: Arc<NsEntry>,
        range: LbaRange,
        deallocate: bool,
        fua: bool,
    },
    Dsm {
        entry: Arc<NsEntry>,
        command: DsmCommand,
    },
    /// Nothing has to be done.
    Nothing,
    Disconnect,
}

impl IoPlan {
    /// Checks a command against the namespaces of this moment.
    pub(super) fn new(sqe: &Sqe, table: &NsTable, max_transfer: u32) -> Result<Self, Status> {
        let opcode = NvmOpcode(sqe.opcode());
        if opcode == NvmOpcode::FABRICS {
            return Self::fabrics(sqe);
        }
        let nsid = sqe.nsid();
        if opcode == NvmOpcode::FLUSH && nsid == NSID_BROADCAST {
            return Ok(Self::FlushAll);
        }
        if !matches!(
            opcode,
            NvmOpcode::FLUSH
                | NvmOpcode::READ
                | NvmOpcode::WRITE
                | NvmOpcode::WRITE_ZEROES
                | NvmOpcode::DATASET_MANAGEMENT
        ) {
            return Err(Status::INVALID_OPCODE.dnr());
        }
        let entry = table.get(nsid).ok_or(Status::INVALID_NAMESPACE.dnr())?;
        let info = &entry.info;
        let write = opcode != NvmOpcode::READ && opcode != NvmOpcode::FLUSH;
        if write && info.read_only {
            return Err(Status::NAMESPACE_WRITE_PROTECTED.dnr());
        }
        match opcode {
            NvmOpcode::READ | NvmOpcode::WRITE => {
                let range = blocks(sqe, info.blocks)?;
                let len = u32::try_from(range.blocks << info.lba_shift)
                    .ok()
                    .filter(|&len| len <= max_transfer)
                    .ok_or(Status::INVALID_FIELD.dnr())?;
                Ok(Self::Rw {
                    entry: Arc::clone(entry),
                    write,
                    range,
                    len,
                    fua: sqe.fua(),
                })
            }
            NvmOpcode::FLUSH if info.volatile_cache && info.caps.flush == Support::Native => {
                Ok(Self::Flush(Arc::clone(entry)))
            }
            NvmOpcode::FLUSH => Ok(Self::Nothing),
            NvmOpcode::WRITE_ZEROES => {
                if info.caps.write_zeroes == Support::None {
                    return Err(Status::INVALID_OPCODE.dnr());
                }
                let range = blocks(sqe, info.blocks)?;
                let deallocate = sqe.cdw12() & DEAC != 0;
                Ok(Self::WriteZeroes {
                    entry: Arc::clone(entry),
                    range,
                    deallocate,
                    fua: sqe.fua(),
                })
            }
            _ => {
                let command = DsmCommand::decode(sqe);
                Ok(Self::Dsm {
                    entry: Arc::clone(entry),
                    command,
                })
            }
        }
    }

    fn fabrics(sqe: &Sqe) -> Result<Self, Status> {
        match FabricsType::of(sqe) {
            FabricsType::DISCONNECT if disconnect_recfmt(sqe) != 0 => {
                Err(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr())
            }
            FabricsType::DISCONNECT => Ok(Self::Disconnect),
            FabricsType::CONNECT => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    pub(super) fn transfer(&self) -> Transfer {
        match self {
            Self::Rw {
                write: false, len, ..
            } => Transfer::ToHost(*len),
            Self::Rw {
                write: true, len, ..
            } => Transfer::FromHost(*len),
            Self::Dsm { command, .. } => {
                // At most 256 ranges of 16 bytes.
                #[expect(clippy::cast_possible_truncation, reason = "at most 4096")]
                Transfer::FromHost(command.data_length() as u32)
            }
            _ => Transfer::None,
        }
    }
}

/// The blocks that a command is about, inside a namespace of `size` blocks.
fn blocks(sqe: &Sqe, size: u64) -> Result<LbaRange, Status> {
    let range = LbaRange {
        slba: sqe.slba(),
        blocks: sqe.block_count().into(),
    };
    inside(range, size)
}

fn inside(range: LbaRange, size: u64) -> Result<LbaRange, Status> {
    match range.slba.checked_add(range.blocks) {
        Some(end) if end <= size => Ok(range),
        _ => Err(Status::LBA_OUT_OF_RANGE.dnr()),
    }
}

impl Conn {
    pub(super) fn execute_io(&mut self, cx: &mut Cx, slot: Slot, plan: &IoPlan) {
        match plan {
            IoPlan::Nothing => self.complete(cx, slot, Status::SUCCESS, 0),
            IoPlan::Disconnect => {
                self.complete(cx, slot, Status::SUCCESS, 0);
                self.closing = true;
            }
            &IoPlan::Rw {
                ref entry,
                write,
                range,
                fua,
                ..
            } => {
                let info = &entry.info;
                let native = info.caps.fua == Support::Native;
                let op = if write {
                    Op::Write { fua: fua && native }
                } else {
                    Op::Read
                };
                let command = self.command(slot);
                let buf = std::mem::take(&mut command.buf);
                command.after = if write && fua && !native && info.volatile_cache {
                    After::Flush { nsid: entry.nsid }
                } else {
                    After::Respond
                };
                self.submit(cx, slot, entry, op, range, buf);
            }
            IoPlan::Flush(entry) => {
                self.command(slot).after = After::Respond;
                self.submit_flush(cx, slot, entry);
            }
            IoPlan::FlushAll => self.flush_all(cx, slot),
            &IoPlan::WriteZeroes {
                ref entry,
                range,
                deallocate,
                fua,
            } => {
                if entry.info.caps.write_zeroes == Support::Native {
                    self.command(slot).after = After::Respond;
                    let op = Op::WriteZeroes { deallocate, fua };
                    self.submit(cx, slot, entry, op, range, IoBuf::empty());
                } else {
                    self.command(slot).after = After::Zeroes {
                        nsid: entry.nsid,
                        rest: range,
                        fua,
                    };
                    self.continue_after(cx, slot);
                }
            }
            IoPlan::Dsm { entry, command } => self.deallocate(cx, slot, entry, *command),
        }
    }

    /// Hands one request to the namespace's lane.
    fn submit(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        entry: &NsEntry,
        op: Op,
        range: LbaRange,
        buf: IoBuf,
    ) {
        match cx.lanes.open(entry, &cx.poller) {
            Ok(lane) => {
                let route = Route {
                    conn: self.id,
                    slot,
                    lane,
                };
                let request = cx
                    .requests
                    .make(op, entry.info.lba_shift, range, buf, route);
                self.launch(cx, slot, lane, request);
            }
            Err(status) => {
                self.give_buffer(cx, buf);
                self.complete(cx, slot, status, 0);
            }
        }
    }

    fn launch(&mut self, cx: &mut Cx, slot: Slot, lane: usize, request: crate::ns::Request) {
        self.command(slot).parts += 1;
        self.in_flight += 1;
        cx.in_flight += 1;
        cx.lanes.submit(lane, request);
    }

    fn submit_flush(&mut self, cx: &mut Cx, slot: Slot, entry: &NsEntry) {
        let nowhere = LbaRange { slba: 0, blocks: 0 };
        self.submit(cx, slot, entry, Op::Flush, nowhere, IoBuf::empty());
    }

    /// Flush with NSID FFFFFFFFh: every namespace of the subsystem (VWC bits 2:1 are 11b).
    fn flush_all(&mut self, cx: &mut Cx, slot: Slot) {
        let Queue::Io(queue) = &self.queue else {
            return;
        };
        let table = Arc::clone(&queue.table);
        let volatile =
            |e: &&Arc<NsEntry>| e.info.volatile_cache && e.info.caps.flush == Support::Native;
        self.command(slot).after = After::Respond;
        let mut launched = false;
        for entry in table.iter().filter(volatile) {
            match cx.lanes.open(entry, &cx.poller) {
                Ok(lane) => {
                    let route = Route {
                        conn: self.id,
                        slot,
                        lane,
                    };
                    let nowhere = LbaRange { slba: 0, blocks: 0 };
                    let request = cx
                        .requests
                        .make(Op::Flush, 9, nowhere, IoBuf::empty(), route);
                    self.launch(cx, slot, lane, request);
                    launched = true;
                }
                Err(status) => self.command(slot).status = Some(status),
            }
        }
        if !launched {
            let status = self.command(slot).status.unwrap_or(Status::SUCCESS);
            self.complete(cx, slot, status, 0);
        }
    }

    /// Dataset Management: only the deallocate attribute has an effect; the others are hints.
    fn deallocate(&mut self, cx: &mut Cx, slot: Slot, entry: &NsEntry, command: DsmCommand) {
        let buf = std::mem::take(&mut self.command(slot).buf);
        let range = |r: DsmRange| LbaRange {
            slba: r.slba,
            blocks: r.length.into(),
        };
        let bad =
            DsmRange::decode_all(&buf).find_map(|r| inside(range(r), entry.info.blocks).err());
        let wanted = command.attributes.contains(DsmAttributes::DEALLOCATE)
            && entry.info.caps.deallocate == Support::Native;
        match (bad, wanted) {
            (Some(status), _) => self.complete(cx, slot, status, 0),
            (None, false) => self.complete(cx, slot, Status::SUCCESS, 0),
            (None, true) => match cx.lanes.open(entry, &cx.poller) {
                Ok(lane) => {
                    let route = Route {
                        conn: self.id,
                        slot,
                        lane,
                    };
                    let ranges = DsmRange::decode_all(&buf).map(range);
                    let request = cx
                        .requests
                        .make_deallocate(entry.info.lba_shift, ranges, route);
                    self.command(slot).after = After::Respond;
                    self.launch(cx, slot, lane, request);
                }
                Err(status) => self.complete(cx, slot, status, 0),
            },
        }
        self.give_buffer(cx, buf);
    }

    /// A backend has finished a request of a command.
    pub(super) fn on_io_done(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        op: Op,
        buf: IoBuf,
        status: Status,
    ) {
        let command = self.command(slot);
        command.parts -= 1;
        let unfinished = command.parts > 0;
        if !status.is_success() && command.status.is_none() {
            command.status = Some(status);
        }
        let after = std::mem::take(&mut command.after);
        let outcome = command.status;
        let len = buf.len();
        if op == Op::Read && outcome.is_none() {
            self.command(slot).buf = buf;
            self.count(Op::Read, len);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "at most max_transfer, a u32"
            )]
            let done = Done {
                status: Status::SUCCESS,
                result: 0,
                data_len: len as u32,
            };
            self.respond(cx, slot, done);
            return;
        }
        self.give_buffer(cx, buf);
        if unfinished {
            return;
        }
        if let Some(status) = outcome {
            self.complete(cx, slot, status, 0);
            return;
        }
        if matches!(op, Op::Write { .. }) && !matches!(after, After::Zeroes { .. }) {
            self.count(op, len);
        }
        self.command(slot).after = after;
        self.continue_after(cx, slot);
    }

    /// Takes the next step of a command whose last one succeeded.
    fn continue_after(&mut self, cx: &mut Cx, slot: Slot) {
        let nsid = match self.command(slot).after {
            After::Respond => return self.complete(cx, slot, Status::SUCCESS, 0),
            After::Flush { nsid } | After::Zeroes { nsid, .. } => nsid,
        };
        let Queue::Io(queue) = &self.queue else {
            return;
        };
        let Some(entry) = queue.table.get(nsid).cloned() else {
            return self.complete(cx, slot, Status::INVALID_NAMESPACE.dnr(), 0);
        };
        match self.command(slot).after {
            After::Zeroes { rest, fua, .. } if rest.blocks > 0 => {
                self.write_zeroes(cx, slot, &entry, rest, fua);
            }
            After::Zeroes { fua: true, .. } | After::Flush { .. } if entry.info.volatile_cache => {
                self.command(slot).after = After::Respond;
                self.submit_flush(cx, slot, &entry);
            }
            _ => self.complete(cx, slot, Status::SUCCESS, 0),
        }
    }

    /// Writes the next zeroes of an emulated Write Zeroes.
    fn write_zeroes(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        entry: &NsEntry,
        rest: LbaRange,
        fua: bool,
    ) {
        let shift = entry.info.lba_shift;
        let max = ZEROES.min(cx.core.config.max_transfer.into()) >> shift;
        let now = LbaRange {
            slba: rest.slba,
            blocks: rest.blocks.min(max.max(1)),
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 128 KiB")]
        let len = (now.blocks << shift) as u32;
        if !self.take_buffer(cx, slot, len) {
            // The command holds nothing: to be retried costs less than to wait while it could.
            return self.complete(cx, slot, Status::COMMAND_INTERRUPTED, 0);
        }
        let mut buf = std::mem::take(&mut self.command(slot).buf);
        buf.fill(0);
        let rest = LbaRange {
            slba: now.slba + now.blocks,
            blocks: rest.blocks - now.blocks,
        };
        self.command(slot).after = After::Zeroes {
            nsid: entry.nsid,
            rest,
            fua,
        };
        self.submit(cx, slot, entry, Op::Write { fua: false }, now, buf);
    }

    /// SMART counters: NVMe Base 2.1, SMART / Health Information log.
    fn count(&self, op: Op, bytes: usize) {
        let Queue::Io(queue) = &self.queue else {
            return;
        };
        match op {
            Op::Read => queue.stats.read(bytes as u64),
            _ => queue.stats.written(bytes as u64),
        }
    }
}
