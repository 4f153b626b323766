//! Commands of the NVM command set: checks, requests to the lanes, completions.

use super::{Command, Conn, Queue};
use crate::buf::IoBuf;
use crate::ctrl::admin::Transfer;
use crate::ctrl::{NsEntry, Seen, View};
use crate::ns::{LbaRange, NsInfo, Op, Request, Route, Support};
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

/// The range of requests that have none.
const NOWHERE: LbaRange = LbaRange { slba: 0, blocks: 0 };

/// What follows when a backend has finished a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum After {
    /// The response.
    #[default]
    Respond,
    /// A Flush, for a write with FUA on a backend that has no such thing.
    Flush { ns: NsRef },
    /// The rest of an emulated Write Zeroes.
    Zeroes {
        ns: NsRef,
        rest: LbaRange,
        fua: bool,
    },
}

/// A namespace as a plan needs it: no reference count is touched per command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NsRef {
    nsid: u32,
    uid: u64,
    lba_shift: u8,
}

impl NsRef {
    const fn of(entry: &NsEntry) -> Self {
        Self {
            nsid: entry.nsid,
            uid: entry.uid,
            lba_shift: entry.info.lba_shift,
        }
    }
}

/// An I/O command that has passed its checks.
#[derive(Clone, Copy, Debug)]
pub(super) enum IoPlan {
    /// Read or Write of `len` bytes.
    Rw {
        ns: NsRef,
        op: Op,
        after: After,
        range: LbaRange,
        len: u32,
    },
    Flush(NsRef),
    FlushAll,
    WriteZeroes {
        ns: NsRef,
        op: Op,
        after: After,
        range: LbaRange,
    },
    /// Write Zeroes on a backend that has no such thing.
    EmulateZeroes(After),
    Dsm {
        ns: NsRef,
        command: DsmCommand,
        /// Bytes from the host, at least those of the ranges.
        len: u32,
        blocks: u64,
        /// The backend deallocates.
        native: bool,
    },
    /// Nothing has to be done.
    Nothing,
    Disconnect,
}

impl IoPlan {
    /// Checks a command against the namespaces of this moment.
    pub(super) fn new(sqe: &Sqe, view: &View, max_transfer: u32) -> Result<Self, Status> {
        let opcode = NvmOpcode(sqe.opcode());
        match opcode {
            NvmOpcode::FABRICS => return Self::fabrics(sqe),
            NvmOpcode::FLUSH if sqe.nsid() == NSID_BROADCAST => return Ok(Self::FlushAll),
            NvmOpcode::FLUSH
            | NvmOpcode::READ
            | NvmOpcode::WRITE
            | NvmOpcode::WRITE_ZEROES
            | NvmOpcode::DATASET_MANAGEMENT => {}
            _ => return Err(Status::INVALID_OPCODE.dnr()),
        }
        let Seen { entry, access } = view
            .get(sqe.nsid())
            .ok_or(Status::INVALID_NAMESPACE.dnr())?;
        let refused = match opcode {
            NvmOpcode::READ => access.ana.or(access.reads),
            NvmOpcode::FLUSH => access.ana.or(access.flush),
            _ => access.ana.or(access.writes),
        };
        if let Some(status) = refused {
            return Err(status);
        }
        let ns = NsRef::of(entry);
        let NsInfo {
            blocks,
            caps,
            volatile_cache,
            ..
        } = entry.info;
        match opcode {
            NvmOpcode::READ | NvmOpcode::WRITE => Self::rw(sqe, entry, ns, max_transfer),
            NvmOpcode::FLUSH if volatile_cache && caps.flush == Support::Native => {
                Ok(Self::Flush(ns))
            }
            NvmOpcode::FLUSH => Ok(Self::Nothing),
            NvmOpcode::WRITE_ZEROES => {
                let (range, fua) = (blocks_of(sqe, blocks)?, sqe.fua());
                let deallocate = sqe.cdw12() & DEAC != 0;
                match caps.write_zeroes {
                    Support::None => Err(Status::INVALID_OPCODE.dnr()),
                    Support::Native => {
                        let (fua, after) = force(&entry.info, ns, fua);
                        let op = Op::WriteZeroes { deallocate, fua };
                        Ok(Self::WriteZeroes {
                            ns,
                            op,
                            after,
                            range,
                        })
                    }
                    Support::Emulate => {
                        let rest = range;
                        Ok(Self::EmulateZeroes(After::Zeroes { ns, rest, fua }))
                    }
                }
            }
            _ => {
                let command = DsmCommand::decode(sqe);
                Ok(Self::Dsm {
                    ns,
                    command,
                    len: dsm_length(sqe, command),
                    blocks,
                    native: caps.deallocate == Support::Native,
                })
            }
        }
    }

