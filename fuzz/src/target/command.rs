//! Commands that are mostly plausible.

use super::{DATA_MAX, WRITTEN};
use arbitrary::Arbitrary;
use nvmf_host::Data;
use nvmf_proto::wire::copy::CopyCommand;
use nvmf_proto::wire::dsm::DsmCommand;
use nvmf_proto::wire::fabrics::FabricsType;
use nvmf_proto::wire::feature::{FeatureSelect, Fid, GetFeatures, HOST_ID_EXTENDED, SetFeatures};
use nvmf_proto::wire::log::{GetLogPage, Lid, PersistentEventAction};
use nvmf_proto::wire::reservation::ReportCommand;
use nvmf_proto::wire::{AdminOpcode, NvmOpcode, SglDescriptor, Sqe};

/// A command, of either kind of queue.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Command {
    opcode: Opcode,
    nsid: u8,
    /// CDW10 to CDW15: the low half, and which of them have something in the high half.
    cdw: [u16; 6],
    high: u8,
    data: Length,
    lie: Lie,
}

/// An index into the opcodes that the queue knows, or any opcode at all.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Opcode {
    odds: u8,
    value: u8,
}

/// How much data the command says it has: rarely not what it moves. A host that lies about that is
/// soon without a connection.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Length {
    odds: u8,
    value: u16,
}

impl Length {
    /// The command is one that means something.
    const fn is_likely(self) -> bool {
        self.odds < 0xc0
    }

    /// The target asks for it.
    const fn is_by_r2t(self) -> bool {
        self.odds & 1 == 1
    }

    fn of(self, exact: usize) -> usize {
        match self.odds {
            0..0xfa => exact.min(DATA_MAX),
            0xfa..0xfd => usize::from(self.value % 64) * 512,
            _ => usize::from(self.value),
        }
    }
}

/// Rarely the SQE is not what a host would make.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Lie {
    odds: u8,
    flags: u8,
    sgl_kind: u8,
    sgl_len: u16,
}

impl Command {
    /// As it is submitted.
    pub(super) fn sqe(&self, admin: bool) -> Sqe {
        const FABRICS: u8 = 0x7f;
        let known: &[u8] = if admin {
            &[
                AdminOpcode::GET_LOG_PAGE.0,
                AdminOpcode::IDENTIFY.0,
                AdminOpcode::ABORT.0,
                AdminOpcode::SET_FEATURES.0,
                AdminOpcode::GET_FEATURES.0,
                AdminOpcode::ASYNC_EVENT_REQUEST.0,
                AdminOpcode::KEEP_ALIVE.0,
                FABRICS,
            ]
        } else {
            &[
                NvmOpcode::FLUSH.0,
                NvmOpcode::WRITE.0,
                NvmOpcode::READ.0,
                NvmOpcode::WRITE_ZEROES.0,
                NvmOpcode::DATASET_MANAGEMENT.0,
                NvmOpcode::COMPARE.0,
                NvmOpcode::VERIFY.0,
                NvmOpcode::COPY.0,
                NvmOpcode::WRITE_UNCORRECTABLE.0,
                NvmOpcode::WRITE.0,
                NvmOpcode::READ.0,
                FABRICS,
                NvmOpcode::RESERVATION_REGISTER.0,
                NvmOpcode::RESERVATION_REPORT.0,
                NvmOpcode::RESERVATION_ACQUIRE.0,
                NvmOpcode::RESERVATION_RELEASE.0,
            ]
        };
        let opcode = if self.opcode.odds >= 0xe0 {
            self.opcode.value
        } else {
            known[usize::from(self.opcode.value) % known.len()]
        };
        let mut sqe = Sqe::with_opcode(opcode);
        sqe.set_nsid(match self.nsid {
            nsid @ 0..0xf0 => u32::from(nsid % 7),
            _ => u32::MAX,
        });
        let mut bit = 0;
        let mut cdw = self.cdw.map(|low| {
            bit += 1;
            // CDW11 is the upper half of an SLBA: mostly 0.
            let high = self.high >> bit & 1 == 1 && self.high > 0xc0;
            u32::from(low) | if high { u32::from(low) << 16 } else { 0 }
        });
        if self.data.is_likely() {
            self.make_likely(&mut sqe, admin, &mut cdw);
        }
        sqe.set_cdw10_15(cdw);
        if self.lie.odds >= 0xf8 {
            sqe.0[1] = self.lie.flags;
        }
        // Half a fused operation waits for the other one.
        if (0xf0..0xf8).contains(&self.lie.odds) && !admin {
            sqe.0[1] |= 1 + (self.lie.flags & 1);
        }
        if self.lie.odds >= 0xfd {
            sqe.set_sgl(SglDescriptor {
                address: self.lie.flags.into(),
                length: self.lie.sgl_len.into(),
                kind: self.sgl_kind(),
            });
        }
        sqe
    }

