//! A host that may lie: PDUs of which every field is the caller's, and a connection that sends them
//! whole, in pieces, half, or not at all.
//!
//! Nothing here keeps to the protocol for the caller: that is the point. Constructors make PDUs that
//! are right under the [`Terms`] of a connection; whatever is changed in them afterwards is sent as
//! it is. What a target answers comes back decoded, as [`Received`]. All waits are bounded.
//!
//! ```no_run
//! use nvmf_host::raw::{RawConnection, RawPdu, Received, Terms};
//! use nvmf_host::nvmf_proto::wire::pdu::InitConnection;
//! use std::time::Duration;
//!
//! # fn main() -> std::io::Result<()> {
//! let mut connection = RawConnection::connect(([127, 0, 0, 1], 4420).into(), Duration::from_secs(2))?;
//! let mut pdu = RawPdu::ic_req(&InitConnection::default());
//! pdu.common.plen = 129;
//! connection.send(&pdu.bytes())?;
//! if let Received::Pdu(pdu) = connection.receive() {
//!     println!("{:?}", pdu.term());
//! }
//! # Ok(())
//! # }
//! ```

use nvmf_proto::tcp::crc32c;
use nvmf_proto::wire::pdu::{
    CMD_LEN, COMMON_LEN, CommonHeader, DATA_LEN, DIGEST_LEN, DataHeader, IC_LEN, InitConnection,
    PduFlags, PduType, R2T_LEN, RESP_LEN, TERM_LEN, TERM_MAX_LEN, TermReq, capsule_cqe,
    encode_capsule_cmd,
};
use nvmf_proto::wire::{Cqe, Sqe};
use rustix::net::sockopt::set_socket_linger;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// PLEN beyond which a PDU that a target sends is taken for nonsense.
const PLEN_MAX: u32 = 64 << 20;

/// How long one look for something received takes.
const SLICE: Duration = Duration::from_millis(100);

/// How many times its patience a connection has for a target that goes on and on.
const PATIENCES: u32 = 10;

/// What ICReq and ICResp have agreed on, as far as it shapes the PDUs that a host sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Headers have digests.
    pub header_digest: bool,
    /// Data has digests.
    pub data_digest: bool,
    /// CPDA: alignment of data, in dwords, 0's based.
    pub cpda: u8,
}

impl Terms {
    /// What an ICResp says.
    #[must_use]
    pub const fn of(ic_resp: &InitConnection) -> Self {
        Self {
            header_digest: ic_resp.dgst & InitConnection::HDGST_ENABLE != 0,
            data_digest: ic_resp.dgst & InitConnection::DDGST_ENABLE != 0,
            cpda: ic_resp.pda,
        }
    }

    /// Whether a digest of some kind was agreed on.
    const fn digest(agreed: bool) -> Digest {
        if agreed {
            Digest::Right
        } else {
            Digest::Absent
        }
    }
}

/// A digest in a PDU. Nothing but the bytes: the flags are the header's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// There is none.
    Absent,
    /// The CRC32C of what it protects.
    Right,
    /// The complement of that.
    Wrong,
}

impl Digest {
    fn append(self, out: &mut Vec<u8>, of: &[u8]) {
        let right = crc32c(0, of);
        match self {
            Self::Absent => {}
            Self::Right => out.extend(right.to_le_bytes()),
            Self::Wrong => out.extend((!right).to_le_bytes()),
        }
    }
}

/// A PDU to send, every part of which may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawPdu {
    /// Bytes 7:0.
    pub common: CommonHeader,
    /// The rest of the header, whatever HLEN says.
    pub specific: Vec<u8>,
    /// The digest behind the header.
    pub header_digest: Digest,
    /// Bytes of zeroes between header and data.
    pub padding: usize,
    /// The data.
    pub data: Vec<u8>,
    /// The digest behind the data.
    pub data_digest: Digest,
}

impl RawPdu {
    /// An ICReq.
    #[must_use]
    pub fn ic_req(ic: &InitConnection) -> Self {
        Self::from_header(&ic.encode(PduType::IC_REQ))
    }

