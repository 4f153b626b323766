//! The receiving side: where in the stream of PDUs the connection is, and where data goes.

use super::slots::State;
use super::{Event, Parsed, Phase, TcpTarget};
use crate::tcp::{Need, Slot, Violation, WaitFor, digest_matches};
use crate::wire::pdu::{COMMON_LEN, DIGEST_LEN};

/// Where in the stream the connection is.
#[derive(Debug)]
pub(super) struct Rx {
    pub(super) stage: Stage,
    /// At a PDU boundary: how many bytes the next step takes.
    pub(super) min: usize,
    /// The next PDU is a CapsuleCmd for which no slot was free.
    pub(super) parked: bool,
}

impl Default for Rx {
    fn default() -> Self {
        Self {
            stage: Stage::Header,
            min: COMMON_LEN,
            parked: false,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// At a PDU boundary.
    Header,
    /// In-capsule data is next, and the driver has not said yet what becomes of the command.
    Decision { slot: Slot, len: u32 },
    /// In the data of a PDU that is wanted.
    Payload(Payload),
    /// In data (and its digest) that is not.
    Discard { slot: Slot, left: u32 },
}

/// The data of one PDU, on its way into a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    slot: Slot,
    offset: u32,
    /// At 0 the data digest is due.
    left: u32,
    crc: u32,
}

impl Payload {
    /// `len` bytes for `offset` of the slot's buffer.
    pub(super) const fn new(slot: Slot, offset: u32, len: u32) -> Self {
        Self {
            slot,
            offset,
            left: len,
            crc: 0,
        }
    }
}

impl Rx {
    /// Sends the in-capsule data that is next into the slot's buffer; false if there is none.
    pub(super) fn take_in_capsule(&mut self, slot: Slot) -> bool {
        match self.stage {
            Stage::Decision { slot: of, len } if of == slot => {
                self.stage = Stage::Payload(Payload::new(slot, 0, len));
                true
            }
            _ => false,
        }
    }

    /// What is left in the current PDU of the slot's data is not wanted any more, nor the data
    /// digest of `digest` bytes that follows it.
    pub(super) fn discard(&mut self, slot: Slot, digest: u32) {
        let left = match self.stage {
            Stage::Decision { slot: of, len } if of == slot => len,
            Stage::Payload(payload) if payload.slot == slot => payload.left,
            _ => return,
        };
        self.stage = Stage::Discard {
            slot,
            left: left + digest,
        };
    }
}

impl TcpTarget {
    /// Where the next bytes of the stream belong.
    #[must_use]
    pub fn need(&self) -> Need {
        match self.phase {
            Phase::IcReq => return Need::Bytes { min: self.rx.min },
            Phase::Open => {}
            Phase::Drain => return Need::Drain,
            Phase::Closed => return Need::Closed,
        }
        match self.rx.stage {
            Stage::Header if self.is_parked() => Need::Wait(WaitFor::Slot),
            Stage::Header => Need::Bytes { min: self.rx.min },
            Stage::Decision { slot, .. } => Need::Wait(WaitFor::Command(slot)),
            Stage::Payload(Payload { left: 0, .. }) => Need::Bytes { min: DIGEST_LEN },
            Stage::Payload(Payload {
                slot,
                offset,
                left,
                crc,
            }) => Need::Payload {
                slot,
                offset,
                len: left,
                crc: self.terms.data_digest.then_some(crc),
            },
            Stage::Discard { left, .. } => Need::Discard { len: left },
        }
    }

    /// Takes one step: a PDU up to its data, or a data digest. `staged` is what is next in the
    /// stream; with fewer bytes than [`Need::Bytes`] asks for, and where `need` is something else,
    /// nothing is used.
    ///
    /// # Errors
    ///
    /// The host broke NVMe/TCP. A C2HTermReq is queued and `need` is `Drain`.
    pub fn parse(&mut self, staged: &[u8]) -> Result<Parsed, Violation> {
        match (self.phase, self.rx.stage) {
            (Phase::Open, Stage::Header) if self.is_parked() => Ok(Parsed::NOTHING),
            (Phase::IcReq, _) | (Phase::Open, Stage::Header) => self.parse_pdu(staged),
            (Phase::Open, Stage::Payload(payload @ Payload { left: 0, .. })) => {
                Ok(self.parse_data_digest(payload, staged))
            }
            _ => Ok(Parsed::NOTHING),
        }
    }

    /// The next `n` bytes of [`Need::Payload`] are in the buffer, or of [`Need::Discard`] gone.
    ///
    /// With a data digest `crc` is the CRC32C that `need` gave, continued over these bytes. More
    /// bytes than were asked for count as that many; ignored where `need` is something else.
    pub fn placed(&mut self, n: u32, crc: Option<u32>) -> Option<Event> {
        if self.phase != Phase::Open {
            return None;
        }
        let slot = match &mut self.rx.stage {
            Stage::Payload(payload) => {
                let n = n.min(payload.left);
                payload.offset += n;
                payload.left -= n;
                payload.crc = crc.unwrap_or(payload.crc);
                if payload.left > 0 || self.terms.data_digest {
                    return None;
                }
                payload.slot
            }
            Stage::Discard { slot, left } => {
                *left -= n.min(*left);
                if *left > 0 {
                    return None;
                }
                *slot
            }
            Stage::Header | Stage::Decision { .. } => return None,
        };
        self.end_of_data(slot)
    }

    /// A CapsuleCmd is next, and the stream stands still until a slot is free. In a deadlock it
    /// does not: `parse` is to be called, so that it can say so.
    fn is_parked(&self) -> bool {
        self.rx.parked && self.slots.is_full() && !self.slots.is_deadlocked()
    }

    fn parse_data_digest(&mut self, payload: Payload, staged: &[u8]) -> Parsed {
        let Some(digest) = staged.first_chunk() else {
            return Parsed::NOTHING;
        };
        if let Some(entry) = self.slots.get_mut(payload.slot) {
            entry.digest_ok &= digest_matches(u32::from_le_bytes(*digest), payload.crc);
        }
        Parsed {
            used: DIGEST_LEN,
            event: self.end_of_data(payload.slot),
        }
    }

    /// The data of one PDU has come, with its digest.
    fn end_of_data(&mut self, slot: Slot) -> Option<Event> {
        self.rx.stage = Stage::Header;
        let entry = self.slots.get_mut(slot)?;
        let digest_ok = entry.digest_ok;
        let complete = entry.next == entry.wanted;
        match entry.state {
            State::InCapsule => entry.state = State::Execution,
            State::H2cData if complete => {
                entry.state = State::Execution;
                self.slots.data_complete();
            }
            State::Abandoned if complete => {
                entry.state = State::ResponseQueued;
                self.slots.data_complete();
                self.outbox.push(slot);
                return None;
            }
            _ => return None,
        }
        Some(Event::Received { slot, digest_ok })
    }
}
