//! A tiny controller that speaks bytes on a thread: just enough for this crate's tests, and on
//! purpose nothing of `nvmf-target`.

use nvmf_host::nvmf_proto::tcp::crc32c;
use nvmf_host::nvmf_proto::wire::discovery::{DiscoveryLogEntry, DiscoveryLogHeader};
use nvmf_host::nvmf_proto::wire::fabrics::{ConnectCommand, FabricsType, PropertyGet, PropertySet};
use nvmf_host::nvmf_proto::wire::feature::{Fid, NumberOfQueues, SetFeatures};
use nvmf_host::nvmf_proto::wire::identify::{
    Cns, Csi, IdentifyCommand, IdentifyController, IdentifyNamespace, LbaFormat, NsIdDescriptors,
    encode_nsid_list,
};
use nvmf_host::nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid, SmartLog};
use nvmf_host::nvmf_proto::wire::nqn::Nqn;
use nvmf_host::nvmf_proto::wire::opcode::Direction;
use nvmf_host::nvmf_proto::wire::pdu::{
    CommonHeader, DataHeader, InitConnection, PduFlags, PduType, capsule_sqe, encode_capsule_resp,
};
use nvmf_host::nvmf_proto::wire::property::{Cap, Cc, Csts, PropertyOffset, Vs};
use nvmf_host::nvmf_proto::wire::{AdminOpcode, Cqe, NvmOpcode, Sqe, Status};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: usize = 8192;
pub(crate) const CNTLID: u16 = 17;
/// NN, and as many are active.
pub(crate) const NAMESPACES: u32 = 1500;

/// Changes the bytes that answer a command before they are sent.
pub(crate) type Tamper = Arc<dyn Fn(&Sqe, &mut Vec<u8>) + Send + Sync>;

/// How the controller behaves.
#[derive(Clone)]
pub(crate) struct Behavior {
    pub(crate) tamper: Tamper,
    /// Agree to do without SQ flow control, and then complete reads by the SUCCESS flag.
    pub(crate) disable_flow_control: bool,
    /// Bytes of one C2HData PDU.
    pub(crate) c2h_data: usize,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            tamper: Arc::new(|_, _| {}),
            disable_flow_control: true,
            c2h_data: usize::MAX,
        }
    }
}

/// What all connections of a controller share.
#[derive(Default)]
struct State {
    cc: u32,
    shut_down: bool,
    disk: Vec<u8>,
    genctr: u64,
    flushes: u64,
}

/// Serves on a port of the loopback interface until the test ends.
pub(crate) fn serve(behavior: Behavior) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State {
        disk: vec![0; BLOCK * BLOCKS],
        ..State::default()
    }));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (behavior, state) = (behavior.clone(), Arc::clone(&state));
            // A connection ends when the host closes it, which reads as an error here.
            thread::spawn(move || Connection::start(stream, behavior, state).map(Connection::run));
        }
    });
    address
}

/// A command and the data that came with it.
type Capsule = (Sqe, Vec<u8>);

struct Connection {
    stream: TcpStream,
    behavior: Behavior,
    state: Arc<Mutex<State>>,
    header_digest: bool,
    data_digest: bool,
    admin: bool,
    no_flow_control: bool,
    sqhd: u16,
    entries: u16,
    events: VecDeque<Sqe>,
    /// Commands that came while data of another was waited for.
    backlog: VecDeque<Capsule>,
}

impl Connection {
    fn start(mut stream: TcpStream, behavior: Behavior, state: Arc<Mutex<State>>) -> Option<Self> {
        stream.set_nodelay(true).ok()?;
        let mut request = [0; 128];
        stream.read_exact(&mut request).ok()?;
        let request = InitConnection::decode(&request);
        let response = InitConnection {
            pfv: 0,
            pda: 0,
            dgst: request.dgst,
            max: 8192,
        };
        let mut pdu = response.encode(PduType::IC_RESP).to_vec();
        (behavior.tamper)(&Sqe::default(), &mut pdu);
        stream.write_all(&pdu).ok()?;
        Some(Self {
            stream,
            behavior,
            state,
            header_digest: request.dgst & 1 != 0,
            data_digest: request.dgst & 2 != 0,
            admin: true,
            no_flow_control: false,
            sqhd: 0,
            entries: 2,
            events: VecDeque::new(),
            backlog: VecDeque::new(),
        })
    }

    fn run(mut self) -> Option<()> {
        loop {
            let (sqe, data) = match self.backlog.pop_front() {
                Some(next) => next,
                None => self.read_pdu()?.1?,
            };
            let data = self.gather(&sqe, data)?;
            let reply = self.answer(&sqe, &data);
            self.reply(&sqe, reply)?;
        }
    }

