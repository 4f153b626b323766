//! Options that bound what hosts may take, and how long they may take for it.

use super::value::{number, size};
use clap::Args;
use nvmf_target::TargetConfig;
use std::time::Duration;

/// Most seconds that an option takes: a day.
const SECONDS_MAX: u64 = 86_400;

#[derive(Debug, Args)]
pub(super) struct Limits {
    /// Connections at a time, of all hosts together; of too many, those without a Connect are
    /// closed first, then what comes [default: 4096]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 1 << 20))]
    connections: Option<u32>,

    /// Connections from one address (IPv6: 64 bits of it) at a time [default: no such limit]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 1 << 20))]
    connections_per_address: Option<u32>,

    /// Connections of one host (by its NQN) at a time [default: 2048]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 1 << 20))]
    connections_per_host: Option<u32>,

    /// Controllers of one host (by its NQN) at a time [default: 1024]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 65_519))]
    controllers_per_host: Option<u32>,

    /// Discovery controllers at a time, of all hosts together [default: 1024]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 65_519))]
    discovery_controllers: Option<u32>,

    /// Connections without a Connect at a time; one of them makes room, those without an ICReq
    /// first [default: as --connections]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 1 << 20))]
    unconnected: Option<u32>,

    /// Connections from one address (IPv6: 64 bits of it) without an ICReq at a time; the oldest
    /// makes room [default: 2048]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 1 << 20))]
    silent_per_address: Option<u32>,

    /// Memory that queues may take in the worst case, of all hosts together, those of one host as
    /// much as they leave for others; further ones are refused [default: 512m]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    queue_memory: Option<u64>,

    /// Entries of an admin queue, 32 to 4096 [default: 128]
    #[arg(long, value_name = "N", value_parser = number(32_u16, 4096))]
    admin_queue_entries: Option<u16>,

    /// Asynchronous Event Requests of a controller (AERL), 1 to 256 [default: 4]
    #[arg(long, value_name = "N", value_parser = number(1_u16, 256))]
    pub(super) event_requests: Option<u16>,

    /// Seconds for a connection to send its ICReq [default: 10]
    #[arg(long, value_name = "SECS", value_parser = number(1_u64, SECONDS_MAX))]
    icreq_timeout: Option<u64>,

    /// Seconds from there to a Connect that is accepted [default: 10]
    #[arg(long, value_name = "SECS", value_parser = number(1_u64, SECONDS_MAX))]
    connect_timeout: Option<u64>,

    /// Seconds that a controller may remain which its host has not enabled, or not again
    /// [default: 120]
    #[arg(long, value_name = "SECS", value_parser = number(1_u64, SECONDS_MAX))]
    association_timeout: Option<u64>,

    /// Seconds that a connection may hold buffers and move too little while others wait for some
    /// [default: 5]
    #[arg(long, value_name = "SECS", value_parser = number(1_u64, SECONDS_MAX))]
    stall_timeout: Option<u64>,
}

impl Limits {
    /// Changes what the command line says of a configuration.
    pub(super) fn apply(&self, config: &mut TargetConfig) {
        let count = |to: &mut usize, from: Option<u32>| {
            if let Some(from) = from {
                *to = from as usize;
            }
        };
        count(&mut config.max_connections, self.connections);
        count(
            &mut config.max_connections_per_host,
            self.connections_per_host,
        );
        count(
            &mut config.max_controllers_per_host,
            self.controllers_per_host,
        );
        count(
            &mut config.max_discovery_controllers,
            self.discovery_controllers,
        );
        // Hosts that come back together open all connections before they send a Connect.
        config.max_unconnected = config.max_connections;
        count(&mut config.max_unconnected, self.unconnected);
        count(&mut config.max_silent_per_address, self.silent_per_address);
        if let Some(connections) = self.connections_per_address {
            config.max_connections_per_address = Some(connections as usize);
        }
        if let Some(bytes) = self.queue_memory {
            config.queue_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if let Some(entries) = self.admin_queue_entries {
            config.admin_queue_entries = entries;
        }
        let time = |to: &mut Duration, from: Option<u64>| {
            if let Some(seconds) = from {
                *to = Duration::from_secs(seconds);
            }
        };
        time(&mut config.icreq_timeout, self.icreq_timeout);
        time(&mut config.connect_timeout, self.connect_timeout);
        time(&mut config.association_timeout, self.association_timeout);
        time(&mut config.stall_timeout, self.stall_timeout);
    }
}
