//! What is drawn from a seed before anything happens: the target, its storage, the hosts, and how
//! often which fault strikes.

use crate::disk::Manners;
use crate::limits::Limits;
use crate::rng::Rng;

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub reactors: usize,
    pub max_transfer: u32,
    pub buffer_bytes: usize,
    pub in_capsule: u32,
    pub maxh2cdata: u32,
    pub listeners: usize,
    pub storage: Vec<Storage>,
    pub subsystems: Vec<Subsystem>,
    pub hosts: Vec<Host>,
    /// Commands in all, besides those that keep associations going.
    pub commands: u64,
    /// Nanoseconds that a step takes at most.
    pub tempo: u64,
    pub limits: Limits,
    pub faults: Faults,
    pub mix: Mix,
    /// Once in so many commands a host asks its controller something, 0 for never.
    pub queries: u64,
    /// There is a reservation store, which fails once in so many calls, 0 for never.
    pub store: Option<u64>,
    /// The target is shut down while commands are under way.
    pub cut_short: bool,
}

/// A device, which may be attached under several names.
#[derive(Clone, Debug)]
pub struct Storage {
    pub block_size: u32,
    pub blocks: u64,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    /// [`crate::disk::Disk`].
    Simulated(Box<Simulated>),
    /// The product's RAM disk, called on the reactor.
    Ram,
}

#[derive(Clone, Debug)]
pub struct Simulated {
    pub manners: Manners,
    /// What it does itself, bit by bit.
    pub native: u64,
    pub volatile: bool,
    pub depth: u32,
}

#[derive(Clone, Debug)]
pub struct Subsystem {
    /// NSID, storage, ANA group.
    pub namespaces: Vec<(u32, usize, u32)>,
}

#[derive(Clone, Debug)]
pub struct Host {
    pub associations: Vec<Association>,
}

#[derive(Clone, Copy, Debug)]
pub struct Association {
    /// With a discovery controller, whatever the subsystem.
    pub discovery: bool,
    pub subsystem: usize,
    pub listener: usize,
    pub queues: u16,
    pub entries: u32,
    pub depth: usize,
    pub flow_control: bool,
    pub header_digest: bool,
    pub data_digest: bool,
    pub hpda: u8,
    pub maxr2t: u32,
    /// Seconds, 0 for none.
    pub kato: u64,
    pub events: usize,
    /// Bytes on the way to the host at which the target has to wait.
    pub window: usize,
    pub harsh: bool,
    /// Once in so many writes of the target only a part is taken.
    pub cut: u64,
    /// Once in so many deliveries a bit flips: only with both digests.
    pub flips: u64,
    /// Sends no Keep Alive.
    pub silent: bool,
}

/// Once in so many steps, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub reset: u64,
    pub half_close: u64,
    pub stall: u64,
    pub deaf: u64,
    pub mute: u64,
    pub resize: u64,
    pub remove: u64,
    pub ana: u64,
    pub abort: u64,
    pub leave: u64,
    /// A host loses or gets back its right to use a subsystem.
    pub bar: u64,
    /// A listener goes or comes.
    pub listener: u64,
    /// A subsystem that nobody uses comes or goes.
    pub subsystem: u64,
}

/// How likely the I/O commands are.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Read, Write, Write Zeroes, Compare, Verify, Flush, Deallocate, Copy, Compare and Write,
    /// reservations, Write Uncorrectable.
    pub weights: [u64; 11],
    /// Blocks of one command, at most.
    pub span: u64,
    /// Blocks that commands crowd into.
    pub hot: u64,
}

