//! How a case gets to where it begins, and how it finds out what a target answers.

use super::answer::Answer;
use crate::command;
use crate::raw::{End, RawConnection, RawPdu, Received, ReceivedPdu};
use nvmf_proto::wire::fabrics::{
    CNTLID_DYNAMIC, ConnectCommand, ConnectData, ConnectResponse, PropertyGet, PropertySet,
    PropertySize,
};
use nvmf_proto::wire::feature::{Fid, NumberOfQueues, SetFeatures};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::pdu::{DataHeader, InitConnection, PduFlags};
use nvmf_proto::wire::property::{Cc, Csts, PropertyOffset};
use nvmf_proto::wire::{SglDescriptor, Sqe, Status};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// CID of the command that a case is about.
pub(super) const CID: u16 = 1;
/// CID of the command that shows that a connection goes on.
const PROBE: u16 = 0x7ffe;
/// CID of the commands on the way to where a case begins.
const SETUP: u16 = 0x7fff;
/// Bytes that a case sends at most for R2Ts that it did not expect.
const GENEROSITY: u64 = 2 << 20;
/// KATO of the controllers: longer than any case takes.
const KATO_MS: u32 = 120_000;
/// Entries of the admin queues.
pub(super) const ADMIN_ENTRIES: u16 = 32;

/// What is known of the target, and who this host is.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) address: SocketAddr,
    pub(super) patience: Duration,
    pub(super) subsystem: Nqn,
    pub(super) host: Nqn,
    pub(super) host_id: [u8; 16],
    pub(super) nsid: u32,
    pub(super) blocks: u64,
    pub(super) block_size: u32,
    /// The first block that cases read, and write if they may.
    pub(super) slba: u64,
    pub(super) may_write: bool,
    /// In-capsule data of I/O commands, bytes.
    pub(super) in_capsule: u32,
    /// MDTS in bytes, if there is a limit.
    pub(super) max_transfer: Option<u32>,
    pub(super) maxh2cdata: u32,
    /// Entries of the I/O queues that cases use.
    pub(super) entries: u16,
    /// Asynchronous Event Requests that may be outstanding.
    pub(super) event_requests: u16,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
}

impl Facts {
    pub(super) const fn bytes(&self, blocks: u32) -> u32 {
        self.block_size.saturating_mul(blocks)
    }

    /// Blocks of zeroes.
    pub(super) fn zeroes(&self, blocks: u32) -> Vec<u8> {
        vec![0; self.bytes(blocks) as usize]
    }

    pub(super) fn read(&self, blocks: u32) -> Sqe {
        let sqe = command::read(self.nsid, self.slba, blocks);
        with_sgl(sqe, SglDescriptor::transport(self.bytes(blocks)))
    }

    /// A write whose data is to be asked for.
    pub(super) fn write(&self, blocks: u32) -> Sqe {
        let sqe = command::write(self.nsid, self.slba, blocks);
        with_sgl(sqe, SglDescriptor::transport(self.bytes(blocks)))
    }

    /// Blocks of a write that is too large for its data to be in the capsule, an even number: some
    /// targets send no R2T for less.
    pub(super) fn owed_blocks(&self) -> u32 {
        (self.in_capsule / self.block_size / 2 + 1) * 2
    }

    /// Such a write.
    pub(super) fn owed(&self) -> Sqe {
        self.write(self.owed_blocks())
    }

    /// A write whose data is in the capsule.
    pub(super) fn write_in_capsule(&self, blocks: u32) -> Sqe {
        let sqe = command::write(self.nsid, self.slba, blocks);
        with_sgl(sqe, SglDescriptor::in_capsule(self.bytes(blocks)))
    }

    pub(super) fn tcp(&self) -> Result<RawConnection, Setback> {
        RawConnection::connect(self.address, self.patience).map_err(failed("connecting"))
    }