    /// A command with data in its capsule, or without.
    #[must_use]
    pub fn capsule(sqe: &Sqe, data: &[u8], terms: Terms) -> Self {
        let ch = header(PduType::CAPSULE_CMD, PduFlags::empty(), CMD_LEN);
        Self::from_header(&encode_capsule_cmd(&ch, sqe)).with_data(data, terms)
    }

    /// Data from `offset` on, for the R2T given.
    #[must_use]
    pub fn h2c_data(r2t: &DataHeader, offset: u32, data: &[u8], last: bool, terms: Terms) -> Self {
        let mut flags = PduFlags::empty();
        flags.set(PduFlags::LAST_PDU, last);
        let ch = header(PduType::H2C_DATA, flags, DATA_LEN);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let data_header = DataHeader {
            offset,
            length,
            ..*r2t
        };
        Self::from_header(&data_header.encode(&ch)).with_data(data, terms)
    }

    /// An H2CTermReq that quotes a header.
    #[must_use]
    pub fn term_req(term: TermReq, quoted: &[u8]) -> Self {
        let len = u8::try_from(quoted.len()).unwrap_or(u8::MAX);
        let mut pdu = Self::from_header(&term.encode(PduType::H2C_TERM_REQ, len));
        pdu.data = quoted.to_vec();
        pdu
    }

    /// A PDU that is nothing but the header in `bytes`, of at least 8 bytes.
    fn from_header(bytes: &[u8]) -> Self {
        let mut common = [0; COMMON_LEN];
        common.copy_from_slice(&bytes[..COMMON_LEN]);
        Self {
            common: CommonHeader::decode(&common),
            specific: bytes[COMMON_LEN..].to_vec(),
            header_digest: Digest::Absent,
            padding: 0,
            data: Vec::new(),
            data_digest: Digest::Absent,
        }
    }

    /// Adds data and what the terms want, and sets FLAGS, PDO and PLEN to fit.
    fn with_data(mut self, data: &[u8], terms: Terms) -> Self {
        self.header_digest = Terms::digest(terms.header_digest);
        self.common.flags.set(PduFlags::HDGST, terms.header_digest);
        let mut header = COMMON_LEN + self.specific.len();
        if terms.header_digest {
            header += DIGEST_LEN;
        }
        if !data.is_empty() {
            self.data_digest = Terms::digest(terms.data_digest);
            self.common.flags.set(PduFlags::DDGST, terms.data_digest);
            let pdo = header.next_multiple_of((usize::from(terms.cpda) + 1) * 4);
            self.padding = pdo - header;
            self.common.pdo = u8::try_from(pdo).unwrap_or(u8::MAX);
            self.data = data.to_vec();
        }
        self.common.plen = u32::try_from(self.bytes().len()).unwrap_or(u32::MAX);
        self
    }

    /// What goes over the wire.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut common = [0; COMMON_LEN];
        self.common.encode(&mut common);
        let mut out = common.to_vec();
        out.extend(&self.specific);
        let header = out.clone();
        self.header_digest.append(&mut out, &header);
        out.resize(out.len() + self.padding, 0);
        out.extend(&self.data);
        self.data_digest.append(&mut out, &self.data);
        out
    }
}

fn header(pdu_type: PduType, flags: PduFlags, hlen: usize) -> CommonHeader {
    CommonHeader {
        pdu_type,
        flags,
        hlen: u8::try_from(hlen).unwrap_or(u8::MAX),
        pdo: 0,
        plen: u32::try_from(hlen).unwrap_or(u32::MAX),
    }
}

/// A PDU that has come, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedPdu {
    /// Bytes 7:0.
    pub common: CommonHeader,
    /// All of it, as long as PLEN says.
    pub bytes: Vec<u8>,
}

impl ReceivedPdu {
    fn first<const N: usize>(&self, pdu_type: PduType) -> Option<&[u8; N]> {
        (self.common.pdu_type == pdu_type)
            .then(|| self.bytes.first_chunk())
            .flatten()
    }

    /// What an ICResp says.
    #[must_use]
    pub fn ic_resp(&self) -> Option<InitConnection> {
        self.first::<IC_LEN>(PduType::IC_RESP)
            .map(InitConnection::decode)
    }

