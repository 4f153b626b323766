//! The sending side: which PDUs are due, and what of them has left.

use super::slots::State;
use super::{Done, Phase, TcpTarget};
use crate::tcp::{Slot, TxList, crc32c};
use crate::wire::pdu::{
    CommonHeader, DATA_LEN, DIGEST_LEN, DataHeader, IC_LEN, InitConnection, PduFlags, PduType,
    R2T_LEN, RESP_LEN, TERM_LEN, TERM_MAX_LEN, TermReq, encode_capsule_resp,
};
use crate::wire::{Cqe, Status};
use std::collections::VecDeque;

/// Data starts at a multiple of 128 bytes at the most (HPDA 31).
const PDO_MAX: usize = 128;
/// The most header bytes that one answer takes: C2HData up to its data, data digest, CapsuleResp.
const ANSWER_MAX: usize = PDO_MAX + DIGEST_LEN + RESP_LEN + DIGEST_LEN;

/// What is due to be sent, and what is on its way.
#[derive(Debug)]
pub(super) struct Outbox {
    ic_resp: bool,
    term_req: bool,
    /// A whole C2HTermReq: its length and its bytes.
    term_req_len: usize,
    term_req_pdu: [u8; TERM_MAX_LEN],
    /// Commands with an R2T or a response due; each is in it once at most.
    due: VecDeque<Slot>,
    /// Responses handed over and where they end, counted in `handed_over`.
    leaving: VecDeque<(u64, Slot)>,
    /// Bytes handed to the driver since the beginning.
    handed_over: u64,
    /// Bytes of these that have left.
    left: u64,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            ic_resp: false,
            term_req: false,
            term_req_len: 0,
            term_req_pdu: [0; TERM_MAX_LEN],
            due: VecDeque::with_capacity(1),
            leaving: VecDeque::with_capacity(1),
            handed_over: 0,
            left: 0,
        }
    }

    /// Bytes for so many commands.
    pub(super) const fn bytes(slots: usize) -> usize {
        slots * (size_of::<Slot>() + size_of::<(u64, Slot)>())
    }

    /// Makes room for as many commands.
    pub(super) fn grow(&mut self, slots: usize) {
        self.due.reserve_exact(slots.saturating_sub(self.due.len()));
        self.leaving
            .reserve_exact(slots.saturating_sub(self.leaving.len()));
    }

    pub(super) const fn push_ic_resp(&mut self) {
        self.ic_resp = true;
    }

    /// The slot has an R2T or a response to send.
    pub(super) fn push(&mut self, slot: Slot) {
        self.due.push_back(slot);
    }

    /// Makes a C2HTermReq that quotes the offending header the one thing that is due: in
    /// [`Phase::Drain`] nothing else is handed over.
    pub(super) fn terminate(&mut self, term_req: TermReq, quote: &[u8]) {
        let (head, room) = self.term_req_pdu.split_at_mut(TERM_LEN);
        let mut quoted = 0;
        for (to, from) in room.iter_mut().zip(quote) {
            *to = *from;
            quoted += 1;
        }
        head.copy_from_slice(&term_req.encode(PduType::C2H_TERM_REQ, quoted));
        self.term_req_len = TERM_LEN + usize::from(quoted);
        self.term_req = true;
    }
}

impl TcpTarget {
    /// Appends PDUs that are due to `out` while there is room; true if there were any.
    ///
    /// With data digests the driver then calls [`TxList::fill_digests`].
    pub fn poll_transmit(&mut self, out: &mut TxList) -> bool {
        let before = self.outbox.handed_over;
        match self.phase {
            Phase::Open => {
                if self.outbox.ic_resp && out.has_room(IC_LEN) {
                    self.outbox.ic_resp = false;
                    self.send_ic_resp(out);
                }
                while !self.outbox.ic_resp && out.has_room(ANSWER_MAX) {
                    let Some(slot) = self.outbox.due.pop_front() else {
                        break;
                    };
                    self.send(slot, out);
                }
            }
            Phase::Drain => {
                if self.outbox.term_req && out.has_room(TERM_MAX_LEN) {
                    self.outbox.term_req = false;
                    let pdu = self.outbox.term_req_pdu.get(..self.outbox.term_req_len);
                    let pdu = pdu.unwrap_or_default();
                    out.push_head(pdu);
                    self.outbox.handed_over += pdu.len() as u64;
                }
            }
            Phase::IcReq | Phase::Closed => {}
        }
        self.outbox.handed_over != before
    }

