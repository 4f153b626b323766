//! Keep Alive while everything else is in its way, counted in turns of the reactor, and behind
//! standstills of the whole target: the time is what the test says.

mod common;

use common::step::Step;
use common::{NQN, config};
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::log::{GetLogPage, Lid};
use nvmf_host::{ConnectOptions, Controller, Data, Queue, command};
use nvmf_target::ns::NsInfo;
use nvmf_target::sim::SimTarget;
use nvmf_target::transport::{MemConnector, MemStream, MemTransport, Stream as _};
use nvmf_target::{AnaState, ListenerConfig, SubsystemConfig};
use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Of one who has sent Keep Alive.
const TURNS_MAX: usize = 2;
/// The same behind sixteen commands of its own that bring log pages.
const TURNS_BEHIND: usize = 4;
const READ: usize = 32 << 10;
const POOL: usize = 2 << 20;
const SECOND: u64 = 1_000_000_000;

thread_local! {
    /// The target of this thread: a host that waits lets it run.
    static TARGET: RefCell<Option<SimTarget>> = const { RefCell::new(None) };
}

fn with_target<T>(f: impl FnOnce(&mut SimTarget) -> T) -> T {
    TARGET.with_borrow_mut(|target| f(target.as_mut().unwrap()))
}

/// The host's end of a connection.
#[derive(Debug)]
struct HostEnd(MemStream);

impl nvmf_host::Stream for HostEnd {
    fn readv(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.readv(bufs)
    }

    fn writev(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.writev(bufs)
    }

    fn wait(&mut self, _: bool, _: Duration) -> io::Result<()> {
        with_target(SimTarget::settle);
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Ends the target, and before the thread's locals end.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        drop(TARGET.take());
    }
}

/// A target with namespaces of a backend that completes what it is told to.
fn start(namespaces: u32, reactors: usize) -> (Running, Step, MemConnector) {
    let mut config = config();
    config.reactors = reactors;
    config.buffer_bytes = POOL;
    let sim = SimTarget::new(config, 1).unwrap();
    sim.target()
        .add_subsystem(SubsystemConfig::new(NQN))
        .unwrap();
    let backend = Step::new(NsInfo::new(512, 2048));
    for nsid in 1..=namespaces {
        let backend = backend.clone();
        sim.target().add_namespace(NQN, nsid, backend).unwrap();
    }
    let (transport, connector) = MemTransport::new("storm").unwrap();
    let mut listener = ListenerConfig::on(Box::new(transport));
    listener.name = Some("storm".to_owned());
    sim.target().listen_with(listener).unwrap();
    TARGET.set(Some(sim));
    (Running, backend, connector)
}

fn connect(connector: &MemConnector, kato: u32) -> Controller {
    let mut options = ConnectOptions::new("127.0.0.1:4420".parse().unwrap(), NQN).unwrap();
    options.kato = kato;
    let connector = connector.clone();
    let open = move || Ok(Box::new(HostEnd(connector.connect()?)) as Box<dyn nvmf_host::Stream>);
    Controller::connect_over(Box::new(open), &options).unwrap()
}

/// A Keep Alive that is sent now is answered in so many turns. Other commands of the queue may be
/// answered first.
fn keep_alive(admin: &mut Queue, most: usize) {
    const TAG: u64 = u64::MAX;
    let sent = admin.submit_tagged(command::keep_alive(), Data::None, TAG);
    sent.unwrap();
    admin.flush().unwrap();
    let mut turns = 0;
    loop {
        turns += 1;
        with_target(|target| target.turn(0));
        admin.progress().unwrap();
        while let Some(completion) = admin.next_completion() {
            if completion.tag == TAG {
                assert_eq!(completion.cqe.status, Status::SUCCESS);
                return;
            }
        }
        assert!(turns < most, "no answer after {turns} turns");
    }
}

struct Load(Queue);

impl Load {
    /// As many reads as the queue takes.
    fn fill(&mut self) {
        let blocks = u32::try_from(READ / 512).unwrap();
        while self.0.outstanding() < self.0.depth() {
            let sqe = command::read(1, 0, blocks);
            self.0.submit(sqe, Data::Read(vec![0; READ])).unwrap();
        }
        self.0.flush().unwrap();
    }

    /// Takes what has completed.
    fn take(&mut self) -> usize {
        self.0.poll(Duration::ZERO).unwrap().count()
    }
}

