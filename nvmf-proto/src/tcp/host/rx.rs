//! What the host receives: ICResp, CapsuleResp, C2HData, R2T, C2HTermReq, and every lie about them.

use super::table::Transfer;
use super::{Event, FlowControl, Parsed, Phase, TcpHost};
use crate::tcp::{Need, Negotiated, Slot, Violation, crc32c, digest_matches};
use crate::wire::pdu::{
    COMMON_LEN, CommonHeader, DATA_LEN, DIGEST_LEN, DataHeader, Fes, IC_LEN, InitConnection,
    MAXH2CDATA_MIN, PDA_MAX, PduFlags, PduType, R2T_LEN, RESP_LEN, TERM_LEN, TERM_MAX_LEN, TermReq,
    capsule_cqe,
};
use crate::wire::{Cqe, Status};

/// Byte offsets of header fields, for FEI.
mod field {
    pub(super) const TYPE: u32 = 0;
    pub(super) const FLAGS: u32 = 1;
    pub(super) const HLEN: u32 = 2;
    pub(super) const PDO: u32 = 3;
    pub(super) const PLEN: u32 = 4;
    pub(super) const PFV: u32 = 8;
    pub(super) const CPDA: u32 = 10;
    pub(super) const DGST: u32 = 11;
    pub(super) const MAXH2CDATA: u32 = 12;
    pub(super) const CCCID: u32 = 8;
    pub(super) const LENGTH: u32 = 16;
    /// SQHD and CID of the CQE in a CapsuleResp.
    pub(super) const SQHD: u32 = 16;
    pub(super) const CID: u32 = 20;
}

/// A PDU that was found wrong.
pub(super) struct Rejected {
    pub(super) violation: Violation,
    /// How many bytes of it the H2CTermReq quotes: those that it took to find out, so that it does
    /// not depend on how many more were there.
    pub(super) quoted: usize,
}

/// A C2HData PDU whose data is being received.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    slot: Slot,
    offset: u32,
    len: u32,
    crc: u32,
    /// The command is complete with this PDU.
    success: bool,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// At the start of a PDU, of which `min` bytes are wanted.
    Header { min: usize },
    /// In the data of a C2HData PDU.
    Data(Incoming),
    /// At its data digest.
    DataDigest(Incoming),
}

/// Place in the input stream.
#[derive(Debug)]
pub(super) struct State {
    at: At,
}

const AT_HEADER: At = At::Header { min: COMMON_LEN };

impl State {
    pub(super) const fn new() -> Self {
        Self { at: AT_HEADER }
    }

    pub(super) fn need(&self, agreed: &Negotiated) -> Need {
        match self.at {
            At::Header { min } => Need::Bytes { min },
            At::DataDigest(_) => Need::Bytes { min: DIGEST_LEN },
            At::Data(Incoming {
                slot,
                offset,
                len,
                crc,
                ..
            }) => Need::Payload {
                slot,
                offset,
                len,
                crc: agreed.data_digest.then_some(crc),
            },
        }
    }
}

impl TcpHost {
    /// Deals with the first PDU of the controller.
    pub(super) fn parse_ic_resp(&mut self, staged: &[u8]) -> Result<Parsed, Rejected> {
        let Some((header, quoted)) = common_header(staged) else {
            return self.more(COMMON_LEN);
        };
        let reject = |violation| Err(Rejected { violation, quoted });
        if header.pdu_type == PduType::C2H_TERM_REQ {
            return self.parse_term_req(&header, staged);
        }
        // NVMe/TCP 1.1 §3.1: ICReq and ICResp come before everything else.
        if !self.tx.ic_req_sent() {
            return reject(Violation::new(Fes::PDU_SEQUENCE, 0));
        }
        if header.pdu_type != PduType::IC_RESP {
            return reject(out_of_place(header.pdu_type));
        }
        if let Err(violation) = check_ic_resp_header(&header) {
            return reject(violation);
        }
        let Some(pdu) = staged.first_chunk::<IC_LEN>() else {
            return self.more(IC_LEN);
        };
        match self.judge_ic_resp(&InitConnection::decode(pdu)) {
            Err(violation) => Err(Rejected {
                violation,
                quoted: IC_LEN,
            }),
            Ok(agreed) => {
                self.agreed = Some(agreed);
                self.phase = Phase::Active;
                self.deadline = None;
                self.rx.at = AT_HEADER;
                Ok(Parsed {
                    used: IC_LEN,
                    event: Some(Event::Ready(agreed)),
                })
            }
        }
    }

