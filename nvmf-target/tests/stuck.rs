//! What ends by itself while nobody else moves: the time is what the test says.

mod common;

use common::raw::{
    Digests, admin_connect, connect_data, connect_sqe, enable, encode, io_connect, read,
    set_queues, with_sgl, write_by_r2t, write_in_capsule,
};
use common::step::Step;
use common::{NQN, config};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::fabrics::ConnectData;
use nvmf_host::nvmf_proto::wire::pdu::{DataHeader, PduType, capsule_cqe};
use nvmf_host::nvmf_proto::wire::{Cqe, SglDescriptor, Sqe, Status};
use nvmf_target::ns::{BlockDevice, Inline, Namespace, NsError, NsInfo, Support};
use nvmf_target::sim::SimTarget;
use nvmf_target::transport::{MemConnector, MemStream, MemTransport, Stream as _};
use nvmf_target::{Role, SubsystemConfig, TargetConfig};
use std::io::{IoSlice, IoSliceMut};

const SECOND: u64 = 1_000_000_000;

fn stepped(config: TargetConfig, namespace: impl Namespace) -> (SimTarget, MemConnector) {
    let sim = SimTarget::new(config, SECOND).unwrap();
    let target = sim.target();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    target.add_namespace(NQN, 1, namespace).unwrap();
    let (listener, connector) = MemTransport::new("stuck").unwrap();
    target.listen_on(Box::new(listener), Role::Io).unwrap();
    (sim, connector)
}

/// A host's end of a connection.
struct Host {
    stream: MemStream,
    inbox: Vec<u8>,
}

impl Host {
    fn open(sim: &mut SimTarget, connector: &MemConnector) -> Self {
        let mut host = Self {
            stream: connector.connect().unwrap(),
            inbox: Vec::new(),
        };
        host.send(&Digests::default().ic_req());
        sim.settle();
        assert_eq!(host.next().unwrap()[0], PduType::IC_RESP.0);
        host
    }

    /// An enabled controller's admin queue, and its CNTLID.
    fn admin(sim: &mut SimTarget, connector: &MemConnector) -> (Self, u16) {
        let mut host = Self::open(sim, connector);
        let mut command = admin_connect();
        command.kato = 0;
        let data = encode(&connect_data());
        let cqe = host.execute(sim, &connect_sqe(&command), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
        for sqe in [enable(), set_queues(1)] {
            assert_eq!(host.execute(sim, &sqe, &[]).status, Status::SUCCESS);
        }
        (host, u16::try_from(cqe.result).unwrap())
    }

    /// Both queues of a host.
    fn new(sim: &mut SimTarget, connector: &MemConnector) -> (Self, Self) {
        let (admin, cntlid) = Self::admin(sim, connector);
        let mut io = Self::open(sim, connector);
        let data = encode(&ConnectData {
            cntlid,
            ..connect_data()
        });
        let cqe = io.execute(sim, &connect_sqe(&io_connect(1)), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
        (admin, io)
    }

    fn send(&mut self, bytes: &[u8]) {
        // One that has been closed takes nothing any more.
        let _ = self.stream.writev(&[IoSlice::new(bytes)]);
    }

    fn submit(&mut self, sqe: &Sqe, data: &[u8]) {
        self.send(&Digests::default().capsule(sqe, data));
    }

    fn execute(&mut self, sim: &mut SimTarget, sqe: &Sqe, data: &[u8]) -> Cqe {
        self.submit(sqe, data);
        sim.settle();
        self.cqe().expect("an answer")
    }

    fn cqe(&mut self) -> Option<Cqe> {
        loop {
            let pdu = self.next()?;
            if pdu[0] == PduType::CAPSULE_RESP.0 {
                return Some(capsule_cqe(pdu.first_chunk().unwrap()));
            }
        }
    }

    /// Takes in what has come; true if that is the end.
    fn is_ended(&mut self) -> bool {
        let mut piece = [0; 4096];
        loop {
            match self.stream.readv(&mut [IoSliceMut::new(&mut piece)]) {
                Ok(0) => return true,
                Ok(n) => self.inbox.extend(&piece[..n]),
                Err(_) => return false,
            }
        }
    }

    /// The next PDU that has come.
    fn next(&mut self) -> Option<Vec<u8>> {
        self.is_ended();
        let plen = u32::from_le_bytes(*self.inbox.get(4..)?.first_chunk()?);
        let plen = usize::try_from(plen).unwrap();
        (self.inbox.len() >= plen).then(|| self.inbox.drain(..plen).collect())
    }
}

/// A pair that is interrupted because its second buffer is not to be had is answered at that moment,
/// though nothing else happens: all other buffers are with a device that hangs.
#[test]
fn a_pair_that_is_interrupted_is_answered_at_once() {
    let mut config = config();
    (config.reactors, config.buffer_bytes) = (1, 1 << 20);
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped(config, step.clone());
    let (_admin, mut io) = Host::new(&mut sim, &connector);
    let [mut compare, mut write] = command::compare_and_write(1, 0, 256);
    for (cid, sqe) in [(1, &mut compare), (2, &mut write)] {
        sqe.set_cid(cid);
        sqe.set_sgl(write_by_r2t(cid, 0, 256).sgl());
    }
    io.submit(&compare, &[]);
    sim.settle();
    let r2t = io.next().expect("R2T");
    let header = DataHeader::decode(r2t.first_chunk().unwrap());
    io.send(&Digests::default().h2c_data(&header, 0, &[0; 128 << 10], true));
    sim.settle();
    // Each has its first buffer, and waits for no other.
    let others: Vec<_> = (0..56)
        .map(|_| {
            let (admin, mut io) = Host::new(&mut sim, &connector);
            io.submit(&read(1, 0, 32), &[]);
            sim.settle();
            (admin, io)
        })
        .collect();
    assert_eq!(sim.target().stats().buffers_lent, 1 << 20);
    io.submit(&write, &[]);
    sim.settle();
    let begun = sim.time();
    while sim.target().stats().buffers_lent == 1 << 20 {
        assert!(io.next().is_none() && sim.time() < begun + 12 * SECOND);
        sim.set_time(sim.next_deadline().unwrap());
        sim.settle();
    }
    let ends = [io.cqe(), io.cqe()].map(|cqe| cqe.map(|cqe| (cqe.cid, cqe.status)));
    let expected = [
        (1, Status::ABORTED_FAILED_FUSED),
        (2, Status::COMMAND_INTERRUPTED),
    ];
    assert_eq!(ends, expected.map(Some));
    drop((others, step.take(56)));
}

/// Takes whatever it is told to deallocate, on the reactor's thread.
struct Endless;

impl BlockDevice for Endless {
    fn info(&self) -> NsInfo {
        let mut info = NsInfo::new(512, 1 << 32);
        info.caps.deallocate = Support::Native;
        info
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), NsError> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8], _: bool) -> Result<(), NsError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), NsError> {
        Ok(())
    }

    fn deallocate(&self, _: u64, _: u64) -> Result<(), NsError> {
        Ok(())
    }
}