impl Plan {
    pub fn draw(rng: &mut Rng) -> Self {
        let reactors = rng.range(1, 3) as usize;
        let max_transfer = rng.pick(&[8192, 16384, 65536, 131_072]);
        let in_capsule = rng.pick(&[0, 4096, 8192]);
        let share = max_transfer as usize * rng.pick(&[1, 2, 4, 64]);
        let listeners = rng.range(1, 3) as usize;
        let storage: Vec<_> = (0..rng.range(1, 4)).map(|_| Storage::draw(rng)).collect();
        let subsystems: Vec<_> = (0..rng.range(1, 2))
            .map(|index| Subsystem::draw(rng, index, storage.len()))
            .collect();
        let gentle = rng.once_in(4);
        let hosts = (0..rng.range(1, 4))
            .map(|_| Host::draw(rng, subsystems.len(), listeners, gentle))
            .collect();
        let mut plan = Self {
            reactors,
            max_transfer,
            buffer_bytes: share * reactors,
            in_capsule,
            maxh2cdata: rng.pick(&[4096, 8192, 131_072]),
            listeners,
            storage,
            subsystems,
            hosts,
            commands: rng.range(10, 150),
            tempo: rng.pick(&[2_000, 50_000, 1_000_000]),
            faults: if gentle {
                Faults::default()
            } else {
                Faults::draw(rng)
            },
            mix: Mix::draw(rng),
            queries: rng.pick(&[0, 3, 20]),
            limits: if rng.once_in(5) {
                Limits::draw(rng)
            } else {
                Limits::default()
            },
            store: rng.once_in(3).then(|| rng.pick(&[0, 0, 2, 10])),
            cut_short: rng.once_in(8),
        };
        if rng.once_in(8) {
            plan.crowd(rng);
        }
        plan
    }

    /// Everybody compares and writes the same one or two blocks of a device that leaves comparing
    /// to the target.
    fn crowd(&mut self, rng: &mut Rng) {
        self.storage.truncate(1);
        let device = &mut self.storage[0];
        let mut simulated = Simulated::draw(rng);
        simulated.native &= !(Simulated::COMPARE | Simulated::COMPARE_AND_WRITE);
        simulated.manners.prompt = 0;
        simulated.depth = rng.pick(&[2, 64]);
        device.kind = Kind::Simulated(Box::new(simulated));
        for subsystem in &mut self.subsystems {
            subsystem.namespaces = vec![(1, 0, 1)];
        }
        for association in self.hosts.iter_mut().flat_map(|h| &mut h.associations) {
            association.entries = association.entries.max(8);
            association.depth = association.depth.max(4);
        }
        let mut weights = [0; 11];
        (weights[0], weights[1], weights[8]) = (6, 4, 6);
        self.mix = Mix {
            weights,
            span: 1,
            hot: rng.range(1, 2),
        };
    }

    /// Whether a host asks for the discovery log.
    pub fn has_discovery(&self) -> bool {
        let mut associations = self.hosts.iter().flat_map(|host| &host.associations);
        associations.any(|association| association.discovery)
    }

    /// Whether there is a disk that may not answer.
    pub fn has_hangs(&self) -> bool {
        let hangs = |storage: &Storage| match &storage.kind {
            Kind::Simulated(simulated) => simulated.manners.hangs > 0,
            Kind::Ram => false,
        };
        self.storage.iter().any(hangs)
    }

    /// Whether commands may have to wait for buffers.
    pub const fn is_tight(&self) -> bool {
        self.buffer_bytes / self.reactors < 4 << 20
    }
}

impl Storage {
    fn draw(rng: &mut Rng) -> Self {
        let block_size = rng.pick(&[512, 512, 4096, 1024]);
        let kind = if rng.once_in(3) {
            Kind::Ram
        } else {
            Kind::Simulated(Box::new(Simulated::draw(rng)))
        };
        Self {
            block_size,
            blocks: rng.range(16, 64) * 4096 / u64::from(block_size),
            kind,
        }
    }
}

impl Simulated {
    /// Bits of `native`.
    pub const FUA: u64 = 1;
    pub const WRITE_ZEROES: u64 = 1 << 1;
    pub const COMPARE: u64 = 1 << 2;
    pub const COMPARE_AND_WRITE: u64 = 1 << 3;
    pub const VERIFY: u64 = 1 << 4;
    pub const DEALLOCATE: u64 = 1 << 5;

    fn draw(rng: &mut Rng) -> Self {
        let mut odds = |of: &[u64]| rng.pick(of);
        let manners = Manners {
            prompt: odds(&[0, 1, 2, 3]),
            early: odds(&[0, 2, 4]),
            fails: odds(&[0, 0, 8, 30]),
            tears: odds(&[0, 0, 10, 30]),
            drops: odds(&[0, 0, 0, 30]),
            hangs: odds(&[0, 0, 0, 20]),
            closed: odds(&[0, 0, 0, 3]),
            abort: odds(&[0, 1, 2]),
        };
        Self {
            manners,
            native: rng.next(),
            volatile: rng.once_in(2),
            depth: rng.pick(&[1, 2, 64, 1024]),
        }
    }
}

