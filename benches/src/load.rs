//! The load generator: keeps a number of reads and writes outstanding on I/O queues of a target.
//!
//! It is no easier a client than a real one. `nvmf-host` checks every PDU, CID, status, length and
//! digest as any host has to; each outstanding I/O has a buffer of its own, into which every byte
//! of a read is received and out of which every byte of a write is sent; places are random over
//! the whole namespace. As SPDK's `perf`, it does not compare what it reads unless told to, polls
//! if told to, and sends once for all that it submits in a turn. What differs: several connections
//! divide the namespace among themselves instead of sharing it, and the contents of writes do not
//! change unless they are to be verified.

mod lane;
mod verify;

use crate::poll::Poller;
use crate::report::{self, Report, Tally, Window};
use crate::system::pin;
use lane::Lane;
use nvmf_host::nvmf_proto::wire::discovery::SubsystemType;
use nvmf_host::{ConnectOptions, Connector, Controller, Namespace, Queue, connect_tcp, discover};
use socket2::SockRef;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Whatever ends a run: an [`nvmf_host::Error`], one of the system, or a sentence.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long it may take by default until all connections are there.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(60);

/// What to do to which target.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where the target listens.
    pub address: SocketAddr,
    /// NQN of the subsystem; by default the first that the address's discovery service names.
    pub subsystem: Option<String>,
    /// Namespace; by default the first active one.
    pub nsid: Option<u32>,
    /// How many of 100 I/Os are reads.
    pub read_percent: u8,
    /// Bytes per I/O.
    pub size: u32,
    /// Outstanding I/Os per connection.
    pub depth: u32,
    /// I/O queues, each with a connection of its own.
    pub connections: u32,
    /// I/O queues more that are connected and never used.
    pub idle: u32,
    /// Namespaces, all of one size, with consecutive NSIDs from the first on; I/Os go to all.
    pub namespaces: u32,
    /// Threads; each has its share of the connections.
    pub threads: usize,
    /// Processors for the threads, in their order; those without one run anywhere.
    pub cpus: Vec<usize>,
    /// One I/O after the other instead of in random order.
    pub sequential: bool,
    /// Bytes of the namespace that are used; by default all.
    pub region: Option<u64>,
    /// Write the whole region before the run.
    pub fill: bool,
    /// Writes carry a pattern that reads check.
    pub verify: bool,
    /// Poll for events instead of sleeping.
    pub spin: bool,
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// SO_SNDBUF of the sockets, in bytes; by default what the system gives.
    pub send_buffer: Option<u32>,
    /// How long it may take until all connections are there.
    pub connect_within: Duration,
    /// Keep SQ flow control; without it a successful read takes no response PDU.
    pub sq_flow_control: bool,
    /// How long.
    pub window: Window,
}

impl LoadOptions {
    /// 4 KiB random reads at depth 32 on one connection of one thread that sleeps.
    #[must_use]
    pub const fn new(address: SocketAddr, window: Window) -> Self {
        Self {
            address,
            subsystem: None,
            nsid: None,
            read_percent: 100,
            size: 4096,
            depth: 32,
            connections: 1,
            idle: 0,
            namespaces: 1,
            threads: 1,
            cpus: Vec::new(),
            sequential: false,
            region: None,
            fill: false,
            verify: false,
            spin: false,
            header_digest: false,
            data_digest: false,
            send_buffer: None,
            connect_within: CONNECT_WITHIN,
            sq_flow_control: false,
            window,
        }
    }
}

/// Connections to a target that are ready for a run.
pub struct Load {
    options: LoadOptions,
    /// They keep their controllers alive.
    controllers: Vec<Controller>,
    namespace: Namespace,
    lanes: Vec<Lane>,
    idle: Vec<Queue>,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load")
            .field("options", &self.options)
            .field("controllers", &self.controllers.len())
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Load {
    /// Connects, and fills the region if that is asked for.
    ///
    /// # Errors
    ///
    /// What the target or the system says, or that the options make no sense with this target.
    pub fn connect(options: LoadOptions) -> Result<Self, Error> {
        let (mut controllers, mut queues) = connect(&options)?;
        let idle = queues.split_off(options.connections as usize);
        let controller = &mut controllers[0];
        let nsid = match options.nsid {
            Some(nsid) => nsid,
            None => {
                let active = controller.active_namespaces()?;
                *active
                    .first()
                    .ok_or("the subsystem has no active namespace")?
            }
        };
        let namespace = controller.namespace(nsid)?;
        if !u64::from(options.size).is_multiple_of(namespace.block_size.into()) {
            let block = namespace.block_size;
            return Err(format!("I/O of {} bytes, but blocks of {block}", options.size).into());
        }
        if let Some(most) = controller
            .max_transfer()
            .filter(|&most| most < options.size.into())
        {
            return Err(format!("I/O of {} bytes, but at most {most} (MDTS)", options.size).into());
        }
        // What does not fill an I/O at the end of a namespace is left alone.
        let each = namespace.blocks / u64::from(options.size / namespace.block_size);
        let bytes = (each * u64::from(options.namespaces)).saturating_mul(options.size.into());
        let bytes = options.region.unwrap_or(bytes).min(bytes);
        // Each connection has a part of the region to itself, so that what it reads depends on
        // nothing but what it has written.
        let share = bytes / u64::from(options.size) / u64::from(options.connections);
        if share < u64::from(options.depth) {
            return Err("fewer blocks than outstanding I/Os".into());
        }
        let lanes = (0..).zip(queues).map(|(number, queue): (u64, Queue)| {
            Lane::new(queue, namespace, &options, number * share, share, each)
        });
        let mut lanes: Vec<Lane> = lanes.collect();
        if options.fill {
            for lane in &mut lanes {
                lane.fill()?;
            }
        }
        Ok(Self {
            options,
            controllers,
            namespace,
            lanes,
            idle,
        })
    }

    /// I/Os that each connection had counted in all runs so far.
    #[must_use]
    pub fn ios_per_connection(&self) -> Vec<u64> {
        self.lanes.iter().map(Lane::ios).collect()
    }

    /// Runs for the time of the window.
    ///
    /// # Errors
    ///
    /// A command failed, a connection broke, or what was read is not what was written.
    pub fn run(&mut self) -> Result<Report, Error> {
        let options = &self.options;
        let threads = options.threads.clamp(1, self.lanes.len());
        let mut shares: Vec<Vec<&mut Lane>> = (0..threads).map(|_| Vec::new()).collect();
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            shares[number % threads].push(lane);
        }
        let shares: Vec<_> = shares.into_iter().map(Mutex::new).collect();
        report::run(threads, &options.window, |thread, tally| {
            if let Some(&cpu) = options.cpus.get(thread) {
                pin(cpu)?;
            }
            // Nobody else ever locks this.
            let mut lanes = shares[thread].lock().map_err(|_| "a thread panicked")?;
            drive(&mut lanes, options.spin, tally)
        })
    }

