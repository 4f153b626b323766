//! The admin queue: Connect, properties, events, and the way to the other admin commands.

use super::abort::Asked;
use super::settle::Settling;
use super::{Conn, IoQueue, Queue};
use crate::TargetConfig;
use crate::chatter::debug;
use crate::chatter::limited;
use crate::ctrl::admin::{self, AdminCx, Answer, Transfer};
use crate::ctrl::connect::{self, Association, CONNECT_DATA_LEN, Caller, Outcome, Refusal};
use crate::ctrl::{Controller, Fault, Inquired, NsShared, QueueStats};
use crate::reactor::Cx;
use nvmf_proto::tcp::target::{Done, QueueConfig};
use nvmf_proto::tcp::{Slot, Time};
use nvmf_proto::wire::fabrics::{
    AuthReq, ConnectCommand, ConnectData, ConnectResponse, FabricsType, InvalidParameter,
    PropertyGet, PropertySet,
};
use nvmf_proto::wire::nqn::Escaped;
use nvmf_proto::wire::pdu::ADMIN_IN_CAPSULE_MAX;
use nvmf_proto::wire::{AdminOpcode, Sqe, Status};
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct AdminQueue {
    pub(super) controller: Arc<Controller>,
    pub(super) stats: Arc<QueueStats>,
    /// Asynchronous Event Requests that wait for an event.
    requests: VecDeque<Slot>,
    /// Aborts that wait for another queue.
    pub(super) aborts: Vec<Asked>,
    /// Whether its host was silent on the other queues.
    pub(super) inquired: Option<Inquired>,
    /// The lanes that have requests to flush, for a shutdown, and their namespaces.
    pub(super) flushing: Vec<(usize, Arc<NsShared>)>,
    /// A flush for a shutdown has failed.
    pub(super) unflushed: bool,
    /// Commands that wait until what was written is safe.
    pub(super) settling: Vec<Settling>,
}

impl AdminQueue {
    /// Whether no command has come on any queue before this deadline, which has passed. False also if
    /// that is being found out.
    pub(super) fn was_silent(&mut self, deadline: Time) -> bool {
        if let Some(asked) = self.inquired.as_ref().filter(|i| i.was_about(deadline)) {
            return asked.is_answered();
        }
        self.inquired = self.controller.inquire(deadline);
        self.inquired.is_none()
    }

    /// An Asynchronous Event Request is not answered here any more; false if it is not one.
    pub(super) fn forget_event_request(&mut self, slot: Slot) -> bool {
        let at = self.requests.iter().position(|&of| of == slot);
        at.and_then(|at| self.requests.remove(at)).is_some()
    }
}

/// An admin or Fabrics command that has passed its checks.
#[derive(Debug)]
pub(super) enum AdminPlan {
    /// With the length of its data.
    Connect(ConnectCommand, u32),
    PropertyGet(PropertyGet),
    PropertySet(PropertySet),
    EventRequest,
    KeepAlive,
    Abort,
    /// One that `ctrl::admin` carries out.
    Command(Transfer),
}

