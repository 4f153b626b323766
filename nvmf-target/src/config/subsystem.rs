//! Subsystems and namespaces.

use super::{TargetConfig, lower, nqn};
use crate::Error;
use crate::ctrl::reservation::ReservationStore;
use nvmf_proto::wire::fabrics::CNTLID_MAX;
use nvmf_proto::wire::nqn::Nqn;
use std::collections::BTreeSet;
use std::sync::Arc;

/// An NVM subsystem to be added to a target.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SubsystemConfig {
    /// SUBNQN.
    pub nqn: String,
    /// SN: at most 20 printable ASCII characters.
    pub serial: String,
    /// MN: at most 40 printable ASCII characters.
    pub model: String,
    /// FR: at most 8 printable ASCII characters. Default: the version of this crate.
    pub firmware: String,
    /// VID: the PCI vendor id of who makes the subsystem; 0, the default, says nothing.
    pub vendor_id: u16,
    /// SSVID: the PCI vendor id of who sells it; 0, the default, says nothing.
    pub subsystem_vendor_id: u16,
    /// IEEE: the maker's OUI, as it is written (`[0x00, 0x1b, 0x21]` for 00-1B-21); zero, the
    /// default, says nothing.
    pub ieee_oui: [u8; 3],
    /// NN and MNAN: the largest NSID, 1 to 65,536.
    pub max_namespaces: u32,
    /// ANAGRPMAX and NANAGRPID: the largest ANA group, 1 to 65,535. A host reads up to 32 bytes per
    /// group and 4 per namespace at once, and Linux does without ANA if that exceeds
    /// `max_transfer`.
    pub ana_groups: u32,
    /// Any host may connect, default true. Otherwise those in `hosts` may.
    pub allow_any_host: bool,
    /// Host NQNs that may connect.
    pub hosts: Vec<String>,
    /// I/O queues of a controller; at most and by default the target's.
    pub io_queues: Option<u16>,
    /// Entries of an I/O queue; at most and by default the target's.
    pub io_queue_entries: Option<u32>,
    /// The largest data transfer of one command in bytes (MDTS): a power of two, at least 8 KiB; at
    /// most and by default the target's.
    pub max_transfer: Option<u32>,
    /// Where reservations are kept that hosts want to outlive a power loss. Without, hosts cannot
    /// have that (RESCAP bit 0 is clear).
    pub reservation_store: Option<Arc<dyn ReservationStore>>,
    /// AERL + 1: Asynchronous Event Requests that a controller takes, 1 to 256, default 4.
    pub event_requests: u16,
    /// The smallest CNTLID, 1 by default. Targets that serve one subsystem together have ranges
    /// that do not overlap.
    pub cntlid_min: u16,
    /// The largest CNTLID, FFEFh at most and by default.
    pub cntlid_max: u16,
    /// NVM Subsystem Reset (CAP.NSSRS), default false: any host that may connect can end the
    /// controllers of all.
    pub subsystem_reset: bool,
}