    /// Mostly one that is known somewhere.
    const fn sgl_kind(&self) -> u8 {
        match self.lie.sgl_kind {
            0..0x40 => SglDescriptor::IN_CAPSULE,
            0x40..0x80 => SglDescriptor::TRANSPORT,
            0x80..0x90 => 0x40,
            kind => kind,
        }
    }

    /// Most values mean nothing. These do.
    fn make_likely(&self, sqe: &mut Sqe, admin: bool, cdw: &mut [u32; 6]) {
        let pick = |known: &[u8]| known[usize::from(self.high) % known.len()];
        let small = u32::from(self.cdw[1] % 8);
        match AdminOpcode(sqe.opcode()) {
            AdminOpcode::FABRICS => {
                // Property Set, Connect, Property Get, authentication, Disconnect.
                sqe.0[4] = pick(&[0x00, 0x01, 0x04, 0x05, 0x06, 0x08, 0x08]);
                cdw[0] = u32::from(self.cdw[0] > 0xf000);
                cdw[1] = u32::from(pick(&[0x14, 0x1c, 0x08, 0x20, 0x00, 0x68, 0x14]));
                // CC: enabled or not, with a shutdown or without.
                cdw[2] = 6 << 16 | 4 << 20 | (cdw[2] & 0xc001);
                cdw[3] = 0;
            }
            _ if !admin => {
                // SLBA and NLB; bits from NSZ to FUA.
                let flags = if self.high > 0xa0 { 0 } else { self.high };
                (cdw[0], cdw[1]) = (cdw[0] % 64, 0);
                cdw[2] = (cdw[2] % 256) | (u32::from(flags) << 23);
            }
            AdminOpcode::SET_FEATURES | AdminOpcode::GET_FEATURES => {
                cdw[0] = u32::from(pick(&[
                    0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x0a, 0x0b, 0x0e, 0x0f, 0x16, 0x81, 0x82,
                    0x83, 0x84,
                ]));
                cdw[1] = match self.cdw[1] {
                    low @ 0..0x4000 => low.into(),
                    low => u32::from(low & 7) | u32::from(low & 7) << 16,
                };
            }
            AdminOpcode::GET_LOG_PAGE => {
                let lid = pick(&[0, 1, 2, 3, 4, 5, 0x0c, 0x0d, 0x12, 0x70, 0x80]);
                let lsp_rae = (self.cdw[0] >> 8) & 0x83;
                cdw[0] = u32::from(lid) | u32::from(lsp_rae) << 8 | cdw[3] << 18;
                cdw[1] = 0;
                (cdw[2], cdw[3], cdw[4]) = (small * 4, 0, 0);
            }
            AdminOpcode::IDENTIFY => {
                let cns = pick(&[0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x13, 0x14, 0x15, 0x18, 0x1c]);
                (cdw[0], cdw[1]) = (cns.into(), 0);
            }
            AdminOpcode::ABORT => cdw[0] = (small % 3) | (u32::from(self.cdw[0] % 64) << 16),
            _ => {}
        }
    }

