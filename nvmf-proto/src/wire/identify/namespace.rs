//! Identify Namespace (CNS 00h, 05h, 08h) and the Namespace Identification Descriptors (CNS 03h).

use super::{Csi, IDENTIFY_SIZE};
use crate::wire::layout::{Field, flag_fields, newtype_fields, wire_struct};
use bitflags::bitflags;
use core::fmt;

bitflags! {
    /// NSFEAT of Identify Namespace (CNS 00h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NsFeatures: u8 {
        /// THINP: thin provisioning; NCAP may be less than NSZE.
        const THIN_PROVISIONING = 1 << 0;
        /// NSABP: NAWUN, NAWUPF and NACWU are valid.
        const ATOMIC_FIELDS = 1 << 1;
        /// DAE: Deallocated or Unwritten Logical Block error supported.
        const DEALLOCATED_ERROR = 1 << 2;
        /// UIDREUSE: NGUID and EUI64 are never reused.
        const UID_NOT_REUSED = 1 << 3;
        /// OPTPERF, low bit (01b): NPWG, NPWA, NPDG, NPDA and NOWS are valid.
        const OPTIMAL_IO = 1 << 4;
        /// OPTPERF, high bit: NPDGL and NPDAL of CNS 05h take part.
        const OPTIMAL_IO_LARGE = 1 << 5;
        /// MAM: multiple atomicity mode.
        const MULTIPLE_ATOMICITY = 1 << 6;
        /// OPTRPERF: NPRG, NPRA and NORS of CNS 05h are valid.
        const OPTIMAL_READ = 1 << 7;
    }

    /// NMIC: multi-path I/O and sharing of a namespace.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nmic: u8 {
        /// May be attached to two or more controllers at once.
        const SHARED = 1 << 0;
        /// DISNS: dispersed namespace.
        const DISPERSED = 1 << 1;
    }

    /// RESCAP: reservation capabilities.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rescap: u8 {
        /// Persist Through Power Loss.
        const PTPL = 1 << 0;
        /// Write Exclusive.
        const WRITE_EXCLUSIVE = 1 << 1;
        /// Exclusive Access.
        const EXCLUSIVE_ACCESS = 1 << 2;
        /// Write Exclusive - Registrants Only.
        const WRITE_EXCLUSIVE_REGISTRANTS = 1 << 3;
        /// Exclusive Access - Registrants Only.
        const EXCLUSIVE_ACCESS_REGISTRANTS = 1 << 4;
        /// Write Exclusive - All Registrants.
        const WRITE_EXCLUSIVE_ALL = 1 << 5;
        /// Exclusive Access - All Registrants.
        const EXCLUSIVE_ACCESS_ALL = 1 << 6;
        /// Ignore Existing Key as of NVMe 1.3.
        const IEKEY_1_3 = 1 << 7;
    }

    /// NSATTR: attributes that may change while the namespace exists.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nsattr: u8 {
        /// Write protected now: every write fails.
        const WRITE_PROTECTED = 1 << 0;
    }

    /// NSTAT of CNS 08h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Nstat: u8 {
        /// NRDY: ready.
        const READY = 1 << 0;
    }

    /// NSFEAT of the I/O command set independent Identify Namespace (CNS 08h); the bits differ
    /// from those of CNS 00h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NsFeaturesIndependent: u8 {
        /// UIDREUSE: NGUID and EUI64 are never reused.
        const UID_NOT_REUSED = 1 << 3;
        /// RMEDIA: rotational media.
        const ROTATIONAL = 1 << 4;
        /// VWCNP: no volatile write cache for this namespace.
        const NO_VOLATILE_WRITE_CACHE = 1 << 5;
    }
}

/// DLFEAT: what deallocated logical blocks read as, and whether Write Zeroes may deallocate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dlfeat(pub u8);

impl Dlfeat {
    /// DRB 000b: reading deallocated blocks is not reported.
    pub const READ_NOT_REPORTED: Self = Self(0);
    /// DRB 001b: deallocated blocks read as zeroes.
    pub const READ_ZEROES: Self = Self(1);
    /// DRB 010b: deallocated blocks read as FFh.
    pub const READ_ONES: Self = Self(2);

    /// The same with WZDS set: Write Zeroes honours its Deallocate bit.
    #[must_use]
    pub const fn with_write_zeroes_deallocate(self) -> Self {
        Self(self.0 | 1 << 3)
    }

