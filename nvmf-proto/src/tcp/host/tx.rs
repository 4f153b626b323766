//! What the host sends: ICReq, CapsuleCmd, H2CData, H2CTermReq.

use super::TcpHost;
use super::table::{Stage, Table, Transfer};
use crate::tcp::{Negotiated, Slot, TxList, Violation, crc32c};
use crate::wire::pdu::{
    CMD_LEN, CommonHeader, DATA_LEN, DIGEST_LEN, DataHeader, IC_LEN, InitConnection, PduFlags,
    PduType, TERM_LEN, TERM_MAX_LEN, encode_capsule_cmd,
};
use std::collections::VecDeque;

/// The most bytes of PAD that precede data.
const PAD_MAX: usize = 128;

/// The most bytes of data in one PDU, whatever the controller would take: PLEN has to hold them.
pub(super) const PDU_DATA_MAX: u32 = 1 << 30;

/// The part of an R2T that is still to be answered.
#[derive(Clone, Copy, Debug)]
struct R2t {
    slot: Slot,
    ttag: u16,
    offset: u32,
    len: u32,
}

/// A data PDU that was handed out.
#[derive(Clone, Copy, Debug)]
struct InTransit {
    /// Its last byte's position in all that was handed out, plus one.
    end: u64,
    slot: Slot,
}

/// An H2CTermReq.
#[derive(Clone, Copy, Debug)]
struct Term {
    bytes: [u8; TERM_MAX_LEN],
    len: usize,
}

/// Everything that waits to be sent, or to have left.
#[derive(Debug)]
pub(super) struct State {
    ic_req_sent: bool,
    capsules: VecDeque<Slot>,
    r2ts: VecDeque<R2t>,
    in_transit: VecDeque<InTransit>,
    in_transit_max: usize,
    term: Option<Term>,
    handed_out: u64,
    left: u64,
}

impl State {
    pub(super) fn new(slots: usize, maxr2t: u32) -> Self {
        let r2ts = slots * (maxr2t as usize + 1);
        // Bounds memory, not progress: when as many data PDUs are under way, more wait.
        let in_transit_max = slots.max(64);
        Self {
            ic_req_sent: false,
            capsules: VecDeque::with_capacity(slots),
            r2ts: VecDeque::with_capacity(r2ts),
            in_transit: VecDeque::with_capacity(in_transit_max),
            in_transit_max,
            term: None,
            handed_out: 0,
            left: 0,
        }
    }

    /// `slot` is in no queue yet, so that there is room.
    pub(super) fn queue_capsule(&mut self, slot: Slot) {
        self.capsules.push_back(slot);
    }

    /// The caller has checked the command's number of R2Ts, so that there is room.
    pub(super) fn queue_r2t(&mut self, slot: Slot, header: &DataHeader) {
        self.r2ts.push_back(R2t {
            slot,
            ttag: header.ttag,
            offset: header.offset,
            len: header.length,
        });
    }

    pub(super) const fn ic_req_sent(&self) -> bool {
        self.ic_req_sent
    }

    pub(super) const fn term_pending(&self) -> bool {
        self.term.is_some()
    }

    pub(super) fn has_queued(&self) -> bool {
        (!self.capsules.is_empty() || !self.r2ts.is_empty()) && self.room_in_transit()
    }

    /// Drops what was not handed out and makes an H2CTermReq that quotes the front of `pdu`.
    pub(super) fn fail(&mut self, violation: Violation, pdu: &[u8], quoted: usize) {
        self.capsules.clear();
        self.r2ts.clear();
        let quote = pdu
            .get(..quoted.min(TERM_MAX_LEN - TERM_LEN))
            .unwrap_or_default();
        let mut bytes = [0; TERM_MAX_LEN];
        let (head, rest) = bytes.split_at_mut(TERM_LEN);
        let quoted = u8::try_from(quote.len()).unwrap_or_default();
        head.copy_from_slice(&violation.0.encode(PduType::H2C_TERM_REQ, quoted));
        for (to, from) in rest.iter_mut().zip(quote) {
            *to = *from;
        }
        self.term = Some(Term {
            bytes,
            len: TERM_LEN + quote.len(),
        });
    }

    /// Appends the H2CTermReq, once. TermReq PDUs carry no digest.
    pub(super) fn emit_term(&mut self, out: &mut TxList) -> bool {
        let Some(term) = self.term.filter(|_| out.has_room(TERM_MAX_LEN)) else {
            return false;
        };
        out.push_head(term.bytes.get(..term.len).unwrap_or_default());
        self.handed_out += term.len as u64;
        self.term = None;
        true
    }

    pub(super) fn transmitted(&mut self, bytes: usize, table: &mut Table) {
        self.left = self.left.saturating_add(bytes as u64).min(self.handed_out);
        while let Some(first) = self.in_transit.front().filter(|t| t.end <= self.left) {
            table.sent(first.slot);
            self.in_transit.pop_front();
        }
    }

    const fn note(&mut self, bytes: usize) {
        self.handed_out += bytes as u64;
    }

    fn note_data(&mut self, bytes: usize, slot: Slot) {
        self.note(bytes);
        self.in_transit.push_back(InTransit {
            end: self.handed_out,
            slot,
        });
    }

    fn room_in_transit(&self) -> bool {
        self.in_transit.len() < self.in_transit_max
    }
}