    fn rw(sqe: &Sqe, entry: &NsEntry, ns: NsRef, max_transfer: u32) -> Result<Self, Status> {
        let info = &entry.info;
        let range = blocks_of(sqe, info.blocks)?;
        let len = u32::try_from(range.blocks << info.lba_shift)
            .ok()
            .filter(|&len| len <= max_transfer)
            .ok_or(Status::INVALID_FIELD.dnr())?;
        let (op, after) = if sqe.opcode() == NvmOpcode::READ.0 {
            (Op::Read, After::Respond)
        } else {
            let (fua, after) = force(info, ns, sqe.fua());
            (Op::Write { fua }, after)
        };
        Ok(Self::Rw {
            ns,
            op,
            after,
            range,
            len,
        })
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
                op: Op::Read, len, ..
            } => Transfer::ToHost(*len),
            Self::Rw { len, .. } => Transfer::FromHost(*len),
            Self::Dsm { len, .. } => Transfer::FromHost(*len),
            _ => Transfer::None,
        }
    }
}

/// How FUA of a command that writes comes about: whether its request has it, and what follows.
fn force(info: &NsInfo, ns: NsRef, fua: bool) -> (bool, After) {
    let native = info.caps.fua == Support::Native;
    if fua && !native && info.volatile_cache {
        (false, After::Flush { ns })
    } else {
        (fua && native, After::Respond)
    }
}

/// Bytes that a Dataset Management command transfers. A host may send room for more ranges than
/// the command counts, up to the most there can be: Linux always sends all 4096 bytes.
fn dsm_length(sqe: &Sqe, command: DsmCommand) -> u32 {
    const MAX: usize = DsmCommand::MAX_RANGES * DsmRange::SIZE;
    let offered = usize::try_from(sqe.sgl().length).unwrap_or(MAX);
    #[expect(clippy::cast_possible_truncation, reason = "4096 at most")]
    {
        offered.clamp(command.data_length(), MAX) as u32
    }
}

