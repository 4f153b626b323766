//! Every check of what a host sends, and what a PDU that passes them does.

use super::rx::{Payload, Stage};
use super::slots::State;
use super::{CloseReason, Event, Parsed, Phase, TcpTarget, Timer};
use crate::tcp::{Negotiated, Violation, crc32c, digest_matches};
use crate::wire::pdu::{
    CMD_LEN, COMMON_LEN, CommonHeader, DATA_LEN, DIGEST_LEN, DataHeader, Fes, IC_LEN,
    InitConnection, PDA_MAX, PduFlags, PduType, TERM_LEN, TERM_MAX_LEN, TermReq, capsule_sqe,
};

/// Byte offsets of header fields, as FEI reports them.
mod field {
    pub(super) const TYPE: u32 = 0;
    pub(super) const FLAGS: u32 = 1;
    pub(super) const HLEN: u32 = 2;
    pub(super) const PDO: u32 = 3;
    pub(super) const PLEN: u32 = 4;
    pub(super) const PFV: u32 = 8;
    pub(super) const CCCID: u32 = 8;
    pub(super) const HPDA: u32 = 10;
    pub(super) const TTAG: u32 = 10;
    pub(super) const DGST: u32 = 11;
    pub(super) const DATAL: u32 = 16;
}

/// What a common header that passed its checks says about the PDU.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Bytes before the data: header, header digest and padding.
    header: usize,
    /// Bytes of data, without digest.
    data: u32,
}

impl Shape {
    /// `header` bytes and nothing else.
    const fn bare(header: usize) -> Self {
        Self { header, data: 0 }
    }
}

const SEQUENCE_ERROR: Violation = Violation::new(Fes::PDU_SEQUENCE, 0);

impl TcpTarget {
    /// Takes the next PDU up to its data.
    pub(super) fn parse_pdu(&mut self, staged: &[u8]) -> Result<Parsed, Violation> {
        let Some(common) = staged.first_chunk::<COMMON_LEN>() else {
            return Ok(Parsed::NOTHING);
        };
        let ch = CommonHeader::decode(common);
        // Judged by the common header alone: a PDU that is wrong already is not waited for, and
        // however the stream was cut the C2HTermReq quotes the same bytes.
        let shape = match self.check_common(&ch) {
            Ok(shape) => shape,
            Err(violation) => return Err(self.fail(violation, common)),
        };
        self.rx.parked = ch.pdu_type == PduType::CAPSULE_CMD && self.slots.is_full();
        if self.rx.parked {
            self.rx.min = COMMON_LEN;
            // The data that would free a slot stands behind this capsule: the host has sent more
            // commands than its queue has entries.
            return if self.slots.is_deadlocked() {
                Err(self.fail(SEQUENCE_ERROR, common))
            } else {
                Ok(Parsed::NOTHING)
            };
        }
        let Some(header) = staged.get(..shape.header) else {
            self.rx.min = shape.header;
            return Ok(Parsed::NOTHING);
        };
        match self.take(&ch, shape, header) {
            Ok(event) => {
                self.rx.min = COMMON_LEN;
                Ok(Parsed {
                    used: shape.header,
                    event,
                })
            }
            Err(violation) => {
                let hlen = usize::from(ch.hlen);
                Err(self.fail(violation, header.get(..hlen).unwrap_or(header)))
            }
        }
    }

    /// Checks all that the first 8 bytes tell, field by field in their order.
    fn check_common(&self, ch: &CommonHeader) -> Result<Shape, Violation> {
        match ch.pdu_type {
            PduType::IC_REQ if self.phase == Phase::IcReq => check_ic_req(ch),
            PduType::CAPSULE_CMD if self.phase == Phase::Open => {
                let too_long = Violation::field(field::PLEN);
                self.check_data_pdu(ch, CMD_LEN, PduFlags::empty(), self.in_capsule, too_long)
            }
            PduType::H2C_DATA if self.phase == Phase::Open => {
                let too_long = Violation::new(Fes::LIMIT_EXCEEDED, 0);
                self.check_data_pdu(
                    ch,
                    DATA_LEN,
                    PduFlags::LAST_PDU,
                    self.terms.maxh2cdata,
                    too_long,
                )
            }
            PduType::H2C_TERM_REQ if self.phase == Phase::Open => check_term_req(ch),
            // ICReq comes first and once (NVMe/TCP 1.1, connection establishment).
            PduType::IC_REQ | PduType::CAPSULE_CMD | PduType::H2C_DATA | PduType::H2C_TERM_REQ => {
                Err(SEQUENCE_ERROR)
            }
            _ => Err(Violation::field(field::TYPE)),
        }
    }