/// A connection that has ended does not wait for the turns of its long commands, with those of all
/// others before it: its host comes back and wants the queue.
#[test]
fn a_queue_that_ends_does_not_wait_for_the_turns_of_its_long_commands() {
    let mut config = config();
    config.reactors = 1;
    let (mut sim, connector) = stepped(config, Inline::new(Endless));
    // 128 GiB each.
    let range = DsmRange {
        length: 1 << 23,
        ..DsmRange::default()
    };
    let ranges = range.encode().repeat(32);
    let mut hosts: Vec<_> = (0..100).map(|_| Host::new(&mut sim, &connector)).collect();
    for (_, io) in &mut hosts {
        for cid in 0..4 {
            let mut sqe = command::dataset_management(1, 32, DsmAttributes::DEALLOCATE);
            sqe.set_cid(cid);
            sqe.set_sgl(SglDescriptor::in_capsule(512));
            io.submit(&sqe, &ranges);
        }
    }
    (0..10).for_each(|_| _ = sim.turn(0));
    let before = sim.target().stats();
    assert_eq!((before.io_queues, before.in_flight), (100, 400));
    let (admin, io) = hosts.swap_remove(50);
    drop(io);
    sim.turn(0);
    let after = sim.target().stats();
    assert_eq!((after.io_queues, after.in_flight), (99, 396));
    drop((admin, hosts));
    sim.settle();
    assert_eq!(sim.target().stats(), Default::default());
}

/// A write that its backend never completes keeps those waiting who want to be alone with the
/// namespace, and these keep all other writes: until they are aborted, or their connections end.
#[test]
fn who_waits_for_a_write_that_never_completes_may_give_up() {
    let step = Step::new(NsInfo::new(512, 1 << 20));
    let (mut sim, connector) = stepped(config(), step.clone());
    let [(_a, mut hung), (mut admin, mut pair), (_c, mut other)] =
        [(); 3].map(|()| Host::new(&mut sim, &connector));
    hung.submit(&write_in_capsule(1, 0, 1), &[1; 512]);
    sim.settle();
    let never = step.next();
    let halves = command::compare_and_write(1, 8, 1);
    let begin = |sim: &mut SimTarget, pair: &mut Host, other: &mut Host| {
        for (cid, sqe) in (1..).zip(halves) {
            pair.submit(
                &with_sgl(sqe, cid, SglDescriptor::in_capsule(512)),
                &[0; 512],
            );
        }
        sim.settle();
        other.submit(&write_in_capsule(3, 16, 1), &[3; 512]);
        sim.settle();
        assert_eq!((step.pending(), sim.target().stats().in_flight), (0, 3));
    };
    let goes_on = |sim: &mut SimTarget, other: &mut Host| {
        sim.settle();
        assert_eq!(step.pending(), 1);
        step.next().complete(Ok(()));
        sim.settle();
        assert_eq!(other.cqe().expect("an answer").status, Status::SUCCESS);
        assert_eq!(sim.target().stats().in_flight, 1);
    };
    for (aborted, ends) in [
        (1, [Status::ABORT_REQUESTED, Status::ABORTED_FAILED_FUSED]),
        (2, [Status::ABORTED_FAILED_FUSED, Status::ABORT_REQUESTED]),
    ] {
        begin(&mut sim, &mut pair, &mut other);
        let cqe = admin.execute(&mut sim, &command::abort(1, aborted), &[]);
        assert_eq!((cqe.status, cqe.result & 1), (Status::SUCCESS, 0));
        let ended = [pair.cqe(), pair.cqe()].map(|cqe| cqe.expect("its end").status);
        assert_eq!(ended, ends);
        goes_on(&mut sim, &mut other);
    }
    begin(&mut sim, &mut pair, &mut other);
    drop(pair);
    goes_on(&mut sim, &mut other);
    assert_eq!(sim.target().stats().io_queues, 2);
    drop((admin, other, hung));
    sim.settle();
    never.complete(Ok(()));
    sim.settle();
}