impl TcpHost {
    /// Appends the ICReq, once.
    pub(super) fn emit_ic_req(&mut self, out: &mut TxList) -> bool {
        if self.tx.ic_req_sent || !out.has_room(IC_LEN) {
            return false;
        }
        let mut dgst = 0;
        if self.want_header_digest {
            dgst |= InitConnection::HDGST_ENABLE;
        }
        if self.want_data_digest {
            dgst |= InitConnection::DDGST_ENABLE;
        }
        let request = InitConnection {
            pfv: 0,
            pda: self.hpda,
            dgst,
            max: self.maxr2t,
        };
        out.push_head(&request.encode(PduType::IC_REQ));
        self.tx.note(IC_LEN);
        self.tx.ic_req_sent = true;
        true
    }

    /// Appends commands, then the data that R2Ts asked for.
    pub(super) fn emit_queued(&mut self, out: &mut TxList) -> bool {
        let agreed = self.agreed.unwrap_or_default();
        let mut any = false;
        while self.emit_capsule(&agreed, out) {
            any = true;
        }
        // An R2T that waits for room is not overtaken by a command for long: commands are bounded
        // by the slots, and freed only by the controller.
        while self.tx.capsules.is_empty() && self.emit_data(&agreed, out) {
            any = true;
        }
        any
    }

    fn emit_capsule(&mut self, agreed: &Negotiated, out: &mut TxList) -> bool {
        let Some(&slot) = self.tx.capsules.front() else {
            return false;
        };
        if !out.has_room(CMD_LEN + 2 * DIGEST_LEN + PAD_MAX) || !self.tx.room_in_transit() {
            return false;
        }
        self.tx.capsules.pop_front();
        let Some(entry) = self.table.get_mut(slot) else {
            return true;
        };
        entry.stage = Stage::Issued;
        let data_len = if entry.transfer == Transfer::InCapsule {
            entry.len
        } else {
            0
        };
        entry.sending += u32::from(data_len > 0);
        let frame = Frame::new(
            PduType::CAPSULE_CMD,
            CMD_LEN,
            PduFlags::empty(),
            data_len,
            agreed,
        );
        frame.push_header(&encode_capsule_cmd(&frame.header, &entry.sqe), out);
        if data_len == 0 {
            self.tx.note(frame.plen());
        } else {
            out.push_data(slot, 0, data_len, agreed.data_digest);
            self.tx.note_data(frame.plen(), slot);
        }
        true
    }

    fn emit_data(&mut self, agreed: &Negotiated, out: &mut TxList) -> bool {
        let Some(&r2t) = self.tx.r2ts.front() else {
            return false;
        };
        if !out.has_room(DATA_LEN + 2 * DIGEST_LEN + PAD_MAX) || !self.tx.room_in_transit() {
            return false;
        }
        let Some(entry) = self.table.get_mut(r2t.slot) else {
            self.tx.r2ts.pop_front();
            return true;
        };
        // NVMe/TCP 1.1, H2CData: DATAL is at most MAXH2CDATA, and LAST_PDU ends the R2T.
        let length = r2t.len.min(agreed.maxh2cdata).min(PDU_DATA_MAX);
        let last = length == r2t.len;
        let flags = if last {
            PduFlags::LAST_PDU
        } else {
            PduFlags::empty()
        };
        let frame = Frame::new(PduType::H2C_DATA, DATA_LEN, flags, length, agreed);
        let data = DataHeader {
            cccid: entry.sqe.cid(),
            ttag: r2t.ttag,
            offset: r2t.offset,
            length,
        };
        frame.push_header(&data.encode(&frame.header), out);
        out.push_data(r2t.slot, r2t.offset, length, agreed.data_digest);
        entry.sending += 1;
        self.tx.note_data(frame.plen(), r2t.slot);
        if last {
            entry.r2ts = entry.r2ts.saturating_sub(1);
            self.tx.r2ts.pop_front();
        } else if let Some(front) = self.tx.r2ts.front_mut() {
            front.offset += length;
            front.len -= length;
        }
        true
    }
}

/// The common header of a PDU, and what stands between it and its data.
struct Frame {
    header: CommonHeader,
    header_digest: bool,
    pad: usize,
}

impl Frame {
    fn new(
        pdu_type: PduType,
        hlen: usize,
        mut flags: PduFlags,
        data_len: u32,
        agreed: &Negotiated,
    ) -> Self {
        flags.set(PduFlags::HDGST, agreed.header_digest);
        let head = hlen + if agreed.header_digest { DIGEST_LEN } else { 0 };
        let (mut pdo, mut tail) = (0, 0);
        if data_len > 0 {
            pdo = head.next_multiple_of((usize::from(agreed.cpda) + 1) * 4);
            flags.set(PduFlags::DDGST, agreed.data_digest);
            tail = if agreed.data_digest { DIGEST_LEN } else { 0 };
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 72 + 4 + 128")]
        let (hlen, pdo_field, around) = (hlen as u8, pdo as u8, (pdo.max(head) + tail) as u32);
        Self {
            header: CommonHeader {
                pdu_type,
                flags,
                hlen,
                pdo: pdo_field,
                plen: around + data_len,
            },
            header_digest: agreed.header_digest,
            pad: pdo.saturating_sub(head),
        }
    }

    const fn plen(&self) -> usize {
        self.header.plen as usize
    }

    /// Appends the header, its digest and the padding.
    fn push_header(&self, bytes: &[u8], out: &mut TxList) {
        out.push_head(bytes);
        if self.header_digest {
            out.push_head(&crc32c(0, bytes).to_le_bytes());
        }
        if self.pad > 0 {
            out.push_head([0; PAD_MAX].get(..self.pad).unwrap_or_default());
        }
    }
}