    /// Checks the common header of a CapsuleCmd or H2CData: the two that carry data and digests.
    fn check_data_pdu(
        &self,
        ch: &CommonHeader,
        hlen: usize,
        optional: PduFlags,
        limit: u32,
        too_long: Violation,
    ) -> Result<Shape, Violation> {
        let end = hlen + self.header_digest_len() as usize;
        let has_data = ch.plen as usize > end;
        let mut flags = PduFlags::empty();
        flags.set(PduFlags::HDGST, self.terms.header_digest);
        flags.set(PduFlags::DDGST, self.terms.data_digest && has_data);
        if ch.flags.difference(optional) != flags {
            return Err(Violation::field(field::FLAGS));
        }
        if usize::from(ch.hlen) != hlen {
            return Err(Violation::field(field::HLEN));
        }
        let pdo = usize::from(ch.pdo);
        if !has_data {
            // Some hosts set PDO to where data would start.
            if pdo != 0 && pdo != end {
                return Err(Violation::field(field::PDO));
            }
            if ch.plen as usize != end {
                return Err(Violation::field(field::PLEN));
            }
            return Ok(Shape::bare(end));
        }
        let alignment = (usize::from(self.config.cpda) + 1) * 4;
        if pdo < end || pdo > ch.plen as usize || !pdo.is_multiple_of(alignment) {
            return Err(Violation::field(field::PDO));
        }
        let data = ch
            .plen
            .saturating_sub(u32::from(ch.pdo) + self.data_digest_len());
        if data == 0 {
            return Err(Violation::field(field::PLEN));
        }
        if data > limit {
            return Err(too_long);
        }
        Ok(Shape { header: pdo, data })
    }

    /// Checks the rest of a PDU; the first effect comes after the last check.
    fn take(
        &mut self,
        ch: &CommonHeader,
        shape: Shape,
        header: &[u8],
    ) -> Result<Option<Event>, Violation> {
        match ch.pdu_type {
            PduType::IC_REQ => self.take_ic_req(header),
            PduType::CAPSULE_CMD => self.take_command(shape, header),
            PduType::H2C_DATA => self.take_h2c_data(ch, shape, header),
            _ => Ok(self.take_term_req(header)),
        }
    }

    fn take_ic_req(&mut self, header: &[u8]) -> Result<Option<Event>, Violation> {
        let Some(pdu) = header.first_chunk::<IC_LEN>() else {
            return Ok(None);
        };
        let ic = InitConnection::decode(pdu);
        let known = InitConnection::HDGST_ENABLE | InitConnection::DDGST_ENABLE;
        if ic.pfv != 0 {
            return Err(Violation::new(Fes::UNSUPPORTED_PARAMETER, field::PFV));
        }
        if ic.pda > PDA_MAX {
            return Err(Violation::field(field::HPDA));
        }
        if ic.dgst & !known != 0 {
            return Err(Violation::field(field::DGST));
        }
        self.terms = Negotiated {
            header_digest: self.config.header_digest && ic.dgst & InitConnection::HDGST_ENABLE != 0,
            data_digest: self.config.data_digest && ic.dgst & InitConnection::DDGST_ENABLE != 0,
            hpda: ic.pda,
            cpda: self.config.cpda,
            maxr2t: ic.max,
            maxh2cdata: self.config.maxh2cdata,
        };
        self.ready = true;
        self.phase = Phase::Open;
        self.timer = Some(Timer::new(CloseReason::ConnectTimeout));
        self.outbox.push_ic_resp();
        Ok(Some(Event::Ready(self.terms)))
    }

    fn take_command(&mut self, shape: Shape, header: &[u8]) -> Result<Option<Event>, Violation> {
        let Some(pdu) = header.first_chunk::<CMD_LEN>() else {
            return Ok(None);
        };
        self.check_header_digest(pdu, header)?;
        let sqe = capsule_sqe(pdu);
        let Some((slot, cid_conflict)) = self.slots.take(sqe.cid()) else {
            return Ok(None);
        };
        if let Some(queue) = &mut self.queue {
            queue.advance();
        }
        if shape.data > 0 {
            self.rx.stage = Stage::Decision {
                slot,
                len: shape.data,
            };
        }
        Ok(Some(Event::Command {
            slot,
            sqe,
            in_capsule: shape.data,
            cid_conflict,
        }))
    }