    /// A PDU: its header, and the command and data if it is a capsule.
    fn read_pdu(&mut self) -> Option<(Vec<u8>, Option<Capsule>)> {
        let mut pdu = vec![0; 8];
        self.stream.read_exact(&mut pdu).ok()?;
        let header = CommonHeader::decode(pdu.first_chunk()?);
        pdu.resize(header.plen as usize, 0);
        self.stream.read_exact(&mut pdu[8..]).ok()?;
        let hlen = usize::from(header.hlen);
        if self.header_digest && header.pdu_type != PduType::H2C_TERM_REQ {
            assert_eq!(pdu[hlen..hlen + 4], crc32c(0, &pdu[..hlen]).to_le_bytes());
        }
        if header.pdu_type != PduType::CAPSULE_CMD {
            return Some((pdu, None));
        }
        let data = self.pdu_data(&header, &pdu).to_vec();
        let sqe = capsule_sqe(pdu.first_chunk()?);
        Some((pdu, Some((sqe, data))))
    }

    fn pdu_data<'a>(&self, header: &CommonHeader, pdu: &'a [u8]) -> &'a [u8] {
        if header.pdo == 0 {
            return &[];
        }
        let tail = if self.data_digest { 4 } else { 0 };
        let (data, digest) =
            pdu[usize::from(header.pdo)..].split_at(pdu.len() - usize::from(header.pdo) - tail);
        if self.data_digest {
            assert_eq!(digest, crc32c(0, data).to_le_bytes());
        }
        data
    }

    /// The data of a command, by R2T if the capsule did not bring it.
    fn gather(&mut self, sqe: &Sqe, data: Vec<u8>) -> Option<Vec<u8>> {
        let len = sqe.sgl().length;
        let opcode = if sqe.opcode() == 0x7f {
            sqe.fctype()
        } else {
            sqe.opcode()
        };
        let to_us = Direction::of(opcode) == Direction::HostToController;
        if !to_us || !data.is_empty() || len == 0 {
            return Some(data);
        }
        let r2t = DataHeader {
            cccid: sqe.cid(),
            ttag: 0x5555,
            offset: 0,
            length: len,
        };
        let mut pdu = self.finish(&r2t.encode(&self.header(PduType::R2T, 0)), &[]);
        (self.behavior.tamper)(sqe, &mut pdu);
        self.stream.write_all(&pdu).ok()?;
        let mut data = Vec::new();
        while data.len() < len as usize {
            let (pdu, command) = self.read_pdu()?;
            if let Some(command) = command {
                self.backlog.push_back(command);
                continue;
            }
            let header = CommonHeader::decode(pdu.first_chunk()?);
            assert_eq!(header.pdu_type, PduType::H2C_DATA);
            let head = DataHeader::decode(pdu.first_chunk()?);
            assert_eq!((head.ttag, head.offset as usize), (0x5555, data.len()));
            let part = self.pdu_data(&header, &pdu);
            assert!(part.len() <= 8192);
            data.extend_from_slice(part);
            let last = header.flags.contains(PduFlags::LAST_PDU);
            assert_eq!(last, data.len() == len as usize);
        }
        Some(data)
    }

    fn answer(&mut self, sqe: &Sqe, data: &[u8]) -> Reply {
        match sqe.opcode() {
            0x7f => self.fabrics(sqe, data),
            opcode if self.admin => self.admin_command(AdminOpcode(opcode), sqe),
            opcode => self.io_command(NvmOpcode(opcode), sqe, data),
        }
    }

    fn fabrics(&mut self, sqe: &Sqe, data: &[u8]) -> Reply {
        let mut state = self.state.lock().unwrap();
        match FabricsType::of(sqe) {
            FabricsType::CONNECT => {
                let connect = ConnectCommand::decode(sqe);
                self.admin = connect.qid == 0;
                self.entries = connect.sqsize.saturating_add(1);
                self.no_flow_control =
                    self.behavior.disable_flow_control && connect.cattr.bits() & 4 != 0;
                assert_eq!(data.len(), 1024);
                assert!(connect.qid == 0 || data[16..18] == CNTLID.to_le_bytes());
                Reply::result(u64::from(CNTLID))
            }
            FabricsType::PROPERTY_GET => match PropertyGet::decode(sqe).offset {
                PropertyOffset::CAP => Reply::result(Cap::default().with_mqes(127).with_css(1).0),
                PropertyOffset::VS => Reply::result(u64::from(Vs::V2_1.0)),
                PropertyOffset::CSTS => {
                    let ready = Csts::default().with_rdy(Cc(state.cc).en());
                    let shst = if state.shut_down {
                        Csts::SHST_COMPLETE
                    } else {
                        0
                    };
                    Reply::result(u64::from(ready.with_shst(shst).0))
                }
                _ => Reply::status(Status::INVALID_FIELD),
            },
            FabricsType::PROPERTY_SET => {
                let set = PropertySet::decode(sqe);
                assert_eq!(set.offset, PropertyOffset::CC);
                state.cc = u32::try_from(set.value).unwrap();
                state.shut_down = Cc(state.cc).shn() != 0;
                Reply::result(0)
            }
            FabricsType::DISCONNECT => Reply::result(0),
            _ => Reply::status(Status::INVALID_FIELD),
        }
    }

    fn admin_command(&mut self, opcode: AdminOpcode, sqe: &Sqe) -> Reply {
        match opcode {
            AdminOpcode::IDENTIFY => identify(sqe),
            AdminOpcode::GET_LOG_PAGE => self.log_page(sqe),
            AdminOpcode::SET_FEATURES if SetFeatures::decode(sqe).fid == Fid::NUMBER_OF_QUEUES => {
                Reply::result(u64::from(NumberOfQueues::pairs(4).to_bits()))
            }
            AdminOpcode::SET_FEATURES => Reply::result(0),
            AdminOpcode::GET_FEATURES => Reply::result(0x1234),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                self.events.push_back(*sqe);
                Reply::Later
            }
            // In this controller a Keep Alive makes an event happen.
            AdminOpcode::KEEP_ALIVE => {
                if let Some(held) = self.events.pop_front() {
                    let dw0 = AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.dw0();
                    self.reply(&held, Reply::result(u64::from(dw0)));
                }
                Reply::result(0)
            }
            _ => Reply::status(Status::INVALID_OPCODE),
        }
    }

    fn log_page(&self, sqe: &Sqe) -> Reply {
        let command = GetLogPage::decode(sqe);
        let mut page = Vec::new();
        match command.lid {
            Lid::DISCOVERY => {
                let mut state = self.state.lock().unwrap();
                // The log changes once while it is read.
                if command.lpo > 0 && state.genctr == 0 {
                    state.genctr = 1;
                }
                let numrec = 6;
                let mut head = [0; 1024];
                DiscoveryLogHeader {
                    genctr: state.genctr,
                    numrec,
                    ..Default::default()
                }
                .encode(&mut head);
                page.extend_from_slice(&head);
                for i in 0..numrec {
                    let entry = DiscoveryLogEntry::default().with_path(
                        &Nqn::discovery(),
                        "192.0.2.1",
                        &format!("{}", 4420 + i),
                    );
                    let mut bytes = [0; 1024];
                    entry.encode(&mut bytes);
                    page.extend_from_slice(&bytes);
                }
            }
            Lid::SMART => {
                let mut bytes = [0; 512];
                let flushes = u128::from(self.state.lock().unwrap().flushes);
                SmartLog {
                    host_read_commands: flushes,
                    ..Default::default()
                }
                .encode(&mut bytes);
                page.extend_from_slice(&bytes);
            }
            _ => return Reply::status(Status::INVALID_LOG_PAGE),
        }
        let start = usize::try_from(command.lpo).unwrap();
        let len = usize::try_from(command.length()).unwrap();
        Reply::Data(page[start..start + len].to_vec())
    }

    fn io_command(&self, opcode: NvmOpcode, sqe: &Sqe, data: &[u8]) -> Reply {
        let mut state = self.state.lock().unwrap();
        if opcode == NvmOpcode::FLUSH {
            state.flushes += 1;
            return Reply::result(0);
        }
        if opcode == NvmOpcode::DATASET_MANAGEMENT {
            assert_eq!(data.len(), (sqe.cdw10() as usize + 1) * 16);
            return Reply::result(0);
        }
        let start = usize::try_from(sqe.slba()).unwrap().saturating_mul(BLOCK);
        let end = start.saturating_add(sqe.block_count() as usize * BLOCK);
        let Some(blocks) = state.disk.get_mut(start..end) else {
            return Reply::status(Status::LBA_OUT_OF_RANGE.dnr());
        };
        match opcode {
            NvmOpcode::READ => return Reply::Data(blocks.to_vec()),
            NvmOpcode::WRITE => blocks.copy_from_slice(data),
            NvmOpcode::WRITE_ZEROES => blocks.fill(0),
            _ => return Reply::status(Status::INVALID_OPCODE),
        }
        Reply::result(0)
    }

    fn reply(&mut self, sqe: &Sqe, reply: Reply) -> Option<()> {
        let mut bytes = Vec::new();
        let (result, status) = match reply {
            Reply::Later => return Some(()),
            Reply::Done(result, status) => (result, status),
            Reply::Data(data) => {
                let by_flag = self.no_flow_control;
                let parts = data.chunks(self.behavior.c2h_data);
                let count = parts.len();
                let mut offset = 0;
                for (i, part) in parts.enumerate() {
                    let mut header = self.header(PduType::C2H_DATA, part.len());
                    header.flags.set(PduFlags::LAST_PDU, i + 1 == count);
                    header
                        .flags
                        .set(PduFlags::SUCCESS, i + 1 == count && by_flag);
                    let length = u32::try_from(part.len()).unwrap();
                    let head = DataHeader {
                        cccid: sqe.cid(),
                        ttag: 0,
                        offset,
                        length,
                    };
                    bytes.extend(self.finish(&head.encode(&header), part));
                    offset += length;
                }
                (0, Status::SUCCESS)
            }
        };
        if bytes.is_empty() || !self.no_flow_control {
            self.sqhd = (self.sqhd + 1) % self.entries;
            let sqhd = if self.no_flow_control {
                u16::MAX
            } else {
                self.sqhd
            };
            let cqe = Cqe {
                result,
                sqhd,
                cid: sqe.cid(),
                status,
            };
            let header = self.header(PduType::CAPSULE_RESP, 0);
            bytes.extend(self.finish(&encode_capsule_resp(&header, &cqe), &[]));
        }
        (self.behavior.tamper)(sqe, &mut bytes);
        self.stream.write_all(&bytes).ok()
    }

    fn header(&self, pdu_type: PduType, data: usize) -> CommonHeader {
        let mut flags = PduFlags::empty();
        flags.set(PduFlags::HDGST, self.header_digest);
        let head = if self.header_digest { 28u8 } else { 24 };
        let is_data = pdu_type == PduType::C2H_DATA;
        flags.set(PduFlags::DDGST, is_data && self.data_digest);
        let tail = if is_data && self.data_digest { 4 } else { 0 };
        let plen = u32::try_from(usize::from(head) + data + tail).unwrap();
        CommonHeader {
            pdu_type,
            flags,
            hlen: 24,
            pdo: if is_data { head } else { 0 },
            plen,
        }
    }

    fn finish(&self, head: &[u8], data: &[u8]) -> Vec<u8> {
        let mut pdu = head.to_vec();
        if self.header_digest {
            pdu.extend_from_slice(&crc32c(0, head).to_le_bytes());
        }
        pdu.extend_from_slice(data);
        if self.data_digest && !data.is_empty() {
            pdu.extend_from_slice(&crc32c(0, data).to_le_bytes());
        }
        pdu
    }
}