impl Subsystem {
    fn draw(rng: &mut Rng, index: u64, storage: usize) -> Self {
        // Two subsystems may show the same storage.
        let namespaces = (0..storage)
            .filter(|_| !rng.once_in(3))
            .map(|which| (1 + which as u32 * 2 + index as u32, which))
            .collect::<Vec<_>>();
        let namespaces = if namespaces.is_empty() {
            vec![(1, rng.index(storage))]
        } else {
            namespaces
        };
        Self {
            namespaces: namespaces
                .into_iter()
                .map(|(nsid, which)| (nsid, which, rng.range(1, 3) as u32))
                .collect(),
        }
    }
}

impl Host {
    fn draw(rng: &mut Rng, subsystems: usize, listeners: usize, gentle: bool) -> Self {
        let mut associations: Vec<_> = (0..rng.range(1, 3))
            .map(|_| Association::draw(rng, subsystems, listeners, gentle))
            .collect();
        if rng.once_in(8) {
            associations.push(Association {
                discovery: true,
                queues: 0,
                ..Association::draw(rng, subsystems, listeners, gentle)
            });
        }
        Self { associations }
    }
}

impl Association {
    /// Nothing special.
    pub const PLAIN: Self = Self {
        discovery: false,
        subsystem: 0,
        listener: 0,
        queues: 1,
        entries: 32,
        depth: 32,
        flow_control: true,
        header_digest: false,
        data_digest: false,
        hpda: 0,
        maxr2t: 0,
        kato: 0,
        events: 0,
        window: 1 << 20,
        harsh: false,
        cut: 0,
        flips: 0,
        silent: false,
    };

    fn draw(rng: &mut Rng, subsystems: usize, listeners: usize, gentle: bool) -> Self {
        let (header_digest, data_digest) = (rng.once_in(2), rng.once_in(2));
        let covered = header_digest && data_digest;
        let entries = rng.pick(&[2, 3, 8, 32]);
        Self {
            discovery: false,
            subsystem: rng.index(subsystems),
            listener: rng.index(listeners),
            queues: rng.range(1, 3) as u16,
            entries,
            depth: rng.pick(&[1, 4, 32]),
            flow_control: rng.once_in(2),
            header_digest,
            data_digest,
            hpda: rng.pick(&[0, 0, 1, 7]),
            maxr2t: rng.pick(&[0, 1, 3]),
            kato: rng.pick(&[0, 1, 2, 5]),
            events: rng.index(4),
            window: rng.pick(&[600, 8192, 1 << 20]),
            harsh: rng.once_in(2),
            cut: rng.pick(&[0, 0, 2, 5]),
            flips: if covered && !gentle && rng.once_in(3) {
                rng.pick(&[10, 50, 200])
            } else {
                0
            },
            silent: !gentle && rng.once_in(12),
        }
    }
}

impl Faults {
    fn draw(rng: &mut Rng) -> Self {
        let mut odds = |some: &[u64]| if rng.once_in(2) { 0 } else { rng.pick(some) };
        Self {
            reset: odds(&[200, 1000]),
            half_close: odds(&[500, 2000]),
            stall: odds(&[50, 300]),
            deaf: odds(&[100, 500]),
            mute: odds(&[100, 500]),
            resize: odds(&[200, 1000]),
            remove: odds(&[200, 1000]),
            ana: odds(&[100, 500]),
            abort: odds(&[30, 200]),
            leave: odds(&[500, 2000]),
            bar: odds(&[500, 2000]),
            listener: odds(&[500, 2000]),
            subsystem: odds(&[200, 1000]),
        }
    }
}

impl Mix {
    fn draw(rng: &mut Rng) -> Self {
        let mut weights = [0; 11];
        for weight in &mut weights {
            *weight = rng.pick(&[0, 1, 4]);
        }
        // What is marked tells nothing else.
        weights[10] = rng.pick(&[0, 0, 0, 2]);
        weights[0] += 4;
        weights[1] += 4;
        Self {
            weights,
            span: rng.pick(&[1, 4, 16, 64]),
            hot: rng.pick(&[2, 8, 64, 512]),
        }
    }
}
