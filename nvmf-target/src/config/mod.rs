//! What a target and its parts are made of: limits, switches, names.

mod listener;
mod memory;
mod subsystem;

pub use listener::{ListenerConfig, ListenerInfo, Referral, Role};
pub(crate) use subsystem::hosts;
pub use subsystem::{NamespaceConfig, SubsystemConfig};

use crate::Error;
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::pdu::MAXH2CDATA_MIN;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Most bytes of I/O buffers. A pool counts its blocks of 4 KiB in 32 bits.
const BUFFER_BYTES_MAX: u64 = 1 << 40;

/// What a target takes and offers. Start from `default()`; [`crate::Target::new`] checks it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TargetConfig {
    /// Reactor threads. Default: the CPUs that the process may use, at most 16.
    pub reactors: usize,
    /// How long a reactor that has just worked looks for more before it sleeps; zero: not at all.
    pub busy_poll: Duration,
    /// Bytes of I/O buffers, of all reactors together: at least [`TargetConfig::max_transfer`] for
    /// each, at most 1 TiB. Commands wait when they are lent out.
    pub buffer_bytes: usize,
    /// The largest data transfer of one command in bytes (MDTS): a power of two, 8 KiB to 32 MiB.
    pub max_transfer: u32,
    /// In-capsule data that commands on I/O queues may carry, bytes: a multiple of 16, at most
    /// 64 KiB. Commands on admin queues may carry 8 KiB whatever it is.
    pub in_capsule: u32,
    /// MAXH2CDATA in bytes: a multiple of 4, at least 4096.
    pub maxh2cdata: u32,
    /// Entries of an admin queue (ASQSZ of the discovery log), 32 to 4096.
    pub admin_queue_entries: u16,
    /// Entries of an I/O queue (CAP.MQES + 1), 2 to 65,536.
    pub io_queue_entries: u32,
    /// I/O queues of a controller.
    pub io_queues: u16,
    /// Bytes that the queues of all hosts together may take in the worst case: tables, controllers,
    /// responses that are not read. Those of one host (HOSTNQN) may take as much as they leave for
    /// others, so half of it at the most. The Connect of one that does not fit is refused as
    /// Controller Busy. What they are charged with is in [`crate::TargetStats`].
    pub queue_bytes: usize,
    /// Connections at a time. If there are so many, one without a Connect makes room for one that
    /// comes, see `max_unconnected`; if all are queues, the one that comes is closed at once.
    pub max_connections: usize,
    /// The same for connections from one IPv4 address or one IPv6 network of 64 bits, of which one
    /// without a Connect makes room for one that comes; `None`, the default: no limit. As with all limits by address, connections without one do not count.
    pub max_connections_per_address: Option<usize>,
    /// Connections of one host (HOSTNQN) at a time, in all subsystems but the discovery
    /// service's: admin and I/O queues. The
    /// Connect of a further one is refused as Controller Busy.
    pub max_connections_per_host: usize,
    /// Controllers of one host (HOSTNQN) in one subsystem at a time. The Connect of a further one is
    /// refused as Controller Busy.
    pub max_controllers_per_host: usize,
    /// Discovery controllers at a time, of all hosts together: everybody may have some. They do not
    /// count as connections of their hosts, and may take [`TargetConfig::queue_bytes_min`] of
    /// `admin_queue_entries` each. The Connect of a further one is refused as Controller Busy.
    pub max_discovery_controllers: usize,
    /// Connections at a time whose Connect has not been accepted yet. If there are so many, one of
    /// them makes room for one that comes: one that has sent no ICReq, if it has been there while an
    /// eighth as many came as there are; else one that has; of each kind the one that has been there
    /// longest. Linux opens the connections of all I/O queues of a controller before it sends the
    /// first of their Connects: with less than `max_connections`, hosts that come back together may
    /// end one another's.
    pub max_unconnected: usize,
    /// Connections at a time from one IPv4 address or one IPv6 network of 64 bits that have sent no
    /// ICReq yet. The one that has been there longest makes room for one that comes.
    pub max_silent_per_address: usize,
    /// How long a connection may take from accept to a valid ICReq.
    pub icreq_timeout: Duration,
    /// How long a connection may take from its ICReq to a Connect that is accepted.
    pub connect_timeout: Duration,
    /// How long a controller may remain that is not in use: never enabled, disabled, or shut down.
    pub association_timeout: Duration,
    /// While commands wait for buffers: how long a connection may hold some that only its host can
    /// free, and move too little of their data, before it is ended. Enough is, beginning with the
    /// shortage, as much as it holds; if that is more than 16 KiB, then 16 KiB or an eighth of it,
    /// whichever is more. When a shortage has lasted twice as long, those who have moved nothing at
    /// all are given half of the time, and then a quarter.
    pub stall_timeout: Duration,
    /// Header digests are used if the host asks for them.
    pub header_digest: bool,
    /// Data digests are used if the host asks for them.
    pub data_digest: bool,
    /// Hosts may disable SQ flow control.
    pub sq_flow_control_disable: bool,
    /// The discovery service's own NQN. It answers to the well-known one,
    /// `nqn.2014-08.org.nvmexpress.discovery`, in any case.
    pub discovery_nqn: Option<String>,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            reactors: std::thread::available_parallelism().map_or(1, |n| n.get().min(16)),
            busy_poll: Duration::from_micros(50),
            buffer_bytes: 64 << 20,
            max_transfer: 1 << 20,
            in_capsule: 16 << 10,
            maxh2cdata: 1 << 20,
            admin_queue_entries: 128,
            io_queue_entries: 1024,
            io_queues: 64,
            queue_bytes: 512 << 20,
            max_connections: 4096,
            max_connections_per_address: None,
            max_connections_per_host: 2048,
            max_controllers_per_host: 1024,
            max_discovery_controllers: 1024,
            max_unconnected: 4096,
            max_silent_per_address: 2048,
            icreq_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            association_timeout: Duration::from_secs(120),
            stall_timeout: Duration::from_secs(5),
            header_digest: true,
            data_digest: true,
            sq_flow_control_disable: true,
            discovery_nqn: None,
        }
    }
}