    pub(super) fn open(&self, asked: Digests) -> Result<RawConnection, Setback> {
        if (asked.header && !self.header_digest) || (asked.data && !self.data_digest) {
            return Err(Setback::NotOffered("digests"));
        }
        let ic = InitConnection {
            dgst: asked.bits(),
            ..InitConnection::default()
        };
        let opened = RawConnection::open(self.address, self.patience, &ic);
        opened
            .map(|(connection, _)| connection)
            .map_err(failed("ICReq"))
    }

    pub(super) fn connect_data(&self, subsystem: &Nqn, cntlid: u16) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        ConnectData {
            hostid: self.host_id,
            cntlid,
            subnqn: subsystem.to_field(),
            hostnqn: self.host.to_field(),
        }
        .encode(&mut bytes);
        bytes
    }

    /// The Connect commands of an admin and of an I/O queue, as they should be.
    pub(super) fn connect_command(&self, qid: u16) -> ConnectCommand {
        let (sqsize, kato) = match qid {
            0 => (ADMIN_ENTRIES - 1, KATO_MS),
            _ => (self.entries - 1, 0),
        };
        ConnectCommand {
            qid,
            sqsize,
            kato,
            ..ConnectCommand::default()
        }
    }

    fn join(
        &self,
        connection: &mut RawConnection,
        command: &ConnectCommand,
        subsystem: &Nqn,
        cntlid: u16,
    ) -> Result<u16, Setback> {
        let sqe = connect_sqe(command);
        let data = self.connect_data(subsystem, cntlid);
        let done = self.execute(connection, sqe, &data)?;
        Ok(ConnectResponse::from_dw0(done).cntlid)
    }

    /// Runs a command that must succeed, and returns dword 0.
    pub(super) fn execute(
        &self,
        connection: &mut RawConnection,
        mut sqe: Sqe,
        data: &[u8],
    ) -> Result<u32, Setback> {
        sqe.set_cid(SETUP);
        // An error shows in what comes.
        let _ = connection.submit(&sqe, data);
        match self.observe(connection, SETUP, None) {
            Answer::Completed { status, dw0, .. } if status.is_success() => Ok(dw0),
            other => Err(Setback::Failed(format!("{sqe:?}: {other}"))),
        }
    }

    /// An admin queue, enabled or not, and its CNTLID.
    pub(super) fn admin(
        &self,
        subsystem: &Nqn,
        enable: bool,
    ) -> Result<(RawConnection, u16), Setback> {
        let mut admin = self.open(Digests::NONE)?;
        let command = self.connect_command(0);
        let cntlid = self.join(&mut admin, &command, subsystem, CNTLID_DYNAMIC)?;
        if enable {
            self.execute(&mut admin, set_cc(CC_ENABLED), &[])?;
            self.until_ready(&mut admin)?;
        }
        if enable && !subsystem.is_discovery() {
            self.execute(&mut admin, set_queues(4), &[])?;
        }
        Ok((admin, cntlid))
    }

    fn until_ready(&self, admin: &mut RawConnection) -> Result<(), Setback> {
        let deadline = Instant::now() + self.patience;
        loop {
            let csts = self.execute(admin, get_property(PropertyOffset::CSTS, 4), &[])?;
            if Csts(csts).rdy() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Setback::Failed("CSTS.RDY stays 0".to_owned()));
            }
        }
    }

    pub(super) fn io(
        &self,
        cntlid: u16,
        qid: u16,
        asked: Digests,
    ) -> Result<RawConnection, Setback> {
        let mut queue = self.open(asked)?;
        let command = self.connect_command(qid);
        self.join(&mut queue, &command, &self.subsystem, cntlid)?;
        Ok(queue)
    }

    /// What comes until the command `cid` has ended and, if there is a probe, that has, too; R2Ts
    /// are answered as a good host answers them. A target that goes on with something else is
    /// listened to for ten times the patience.
    pub(super) fn observe(
        &self,
        connection: &mut RawConnection,
        cid: u16,
        probe: Option<Sqe>,
    ) -> Answer {
        let mut ended: Option<(Status, u32)> = None;
        let (mut data, mut asked) = (0, 0);
        let mut left = connection.endurance;
        let completed = |(status, dw0), data| Answer::Completed { status, dw0, data };
        loop {
            let pdu = match connection.receive_next(&mut left) {
                Received::Pdu(pdu) => pdu,
                Received::Nonsense(header) => return Answer::Nonsense(format!("{header:?}")),
                Received::Silence if left.is_zero() => {
                    return Answer::Broken("PDU after PDU, and no end".to_owned());
                }
                Received::End(end) => {
                    return match ended {
                        Some((status, _)) => Answer::CompletedAndEnded(status, end),
                        None => Answer::Ended(end),
                    };
                }
                Received::Silence => {
                    return match ended {
                        Some((status, _)) => {
                            Answer::Broken(format!("{status}, and then nothing more"))
                        }
                        None => Answer::Silence,
                    };
                }
            };
            if let Some(flaw) = pdu.flaw(connection.terms) {
                return Answer::Nonsense(format!("{flaw} of {:?}", pdu.common));
            }
            if pdu.ic_resp().is_some() {
                return Answer::Ready;
            }
            if let Some(term) = pdu.term() {
                return Answer::Term(term, end_of(connection, &mut left));
            }
            if let Some(r2t) = pdu.r2t() {
                asked += u64::from(r2t.length);
                if asked > GENEROSITY {
                    return Answer::Asked(asked);
                }
                self.supply(connection, &r2t);
            }
            if let Some((head, bytes)) = pdu.c2h_data()
                && head.cccid == cid
            {
                data += bytes.len();
            }
            match completion(&pdu) {
                Some((of, status, dw0)) if of == cid && ended.is_none() => match probe {
                    None => return completed((status, dw0), data),
                    Some(mut probe) => {
                        ended = Some((status, dw0));
                        probe.set_cid(PROBE);
                        let _ = connection.submit(&probe, &[]);
                    }
                },
                Some((PROBE, ..)) if ended.is_some() => {
                    return ended.map_or(Answer::Silence, |ended| completed(ended, data));
                }
                Some((of, ..)) if of == cid => {
                    return Answer::Nonsense(format!("CID {cid} completed twice"));
                }
                _ => {}
            }
        }
    }

    /// Sends zeroes for an R2T.
    pub(super) fn supply(&self, connection: &mut RawConnection, r2t: &DataHeader) {
        let piece = self.maxh2cdata.max(1);
        let mut sent = 0;
        while sent < r2t.length {
            let len = piece.min(r2t.length - sent);
            let zeroes = vec![0; len as usize];
            let (offset, last) = (r2t.offset + sent, sent + len == r2t.length);
            let pdu = RawPdu::h2c_data(r2t, offset, &zeroes, last, connection.terms);
            if connection.send(&pdu.bytes()).is_err() {
                return;
            }
            sent += len;
        }
    }

    /// A command that shows that a queue goes on.
    pub(super) fn probe(&self, qid: u16) -> Sqe {
        if qid == 0 {
            get_property(PropertyOffset::VS, 4)
        } else {
            self.read(1)
        }
    }
}

