//! The load generator.

use clap::{Parser, ValueEnum};
use nvmf_benches::load::{CONNECT_WITHIN, Error, Load, LoadOptions};
use nvmf_benches::report::Window;
use nvmf_benches::system::{parse_block_size, parse_size};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Keeps reads and writes outstanding on a namespace of an NVMe/TCP target, and prints IOPS, MiB/s
/// and latencies.
///
/// One thread drives all connections unless told otherwise, so that it fits a processor of its own:
///
///     nvmfd --threads 1 ramdisk:1g &
///     loadgen 127.0.0.1:4420 --cpu 1 --depth 32 --seconds 5 --pid $!
///
/// THE NAMESPACE IS OVERWRITTEN by writes and by --fill.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    /// Where the target listens.
    address: SocketAddr,
    /// NQN of the subsystem; by default the first that the discovery service at the address names.
    #[arg(long)]
    nqn: Option<String>,
    /// Namespace; by default the first active one.
    #[arg(long)]
    nsid: Option<u32>,
    /// How many of 100 I/Os are reads.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    reads: u8,
    /// Bytes per I/O.
    #[arg(long, default_value = "4k", value_parser = parse_block_size)]
    size: u32,
    /// Outstanding I/Os per connection.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    depth: u32,
    /// Connections (I/O queues).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: u32,
    /// Connections more that are never used.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    idle: u32,
    /// Namespaces of one size, with consecutive NSIDs; I/Os go to all of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    namespaces: u32,
    /// Threads; each has its share of the connections.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Processors for the threads, in their order, separated by commas.
    #[arg(long, value_delimiter = ',')]
    cpu: Vec<usize>,
    /// One I/O after the other instead of in random order.
    #[arg(long)]
    sequential: bool,
    /// Use this much of the namespace only.
    #[arg(long, value_parser = parse_size)]
    region: Option<u64>,
    /// Write the whole region before the run. A sparse RAM disk that was never written reads
    /// nothing but one page of zeros.
    #[arg(long)]
    fill: bool,
    /// Writes carry a pattern that depends on place and time, and reads check it.
    #[arg(long)]
    verify: bool,
    /// Poll for events instead of sleeping.
    #[arg(long)]
    spin: bool,
    /// Ask for header digests.
    #[arg(long)]
    header_digest: bool,
    /// Ask for data digests.
    #[arg(long)]
    data_digest: bool,
    /// SO_SNDBUF of the sockets [default: what the system gives].
    #[arg(long, value_parser = parse_block_size)]
    send_buffer: Option<u32>,
    /// Seconds until all connections have to be there.
    #[arg(long, default_value_t = CONNECT_WITHIN.as_secs())]
    connect_within: u64,
    /// SQ flow control. With `off` a successful read takes no response PDU.
    #[arg(long, value_enum, default_value = "off")]
    sq_flow_control: Switch,
    /// How long to measure.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How long to run before that.
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Process whose processor time per I/O is reported: the target's.
    #[arg(long)]
    pid: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn run(cli: Cli) -> Result<(), Error> {
    let mut load = Load::connect(LoadOptions {
        address: cli.address,
        subsystem: cli.nqn,
        nsid: cli.nsid,
        read_percent: cli.reads,
        size: cli.size,
        depth: cli.depth,
        connections: cli.connections,
        idle: cli.idle,
        namespaces: cli.namespaces,
        threads: cli.threads,
        cpus: cli.cpu,
        sequential: cli.sequential,
        region: cli.region,
        fill: cli.fill,
        verify: cli.verify,
        spin: cli.spin,
        header_digest: cli.header_digest,
        data_digest: cli.data_digest,
        send_buffer: cli.send_buffer,
        connect_within: Duration::from_secs(cli.connect_within),
        sq_flow_control: cli.sq_flow_control == Switch::On,
        window: Window {
            warm_up: Duration::from_secs(cli.warm_up),
            measured: Duration::from_secs(cli.seconds),
            pid: cli.pid,
        },
    })?;
    let report = load.run()?;
    load.disconnect()?;
    if cli.json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    Ok(())
}

fn main() -> ExitCode {
    if let Err(error) = run(Cli::parse()) {
        eprintln!("loadgen: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
