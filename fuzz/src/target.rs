//! Commands of every kind, mostly plausible, against a whole target in this process, over its
//! memory transport. The host is the judge: it checks all that the target sends.
//!
//! The target lives as long as the process; after every input it has to be as idle as before.

use arbitrary::{Arbitrary, Unstructured};
use nvmf_host::{
    ConnectOptions, Connector, Controller, Data, Error, Queue, Stream, Token, command,
};
use nvmf_proto::wire::copy::CopyCommand;
use nvmf_proto::wire::dsm::DsmCommand;
use nvmf_proto::wire::fabrics::FabricsType;
use nvmf_proto::wire::feature::{Fid, GetFeatures, HOST_ID_EXTENDED};
use nvmf_proto::wire::log::GetLogPage;
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{AdminOpcode, NvmOpcode, SglDescriptor, Sqe};
use nvmf_target::ns::{Inline, RamDisk};
use nvmf_target::transport::{MemConnector, MemStream, MemTransport, Stream as _};
use nvmf_target::{Role, SubsystemConfig, Target, TargetConfig, TargetStats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// An association and what the host does on it.
#[derive(Arbitrary, Clone, Debug)]
pub struct Case {
    discovery: bool,
    digests: bool,
    no_flow_control: bool,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Op {
    Admin(Command),
    Io(Command),
    /// All commands so far are to be complete before the next one.
    Wait,
    /// Another I/O queue, perhaps one that is there already.
    Connect {
        qid: u8,
    },
    DropIoQueue,
}

#[derive(Arbitrary, Clone, Debug)]
struct Command {
    opcode: Opcode,
    nsid: u8,
    /// CDW10 to CDW15: the low half, and which of them have something in the high half.
    cdw: [u16; 6],
    high: u8,
    data: Length,
    lie: Lie,
}

/// An index into the opcodes that the queue knows, or any opcode at all.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Opcode {
    odds: u8,
    value: u8,
}

/// How much data the command says it has.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Blocks(u8),
    Bytes(u16),
    /// What the command moves.
    AsCommand,
}

/// Rarely the SQE is not what a host would make.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Lie {
    odds: u8,
    flags: u8,
    sgl_kind: u8,
    sgl_len: u16,
}

const NQN: &str = "nqn.2026-11.org.example:fuzz";
const TIMEOUT: Duration = Duration::from_secs(20);

static TARGET: LazyLock<(Target, MemConnector)> =
    LazyLock::new(|| start().expect("the target does not start"));

fn start() -> Result<(Target, MemConnector), Box<dyn std::error::Error + Send + Sync>> {
    let mut config = TargetConfig::default();
    config.reactors = 1;
    config.buffer_bytes = 4 << 20;
    let target = Target::new(config)?;
    target.add_subsystem(SubsystemConfig::new(NQN))?;
    target.add_namespace(NQN, 1, Inline::new(RamDisk::new(1 << 20, 512)?))?;
    target.add_namespace(NQN, 2, Inline::new(RamDisk::new(1 << 20, 4096)?))?;
    let (transport, connector) = MemTransport::new("fuzz")?;
    target.listen_on(Box::new(transport), Role::Io)?;
    Ok((target, connector))
}

/// Runs one input of bytes.
///
/// # Panics
///
/// On a finding.
pub fn run_bytes(data: &[u8]) {
    if let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(data)) {
        run(&case);
    }
}

/// Runs one input.
///
/// # Panics
///
/// On a finding.
pub fn run(case: &Case) {
    let (target, connector) = &*TARGET;
    let mut session = Session::connect(case, connector);
    for op in &case.ops {
        session.apply(op);
    }
    session.wait_for_all();
    drop(session);
    let end = Instant::now() + TIMEOUT;
    while target.stats() != TargetStats::default() {
        assert!(Instant::now() < end, "left behind: {:?}", target.stats());
        std::thread::yield_now();
    }
}

struct Session {
    controller: Controller,
    io: Option<Queue>,
    /// Commands whose completions are owed, by queue.
    admin_owed: Vec<Token>,
    io_owed: Vec<Token>,
    /// The last I/O command is a first half of a fused operation.
    half: bool,
    /// The host has lied, so the target may have misunderstood it.
    lied: bool,
}

