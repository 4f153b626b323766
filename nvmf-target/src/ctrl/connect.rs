//! Connect: how a connection becomes a queue of a controller (NVMe Base 2.1 §6.3).

use super::controller::Join;
use super::door::Seat;
use super::{ConnRef, Controller, Core, Kind, Listener, Opening, QueueStats, Subsystem};
use crate::TargetConfig;
use crate::chatter::limited;
use crate::conn::queue_bytes;
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::Status;
use nvmf_proto::wire::fabrics::{
    CNTLID_DYNAMIC, Cattr, ConnectCommand, ConnectData, InvalidParameter,
};
use nvmf_proto::wire::nqn::Nqn;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Bytes of Connect data.
pub(crate) const CONNECT_DATA_LEN: u32 = 1024;

/// What an accepted Connect makes of a connection.
#[derive(Debug)]
pub(crate) struct Association {
    pub(crate) controller: Arc<Controller>,
    pub(crate) qid: u16,
    /// Entries of the submission queue.
    pub(crate) entries: u32,
    /// SQ flow control is in use.
    pub(crate) flow_control: bool,
    pub(crate) stats: Arc<QueueStats>,
    /// Its place among the queues of its host.
    pub(crate) seat: Seat,
}

/// How a Connect ends that is not refused.
#[derive(Debug)]
pub(crate) enum Outcome {
    Joined(Association),
    /// The QID is taken by a queue that ends; the connection is notified when that is gone.
    Held(Arc<Controller>),
}

/// The connection that sends a Connect.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) conn: ConnRef,
    /// The local address by which its host has reached the target.
    pub(crate) local_ip: Option<IpAddr>,
    pub(crate) now: Time,
    /// Its Connect was held before.
    pub(crate) again: bool,
}

/// Why a Connect is refused: the status and dword 0 of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    pub(crate) dw0: u32,
    /// Why the controller is busy, for the log: to hosts all limits are one.
    pub(crate) limit: Option<Limit>,
}

/// What there is too much of for one more queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    ConnectionsPerHost,
    ControllersPerHost,
    DiscoveryControllers,
    QueueBytes,
    QueueBytesPerHost,
    Cntlids,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectionsPerHost => "the limit of connections per host",
            Self::ControllersPerHost => "the limit of controllers per host",
            Self::DiscoveryControllers => "the limit of discovery controllers",
            Self::QueueBytes => "the limit of memory for queues",
            Self::QueueBytesPerHost => "as much memory for queues as is left for others",
            Self::Cntlids => "all CNTLIDs are in use",
        })
    }
}

impl Refusal {
    pub(super) const fn status(status: Status) -> Self {
        Self {
            status,
            dw0: 0,
            limit: None,
        }
    }

    /// NVMe Base 2.1, Fabrics status values of Connect: nothing is wrong with the command, and it
    /// may succeed later.
    pub(super) const fn busy(limit: Limit) -> Self {
        Self {
            limit: Some(limit),
            ..Self::status(Status::CONNECT_CONTROLLER_BUSY)
        }
    }

    /// Connect Invalid Parameters for a field of the Connect data.
    pub(super) const fn data(offset: u16) -> Self {
        Self::invalid(InvalidParameter::Data(offset))
    }

    const fn invalid(parameter: InvalidParameter) -> Self {
        Self {
            status: Status::CONNECT_INVALID_PARAMETERS.dnr(),
            dw0: parameter.dw0(),
            limit: None,
        }
    }
}

/// The reason as the log tells it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (dword 0 {:#x})", self.status, self.dw0)?;
        self.limit.map_or(Ok(()), |limit| write!(f, ": {limit}"))
    }
}

impl From<InvalidParameter> for Refusal {
    fn from(parameter: InvalidParameter) -> Self {
        Self::invalid(parameter)
    }
}

/// The checks that need no Connect data.
pub(crate) fn check_command(
    config: &TargetConfig,
    command: &ConnectCommand,
) -> Result<(), Refusal> {
    if command.recfmt != 0 {
        return Err(Refusal::status(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr()));
    }
    let entries = u32::from(command.sqsize) + 1;
    // SQSIZE is 0's based and 0 is not a queue.
    if entries < 2 || (command.qid == 0 && entries > config.admin_queue_entries.into()) {
        return Err(InvalidParameter::Command(ConnectCommand::SQSIZE).into());
    }
    Ok(())
}

impl Core {
    /// The subsystem of an NQN, if a host may have a controller of it by a listener. Everybody may
    /// ask the discovery service.
    fn admit(
        &self,
        subnqn: &Nqn,
        hostnqn: &Nqn,
        listener: &Arc<Listener>,
    ) -> Result<Arc<Subsystem>, Refusal> {
        let topology = self.topology();
        if subnqn.is_discovery() || *subnqn == self.discovery.nqn {
            let port = topology.port(listener);
            let port = port.ok_or(Refusal::data(ConnectData::SUBNQN));
            return port.map(|_| Arc::clone(&self.discovery));
        }
        topology.admit(subnqn, hostnqn, listener).cloned()
    }
}

