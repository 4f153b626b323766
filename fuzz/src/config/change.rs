//! Changes of a running target, and what hosts see of it.

use super::value::{NAMES, Name, Number, Text};
use crate::device::Claim;
use crate::rig::{self, TestTarget};
use arbitrary::Arbitrary;
use nvmf_host::command as host;
use nvmf_host::{Controller, Data, Error as HostError, Namespace as Disk, Queue};
use nvmf_proto::wire::Sqe;
use nvmf_proto::wire::discovery::{AddressFamily, TransportType};
use nvmf_proto::wire::identify::ControllerType;
use nvmf_target::ns::{NsInfo, Support};
use nvmf_target::transport::{MemConnector, MemTransport, Stream, Transport, TransportAddress};
use nvmf_target::{
    AnaState, Change, Error, ListenerConfig, NamespaceConfig, Referral, Role, SubsystemConfig,
};
use std::fmt::Write as _;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// One change.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Step {
    AddSubsystem(Name, Vec<SubsystemLie>),
    RemoveSubsystem(Name),
    AddNamespace(Name, Number, Vec<NamespaceLie>),
    /// A namespace that there is says something else of itself.
    Claim(u8, Vec<InfoLie>),
    RemoveNamespace(Name, Number),
    SetNamespaceHosts(Name, Number, Option<Vec<Name>>),
    SetAnaGroup(Name, Number, Number),
    SetAnaState(Name, u8, Number, u8),
    AllowAnyHost(Name, bool),
    AddHost(Name, Name),
    RemoveHost(Name, Name),
    AddListener(Vec<ListenerLie>),
    RemoveListener(u8),
    Serve(u8, Name),
    StopServing(u8, Name),
    AddReferral(Option<Name>, Address),
    RemoveReferral(Option<Name>, Address),
}

#[derive(Arbitrary, Clone, Debug)]
pub(super) enum SubsystemLie {
    Serial(Text),
    Model(Text),
    Firmware(Text),
    Vendor(u16, u16, [u8; 3]),
    MaxNamespaces(Number),
    AnaGroups(Number),
    Hosts(Vec<Name>),
    IoQueues(Number),
    IoQueueEntries(Number),
    MaxTransfer(Number),
    EventRequests(Number),
    CntlidMin(Number),
    CntlidMax(Number),
    SubsystemReset,
}

#[derive(Arbitrary, Clone, Debug)]
pub(super) enum NamespaceLie {
    Group(Number),
    Hosts(Vec<Name>),
    Info(InfoLie),
}

#[derive(Arbitrary, Clone, Debug)]
pub(super) enum InfoLie {
    LbaShift(Number),
    Blocks(Number),
    ReadOnly(bool),
    Uuid(u8),
    Nguid(u8),
    Eui64(u8),
    Cap(u8, u8),
    VolatileCache(bool),
    DeallocReadsZero(bool),
    PreferredWrite(Number),
    PreferredDeallocate(Number),
    AtomicWrite(Number),
    AtomicWritePowerFail(Number),
    AtomicBoundary(Number),
    Depth(Number),
}

#[derive(Arbitrary, Clone, Debug)]
pub(super) enum ListenerLie {
    Name(u8),
    PortId(Number),
    Discovery,
    Subsystems(Vec<Name>),
    InCapsule(Number),
    Maxh2cdata(Number),
    Address(Address),
}

/// A transport's address.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Address {
    trtype: u8,
    adrfam: u8,
    traddr: Text,
    long: u8,
    trsvcid: Text,
    wildcard: u8,
}

/// Listeners of the pool.
const LISTENERS: [&str; 4] = ["base", "one", "two", "three"];

fn listener(index: u8) -> String {
    LISTENERS[usize::from(index) % LISTENERS.len()].to_owned()
}

