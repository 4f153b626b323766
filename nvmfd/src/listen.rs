//! Sockets: bound before anything is served.

use crate::Failure;
use crate::cli::{Bind, Cli, DiscoveryPort, TransportName};
use nvmf_target::transport::TcpTransport;
use nvmf_target::{Error, ListenerConfig};
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Bound sockets, not yet served.
pub(crate) struct Listeners {
    io: Vec<TcpTransport>,
    discovery: Vec<TcpTransport>,
}

impl Listeners {
    /// Binds everything that the command line asks for.
    ///
    /// # Errors
    /// If one address cannot be bound.
    pub(crate) fn bind(cli: &Cli) -> Result<Self, Failure> {
        match cli.transport {
            TransportName::Tcp => {}
        }
        let any = cli.bind.is_empty();
        let binds = if any { &ANY[..] } else { &cli.bind };
        let common: Vec<IpAddr> = binds
            .iter()
            .filter(|bind| bind.port.is_none())
            .map(|bind| bind.ip)
            .collect();
        let mut io = bind_all(&common, cli.port, "--port", any)?;
        for bind in binds {
            if let Some(port) = bind.port {
                io.extend(bind_all(&[bind.ip], port, "--bind", false)?);
            }
        }
        let mut discovery = Vec::new();
        if let DiscoveryPort::Port(port) = cli.discovery_port {
            // Where hosts do I/O, discovery is served as well.
            let served = |ip: IpAddr| {
                let mut io = io.iter().map(TcpTransport::local_addr);
                port != 0 && io.any(|io| io == SocketAddr::new(ip, port))
            };
            let mut ips: Vec<IpAddr> = Vec::new();
            for bind in binds {
                if !served(bind.ip) && !ips.contains(&bind.ip) {
                    ips.push(bind.ip);
                }
            }
            discovery = bind_all(&ips, port, "--discovery-port", any)?;
        }
        Ok(Self { io, discovery })
    }

    /// For the target, each named as its address.
    pub(crate) fn configs(self) -> Vec<ListenerConfig> {
        let io = self.io.into_iter().map(config);
        let discovery = self.discovery.into_iter();
        io.chain(discovery.map(|socket| config(socket).discovery_only()))
            .collect()
    }
}

/// An I/O port that is bound already.
///
/// # Errors
/// If it cannot be bound.
pub(crate) fn at(address: SocketAddr) -> Result<ListenerConfig, Error> {
    TcpTransport::bind(address).map(config)
}

/// For the target, named as its address.
fn config(socket: TcpTransport) -> ListenerConfig {
    let name = socket.local_addr().to_string();
    let mut config = ListenerConfig::on(Box::new(socket));
    config.name = Some(name);
    config
}

/// What is listened on if nothing is said.
const ANY: [Bind; 2] = [
    Bind {
        ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        port: None,
    },
    Bind {
        ip: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        port: None,
    },
];

/// Binds a port of each address. With `any`, one that this machine has no version of IP for is
/// left out as long as another is there.
fn bind_all(
    ips: &[IpAddr],
    port: u16,
    option: &str,
    any: bool,
) -> Result<Vec<TcpTransport>, Failure> {
    let mut bound: Vec<TcpTransport> = Vec::new();
    let mut missing = None;
    for &ip in ips {
        // Where any port will do, the same one for all addresses, if it is free.
        let first = bound.first().map(|first| first.local_addr().port());
        let same = first
            .filter(|_| port == 0)
            .and_then(|port| bind(ip, port).ok());
        match same.map_or_else(|| bind(ip, port), Ok) {
            Ok(socket) => bound.push(socket),
            Err(err) if any && is_unsupported(&err) => missing = Some(err),
            Err(err) if errno(&err) == Some(Errno::ADDRINUSE) => {
                return Err(Failure::Environment(format!(
                    "{err}; {option} takes another port"
                )));
            }
            Err(err) => return Err(err.into()),
        }
    }
    match missing {
        Some(err) if bound.is_empty() => Err(err.into()),
        _ => Ok(bound),
    }
}

fn bind(ip: IpAddr, port: u16) -> Result<TcpTransport, Error> {
    TcpTransport::bind(SocketAddr::new(ip, port))
}

fn errno(err: &Error) -> Option<Errno> {
    match err {
        Error::Io { source, .. } => Errno::from_io_error(source),
        _ => None,
    }
}

fn is_unsupported(err: &Error) -> bool {
    matches!(
        errno(err),
        Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL | Errno::PROTONOSUPPORT)
    )
}

/// An address by which a host can reach a listener: a wildcard one is replaced by the address of
/// the machine's default route, or the loopback address if there is none.
pub(crate) fn reachable(listener: SocketAddr) -> IpAddr {
    let (peer, loopback): (SocketAddr, IpAddr) = match listener.ip() {
        ip if !ip.is_unspecified() => return ip,
        // Documentation addresses (RFC 5737, RFC 3849): nothing is sent, the kernel only picks
        // the source address.
        IpAddr::V4(_) => (
            (Ipv4Addr::new(192, 0, 2, 1), 9).into(),
            Ipv4Addr::LOCALHOST.into(),
        ),
        IpAddr::V6(_) => {
            let peer = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            ((peer, 9).into(), Ipv6Addr::LOCALHOST.into())
        }
    };
    let source = || {
        let socket = UdpSocket::bind((listener.ip(), 0))?;
        socket.connect(peer)?;
        socket.local_addr()
    };
    source().map_or(loopback, |addr| addr.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_port_is_the_same_for_all_addresses() {
        let bound = bind_all(&ANY.map(|bind| bind.ip), 0, "-p", true).unwrap();
        let ports: Vec<u16> = bound
            .iter()
            .map(|socket| socket.local_addr().port())
            .collect();
        assert!(!ports.is_empty() && ports.iter().all(|&port| port != 0 && port == ports[0]));
    }

    #[test]
    fn a_port_in_use_is_named_with_the_option() {
        let local = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let first = bind_all(&local, 0, "-p", false).unwrap();
        let taken = first[0].local_addr();
        let text = bind_all(&local, taken.port(), "--port", false)
            .err()
            .unwrap()
            .to_string();
        assert!(
            text.contains(&taken.to_string()) && text.contains("--port"),
            "{text}"
        );
    }

    #[test]
    fn a_foreign_address_is_an_error() {
        let text = bind_all(&["192.0.2.7".parse().unwrap()], 0, "-p", false)
            .err()
            .unwrap()
            .to_string();
        assert!(text.contains("192.0.2.7"), "{text}");
    }

    #[test]
    fn reachable_addresses_are_no_wildcards() {
        let local: SocketAddr = "127.0.0.1:4420".parse().unwrap();
        assert_eq!(reachable(local), local.ip());
        for wildcard in ["0.0.0.0:4420", "[::]:4420"] {
            let wildcard: SocketAddr = wildcard.parse().unwrap();
            let ip = reachable(wildcard);
            assert!(!ip.is_unspecified() && ip.is_ipv4() == wildcard.is_ipv4());
        }
    }
}