enum Reply {
    Later,
    Done(u64, Status),
    Data(Vec<u8>),
}

impl Reply {
    fn result(result: u64) -> Self {
        Self::Done(result, Status::SUCCESS)
    }

    fn status(status: Status) -> Self {
        Self::Done(0, status)
    }
}

fn identify(sqe: &Sqe) -> Reply {
    let mut page = [0; 4096];
    match IdentifyCommand::decode(sqe).cns {
        Cns::CONTROLLER => IdentifyController {
            cntlid: CNTLID,
            mdts: 3,
            nn: NAMESPACES,
            ioccsz: (64 + 4096) / 16,
            ..Default::default()
        }
        .encode(&mut page),
        Cns::NAMESPACE => {
            let mut namespace = IdentifyNamespace {
                nsze: BLOCKS as u64,
                ..IdentifyNamespace::default()
            };
            namespace.lbaf[0] = LbaFormat {
                data_size_log2: 9,
                ..LbaFormat::default()
            };
            namespace.encode(&mut page);
        }
        // More namespaces than one list holds.
        Cns::ACTIVE_NSID_LIST => {
            encode_nsid_list(
                (1..=NAMESPACES).filter(|&nsid| nsid > sqe.nsid()),
                &mut page,
            );
        }
        Cns::NS_ID_DESCRIPTORS => {
            NsIdDescriptors {
                uuid: Some([3; 16]),
                csi: Some(Csi::NVM),
                ..Default::default()
            }
            .encode(&mut page);
        }
        _ => return Reply::status(Status::INVALID_FIELD),
    }
    Reply::Data(page.to_vec())
}
