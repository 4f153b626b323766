//! Listeners, and referrals to other discovery services.

use super::{TargetConfig, lower, nqn};
use crate::Error;
use crate::contain::contain;
use crate::transport::{TcpTransport, Transport, TransportAddress};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_proto::wire::pdu::MAXH2CDATA_MIN;
use std::fmt;
use std::net::SocketAddr;

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Subsystems and the discovery service.
    Io,
    /// The discovery service only.
    Discovery,
}

/// A listener to be added to a target.
#[non_exhaustive]
pub struct ListenerConfig {
    /// What management calls it, unique in the target. Default: the address that was bound as
    /// [`SocketAddr`] writes it, or the TRADDR of a transport of the embedder's; with the PORTID
    /// behind it (`name#7`) if another listener has that name.
    pub name: Option<String>,
    /// PORTID, unique in the target and not 0. Default: one that has not been used, from 1 up.
    pub port_id: Option<u16>,
    /// Default: [`Role::Io`].
    pub role: Role,
    /// NQNs of the subsystems that it serves; `None`, the default, stands for all.
    pub subsystems: Option<Vec<String>>,
    /// In-capsule data of commands on I/O queues in bytes: a multiple of 16; at most and by default
    /// the target's.
    pub in_capsule: Option<u32>,
    /// MAXH2CDATA in bytes: a multiple of 4, at least 4096; at most and by default the target's.
    pub maxh2cdata: Option<u32>,
    source: Source,
}

/// A listener that a target has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerInfo {
    /// What management calls it.
    pub name: String,
    /// PORTID.
    pub port_id: u16,
    /// What it is for.
    pub role: Role,
    /// Its address as the discovery log shows it.
    pub address: TransportAddress,
    /// The address that was bound, of a TCP listener.
    pub socket: Option<SocketAddr>,
    /// NQNs of the subsystems that it serves; `None` stands for all.
    pub subsystems: Option<Vec<String>>,
}

enum Source {
    Tcp(SocketAddr),
    Own(Box<dyn Transport>),
    /// It was one of these, and is with the listener.
    Taken,
}

impl ListenerConfig {
    /// NVMe/TCP on an address; port 0 takes any.
    #[must_use]
    pub const fn tcp(address: SocketAddr) -> Self {
        Self::new(Source::Tcp(address))
    }

    /// Connections from a transport of the embedder's.
    #[must_use]
    pub fn on(transport: Box<dyn Transport>) -> Self {
        Self::new(Source::Own(transport))
    }

    const fn new(source: Source) -> Self {
        Self {
            name: None,
            port_id: None,
            role: Role::Io,
            subsystems: None,
            in_capsule: None,
            maxh2cdata: None,
            source,
        }
    }

    /// For the discovery service only.
    #[must_use]
    pub const fn discovery_only(mut self) -> Self {
        self.role = Role::Discovery;
        self
    }

    pub(crate) fn validate(&self, target: &TargetConfig) -> Result<(), Error> {
        lower("in_capsule", self.in_capsule, 0..=target.in_capsule)?;
        lower(
            "maxh2cdata",
            self.maxh2cdata,
            MAXH2CDATA_MIN..=target.maxh2cdata,
        )?;
        let multiples = [
            ("in_capsule", self.in_capsule, 16),
            ("maxh2cdata", self.maxh2cdata, 4),
        ];
        for (name, value, unit) in multiples {
            if let Some(value) = value.filter(|v| v % unit != 0) {
                let text = format!("{name} {value}: a multiple of {unit} is wanted");
                return Err(Error::config(text));
            }
        }
        if self.port_id == Some(0) {
            return Err(Error::config("port_id 0: 1 to 65535 is wanted".to_owned()));
        }
        Ok(())
    }

    /// Begins to listen. Returns the transport, and the address that was bound if it is TCP. Once.
    pub(crate) fn bind(&mut self) -> Result<(Box<dyn Transport>, Option<SocketAddr>), Error> {
        match std::mem::replace(&mut self.source, Source::Taken) {
            Source::Tcp(address) => {
                let transport = TcpTransport::bind(address)?;
                let bound = transport.local_addr();
                Ok((Box::new(transport), Some(bound)))
            }
            Source::Own(transport) => Ok((transport, None)),
            Source::Taken => Err(Error::config("it is bound already".to_owned())),
        }
    }
}

impl fmt::Debug for ListenerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerConfig")
            .field("name", &self.name)
            .field("port_id", &self.port_id)
            .field("role", &self.role)
            .field("subsystems", &self.subsystems)
            .field("in_capsule", &self.in_capsule)
            .field("maxh2cdata", &self.maxh2cdata)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Own(transport) => match contain(|| transport.address()) {
                Ok(address) => address.traddr.fmt(f),
                Err(panic) => write!(f, "a transport that {panic}"),
            },
            Self::Taken => f.write_str("bound"),
        }
    }
}

/// Another discovery service that hosts are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Referral {
    /// Where it is. Never a wildcard.
    pub address: TransportAddress,
    /// Its NQN; `None` stands for the well-known one.
    pub nqn: Option<String>,
}

impl Referral {
    /// A discovery service by NVMe/TCP, under the well-known NQN.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        Self {
            address: TransportAddress::tcp(address),
            nqn: None,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.address.wildcard {
            let text = format!("referral to {}: one address is wanted", self.address);
            return Err(Error::config(text));
        }
        self.address.validate()?;
        let name = self.nqn.as_ref();
        name.map_or(Ok(()), |name| nqn("discovery NQN", name).map(|_| ()))
    }

    /// The NQN of the discovery service.
    pub(crate) fn subnqn(&self) -> Nqn {
        let name = self.nqn.as_deref();
        name.and_then(|name| Nqn::new(name).ok())
            .unwrap_or_else(Nqn::discovery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_field() {
        let target = TargetConfig::default();
        let changed = |change: fn(&mut ListenerConfig)| {
            let mut config = ListenerConfig::tcp(([127, 0, 0, 1], 0).into());
            config.validate(&target).unwrap();
            change(&mut config);
            config.validate(&target).unwrap_err().to_string()
        };
        assert!(changed(|c| c.in_capsule = Some(32 << 10)).contains("in_capsule 32768"));
        assert!(changed(|c| c.in_capsule = Some(8)).contains("in_capsule 8"));
        assert!(changed(|c| c.maxh2cdata = Some(4092)).contains("maxh2cdata 4092"));
        assert!(changed(|c| c.maxh2cdata = Some(4098)).contains("maxh2cdata 4098"));
        assert!(changed(|c| c.port_id = Some(0)).contains("port_id 0"));
        let referral = Referral::tcp(([0, 0, 0, 0], 8009).into());
        assert!(
            referral
                .validate()
                .unwrap_err()
                .to_string()
                .contains("0.0.0.0")
        );
        let elsewhere = |change: fn(&mut TransportAddress)| {
            let mut referral = Referral::tcp(([192, 0, 2, 1], 8009).into());
            change(&mut referral.address);
            referral.validate().unwrap_err().to_string()
        };
        assert!(elsewhere(|a| a.traddr = "x".repeat(257)).contains("TRADDR"));
        assert!(elsewhere(|a| a.traddr = "\u{e9}".to_owned()).contains("TRADDR"));
        assert!(elsewhere(|a| a.trsvcid = "1".repeat(33)).contains("TRSVCID"));
    }
}