    /// What a C2HTermReq says.
    #[must_use]
    pub fn term(&self) -> Option<TermReq> {
        self.first::<TERM_LEN>(PduType::C2H_TERM_REQ)
            .map(TermReq::decode)
    }

    /// The completion in a response capsule.
    #[must_use]
    pub fn cqe(&self) -> Option<Cqe> {
        self.first::<RESP_LEN>(PduType::CAPSULE_RESP)
            .map(capsule_cqe)
    }

    /// What an R2T asks for.
    #[must_use]
    pub fn r2t(&self) -> Option<DataHeader> {
        self.first::<R2T_LEN>(PduType::R2T).map(DataHeader::decode)
    }

    /// The header and data of a C2HData.
    #[must_use]
    pub fn c2h_data(&self) -> Option<(DataHeader, &[u8])> {
        let head = DataHeader::decode(self.first::<DATA_LEN>(PduType::C2H_DATA)?);
        let start = usize::from(self.common.pdo);
        let end = start.checked_add(usize::try_from(head.length).ok()?)?;
        Some((head, self.bytes.get(start..end)?))
    }

    /// What is wrong with it, if anything that can be told from the PDU alone is: a controller of
    /// NVMe/TCP would not have sent it on a connection with these terms.
    #[must_use]
    pub fn flaw(&self, terms: Terms) -> Option<&'static str> {
        let flags = self.common.flags;
        let (hlen, digests) = match self.common.pdu_type {
            PduType::IC_RESP => (IC_LEN, false),
            PduType::C2H_TERM_REQ => (TERM_LEN, false),
            PduType::CAPSULE_RESP | PduType::R2T | PduType::C2H_DATA => (RESP_LEN, true),
            _ => return Some("a type that controllers do not send"),
        };
        if usize::from(self.common.hlen) != hlen {
            return Some("HLEN");
        }
        let has_digest = digests && terms.header_digest;
        if flags.contains(PduFlags::HDGST) != has_digest {
            return Some("HDGSTF");
        }
        let end = hlen + if has_digest { DIGEST_LEN } else { 0 };
        if self.bytes.len() < end {
            return Some("PLEN");
        }
        if has_digest && self.bytes[hlen..end] != crc32c(0, &self.bytes[..hlen]).to_le_bytes() {
            return Some("header digest");
        }
        match self.common.pdu_type {
            PduType::C2H_DATA => self.data_flaw(terms),
            PduType::C2H_TERM_REQ if self.bytes.len() > TERM_MAX_LEN => Some("PLEN"),
            PduType::C2H_TERM_REQ => None,
            _ => (self.bytes.len() != end).then_some("PLEN"),
        }
    }

    fn data_flaw(&self, terms: Terms) -> Option<&'static str> {
        let Some((_, data)) = self.c2h_data() else {
            return Some("PDO, DATAL or PLEN");
        };
        if usize::from(self.common.pdo) < DATA_LEN {
            return Some("PDO");
        }
        let has_digest = terms.data_digest && !data.is_empty();
        if self.common.flags.contains(PduFlags::DDGST) != has_digest {
            return Some("DDGSTF");
        }
        let rest = &self.bytes[usize::from(self.common.pdo) + data.len()..];
        let right = crc32c(0, data).to_le_bytes();
        let expected: &[u8] = if has_digest { &right } else { &[] };
        (rest != expected).then_some("PLEN or data digest")
    }
}

/// How a connection ended, or that it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order: FIN.
    Closed,
    /// By a reset: RST.
    Reset,
}

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A PDU.
    Pdu(ReceivedPdu),
    /// Eight bytes that cannot be the header of one.
    Nonsense(CommonHeader),
    /// The end of the connection, maybe in the middle of a PDU.
    End(End),
    /// Nothing, in the time that was given.
    Silence,
}

/// A TCP connection on which a host may do anything.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    patience: Duration,
    /// How long a target is listened to that does not stop, or given what it takes in crumbs.
    pub(crate) endurance: Duration,
    /// What has come of the next PDU.
    inbox: Vec<u8>,
    /// The terms that a capsule or data is to be built with; set by [`RawConnection::open`].
    pub terms: Terms,
}

