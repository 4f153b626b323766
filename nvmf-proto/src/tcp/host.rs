//! The host's end of an NVMe/TCP connection.
//!
//! [`TcpHost`] believes nothing: every PDU of the controller is checked in full before its first
//! effect. It shares the wire types with [`super::target`] and no checks, so that each end can
//! serve as the other's independent judge.

mod rx;
mod table;
#[cfg(test)]
mod tests;
mod tx;

use super::{Need, Negotiated, Slot, Time, TxList, Violation};
use crate::wire::pdu::{ADMIN_IN_CAPSULE_MAX, PDA_MAX, TermReq};
use crate::wire::{Cqe, Sqe};
use table::Table;

/// The most R2Ts that this host lets a controller have outstanding on one command, 0's based.
pub const MAXR2T_MAX: u32 = 15;

/// What a host asks for on a connection. Values out of range are moved into it by [`TcpHost::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// HPDA, 0 to 31: alignment of the data in C2HData PDUs, dwords, 0's based.
    pub hpda: u8,
    /// MAXR2T, 0's based, 0 to [`MAXR2T_MAX`].
    pub maxr2t: u32,
    /// Entries of the submission queue, 2 to 65,536. One entry of a queue stays empty, so there are
    /// `entries - 1` slots.
    pub entries: u32,
    /// Whether the host keeps SQ flow control. `false`: the Connect on this queue asks to disable
    /// it, and the SQHD of the first completion, that of Connect, tells whether the controller did.
    pub flow_control: bool,
    /// Bytes of data that a command capsule may carry: 8192 on an admin queue, by IOCCSZ on others.
    pub in_capsule: u32,
    /// Nanoseconds from the first [`TcpHost::handle_timeout`] to a valid ICResp.
    pub ic_timeout: u64,
    /// Nanoseconds that the controller has to close the connection after an H2CTermReq.
    pub linger: u64,
}

impl Default for Config {
    /// An admin queue of 32 entries without digests.
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            hpda: 0,
            maxr2t: 0,
            entries: 32,
            flow_control: true,
            in_capsule: ADMIN_IN_CAPSULE_MAX,
            ic_timeout: 10_000_000_000,
            // NVMe/TCP 1.1 §3.5: 30 seconds for the receiver of a TermReq to close.
            linger: 30_000_000_000,
        }
    }
}

/// The data of a command: its direction and length. The bytes stay with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostData {
    /// No data; the SGL descriptor says 0 bytes.
    None,
    /// To the controller.
    Write {
        /// Bytes.
        len: u32,
        /// Put them into the capsule if they fit. Otherwise the controller asks for them by R2T.
        in_capsule: bool,
    },
    /// From the controller.
    Read {
        /// Bytes. A command that succeeds has delivered all of them.
        len: u32,
    },
    /// No data moves and the SGL descriptor goes out as it stands in the SQE: for commands that the
    /// controller is expected to refuse.
    AsIs,
}

/// Progress of a parse step: what was used and what it meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Bytes of the input that are dealt with; the driver drops them.
    pub used: usize,
    /// What happened, if anything did.
    pub event: Option<Event>,
}

/// What the controller did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A valid ICResp came; commands leave from now on.
    Ready(Negotiated),
    /// A command is complete. Its slot is free once nothing of its buffer is left to be sent
    /// ([`TcpHost::is_sending`]).
    Completed {
        /// Which command.
        slot: Slot,
        /// The completion; made up from the SUCCESS flag where the controller sent no response.
        cqe: Cqe,
        /// Bytes of data that were received into the slot's buffer.
        received: u32,
        /// `false`: a data digest was wrong and the data is not to be trusted.
        digest_ok: bool,
    },
    /// The controller sent a C2HTermReq: the connection is over.
    Terminated(TermReq),
    /// A deadline passed: the connection is over.
    Closed(CloseReason),
}

/// Which deadline ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// No ICResp within [`Config::ic_timeout`].
    IcRespTimeout,
    /// The controller did not close within [`Config::linger`] after an H2CTermReq.
    LingerTimeout,
}

