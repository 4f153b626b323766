//! Scenarios that are a matter of time, to the nanosecond: a target in one thread whose clock is
//! told what time it is.

mod deadlines;
mod shortage;
mod stuck;
mod turns;

use crate::common::raw::{
    Digests, admin_connect, connect_data, connect_sqe, enable, encode, io_connect, set_queues,
};
use crate::common::{NQN, config};
use nvmf_host::nvmf_proto::wire::fabrics::ConnectData;
use nvmf_host::nvmf_proto::wire::pdu::{PduType, capsule_cqe};
use nvmf_host::nvmf_proto::wire::{Cqe, Sqe, Status};
use nvmf_target::ns::{Inline, Namespace, RamDisk};
use nvmf_target::sim::SimTarget;
use nvmf_target::transport::{MemConnector, MemStream, MemTransport, Stream as _};
use nvmf_target::{Role, SubsystemConfig, TargetConfig};
use std::io::{IoSlice, IoSliceMut};

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;
const DAY: u64 = 86_400 * SECOND;
/// When the tests begin.
const START: u64 = 7 * DAY;

/// A target of two reactors, so that the queues of a controller are on different ones.
fn stepped() -> (SimTarget, MemConnector) {
    let disk = RamDisk::new(1 << 20, 512).unwrap();
    stepped_with(config(), Inline::new(disk))
}

fn stepped_with(config: TargetConfig, namespace: impl Namespace) -> (SimTarget, MemConnector) {
    let sim = SimTarget::new(config, START).unwrap();
    let target = sim.target();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    target.add_namespace(NQN, 1, namespace).unwrap();
    let (listener, connector) = MemTransport::new("stepped").unwrap();
    target.listen_on(Box::new(listener), Role::Io).unwrap();
    (sim, connector)
}

/// A host's end of a connection.
struct Host {
    stream: MemStream,
    inbox: Vec<u8>,
}

impl Host {
    fn new(connector: &MemConnector) -> Self {
        Self {
            stream: connector.connect().unwrap(),
            inbox: Vec::new(),
        }
    }

    fn open(sim: &mut SimTarget, connector: &MemConnector) -> Self {
        let mut host = Self::new(connector);
        host.send(&Digests::default().ic_req());
        sim.settle();
        assert_eq!(host.next().unwrap()[0], PduType::IC_RESP.0);
        host
    }

    /// An enabled controller's admin queue, and its CNTLID.
    fn admin(sim: &mut SimTarget, connector: &MemConnector, kato: u32) -> (Self, u16) {
        let mut host = Self::open(sim, connector);
        let mut command = admin_connect();
        command.kato = kato;
        let data = encode(&connect_data());
        let cqe = host.execute(sim, &connect_sqe(&command), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
        for sqe in [enable(), set_queues(1)] {
            assert_eq!(host.execute(sim, &sqe, &[]).status, Status::SUCCESS);
        }
        (host, u16::try_from(cqe.result).unwrap())
    }

    /// Its I/O queue.
    fn io(sim: &mut SimTarget, connector: &MemConnector, cntlid: u16) -> Self {
        let mut host = Self::open(sim, connector);
        let data = encode(&ConnectData {
            cntlid,
            ..connect_data()
        });
        let cqe = host.execute(sim, &connect_sqe(&io_connect(1)), &data);
        assert_eq!(cqe.status, Status::SUCCESS);
        host
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
        loop {
            let pdu = self.next().expect("an answer");
            if pdu[0] == PduType::CAPSULE_RESP.0 {
                return capsule_cqe(pdu.first_chunk().unwrap());
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
