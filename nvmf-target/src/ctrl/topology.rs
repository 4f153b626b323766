//! Which hosts may use which subsystems by which ports: a snapshot that is replaced, never changed.

use super::connect::Refusal;
use super::{Listener, Subsystem};
use crate::transport::TransportAddress;
use crate::{ListenerInfo, Referral, Role};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::discovery::AddressFamily;
use nvmf_proto::wire::fabrics::ConnectData;
use nvmf_proto::wire::nqn::Nqn;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub(crate) struct Topology {
    pub(crate) subsystems: BTreeMap<Nqn, Member>,
    /// By PORTID.
    pub(crate) ports: BTreeMap<u16, Port>,
    pub(crate) referrals: Vec<Arc<Referral>>,
    generations: Generations,
}

/// A subsystem and who may use it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) allow_any_host: bool,
    pub(crate) hosts: BTreeSet<Nqn>,
}

/// A subsystem port.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) listener: Arc<Listener>,
    /// The subsystems that it serves; `None`: all.
    pub(crate) subsystems: Option<BTreeSet<Nqn>>,
}

/// By which kind of local address a host has come: it decides which wildcard listeners it can be
/// shown, by the address that it has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    NoIp = 0,
    Ipv4 = 1,
    Ipv6 = 2,
}

impl Reach {
    const ALL: [Self; 3] = [Self::NoIp, Self::Ipv4, Self::Ipv6];

    pub(crate) fn of(local_ip: Option<IpAddr>) -> Self {
        match local_ip.map(|ip| ip.to_canonical()) {
            None => Self::NoIp,
            Some(IpAddr::V4(_)) => Self::Ipv4,
            Some(IpAddr::V6(_)) => Self::Ipv6,
        }
    }

    /// Whether a host that has come so can be told an address of the listener.
    pub(crate) fn shows(self, address: &TransportAddress) -> bool {
        let family = match self {
            Self::NoIp => None,
            Self::Ipv4 => Some(AddressFamily::IPV4),
            Self::Ipv6 => Some(AddressFamily::IPV6),
        };
        !address.wildcard || family == Some(address.adrfam)
    }
}

/// GENCTR of the discovery log for each host and reach. There is a counter of its own for every host
/// that an administrator has ever named; all others see the same. What hosts say of themselves takes
/// no memory.
#[derive(Clone, Debug)]
struct Generations {
    others: [u64; 3],
    named: BTreeMap<Nqn, [u64; 3]>,
}

impl Default for Generations {
    fn default() -> Self {
        // A host that kept 0 from an empty log must see a change.
        Self {
            others: [1; 3],
            named: BTreeMap::new(),
        }
    }
}

impl Member {
    /// `None` stands for a host that is named nowhere.
    fn allows(&self, host: Option<&Nqn>) -> bool {
        self.allow_any_host || host.is_some_and(|host| self.hosts.contains(host))
    }
}

impl Port {
    /// What management is told of it.
    pub(crate) fn info(&self) -> ListenerInfo {
        let list = self.subsystems.as_ref();
        ListenerInfo {
            name: self.listener.name.clone(),
            port_id: self.listener.port_id,
            role: self.listener.role,
            address: self.listener.address.clone(),
            socket: self.listener.socket,
            subsystems: list.map(|list| list.iter().map(|nqn| nqn.as_str().to_owned()).collect()),
        }
    }

    fn serves(&self, subnqn: &Nqn) -> bool {
        let listed = self.subsystems.as_ref();
        self.listener.role == Role::Io && listed.is_none_or(|list| list.contains(subnqn))
    }
}

impl Topology {
    /// Whether a host may have a controller of an NVM subsystem by a listener.
    pub(crate) fn admit(
        &self,
        subnqn: &Nqn,
        hostnqn: &Nqn,
        listener: &Arc<Listener>,
    ) -> Result<&Arc<Subsystem>, Refusal> {
        let unknown = Refusal::data(ConnectData::SUBNQN);
        let port = self.port(listener).ok_or(unknown)?;
        let member = self
            .subsystems
            .get(subnqn)
            .filter(|_| port.serves(subnqn))
            .ok_or(unknown)?;
        if member.allows(Some(hostnqn)) {
            Ok(&member.subsystem)
        } else {
            Err(Refusal::status(Status::CONNECT_INVALID_HOST.dnr()))
        }
    }

    pub(super) fn has(&self, subsystem: &Arc<Subsystem>) -> bool {
        let member = self.subsystems.get(&subsystem.nqn);
        member.is_some_and(|member| Arc::ptr_eq(&member.subsystem, subsystem))
    }

    /// The port of a listener, if it has not been removed.
    pub(crate) fn port(&self, listener: &Arc<Listener>) -> Option<&Port> {
        let port = self.ports.get(&listener.port_id);
        port.filter(|port| Arc::ptr_eq(&port.listener, listener))
    }

    /// A listener by its name.
    pub(crate) fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        let mut listeners = self.ports.values().map(|port| &port.listener);
        listeners.find(|listener| listener.name == name)
    }

    /// How a host can get to subsystems: sorted by NQN, then PORTID.
    pub(crate) fn ways(
        &self,
        host: Option<&Nqn>,
        reach: Reach,
    ) -> impl Iterator<Item = (&Arc<Subsystem>, &Arc<Listener>)> {
        let members = self.subsystems.values().filter(move |m| m.allows(host));
        members.flat_map(move |member| {
            let subsystem = &member.subsystem;
            let ports = self.ports.values();
            ports
                .filter(move |port| {
                    port.serves(&subsystem.nqn) && reach.shows(&port.listener.address)
                })
                .map(move |port| (subsystem, &port.listener))
        })
    }

    /// GENCTR for a host.
    pub(crate) fn generation(&self, host: &Nqn, reach: Reach) -> u64 {
        let all = self.generations.named.get(host);
        all.unwrap_or(&self.generations.others)[reach as usize]
    }

    /// Counts the generations on from those of `old` for every host whose log is another one now.
    pub(super) fn succeed(&mut self, old: &Self) {
        let differs = |host: Option<&Nqn>, reach| {
            let same = |a: (&Arc<Subsystem>, &Arc<Listener>),
                        b: (&Arc<Subsystem>, &Arc<Listener>)| {
                a.0.nqn == b.0.nqn && Arc::ptr_eq(a.1, b.1)
            };
            let (mut a, mut b) = (old.ways(host, reach), self.ways(host, reach));
            let ways_differ = loop {
                match (a.next(), b.next()) {
                    (None, None) => break false,
                    (Some(a), Some(b)) if same(a, b) => {}
                    _ => break true,
                }
            };
            ways_differ || old.referrals != self.referrals
        };
        let next = |host: Option<&Nqn>, mut counters: [u64; 3]| {
            for reach in Reach::ALL.into_iter().filter(|&reach| differs(host, reach)) {
                counters[reach as usize] = counters[reach as usize].wrapping_add(1);
            }
            counters
        };
        let before = &old.generations;
        let listed = self.subsystems.values().flat_map(|m| &m.hosts);
        let names: BTreeSet<&Nqn> = before.named.keys().chain(listed).collect();
        let named = names.into_iter().map(|name| {
            let counters = *before.named.get(name).unwrap_or(&before.others);
            (name.clone(), next(Some(name), counters))
        });
        self.generations = Generations {
            named: named.collect(),
            others: next(None, before.others),
        };
    }
}