fn check(ok: bool, name: &str, value: String, wanted: &str) -> Result<(), Error> {
    if ok {
        Ok(())
    } else {
        Err(Error::config(format!("{name} {value}: {wanted} is wanted")))
    }
}

impl TargetConfig {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        self.validate_transfers()?;
        self.validate_queues()?;
        self.validate_counts()?;
        self.validate_times()?;
        if let Some(name) = &self.discovery_nqn {
            nqn("discovery NQN", name)?;
        }
        Ok(())
    }

    fn validate_transfers(&self) -> Result<(), Error> {
        let Self {
            reactors,
            buffer_bytes,
            max_transfer,
            in_capsule,
            maxh2cdata,
            ..
        } = *self;
        check(
            (1..=1024).contains(&reactors),
            "reactors",
            reactors.to_string(),
            "1 to 1024",
        )?;
        // MDTS counts in powers of two of 4 KiB, and 0 stands for no limit.
        check(
            max_transfer.is_power_of_two() && (8192..=32 << 20).contains(&max_transfer),
            "max_transfer",
            max_transfer.to_string(),
            "a power of two from 8192 to 33554432 bytes",
        )?;
        check(
            buffer_bytes / reactors >= max_transfer as usize,
            "buffer_bytes",
            buffer_bytes.to_string(),
            &format!("at least max_transfer ({max_transfer}) for each of {reactors} reactors"),
        )?;
        check(
            buffer_bytes as u64 <= BUFFER_BYTES_MAX,
            "buffer_bytes",
            buffer_bytes.to_string(),
            &format!("at most {BUFFER_BYTES_MAX}"),
        )?;
        check(
            in_capsule % 16 == 0 && in_capsule <= 64 << 10 && in_capsule <= max_transfer,
            "in_capsule",
            in_capsule.to_string(),
            "a multiple of 16, at most 65536 and max_transfer,",
        )?;
        check(
            maxh2cdata % 4 == 0 && maxh2cdata >= MAXH2CDATA_MIN,
            "maxh2cdata",
            maxh2cdata.to_string(),
            "a multiple of 4, at least 4096,",
        )
    }

    fn validate_queues(&self) -> Result<(), Error> {
        check(
            (32..=4096).contains(&self.admin_queue_entries),
            "admin_queue_entries",
            self.admin_queue_entries.to_string(),
            "32 to 4096",
        )?;
        check(
            (2..=65_536).contains(&self.io_queue_entries),
            "io_queue_entries",
            self.io_queue_entries.to_string(),
            "2 to 65536",
        )?;
        check(
            (1..=1024).contains(&self.io_queues),
            "io_queues",
            self.io_queues.to_string(),
            "1 to 1024",
        )?;
        let least = Self::queue_bytes_min(self.admin_queue_entries);
        check(
            self.queue_bytes >= least,
            "queue_bytes",
            self.queue_bytes.to_string(),
            &format!("at least {least}, for one admin queue,"),
        )
    }

    fn validate_counts(&self) -> Result<(), Error> {
        let counts = [
            ("max_connections", self.max_connections),
            (
                "max_connections_per_address",
                self.max_connections_per_address.unwrap_or(1),
            ),
            ("max_connections_per_host", self.max_connections_per_host),
            ("max_controllers_per_host", self.max_controllers_per_host),
            ("max_discovery_controllers", self.max_discovery_controllers),
            ("max_unconnected", self.max_unconnected),
            ("max_silent_per_address", self.max_silent_per_address),
        ];
        for (name, value) in counts {
            check(value > 0, name, value.to_string(), "at least 1")?;
        }
        Ok(())
    }

    fn validate_times(&self) -> Result<(), Error> {
        let times = [
            ("icreq_timeout", self.icreq_timeout),
            ("connect_timeout", self.connect_timeout),
            ("association_timeout", self.association_timeout),
            ("stall_timeout", self.stall_timeout),
        ];
        for (name, time) in times {
            check(!time.is_zero(), name, format!("{time:?}"), "more than 0")?;
        }
        Ok(())
    }

    /// What the discovery service calls itself.
    pub(crate) fn discovery_nqn(&self) -> Nqn {
        let own = self.discovery_nqn.as_deref();
        own.and_then(|name| Nqn::new(name).ok())
            .unwrap_or_else(Nqn::discovery)
    }
}

