//! The structures that an embedder fills in: any value is refused by an error that names it, and then
//! nothing has happened; or it is accepted, and then hosts can connect and everything works.

mod change;
mod value;

use self::change::Steps;
use self::value::Number;
use crate::list::List;
use crate::rig::{self, TestTarget};
use arbitrary::{Arbitrary, Unstructured};
use nvmf_target::{Error, Role, TargetConfig};
use std::time::Duration;

/// A target's configuration, and changes of the target.
#[derive(Arbitrary, Clone, Debug)]
pub struct Case {
    target: Vec<TargetLie>,
    /// How many of the steps make one change.
    together: [u8; STEPS],
    steps: List<change::Step>,
}

/// A field of [`TargetConfig`] that is not what it is by default.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum TargetLie {
    Reactors(Number),
    BusyPoll(Number),
    BufferBytes(Number),
    MaxTransfer(Number),
    InCapsule(Number),
    Maxh2cdata(Number),
    IoQueueEntries(Number),
    AdminQueueEntries(Number),
    IoQueues(Number),
    QueueBytes(Number),
    MaxConnections(Number),
    MaxConnectionsPerAddress(Option<Number>),
    MaxConnectionsPerHost(Number),
    MaxControllersPerHost(Number),
    MaxUnconnected(Number),
    MaxSilentPerAddress(Number),
    IcreqTimeout(Number),
    ConnectTimeout(Number),
    AssociationTimeout(Number),
    StallTimeout(Number),
    Digests(bool, bool),
    SqFlowControlDisable(bool),
    DiscoveryNqn(value::Name),
    MaxDiscoveryControllers(Number),
}

/// Changes of a run at most: each takes a while to look at.
const STEPS: usize = 6;

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
    let mut config = TargetConfig::default();
    config.reactors = 1;
    config.buffer_bytes = 2 << 20;
    config.max_transfer = 1 << 17;
    for lie in &case.target {
        lie.tell(&mut config);
    }
    // Memory and descriptors of this process are a matter of its system.
    if config.reactors <= 1024 && config.reactors > 4 {
        config.reactors = 4;
    }
    let large = config.buffer_bytes > 1 << 30 || config.io_queue_entries > 4096;
    let rig = match TestTarget::new(config.clone()) {
        Ok(rig) => rig,
        Err(Error::Config(text)) => {
            let named = case.target.iter().any(|lie| text.contains(lie.name()));
            assert!(named, "{text:?} names none of {:?}", case.target);
            return;
        }
        Err(Error::Io { .. }) if large => return,
        Err(error) => panic!("{config:?}: {error}"),
    };
    let listener = rig.listen("base", Role::Io);
    rig::add_verify(rig.target(), 1 << 16).expect("a valid subsystem");
    // An admin queue and an I/O queue are two connections.
    let serves = config.max_connections >= 4
        && config.max_connections_per_host >= 2
        && config.queue_bytes >= TargetConfig::default().queue_bytes;
    let check = |after: &str| {
        if serves && let Err(error) = rig::verify(&listener, 4096) {
            panic!("after {after} with {config:?}: {error}");
        }
    };
    check("the beginning");
    let mut steps = Steps::new(&rig, &listener, serves);
    let mut rest = &case.steps.0[..];
    for count in case.together {
        let (changes, behind) = rest.split_at(rest.len().min(1 + usize::from(count % 4)));
        steps.make(changes);
        rest = behind;
    }
    drop(steps);
    check("the changes");
    rig.finish();
}

impl TargetLie {
    fn tell(self, config: &mut TargetConfig) {
        let nanos = Duration::from_nanos;
        match self {
            Self::Reactors(n) => config.reactors = n.into_usize(),
            Self::BusyPoll(n) => config.busy_poll = nanos(n.get()),
            Self::BufferBytes(n) => config.buffer_bytes = n.into_usize(),
            Self::MaxTransfer(n) => config.max_transfer = n.into_u32(),
            Self::InCapsule(n) => config.in_capsule = n.into_u32(),
            Self::Maxh2cdata(n) => config.maxh2cdata = n.into_u32(),
            Self::IoQueueEntries(n) => config.io_queue_entries = n.into_u32(),
            Self::AdminQueueEntries(n) => config.admin_queue_entries = n.into_u16(),
            Self::IoQueues(n) => config.io_queues = n.into_u16(),
            Self::QueueBytes(n) => config.queue_bytes = n.into_usize(),
            Self::MaxConnections(n) => config.max_connections = n.into_usize(),
            Self::MaxConnectionsPerAddress(n) => {
                config.max_connections_per_address = n.map(Number::into_usize);
            }
            Self::MaxConnectionsPerHost(n) => config.max_connections_per_host = n.into_usize(),
            Self::MaxControllersPerHost(n) => config.max_controllers_per_host = n.into_usize(),
            Self::MaxUnconnected(n) => config.max_unconnected = n.into_usize(),
            Self::MaxSilentPerAddress(n) => {
                config.max_silent_per_address = n.into_usize();
            }
            Self::IcreqTimeout(n) => config.icreq_timeout = nanos(n.get()),
            Self::ConnectTimeout(n) => config.connect_timeout = nanos(n.get()),
            Self::AssociationTimeout(n) => config.association_timeout = nanos(n.get()),
            Self::StallTimeout(n) => config.stall_timeout = nanos(n.get()),
            Self::Digests(header, data) => {
                (config.header_digest, config.data_digest) = (header, data);
            }
            Self::SqFlowControlDisable(disable) => config.sq_flow_control_disable = disable,
            Self::DiscoveryNqn(name) => config.discovery_nqn = Some(name.text()),
            Self::MaxDiscoveryControllers(n) => config.max_discovery_controllers = n.into_usize(),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Reactors(_) => "reactors",
            Self::BusyPoll(_) => "busy_poll",
            Self::BufferBytes(_) => "buffer_bytes",
            Self::MaxTransfer(_) => "max_transfer",
            Self::InCapsule(_) => "in_capsule",
            Self::Maxh2cdata(_) => "maxh2cdata",
            Self::IoQueueEntries(_) => "io_queue_entries",
            Self::AdminQueueEntries(_) => "admin_queue_entries",
            Self::IoQueues(_) => "io_queues",
            Self::QueueBytes(_) => "queue_bytes",
            Self::MaxConnections(_) => "max_connections ",
            Self::MaxConnectionsPerAddress(_) => "max_connections_per_address",
            Self::MaxConnectionsPerHost(_) => "max_connections_per_host",
            Self::MaxControllersPerHost(_) => "max_controllers_per_host",
            Self::MaxUnconnected(_) => "max_unconnected ",
            Self::MaxSilentPerAddress(_) => "max_silent_per_address",
            Self::IcreqTimeout(_) => "icreq_timeout",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::AssociationTimeout(_) => "association_timeout",
            Self::StallTimeout(_) => "stall_timeout",
            Self::Digests(..) => "digest",
            Self::SqFlowControlDisable(_) => "sq_flow_control_disable",
            Self::DiscoveryNqn(_) => "discovery NQN",
            Self::MaxDiscoveryControllers(_) => "max_discovery_controllers",
        }
    }
}