/// Changes in a row.
pub(super) struct Steps<'a> {
    rig: &'a TestTarget,
    base: &'a MemConnector,
    /// The namespaces that were ever made.
    claims: Vec<Arc<Claim>>,
    /// Where there ever was a referral to.
    referrals: Vec<TransportAddress>,
    /// Whether hosts can connect as the target's limits are.
    serves: bool,
    view: String,
}

impl<'a> Steps<'a> {
    pub(super) fn new(rig: &'a TestTarget, base: &'a MemConnector, serves: bool) -> Self {
        let mut steps = Self {
            rig,
            base,
            claims: Vec::new(),
            referrals: Vec::new(),
            serves,
            view: String::new(),
        };
        steps.view = steps.look();
        steps
    }

    /// Makes changes, all of them or none.
    pub(super) fn make(&mut self, steps: &[Step]) {
        let claims: Vec<_> = steps.iter().filter_map(Step::claim).collect();
        for (which, lies) in claims {
            if let Some(claim) = self
                .claims
                .get(usize::from(which) % self.claims.len().max(1))
            {
                claim.change(|info| lies.iter().for_each(|lie| lie.tell(info)));
            }
            self.view = self.look();
        }
        let mut made = Vec::new();
        let changes: Vec<_> = steps
            .iter()
            .filter_map(|step| step.change(&mut made))
            .collect();
        if changes.is_empty() {
            return;
        }
        let single = changes.len() == 1;
        let known = self.referrals.len();
        self.referrals
            .extend(steps.iter().filter_map(|step| match step {
                Step::AddReferral(_, address) => Some(address.address()),
                _ => None,
            }));
        let result = self.rig.target().apply(changes);
        rig::settle();
        let view = self.look();
        match result {
            Ok(_) => {
                self.claims.extend(made);
                self.view = view;
            }
            Err(error) => {
                self.referrals.truncate(known);
                let steps: Vec<_> = steps.iter().filter(|s| s.claim().is_none()).collect();
                let (index, error) = match error {
                    Error::Change { index, source, .. } if !single => (index, *source),
                    error => (0, error),
                };
                steps[index].check_refusal(&error);
                assert_eq!(view, self.view, "{error}, and yet something has changed");
            }
        }
    }

    /// All that management and a host see.
    fn look(&self) -> String {
        let mut view = format!("{:?}\n", self.rig.target().listeners());
        if !self.serves {
            return view;
        }
        self.look_at_discovery(&mut view);
        for name in NAMES {
            let options = rig::options(Some(name), 0);
            match Controller::connect_over(rig::connector(self.base), &options) {
                Ok(mut controller) => {
                    look_at_controller(&mut controller, &mut view);
                    rig::settle();
                }
                Err(error) => {
                    let _ = writeln!(view, "{name}: {error}");
                    assert!(matches!(error, HostError::Status { .. }), "{name}: {error}");
                }
            }
            rig::settle();
        }
        view
    }

    fn look_at_discovery(&self, view: &mut String) {
        let options = rig::options(None, 0);
        let discovery = Controller::connect_over(rig::connector(self.base), &options);
        let mut discovery = discovery.expect("everybody may ask");
        let entries = discovery.discovery_log().expect("a log");
        // What it says is what was configured, whole.
        let listeners = self.rig.target().listeners();
        let places = listeners.iter().map(|info| &info.address);
        let places: Vec<_> = places
            .chain(&self.referrals)
            .map(|at| {
                (
                    at.traddr.trim_end().to_owned(),
                    at.trsvcid.trim_end().to_owned(),
                )
            })
            .collect();
        for entry in entries {
            let name = entry.subsystem_nqn().expect("an NQN");
            let place = (entry.address(), entry.service());
            assert!(places.contains(&place), "{place:?} is none of {places:?}");
            let _ = writeln!(
                view,
                "{name} {:?} {:?} {:?} {}",
                entry.subtype,
                entry.address(),
                entry.service(),
                entry.portid
            );
        }
    }
}