impl Conn {
    /// Checks a command on an admin queue, or on a connection that is no queue yet.
    pub(super) fn plan_admin(&self, cx: &Cx, sqe: &Sqe) -> Result<AdminPlan, Fault> {
        let Queue::Admin(queue) = &self.queue else {
            return Ok(plan_connect(&cx.core.config, sqe)?);
        };
        let opcode = AdminOpcode(sqe.opcode());
        if opcode == AdminOpcode::FABRICS {
            return match FabricsType::of(sqe) {
                FabricsType::PROPERTY_GET => Ok(AdminPlan::PropertyGet(PropertyGet::decode(sqe))),
                FabricsType::PROPERTY_SET => Ok(AdminPlan::PropertySet(PropertySet::decode(sqe))),
                FabricsType::CONNECT => Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into()),
                // Disconnect deletes I/O queues only.
                FabricsType::DISCONNECT => Err(Status::INVALID_QUEUE_TYPE.dnr().into()),
                _ => Err(Status::INVALID_OPCODE.dnr().into()),
            };
        }
        if opcode == AdminOpcode::KEEP_ALIVE && queue.controller.is_ready() {
            return Ok(AdminPlan::KeepAlive);
        }
        if !queue.controller.enabled() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into());
        }
        match opcode {
            AdminOpcode::ABORT => Ok(AdminPlan::Abort),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                if queue.requests.len() >= usize::from(queue.controller.limits.event_requests) {
                    return Err(Status::AER_LIMIT_EXCEEDED.dnr().into());
                }
                Ok(AdminPlan::EventRequest)
            }
            _ => Ok(AdminPlan::Command(admin::transfer(
                &self.admin_cx(cx, queue),
                sqe,
            )?)),
        }
    }

    fn admin_cx<'a>(&'a self, cx: &'a Cx, queue: &'a AdminQueue) -> AdminCx<'a> {
        AdminCx {
            core: &cx.core,
            controller: &queue.controller,
        }
    }

    pub(super) fn execute_admin(&mut self, cx: &mut Cx, slot: Slot, plan: &AdminPlan) {
        if let AdminPlan::Connect(command, _) = plan {
            return self.connect(cx, slot, command, None);
        }
        let Queue::Admin(queue) = &mut self.queue else {
            return;
        };
        let controller = &queue.controller;
        let outcome: Result<u64, Fault> = match plan {
            AdminPlan::PropertyGet(get) => controller.property_get(get),
            AdminPlan::PropertySet(set) => {
                let result = controller.property_set(set, cx.now).map(|()| 0);
                if !controller.enabled() {
                    self.drop_event_requests(cx);
                }
                self.flush_for_shutdown(cx);
                self.arm(cx);
                result
            }
            AdminPlan::KeepAlive if controller.kato_ms() == 0 => {
                Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr().into())
            }
            AdminPlan::KeepAlive => Ok(0),
            AdminPlan::Abort => return self.execute_abort(cx, slot),
            AdminPlan::EventRequest => {
                queue.requests.push_back(slot);
                return self.deliver_events(cx);
            }
            AdminPlan::Command(transfer) => return self.admin_command(cx, slot, *transfer),
            AdminPlan::Connect(..) => return,
        };
        match outcome {
            Ok(result) => self.complete(cx, slot, Status::SUCCESS, result),
            Err(fault) => self.fail(cx, slot, fault),
        }
    }

    fn admin_command(&mut self, cx: &mut Cx, slot: Slot, transfer: Transfer) {
        let command = self.command(slot);
        let (sqe, mut buf) = (command.sqe, std::mem::take(&mut command.buf));
        let Queue::Admin(queue) = &self.queue else {
            return;
        };
        let admin_cx = self.admin_cx(cx, queue);
        let outcome = match admin::persistence(&admin_cx, &sqe) {
            Some(change) => return self.set_persistence(cx, slot, change),
            None => admin::execute(&admin_cx, &sqe, &mut buf),
        };
        self.command(slot).buf = buf;
        match outcome {
            Ok(Answer::Settle(settle)) => self.settle(cx, slot, settle),
            Ok(Answer::Done(dw0)) => {
                let data_len = match transfer {
                    Transfer::ToHost(len) => len,
                    Transfer::FromHost(_) | Transfer::None => 0,
                };
                let done = Done {
                    status: Status::SUCCESS,
                    result: dw0.into(),
                    data_len,
                };
                self.respond(cx, slot, done);
            }
            Err(fault) => self.fail(cx, slot, fault),
        }
        // A new Keep Alive Timeout takes effect at once.
        self.arm(cx);
    }

    /// Answers Asynchronous Event Requests while there are events.
    pub(super) fn deliver_events(&mut self, cx: &mut Cx) {
        while let Queue::Admin(queue) = &mut self.queue
            && self.stream.is_some()
            && !queue.requests.is_empty()
            && let Some(event) = queue.controller.next_event()
            && let Some(slot) = queue.requests.pop_front()
        {
            self.complete(cx, slot, Status::SUCCESS, event.dw0().into());
        }
    }

    /// The controller was reset or shut down: no event will come for what is outstanding.
    fn drop_event_requests(&mut self, cx: &mut Cx) {
        while let Queue::Admin(queue) = &mut self.queue
            && let Some(slot) = queue.requests.pop_front()
        {
            self.complete(cx, slot, Status::ABORTED_SQ_DELETION, 0);
        }
    }

    /// Carries out a Connect: of a connection that waited `until` some time, or one that has just
    /// come.
    pub(super) fn connect(
        &mut self,
        cx: &mut Cx,
        slot: Slot,
        command: &ConnectCommand,
        until: Option<Time>,
    ) {
        let Some(data) = self
            .command(slot)
            .buf
            .first_chunk()
            .map(ConnectData::decode)
        else {
            return;
        };
        let caller = Caller {
            conn: self.reference(cx),
            local_ip: self.stream.as_ref().and_then(|stream| stream.local_ip()),
            now: cx.now,
            again: until.is_some(),
        };
        match connect::connect(&cx.core, &self.listener, command, &data, caller) {
            Ok(Outcome::Joined(association)) => self.associate(cx, slot, association),
            Ok(Outcome::Held(controller)) => {
                self.hold_connect(cx, slot, command, controller, until);
            }
            Err(refusal) => {
                limited!(
                    Info,
                    cx.core.chatters.refusal,
                    cx.now,
                    "{}: Connect of {:?} to {:?} queue {} refused: {refusal}",
                    self.peer,
                    Escaped(until_nul(&data.hostnqn)),
                    Escaped(until_nul(&data.subnqn)),
                    command.qid
                );
                self.fail(cx, slot, refusal);
            }
        }
    }

    /// The connection becomes a queue.
    fn associate(&mut self, cx: &mut Cx, slot: Slot, association: Association) {
        let Association {
            controller,
            qid,
            entries,
            flow_control,
            stats,
            seat,
        } = association;
        debug!(
            "{}: queue {qid} of controller {}, {entries} entries",
            self.peer, controller.cntlid
        );
        let in_capsule = if qid == 0 {
            ADMIN_IN_CAPSULE_MAX
        } else {
            controller.limits.in_capsule
        };
        self.tcp.open_queue(&QueueConfig {
            entries,
            flow_control,
            in_capsule,
        });
        self.commands
            .resize_with(self.tcp.slots(), super::Command::default);
        cx.requests.prepare(self.tcp.slots());
        let authreq = AuthReq::empty();
        let response = ConnectResponse {
            cntlid: controller.cntlid,
            authreq,
        };
        self.queue = if qid == 0 {
            Queue::Admin(AdminQueue {
                controller,
                stats,
                requests: VecDeque::new(),
                aborts: Vec::new(),
                inquired: None,
                flushing: Vec::new(),
                unflushed: false,
                settling: Vec::new(),
            })
        } else {
            let view = controller.view();
            Queue::Io(IoQueue {
                controller,
                qid,
                stats,
                view,
                generation: 0,
            })
        };
        if !self.guest.sit_down(seat) {
            return self.close(cx, "others came before its Connect");
        }
        self.complete(cx, slot, Status::SUCCESS, response.dw0().into());
        self.arm(cx);
    }
}

/// What a field of a fixed size says.
fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// The only command that a connection takes before it is a queue.
fn plan_connect(config: &TargetConfig, sqe: &Sqe) -> Result<AdminPlan, Refusal> {
    if sqe.opcode() != AdminOpcode::FABRICS.0 || FabricsType::of(sqe) != FabricsType::CONNECT {
        return Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into());
    }
    let command = ConnectCommand::decode(sqe);
    connect::check_command(config, &command)?;
    let len = sqe.sgl().length;
    if !(CONNECT_DATA_LEN..=ADMIN_IN_CAPSULE_MAX).contains(&len) {
        return Err(InvalidParameter::Command(ConnectCommand::SGL1).into());
    }
    Ok(AdminPlan::Connect(command, len))
}