    fn take_h2c_data(
        &mut self,
        ch: &CommonHeader,
        shape: Shape,
        header: &[u8],
    ) -> Result<Option<Event>, Violation> {
        let Some(pdu) = header.first_chunk::<DATA_LEN>() else {
            return Ok(None);
        };
        self.check_header_digest(pdu, header)?;
        let data = DataHeader::decode(pdu);
        let Some((slot, entry)) = self.slots.by_ttag(data.ttag) else {
            return Err(Violation::field(field::TTAG));
        };
        if !matches!(entry.state, State::H2cData | State::Abandoned) {
            // Data that no R2T has asked for yet is out of sequence; a TTAG that was good once is
            // as unknown as one that never was.
            let early = !entry.r2t_sent;
            return Err(if early {
                SEQUENCE_ERROR
            } else {
                Violation::field(field::TTAG)
            });
        }
        if entry.cid != data.cccid {
            return Err(Violation::field(field::CCCID));
        }
        if data.length > self.terms.maxh2cdata {
            return Err(Violation::new(Fes::LIMIT_EXCEEDED, 0));
        }
        if data.length == 0 || data.length != shape.data {
            return Err(Violation::field(field::DATAL));
        }
        let end = u64::from(data.offset) + u64::from(data.length);
        if end > u64::from(entry.wanted) {
            return Err(Violation::new(Fes::DATA_OUT_OF_RANGE, 0));
        }
        if data.offset != entry.next {
            return Err(SEQUENCE_ERROR);
        }
        let last = end == u64::from(entry.wanted);
        if ch.flags.contains(PduFlags::LAST_PDU) != last {
            return Err(Violation::field(field::FLAGS));
        }
        entry.next += data.length;
        self.rx.stage = if entry.state == State::H2cData {
            Stage::Payload(Payload::new(slot, data.offset, data.length))
        } else {
            Stage::Discard {
                slot,
                left: data.length + self.data_digest_len(),
            }
        };
        Ok(None)
    }

    fn take_term_req(&mut self, header: &[u8]) -> Option<Event> {
        let pdu = header.first_chunk::<TERM_LEN>()?;
        self.close();
        Some(Event::Terminated(TermReq::decode(pdu)))
    }

    /// Checks the digest that follows the header `pdu`, if there is to be one.
    fn check_header_digest(&self, pdu: &[u8], header: &[u8]) -> Result<(), Violation> {
        if !self.terms.header_digest {
            return Ok(());
        }
        let digest = header
            .get(pdu.len()..)
            .and_then(<[u8]>::first_chunk::<DIGEST_LEN>);
        let received = digest.map_or(0, |digest| u32::from_le_bytes(*digest));
        if digest_matches(received, crc32c(0, pdu)) {
            Ok(())
        } else {
            Err(Violation::new(Fes::HEADER_DIGEST, received))
        }
    }

    /// Ends the connection because of a PDU whose header starts with `quote`.
    fn fail(&mut self, violation: Violation, quote: &[u8]) -> Violation {
        self.phase = Phase::Drain;
        self.timer = Some(Timer::new(CloseReason::LingerTimeout));
        self.outbox.terminate(violation.0, quote);
        violation
    }
}

fn check_ic_req(ch: &CommonHeader) -> Result<Shape, Violation> {
    if !ch.flags.is_empty() {
        return Err(Violation::field(field::FLAGS));
    }
    if usize::from(ch.hlen) != IC_LEN {
        return Err(Violation::field(field::HLEN));
    }
    if ch.pdo != 0 {
        return Err(Violation::field(field::PDO));
    }
    if ch.plen as usize != IC_LEN {
        return Err(Violation::field(field::PLEN));
    }
    Ok(Shape::bare(IC_LEN))
}

/// A TermReq has no digests; what its FLAGS say about that makes no difference.
fn check_term_req(ch: &CommonHeader) -> Result<Shape, Violation> {
    if usize::from(ch.hlen) != TERM_LEN {
        return Err(Violation::field(field::HLEN));
    }
    let plen = ch.plen as usize;
    if !(TERM_LEN..=TERM_MAX_LEN).contains(&plen) {
        return Err(Violation::field(field::PLEN));
    }
    Ok(Shape::bare(plen))
}