    /// The same with a data pointer of its own, and what comes in its capsule.
    pub(super) fn capsule(&self) -> (Sqe, Vec<u8>) {
        let mut sqe = self.sqe(false);
        let exact = exact_length(&sqe, false).min(1 << 13);
        let sends = sqe.opcode() & 3 == 1 || self.lie.odds >= 0xc0;
        let data = vec![WRITTEN; if sends { exact } else { 0 }];
        if self.lie.odds < 0xfd {
            let length = u32::try_from(exact).unwrap_or(u32::MAX);
            let kind = match (self.lie.sgl_kind, sends) {
                (0..0xc0, true) => SglDescriptor::IN_CAPSULE,
                (0..0xc0, false) => SglDescriptor::TRANSPORT,
                _ => self.sgl_kind(),
            };
            // An offset into the capsule, rarely.
            let address = u64::from(self.lie.flags / 0xe0);
            sqe.set_sgl(SglDescriptor {
                address,
                length,
                kind,
            });
        }
        (sqe, data)
    }

    /// The data of the command, and whether it is what its opcode says.
    pub(super) fn data(&self, sqe: &Sqe, admin: bool) -> (Data, bool) {
        if self.lie.odds >= 0xfd {
            return (Data::AsIs, false);
        }
        let exact = exact_length(sqe, admin);
        let len = self.data.of(exact);
        let fabrics = sqe.opcode() == 0x7f;
        // Bits 1:0 of the opcode (of FCTYPE in Fabrics commands) are the direction of the data.
        let direction = if fabrics {
            FabricsType::of(sqe).0 & 3
        } else {
            sqe.opcode() & 3
        };
        match direction {
            0 => (Data::None, true),
            // This host calls a success with less data than it made room for a violation.
            1 if self.data.is_by_r2t() => (Data::WriteByR2t(vec![WRITTEN; len]), len == exact),
            1 => (Data::Write(vec![WRITTEN; len]), len == exact),
            2 => (Data::Read(vec![0xee; len]), len == exact),
            _ => (Data::Read(vec![0xee; len]), false),
        }
    }
}

/// How many bytes a good command moves.
fn exact_length(sqe: &Sqe, admin: bool) -> usize {
    if !admin {
        return match NvmOpcode(sqe.opcode()) {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => {
                let block = if sqe.nsid() == 2 { 4096 } else { 512 };
                sqe.block_count() as usize * block
            }
            NvmOpcode::DATASET_MANAGEMENT => DsmCommand::decode(sqe).data_length(),
            NvmOpcode::COPY => CopyCommand::decode(sqe).data_length(),
            NvmOpcode::RESERVATION_REGISTER | NvmOpcode::RESERVATION_ACQUIRE => 16,
            NvmOpcode::RESERVATION_RELEASE => 8,
            NvmOpcode::RESERVATION_REPORT => {
                usize::try_from(ReportCommand::decode(sqe).length()).unwrap_or(usize::MAX)
            }
            _ => 0,
        };
    }
    match AdminOpcode(sqe.opcode()) {
        AdminOpcode::IDENTIFY => 4096,
        AdminOpcode::GET_LOG_PAGE => {
            let get = GetLogPage::decode(sqe);
            let action = PersistentEventAction::of(get.lsp);
            if (get.lid, action)
                == (
                    Lid::PERSISTENT_EVENT,
                    PersistentEventAction::ESTABLISH_HEADER,
                )
            {
                return 512;
            }
            usize::try_from(get.length()).unwrap_or(usize::MAX)
        }
        AdminOpcode::SET_FEATURES => match SetFeatures::decode(sqe).fid {
            Fid::TIMESTAMP => 8,
            Fid::HOST_BEHAVIOR => 512,
            _ => 0,
        },
        AdminOpcode::GET_FEATURES => {
            let get = GetFeatures::decode(sqe);
            match get.fid {
                // What can be done with a feature is said in dword 0.
                _ if get.sel == FeatureSelect::CAPABILITIES => 0,
                Fid::TIMESTAMP => 8,
                Fid::HOST_BEHAVIOR => 512,
                Fid::HOST_IDENTIFIER if get.cdw11 & HOST_ID_EXTENDED == 0 => 8,
                Fid::HOST_IDENTIFIER => 16,
                _ => 0,
            }
        }
        _ => 0,
    }
}
