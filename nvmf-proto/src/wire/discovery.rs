//! Discovery log page (LID 70h): a header and one entry per path to a subsystem.
//! (NVMe Base 2.1, Discovery Log Page.)

use super::layout::{flag_fields, newtype_fields, padded_ascii, trimmed_text, wire_struct};
use super::nqn::{Nqn, NqnError};
use bitflags::bitflags;

/// TRTYPE: transport type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransportType(pub u8);

impl TransportType {
    /// RDMA.
    pub const RDMA: Self = Self(1);
    /// Fibre Channel.
    pub const FC: Self = Self(2);
    /// TCP.
    pub const TCP: Self = Self(3);
    /// Within one host.
    pub const LOOPBACK: Self = Self(254);
}

/// ADRFAM: address family of TRADDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressFamily(pub u8);

impl AddressFamily {
    /// IPv4, dotted decimal.
    pub const IPV4: Self = Self(1);
    /// IPv6, RFC 4291 text.
    pub const IPV6: Self = Self(2);
    /// InfiniBand.
    pub const INFINIBAND: Self = Self(3);
    /// Fibre Channel.
    pub const FC: Self = Self(4);
    /// Within one host.
    pub const LOOPBACK: Self = Self(254);
}

/// SUBTYPE: what kind of subsystem an entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubsystemType(pub u8);

impl SubsystemType {
    /// Another discovery subsystem: a referral.
    pub const REFERRAL: Self = Self(1);
    /// A subsystem with namespaces.
    pub const NVM: Self = Self(2);
    /// The discovery subsystem that gave the log page.
    pub const CURRENT_DISCOVERY: Self = Self(3);
}

bitflags! {
    /// TREQ: transport requirements. Bits 1:0 are the secure channel requirement: 0 not specified,
    /// 1 required, 2 not required.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Treq: u8 {
        /// A secure channel is required (bits 1:0 = 01b).
        const SECURE_REQUIRED = 1 << 0;
        /// A secure channel is not required (bits 1:0 = 10b).
        const SECURE_NOT_REQUIRED = 1 << 1;
        /// The host may disable SQ flow control.
        const SQ_FLOW_CONTROL_DISABLE = 1 << 2;
    }

    /// EFLAGS: entry flags.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EntryFlags: u16 {
        /// DUPRETINFO: all entries with this flag lead to the same information.
        const DUPLICATE = 1 << 0;
        /// EPCSD: explicit persistent connections to this discovery controller.
        const PERSISTENT = 1 << 1;
        /// NCC: no connection to a central discovery controller.
        const NOT_CONNECTED = 1 << 2;
    }

    /// Log Specific Parameter of Get Log Page for LID 70h.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DiscoveryLsp: u8 {
        /// EXTDLPE: extended entries.
        const EXTENDED = 1 << 0;
        /// PLEO: only entries of the port that the command came through.
        const PORT_LOCAL = 1 << 1;
        /// ALLSUBE: entries of all subsystems, whoever asks.
        const ALL_SUBSYSTEMS = 1 << 2;
    }
}

/// SECTYPE of TCP: byte 0 of TSAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpSecurity(pub u8);

impl TcpSecurity {
    /// No TLS.
    pub const NONE: Self = Self(0);
    /// TLS 1.2.
    pub const TLS_1_2: Self = Self(1);
    /// TLS 1.3.
    pub const TLS_1_3: Self = Self(2);
}

flag_fields! { Treq(u8), EntryFlags(u16) }

newtype_fields! {
    TransportType(u8): Self, |t| t.0;
    AddressFamily(u8): Self, |t| t.0;
    SubsystemType(u8): Self, |t| t.0;
    TcpSecurity(u8): Self, |t| t.0;
}

wire_struct! {
    /// Header of the Discovery log page; the entries follow it.
    pub struct DiscoveryLogHeader[1024] {
        /// GENCTR: Generation Counter. A host that reads the log in parts reads it again if this
        /// has changed.
        0 => genctr: u64,
        /// NUMREC: Number of Records.
        8 => numrec: u64,
        /// RECFMT: Record Format; 0.
        16 => recfmt: u16,
    }
}