    fn judge_ic_resp(&self, resp: &InitConnection) -> Result<Negotiated, Violation> {
        if resp.pfv != 0 {
            return Err(Violation::new(Fes::UNSUPPORTED_PARAMETER, field::PFV));
        }
        if resp.pda > PDA_MAX {
            return Err(Violation::field(field::CPDA));
        }
        // NVMe/TCP 1.1, ICResp: a digest is enabled only where the host asked for it.
        let header_digest = resp.dgst & InitConnection::HDGST_ENABLE != 0;
        let data_digest = resp.dgst & InitConnection::DDGST_ENABLE != 0;
        let reserved = resp.dgst & !(InitConnection::HDGST_ENABLE | InitConnection::DDGST_ENABLE);
        if reserved != 0
            || header_digest && !self.want_header_digest
            || data_digest && !self.want_data_digest
        {
            return Err(Violation::field(field::DGST));
        }
        // NVMe/TCP 1.1, ICResp: MAXH2CDATA is a number of dwords and at least 4,096 bytes.
        if resp.max < MAXH2CDATA_MIN || !resp.max.is_multiple_of(4) {
            return Err(Violation::field(field::MAXH2CDATA));
        }
        Ok(Negotiated {
            header_digest,
            data_digest,
            hpda: self.hpda,
            cpda: resp.pda,
            maxr2t: self.maxr2t,
            maxh2cdata: resp.max,
        })
    }

    /// Deals with a PDU header or a data digest after the ICResp.
    pub(super) fn parse_pdu(&mut self, staged: &[u8]) -> Result<Parsed, Rejected> {
        match self.rx.at {
            At::Header { .. } => self.parse_header(staged),
            At::Data(_) => Ok(Parsed {
                used: 0,
                event: None,
            }),
            At::DataDigest(incoming) => {
                let Some(digest) = staged.first_chunk::<DIGEST_LEN>() else {
                    return Ok(Parsed {
                        used: 0,
                        event: None,
                    });
                };
                // A wrong data digest fails the command, not the connection.
                if !digest_matches(u32::from_le_bytes(*digest), incoming.crc)
                    && let Some(entry) = self.table.get_mut(incoming.slot)
                {
                    entry.digest_ok = false;
                }
                self.rx.at = AT_HEADER;
                Ok(Parsed {
                    used: DIGEST_LEN,
                    event: self.data_done(incoming),
                })
            }
        }
    }

    fn parse_header(&mut self, staged: &[u8]) -> Result<Parsed, Rejected> {
        let Some((header, quoted)) = common_header(staged) else {
            return self.more(COMMON_LEN);
        };
        if header.pdu_type == PduType::C2H_TERM_REQ {
            return self.parse_term_req(&header, staged);
        }
        let agreed = self.agreed.unwrap_or_default();
        if let Err(violation) = self.check_header(&header, &agreed) {
            return Err(Rejected { violation, quoted });
        }
        let digest_len = if agreed.header_digest { DIGEST_LEN } else { 0 };
        let wanted = usize::from(header.pdo).max(usize::from(header.hlen) + digest_len);
        let Some((head, digest)) = staged
            .get(..wanted)
            .and_then(|bytes| bytes.split_first_chunk::<DATA_LEN>())
        else {
            return self.more(wanted);
        };
        let reject = |violation| Rejected {
            violation,
            quoted: head.len(),
        };
        if agreed.header_digest
            && let Some(digest) = digest.first_chunk()
        {
            let received = u32::from_le_bytes(*digest);
            if !digest_matches(received, crc32c(0, head)) {
                return Err(reject(Violation::new(Fes::HEADER_DIGEST, received)));
            }
        }
        self.rx.at = AT_HEADER;
        let event = match header.pdu_type {
            PduType::CAPSULE_RESP => Some(self.take_response(&capsule_cqe(head)).map_err(reject)?),
            PduType::R2T => {
                self.take_r2t(&DataHeader::decode(head)).map_err(reject)?;
                None
            }
            _ => {
                let data = DataHeader::decode(head);
                self.take_data(&header, &data, &agreed).map_err(reject)?;
                None
            }
        };
        Ok(Parsed {
            used: wanted,
            event,
        })
    }

