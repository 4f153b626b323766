//! A target, its storage, its hosts and the network between them, in one thread and in virtual
//! time.

use crate::association::{Association, hostnqn};
use crate::connections::Lost;
use crate::discovery::{Log, blank_logs};
use crate::disk::Disk;
use crate::facts::{History, Namespace, Subsystem};
use crate::model::{Model, Storage};
use crate::network::{Door, SharedLink, SimTransport};
use crate::note;
use crate::plan::{self, Kind, Plan};
use crate::queries::Answers;
use crate::rng::Rng;
use crate::store::Store;
use nvmf_target::ns::{Inline, Namespace as Backend, NsInfo, RamDisk, Support};
use nvmf_target::sim::SimTarget;
use nvmf_target::{NamespaceConfig, Role, SubsystemConfig, TargetConfig};
use std::sync::Arc;

/// When a run begins.
pub const START: u64 = 1_000_000_000;

/// A connection that exists at one of its ends.
pub struct Wire {
    pub link: SharedLink,
    pub association: Option<usize>,
}

pub struct World {
    pub rng: Rng,
    pub plan: Plan,
    pub sim: SimTarget,
    pub model: Model,
    pub doors: Vec<Door>,
    pub backends: Vec<Arc<dyn Backend>>,
    pub associations: Vec<Association>,
    pub wires: Vec<Wire>,
    /// Commands whose hosts will not get an answer, and which may still do something.
    pub lost: Vec<Lost>,
    /// Reactors that had something to do in their last turn, and may have more.
    pub busy: Vec<bool>,
    pub links: usize,
    /// Commands that are still to be drawn.
    pub commands_left: u64,
    /// Faults are over.
    pub calm: bool,
    pub answers: Answers,
    /// By host, if any of them asks for it.
    pub logs: Vec<History<Log>>,
    /// The subsystem is there that nobody uses.
    pub extra: bool,
}

pub type Outcome<T = ()> = Result<T, String>;

impl World {
    /// A target with everything attached, and hosts that have not connected yet.
    pub fn new(plan: Plan, mut rng: Rng) -> Self {
        let sim = target(&plan, START);
        let (backends, storage) = storage(&plan, &mut rng);
        let mut model = Model::new(storage, Vec::new());
        let store = plan.store.map(|fails| Store::new(fails, rng.fork()));
        model.store = store.map(Arc::new);
        model.tight = plan.is_tight();
        model.copies = plan.mix.weights[7] > 0;
        model.max_transfer = plan.max_transfer.into();
        let hosts = if plan.has_discovery() {
            plan.hosts.len()
        } else {
            0
        };
        let logs = blank_logs(hosts);
        let mut world = Self {
            busy: vec![true; plan.reactors],
            commands_left: plan.commands,
            rng,
            sim,
            model,
            doors: Vec::new(),
            backends,
            associations: Vec::new(),
            wires: Vec::new(),
            lost: Vec::new(),
            links: 0,
            calm: false,
            answers: Answers::default(),
            logs,
            extra: false,
            plan,
        };
        world.build();
        world
    }

    fn build(&mut self) {
        let plan = self.plan.clone();
        for (index, subsystem) in plan.subsystems.iter().enumerate() {
            let nqn = format!("nqn.2026-11.org.example:sim{index}");
            self.add_subsystem(nqn.clone(), &subsystem.namespaces);
            if plan.faults.bar > 0 {
                let target = self.sim.target().clone();
                for host in 0..plan.hosts.len() {
                    target.add_host(&nqn, &hostnqn(host)).expect("it is an NQN");
                }
                target.allow_any_host(&nqn, false).expect("it is there");
            }
        }
        for listener in 0..plan.listeners {
            self.add_listener(&format!("door{listener}"));
        }
        for (index, host) in plan.hosts.iter().enumerate() {
            for association in &host.associations {
                self.associations
                    .push(Association::new(index, *association));
            }
        }
    }

    pub fn add_subsystem(&mut self, nqn: String, namespaces: &[(u32, usize, u32)]) {
        self.configure_subsystem(&nqn);
        self.model.subsystems.push(Subsystem::new(nqn));
        self.topology_changed();
        let index = self.model.subsystems.len() - 1;
        for &(nsid, storage, group) in namespaces {
            self.attach(index, nsid, storage, group);
        }
    }

