//! A host made of bytes: every PDU is built by hand, so that any of them can be wrong.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the numbers that tests make up are small"
)]

use super::{NQN, PATIENCE};
use nvmf_host::command;
use nvmf_host::nvmf_proto::tcp::crc32c;
use nvmf_host::nvmf_proto::wire::fabrics::{
    CNTLID_DYNAMIC, ConnectCommand, ConnectData, ConnectResponse, FabricsType, PropertySet,
    PropertySize,
};
use nvmf_host::nvmf_proto::wire::feature::{Fid, NumberOfQueues, SetFeatures};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::pdu::{
    CommonHeader, DataHeader, Fes, InitConnection, PduFlags, PduType, TermReq, capsule_cqe,
    encode_capsule_cmd,
};
use nvmf_host::nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_host::nvmf_proto::wire::{Cqe, SglDescriptor, Sqe, Status};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

pub const C2H_DATA: PduType = PduType::C2H_DATA;
pub const R2T: PduType = PduType::R2T;

pub const HOSTNQN: &str = "nqn.2026-11.org.example:raw-host";
pub const HOSTID: [u8; 16] = [0x5a; 16];

/// Which digests a connection has, and with that how its PDUs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

impl Digests {
    pub const BOTH: Self = Self {
        header: true,
        data: true,
    };

    pub fn ic_req(self) -> [u8; 128] {
        InitConnection {
            dgst: u8::from(self.header) | u8::from(self.data) << 1,
            ..InitConnection::default()
        }
        .encode(PduType::IC_REQ)
    }

    fn common(self, pdu_type: PduType, hlen: u8, data: &[u8]) -> CommonHeader {
        let mut flags = PduFlags::empty();
        flags.set(PduFlags::HDGST, self.header);
        flags.set(PduFlags::DDGST, self.data && !data.is_empty());
        let header = hlen + if self.header { 4 } else { 0 };
        let digest = if flags.contains(PduFlags::DDGST) {
            4
        } else {
            0
        };
        CommonHeader {
            pdu_type,
            flags,
            hlen,
            pdo: if data.is_empty() { 0 } else { header },
            plen: u32::from(header) + data.len() as u32 + digest,
        }
    }

    fn pdu(self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let mut out = header.to_vec();
        if self.header {
            out.extend(crc32c(0, header).to_le_bytes());
        }
        out.extend(data);
        if self.data && !data.is_empty() {
            out.extend(crc32c(0, data).to_le_bytes());
        }
        out
    }

    /// A command capsule with `data` in it.
    pub fn capsule(self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let ch = self.common(PduType::CAPSULE_CMD, 72, data);
        self.pdu(&encode_capsule_cmd(&ch, sqe), data)
    }

    /// Data from `offset` on, as an R2T has asked for it.
    pub fn h2c_data(self, r2t: &DataHeader, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
        let mut ch = self.common(PduType::H2C_DATA, 24, data);
        ch.flags.set(PduFlags::LAST_PDU, last);
        let length = data.len() as u32;
        let header = DataHeader {
            offset,
            length,
            ..*r2t
        };
        self.pdu(&header.encode(&ch), data)
    }
}

/// A PDU as it came.
#[derive(Clone, Debug)]
pub struct Pdu {
    pub ch: CommonHeader,
    pub bytes: Vec<u8>,
}

impl Pdu {
    fn first<const N: usize>(&self, pdu_type: PduType) -> &[u8; N] {
        assert_eq!(self.ch.pdu_type, pdu_type, "{:?}", self.bytes);
        self.bytes.first_chunk().unwrap()
    }

    /// Without More, which says nothing of the command.
    pub fn cqe(&self) -> Cqe {
        let cqe = capsule_cqe(self.first(PduType::CAPSULE_RESP));
        Cqe {
            status: cqe.status.without_more(),
            ..cqe
        }
    }

    pub fn r2t(&self) -> DataHeader {
        DataHeader::decode(self.first(PduType::R2T))
    }

    pub fn term(&self) -> TermReq {
        TermReq::decode(self.first(PduType::C2H_TERM_REQ))
    }

    /// The data of a C2HData, whose digest must be right.
    pub fn data(&self) -> &[u8] {
        let head = DataHeader::decode(self.first(PduType::C2H_DATA));
        let (start, len) = (usize::from(self.ch.pdo), head.length as usize);
        let (data, digest) = self.bytes[start..].split_at(len);
        if self.ch.flags.contains(PduFlags::DDGST) {
            assert_eq!(digest, crc32c(0, data).to_le_bytes());
        }
        data
    }
}