impl Session {
    fn connect(case: &Case, connector: &MemConnector) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut options = if case.discovery {
            ConnectOptions::discovery(address)
        } else {
            ConnectOptions::new(address, NQN).expect("an NQN")
        };
        options.io_entries = 32;
        options.header_digest = case.digests;
        options.data_digest = case.digests;
        options.disable_sq_flow_control = case.no_flow_control;
        options.timeout = TIMEOUT;
        let connector = connector.clone();
        let open: Connector =
            Box::new(move || Ok(Box::new(HostStream(connector.connect()?)) as Box<dyn Stream>));
        let mut controller = Controller::connect_over(open, &options).expect("a valid host");
        let io = if case.discovery {
            None
        } else {
            assert_eq!(controller.set_queue_count(2).expect("a valid request"), 2);
            Some(
                controller
                    .io_queue(1)
                    .expect("a valid Connect")
                    .into_queue(),
            )
        };
        Self {
            controller,
            io,
            admin_owed: Vec::new(),
            io_owed: Vec::new(),
            half: false,
            lied: false,
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Admin(command) => self.submit(command, true),
            Op::Io(command) => self.submit(command, false),
            Op::Wait => self.wait_for_all(),
            Op::Connect { qid } => match self.controller.io_queue(u16::from(qid % 4)) {
                // The queue that it replaces is dropped, whatever it has outstanding.
                Ok(queue) => {
                    self.io_owed.clear();
                    self.io = Some(queue.into_queue());
                }
                Err(error) => self.judge(&error),
            },
            Op::DropIoQueue => {
                self.io_owed.clear();
                self.io = None;
            }
        }
    }

    fn submit(&mut self, command: &Command, admin: bool) {
        let sqe = command.sqe(admin);
        let (data, honest) = command.data(&sqe, admin);
        self.lied |= !honest;
        let queue = if admin {
            Some(self.controller.admin_queue())
        } else {
            self.io.as_mut()
        };
        let Some(queue) = queue else { return };
        match queue.submit(sqe, data) {
            Ok(token) => {
                if !admin {
                    self.half = sqe.fuse() == Fuse::First;
                }
                // Asynchronous Event Requests are answered when there is something to tell.
                let waits = admin && sqe.opcode() == AdminOpcode::ASYNC_EVENT_REQUEST.0;
                let owed = if admin {
                    &mut self.admin_owed
                } else {
                    &mut self.io_owed
                };
                if !waits {
                    owed.push(token);
                }
                let flushed = queue.flush();
                if let Err(error) = flushed {
                    self.judge(&error);
                }
            }
            Err(refused) => {
                if !matches!(refused.error, Error::QueueFull) {
                    self.judge(&refused.error);
                }
            }
        }
    }

    fn wait_for_all(&mut self) {
        for token in std::mem::take(&mut self.admin_owed) {
            if let Err(error) = self
                .controller
                .admin_queue()
                .wait_for("admin command", token)
            {
                self.judge(&error);
                break;
            }
        }
        self.follow_half();
        for token in std::mem::take(&mut self.io_owed) {
            let Some(queue) = &mut self.io else { break };
            if let Err(error) = queue.wait_for("I/O command", token) {
                self.judge(&error);
                self.io = None;
                break;
            }
        }
    }

    /// A first half of a fused operation is answered when another command has come behind it.
    fn follow_half(&mut self) {
        let Some(queue) = self.io.as_mut().filter(|_| self.half) else {
            return;
        };
        self.half = false;
        match queue.submit(command::flush(1), Data::None) {
            Ok(token) => self.io_owed.push(token),
            Err(refused) if matches!(refused.error, Error::QueueFull) => {
                self.io_owed.clear();
                self.io = None;
            }
            Err(refused) => self.judge(&refused.error),
        }
    }

    /// Connections may end and commands fail, but a host that keeps to the rules is not accused of
    /// anything, is not lied to and does not wait for ever.
    fn judge(&self, error: &Error) {
        let fine = match error {
            Error::Status { .. } | Error::Closed | Error::Io { .. } => true,
            Error::Violation(_) | Error::Terminated(_) => self.lied,
            _ => false,
        };
        assert!(fine, "{error}");
    }
}