    /// A subsystem without namespaces.
    pub fn configure_subsystem(&self, nqn: &str) {
        let mut config = SubsystemConfig::new(nqn);
        if let Some(store) = &self.model.store {
            config.reservation_store = Some(Arc::<Store>::clone(store));
        }
        let target = self.sim.target().clone();
        target.add_subsystem(config).expect("its name is new");
    }

    /// Attaches a storage under an NSID that is free.
    pub fn attach(&mut self, subsystem: usize, nsid: u32, storage: usize, group: u32) {
        note!("attach storage {} as {} of {}", storage, nsid, subsystem);
        let nqn = self.model.subsystems[subsystem].nqn.clone();
        let mut config = NamespaceConfig::new(nsid);
        config.anagrpid = group;
        let backend = Arc::clone(&self.backends[storage]);
        let target = self.sim.target().clone();
        // From the first moment on, so before the target can know.
        let namespace = self.shown(storage, group);
        self.model.set_namespace(subsystem, nsid, Some(namespace));
        target
            .add_namespace_with(&nqn, config, backend)
            .expect("the NSID is free");
    }

    fn shown(&self, storage: usize, group: u32) -> Namespace {
        let of = &self.model.storage[storage];
        Namespace {
            storage,
            blocks: of.blocks,
            block_size: of.block_size,
            group,
        }
    }

    pub fn add_listener(&mut self, name: &str) {
        let door = self.listen(name);
        self.doors.push(door);
        self.topology_changed();
    }

    pub fn listen(&self, name: &str) -> Door {
        let (transport, door) = SimTransport::new(name);
        let target = self.sim.target().clone();
        target
            .listen_on(Box::new(transport), Role::Io)
            .expect("its name is new");
        door
    }
}

/// The target of a plan, with nothing attached.
pub fn target(plan: &Plan, now: u64) -> SimTarget {
    let mut config = TargetConfig::default();
    config.reactors = plan.reactors;
    config.max_transfer = plan.max_transfer;
    config.buffer_bytes = plan.buffer_bytes;
    config.in_capsule = plan.in_capsule;
    config.maxh2cdata = plan.maxh2cdata;
    plan.limits.apply(&mut config);
    config.busy_poll = std::time::Duration::ZERO;
    SimTarget::new(config, now).expect("the plan is valid")
}

/// The devices of a plan.
fn storage(plan: &Plan, rng: &mut Rng) -> (Vec<Arc<dyn Backend>>, Vec<Storage>) {
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    let mut all = Vec::new();
    for (index, storage) in plan.storage.iter().enumerate() {
        let bytes = storage.blocks * u64::from(storage.block_size);
        let disk = match &storage.kind {
            Kind::Ram => {
                let disk = RamDisk::new(bytes, storage.block_size).expect("a RAM disk");
                backends.push(Arc::new(Inline::new(disk)));
                None
            }
            Kind::Simulated(simulated) => {
                let info = info(storage, simulated);
                let disk = Disk::new(index, info, bytes, simulated.manners, rng.fork());
                backends.push(Arc::new(disk.clone()));
                Some(disk)
            }
        };
        all.push(Storage::new(
            disk,
            storage.block_size.into(),
            storage.blocks,
        ));
    }
    (backends, all)
}

fn info(storage: &plan::Storage, simulated: &plan::Simulated) -> NsInfo {
    let mut info = NsInfo::new(storage.block_size, storage.blocks);
    info.depth = simulated.depth;
    let choose = |bit: u64| {
        if simulated.native & bit != 0 {
            Support::Native
        } else {
            Support::Emulate
        }
    };
    if simulated.volatile {
        info = info.with_volatile_cache();
    }
    info.caps.fua = choose(plan::Simulated::FUA);
    info.caps.write_zeroes = choose(plan::Simulated::WRITE_ZEROES);
    info.caps.compare = choose(plan::Simulated::COMPARE);
    info.caps.compare_and_write = choose(plan::Simulated::COMPARE_AND_WRITE);
    info.caps.verify = choose(plan::Simulated::VERIFY);
    info.caps.deallocate = if simulated.native & plan::Simulated::DEALLOCATE != 0 {
        Support::Native
    } else {
        Support::None
    };
    info
}
