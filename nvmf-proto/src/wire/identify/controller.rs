//! Identify Controller (CNS 01h) and its NVM command set part (CNS 06h).

use crate::wire::layout::{flag_fields, newtype_fields, wire_struct};
use bitflags::bitflags;

/// CNTRLTYPE: what kind of controller this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ControllerType(pub u8);

impl ControllerType {
    /// Not reported (before NVMe 1.4).
    pub const NOT_REPORTED: Self = Self(0);
    /// I/O controller.
    pub const IO: Self = Self(1);
    /// Discovery controller.
    pub const DISCOVERY: Self = Self(2);
    /// Administrative controller.
    pub const ADMINISTRATIVE: Self = Self(3);
}

bitflags! {
    /// CMIC: multi-path I/O and namespace sharing of the subsystem.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cmic: u8 {
        /// More than one port.
        const MULTI_PORT = 1 << 0;
        /// More than one controller.
        const MULTI_CONTROLLER = 1 << 1;
        /// The controller is an SR-IOV virtual function.
        const SR_IOV = 1 << 2;
        /// Asymmetric Namespace Access reporting.
        const ANA_REPORTING = 1 << 3;
    }

    /// OAES: optional asynchronous events that the controller can send. A Linux host enables
    /// only what stands here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Oaes: u32 {
        /// Namespace Attribute Notices.
        const NAMESPACE_ATTRIBUTE = 1 << 8;
        /// Firmware Activation Notices.
        const FIRMWARE_ACTIVATION = 1 << 9;
        /// Asymmetric Namespace Access Change Notices.
        const ANA_CHANGE = 1 << 11;
        /// Predictable Latency Event Aggregate Log Change Notices.
        const PREDICTABLE_LATENCY = 1 << 12;
        /// LBA Status Information Alert Notices.
        const LBA_STATUS = 1 << 13;
        /// Endurance Group Event Aggregate Log Page Change Notices.
        const ENDURANCE_GROUP = 1 << 14;
        /// Normal NVM Subsystem Shutdown.
        const NORMAL_SHUTDOWN = 1 << 15;
        /// Temperature Threshold Hysteresis Recovery.
        const TEMPERATURE_HYSTERESIS = 1 << 16;
        /// Reachability Groups Change Notices.
        const REACHABILITY_GROUPS = 1 << 17;
        /// Allocated Namespace Attribute Notices.
        const ALLOCATED_NAMESPACE = 1 << 19;
        /// Zone Descriptor Changed Notices.
        const ZONE_DESCRIPTOR = 1 << 27;
        /// Discovery Log Page Change Notifications.
        const DISCOVERY_LOG = 1 << 31;
    }

    /// CTRATT: controller attributes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ctratt: u32 {
        /// HIDS: 128-bit Host Identifier. NVMe over Fabrics requires it.
        const HOST_ID_128 = 1 << 0;
        /// NOPSPM: non-operational power state permissive mode.
        const NON_OP_POWER = 1 << 1;
        /// NSETS: NVM sets.
        const NVM_SETS = 1 << 2;
        /// RRLVLS: read recovery levels.
        const READ_RECOVERY_LEVELS = 1 << 3;
        /// EGS: endurance groups.
        const ENDURANCE_GROUPS = 1 << 4;
        /// PLM: predictable latency mode.
        const PREDICTABLE_LATENCY = 1 << 5;
        /// TBKAS: traffic based keep alive. Any command restarts the Keep Alive Timer, so that a
        /// host under load may send no Keep Alive command at all.
        const TBKAS = 1 << 6;
        /// NG: namespace granularity.
        const NAMESPACE_GRANULARITY = 1 << 7;
        /// SQA: submission queue associations.
        const SQ_ASSOCIATIONS = 1 << 8;
        /// ULIST: UUID list.
        const UUID_LIST = 1 << 9;
        /// MDS: multi-domain subsystem.
        const MULTI_DOMAIN = 1 << 10;
        /// FCM: fixed capacity management.
        const FIXED_CAPACITY = 1 << 11;
        /// VCM: variable capacity management.
        const VARIABLE_CAPACITY = 1 << 12;
        /// DEG: delete endurance group.
        const DELETE_ENDURANCE_GROUP = 1 << 13;
        /// DNVMS: delete NVM set.
        const DELETE_NVM_SET = 1 << 14;
        /// ELBAS: extended LBA formats.
        const EXTENDED_LBA_FORMATS = 1 << 15;
        /// MEM: MDTS and size limits exclude metadata.
        const MDTS_EXCLUDES_METADATA = 1 << 16;
        /// HMBR: HMB restricts non-operational power state access.
        const HMB_RESTRICTED = 1 << 17;
        /// RHII: reservations and Host Identifier interaction.
        const RESERVATION_HOST_ID = 1 << 18;
        /// FDPS: flexible data placement.
        const FDP = 1 << 19;
    }

    /// OACS: optional admin commands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Oacs: u16 {
        /// Security Send and Security Receive.
        const SECURITY = 1 << 0;
        /// Format NVM.
        const FORMAT = 1 << 1;
        /// Firmware Commit and Firmware Image Download.
        const FIRMWARE = 1 << 2;
        /// Namespace Management and Namespace Attachment.
        const NAMESPACE_MANAGEMENT = 1 << 3;
        /// Device Self-test.
        const SELF_TEST = 1 << 4;
        /// Directives.
        const DIRECTIVES = 1 << 5;
        /// NVMe-MI Send and Receive.
        const NVME_MI = 1 << 6;
        /// Virtualization Management.
        const VIRTUALIZATION = 1 << 7;
        /// Doorbell Buffer Config.
        const DOORBELL_BUFFER = 1 << 8;
        /// Get LBA Status.
        const GET_LBA_STATUS = 1 << 9;
        /// Command and Feature Lockdown.
        const LOCKDOWN = 1 << 10;
        /// Host Managed Live Migration.
        const LIVE_MIGRATION = 1 << 11;
    }

    /// FRMW: firmware updates. Bits 3:1 hold the number of slots (1 to 7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Frmw: u8 {
        /// Slot 1 is read only.
        const SLOT_1_READ_ONLY = 1 << 0;
        /// One slot: the value 1 in bits 3:1.
        const ONE_SLOT = 1 << 1;
        /// Activation without a reset.
        const ACTIVATION_WITHOUT_RESET = 1 << 4;
        /// Detects overlapping updates of several images.
        const OVERLAP_DETECTION = 1 << 5;
    }

    /// LPA: log page attributes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Lpa: u8 {
        /// SMARTS: SMART / Health log page per namespace.
        const SMART_PER_NAMESPACE = 1 << 0;
        /// CSES: Commands Supported and Effects log page.
        const COMMAND_EFFECTS = 1 << 1;
        /// LPEDS: extended data, that is 32-bit NUMD and log page offset.
        const EXTENDED_DATA = 1 << 2;
        /// TS: telemetry.
        const TELEMETRY = 1 << 3;
        /// PES: Persistent Event log page.
        const PERSISTENT_EVENT = 1 << 4;
        /// MLPS: Supported Log Pages, Feature Identifiers and NVMe-MI Commands Supported and
        /// Effects log pages, and scopes in Commands Supported and Effects.
        const SUPPORTED_LOG_PAGES = 1 << 5;
        /// DA4S: telemetry data area 4.
        const TELEMETRY_AREA_4 = 1 << 6;
    }

    /// ONCS: optional commands and features of the NVM command set.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Oncs: u16 {
        /// Compare.
        const COMPARE = 1 << 0;
        /// Write Uncorrectable.
        const WRITE_UNCORRECTABLE = 1 << 1;
        /// Dataset Management.
        const DATASET_MANAGEMENT = 1 << 2;
        /// Write Zeroes.
        const WRITE_ZEROES = 1 << 3;
        /// SAVE in Set Features and SELECT in Get Features may be non-zero.
        const SAVE_AND_SELECT = 1 << 4;
        /// Reservations.
        const RESERVATIONS = 1 << 5;
        /// Timestamp feature.
        const TIMESTAMP = 1 << 6;
        /// Verify.
        const VERIFY = 1 << 7;
        /// Copy.
        const COPY = 1 << 8;
        /// The write part of a Copy has the atomicity of one write.
        const COPY_SINGLE_ATOMICITY = 1 << 9;
        /// All Copy commands are fast copies.
        const ALL_FAST_COPY = 1 << 10;
        /// MAXWZD: Write Zeroes with Deallocate is limited by WZDSL.
        const WRITE_ZEROES_DEALLOCATE_LIMIT = 1 << 11;
        /// NSZS: Write Zeroes of a whole namespace.
        const NAMESPACE_ZEROES = 1 << 12;
    }

    /// FUSES: fused operations.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Fuses: u16 {
        /// Compare and Write.
        const COMPARE_AND_WRITE = 1 << 0;
    }

    /// VWC: volatile write cache. A Linux host sends Flush and FUA only if PRESENT is set.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Vwc: u8 {
        /// A volatile write cache is present.
        const PRESENT = 1 << 0;
        /// FB 10b: Flush does not support NSID FFFFFFFFh.
        const FLUSH_NO_BROADCAST = 0b100;
        /// FB 11b: Flush supports NSID FFFFFFFFh.
        const FLUSH_BROADCAST = 0b110;
    }

    /// SGLS: SGL support.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Sgls: u32 {
        /// SGLs are supported without alignment requirement (bits 1:0 = 01b).
        const SUPPORTED = 1 << 0;
        /// SGLs are supported with dword alignment and granularity (bits 1:0 = 10b).
        const SUPPORTED_DWORD = 1 << 1;
        /// Keyed SGL Data Block descriptor.
        const KEYED = 1 << 2;
        /// SGL Bit Bucket descriptor.
        const BIT_BUCKET = 1 << 16;
        /// Byte aligned contiguous metadata buffer.
        const METADATA_BYTE_ALIGNED = 1 << 17;
        /// SGLs may be longer than the data.
        const OVERSIZE = 1 << 18;
        /// MPTR may hold an SGL descriptor.
        const METADATA_SGL = 1 << 19;
        /// The address field may be an offset into the capsule: in-capsule data.
        const OFFSET = 1 << 20;
        /// Transport SGL Data Block descriptor.
        const TRANSPORT_DATA_BLOCK = 1 << 21;
    }

    /// OFCS: optional Fabrics commands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ofcs: u16 {
        /// Disconnect, and with it deletion of single I/O queues.
        const DISCONNECT = 1 << 0;
    }

    /// ANACAP: Asymmetric Namespace Access capabilities.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AnaCapabilities: u8 {
        /// Reports ANA Optimized.
        const OPTIMIZED = 1 << 0;
        /// Reports ANA Non-Optimized.
        const NON_OPTIMIZED = 1 << 1;
        /// Reports ANA Inaccessible.
        const INACCESSIBLE = 1 << 2;
        /// Reports ANA Persistent Loss.
        const PERSISTENT_LOSS = 1 << 3;
        /// Reports ANA Change.
        const CHANGE = 1 << 4;
        /// ANAGRPID of an attached namespace does not change.
        const GROUP_ID_FIXED = 1 << 6;
        /// Namespace Management accepts a non-zero ANAGRPID.
        const GROUP_ID_MANAGED = 1 << 7;
    }
}

