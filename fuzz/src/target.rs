//! Commands of every kind, mostly plausible, of two hosts against a whole target in this thread,
//! over its memory transport. The hosts are the judges: they check all that the target sends.
//!
//! After every input the target has to be as idle as before, and to serve a new host.

mod command;
mod raw;
mod world;

use self::command::Command;
use self::world::{Manage, NQN, World};
use crate::list::List;
use crate::rig::{self, VERIFY_NQN};
use arbitrary::{Arbitrary, Unstructured};
use nvmf_host::command as host;
use nvmf_host::{Completion, Controller, Data, Error, Queue, Token};
use nvmf_proto::wire::sqe::Fuse;
use nvmf_proto::wire::{AdminOpcode, NvmOpcode, Sqe, Status};
use nvmf_target::transport::MemConnector;

/// What two hosts do, and what happens meanwhile.
#[derive(Arbitrary, Clone, Debug)]
pub struct Case {
    discovery: bool,
    digests: bool,
    no_flow_control: bool,
    /// Few buffers.
    tight: bool,
    ops: List<Op>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Op {
    Admin(Command),
    Io(Command),
    /// A Compare and a Write that are one operation, unless one of them is changed.
    Fused {
        compare: Command,
        write: Command,
        same: u8,
    },
    /// All commands so far are to be complete before the next one.
    Wait,
    /// Another I/O queue, perhaps one that is there already.
    Connect {
        qid: u8,
    },
    DropIoQueue,
    /// A queue whose commands choose CIDs and data pointers themselves.
    Raw {
        commands: Vec<Command>,
        cids: u8,
    },
    /// The next operations are the other host's.
    Turn,
    /// So many requests that the slow namespace holds are carried out; with 0 one fails.
    Release(u8),
    /// Tenths of a second.
    Pass(u8),
    Manage(Manage),
}

/// What hosts write. Nothing else is ever to be read but zeroes.
const WRITTEN: u8 = 0x77;
/// The most data of a command.
const DATA_MAX: usize = 1 << 17;

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
    let world = World::new(case.tight).expect("a valid configuration");
    let (mut session, mut other) = (Session::connect(case, &world.connector, 0), None);
    for op in &case.ops.0 {
        if let Op::Turn = op {
            let next = other
                .take()
                .unwrap_or_else(|| Session::connect(case, &world.connector, 1));
            other = Some(std::mem::replace(&mut session, next));
        } else {
            session.apply(op, &world);
        }
    }
    for mut session in [Some(session), other].into_iter().flatten() {
        session.wait_for_all();
    }
    if let Err(error) = rig::verify(&world.connector, 1024) {
        panic!("{VERIFY_NQN}: {error}");
    }
    world.rig.finish();
}

/// A command whose completion is owed.
struct Owed {
    token: Token,
    opcode: u8,
}

struct Session {
    controller: Controller,
    io: Option<Queue>,
    admin_owed: Vec<Owed>,
    io_owed: Vec<Owed>,
    /// The last I/O command is a first half of a fused operation.
    half: bool,
    /// The host has lied, so the target may have misunderstood it.
    lied: bool,
}

impl Session {
    fn connect(case: &Case, connector: &MemConnector, host: u8) -> Self {
        let subsystem = (!case.discovery).then_some(NQN);
        let mut options = rig::options(subsystem, host);
        options.io_entries = 32;
        options.header_digest = case.digests;
        options.data_digest = case.digests;
        options.disable_sq_flow_control = case.no_flow_control;
        let mut controller =
            Controller::connect_over(rig::connector(connector), &options).expect("a valid host");
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

    fn apply(&mut self, op: &Op, world: &World) {
        match op {
            Op::Admin(command) => self.submit(command.sqe(true), command, true),
            Op::Io(command) => self.submit(command.sqe(false), command, false),
            Op::Fused {
                compare,
                write,
                same,
            } => self.submit_fused(compare, write, *same),
            Op::Wait => self.wait_for_all(),
            Op::Connect { qid } => match self.controller.io_queue(u16::from(qid % 4)) {
                // The queue that it replaces is dropped, whatever it has outstanding.
                Ok(queue) => {
                    self.io_owed.clear();
                    self.half = false;
                    self.io = Some(queue.into_queue());
                }
                Err(error) => self.judge(&error),
            },
            Op::DropIoQueue => {
                self.io_owed.clear();
                self.half = false;
                self.io = None;
            }
            Op::Raw { commands, cids } => {
                raw::run(&self.controller, &world.connector, commands, *cids);
            }
            Op::Turn => {}
            Op::Release(0) => world.rig.slow().fail(Status::INTERNAL_ERROR),
            Op::Release(most) => {
                world.rig.slow().release(usize::from(*most));
            }
            Op::Pass(tenths) => world.rig.pass(u64::from(*tenths) * 100_000_000),
            Op::Manage(change) => {
                rig::settle();
                // What a mutation asks for need not be there.
                let _ = world.manage(change);
            }
        }
    }

    fn submit_fused(&mut self, compare: &Command, write: &Command, same: u8) {
        let mut first = compare.sqe(false);
        let mut second = if same < 0xe0 { first } else { write.sqe(false) };
        first.0[0] = NvmOpcode::COMPARE.0;
        second.0[0] = NvmOpcode::WRITE.0;
        first.0[1] = first.0[1] & !3 | 1;
        second.0[1] = second.0[1] & !3 | 2;
        self.submit(first, compare, false);
        self.submit(second, if same < 0xe0 { compare } else { write }, false);
    }

    fn submit(&mut self, sqe: Sqe, command: &Command, admin: bool) {
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
                    let opcode = sqe.opcode();
                    owed.push(Owed { token, opcode });
                }
                let flushed = queue.flush();
                if let Err(error) = flushed {
                    self.judge(&error);
                }
                rig::settle();
            }
            Err(refused) => {
                if !matches!(refused.error, Error::QueueFull) {
                    self.judge(&refused.error);
                }
            }
        }
    }

    fn wait_for_all(&mut self) {
        for owed in std::mem::take(&mut self.admin_owed) {
            let admin = self.controller.admin_queue();
            if let Err(error) = admin.wait_for("admin command", owed.token) {
                self.judge(&error);
                break;
            }
        }
        self.follow_half();
        for owed in std::mem::take(&mut self.io_owed) {
            let Some(queue) = &mut self.io else { break };
            match queue.wait_for("I/O command", owed.token) {
                Ok(done) => check_data(&done, owed.opcode),
                Err(error) => {
                    self.judge(&error);
                    self.io = None;
                    break;
                }
            }
        }
    }

    /// A first half of a fused operation is answered when another command has come behind it.
    fn follow_half(&mut self) {
        let Some(queue) = self.io.as_mut().filter(|_| self.half) else {
            return;
        };
        self.half = false;
        match queue.submit(host::flush(1), Data::None) {
            Ok(token) => {
                let opcode = NvmOpcode::FLUSH.0;
                self.io_owed.push(Owed { token, opcode });
            }
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
            error if rig::is_stuck(error) => false,
            Error::Status { .. } | Error::Closed | Error::Io { .. } => true,
            Error::Violation(_) | Error::Terminated(_) => self.lied,
            _ => false,
        };
        assert!(fine, "{error}");
    }
}

/// Nothing but what hosts have written is ever read.
fn check_data(done: &Completion, opcode: u8) {
    if opcode == NvmOpcode::READ.0 && done.cqe.status.is_success() {
        let read = &done.buffer[..done.received as usize];
        assert!(
            read.iter().all(|&b| b == 0 || b == WRITTEN),
            "somebody else's bytes"
        );
    }
}