/// One connection.
#[derive(Debug)]
pub struct Raw {
    pub stream: TcpStream,
    pub digests: Digests,
    /// Bytes of one write.
    pub chunk: usize,
}

impl Raw {
    /// A TCP connection, nothing more.
    pub fn tcp(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            digests: Digests::default(),
            chunk: usize::MAX,
        }
    }

    /// A connection after ICReq and ICResp.
    pub fn open(address: SocketAddr, digests: Digests) -> Self {
        let mut raw = Self::tcp(address);
        raw.send(&digests.ic_req());
        assert_eq!(raw.recv().ch.pdu_type, PduType::IC_RESP);
        raw.digests = digests;
        raw
    }

    /// An enabled controller's admin queue, and its CNTLID.
    pub fn admin(address: SocketAddr) -> (Self, u16) {
        let mut raw = Self::open(address, Digests::default());
        let cntlid = raw.connect_ok(&admin_connect(), &connect_data());
        raw.ok(&enable(), &[]);
        raw.ok(&set_queues(8), &[]);
        (raw, cntlid)
    }

    /// An I/O queue of a controller, of 128 entries.
    pub fn io(address: SocketAddr, cntlid: u16, qid: u16) -> Self {
        Self::io_with(address, cntlid, qid, Digests::default())
    }

    pub fn io_with(address: SocketAddr, cntlid: u16, qid: u16, digests: Digests) -> Self {
        let mut raw = Self::open(address, digests);
        let data = ConnectData {
            cntlid,
            ..connect_data()
        };
        raw.connect_ok(&io_connect(qid), &data);
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(self.chunk) {
            self.stream.write_all(chunk).unwrap();
        }
    }

    /// The next PDU.
    pub fn try_recv(&mut self) -> io::Result<Pdu> {
        read_pdu(&mut self.stream)
    }

    pub fn recv(&mut self) -> Pdu {
        self.try_recv().unwrap()
    }

    /// Sends a command, with its data in the capsule.
    pub fn submit(&mut self, sqe: &Sqe, data: &[u8]) {
        let capsule = self.digests.capsule(sqe, data);
        self.send(&capsule);
    }

    /// Runs a command that answers with nothing but a completion.
    pub fn execute(&mut self, sqe: &Sqe, data: &[u8]) -> Cqe {
        self.submit(sqe, data);
        let cqe = self.recv().cqe();
        assert_eq!(cqe.cid, sqe.cid());
        cqe
    }

    /// The same, and it must succeed.
    pub fn ok(&mut self, sqe: &Sqe, data: &[u8]) -> Cqe {
        let cqe = self.execute(sqe, data);
        assert_eq!(cqe.status, Status::SUCCESS, "{sqe:?}");
        cqe
    }

    /// Runs a command that reads.
    pub fn read(&mut self, sqe: &Sqe) -> Vec<u8> {
        self.submit(sqe, &[]);
        let data = self.recv().data().to_vec();
        assert_eq!(self.recv().cqe().status, Status::SUCCESS, "{sqe:?}");
        data
    }

    /// Sends what is asked for, zeroes, and takes data until a command ends: its CID and status, and
    /// the bytes that were moved.
    pub fn next_end(&mut self) -> (u16, Status, usize) {
        let mut moved = 0;
        loop {
            let pdu = self.recv();
            match pdu.ch.pdu_type {
                C2H_DATA => moved += pdu.data().len(),
                R2T => {
                    let r2t = pdu.r2t();
                    let zeroes = vec![0; r2t.length as usize];
                    moved += zeroes.len();
                    let data = self.digests.h2c_data(&r2t, r2t.offset, &zeroes, true);
                    self.send(&data);
                }
                _ => {
                    let cqe = pdu.cqe();
                    return (cqe.cid, cqe.status, moved);
                }
            }
        }
    }

    /// Connect; the response's status and dword 0.
    pub fn connect(&mut self, command: &ConnectCommand, data: &ConnectData) -> (Status, u32) {
        let cqe = self.execute(&connect_sqe(command), &encode(data));
        (cqe.status, cqe.result as u32)
    }

    pub fn connect_ok(&mut self, command: &ConnectCommand, data: &ConnectData) -> u16 {
        let (status, dw0) = self.connect(command, data);
        assert_eq!(status, Status::SUCCESS, "{command:?}");
        ConnectResponse::from_dw0(dw0).cntlid
    }

    /// The target has nothing more to say and closes.
    pub fn expect_end(&mut self) {
        match self.try_recv() {
            Ok(pdu) => panic!("{pdu:?}"),
            Err(err) => assert!(
                matches!(
                    err.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ),
                "{err}"
            ),
        }
    }

    /// The target ends the connection by a C2HTermReq, now.
    pub fn expect_term(&mut self) -> (Fes, u32) {
        let term = self.recv().term();
        self.expect_end();
        (term.fes, term.fei)
    }
}