    /// Checks what the common header of a PDU in the active phase says by itself.
    fn check_header(&self, header: &CommonHeader, agreed: &Negotiated) -> Result<(), Violation> {
        let mut flags = PduFlags::empty();
        flags.set(PduFlags::HDGST, agreed.header_digest);
        let is_data = header.pdu_type == PduType::C2H_DATA;
        if is_data {
            flags.set(PduFlags::DDGST, agreed.data_digest);
            let success = header.flags.contains(PduFlags::SUCCESS);
            // NVMe/TCP 1.1, C2HData: SUCCESS stands for a response, so it is with the last data
            // only, and only where no SQHD has to be reported.
            if success
                && (!header.flags.contains(PduFlags::LAST_PDU)
                    || self.flow_control != FlowControl::Disabled)
            {
                return Err(Violation::field(field::FLAGS));
            }
            flags |= header.flags & (PduFlags::LAST_PDU | PduFlags::SUCCESS);
        } else if !matches!(header.pdu_type, PduType::CAPSULE_RESP | PduType::R2T) {
            return Err(out_of_place(header.pdu_type));
        }
        if header.flags != flags {
            return Err(Violation::field(field::FLAGS));
        }
        const { assert!(RESP_LEN == DATA_LEN && R2T_LEN == DATA_LEN) }
        if usize::from(header.hlen) != DATA_LEN {
            return Err(Violation::field(field::HLEN));
        }
        let digest_len = |on| if on { DIGEST_LEN } else { 0 };
        let head = DATA_LEN + digest_len(agreed.header_digest);
        let plen = header.plen as usize;
        if !is_data {
            return match (header.pdo, plen == head) {
                (0, true) => Ok(()),
                (0, false) => Err(Violation::field(field::PLEN)),
                _ => Err(Violation::field(field::PDO)),
            };
        }
        let pdo = usize::from(header.pdo);
        if pdo < head || !pdo.is_multiple_of((usize::from(agreed.hpda) + 1) * 4) {
            return Err(Violation::field(field::PDO));
        }
        if plen <= pdo + digest_len(agreed.data_digest) {
            return Err(Violation::field(field::PLEN));
        }
        Ok(())
    }

    fn parse_term_req(&mut self, header: &CommonHeader, staged: &[u8]) -> Result<Parsed, Rejected> {
        let reject = |field| {
            let violation = Violation::field(field);
            Err(Rejected {
                violation,
                quoted: COMMON_LEN,
            })
        };
        if usize::from(header.hlen) != TERM_LEN {
            return reject(field::HLEN);
        }
        let plen = header.plen as usize;
        if !(TERM_LEN..=TERM_MAX_LEN).contains(&plen) {
            return reject(field::PLEN);
        }
        let Some(head) = staged.get(..plen).and_then(<[u8]>::first_chunk) else {
            return self.more(plen);
        };
        self.peer_closed();
        Ok(Parsed {
            used: plen,
            event: Some(Event::Terminated(TermReq::decode(head))),
        })
    }

    fn take_response(&mut self, cqe: &Cqe) -> Result<Event, Violation> {
        let Some((slot, entry)) = self.table.issued(cqe.cid) else {
            return Err(Violation::field(field::CID));
        };
        // Data that the controller asked for is still to go: it cannot be done with the command.
        let r2t_open = entry.r2ts > 0;
        let data_missing = entry.transfer == Transfer::Read && entry.moved < entry.len;
        if r2t_open || data_missing && cqe.status.is_success() {
            return Err(Violation::new(Fes::PDU_SEQUENCE, 0));
        }
        let received = if entry.transfer == Transfer::Read {
            entry.moved
        } else {
            0
        };
        let digest_ok = entry.digest_ok;
        self.take_sqhd(cqe.sqhd)?;
        self.table.complete(slot);
        Ok(Event::Completed {
            slot,
            cqe: *cqe,
            received,
            digest_ok,
        })
    }

    /// Judges the SQ head pointer of a response.
    fn take_sqhd(&mut self, sqhd: u16) -> Result<(), Violation> {
        if self.flow_control == FlowControl::Asked && sqhd == u16::MAX {
            self.flow_control = FlowControl::Disabled;
        } else if self.flow_control == FlowControl::Asked {
            self.flow_control = FlowControl::Enabled;
        }
        // Where flow control is disabled the field is reserved after the Connect response.
        if self.flow_control == FlowControl::Disabled {
            return Ok(());
        }
        if u32::from(sqhd) >= self.entries {
            return Err(Violation::field(field::SQHD));
        }
        self.sqhd = Some(sqhd);
        Ok(())
    }

    fn take_r2t(&mut self, r2t: &DataHeader) -> Result<(), Violation> {
        let Some((slot, entry)) = self.table.issued(r2t.cccid) else {
            return Err(Violation::field(field::CCCID));
        };
        if entry.transfer != Transfer::R2t {
            return Err(Violation::new(Fes::PDU_SEQUENCE, 0));
        }
        check_range(r2t, entry.moved, entry.len)?;
        if entry.r2ts > self.maxr2t {
            return Err(Violation::new(Fes::LIMIT_EXCEEDED, 0));
        }
        entry.moved += r2t.length;
        entry.r2ts += 1;
        self.tx.queue_r2t(slot, r2t);
        Ok(())
    }