/// Identifies everything and does some I/O.
fn look_at_controller(controller: &mut Controller, view: &mut String) {
    let identity = controller.identity();
    let _ = writeln!(view, "{:?} {}", identity.subnqn, identity.cntrltype.0);
    // The discovery service may have any name.
    if identity.cntrltype == ControllerType::DISCOVERY {
        return;
    }
    let nsids = controller.active_namespaces().expect("a list");
    if nsids.is_empty() {
        return;
    }
    assert!(controller.set_queue_count(1).expect("a valid request") > 0);
    let mut queue = controller
        .io_queue(1)
        .expect("a valid Connect")
        .into_queue();
    let most = controller.max_transfer().unwrap_or(u64::MAX);
    for nsid in nsids {
        let _ = writeln!(view, "{:?}", controller.identify_namespace(nsid));
        let disk = controller.namespace(nsid).expect("an active namespace");
        look_at_disk(&mut queue, &disk, most, view);
    }
}

fn look_at_disk(queue: &mut Queue, disk: &Disk, most: u64, view: &mut String) {
    let block = usize::try_from(disk.block_size).expect("a block size");
    assert!(
        u64::from(disk.block_size) <= most && disk.blocks > 0,
        "{disk:?}"
    );
    let last = disk.blocks - 1;
    let nsid = disk.nsid;
    let zeroes = || vec![0; block];
    let commands: [(&'static str, Sqe, Data); 7] = [
        (
            "Read",
            host::read(nsid, last, 1),
            Data::Read(vec![0xee; block]),
        ),
        ("Write", host::write(nsid, last, 1), Data::Write(zeroes())),
        (
            "Write FUA",
            host::with_fua(host::write(nsid, 0, 1)),
            Data::WriteByR2t(zeroes()),
        ),
        ("Flush", host::flush(nsid), Data::None),
        (
            "Write Zeroes",
            host::write_zeroes(nsid, 0, 1, true),
            Data::None,
        ),
        ("Compare", host::compare(nsid, 0, 1), Data::Write(zeroes())),
        ("Verify", host::verify(nsid, last, 1), Data::None),
    ];
    for (name, sqe, data) in commands {
        let done = queue.execute(name, sqe, data).expect("an answer");
        let _ = writeln!(view, "{nsid} {name}: {}", done.status());
        assert!(
            !done.status().same_code(nvmf_target::Status::INTERNAL_ERROR),
            "{name} of {disk:?}"
        );
        if name == "Read" && done.cqe.status.is_success() {
            assert!(done.buffer.iter().all(|&b| b == 0), "not what is there");
        }
    }
}

impl Step {
    fn claim(&self) -> Option<(u8, &[InfoLie])> {
        match self {
            Self::Claim(which, lies) => Some((*which, lies)),
            _ => None,
        }
    }

    fn change(&self, made: &mut Vec<Arc<Claim>>) -> Option<Change> {
        Some(match self {
            Self::Claim(..) => return None,
            Self::AddSubsystem(name, lies) => {
                let mut config = SubsystemConfig::new(name.text());
                config.max_namespaces = 64;
                lies.iter().for_each(|lie| lie.tell(&mut config));
                Change::AddSubsystem(config)
            }
            Self::RemoveSubsystem(name) => Change::RemoveSubsystem { nqn: name.text() },
            Self::AddNamespace(name, nsid, lies) => {
                let mut config = NamespaceConfig::new(nsid.into_u32());
                let mut info = NsInfo::new(512, 1 << 20);
                for lie in lies {
                    match lie {
                        NamespaceLie::Group(group) => config.anagrpid = group.into_u32(),
                        NamespaceLie::Hosts(names) => config.hosts = Some(texts(names)),
                        NamespaceLie::Info(lie) => lie.tell(&mut info),
                    }
                }
                let claim = Claim::new(info);
                made.push(Arc::clone(&claim));
                Change::AddNamespace {
                    nqn: name.text(),
                    config,
                    namespace: claim,
                }
            }
            Self::RemoveNamespace(name, nsid) => Change::RemoveNamespace {
                nqn: name.text(),
                nsid: nsid.into_u32(),
            },
            Self::SetNamespaceHosts(name, nsid, hosts) => Change::SetNamespaceHosts {
                nqn: name.text(),
                nsid: nsid.into_u32(),
                hosts: hosts.as_deref().map(texts),
            },
            Self::SetAnaGroup(name, nsid, group) => Change::SetAnaGroup {
                nqn: name.text(),
                nsid: nsid.into_u32(),
                anagrpid: group.into_u32(),
            },
            Self::SetAnaState(name, at, group, state) => Change::SetAnaState {
                nqn: name.text(),
                listener: listener(*at),
                anagrpid: group.into_u32(),
                state: match state % 4 {
                    0 => AnaState::Optimized,
                    1 => AnaState::NonOptimized,
                    2 => AnaState::Inaccessible,
                    _ => AnaState::PersistentLoss,
                },
            },
            Self::AllowAnyHost(name, allow) => Change::AllowAnyHost {
                nqn: name.text(),
                allow: *allow,
            },
            Self::AddHost(name, host) => Change::AddHost {
                nqn: name.text(),
                host: host.text(),
            },
            Self::RemoveHost(name, host) => Change::RemoveHost {
                nqn: name.text(),
                host: host.text(),
            },
            Self::AddListener(lies) => Change::AddListener(listener_config(lies)),
            // The first one is how hosts get in.
            Self::RemoveListener(at) => Change::RemoveListener {
                listener: listener(at % 3 + 1),
            },
            Self::Serve(at, name) => Change::Serve {
                listener: listener(*at),
                nqn: name.text(),
            },
            Self::StopServing(at, name) => Change::StopServing {
                listener: listener(*at),
                nqn: name.text(),
            },
            Self::AddReferral(name, address) => Change::AddReferral(address.referral(*name)),
            Self::RemoveReferral(name, address) => Change::RemoveReferral(address.referral(*name)),
        })
    }

    /// An error names what is wrong.
    fn check_refusal(&self, error: &Error) {
        let text = error.to_string();
        match error {
            Error::NotFound(_) => {}
            Error::Config(_) => {
                let words = self.words();
                assert!(
                    words.iter().any(|word| text.contains(word)),
                    "{text:?} names nothing of {self:?}: {words:?}"
                );
            }
            _ => panic!("{self:?}: {error}"),
        }
    }

    /// What may be wrong with it.
    fn words(&self) -> Vec<&'static str> {
        match self {
            Self::AddSubsystem(_, lies) => {
                let fields = lies.iter().map(SubsystemLie::name);
                fields.chain(["subsystem", "NQN"]).collect()
            }
            Self::AddNamespace(_, _, lies) => {
                let fields = lies.iter().flat_map(|lie| match lie {
                    NamespaceLie::Group(_) => vec!["ANA group"],
                    NamespaceLie::Hosts(_) => vec!["host NQN"],
                    NamespaceLie::Info(lie) => lie.names().to_vec(),
                });
                // A UUID is derived from the NSID unless there is one.
                fields.chain(["NSID"]).collect()
            }
            Self::SetNamespaceHosts(..) | Self::AddHost(..) => vec!["host NQN"],
            Self::SetAnaGroup(..) => vec!["ANA group"],
            Self::SetAnaState(..) => vec!["ANA group", "discovery only"],
            Self::AddListener(lies) => {
                let fields = lies.iter().map(ListenerLie::name);
                fields.chain(["PORTID", "listener"]).collect()
            }
            Self::Serve(..) | Self::StopServing(..) => vec!["listener"],
            Self::AddReferral(..) => vec!["referral", "discovery NQN", "TRADDR", "TRSVCID"],
            Self::Claim(..)
            | Self::RemoveSubsystem(_)
            | Self::RemoveNamespace(..)
            | Self::AllowAnyHost(..)
            | Self::RemoveHost(..)
            | Self::RemoveListener(_)
            | Self::RemoveReferral(..) => Vec::new(),
        }
    }
}