    /// WZDS: Write Zeroes honours its Deallocate bit.
    #[must_use]
    pub const fn write_zeroes_deallocate(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    /// DRB: bits 2:0, compare with the constants.
    #[must_use]
    pub const fn read_behaviour(self) -> Self {
        Self(self.0 & 7)
    }
}

/// LBA Format: metadata size, data size and relative performance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LbaFormat {
    /// MS: metadata bytes per logical block.
    pub metadata_size: u16,
    /// LBADS: logical block size as a power of two (9 is 512 bytes); 0 is an unused format.
    pub data_size_log2: u8,
    /// RP: bits 1:0, 0 is best.
    pub relative_performance: u8,
}

impl Field for LbaFormat {
    const SIZE: usize = 4;
    fn put(&self, out: &mut [u8]) {
        let [a, b] = self.metadata_size.to_le_bytes();
        out.copy_from_slice(&[a, b, self.data_size_log2, self.relative_performance & 3]);
    }
    fn get(bytes: &[u8]) -> Self {
        let &[a, b, data_size_log2, rp] = bytes.first_chunk().unwrap_or(&[0; 4]);
        Self {
            metadata_size: u16::from_le_bytes([a, b]),
            data_size_log2,
            relative_performance: rp & 3,
        }
    }
}

flag_fields! {
    NsFeatures(u8), NsFeaturesIndependent(u8), Nmic(u8), Rescap(u8), Nsattr(u8), Nstat(u8),
}

newtype_fields! {
    Dlfeat(u8): Self, |d| d.0;
}

wire_struct! {
    /// Identify Namespace data structure of the NVM command set (CNS 00h; NVM Command Set 1.1,
    /// Identify Namespace Data Structure). Counts are logical blocks unless said otherwise.
    pub struct IdentifyNamespace[4096] {
        /// Namespace Size. 0 means that the NSID is not active.
        0 => nsze: u64,
        /// Namespace Capacity.
        8 => ncap: u64,
        /// Namespace Utilization.
        16 => nuse: u64,
        /// Namespace Features.
        24 => nsfeat: NsFeatures,
        /// Number of LBA Formats, 0's based.
        25 => nlbaf: u8,
        /// Formatted LBA Size: format index in bits 3:0 (and 6:5), bit 4 extended metadata.
        26 => flbas: u8,
        /// Metadata Capabilities.
        27 => mc: u8,
        /// End-to-end Data Protection Capabilities.
        28 => dpc: u8,
        /// End-to-end Data Protection Type Settings.
        29 => dps: u8,
        /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
        30 => nmic: Nmic,
        /// Reservation Capabilities.
        31 => rescap: Rescap,
        /// Format Progress Indicator.
        32 => fpi: u8,
        /// Deallocate Logical Block Features.
        33 => dlfeat: Dlfeat,
        /// Namespace Atomic Write Unit Normal, 0's based.
        34 => nawun: u16,
        /// Namespace Atomic Write Unit Power Fail, 0's based.
        36 => nawupf: u16,
        /// Namespace Atomic Compare & Write Unit, 0's based.
        38 => nacwu: u16,
        /// Namespace Atomic Boundary Size Normal, 0's based; 0 is no boundary.
        40 => nabsn: u16,
        /// Namespace Atomic Boundary Offset.
        42 => nabo: u16,
        /// Namespace Atomic Boundary Size Power Fail, 0's based; 0 is no boundary.
        44 => nabspf: u16,
        /// Namespace Optimal I/O Boundary; 0 is none.
        46 => noiob: u16,
        /// NVM Capacity in bytes.
        48 => nvmcap: u128,
        /// Namespace Preferred Write Granularity, 0's based.
        64 => npwg: u16,
        /// Namespace Preferred Write Alignment, 0's based.
        66 => npwa: u16,
        /// Namespace Preferred Deallocate Granularity, 0's based.
        68 => npdg: u16,
        /// Namespace Preferred Deallocate Alignment, 0's based.
        70 => npda: u16,
        /// Namespace Optimal Write Size, 0's based.
        72 => nows: u16,
        /// Maximum Single Source Range Length of Copy.
        74 => mssrl: u16,
        /// Maximum Copy Length.
        76 => mcl: u32,
        /// Maximum Source Range Count of Copy, 0's based.
        80 => msrc: u8,
        /// Key Per I/O Status.
        81 => kpios: u8,
        /// Number of Unique Attribute LBA Formats.
        82 => nulbaf: u8,
        /// Key Per I/O Data Access Alignment and Granularity.
        84 => kpiodaag: u32,
        /// ANA Group Identifier; 0 if ANA is not reported.
        92 => anagrpid: u32,
        /// Namespace Attributes.
        99 => nsattr: Nsattr,
        /// NVM Set Identifier.
        100 => nvmsetid: u16,
        /// Endurance Group Identifier.
        102 => endgid: u16,
        /// Namespace Globally Unique Identifier, big endian as a whole; all zero is none.
        104 => nguid: [u8; 16],
        /// IEEE Extended Unique Identifier, big endian as a whole; all zero is none.
        120 => eui64: [u8; 8],
        /// LBA Formats.
        128 => lbaf: [LbaFormat; 64],
    }
}