flag_fields! {
    Cmic(u8), Oaes(u32), Ctratt(u32), Oacs(u16), Frmw(u8), Lpa(u8), Oncs(u16), Fuses(u16), Vwc(u8),
    Sgls(u32), Ofcs(u16), AnaCapabilities(u8),
}

newtype_fields! {
    ControllerType(u8): Self, |t| t.0;
}

wire_struct! {
    /// Power State Descriptor: 32 bytes.
    #[derive(Copy)]
    pub struct PowerState[32] {
        /// MP: maximum power in 0.01 W (or 0.0001 W if MXPS is set).
        0 => maximum_power: u16,
        /// Bit 0 MXPS, bit 1 NOPS (non-operational).
        3 => flags: u8,
        /// ENLAT: entry latency in microseconds.
        4 => entry_latency: u32,
        /// EXLAT: exit latency in microseconds.
        8 => exit_latency: u32,
        /// RRT: relative read throughput, 0 is best.
        12 => relative_read_throughput: u8,
        /// RRL: relative read latency, 0 is best.
        13 => relative_read_latency: u8,
        /// RWT: relative write throughput, 0 is best.
        14 => relative_write_throughput: u8,
        /// RWL: relative write latency, 0 is best.
        15 => relative_write_latency: u8,
        /// IDLP: idle power, in the scale of IPS.
        16 => idle_power: u16,
        /// IPS: bits 7:6.
        18 => idle_power_scale: u8,
        /// ACTP: active power, in the scale of APS.
        20 => active_power: u16,
        /// APW (bits 2:0) and APS (bits 7:6).
        22 => active_power_workload: u8,
    }
}