impl RawConnection {
    /// A TCP connection, nothing more. `patience`, not zero, bounds every wait.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn connect(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            patience,
            endurance: patience.saturating_mul(PATIENCES),
            inbox: Vec::new(),
            terms: Terms::default(),
        })
    }

    /// A TCP connection after ICReq and ICResp, which is returned, too.
    ///
    /// # Errors
    ///
    /// What the system says; [`io::ErrorKind::InvalidData`] if something else than an ICResp comes.
    pub fn open(
        address: SocketAddr,
        patience: Duration,
        ic: &InitConnection,
    ) -> io::Result<(Self, InitConnection)> {
        let mut connection = Self::connect(address, patience)?;
        connection.send(&RawPdu::ic_req(ic).bytes())?;
        match connection.receive() {
            Received::Pdu(pdu) if pdu.ic_resp().is_some() => {
                let ic_resp = pdu.ic_resp().unwrap_or_default();
                connection.terms = Terms::of(&ic_resp);
                Ok((connection, ic_resp))
            }
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("no ICResp but {other:?}"),
            )),
        }
    }

    /// Sends bytes.
    ///
    /// # Errors
    ///
    /// The target has ended the connection, takes nothing for as long as the patience lasts, or not
    /// everything within ten times that. What it had to say can be received all the same.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.patience))?;
        let (mut rest, mut left) = (bytes, self.endurance);
        while !rest.is_empty() {
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let start = Instant::now();
            let sent = self.stream.write(rest);
            left = left.saturating_sub(start.elapsed());
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => rest = &rest[n..],
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Sends bytes if the connection takes all of them without waiting.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if it does not take all of them: some may be on their way.
    /// Else as [`RawConnection::send`].
    pub fn send_at_once(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let sent = self.stream.write_all(bytes);
        self.stream.set_nonblocking(false)?;
        sent
    }

    /// Sends bytes in pieces of at most `size` bytes, with a pause behind each.
    ///
    /// # Errors
    ///
    /// As [`RawConnection::send`].
    pub fn send_pieces(&mut self, bytes: &[u8], size: usize, pause: Duration) -> io::Result<()> {
        for piece in bytes.chunks(size.max(1)) {
            self.send(piece)?;
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    /// Sends a command.
    ///
    /// # Errors
    ///
    /// As [`RawConnection::send`].
    pub fn submit(&mut self, sqe: &Sqe, data: &[u8]) -> io::Result<()> {
        self.send(&RawPdu::capsule(sqe, data, self.terms).bytes())
    }

    /// Tells the target that nothing more will come, and goes on receiving.
    pub fn half_close(&mut self) {
        // It fails where the target has closed, and then there is nothing to tell.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        // Without it the end is a FIN, if a target has not ended the connection itself.
        let _ = set_socket_linger(&self.stream, Some(Duration::ZERO));
    }

    /// What comes next, within the patience.
    pub fn receive(&mut self) -> Received {
        self.receive_within(self.patience)
    }

    /// What comes next, within the patience and what is left of a longer time, which becomes less by
    /// what this takes: for loops that a target must not keep going for ever.
    #[cfg(feature = "torture")]
    pub(crate) fn receive_next(&mut self, left: &mut Duration) -> Received {
        let time = self.patience.min(*left);
        let mut unused = time;
        let received = self.receive_in(&mut unused);
        *left -= time - unused;
        received
    }

    /// What comes next, within a time.
    pub fn receive_within(&mut self, mut time: Duration) -> Received {
        self.receive_in(&mut time)
    }

    fn receive_in(&mut self, left: &mut Duration) -> Received {
        if let Err(other) = self.fill(COMMON_LEN, left) {
            return other;
        }
        let mut head = [0; COMMON_LEN];
        head.copy_from_slice(&self.inbox[..COMMON_LEN]);
        let common = CommonHeader::decode(&head);
        let Some(plen) = usize::try_from(common.plen)
            .ok()
            .filter(|&plen| plen >= COMMON_LEN && common.plen <= PLEN_MAX)
        else {
            return Received::Nonsense(common);
        };
        if let Err(other) = self.fill(plen, left) {
            return other;
        }
        let bytes = self.inbox.drain(..plen).collect();
        Received::Pdu(ReceivedPdu { common, bytes })
    }

    /// Reads until there are `len` bytes of the next PDU, or no time is left. A wait counts as a
    /// slice at most: nothing is silent because this process was stopped for a while.
    fn fill(&mut self, len: usize, left: &mut Duration) -> Result<(), Received> {
        let mut piece = [0; 16 << 10];
        while self.inbox.len() < len {
            let slice = SLICE.min(*left);
            if slice.is_zero() || self.stream.set_read_timeout(Some(slice)).is_err() {
                return Err(Received::Silence);
            }
            let start = Instant::now();
            let wanted = (len - self.inbox.len()).min(piece.len());
            let read = self.stream.read(&mut piece[..wanted]);
            *left -= start.elapsed().min(slice);
            match read {
                Ok(0) => return Err(Received::End(End::Closed)),
                Ok(n) => self.inbox.extend(&piece[..n]),
                Err(err) => match err.kind() {
                    io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut => {}
                    _ => return Err(Received::End(End::Reset)),
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGESTS: Terms = Terms {
        header_digest: true,
        data_digest: true,
        cpda: 7,
    };

    #[test]
    fn a_capsule_is_right_until_it_is_changed() {
        let sqe = Sqe::with_opcode(1);
        let mut pdu = RawPdu::capsule(&sqe, &[9; 512], DIGESTS);
        let bytes = pdu.bytes();
        assert_eq!(&bytes[..8], &[4, 3, 72, 96, 100, 2, 0, 0]);
        assert_eq!(bytes.len(), 96 + 512 + 4);
        assert_eq!(bytes[72..76], crc32c(0, &bytes[..72]).to_le_bytes());
        assert_eq!(bytes[76..96], [0; 20]);
        pdu.header_digest = Digest::Wrong;
        pdu.data_digest = Digest::Absent;
        let lie = pdu.bytes();
        assert_eq!(lie[72..76], (!crc32c(0, &bytes[..72])).to_le_bytes());
        assert_eq!(lie.len(), bytes.len() - 4);
        assert_eq!(lie[..72], bytes[..72], "nothing else follows from that");
    }

    #[test]
    fn data_and_term_req_are_as_asked() {
        let r2t = DataHeader {
            cccid: 7,
            ttag: 3,
            offset: 0,
            length: 1024,
        };
        let bytes = RawPdu::h2c_data(&r2t, 512, &[1; 512], true, Terms::default()).bytes();
        assert_eq!(&bytes[..8], &[6, 4, 24, 24, 24, 2, 0, 0]);
        assert_eq!(
            bytes[8..20],
            [7, 0, 3, 0, 0, 2, 0, 0, 0, 2, 0, 0],
            "CCCID, TTAG, DATAO, DATAL"
        );
        let term = TermReq {
            fes: nvmf_proto::wire::pdu::Fes(9),
            fei: 0,
        };
        assert_eq!(RawPdu::term_req(term, &[5; 24]).bytes().len(), 48);
    }

    fn received(bytes: &[u8]) -> ReceivedPdu {
        let common = CommonHeader::decode(bytes.first_chunk().unwrap());
        ReceivedPdu {
            common,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn flaws_of_what_comes_are_named() {
        let resp = [5, 0, 24, 0, 24, 0, 0, 0];
        let mut bytes = resp.to_vec();
        bytes.resize(24, 0);
        assert_eq!(received(&bytes).flaw(Terms::default()), None);
        assert_eq!(received(&bytes).flaw(DIGESTS), Some("HDGSTF"));
        bytes[2] = 23;
        assert_eq!(received(&bytes).flaw(Terms::default()), Some("HLEN"));
        bytes[..4].copy_from_slice(&[4, 0, 24, 0]);
        assert!(received(&bytes).flaw(Terms::default()).is_some());
        // C2HData whose DATAL is more than there is.
        bytes[..4].copy_from_slice(&[7, 4, 24, 24]);
        bytes[16] = 1;
        assert_eq!(
            received(&bytes).flaw(Terms::default()),
            Some("PDO, DATAL or PLEN")
        );
        bytes.push(0xaa);
        let pdu = received(&bytes);
        assert_eq!(pdu.flaw(Terms::default()), None);
        assert_eq!(pdu.c2h_data().unwrap().1, [0xaa]);
    }
}
