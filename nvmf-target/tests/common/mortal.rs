//! A host whose session ends at a byte of one's choice.

use super::pattern;
use super::raw::{self, Digests, Raw, connect_data, with_sgl};
use nvmf_host::command;
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectData, PropertyGet, PropertySize};
use nvmf_host::nvmf_proto::wire::identify::{Cns, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::pdu::DataHeader;
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{SglDescriptor, Sqe};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

/// How a host ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// Its process ends: FIN, and RST for what comes after.
    Close,
    /// Its connections are reset.
    Reset,
    /// It says that it sends nothing more, and stays.
    HalfClose,
}

#[derive(Debug)]
pub struct Dead;

const ADMIN: usize = 0;
const IO: usize = 1;

/// A host that ends after so many bytes, wherever in its session that is.
pub struct Mortal {
    address: SocketAddr,
    digests: Digests,
    end: End,
    left: usize,
    pub sent: usize,
    /// Where in the bytes sent PDUs end.
    pub boundaries: Vec<usize>,
    queues: Vec<Raw>,
    /// Bytes of one write.
    pub chunk: usize,
}

impl Mortal {
    pub fn new(address: SocketAddr, digests: Digests, end: End, left: usize) -> Self {
        Self {
            address,
            digests,
            end,
            left,
            sent: 0,
            boundaries: Vec::new(),
            queues: Vec::new(),
            chunk: usize::MAX,
        }
    }

    fn send(&mut self, queue: usize, bytes: &[u8]) -> Result<(), Dead> {
        let n = bytes.len().min(self.left);
        self.queues[queue].send(&bytes[..n]);
        self.left -= n;
        self.sent += n;
        if self.left == 0 {
            self.die();
            return Err(Dead);
        }
        self.boundaries.push(self.sent);
        Ok(())
    }

    fn die(&mut self) {
        if self.sent.is_multiple_of(2) {
            self.queues.reverse();
        }
        match self.end {
            End::Close => self.queues.clear(),
            End::Reset => {
                for queue in self.queues.drain(..) {
                    socket2::SockRef::from(&queue.stream)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                }
            }
            End::HalfClose => {
                for queue in &self.queues {
                    // The target may have closed it already, after a Disconnect.
                    let _ = queue.stream.shutdown(Shutdown::Write);
                }
            }
        }
    }

    fn open(&mut self) -> Result<(), Dead> {
        let queue = self.queues.len();
        let mut raw = Raw::tcp(self.address);
        raw.chunk = self.chunk;
        self.queues.push(raw);
        self.send(queue, &self.digests.ic_req())?;
        self.queues[queue].recv();
        self.queues[queue].digests = self.digests;
        Ok(())
    }

    fn submit(&mut self, queue: usize, sqe: &Sqe, data: &[u8]) -> Result<(), Dead> {
        self.send(queue, &self.digests.capsule(sqe, data))
    }

    fn execute(&mut self, queue: usize, sqe: &Sqe, data: &[u8]) -> Result<u64, Dead> {
        self.submit(queue, sqe, data)?;
        Ok(self.queues[queue].recv().cqe().result)
    }

    fn r2t(&mut self) -> DataHeader {
        self.queues[IO].recv().r2t()
    }

    fn h2c_data(&mut self, r2t: &DataHeader, at: u32, data: &[u8; 512]) -> Result<(), Dead> {
        let last = at + 512 == r2t.length;
        let pdu = self.digests.h2c_data(r2t, at, data, last);
        self.send(IO, &pdu)
    }

    /// What a host does from its first byte to its last.
    pub fn session(&mut self) -> Result<(), Dead> {
        self.open()?;
        let data = raw::encode(&connect_data());
        let result = self.execute(ADMIN, &raw::connect_sqe(&raw::admin_connect()), &data)?;
        let cntlid = u16::try_from(result).unwrap();
        let cap = PropertyGet {
            size: PropertySize::BYTES_8,
            offset: PropertyOffset::CAP,
        };
        self.execute(ADMIN, &cap.to_sqe(), &[])?;
        self.execute(ADMIN, &raw::enable(), &[])?;
        for cid in 10..12 {
            let mut request = command::async_event_request();
            request.set_cid(cid);
            self.submit(ADMIN, &request, &[])?;
        }
        let identify = IdentifyCommand::new(Cns::CONTROLLER);
        let identify = command::identify(0, &identify);
        self.submit(
            ADMIN,
            &with_sgl(identify, 1, SglDescriptor::transport(4096)),
            &[],
        )?;
        assert_eq!(self.queues[ADMIN].recv().data().len(), 4096);
        self.queues[ADMIN].recv().cqe();
        self.execute(ADMIN, &raw::set_queues(4), &[])?;

        self.open()?;
        let data = raw::encode(&ConnectData {
            cntlid,
            ..connect_data()
        });
        self.execute(IO, &raw::connect_sqe(&raw::io_connect(1)), &data)?;
        self.execute(IO, &raw::write_in_capsule(1, 0, 1), &pattern(1, 512))?;
        // Two writes whose data is asked for, both under way at once.
        self.submit(IO, &raw::write_by_r2t(2, 1, 2), &[])?;
        self.submit(IO, &raw::write_by_r2t(3, 3, 1), &[])?;
        let (first, second) = (self.r2t(), self.r2t());
        self.h2c_data(&first, 0, &[2; 512])?;
        self.h2c_data(&second, 0, &[3; 512])?;
        self.h2c_data(&first, 512, &[4; 512])?;
        // Nobody reads the answers to these.
        for cid in 4..8 {
            self.submit(IO, &raw::read(cid, 0, 64), &[])?;
        }
        self.execute(ADMIN, &command::keep_alive(), &[])?;
        self.submit(IO, &raw::disconnect(), &[])?;
        let shutdown = Cc::default().with_en(true).with_shn(Cc::SHN_NORMAL);
        self.submit(ADMIN, &raw::set_cc(shutdown), &[])?;
        self.die();
        Ok(())
    }
}
