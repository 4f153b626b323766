//! How to connect.

use crate::error::Error;
use nvmf_proto::tcp::host::Config;
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::pdu::ADMIN_IN_CAPSULE_MAX;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::time::Duration;

/// Everything about an association between this host and a controller.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// Where the target listens. Not looked at where the caller brings the streams.
    pub address: SocketAddr,
    /// NQN of the subsystem.
    pub subsystem: Nqn,
    /// NQN of this host. By default a UUID that is drawn anew by every [`ConnectOptions::new`].
    pub host: Nqn,
    /// Host Identifier, not all zero. By default the same UUID.
    pub host_id: [u8; 16],
    /// KATO in milliseconds; 0, the default, is none. With any other value the caller has to call
    /// [`Controller::keep_alive`](crate::Controller::keep_alive) more often than that: this crate
    /// has no thread that would.
    pub kato: u32,
    /// Entries of the admin queue, 2 to 4,096; default 32.
    pub admin_entries: u32,
    /// Entries of an I/O queue, 2 to 65,536, default 128; cut to what the controller takes. One
    /// stays empty.
    pub io_entries: u32,
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// HPDA, 0 to 31: alignment of data in what the target sends, dwords, 0's based.
    pub hpda: u8,
    /// MAXR2T, 0's based: R2Ts that the target may have outstanding on one command.
    pub maxr2t: u32,
    /// Ask the controller to do without SQ flow control on I/O queues.
    pub disable_sq_flow_control: bool,
    /// Bound of every wait; default 10 s.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// Options for a subsystem at an address, everything else by default.
    ///
    /// # Errors
    ///
    /// [`Error::Nqn`]: `subsystem` is not an NQN.
    pub fn new(address: SocketAddr, subsystem: &str) -> Result<Self, Error> {
        let subsystem = Nqn::new(subsystem).map_err(|reason| Error::Nqn {
            name: subsystem.to_owned(),
            reason,
        })?;
        Ok(Self::with_nqn(address, subsystem))
    }

    /// Options for the discovery service at an address.
    #[must_use]
    pub fn discovery(address: SocketAddr) -> Self {
        Self::with_nqn(address, Nqn::discovery())
    }

    fn with_nqn(address: SocketAddr, subsystem: Nqn) -> Self {
        let host_id = random_uuid();
        Self {
            address,
            subsystem,
            host: Nqn::from_uuid(&host_id),
            host_id,
            kato: 0,
            admin_entries: 32,
            io_entries: 128,
            header_digest: false,
            data_digest: false,
            hpda: 0,
            maxr2t: 0,
            disable_sq_flow_control: false,
            timeout: Duration::from_secs(10),
        }
    }

    /// What the connection of the admin queue asks for.
    pub(crate) fn admin_config(&self) -> Config {
        Config {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            hpda: self.hpda,
            maxr2t: self.maxr2t,
            entries: self.admin_entries.clamp(2, 4096),
            flow_control: true,
            in_capsule: ADMIN_IN_CAPSULE_MAX,
            ..Config::default()
        }
    }

    /// What the connection of an I/O queue asks for.
    pub(crate) fn io_config(&self, entries: u32, in_capsule: u32) -> Config {
        Config {
            entries,
            in_capsule,
            flow_control: !self.disable_sq_flow_control,
            ..self.admin_config()
        }
    }
}

/// A random (version 4) UUID. Hash keys of the standard library are the randomness at hand: good
/// enough for a name.
fn random_uuid() -> [u8; 16] {
    let random = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&random());
    uuid[8..].copy_from_slice(&random());
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