impl SubsystemConfig {
    /// A subsystem under an NQN, with a serial number derived from it, for any host and up to 4,096
    /// namespaces.
    #[must_use]
    pub fn new(nqn: impl Into<String>) -> Self {
        let nqn = nqn.into();
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, nqn.as_bytes())
            .simple()
            .to_string();
        let serial = id.chars().take(20).collect();
        Self {
            nqn,
            serial,
            model: "nvmf target".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            vendor_id: 0,
            subsystem_vendor_id: 0,
            ieee_oui: [0; 3],
            max_namespaces: 4096,
            ana_groups: 128,
            allow_any_host: true,
            hosts: Vec::new(),
            io_queues: None,
            io_queue_entries: None,
            max_transfer: None,
            reservation_store: None,
            event_requests: 4,
            cntlid_min: 1,
            cntlid_max: CNTLID_MAX,
            subsystem_reset: false,
        }
    }

    pub(crate) fn validate(&self, target: &TargetConfig) -> Result<Nqn, Error> {
        let nqn = nqn("subsystem NQN", &self.nqn)?;
        if nqn.is_discovery() || nqn == target.discovery_nqn() {
            return Err(Error::config(format!(
                "{nqn} is the discovery service's own NQN"
            )));
        }
        // NVMe Base 2.1, Identify Controller: SN, MN and FR are ASCII strings.
        for (name, value, max) in [
            ("serial", &self.serial, 20),
            ("model", &self.model, 40),
            ("firmware", &self.firmware, 8),
        ] {
            if value.len() > max || !value.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
                return Err(Error::config(format!(
                    "{name} {value:?}: at most {max} printable ASCII characters are wanted"
                )));
            }
        }
        lower("io_queues", self.io_queues, 1..=target.io_queues)?;
        lower(
            "io_queue_entries",
            self.io_queue_entries,
            2..=target.io_queue_entries,
        )?;
        lower(
            "max_transfer",
            self.max_transfer,
            8192..=target.max_transfer,
        )?;
        let within = |name: &str, value: u32, min: u32, max: u32| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(Error::config(format!(
                "{name} {value}: {min} to {max} is wanted"
            )))
        };
        within("max_namespaces", self.max_namespaces, 1, 65_536)?;
        within("ana_groups", self.ana_groups, 1, 65_535)?;
        within("event_requests", self.event_requests.into(), 1, 256)?;
        within("cntlid_max", self.cntlid_max.into(), 1, CNTLID_MAX.into())?;
        within(
            "cntlid_min",
            self.cntlid_min.into(),
            1,
            self.cntlid_max.into(),
        )?;
        match self.max_transfer {
            Some(bytes) if !bytes.is_power_of_two() => Err(Error::config(format!(
                "max_transfer {bytes}: a power of two is wanted"
            ))),
            _ => Ok(nqn),
        }
    }
}

/// How a namespace is attached to a subsystem.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NamespaceConfig {
    /// NSID: 1 to the subsystem's `max_namespaces`.
    pub nsid: u32,
    /// ANAGRPID: the ANA group, 1 to the subsystem's `ana_groups`; default 1.
    pub anagrpid: u32,
    /// Host NQNs that the namespace is there for; `None`, the default, stands for all hosts.
    pub hosts: Option<Vec<String>>,
}

impl NamespaceConfig {
    /// For all hosts, in ANA group 1.
    #[must_use]
    pub const fn new(nsid: u32) -> Self {
        Self {
            nsid,
            anagrpid: 1,
            hosts: None,
        }
    }
}

/// Host NQNs as a set.
pub(crate) fn hosts(names: &[String]) -> Result<BTreeSet<Nqn>, Error> {
    names.iter().map(|name| nqn("host NQN", name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "nqn.2014-08.org.example:a";

    #[test]
    fn the_default_is_valid() {
        let target = TargetConfig::default();
        SubsystemConfig::new(NAME).validate(&target).unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        let target = TargetConfig {
            discovery_nqn: Some("nqn.2014-08.org.example:own".to_owned()),
            ..TargetConfig::default()
        };
        let changed = |change: fn(&mut SubsystemConfig)| {
            let mut config = SubsystemConfig::new(NAME);
            change(&mut config);
            config.validate(&target).unwrap_err().to_string()
        };
        assert!(changed(|c| c.nqn = "disk".to_owned()).contains("\"disk\""));
        assert!(changed(|c| c.nqn = "nqn.2014-08.org.example:own".to_owned()).contains("own NQN"));
        assert!(changed(|c| c.serial = "x".repeat(21)).contains("serial"));
        assert!(changed(|c| c.model = "\u{e9}".to_owned()).contains("model"));
        assert!(changed(|c| c.firmware = "x".repeat(9)).contains("firmware"));
        assert!(changed(|c| c.io_queues = Some(65)).contains("io_queues 65"));
        assert!(changed(|c| c.io_queues = Some(0)).contains("io_queues 0"));
        assert!(changed(|c| c.io_queue_entries = Some(1)).contains("io_queue_entries 1"));
        assert!(changed(|c| c.max_transfer = Some(2 << 20)).contains("max_transfer 2097152"));
        assert!(changed(|c| c.max_transfer = Some(8193)).contains("power of two"));
        assert!(changed(|c| c.max_namespaces = 0).contains("max_namespaces 0"));
        assert!(changed(|c| c.ana_groups = 65_536).contains("ana_groups 65536"));
        assert!(changed(|c| c.event_requests = 257).contains("event_requests 257"));
        assert!(changed(|c| c.cntlid_max = 0xfff0).contains("cntlid_max 65520"));
        assert!(changed(|c| (c.cntlid_min, c.cntlid_max) = (3, 2)).contains("cntlid_min 3"));
    }
}