    fn take_data(
        &mut self,
        header: &CommonHeader,
        data: &DataHeader,
        agreed: &Negotiated,
    ) -> Result<(), Violation> {
        let Some((slot, entry)) = self.table.issued(data.cccid) else {
            return Err(Violation::field(field::CCCID));
        };
        if entry.transfer != Transfer::Read {
            return Err(Violation::new(Fes::PDU_SEQUENCE, 0));
        }
        let tail = if agreed.data_digest { DIGEST_LEN } else { 0 };
        let around = usize::from(header.pdo) + tail;
        if (header.plen as usize).checked_sub(around) != Some(data.length as usize) {
            return Err(Violation::field(field::LENGTH));
        }
        check_range(data, entry.moved, entry.len)?;
        let last = entry.moved + data.length == entry.len;
        if last != header.flags.contains(PduFlags::LAST_PDU) {
            return Err(Violation::field(field::FLAGS));
        }
        self.rx.at = At::Data(Incoming {
            slot,
            offset: data.offset,
            len: data.length,
            crc: 0,
            success: header.flags.contains(PduFlags::SUCCESS),
        });
        Ok(())
    }

    pub(super) fn data_placed(&mut self, n: u32, crc: Option<u32>) -> Option<Event> {
        let At::Data(mut incoming) = self.rx.at else {
            return None;
        };
        let n = n.min(incoming.len);
        incoming.offset += n;
        incoming.len -= n;
        incoming.crc = crc.unwrap_or(incoming.crc);
        if let Some(entry) = self.table.get_mut(incoming.slot) {
            entry.moved += n;
        }
        if incoming.len > 0 {
            self.rx.at = At::Data(incoming);
            None
        } else if self.agreed.is_some_and(|agreed| agreed.data_digest) {
            self.rx.at = At::DataDigest(incoming);
            None
        } else {
            self.rx.at = AT_HEADER;
            self.data_done(incoming)
        }
    }

    /// The end of a C2HData PDU: with SUCCESS it is the completion as well.
    fn data_done(&mut self, incoming: Incoming) -> Option<Event> {
        if !incoming.success {
            return None;
        }
        let entry = self.table.get(incoming.slot)?;
        let cqe = Cqe {
            result: 0,
            sqhd: u16::MAX,
            cid: entry.sqe.cid(),
            status: Status::SUCCESS,
        };
        let (received, digest_ok) = (entry.moved, entry.digest_ok);
        self.table.complete(incoming.slot);
        Some(Event::Completed {
            slot: incoming.slot,
            cqe,
            received,
            digest_ok,
        })
    }

    /// Nothing can be done before `min` bytes are there.
    const fn more(&mut self, min: usize) -> Result<Parsed, Rejected> {
        self.rx.at = At::Header { min };
        Ok(Parsed {
            used: 0,
            event: None,
        })
    }
}

/// The common header, and how many bytes it has.
fn common_header(staged: &[u8]) -> Option<(CommonHeader, usize)> {
    staged
        .first_chunk()
        .map(|bytes| (CommonHeader::decode(bytes), COMMON_LEN))
}

/// What to say of a type that cannot come now.
fn out_of_place(pdu_type: PduType) -> Violation {
    let known = matches!(
        pdu_type,
        PduType::IC_RESP | PduType::CAPSULE_RESP | PduType::C2H_DATA | PduType::R2T
    );
    if known {
        Violation::new(Fes::PDU_SEQUENCE, 0)
    } else {
        Violation::field(field::TYPE)
    }
}

fn check_ic_resp_header(header: &CommonHeader) -> Result<(), Violation> {
    if !header.flags.is_empty() {
        return Err(Violation::field(field::FLAGS));
    }
    if usize::from(header.hlen) != IC_LEN {
        return Err(Violation::field(field::HLEN));
    }
    if header.pdo != 0 {
        return Err(Violation::field(field::PDO));
    }
    if header.plen as usize != IC_LEN {
        return Err(Violation::field(field::PLEN));
    }
    Ok(())
}

/// Checks offset and length of a C2HData or R2T against what is left of a command's data:
/// `next..total`.
fn check_range(data: &DataHeader, next: u32, total: u32) -> Result<(), Violation> {
    if data.length == 0 {
        return Err(Violation::field(field::LENGTH));
    }
    if u64::from(data.offset) + u64::from(data.length) > u64::from(total) {
        return Err(Violation::new(Fes::DATA_OUT_OF_RANGE, 0));
    }
    // In order and without gaps or repetitions.
    if data.offset != next {
        return Err(Violation::new(Fes::PDU_SEQUENCE, 0));
    }
    Ok(())
}