impl Command {
    fn sqe(&self, admin: bool) -> Sqe {
        const FABRICS: u8 = 0x7f;
        let known: &[u8] = if admin {
            &[
                AdminOpcode::GET_LOG_PAGE.0,
                AdminOpcode::IDENTIFY.0,
                AdminOpcode::ABORT.0,
                AdminOpcode::SET_FEATURES.0,
                AdminOpcode::GET_FEATURES.0,
                AdminOpcode::ASYNC_EVENT_REQUEST.0,
                AdminOpcode::KEEP_ALIVE.0,
                FABRICS,
            ]
        } else {
            &[
                NvmOpcode::FLUSH.0,
                NvmOpcode::WRITE.0,
                NvmOpcode::READ.0,
                NvmOpcode::WRITE_ZEROES.0,
                NvmOpcode::DATASET_MANAGEMENT.0,
                NvmOpcode::COMPARE.0,
                NvmOpcode::VERIFY.0,
                NvmOpcode::COPY.0,
                NvmOpcode::WRITE_UNCORRECTABLE.0,
                NvmOpcode::WRITE.0,
                NvmOpcode::READ.0,
                FABRICS,
            ]
        };
        let opcode = if self.opcode.odds >= 0xe0 {
            self.opcode.value
        } else {
            known[usize::from(self.opcode.value) % known.len()]
        };
        let mut sqe = Sqe::with_opcode(opcode);
        sqe.set_nsid(match self.nsid {
            nsid @ 0..0xf0 => u32::from(nsid % 10),
            _ => u32::MAX,
        });
        let mut bit = 0;
        sqe.set_cdw10_15(self.cdw.map(|low| {
            bit += 1;
            // CDW11 is the upper half of an SLBA: mostly 0.
            let high = self.high >> bit & 1 == 1 && self.high > 0xc0;
            u32::from(low) | if high { u32::from(low) << 16 } else { 0 }
        }));
        if self.lie.odds >= 0xf0 {
            sqe.0[1] = self.lie.flags;
        }
        // Half a fused operation waits for the other one.
        if (0xe0..0xf0).contains(&self.lie.odds) && !admin {
            sqe.0[1] |= 1 + (self.lie.flags & 1);
        }
        if self.lie.odds >= 0xf8 {
            sqe.set_sgl(SglDescriptor {
                address: self.lie.flags.into(),
                length: self.lie.sgl_len.into(),
                kind: self.lie.sgl_kind,
            });
        }
        sqe
    }

    /// The data of the command, and whether it is what its opcode says.
    fn data(&self, sqe: &Sqe, admin: bool) -> (Data, bool) {
        if self.lie.odds >= 0xf8 {
            return (Data::AsIs, false);
        }
        let exact = exact_length(sqe, admin);
        let len = match self.data {
            Length::Blocks(blocks) => usize::from(blocks % 64) * 512,
            Length::Bytes(bytes) => usize::from(bytes),
            Length::AsCommand => exact.min(1 << 17),
        };
        let fabrics = sqe.opcode() == 0x7f;
        // Bits 1:0 of the opcode (of FCTYPE in Fabrics commands) are the direction of the data.
        let direction = if fabrics {
            FabricsType::of(sqe).0 & 3
        } else {
            sqe.opcode() & 3
        };
        match direction {
            0 => (Data::None, true),
            // This host calls a success with less data than it made room for a violation.
            1 => (Data::Write(vec![0x77; len]), len == exact),
            2 => (Data::Read(vec![0; len]), len == exact),
            _ => (Data::Read(vec![0; len]), false),
        }
    }
}

/// How many bytes a good command moves.
fn exact_length(sqe: &Sqe, admin: bool) -> usize {
    if !admin {
        return match NvmOpcode(sqe.opcode()) {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => {
                let block = if sqe.nsid() == 2 { 4096 } else { 512 };
                sqe.block_count() as usize * block
            }
            NvmOpcode::DATASET_MANAGEMENT => DsmCommand::decode(sqe).data_length(),
            NvmOpcode::COPY => CopyCommand::decode(sqe).data_length(),
            _ => 0,
        };
    }
    match AdminOpcode(sqe.opcode()) {
        AdminOpcode::IDENTIFY => 4096,
        AdminOpcode::GET_LOG_PAGE => {
            usize::try_from(GetLogPage::decode(sqe).length()).unwrap_or(usize::MAX)
        }
        AdminOpcode::GET_FEATURES if GetFeatures::decode(sqe).fid == Fid::HOST_IDENTIFIER => {
            if GetFeatures::decode(sqe).cdw11 & HOST_ID_EXTENDED == 0 {
                8
            } else {
                16
            }
        }
        _ => 0,
    }
}

/// The host's end of an in-memory connection.
#[derive(Debug)]
struct HostStream(MemStream);

impl Stream for HostStream {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.readv(bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.writev(bufs)
    }

    fn wait(&mut self, _or_write: bool, timeout: Duration) -> io::Result<()> {
        // Readable whenever either could go on.
        let fd = PollFd::from_borrowed_fd(self.0.readiness(), PollFlags::IN);
        poll(&mut [fd], Timespec::try_from(timeout).ok().as_ref())?;
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.readiness())
    }
}