fn texts(names: impl AsRef<[Name]>) -> Vec<String> {
    names.as_ref().iter().map(|name| name.text()).collect()
}

impl SubsystemLie {
    fn tell(&self, config: &mut SubsystemConfig) {
        match self {
            Self::Serial(text) => config.serial = text.text(),
            Self::Model(text) => config.model = text.text(),
            Self::Firmware(text) => config.firmware = text.text(),
            Self::Vendor(vendor, subsystem_vendor, oui) => {
                (config.vendor_id, config.subsystem_vendor_id) = (*vendor, *subsystem_vendor);
                config.ieee_oui = *oui;
            }
            Self::MaxNamespaces(n) => config.max_namespaces = n.into_u32(),
            Self::AnaGroups(n) => config.ana_groups = n.into_u32(),
            Self::Hosts(names) => {
                config.allow_any_host = names.len().is_multiple_of(2);
                config.hosts = texts(names);
            }
            Self::IoQueues(n) => config.io_queues = Some(n.into_u16()),
            Self::IoQueueEntries(n) => config.io_queue_entries = Some(n.into_u32()),
            Self::MaxTransfer(n) => config.max_transfer = Some(n.into_u32()),
            Self::EventRequests(n) => config.event_requests = n.into_u16(),
            Self::CntlidMin(n) => config.cntlid_min = n.into_u16(),
            Self::CntlidMax(n) => config.cntlid_max = n.into_u16(),
            Self::SubsystemReset => config.subsystem_reset = true,
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Serial(_) => "serial",
            Self::Model(_) => "model",
            Self::Firmware(_) => "firmware",
            Self::Vendor(..) => "vendor_id",
            Self::MaxNamespaces(_) => "max_namespaces",
            Self::AnaGroups(_) => "ana_groups",
            Self::Hosts(_) => "host NQN",
            Self::IoQueues(_) => "io_queues",
            Self::IoQueueEntries(_) => "io_queue_entries",
            Self::MaxTransfer(_) => "max_transfer",
            Self::EventRequests(_) => "event_requests",
            // The one is measured by the other.
            Self::CntlidMin(_) | Self::CntlidMax(_) => "cntlid_",
            Self::SubsystemReset => "subsystem_reset",
        }
    }
}