    /// Ends all associations in good order.
    ///
    /// # Errors
    ///
    /// What the target or the system says.
    pub fn disconnect(self) -> Result<(), Error> {
        drop(self.lanes);
        drop(self.idle);
        for controller in self.controllers {
            controller.disconnect()?;
        }
        Ok(())
    }
}

/// As many I/O queues as are asked for, over as many controllers as that takes.
fn connect(options: &LoadOptions) -> Result<(Vec<Controller>, Vec<Queue>), Error> {
    let subsystem = match &options.subsystem {
        Some(subsystem) => subsystem.clone(),
        None => discover_one(options.address)?,
    };
    let mut connect = ConnectOptions::new(options.address, &subsystem)?;
    connect.io_entries = options.depth + 1;
    connect.header_digest = options.header_digest;
    connect.data_digest = options.data_digest;
    connect.disable_sq_flow_control = !options.sq_flow_control;
    let (mut controllers, mut queues) = (Vec::new(), Vec::new());
    let wanted = options.connections as usize + options.idle as usize;
    let deadline = Instant::now() + options.connect_within;
    // A target that has no descriptors left lets connections wait, each for a timeout.
    let stuck = |have: usize, why: &dyn fmt::Display| {
        format!(
            "{have} of {wanted} I/O queues are connected: {why} (is the target out of connections or descriptors?)"
        )
    };
    while queues.len() < wanted {
        let have = queues.len();
        let mut controller =
            Controller::connect_over(connector(options, connect.timeout), &connect)
                .map_err(|err| stuck(have, &err))?;
        let left = wanted - have;
        let granted = controller.set_queue_count(u16::try_from(left).unwrap_or(u16::MAX - 1))?;
        for qid in (1..).take(left.min(granted as usize)) {
            let have = queues.len();
            if Instant::now() > deadline {
                let within = format!("{:?} are over", options.connect_within);
                return Err(stuck(have, &within).into());
            }
            let queue = controller.io_queue(qid);
            let queue = queue.map_err(|err| stuck(have, &err))?.into_queue();
            if queue.depth() < options.depth as usize {
                return Err(
                    format!("the queues of this target hold {} commands", queue.depth()).into(),
                );
            }
            queues.push(queue);
        }
        controllers.push(controller);
    }
    Ok((controllers, queues))
}

/// What makes the connections of a controller.
fn connector(options: &LoadOptions, timeout: Duration) -> Connector {
    let (address, send_buffer) = (options.address, options.send_buffer);
    Box::new(move || {
        let stream = connect_tcp(address, timeout)?;
        if let Some(bytes) = send_buffer {
            SockRef::from(&stream).set_send_buffer_size(bytes as usize)?;
        }
        Ok(Box::new(stream))
    })
}

/// NQN of the first NVM subsystem that the discovery service at an address names.
///
/// # Errors
///
/// What the target or the system says, or that there is none.
pub fn discover_one(address: SocketAddr) -> Result<String, Error> {
    let log = discover(address)?;
    let entry = log.iter().find(|entry| entry.subtype == SubsystemType::NVM);
    let entry = entry.ok_or("the discovery service names no NVM subsystem")?;
    Ok(entry.subsystem_nqn()?.as_str().to_owned())
}

/// Drives the queues of one thread until the run is over, and takes back what is outstanding.
fn drive(lanes: &mut [&mut Lane], spin: bool, tally: &mut Tally) -> Result<(), Error> {
    let mut poller = Poller::new(spin)?;
    for (number, lane) in (0..).zip(lanes.iter_mut()) {
        poller.add(lane.fd()?, number)?;
        lane.start(tally)?;
        lane.flush(&poller, number)?;
    }
    let mut ready = Vec::with_capacity(lanes.len());
    let mut now = tally.now();
    while !tally.is_over(now) {
        ready.extend(poller.wait()?);
        for number in ready.drain(..) {
            let Some(lane) = usize::try_from(number)
                .ok()
                .and_then(|index| lanes.get_mut(index))
            else {
                continue;
            };
            lane.turn(tally)?;
            lane.flush(&poller, number)?;
        }
        now = tally.now();
    }
    for lane in lanes {
        lane.drain()?;
    }
    Ok(())
}