impl IdentifyNamespace {
    /// The format that FLBAS selects: index bits 3:0, and bits 6:5 above them if there are more
    /// than 16 formats (NVM Command Set 1.1, FLBAS).
    #[must_use]
    pub fn formatted(&self) -> LbaFormat {
        let low = self.flbas & 0xf;
        let index = if self.nlbaf >= 16 {
            (self.flbas >> 5 & 3) << 4 | low
        } else {
            low
        };
        self.lbaf
            .get(usize::from(index))
            .copied()
            .unwrap_or_default()
    }
}

wire_struct! {
    /// Identify Namespace data structure specific to the NVM command set (CNS 05h, CSI 00h).
    pub struct IdentifyNamespaceNvm[4096] {
        /// Logical Block Storage Tag Mask.
        0 => lbstm: u64,
        /// Protection Information Capabilities.
        8 => pic: u8,
        /// Protection Information Format Attribute.
        9 => pifa: u8,
        /// Extended LBA Formats, one per LBA Format.
        12 => elbaf: [u32; 64],
        /// Namespace Preferred Deallocate Granularity Large, in logical blocks.
        268 => npdgl: u32,
        /// Namespace Preferred Read Granularity, in logical blocks, 0's based.
        272 => nprg: u32,
        /// Namespace Preferred Read Alignment, in logical blocks, 0's based.
        276 => npra: u32,
        /// Namespace Optimal Read Size, in logical blocks, 0's based.
        280 => nors: u32,
        /// Namespace Preferred Deallocate Alignment Large, in logical blocks.
        284 => npdal: u32,
        /// LBA Format Placement Shard Size.
        288 => lbapss: u32,
        /// Tracked LBA Allocation Granularity.
        292 => tlbaag: u32,
    }
}

wire_struct! {
    /// I/O Command Set Independent Identify Namespace data structure (CNS 08h).
    pub struct IdentifyNamespaceIndependent[4096] {
        /// Common Namespace Features.
        0 => nsfeat: NsFeaturesIndependent,
        /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
        1 => nmic: Nmic,
        /// Reservation Capabilities.
        2 => rescap: Rescap,
        /// Format Progress Indicator.
        3 => fpi: u8,
        /// ANA Group Identifier.
        4 => anagrpid: u32,
        /// Namespace Attributes.
        8 => nsattr: Nsattr,
        /// NVM Set Identifier.
        10 => nvmsetid: u16,
        /// Endurance Group Identifier.
        12 => endgid: u16,
        /// Namespace Status.
        14 => nstat: Nstat,
        /// Key Per I/O Status.
        15 => kpios: u8,
        /// Maximum Key Tag.
        16 => maxkt: u16,
        /// Reachability Group Identifier.
        20 => rgrpid: u32,
    }
}

/// Namespace Identification Descriptors (CNS 03h): the identifiers of one namespace. A namespace
/// has at least one of the first three and, from NVMe 2.0 on, a CSI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NsIdDescriptors {
    /// NIDT 01h: EUI64, big endian.
    pub eui64: Option<[u8; 8]>,
    /// NIDT 02h: NGUID, big endian.
    pub nguid: Option<[u8; 16]>,
    /// NIDT 03h: UUID as of RFC 4122.
    pub uuid: Option<[u8; 16]>,
    /// NIDT 04h: command set.
    pub csi: Option<Csi>,
}

/// A descriptor list whose lengths do not fit their types or the 4,096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedDescriptor {
    /// NIDT of the descriptor.
    pub nidt: u8,
    /// NIDL of the descriptor.
    pub nidl: u8,
}

impl fmt::Display for MalformedDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "namespace identification descriptor type {:02x}h",
            self.nidt
        )?;
        write!(f, " has the wrong length {}", self.nidl)
    }
}

impl core::error::Error for MalformedDescriptor {}

const NIDT_EUI64: u8 = 1;
const NIDT_NGUID: u8 = 2;
const NIDT_UUID: u8 = 3;
const NIDT_CSI: u8 = 4;