#[test]
fn keep_alive_passes_two_thousand_reads_that_wait_for_buffers() {
    let (_running, backend, connector) = start(1, 1);
    let mut hosts: Vec<_> = (0..4).map(|_| connect(&connector, 60_000)).collect();
    let mut load = Vec::new();
    for host in &mut hosts {
        host.set_queue_count(4).unwrap();
        let queues = (1..=4).map(|qid| Load(host.io_queue(qid).unwrap().into_queue()));
        load.extend(queues);
    }
    let mut done = 0;
    for round in 0..50 {
        load.iter_mut().for_each(Load::fill);
        // Some go on all the time, and others get their buffers.
        for request in backend.take(backend.pending().min(16)) {
            request.complete(Ok(()));
        }
        for host in &mut hosts {
            keep_alive(host.admin_queue(), TURNS_MAX);
        }
        let stats = with_target(|target| target.target().stats());
        // The others wait for one of the pool's buffers.
        assert!(stats.in_flight <= POOL / READ, "{stats:?}");
        assert!(
            round == 0 || stats.buffers_lent > POOL / 2,
            "the pool is exhausted: {stats:?}"
        );
        done += load.iter_mut().map(Load::take).sum::<usize>();
    }
    assert!(done >= 500, "{done} reads were done");
}

#[test]
fn keep_alive_passes_management_of_thousands_of_namespaces() {
    const NAMESPACES: u32 = 4096;
    let (_running, backend, connector) = start(NAMESPACES, 1);
    let mut quiet = connect(&connector, 60_000);
    let mut hosts: Vec<_> = (0..8).map(|_| connect(&connector, 60_000)).collect();
    let states = [AnaState::Optimized, AnaState::NonOptimized];
    for round in 0..20_u32 {
        let nsid = 1 + round * 191 % NAMESPACES;
        with_target(|target| {
            let target = target.target();
            let state = states[round as usize % 2];
            target.set_ana_state(NQN, "storm", 1, state).unwrap();
            target.remove_namespace(NQN, nsid).unwrap();
            target.add_namespace(NQN, nsid, backend.clone()).unwrap();
        });
        for host in &mut hosts {
            let admin = host.admin_queue();
            let ana = GetLogPage::new(Lid::ANA, 16 << 10);
            let list = IdentifyCommand::new(Cns::ACTIVE_NSID_LIST);
            for _ in 0..8 {
                let sqe = command::get_log_page(0, &ana);
                let page = Data::Read(vec![0; 16 << 10]);
                admin.submit(sqe, page).unwrap();
                let sqe = command::identify(0, &list);
                let page = Data::Read(vec![0; 4096]);
                admin.submit(sqe, page).unwrap();
            }
            admin.flush().unwrap();
        }
        keep_alive(quiet.admin_queue(), TURNS_MAX);
        for host in hosts.iter_mut().rev() {
            keep_alive(host.admin_queue(), TURNS_BEHIND);
        }
    }
}

/// Time passes in which the target has no turn.
fn stand_still(until: u64) {
    with_target(|target| target.set_time(until));
}

fn controllers() -> usize {
    with_target(|target| {
        target.settle();
        target.target().stats().controllers
    })
}

/// After a standstill longer than the Keep Alive Timeout, more commands lie in sockets than one wait
/// reports.
#[test]
fn keep_alives_that_came_in_a_standstill_count() {
    const HOSTS: usize = 300;
    let (_running, _, connector) = start(1, 1);
    let mut hosts: Vec<_> = (0..HOSTS).map(|_| connect(&connector, 5000)).collect();
    for host in &mut hosts {
        let admin = host.admin_queue();
        admin.submit(command::keep_alive(), Data::None).unwrap();
        admin.flush().unwrap();
    }
    stand_still(6 * SECOND);
    assert_eq!(controllers(), HOSTS);
    stand_still(12 * SECOND);
    assert_eq!(controllers(), 0, "now they were silent");
}

/// The same with a read that another reactor has to take notice of, whichever has its turn first.
#[test]
fn commands_that_came_in_a_standstill_count_on_every_reactor() {
    for first in [0, 1] {
        let (_running, backend, connector) = start(1, 2);
        let mut host = connect(&connector, 5000);
        host.set_queue_count(1).unwrap();
        let mut io = host.io_queue(1).unwrap().into_queue();
        let read = Data::Read(vec![0; 512]);
        io.submit(command::read(1, 0, 1), read).unwrap();
        io.flush().unwrap();
        stand_still(6 * SECOND);
        with_target(|target| while target.turn(first) {});
        assert_eq!(controllers(), 1, "reactor {first} first");
        for request in backend.take(1) {
            request.complete(Ok(()));
        }
        stand_still(10 * SECOND);
        assert_eq!(controllers(), 1, "reactor {first} first");
        stand_still(12 * SECOND);
        assert_eq!(controllers(), 0, "reactor {first} first: now it was silent");
    }
}