/// What follows a C2HTermReq, for as long as there is something left of a time; bytes do not.
fn end_of(connection: &mut RawConnection, left: &mut Duration) -> Option<End> {
    loop {
        match connection.receive_next(left) {
            Received::End(end) => return Some(end),
            Received::Pdu(_) => {}
            Received::Silence | Received::Nonsense(_) => return None,
        }
    }
}

/// Which command a PDU completes, with which status and dword 0.
pub(super) fn completion(pdu: &ReceivedPdu) -> Option<(u16, Status, u32)> {
    if let Some(cqe) = pdu.cqe() {
        let [a, b, c, d, ..] = cqe.result.to_le_bytes();
        return Some((cqe.cid, cqe.status, u32::from_le_bytes([a, b, c, d])));
    }
    let (head, _) = pdu.c2h_data()?;
    let ends = pdu.common.flags.contains(PduFlags::SUCCESS);
    ends.then_some((head.cccid, Status::SUCCESS, 0))
}

/// Which digests a case asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digests {
    pub(super) header: bool,
    pub(super) data: bool,
}

impl Digests {
    pub(super) const NONE: Self = Self {
        header: false,
        data: false,
    };
    pub(super) const BOTH: Self = Self {
        header: true,
        data: true,
    };

    fn bits(self) -> u8 {
        u8::from(self.header) * InitConnection::HDGST_ENABLE
            + u8::from(self.data) * InitConnection::DDGST_ENABLE
    }
}