/// Carries out a Connect whose command has passed [`check_command`].
pub(crate) fn connect(
    core: &Core,
    listener: &Arc<Listener>,
    command: &ConnectCommand,
    data: &ConnectData,
    caller: Caller,
) -> Result<Outcome, Refusal> {
    let subnqn = data
        .subsystem_nqn()
        .map_err(|_| Refusal::data(ConnectData::SUBNQN))?;
    let hostnqn = data
        .host_nqn()
        .map_err(|_| Refusal::data(ConnectData::HOSTNQN))?;
    let subsystem = core.admit(&subnqn, &hostnqn, listener)?;
    let request = Request {
        core,
        listener,
        command,
        data,
        subnqn,
        hostnqn,
        subsystem,
    };
    if command.qid == 0 {
        request.open(caller)
    } else {
        request.join(caller)
    }
}

/// A Connect of a host that the subsystem admits.
struct Request<'a> {
    core: &'a Core,
    listener: &'a Arc<Listener>,
    command: &'a ConnectCommand,
    data: &'a ConnectData,
    subnqn: Nqn,
    hostnqn: Nqn,
    subsystem: Arc<Subsystem>,
}

impl Request<'_> {
    /// Opens a controller: the admin queue.
    fn open(&self, caller: Caller) -> Result<Outcome, Refusal> {
        // The dynamic controller model: the target chooses the controller.
        if self.data.cntlid != CNTLID_DYNAMIC {
            return Err(Refusal::data(ConnectData::CNTLID));
        }
        let seat = self.seat()?;
        let opening = Opening {
            hostnqn: self.hostnqn.clone(),
            hostid: self.data.hostid,
            kato_ms: self.command.kato,
            listener: Arc::clone(self.listener),
            local_ip: caller.local_ip,
            limits: self.subsystem.limits.by(self.listener),
            most: self.core.config.max_controllers_per_host,
            admin: caller.conn,
            now: caller.now,
        };
        let controller = self.subsystem.open_controller(opening, |host| {
            let admitted = self.core.admit(&self.subnqn, host, self.listener);
            admitted.map(|_| ())
        })?;
        let stats = controller.admin_stats();
        stats.active(caller.now);
        limited!(
            Info,
            self.core.chatters.open,
            caller.now,
            "controller {} of {:?} opened by {:?}",
            controller.cntlid,
            self.subsystem.nqn,
            controller.hostnqn
        );
        Ok(self.joined(controller, stats, seat))
    }

    /// Adds a queue to a controller.
    fn join(&self, caller: Caller) -> Result<Outcome, Refusal> {
        if self.subsystem.kind == Kind::Discovery {
            return Err(InvalidParameter::Command(ConnectCommand::QID).into());
        }
        let controller = self
            .subsystem
            .controller(self.data.cntlid)
            .ok_or(Refusal::data(ConnectData::CNTLID))?;
        // All queues of a controller are at one subsystem port.
        if !Arc::ptr_eq(&controller.listener, self.listener) {
            return Err(Refusal::data(ConnectData::CNTLID));
        }
        // A queue belongs to the host that opened the controller, in name and in identifier.
        if controller.hostid != self.data.hostid {
            return Err(Refusal::data(ConnectData::HOSTID));
        }
        if controller.hostnqn != self.hostnqn {
            return Err(Refusal::data(ConnectData::HOSTNQN));
        }
        if self.entries() > controller.limits.io_queue_entries {
            return Err(InvalidParameter::Command(ConnectCommand::SQSIZE).into());
        }
        let seat = self.seat()?;
        Ok(match controller.add_queue(self.command.qid, caller)? {
            Join::Now(stats) => self.joined(controller, stats, seat),
            Join::Later => Outcome::Held(controller),
        })
    }

    fn entries(&self) -> u32 {
        u32::from(self.command.sqsize) + 1
    }

    fn seat(&self) -> Result<Seat, Refusal> {
        let bytes = queue_bytes(self.command.qid, self.entries());
        match self.subsystem.kind {
            Kind::Discovery => self.core.door.seat_discovery(bytes),
            Kind::Nvm => self.core.door.seat(&self.hostnqn, bytes),
        }
    }

    fn joined(&self, controller: Arc<Controller>, stats: Arc<QueueStats>, seat: Seat) -> Outcome {
        let cattr = self.command.cattr;
        Outcome::Joined(Association {
            controller,
            qid: self.command.qid,
            entries: self.entries(),
            flow_control: !(self.core.config.sq_flow_control_disable
                && cattr.contains(Cattr::DISABLE_SQ_FLOW_CONTROL)),
            stats,
            seat,
        })
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::status(status)
    }
}