/// The blocks that a command is about, inside a namespace of `size` blocks.
fn blocks_of(sqe: &Sqe, size: u64) -> Result<LbaRange, Status> {
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
        match *plan {
            IoPlan::Nothing => self.complete(cx, slot, Status::SUCCESS, 0),
            IoPlan::Disconnect => {
                self.complete(cx, slot, Status::SUCCESS, 0);
                self.closing = true;
            }
            IoPlan::Rw {
                ns,
                op,
                after,
                range,
                ..
            } => {
                let command = self.command(slot);
                command.after = after;
                let buf = std::mem::take(&mut command.buf);
                self.submit(cx, slot, ns, op, range, buf);
            }
            IoPlan::Flush(ns) => {
                self.command(slot).after = After::Respond;
                self.submit(cx, slot, ns, Op::Flush, NOWHERE, IoBuf::empty());
            }
            IoPlan::FlushAll => self.flush_all(cx, slot),
            IoPlan::WriteZeroes {
                ns,
                op,
                after,
                range,
            } => {
                self.command(slot).after = after;
                self.submit(cx, slot, ns, op, range, IoBuf::empty());
            }
            IoPlan::EmulateZeroes(after) => {
                self.command(slot).after = after;
                self.continue_after(cx, slot);
            }
            IoPlan::Dsm {
                ns,
                command,
                blocks,
                native,
                ..
            } => self.deallocate(cx, slot, ns, command, blocks, native),
        }
    }

    /// The lane of a namespace, opened if need be.
    fn lane(&self, cx: &mut Cx, ns: NsRef) -> Result<usize, Status> {
        if let Some(lane) = cx.lanes.get(ns.uid) {
            return Ok(lane);
        }
        let Queue::Io(queue) = &self.queue else {
            return Err(Status::INTERNAL_ERROR);
        };
        let seen = queue.view.get(ns.nsid);
        let seen = seen.ok_or(Status::INVALID_NAMESPACE.dnr())?;
        cx.lanes.open(&seen.entry, &cx.poller)
    }

    /// Hands one request to the namespace's lane.
    fn submit(&mut self, cx: &mut Cx, slot: Slot, ns: NsRef, op: Op, range: LbaRange, buf: IoBuf) {
        match self.lane(cx, ns) {
            Ok(lane) => {
                let conn = self.id;
                let route = Route { conn, slot, lane };
                let request = cx.requests.make(op, ns.lba_shift, range, buf, route);
                self.launch(cx, slot, lane, request);
            }
            Err(status) => {
                self.give_buffer(cx, buf);
                self.complete(cx, slot, status, 0);
            }
        }
    }

    fn launch(&mut self, cx: &mut Cx, slot: Slot, lane: usize, request: Request) {
        let command = self.command(slot);
        command.parts += 1;
        command.lane = lane;
        self.in_flight += 1;
        cx.in_flight += 1;
        cx.lanes.submit(lane, request);
    }

    /// Flush with NSID FFFFFFFFh: every namespace of the subsystem (VWC bits 2:1 are 11b).
    fn flush_all(&mut self, cx: &mut Cx, slot: Slot) {
        let Queue::Io(queue) = &self.queue else {
            return;
        };
        let view = Arc::clone(&queue.view);
        let volatile = |seen: &&Seen| {
            let info = &seen.entry.info;
            info.volatile_cache && info.caps.flush == Support::Native
        };
        self.command(slot).after = After::Respond;
        let mut launched = false;
        for seen in view.iter().filter(volatile) {
            let ns = NsRef::of(&seen.entry);
            match self.lane(cx, ns) {
                Ok(lane) => {
                    let conn = self.id;
                    let route = Route { conn, slot, lane };
                    let request =
                        cx.requests
                            .make(Op::Flush, ns.lba_shift, NOWHERE, IoBuf::empty(), route);
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
    fn deallocate(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        ns: NsRef,
        command: DsmCommand,
        blocks: u64,
        native: bool,
    ) {
        let buf = std::mem::take(&mut self.command(slot).buf);
        let range = |r: DsmRange| LbaRange {
            slba: r.slba,
            blocks: r.length.into(),
        };
        let count = command.range_count.into();
        let bad = DsmRange::decode_all(&buf)
            .take(count)
            .find_map(|r| inside(range(r), blocks).err());
        let wanted = native && command.attributes.contains(DsmAttributes::DEALLOCATE);
        match (bad, wanted) {
            (Some(status), _) => self.complete(cx, slot, status, 0),
            (None, false) => self.complete(cx, slot, Status::SUCCESS, 0),
            (None, true) => match self.lane(cx, ns) {
                Ok(lane) => {
                    let conn = self.id;
                    let route = Route { conn, slot, lane };
                    let ranges = DsmRange::decode_all(&buf).take(count).map(range);
                    let request = cx.requests.make_deallocate(ns.lba_shift, ranges, route);
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
        let Command { after, aborted, .. } = *self.command(slot);
        let ns = match after {
            After::Respond => return self.complete(cx, slot, Status::SUCCESS, 0),
            _ if aborted => {
                return self.complete(cx, slot, Status::ABORT_REQUESTED, 0);
            }
            After::Flush { ns } | After::Zeroes { ns, .. } => ns,
        };
        let Queue::Io(queue) = &mut self.queue else {
            return;
        };
        queue.refresh();
        // What is attached under the NSID now may be another namespace.
        let entry = queue.view.get(ns.nsid).map(|seen| &seen.entry);
        let Some(entry) = entry.filter(|entry| NsRef::of(entry) == ns) else {
            return self.complete(cx, slot, Status::INVALID_NAMESPACE.dnr(), 0);
        };
        let (blocks, volatile) = (entry.info.blocks, entry.info.volatile_cache);
        match self.command(slot).after {
            After::Zeroes { rest, fua, .. } if rest.blocks > 0 => match inside(rest, blocks) {
                Ok(rest) => self.write_zeroes(cx, slot, ns, rest, fua),
                Err(status) => self.complete(cx, slot, status, 0),
            },
            After::Zeroes { fua: true, .. } | After::Flush { .. } if volatile => {
                self.command(slot).after = After::Respond;
                self.submit(cx, slot, ns, Op::Flush, NOWHERE, IoBuf::empty());
            }
            _ => self.complete(cx, slot, Status::SUCCESS, 0),
        }
    }

    /// Writes the next zeroes of an emulated Write Zeroes.
    fn write_zeroes(&mut self, cx: &mut Cx, slot: Slot, ns: NsRef, rest: LbaRange, fua: bool) {
        let max = ZEROES.min(cx.core.config.max_transfer.into()) >> ns.lba_shift;
        let now = LbaRange {
            slba: rest.slba,
            blocks: rest.blocks.min(max.max(1)),
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 128 KiB")]
        let len = (now.blocks << ns.lba_shift) as u32;
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
        self.command(slot).after = After::Zeroes { ns, rest, fua };
        self.submit(cx, slot, ns, Op::Write { fua: false }, now, buf);
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