/// Where a case begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// A TCP connection.
    Tcp,
    /// After ICReq and ICResp.
    Open,
    /// The admin queue of an I/O controller that is not enabled.
    Disabled,
    /// The same, enabled.
    Admin,
    /// The admin queue of a discovery controller, enabled.
    Discovery,
    /// I/O queue 1 of a controller.
    Io(Digests),
}

/// Why a case could not be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setback {
    /// The target does not have what it takes.
    NotOffered(&'static str),
    /// The way there failed.
    Failed(String),
}

pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Setback {
    move |err| Setback::Failed(format!("{what}: {err}"))
}

/// The connections of one case. They last until the target was asked whether it still serves.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) facts: &'a Facts,
    /// The connection that the case is about.
    pub(super) connection: RawConnection,
    pub(super) cntlid: u16,
    pub(super) qid: u16,
    /// Other connections, that have to be there or are part of the case.
    pub(super) others: Vec<RawConnection>,
}

impl<'a> Scene<'a> {
    pub(super) fn set(facts: &'a Facts, at: At) -> Result<Self, Setback> {
        let mut others = Vec::new();
        let (mut cntlid, mut qid) = (0, 0);
        let connection = match at {
            At::Tcp => facts.tcp()?,
            At::Open => facts.open(Digests::NONE)?,
            At::Disabled | At::Admin => {
                let (admin, id) = facts.admin(&facts.subsystem, at == At::Admin)?;
                cntlid = id;
                admin
            }
            At::Discovery => {
                let (admin, id) = facts.admin(&Nqn::discovery(), true)?;
                cntlid = id;
                admin
            }
            At::Io(digests) => {
                let (admin, id) = facts.admin(&facts.subsystem, true)?;
                others.push(admin);
                (cntlid, qid) = (id, 1);
                facts.io(cntlid, qid, digests)?
            }
        };
        Ok(Self {
            facts,
            connection,
            cntlid,
            qid,
            others,
        })
    }

    /// What the target says to bytes. It may take none of them.
    pub(super) fn say(&mut self, bytes: &[u8]) -> Answer {
        let _ = self.connection.send(bytes);
        self.listen()
    }

    /// What the target says to what was sent.
    pub(super) fn listen(&mut self) -> Answer {
        let probe = self.facts.probe(self.qid);
        self.facts.observe(&mut self.connection, CID, Some(probe))
    }

    /// What the target says to a command.
    pub(super) fn command(&mut self, sqe: &Sqe, data: &[u8]) -> Answer {
        self.submit(CID, sqe, data);
        self.listen()
    }

    /// Sends a command under a CID.
    pub(super) fn submit(&mut self, cid: u16, sqe: &Sqe, data: &[u8]) {
        let mut sqe = *sqe;
        sqe.set_cid(cid);
        // Whatever becomes of it shows in what is received.
        let _ = self.connection.submit(&sqe, data);
    }

