//! The Discovery log page (NVMe Base 2.1, Discovery Log Page): one record per way to a subsystem.

use super::{AdminCx, Subsystem};
use crate::ctrl::Listener;
use crate::transport::TransportAddress;
use nvmf_proto::wire::discovery::{
    DiscoveryLogEntry, DiscoveryLogHeader, DiscoveryLsp, EntryFlags, SubsystemType, Treq,
};
use nvmf_proto::wire::fabrics::CNTLID_DYNAMIC;
use nvmf_proto::wire::nqn::Nqn;
use std::net::IpAddr;
use std::sync::Arc;

/// Header and records have the same size: the page is a sequence of blocks of it.
const BLOCK: usize = DiscoveryLogEntry::SIZE;
const _: () = assert!(BLOCK == DiscoveryLogHeader::SIZE);

/// The log as a host sees it that has come by a certain address. Its blocks are made as they are
/// read.
pub(super) struct DiscoveryLog {
    genctr: u64,
    treq: Treq,
    asqsz: u16,
    records: Vec<Record>,
}

/// What a record leads to, and where it is.
struct Record {
    subtype: SubsystemType,
    subnqn: Nqn,
    eflags: EntryFlags,
    portid: u16,
    address: TransportAddress,
}

impl DiscoveryLog {
    /// Extended entries and those of all hosts are not supported; who asks for them gets the same
    /// as everybody.
    pub(super) fn new(cx: &AdminCx<'_>, lsp: DiscoveryLsp) -> Self {
        let (host, reach) = (&cx.controller.hostnqn, cx.controller.reach());
        let local_ip = cx.controller.local_ip;
        let topology = cx.core.topology();
        let way = |subsystem: &Subsystem, listener: &Listener| Record {
            subtype: SubsystemType::NVM,
            subnqn: subsystem.nqn.clone(),
            eflags: EntryFlags::empty(),
            portid: listener.port_id,
            address: reached(&listener.address, local_ip),
        };
        // The way to the discovery subsystem itself that the host has taken. With a Keep Alive
        // Timeout the connection may stay, for notices of changes.
        let port = &cx.controller.listener;
        let own = reach.shows(&port.address).then(|| Record {
            subtype: SubsystemType::CURRENT_DISCOVERY,
            eflags: EntryFlags::PERSISTENT,
            ..way(cx.subsystem(), port)
        });
        let local_only = lsp.contains(DiscoveryLsp::PORT_LOCAL);
        let ways = topology
            .ways(Some(host), reach)
            .filter(|(_, listener)| !local_only || Arc::ptr_eq(listener, port));
        let referrals = topology.referrals.iter().map(|referral| Record {
            subtype: SubsystemType::REFERRAL,
            subnqn: referral.subnqn(),
            eflags: EntryFlags::empty(),
            portid: 0,
            address: referral.address.clone(),
        });
        let mut treq = Treq::empty();
        treq.set(
            Treq::SQ_FLOW_CONTROL_DISABLE,
            cx.core.config.sq_flow_control_disable,
        );
        Self {
            genctr: topology.generation(host, reach),
            treq,
            asqsz: cx.core.config.admin_queue_entries,
            records: own
                .into_iter()
                .chain(ways.map(|(subsystem, listener)| way(subsystem, listener)))
                .chain(referrals)
                .collect(),
        }
    }

    /// Size of the page in bytes.
    pub(super) fn size(&self) -> u64 {
        (self.records.len() as u64 + 1) * BLOCK as u64
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
                let numrec = self.records.len() as u64;
                DiscoveryLogHeader {
                    genctr: self.genctr,
                    numrec,
                    recfmt: 0,
                }
                .encode(&mut bytes);
            }
            Some(record) => {
                if let Some(record) = self.records.get(record) {
                    record.entry(self.treq, self.asqsz).encode(&mut bytes);
                }
            }
        }
        bytes
    }
}

/// A listener on all addresses of its family is shown by the one that the host has reached.
fn reached(address: &TransportAddress, local_ip: Option<IpAddr>) -> TransportAddress {
    let mut address = address.clone();
    if let Some(ip) = local_ip.filter(|_| address.wildcard) {
        address.traddr = ip.to_canonical().to_string();
    }
    address
}

impl Record {
    fn entry(&self, treq: Treq, asqsz: u16) -> DiscoveryLogEntry {
        DiscoveryLogEntry {
            trtype: self.address.trtype,
            adrfam: self.address.adrfam,
            subtype: self.subtype,
            treq,
            portid: self.portid,
            cntlid: CNTLID_DYNAMIC,
            asqsz,
            eflags: self.eflags,
            ..DiscoveryLogEntry::default()
        }
        .with_path(&self.subnqn, &self.address.traddr, &self.address.trsvcid)
    }
}