wire_struct! {
    /// Discovery Log Page Entry.
    pub struct DiscoveryLogEntry[1024] {
        /// TRTYPE: Transport Type.
        0 => trtype: TransportType,
        /// ADRFAM: Address Family.
        1 => adrfam: AddressFamily,
        /// SUBTYPE: Subsystem Type.
        2 => subtype: SubsystemType,
        /// TREQ: Transport Requirements.
        3 => treq: Treq,
        /// PORTID: NVM subsystem port.
        4 => portid: u16,
        /// CNTLID to connect to; FFFFh for the dynamic controller model.
        6 => cntlid: u16,
        /// ASQSZ: most entries of the Admin Submission Queue, not 0's based; at least 32.
        8 => asqsz: u16,
        /// EFLAGS: Entry Flags.
        10 => eflags: EntryFlags,
        /// TRSVCID: transport service, for TCP the port in decimal; ASCII, space-padded.
        32 => trsvcid: [u8; 32],
        /// SUBNQN, NUL-terminated UTF-8.
        256 => subnqn: [u8; 256],
        /// TRADDR: transport address, ASCII, space-padded.
        512 => traddr: [u8; 256],
        /// SECTYPE of TSAS, for TCP.
        768 => tcp_sectype: TcpSecurity,
    }
}

impl DiscoveryLogEntry {
    /// Sets SUBNQN, TRADDR and TRSVCID from text.
    #[must_use]
    pub fn with_path(mut self, subnqn: &Nqn, traddr: &str, trsvcid: &str) -> Self {
        self.subnqn = subnqn.to_field();
        self.traddr = padded_ascii(traddr);
        self.trsvcid = padded_ascii(trsvcid);
        self
    }

    /// SUBNQN as a name.
    ///
    /// # Errors
    ///
    /// What [`Nqn::from_field`] says.
    pub fn subsystem_nqn(&self) -> Result<Nqn, NqnError> {
        Nqn::from_field(&self.subnqn)
    }

    /// TRADDR without padding, be it spaces or NULs.
    #[must_use]
    pub fn address(&self) -> String {
        trimmed_text(&self.traddr)
    }

    /// TRSVCID without padding, be it spaces or NULs.
    #[must_use]
    pub fn service(&self) -> String {
        trimmed_text(&self.trsvcid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::layout::tests::assert_offsets;

    #[test]
    fn header_and_entry_offsets() {
        assert_offsets!(DiscoveryLogHeader {
            genctr: u64::MAX => 0..8;
            numrec: u64::MAX => 8..16;
            recfmt: 0xffff => 16..18;
        });
        assert_offsets!(DiscoveryLogEntry {
            trtype: TransportType::TCP => 0..1;
            adrfam: AddressFamily::IPV6 => 1..2;
            subtype: SubsystemType::NVM => 2..3;
            treq: Treq::SQ_FLOW_CONTROL_DISABLE => 3..4;
            portid: 0x0101 => 4..6;
            cntlid: 0xffff => 6..8;
            asqsz: 0x0120 => 8..10;
            eflags: EntryFlags::from_bits_retain(0x0103) => 10..12;
            trsvcid: [b'4'; 32] => 32..64;
            subnqn: [b'n'; 256] => 256..512;
            traddr: [b'1'; 256] => 512..768;
            tcp_sectype: TcpSecurity::TLS_1_3 => 768..769;
        });
    }

    #[test]
    fn path_text() {
        let entry = DiscoveryLogEntry::default().with_path(&Nqn::discovery(), "192.0.2.1", "8009");
        assert_eq!(&entry.trsvcid[..6], b"8009  ");
        assert_eq!(entry.address(), "192.0.2.1");
        assert_eq!(entry.service(), "8009");
        assert_eq!(entry.subsystem_nqn(), Ok(Nqn::discovery()));
        // Some targets end these fields with NULs.
        let nul_ended = DiscoveryLogEntry {
            trsvcid: [0; 32],
            ..entry
        };
        assert_eq!(nul_ended.service(), "");
    }
}