    /// The next PDU, if one comes.
    pub(super) fn next(&mut self) -> Option<ReceivedPdu> {
        match self.connection.receive() {
            Received::Pdu(pdu) => Some(pdu),
            _ => None,
        }
    }

    /// The next R2T of the command of the case.
    pub(super) fn r2t(&mut self) -> Result<DataHeader, Setback> {
        let pdu = self.next();
        let r2t = pdu.as_ref().and_then(ReceivedPdu::r2t);
        r2t.ok_or_else(|| Setback::Failed(format!("no R2T but {pdu:?}")))
    }

    /// The next completions as they come, at most `count`, by CID; R2Ts are left alone.
    pub(super) fn completions(&mut self, count: usize) -> Vec<(u16, Status)> {
        let mut completions = Vec::new();
        let mut left = self.connection.endurance;
        while completions.len() < count
            && let Received::Pdu(pdu) = self.connection.receive_next(&mut left)
        {
            completions.extend(completion(&pdu).map(|(cid, status, _)| (cid, status)));
        }
        completions
    }
}

/// CC of a controller that is in use.
pub(super) const CC_ENABLED: Cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);

pub(super) fn with_sgl(mut sqe: Sqe, sgl: SglDescriptor) -> Sqe {
    sqe.set_cid(CID);
    sqe.set_sgl(sgl);
    sqe
}

pub(super) fn connect_sqe(command: &ConnectCommand) -> Sqe {
    with_sgl(command.to_sqe(), SglDescriptor::in_capsule(1024))
}

pub(super) fn set_cc(cc: Cc) -> Sqe {
    PropertySet {
        size: PropertySize::BYTES_4,
        offset: PropertyOffset::CC,
        value: cc.0.into(),
    }
    .to_sqe()
}

/// Property Get of 4 or 8 bytes.
pub(super) fn get_property(offset: PropertyOffset, bytes: u8) -> Sqe {
    PropertyGet {
        size: PropertySize(bytes / 8),
        offset,
    }
    .to_sqe()
}