impl InfoLie {
    fn tell(&self, info: &mut NsInfo) {
        match self {
            Self::LbaShift(n) => info.lba_shift = n.into_u8(),
            Self::Blocks(n) => info.blocks = n.get(),
            Self::ReadOnly(read_only) => info.read_only = *read_only,
            Self::Uuid(byte) => info.uuid = [*byte; 16],
            Self::Nguid(byte) => info.nguid = [*byte; 16],
            Self::Eui64(byte) => info.eui64 = [*byte; 8],
            Self::Cap(which, support) => {
                let support = match support % 3 {
                    0 => Support::None,
                    1 => Support::Emulate,
                    _ => Support::Native,
                };
                let caps = &mut info.caps;
                let all = [
                    &mut caps.flush,
                    &mut caps.fua,
                    &mut caps.write_zeroes,
                    &mut caps.deallocate,
                    &mut caps.compare,
                    &mut caps.compare_and_write,
                    &mut caps.verify,
                    &mut caps.copy,
                    &mut caps.write_uncorrectable,
                ];
                let which = usize::from(*which) % all.len();
                *all.into_iter().nth(which).expect("one of them") = support;
            }
            Self::VolatileCache(cache) => info.volatile_cache = *cache,
            Self::DeallocReadsZero(zero) => info.dealloc_reads_zero = *zero,
            Self::PreferredWrite(n) => info.preferred_write = n.into_u32(),
            Self::PreferredDeallocate(n) => info.preferred_deallocate = n.into_u32(),
            Self::AtomicWrite(n) => info.atomic_write = n.into_u32(),
            Self::AtomicWritePowerFail(n) => info.atomic_write_power_fail = n.into_u32(),
            Self::AtomicBoundary(n) => info.atomic_boundary = n.into_u32(),
            Self::Depth(n) => info.depth = n.into_u32(),
        }
    }

