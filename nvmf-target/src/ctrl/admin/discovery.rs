//! The Discovery log page (NVMe Base 2.1, Discovery Log Page): one record per way to a subsystem.

use super::{AdminCx, Subsystem};
use crate::ctrl::connect::ADMIN_ENTRIES_MAX;
use crate::ctrl::{Listener, Role};
use crate::transport::TransportAddress;
use nvmf_proto::wire::discovery::{
    AddressFamily, DiscoveryLogEntry, DiscoveryLogHeader, EntryFlags, SubsystemType, Treq,
};
use nvmf_proto::wire::fabrics::CNTLID_DYNAMIC;
use nvmf_proto::wire::nqn::Nqn;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

/// Header and records have the same size: the page is a sequence of blocks of it.
const BLOCK: usize = DiscoveryLogEntry::SIZE;
const _: () = assert!(BLOCK == DiscoveryLogHeader::SIZE);

/// The log as a host sees it that has come by a certain address. Its blocks are made as they are
/// read.
pub(super) struct DiscoveryLog {
    genctr: u64,
    treq: Treq,
    /// The way to the discovery subsystem itself that the host has taken.
    own: Option<Path>,
    /// Each of these by each of `paths`.
    subsystems: Vec<Arc<Subsystem>>,
    paths: Vec<Path>,
}

impl DiscoveryLog {
    pub(super) fn new(cx: &AdminCx<'_>) -> Self {
        // Read first: a change that comes now is at worst shown under the old number, and the host
        // finds the new one when it looks again.
        let genctr = cx.core.genctr();
        let mut treq = Treq::empty();
        treq.set(
            Treq::SQ_FLOW_CONTROL_DISABLE,
            cx.core.config.sq_flow_control_disable,
        );
        let listeners = cx
            .core
            .listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Self {
            genctr,
            treq,
            own: Path::new(&cx.controller.listener, cx.local_ip),
            subsystems: cx.core.subsystems(),
            paths: listeners
                .iter()
                .filter(|listener| listener.role == Role::Io)
                .filter_map(|listener| Path::new(listener, cx.local_ip))
                .collect(),
        }
    }

    /// NUMREC.
    fn records(&self) -> usize {
        usize::from(self.own.is_some()) + self.subsystems.len() * self.paths.len()
    }

    /// Size of the page in bytes.
    pub(super) fn size(&self) -> u64 {
        (self.records() as u64 + 1) * BLOCK as u64
    }

    /// Fills `out` with the page from `offset` on, with zeroes beyond its end.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        let block = BLOCK as u64;
        let (mut index, mut rest) = (offset / block, out);
        let mut skip = usize::try_from(offset % block).unwrap_or(0);
        while !rest.is_empty() {
            let bytes = self.block(index);
            let (part, after) = rest.split_at_mut(rest.len().min(BLOCK - skip));
            part.copy_from_slice(&bytes[skip..skip + part.len()]);
            (index, skip, rest) = (index + 1, 0, after);
        }
    }

    /// Block 0 is the header, block `n` record `n - 1`; there is nothing in those beyond.
    fn block(&self, index: u64) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        let record = usize::try_from(index).unwrap_or(usize::MAX).checked_sub(1);
        match record {
            None => {
                let numrec = self.records() as u64;
                DiscoveryLogHeader {
                    genctr: self.genctr,
                    numrec,
                    recfmt: 0,
                }
                .encode(&mut bytes);
            }
            Some(record) => {
                if let Some(entry) = self.record(record) {
                    entry.encode(&mut bytes);
                }
            }
        }
        bytes
    }

    fn record(&self, index: usize) -> Option<DiscoveryLogEntry> {
        let Some(index) = index.checked_sub(usize::from(self.own.is_some())) else {
            let own = self.own.as_ref()?;
            return Some(DiscoveryLogEntry {
                subtype: SubsystemType::CURRENT_DISCOVERY,
                // With a Keep Alive Timeout the connection may stay, for notices of changes.
                eflags: EntryFlags::PERSISTENT,
                ..own.entry(&Nqn::discovery(), self.treq)
            });
        };
        let subsystem = self.subsystems.get(index.checked_div(self.paths.len())?)?;
        let path = self.paths.get(index % self.paths.len())?;
        Some(path.entry(&subsystem.nqn, self.treq))
    }
}

/// A listener by an address that the host can use.
struct Path {
    portid: u16,
    address: TransportAddress,
}

impl Path {
    /// For a listener on all addresses of its family, that is the address by which the host has
    /// come; none if it has come by another family.
    fn new(listener: &Listener, local_ip: Option<IpAddr>) -> Option<Self> {
        let mut address = listener.address.clone();
        if address.wildcard {
            let ip = local_ip?.to_canonical();
            let family = if ip.is_ipv4() {
                AddressFamily::IPV4
            } else {
                AddressFamily::IPV6
            };
            if family != address.adrfam {
                return None;
            }
            address.traddr = ip.to_string();
        }
        Some(Self {
            portid: listener.port_id,
            address,
        })
    }

    fn entry(&self, subnqn: &Nqn, treq: Treq) -> DiscoveryLogEntry {
        let TransportAddress {
            trtype,
            adrfam,
            ref traddr,
            ref trsvcid,
            ..
        } = self.address;
        DiscoveryLogEntry {
            trtype,
            adrfam,
            subtype: SubsystemType::NVM,
            treq,
            portid: self.portid,
            cntlid: CNTLID_DYNAMIC,
            asqsz: ADMIN_ENTRIES_MAX,
            ..DiscoveryLogEntry::default()
        }
        .with_path(subnqn, traddr, trsvcid)
    }
}