pub(super) fn set_queues(pairs: u16) -> Sqe {
    let bits = NumberOfQueues::pairs(pairs).to_bits();
    command::set_features(0, &SetFeatures::new(Fid::NUMBER_OF_QUEUES, bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmf_proto::wire::Cqe;
    use nvmf_proto::wire::pdu::{
        CommonHeader, Fes, PduType, TermReq, encode_capsule_cmd, encode_capsule_resp,
    };
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn facts(address: SocketAddr) -> Facts {
        Facts {
            address,
            patience: Duration::from_secs(10),
            subsystem: Nqn::discovery(),
            host: Nqn::discovery(),
            host_id: [1; 16],
            nsid: 1,
            blocks: 1024,
            block_size: 512,
            slba: 0,
            may_write: false,
            in_capsule: 8192,
            max_transfer: None,
            maxh2cdata: 4096,
            entries: 32,
            event_requests: 4,
            header_digest: false,
            data_digest: false,
        }
    }

    fn header(pdu_type: PduType, flags: u8, plen: u32) -> CommonHeader {
        CommonHeader {
            pdu_type,
            flags: PduFlags::from_bits_retain(flags),
            hlen: 24,
            pdo: if plen > 24 { 24 } else { 0 },
            plen,
        }
    }

    fn response(cid: u16, status: Status) -> Vec<u8> {
        let cqe = Cqe {
            result: 0,
            sqhd: 0,
            cid,
            status,
        };
        encode_capsule_resp(&header(PduType::CAPSULE_RESP, 0, 24), &cqe).to_vec()
    }

    fn data(pdu_type: PduType, length: u32, plen: u32) -> Vec<u8> {
        let head = DataHeader {
            cccid: CID,
            ttag: 0,
            offset: 0,
            length,
        };
        let mut bytes = head.encode(&header(pdu_type, 4, plen)).to_vec();
        bytes.resize(plen as usize, 0);
        bytes
    }

    /// A target that never stops, and never says what is waited for.
    #[test]
    fn targets_that_go_on_for_ever_are_not_listened_to_for_ever() {
        let other = response(CID + 1, Status::SUCCESS);
        let term = TermReq {
            fes: Fes::PDU_SEQUENCE,
            fei: 0,
        };
        let end = term.encode(PduType::C2H_TERM_REQ, 0).to_vec();
        for (first, expected) in [
            (
                &[][..],
                Answer::Broken("PDU after PDU, and no end".to_owned()),
            ),
            (&end, Answer::Term(term, None)),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let facts = facts(listener.local_addr().unwrap());
            let mut connection = facts.tcp().unwrap();
            connection.endurance = Duration::from_millis(50);
            let (mut target, _) = listener.accept().unwrap();
            let (first, many) = (first.to_vec(), other.repeat(100));
            let talker = std::thread::spawn(move || {
                let _ = target.write_all(&first);
                while target.write_all(&many).is_ok() {}
            });
            let answer = facts.observe(&mut connection, CID, Some(facts.probe(1)));
            assert_eq!(answer, expected);
            drop(connection);
            talker.join().unwrap();
        }
    }

    /// What a case makes of a target that says these bytes and closes.
    fn answer_to(bytes: &[u8]) -> Answer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let facts = facts(listener.local_addr().unwrap());
        let mut connection = facts.tcp().unwrap();
        let (mut target, _) = listener.accept().unwrap();
        target.write_all(bytes).unwrap();
        target.shutdown(std::net::Shutdown::Write).unwrap();
        // What the case sends is read, so that the end is no reset.
        let reader = std::thread::spawn(move || target.read_to_end(&mut Vec::new()));
        let answer = facts.observe(&mut connection, CID, Some(facts.probe(1)));
        drop(connection);
        reader.join().unwrap().unwrap();
        answer
    }

    #[test]
    fn targets_that_answer_nonsense_are_seen_through() {
        let ok = response(CID, Status::SUCCESS);
        let probed = response(PROBE, Status::SUCCESS);
        let completed = |data| Answer::Completed {
            status: Status::SUCCESS,
            dw0: 0,
            data,
        };
        let term = TermReq {
            fes: Fes::PDU_SEQUENCE,
            fei: 0,
        };
        let read = data(PduType::C2H_DATA, 512, 24 + 512);
        for (bytes, expected) in [
            ([&ok[..], &probed].concat(), completed(0)),
            ([&read[..], &ok, &probed].concat(), completed(512)),
            (
                ok.clone(),
                Answer::CompletedAndEnded(Status::SUCCESS, End::Closed),
            ),
            (Vec::new(), Answer::Ended(End::Closed)),
            (ok[..20].to_vec(), Answer::Ended(End::Closed)),
            (
                term.encode(PduType::C2H_TERM_REQ, 0).to_vec(),
                Answer::Term(term, Some(End::Closed)),
            ),
            (
                data(PduType::R2T, u32::MAX, 24),
                Answer::Asked(u32::MAX.into()),
            ),
        ] {
            assert_eq!(answer_to(&bytes), expected, "{bytes:?}");
        }
        for bytes in [
            [&ok[..], &ok].concat(),
            header_bytes(&header(PduType::CAPSULE_RESP, 0, 4)),
            data(PduType::C2H_DATA, 513, 24 + 512),
            data(PduType::C2H_DATA, 511, 24 + 512),
            encode_capsule_cmd(&header(PduType::CAPSULE_CMD, 0, 72), &Sqe::default()).to_vec(),
        ] {
            let answer = answer_to(&bytes);
            assert!(matches!(answer, Answer::Nonsense(_)), "{answer}: {bytes:?}");
        }
    }

    fn header_bytes(header: &CommonHeader) -> Vec<u8> {
        let mut bytes = [0; 8];
        header.encode(&mut bytes);
        bytes.to_vec()
    }
}