    const fn names(&self) -> &'static [&'static str] {
        match self {
            // What is counted in blocks depends on their size.
            Self::LbaShift(_) => &["block size", "atomic", "blocks of"],
            Self::Blocks(_) => &["blocks of"],
            Self::Uuid(_) => &["UUID"],
            Self::Cap(..) | Self::VolatileCache(_) => &["volatile cache"],
            Self::PreferredWrite(_) => &["preferred_write"],
            Self::PreferredDeallocate(_) => &["preferred_deallocate"],
            Self::AtomicWrite(_) | Self::AtomicWritePowerFail(_) | Self::AtomicBoundary(_) => {
                &["atomic"]
            }
            Self::Depth(_) => &["depth"],
            Self::ReadOnly(_) | Self::Nguid(_) | Self::Eui64(_) | Self::DeallocReadsZero(_) => &[],
        }
    }
}

impl ListenerLie {
    const fn name(&self) -> &'static str {
        match self {
            Self::Name(_) => "listener",
            Self::PortId(_) => "port_id",
            Self::Discovery => "role",
            Self::Subsystems(_) => "subsystem",
            Self::InCapsule(_) => "in_capsule",
            Self::Maxh2cdata(_) => "maxh2cdata",
            Self::Address(_) => "TR",
        }
    }
}

fn listener_config(lies: &[ListenerLie]) -> ListenerConfig {
    let (transport, _) = MemTransport::new("another").expect("descriptors");
    let address = lies.iter().find_map(|lie| match lie {
        ListenerLie::Address(address) => Some(address.address()),
        _ => None,
    });
    let mut config = match address {
        Some(address) => ListenerConfig::on(Box::new(Elsewhere(transport, address))),
        None => ListenerConfig::on(Box::new(transport)),
    };
    for lie in lies {
        match lie {
            ListenerLie::Name(at) => config.name = Some(listener(*at)),
            ListenerLie::PortId(n) => config.port_id = Some(n.into_u16()),
            ListenerLie::Discovery => config.role = Role::Discovery,
            ListenerLie::Subsystems(names) => config.subsystems = Some(texts(names)),
            ListenerLie::InCapsule(n) => config.in_capsule = Some(n.into_u32()),
            ListenerLie::Maxh2cdata(n) => config.maxh2cdata = Some(n.into_u32()),
            ListenerLie::Address(_) => {}
        }
    }
    config
}

impl Address {
    fn address(&self) -> TransportAddress {
        let traddr = if self.long > 0xe0 {
            self.traddr.long()
        } else {
            self.traddr.text()
        };
        TransportAddress {
            trtype: TransportType(self.trtype),
            adrfam: AddressFamily(self.adrfam),
            traddr,
            trsvcid: self.trsvcid.text(),
            wildcard: self.wildcard > 0xe0,
        }
    }

    fn referral(&self, name: Option<Name>) -> Referral {
        let mut referral = Referral::tcp(([192, 0, 2, 1], 8009).into());
        referral.address = self.address();
        referral.nqn = name.map(Name::text);
        referral
    }
}

/// A transport that says it is somewhere else.
struct Elsewhere(MemTransport, TransportAddress);

impl Transport for Elsewhere {
    fn address(&self) -> TransportAddress {
        self.1.clone()
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.0.readiness()
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        self.0.accept()
    }
}