impl crate::wire::layout::Field for PowerState {
    const SIZE: usize = Self::SIZE;
    fn put(&self, out: &mut [u8]) {
        if let Some(out) = out.first_chunk_mut() {
            self.encode(out);
        }
    }
    fn get(bytes: &[u8]) -> Self {
        Self::decode(bytes.first_chunk().unwrap_or(&[0; 32]))
    }
}

wire_struct! {
    /// Identify Controller data structure (CNS 01h; NVMe Base 2.1, Identify Controller Data
    /// Structure). Text fields are space-padded ASCII: see [`crate::wire::padded_ascii`].
    pub struct IdentifyController[4096] {
        /// PCI Vendor ID.
        0 => vid: u16,
        /// PCI Subsystem Vendor ID.
        2 => ssvid: u16,
        /// Serial Number, space-padded ASCII.
        4 => sn: [u8; 20],
        /// Model Number, space-padded ASCII.
        24 => mn: [u8; 40],
        /// Firmware Revision, space-padded ASCII.
        64 => fr: [u8; 8],
        /// Recommended Arbitration Burst, as a power of two.
        72 => rab: u8,
        /// IEEE OUI, least significant byte first.
        73 => ieee: [u8; 3],
        /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
        76 => cmic: Cmic,
        /// Maximum Data Transfer Size: 2^MDTS units of the minimum page (CAP.MPSMIN); 0 is no limit.
        77 => mdts: u8,
        /// Controller ID.
        78 => cntlid: u16,
        /// Version, as in the VS property.
        80 => ver: u32,
        /// RTD3 Resume Latency in microseconds.
        84 => rtd3r: u32,
        /// RTD3 Entry Latency in microseconds.
        88 => rtd3e: u32,
        /// Optional Asynchronous Events Supported.
        92 => oaes: Oaes,
        /// Controller Attributes.
        96 => ctratt: Ctratt,
        /// Read Recovery Levels Supported, one bit per level.
        100 => rrls: u16,
        /// Controller Type.
        111 => cntrltype: ControllerType,
        /// FRU Globally Unique Identifier.
        112 => fguid: [u8; 16],
        /// Command Retry Delay Time 1, in 100 ms.
        128 => crdt1: u16,
        /// Command Retry Delay Time 2, in 100 ms.
        130 => crdt2: u16,
        /// Command Retry Delay Time 3, in 100 ms.
        132 => crdt3: u16,
        /// Controller Reachability Capabilities.
        134 => crcap: u8,
        /// NVM Subsystem Report: bit 0 storage device, bit 1 enclosure.
        253 => nvmsr: u8,
        /// VPD Write Cycle Information.
        254 => vwci: u8,
        /// Management Endpoint Capabilities.
        255 => mec: u8,
        /// Optional Admin Command Support.
        256 => oacs: Oacs,
        /// Abort Command Limit, 0's based.
        258 => acl: u8,
        /// Asynchronous Event Request Limit, 0's based.
        259 => aerl: u8,
        /// Firmware Updates.
        260 => frmw: Frmw,
        /// Log Page Attributes.
        261 => lpa: Lpa,
        /// Error Log Page Entries, 0's based.
        262 => elpe: u8,
        /// Number of Power States Support, 0's based.
        263 => npss: u8,
        /// Admin Vendor Specific Command Configuration.
        264 => avscc: u8,
        /// Autonomous Power State Transition Attributes.
        265 => apsta: u8,
        /// Warning Composite Temperature Threshold in kelvins.
        266 => wctemp: u16,
        /// Critical Composite Temperature Threshold in kelvins.
        268 => cctemp: u16,
        /// Maximum Time for Firmware Activation, in 100 ms.
        270 => mtfa: u16,
        /// Host Memory Buffer Preferred Size, in 4 KiB.
        272 => hmpre: u32,
        /// Host Memory Buffer Minimum Size, in 4 KiB.
        276 => hmmin: u32,
        /// Total NVM Capacity in bytes.
        280 => tnvmcap: u128,
        /// Unallocated NVM Capacity in bytes.
        296 => unvmcap: u128,
        /// Replay Protected Memory Block Support.
        312 => rpmbs: u32,
        /// Extended Device Self-test Time in minutes.
        316 => edstt: u16,
        /// Device Self-test Options.
        318 => dsto: u8,
        /// Firmware Update Granularity, in 4 KiB; FFh is no restriction.
        319 => fwug: u8,
        /// Keep Alive Support: granularity of the Keep Alive Timer in 100 ms; 0 is unsupported.
        320 => kas: u16,
        /// Host Controlled Thermal Management Attributes.
        322 => hctma: u16,
        /// Minimum Thermal Management Temperature in kelvins.
        324 => mntmt: u16,
        /// Maximum Thermal Management Temperature in kelvins.
        326 => mxtmt: u16,
        /// Sanitize Capabilities.
        328 => sanicap: u32,
        /// Host Memory Buffer Minimum Descriptor Entry Size, in 4 KiB.
        332 => hmminds: u32,
        /// Host Memory Maximum Descriptors Entries.
        336 => hmmaxd: u16,
        /// NVM Set Identifier Maximum.
        338 => nsetidmax: u16,
        /// Endurance Group Identifier Maximum.
        340 => endgidmax: u16,
        /// ANA Transition Time in seconds.
        342 => anatt: u8,
        /// Asymmetric Namespace Access Capabilities.
        343 => anacap: AnaCapabilities,
        /// ANA Group Identifier Maximum.
        344 => anagrpmax: u32,
        /// Number of ANA Group Identifiers.
        348 => nanagrpid: u32,
        /// Persistent Event Log Size, in 64 KiB.
        352 => pels: u32,
        /// Domain Identifier.
        356 => did: u16,
        /// Key Per I/O Capabilities.
        358 => kpioc: u8,
        /// Maximum Processing Time for Firmware Activation Without Reset, in 100 ms.
        360 => mptfawr: u16,
        /// Max Endurance Group Capacity in bytes.
        368 => megcap: u128,
        /// Temperature Threshold Hysteresis Attributes.
        384 => tmpthha: u8,
        /// Command Quiesce Time in milliseconds.
        386 => cqt: u16,
        /// Submission Queue Entry Size: bits 3:0 required, bits 7:4 maximum, as powers of two.
        512 => sqes: u8,
        /// Completion Queue Entry Size: bits 3:0 required, bits 7:4 maximum, as powers of two.
        513 => cqes: u8,
        /// Maximum Outstanding Commands per queue. NVMe over Fabrics requires it to be non-zero.
        514 => maxcmd: u16,
        /// Number of Namespaces: the highest NSID that can be valid.
        516 => nn: u32,
        /// Optional NVM Command Support.
        520 => oncs: Oncs,
        /// Fused Operation Support.
        522 => fuses: Fuses,
        /// Format NVM Attributes.
        524 => fna: u8,
        /// Volatile Write Cache.
        525 => vwc: Vwc,
        /// Atomic Write Unit Normal in logical blocks, 0's based.
        526 => awun: u16,
        /// Atomic Write Unit Power Fail in logical blocks, 0's based.
        528 => awupf: u16,
        /// I/O Command Set Vendor Specific Command Configuration (earlier NVSCC).
        530 => icsvscc: u8,
        /// Namespace Write Protection Capabilities.
        531 => nwpc: u8,
        /// Atomic Compare & Write Unit in logical blocks, 0's based.
        532 => acwu: u16,
        /// Copy Descriptor Formats Supported (earlier OCFS), one bit per format.
        534 => cdfs: u16,
        /// SGL Support.
        536 => sgls: Sgls,
        /// Maximum Number of Allowed Namespaces; 0 means NN.
        540 => mnan: u32,
        /// Maximum Domain Namespace Attachments.
        544 => maxdna: u128,
        /// Maximum I/O Controller Namespace Attachments.
        560 => maxcna: u32,
        /// Optimal Aggregated Queue Depth.
        564 => oaqd: u32,
        /// NVM Subsystem NVMe Qualified Name, NUL-terminated UTF-8.
        768 => subnqn: [u8; 256],
        /// I/O Queue Command Capsule Supported Size, in 16 bytes; at least 4 (64 bytes).
        1792 => ioccsz: u32,
        /// I/O Queue Response Capsule Supported Size, in 16 bytes; at least 1.
        1796 => iorcsz: u32,
        /// In Capsule Data Offset, in 16 bytes from the end of the SQE. NVMe/TCP requires 0.
        1800 => icdoff: u16,
        /// Fabrics Controller Attributes: bit 0 set means static controller model.
        1802 => fcatt: u8,
        /// Maximum SGL Data Block Descriptors; NVMe/TCP uses 1.
        1803 => msdbd: u8,
        /// Optional Fabrics Commands Support.
        1804 => ofcs: Ofcs,
        /// Discovery Controller Type: 0 not reported, 1 direct, 2 central.
        1806 => dctype: u8,
        /// Power State 0 Descriptor. A controller with one power state has no other.
        2048 => psd0: PowerState,
    }
}