/// Where the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for the ICResp.
    Connecting,
    Active,
    /// The controller broke the protocol; waiting for it to close.
    Draining,
    Closed,
}

/// Whether the controller reports its SQ head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowControl {
    Enabled,
    /// Disabling was asked for; the first completion tells.
    Asked,
    Disabled,
}

/// The state machine of a host on one connection, that is of one queue pair.
///
/// No call blocks, allocates (but [`TcpHost::new`]) or panics. See the [module above](super) for
/// the contract.
#[derive(Debug)]
pub struct TcpHost {
    phase: Phase,
    flow_control: FlowControl,
    hpda: u8,
    maxr2t: u32,
    want_header_digest: bool,
    want_data_digest: bool,
    in_capsule: u32,
    entries: u32,
    sqhd: Option<u16>,
    agreed: Option<Negotiated>,
    table: Table,
    rx: rx::State,
    tx: tx::State,
    ic_timeout: u64,
    linger: u64,
    deadline: Option<Time>,
}

impl TcpHost {
    /// A machine whose ICReq is ready to leave. All memory that it ever uses is taken here: about
    /// 150 bytes per entry.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let entries = config.entries.clamp(2, 1 << 16);
        let maxr2t = config.maxr2t.min(MAXR2T_MAX);
        let table = Table::new(entries - 1);
        Self {
            phase: Phase::Connecting,
            flow_control: if config.flow_control {
                FlowControl::Enabled
            } else {
                FlowControl::Asked
            },
            hpda: config.hpda.min(PDA_MAX),
            maxr2t,
            want_header_digest: config.header_digest,
            want_data_digest: config.data_digest,
            in_capsule: config.in_capsule.min(tx::PDU_DATA_MAX),
            entries,
            sqhd: None,
            agreed: None,
            rx: rx::State::new(),
            tx: tx::State::new(table.len(), maxr2t),
            table,
            ic_timeout: config.ic_timeout,
            linger: config.linger,
            deadline: None,
        }
    }

    /// Sets how many bytes of data the capsules of later commands may carry.
    pub fn set_in_capsule(&mut self, bytes: u32) {
        self.in_capsule = bytes.min(tx::PDU_DATA_MAX);
    }

    /// What was agreed on; `None` before the ICResp.
    #[must_use]
    pub const fn negotiated(&self) -> Option<Negotiated> {
        self.agreed
    }

    /// Number of commands that can be outstanding at once; [`Slot::index`] is below it.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.table.len()
    }

    /// Commands that are not complete, or whose data has not left yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.table.len() - self.table.free_count()
    }

    /// The SQ head pointer of the last completion; `None` before it and where SQ flow control is
    /// disabled.
    #[must_use]
    pub const fn sqhd(&self) -> Option<u16> {
        self.sqhd
    }

    /// Whether SQ flow control is disabled, as the first completion on the queue told.
    #[must_use]
    pub fn flow_control_disabled(&self) -> bool {
        self.flow_control == FlowControl::Disabled
    }

    /// Whether bytes of this command's buffer were handed to a [`TxList`] and have not left: the
    /// buffer must stay where it is. A stale slot is not sending.
    #[must_use]
    pub fn is_sending(&self, slot: Slot) -> bool {
        self.table.get(slot).is_some_and(|entry| entry.sending > 0)
    }

    /// The CID of a command that is not complete, for an Abort of it; `None` if the slot is stale.
    #[must_use]
    pub fn cid(&self, slot: Slot) -> Option<u16> {
        self.table.get(slot).map(|entry| entry.sqe.cid())
    }

    /// Queues a command; the caller's SQE keeps everything but CID and, unless `data` is
    /// [`HostData::AsIs`], SGL descriptor 1, which are set here.
    ///
    /// `None` if no slot is free or the connection is over. Commands submitted before
    /// [`Event::Ready`] leave after it.
    pub fn submit(&mut self, sqe: Sqe, data: HostData) -> Option<Slot> {
        if !matches!(self.phase, Phase::Connecting | Phase::Active) {
            return None;
        }
        let slot = self.table.take(sqe, data, self.in_capsule)?;
        self.tx.queue_capsule(slot);
        Some(slot)
    }

    /// Takes note of the end of the stream.
    pub const fn peer_closed(&mut self) {
        self.phase = Phase::Closed;
        self.deadline = None;
    }

    /// Takes note of the time; to be called once at the start, and when [`TcpHost::poll_timeout`]
    /// is due.
    pub fn handle_timeout(&mut self, now: Time) -> Option<Event> {
        let (length, reason) = match self.phase {
            Phase::Connecting => (self.ic_timeout, CloseReason::IcRespTimeout),
            Phase::Draining => (self.linger, CloseReason::LingerTimeout),
            Phase::Active | Phase::Closed => return None,
        };
        if now < *self.deadline.get_or_insert_with(|| now.after(length)) {
            return None;
        }
        self.peer_closed();
        Some(Event::Closed(reason))
    }

    /// When [`TcpHost::handle_timeout`] wants to be called; time zero says now.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.phase {
            Phase::Connecting | Phase::Draining => Some(self.deadline.unwrap_or_default()),
            Phase::Active | Phase::Closed => None,
        }
    }

    /// What the next bytes of the stream are for. Never [`Need::Discard`] nor [`Need::Wait`].
    #[must_use]
    pub fn need(&self) -> Need {
        match self.phase {
            Phase::Connecting | Phase::Active => self.rx.need(&self.agreed.unwrap_or_default()),
            Phase::Draining => Need::Drain,
            Phase::Closed => Need::Closed,
        }
    }

    /// Deals with the header or digest at the front of `staged`, the next bytes of the stream.
    ///
    /// With fewer bytes than it takes, or where [`TcpHost::need`] is not [`Need::Bytes`], nothing
    /// is used.
    ///
    /// # Errors
    ///
    /// The controller broke NVMe/TCP. An H2CTermReq is ready to leave and everything else that was
    /// not handed to a [`TxList`] yet is dropped.
    pub fn parse(&mut self, staged: &[u8]) -> Result<Parsed, Violation> {
        let result = match self.phase {
            Phase::Connecting => self.parse_ic_resp(staged),
            Phase::Active => self.parse_pdu(staged),
            Phase::Draining | Phase::Closed => Ok(Parsed {
                used: 0,
                event: None,
            }),
        };
        result.map_err(|rejected| {
            self.phase = Phase::Draining;
            self.deadline = None;
            self.tx.fail(rejected.violation, staged, rejected.quoted);
            rejected.violation
        })
    }

    /// Reports that the next `n` bytes of the stream stand in the slot's buffer where
    /// [`Need::Payload`] said, and `crc`, continued over them. More than was asked for is the same
    /// as all of it.
    pub fn placed(&mut self, n: u32, crc: Option<u32>) -> Option<Event> {
        if self.phase == Phase::Active {
            self.data_placed(n, crc)
        } else {
            None
        }
    }

    /// Appends PDUs until nothing is left to send or the list is full; whether it appended any.
    pub fn poll_transmit(&mut self, out: &mut TxList) -> bool {
        match self.phase {
            Phase::Connecting => self.emit_ic_req(out),
            Phase::Active => self.emit_queued(out),
            Phase::Draining => self.tx.emit_term(out),
            Phase::Closed => false,
        }
    }

    /// Reports that the next `bytes` bytes of what [`TcpHost::poll_transmit`] appended have left.
    pub fn transmitted(&mut self, bytes: usize) {
        self.tx.transmitted(bytes, &mut self.table);
    }

    /// Whether [`TcpHost::poll_transmit`] would append something to an empty list.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        match self.phase {
            Phase::Connecting => !self.tx.ic_req_sent(),
            Phase::Active => self.tx.has_queued(),
            Phase::Draining => self.tx.term_pending(),
            Phase::Closed => false,
        }
    }
}