impl NsIdDescriptors {
    /// Writes the descriptors that are present, in ascending type; the rest of `out` is zero.
    pub fn encode(&self, out: &mut [u8; IDENTIFY_SIZE]) {
        out.fill(0);
        let csi = self.csi.map(|csi| [csi.0]);
        let descriptors = [
            (NIDT_EUI64, self.eui64.as_ref().map(<[u8; 8]>::as_slice)),
            (NIDT_NGUID, self.nguid.as_ref().map(<[u8; 16]>::as_slice)),
            (NIDT_UUID, self.uuid.as_ref().map(<[u8; 16]>::as_slice)),
            (NIDT_CSI, csi.as_ref().map(<[u8; 1]>::as_slice)),
        ];
        // NIDT, NIDL and two reserved bytes precede each identifier.
        let mut bytes = out.iter_mut();
        for (nidt, nid) in descriptors {
            let Some(nid) = nid else { continue };
            let header = [nidt, u8::try_from(nid.len()).unwrap_or(u8::MAX), 0, 0];
            // The identifier leads the zip: it ends first and must not cost a byte of the list.
            for (from, to) in header.iter().chain(nid).zip(bytes.by_ref()) {
                *to = *from;
            }
        }
    }

    /// Reads descriptors up to the first of length zero; unknown types are passed over.
    ///
    /// # Errors
    ///
    /// If a known type has a length that is not its own, or a descriptor exceeds the list.
    pub fn decode(bytes: &[u8; IDENTIFY_SIZE]) -> Result<Self, MalformedDescriptor> {
        let mut found = Self::default();
        let mut rest = bytes.as_slice();
        while let [nidt, nidl, _, _, tail @ ..] = rest {
            let (nidt, nidl) = (*nidt, *nidl);
            if nidl == 0 {
                break;
            }
            let malformed = MalformedDescriptor { nidt, nidl };
            let (nid, tail) = tail.split_at_checked(usize::from(nidl)).ok_or(malformed)?;
            match nidt {
                NIDT_EUI64 => found.eui64 = Some(nid.try_into().map_err(|_| malformed)?),
                NIDT_NGUID => found.nguid = Some(nid.try_into().map_err(|_| malformed)?),
                NIDT_UUID => found.uuid = Some(nid.try_into().map_err(|_| malformed)?),
                NIDT_CSI => {
                    let [csi] = nid.try_into().map_err(|_| malformed)?;
                    found.csi = Some(Csi(csi));
                }
                _ => {}
            }
            rest = tail;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    const W: u16 = 0xfefd;
    const D: u32 = 0xfefd_fcfb;
    const Q: u64 = u64::MAX - 1;

    #[test]
    fn identify_namespace_offsets() {
        let format = LbaFormat {
            metadata_size: W,
            data_size_log2: 12,
            relative_performance: 2,
        };
        assert_offsets!(IdentifyNamespace {
            nsze: Q => 0..8;
            ncap: Q => 8..16;
            nuse: Q => 16..24;
            nsfeat: NsFeatures::all() => 24..25;
            nlbaf: 1 => 25..26;
            flbas: 1 => 26..27;
            mc: 1 => 27..28;
            dpc: 1 => 28..29;
            dps: 1 => 29..30;
            nmic: Nmic::SHARED => 30..31;
            rescap: Rescap::all() => 31..32;
            fpi: 0x80 => 32..33;
            dlfeat: Dlfeat::READ_ZEROES => 33..34;
            nawun: W => 34..36;
            nawupf: W => 36..38;
            nacwu: W => 38..40;
            nabsn: W => 40..42;
            nabo: W => 42..44;
            nabspf: W => 44..46;
            noiob: W => 46..48;
            nvmcap: u128::MAX => 48..64;
            npwg: W => 64..66;
            npwa: W => 66..68;
            npdg: W => 68..70;
            npda: W => 70..72;
            nows: W => 72..74;
            mssrl: W => 74..76;
            mcl: D => 76..80;
            msrc: 1 => 80..81;
            kpios: 1 => 81..82;
            nulbaf: 1 => 82..83;
            kpiodaag: D => 84..88;
            anagrpid: D => 92..96;
            nsattr: Nsattr::WRITE_PROTECTED => 99..100;
            nvmsetid: W => 100..102;
            endgid: W => 102..104;
            nguid: [7; 16] => 104..120;
            eui64: [8; 8] => 120..128;
            lbaf: [format; 64] => 128..384;
        });
    }

    #[test]
    fn lba_format_layout_and_selection() {
        let mut id = IdentifyNamespace {
            flbas: 0x25,
            ..IdentifyNamespace::default()
        };
        id.lbaf[5].data_size_log2 = 9;
        id.lbaf[21].data_size_log2 = 12;
        let mut out = [0; 4096];
        id.encode(&mut out);
        assert_eq!(out[148..152], [0, 0, 9, 0]);
        assert_eq!(id.formatted().data_size_log2, 9);
        id.nlbaf = 21;
        assert_eq!(id.formatted().data_size_log2, 12);
    }

    #[test]
    fn dlfeat_bits() {
        let dlfeat = Dlfeat::READ_ZEROES.with_write_zeroes_deallocate();
        assert_eq!(dlfeat.0, 0b1001);
        assert!(dlfeat.write_zeroes_deallocate());
        assert_eq!(dlfeat.read_behaviour(), Dlfeat::READ_ZEROES);
    }

    #[test]
    fn command_set_specific_and_independent_offsets() {
        assert_offsets!(IdentifyNamespaceNvm {
            lbstm: Q => 0..8;
            pic: 1 => 8..9;
            pifa: 1 => 9..10;
            elbaf: [D; 64] => 12..268;
            npdgl: D => 268..272;
            nprg: D => 272..276;
            npra: D => 276..280;
            nors: D => 280..284;
            npdal: D => 284..288;
            lbapss: D => 288..292;
            tlbaag: D => 292..296;
        });
        assert_offsets!(IdentifyNamespaceIndependent {
            nsfeat: NsFeaturesIndependent::NO_VOLATILE_WRITE_CACHE => 0..1;
            nmic: Nmic::SHARED => 1..2;
            rescap: Rescap::PTPL => 2..3;
            fpi: 1 => 3..4;
            anagrpid: D => 4..8;
            nsattr: Nsattr::WRITE_PROTECTED => 8..9;
            nvmsetid: W => 10..12;
            endgid: W => 12..14;
            nstat: Nstat::READY => 14..15;
            kpios: 1 => 15..16;
            maxkt: W => 16..18;
            rgrpid: D => 20..24;
        });
    }

    #[test]
    fn descriptors_round_trip() {
        let all = NsIdDescriptors {
            eui64: Some([1; 8]),
            nguid: Some([2; 16]),
            uuid: Some([3; 16]),
            csi: Some(Csi::NVM),
        };
        let mut out = [0xff; 4096];
        all.encode(&mut out);
        assert_eq!(out[..5], [1, 8, 0, 0, 1]);
        assert_eq!(out[12..17], [2, 16, 0, 0, 2]);
        assert_eq!(out[32..37], [3, 16, 0, 0, 3]);
        assert_eq!(out[52..57], [4, 1, 0, 0, 0]);
        assert!(out[57..].iter().all(|&b| b == 0));
        assert_eq!(NsIdDescriptors::decode(&out), Ok(all));

        let uuid_only = NsIdDescriptors {
            uuid: Some([9; 16]),
            ..NsIdDescriptors::default()
        };
        uuid_only.encode(&mut out);
        assert_eq!(out[..4], [3, 16, 0, 0]);
        assert_eq!(NsIdDescriptors::decode(&out), Ok(uuid_only));
    }

    #[test]
    fn lying_descriptors_are_refused() {
        let mut out = [0; 4096];
        out[..2].copy_from_slice(&[1, 16]);
        let error = MalformedDescriptor { nidt: 1, nidl: 16 };
        assert_eq!(NsIdDescriptors::decode(&out), Err(error));

        // Unknown types are passed over, up to one that runs past the end.
        for descriptor in out.chunks_exact_mut(256) {
            descriptor[..2].copy_from_slice(&[0x77, 252]);
        }
        assert_eq!(
            NsIdDescriptors::decode(&out),
            Ok(NsIdDescriptors::default())
        );
        out[15 * 256 + 1] = 253;
        let error = MalformedDescriptor {
            nidt: 0x77,
            nidl: 253,
        };
        assert_eq!(NsIdDescriptors::decode(&out), Err(error));
    }

    proptest::proptest! {
        #[test]
        fn any_descriptor_list_is_read_or_refused(
            descriptors in proptest::collection::vec((0u8..6, 0u8..20), 0..300),
        ) {
            let mut list = [0; 4096];
            let bytes = descriptors.iter().flat_map(|&(nidt, nidl)| {
                [nidt, nidl, 0, 0].into_iter().chain(std::iter::repeat_n(0x5a, usize::from(nidl)))
            });
            for (from, to) in bytes.zip(&mut list) {
                *to = from;
            }
            if let Ok(found) = NsIdDescriptors::decode(&list) {
                let mut again = [0; 4096];
                found.encode(&mut again);
                assert_eq!(NsIdDescriptors::decode(&again), Ok(found));
            }
        }
    }
}