wire_struct! {
    /// Identify Controller data structure of the NVM command set (CNS 06h, CSI 00h). Size limits
    /// are 2^n units of the minimum page (CAP.MPSMIN) unless said otherwise; 0 is no limit.
    pub struct IdentifyControllerNvm[4096] {
        /// Verify Size Limit.
        0 => vsl: u8,
        /// Write Zeroes Size Limit.
        1 => wzsl: u8,
        /// Write Uncorrectable Size Limit.
        2 => wusl: u8,
        /// Dataset Management Ranges Limit: most ranges in one command.
        3 => dmrl: u8,
        /// Dataset Management Range Size Limit: most logical blocks in one range.
        4 => dmrsl: u32,
        /// Dataset Management Size Limit: most logical blocks in one command.
        8 => dmsl: u64,
        /// Key Per I/O Capabilities.
        16 => kpiocap: u8,
        /// Write Zeroes With Deallocate Size Limit.
        17 => wzdsl: u8,
        /// Admin Optional Command Support.
        18 => aocs: u16,
        /// Version of the NVM Command Set specification.
        20 => ver: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    const W: u16 = 0xfefd;
    const D: u32 = 0xfefd_fcfb;
    const O: u128 = u128::MAX - 1;

    #[test]
    fn identify_controller_offsets() {
        assert_offsets!(IdentifyController {
            vid: W => 0..2;
            ssvid: W => 2..4;
            sn: [b'S'; 20] => 4..24;
            mn: [b'M'; 40] => 24..64;
            fr: [b'F'; 8] => 64..72;
            rab: 6 => 72..73;
            ieee: [1, 2, 3] => 73..76;
            cmic: Cmic::all() => 76..77;
            mdts: 5 => 77..78;
            cntlid: W => 78..80;
            ver: D => 80..84;
            rtd3r: D => 84..88;
            rtd3e: D => 88..92;
            oaes: Oaes::from_bits_retain(D) => 92..96;
            ctratt: Ctratt::from_bits_retain(D) => 96..100;
            rrls: W => 100..102;
            cntrltype: ControllerType::IO => 111..112;
            fguid: [9; 16] => 112..128;
            crdt1: W => 128..130;
            crdt2: W => 130..132;
            crdt3: W => 132..134;
            crcap: 1 => 134..135;
            nvmsr: 1 => 253..254;
            vwci: 1 => 254..255;
            mec: 1 => 255..256;
            oacs: Oacs::from_bits_retain(W) => 256..258;
            acl: 3 => 258..259;
            aerl: 3 => 259..260;
            frmw: Frmw::SLOT_1_READ_ONLY | Frmw::ONE_SLOT => 260..261;
            lpa: Lpa::all() => 261..262;
            elpe: 127 => 262..263;
            npss: 1 => 263..264;
            avscc: 1 => 264..265;
            apsta: 1 => 265..266;
            wctemp: W => 266..268;
            cctemp: W => 268..270;
            mtfa: W => 270..272;
            hmpre: D => 272..276;
            hmmin: D => 276..280;
            tnvmcap: O => 280..296;
            unvmcap: O => 296..312;
            rpmbs: D => 312..316;
            edstt: W => 316..318;
            dsto: 1 => 318..319;
            fwug: 1 => 319..320;
            kas: W => 320..322;
            hctma: W => 322..324;
            mntmt: W => 324..326;
            mxtmt: W => 326..328;
            sanicap: D => 328..332;
            hmminds: D => 332..336;
            hmmaxd: W => 336..338;
            nsetidmax: W => 338..340;
            endgidmax: W => 340..342;
            anatt: 10 => 342..343;
            anacap: AnaCapabilities::all() => 343..344;
            anagrpmax: D => 344..348;
            nanagrpid: D => 348..352;
            pels: D => 352..356;
            did: W => 356..358;
            kpioc: 1 => 358..359;
            mptfawr: W => 360..362;
            megcap: O => 368..384;
            tmpthha: 1 => 384..385;
            cqt: W => 386..388;
            sqes: 0x66 => 512..513;
            cqes: 0x44 => 513..514;
            maxcmd: W => 514..516;
            nn: D => 516..520;
            oncs: Oncs::from_bits_retain(W) => 520..522;
            fuses: Fuses::from_bits_retain(W) => 522..524;
            fna: 1 => 524..525;
            vwc: Vwc::PRESENT => 525..526;
            awun: W => 526..528;
            awupf: W => 528..530;
            icsvscc: 1 => 530..531;
            nwpc: 1 => 531..532;
            acwu: W => 532..534;
            cdfs: W => 534..536;
            sgls: Sgls::from_bits_retain(D) => 536..540;
            mnan: D => 540..544;
            maxdna: O => 544..560;
            maxcna: D => 560..564;
            oaqd: D => 564..568;
            subnqn: [b'n'; 256] => 768..1024;
            ioccsz: D => 1792..1796;
            iorcsz: D => 1796..1800;
            icdoff: W => 1800..1802;
            fcatt: 1 => 1802..1803;
            msdbd: 1 => 1803..1804;
            ofcs: Ofcs::from_bits_retain(W) => 1804..1806;
            dctype: 1 => 1806..1807;
            psd0: PowerState { maximum_power: 2500, active_power_workload: 1, ..PowerState::default() }
                => 2048..2071;
        });
    }

    #[test]
    fn values_are_little_endian() {
        let id = IdentifyController {
            tnvmcap: 0x1_0203,
            nn: 0x0102_0304,
            maxcmd: 0x0506,
            ..IdentifyController::default()
        };
        let mut out = [0; 4096];
        id.encode(&mut out);
        assert_eq!(out[280..284], [3, 2, 1, 0]);
        assert_eq!(out[514..520], [6, 5, 4, 3, 2, 1]);
    }

    #[test]
    fn flags_stand_at_the_bits_a_linux_host_reads() {
        assert_eq!(Oaes::NAMESPACE_ATTRIBUTE.bits(), 0x100);
        assert_eq!(Oaes::ANA_CHANGE.bits(), 0x800);
        assert_eq!(Oaes::DISCOVERY_LOG.bits(), 0x8000_0000);
        assert_eq!((Ctratt::HOST_ID_128 | Ctratt::TBKAS).bits(), 0x41);
        assert_eq!((Oncs::DATASET_MANAGEMENT | Oncs::WRITE_ZEROES).bits(), 0x0c);
        assert_eq!(
            (Oncs::RESERVATIONS | Oncs::VERIFY | Oncs::COPY).bits(),
            0x1a0
        );
        assert_eq!((Vwc::PRESENT | Vwc::FLUSH_NO_BROADCAST).bits(), 5);
        assert_eq!((Vwc::PRESENT | Vwc::FLUSH_BROADCAST).bits(), 7);
        let sgls = Sgls::SUPPORTED | Sgls::OFFSET | Sgls::TRANSPORT_DATA_BLOCK;
        assert_eq!(sgls.bits(), 0x30_0001);
    }

    #[test]
    fn power_state_offsets() {
        assert_offsets!(PowerState {
            maximum_power: W => 0..2;
            flags: 1 => 3..4;
            entry_latency: D => 4..8;
            exit_latency: D => 8..12;
            relative_read_throughput: 1 => 12..13;
            relative_read_latency: 1 => 13..14;
            relative_write_throughput: 1 => 14..15;
            relative_write_latency: 1 => 15..16;
            idle_power: W => 16..18;
            idle_power_scale: 0x80 => 18..19;
            active_power: W => 20..22;
            active_power_workload: 1 => 22..23;
        });
    }

    #[test]
    fn identify_controller_nvm_offsets() {
        assert_offsets!(IdentifyControllerNvm {
            vsl: 1 => 0..1;
            wzsl: 1 => 1..2;
            wusl: 1 => 2..3;
            dmrl: 255 => 3..4;
            dmrsl: D => 4..8;
            dmsl: u64::MAX => 8..16;
            kpiocap: 1 => 16..17;
            wzdsl: 1 => 17..18;
            aocs: W => 18..20;
            ver: D => 20..24;
        });
    }
}