    /// Whether [`TcpTarget::poll_transmit`] has anything to append.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        match self.phase {
            Phase::Open => self.outbox.ic_resp || !self.outbox.due.is_empty(),
            Phase::Drain => self.outbox.term_req,
            Phase::IcReq | Phase::Closed => false,
        }
    }

    /// The next `bytes` bytes of what was appended have left. `released` is called for every
    /// command whose response has left entirely, data included: its buffer is the driver's again
    /// and its slot free.
    pub fn transmitted(&mut self, bytes: usize, mut released: impl FnMut(Slot)) {
        let outbox = &mut self.outbox;
        outbox.left = outbox
            .left
            .saturating_add(bytes as u64)
            .min(outbox.handed_over);
        while let Some(&(end, slot)) = outbox.leaving.front() {
            if end > outbox.left {
                break;
            }
            outbox.leaving.pop_front();
            self.slots.release(slot);
            released(slot);
        }
    }

    fn send_ic_resp(&mut self, out: &mut TxList) {
        let mut dgst = 0;
        if self.terms.header_digest {
            dgst |= InitConnection::HDGST_ENABLE;
        }
        if self.terms.data_digest {
            dgst |= InitConnection::DDGST_ENABLE;
        }
        let (pda, max) = (self.terms.cpda, self.terms.maxh2cdata);
        out.push_head(
            &InitConnection {
                pfv: 0,
                pda,
                dgst,
                max,
            }
            .encode(PduType::IC_RESP),
        );
        self.outbox.handed_over += IC_LEN as u64;
    }

    /// Sends what is due for a slot: its R2T or its response.
    fn send(&mut self, slot: Slot, out: &mut TxList) {
        let Some(entry) = self.slots.get_mut(slot) else {
            return;
        };
        match entry.state {
            State::R2tQueued => {
                let (cid, wanted) = (entry.cid, entry.wanted);
                self.slots.expect_data(slot);
                self.send_r2t(slot, cid, wanted, out);
            }
            State::ResponseQueued => {
                entry.state = State::Leaving;
                let (cid, done) = (entry.cid, entry.done);
                self.slots.release_cid(slot);
                self.send_response(slot, cid, done, out);
                self.outbox
                    .leaving
                    .push_back((self.outbox.handed_over, slot));
            }
            _ => {}
        }
    }

    fn send_r2t(&mut self, slot: Slot, cccid: u16, length: u32, out: &mut TxList) {
        let ch = self.common_header(PduType::R2T, R2T_LEN);
        let r2t = DataHeader {
            cccid,
            ttag: self.slots.ttag(slot),
            offset: 0,
            length,
        };
        self.push_header(&r2t.encode(&ch), out);
        self.outbox.handed_over += u64::from(ch.plen);
    }

    #[inline]
    fn send_response(&mut self, slot: Slot, cid: u16, done: Done, out: &mut TxList) {
        // A queue that no Connect has created yet has no entries: SQHD 0.
        let sqhd = self.queue.map_or(0, |queue| queue.sqhd());
        let flow_control = self.queue.is_none_or(|queue| queue.flow_control);
        if done.data_len > 0 && done.status.is_success() {
            // NVMe/TCP 1.1, C2HData PDU: SUCCESS stands for a CQE whose result and status are zero
            // and that moves no SQ head.
            let success = !flow_control && done.status == Status::SUCCESS && done.result == 0;
            self.send_data(slot, cid, done.data_len, success, out);
            if success {
                return;
            }
        }
        let cqe = Cqe {
            result: done.result,
            sqhd,
            cid,
            status: done.status,
        };
        let ch = self.common_header(PduType::CAPSULE_RESP, RESP_LEN);
        self.push_header(&encode_capsule_resp(&ch, &cqe), out);
        self.outbox.handed_over += u64::from(ch.plen);
    }

    #[expect(clippy::cast_possible_truncation, reason = "PDO is 128 at the most")]
    #[inline]
    fn send_data(&mut self, slot: Slot, cccid: u16, length: u32, success: bool, out: &mut TxList) {
        let mut ch = self.common_header(PduType::C2H_DATA, DATA_LEN);
        let end = ch.plen;
        let pdo = end.next_multiple_of((u32::from(self.terms.hpda) + 1) * 4);
        ch.pdo = pdo as u8;
        ch.plen = (pdo + self.data_digest_len()).saturating_add(length);
        ch.flags |= PduFlags::LAST_PDU;
        ch.flags.set(PduFlags::DDGST, self.terms.data_digest);
        ch.flags.set(PduFlags::SUCCESS, success);
        self.push_header(
            &DataHeader {
                cccid,
                ttag: 0,
                offset: 0,
                length,
            }
            .encode(&ch),
            out,
        );
        if pdo > end {
            out.push_head(
                [0; PDO_MAX]
                    .get(end as usize..pdo as usize)
                    .unwrap_or_default(),
            );
        }
        out.push_data(slot, 0, length, self.terms.data_digest);
        self.outbox.handed_over += u64::from(ch.plen);
    }

    /// Of a PDU without data.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "headers are shorter than 256 bytes"
    )]
    const fn common_header(&self, pdu_type: PduType, hlen: usize) -> CommonHeader {
        CommonHeader {
            pdu_type,
            flags: if self.terms.header_digest {
                PduFlags::HDGST
            } else {
                PduFlags::empty()
            },
            hlen: hlen as u8,
            pdo: 0,
            plen: hlen as u32 + self.header_digest_len(),
        }
    }

    #[inline]
    fn push_header<const N: usize>(&self, header: &[u8; N], out: &mut TxList) {
        out.push_header(header);
        if self.terms.header_digest {
            out.push_header(&crc32c(0, header).to_le_bytes());
        }
    }
}