/// A name that must be an NQN.
pub(crate) fn nqn(what: &str, name: &str) -> Result<Nqn, Error> {
    Nqn::new(name).map_err(|err| Error::config(format!("{what} {name:?}: {err}")))
}

/// Limits that a part may set lower than the target does.
pub(crate) fn lower<T: PartialOrd + fmt::Display>(
    name: &str,
    value: Option<T>,
    bounds: RangeInclusive<T>,
) -> Result<(), Error> {
    match value {
        Some(value) if !bounds.contains(&value) => Err(Error::config(format!(
            "{name} {value}: {} to the target's {} is wanted",
            bounds.start(),
            bounds.end()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        TargetConfig::default().validate().unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        let change = |f: fn(&mut TargetConfig)| {
            let mut c = TargetConfig::default();
            f(&mut c);
            c.validate().unwrap_err().to_string()
        };
        assert!(change(|c| c.reactors = 0).contains("reactors 0"));
        assert!(change(|c| c.max_transfer = 5000).contains("max_transfer 5000"));
        assert!(change(|c| c.max_transfer = 4096).contains("max_transfer 4096"));
        assert!(change(|c| c.buffer_bytes = 1).contains("buffer_bytes 1"));
        assert!(change(|c| c.buffer_bytes = usize::MAX).contains("at most 1099511627776"));
        assert!(change(|c| c.in_capsule = 17).contains("in_capsule 17"));
        assert!(change(|c| c.maxh2cdata = 4095).contains("maxh2cdata 4095"));
        assert!(change(|c| c.io_queue_entries = 1).contains("io_queue_entries 1"));
        assert!(change(|c| c.io_queues = 0).contains("io_queues 0"));
        assert!(change(|c| c.discovery_nqn = Some("disc".to_owned())).contains("\"disc\""));
        assert!(change(|c| c.icreq_timeout = Duration::ZERO).contains("icreq_timeout 0"));
        assert!(change(|c| c.connect_timeout = Duration::ZERO).contains("connect_timeout 0"));
        assert!(change(|c| c.association_timeout = Duration::ZERO).contains("association_timeout"));
        assert!(change(|c| c.stall_timeout = Duration::ZERO).contains("stall_timeout 0"));
    }
}
