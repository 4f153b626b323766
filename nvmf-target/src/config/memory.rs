//! How much memory a target takes at the most.

use super::TargetConfig;
use crate::conn::queue_bytes;
use crate::ctrl::ENDING_MAX;
use crate::reactor::{REACTOR_BYTES, reserve_bytes};

/// What a connection takes of the heap before its Connect is accepted, and beside what its queue is
/// charged with afterwards.
const CONNECTION_BYTES: usize = 8 << 10;

impl TargetConfig {
    /// The least [`TargetConfig::queue_bytes`] with admin queues of so many entries: what one of
    /// them is charged with.
    #[must_use]
    pub const fn queue_bytes_min(admin_queue_entries: u16) -> usize {
        queue_bytes(0, admin_queue_entries as u32)
    }

    /// Connections that there are at the most at one moment: `max_connections`, and 64 per reactor
    /// that were told to end to make room for others and have not ended yet. With
    /// [`TcpTransport`](crate::transport::TcpTransport) each is a descriptor of the process.
    #[must_use]
    pub const fn connections_max(&self) -> usize {
        let ending = self.reactors.saturating_mul(ENDING_MAX);
        self.max_connections.saturating_add(ending)
    }

    /// Bytes of memory that a target takes at the most, whatever its hosts do: the sum of
    ///
    /// - `buffer_bytes` twice, for ranges of Dataset Management commands may take as much as their
    ///   buffers while they are in a backend;
    /// - per reactor: 16 capsules of in-capsule data, and 7 MiB for what it reads, sends and keeps;
    /// - 8 KiB for each of [`TargetConfig::connections_max`];
    /// - `queue_bytes`.
    ///
    /// Beside that there are the program, the backends, and what grows with the number of
    /// namespaces: 256 bytes per connection and NSID up to the largest that is in use, and 100 KiB
    /// per subsystem and namespace. The allocator's own needs are not in it.
    #[must_use]
    pub fn memory_max(&self) -> u64 {
        let reactor = REACTOR_BYTES + reserve_bytes(self.in_capsule);
        let connections = self.connections_max();
        [
            self.buffer_bytes.saturating_mul(2),
            self.reactors.saturating_mul(reactor),
            connections.saturating_mul(CONNECTION_BYTES),
            self.queue_bytes,
        ]
        .into_iter()
        .fold(0, |sum: u64, part| sum.saturating_add(part as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_its_parts() {
        let mut config = TargetConfig {
            reactors: 2,
            buffer_bytes: 32 << 20,
            ..TargetConfig::default()
        };
        let mib = config.memory_max() >> 20;
        // Buffers, reactors, connections, queues.
        assert_eq!(mib, 64 + 13 + 33 + 512);
        const { assert!(REACTOR_BYTES < 7 << 20) };
        config.buffer_bytes = usize::MAX;
        assert_eq!(config.connections_max(), 4096 + 128);
        config.max_connections = usize::MAX;
        assert_eq!(config.connections_max(), usize::MAX);
        assert_eq!(config.memory_max(), u64::MAX);
    }

    /// Everybody may have discovery controllers, and with the largest queues: by default hosts have
    /// more than half of the memory all the same.
    #[test]
    fn discovery_controllers_leave_hosts_more_than_half() {
        let config = TargetConfig::default();
        let each = TargetConfig::queue_bytes_min(config.admin_queue_entries);
        let all = config.max_discovery_controllers * each;
        // What docs/threat-model.md says.
        assert_eq!(all.div_ceil(1 << 20), 244);
        assert!(all < config.queue_bytes / 2);
    }
}