/// Reads one PDU; the end of the stream is `UnexpectedEof`.
pub fn read_pdu(stream: &mut TcpStream) -> io::Result<Pdu> {
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    let ch = CommonHeader::decode(&head);
    let mut bytes = vec![0; ch.plen as usize];
    bytes[..8].copy_from_slice(&head);
    stream.read_exact(&mut bytes[8..])?;
    Ok(Pdu { ch, bytes })
}

pub fn admin_connect() -> ConnectCommand {
    ConnectCommand {
        sqsize: 31,
        kato: 120_000,
        ..ConnectCommand::default()
    }
}

pub fn io_connect(qid: u16) -> ConnectCommand {
    ConnectCommand {
        qid,
        sqsize: 127,
        ..ConnectCommand::default()
    }
}

/// The data of a good Connect for an admin queue.
pub fn connect_data() -> ConnectData {
    ConnectData {
        hostid: HOSTID,
        cntlid: CNTLID_DYNAMIC,
        subnqn: Nqn::new(NQN).unwrap().to_field(),
        hostnqn: Nqn::new(HOSTNQN).unwrap().to_field(),
    }
}

pub fn encode(data: &ConnectData) -> [u8; 1024] {
    let mut out = [0; 1024];
    data.encode(&mut out);
    out
}

pub fn connect_sqe(command: &ConnectCommand) -> Sqe {
    with_sgl(command.to_sqe(), 0, SglDescriptor::in_capsule(1024))
}

/// Sets CC.EN.
pub fn enable() -> Sqe {
    set_cc(Cc::default().with_en(true).with_iosqes(6).with_iocqes(4))
}

pub fn set_cc(cc: Cc) -> Sqe {
    PropertySet {
        size: PropertySize::BYTES_4,
        offset: PropertyOffset::CC,
        value: cc.0.into(),
    }
    .to_sqe()
}

/// Set Features Number of Queues.
pub fn set_queues(pairs: u16) -> Sqe {
    command::set_features(
        0,
        &SetFeatures::new(
            Fid::NUMBER_OF_QUEUES,
            NumberOfQueues::pairs(pairs).to_bits(),
        ),
    )
}

/// Set Features Keep Alive Timer, in milliseconds.
pub fn keep_alive_timeout(kato: u32) -> Sqe {
    command::set_features(0, &SetFeatures::new(Fid::KEEP_ALIVE_TIMER, kato))
}

pub fn disconnect() -> Sqe {
    FabricsType::DISCONNECT.sqe()
}

pub fn with_sgl(mut sqe: Sqe, cid: u16, sgl: SglDescriptor) -> Sqe {
    sqe.set_cid(cid);
    sqe.set_sgl(sgl);
    sqe
}

/// Blocks of 512 bytes of namespace 1.
pub fn read(cid: u16, slba: u64, blocks: u32) -> Sqe {
    let sgl = SglDescriptor::transport(blocks * 512);
    with_sgl(command::read(1, slba, blocks), cid, sgl)
}

/// A write whose data goes in the capsule.
pub fn write_in_capsule(cid: u16, slba: u64, blocks: u32) -> Sqe {
    let sgl = SglDescriptor::in_capsule(blocks * 512);
    with_sgl(command::write(1, slba, blocks), cid, sgl)
}

/// A write whose data goes by R2T.
pub fn write_by_r2t(cid: u16, slba: u64, blocks: u32) -> Sqe {
    let sgl = SglDescriptor::transport(blocks * 512);
    with_sgl(command::write(1, slba, blocks), cid, sgl)
}
