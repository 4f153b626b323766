//! The raw-socket stub: what the TCP of this machine could do.

use clap::{Args, Parser, Subcommand};
use nvmf_benches::report::Window;
use nvmf_benches::stub::{self, ClientOptions, Server, ServerOptions, Shape};
use nvmf_benches::system::{parse_block_size, parse_size, pin};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

/// Moves the bytes of NVMe/TCP without NVMe/TCP, to find what the TCP of this machine could do.
///
/// The server parses nothing, checks nothing and copies nothing: for every request's worth of bytes
/// it sends an answer's worth, gathered right out of a RAM region. The client counts answers. Run
/// the two on different processors:
///
///     stub serve --cpu 0 &
///     stub load --cpu 1 --depth 32 --seconds 5
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer requests until killed.
    Serve(Serve),
    /// Send requests for a time and print what came of it.
    Load(Load),
}

#[derive(Debug, Args)]
struct Serve {
    /// Where to listen; the address is printed (port 0: any).
    #[arg(long, default_value = "127.0.0.1:4422")]
    listen: SocketAddr,
    /// Processor to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// RAM to answer reads from.
    #[arg(long, default_value = "256m", value_parser = parse_size)]
    region: u64,
    /// Poll for events instead of sleeping, as long as there are connections.
    #[arg(long)]
    spin: bool,
}

#[derive(Debug, Args)]
struct Load {
    /// The server.
    #[arg(default_value = "127.0.0.1:4422")]
    address: SocketAddr,
    /// Write; read otherwise.
    #[arg(long)]
    write: bool,
    /// Bytes of data per I/O.
    #[arg(long, default_value = "4k", value_parser = parse_block_size)]
    size: u32,
    /// Move the bytes of header and data digests too; none is computed.
    #[arg(long)]
    digests: bool,
    /// Reads are answered with C2HData and CapsuleResp, as with SQ flow control.
    #[arg(long)]
    sq_flow_control: bool,
    /// The server copies what is written to random blocks of its memory.
    #[arg(long)]
    place: bool,
    /// Outstanding I/Os per connection.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    depth: u32,
    /// Connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections: u32,
    /// Processor to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Poll for events instead of sleeping.
    #[arg(long)]
    spin: bool,
    /// How long to measure.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How long to run before that.
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Process whose processor time per I/O is reported.
    #[arg(long)]
    pid: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn serve(args: &Serve) -> io::Result<()> {
    if let Some(cpu) = args.cpu {
        pin(cpu)?;
    }
    let listener = TcpListener::bind(args.listen)?;
    println!("listening on {}", listener.local_addr()?);
    let server = Server::new(&ServerOptions {
        region: args.region,
        spin: args.spin,
    })?;
    println!("serving");
    server.serve(&listener)
}

fn load(args: &Load) -> io::Result<()> {
    let report = stub::load(&ClientOptions {
        address: args.address,
        shape: Shape {
            write: args.write,
            size: args.size,
            digests: args.digests,
            success: !args.sq_flow_control,
            place: args.place,
        },
        depth: args.depth,
        connections: args.connections,
        spin: args.spin,
        cpu: args.cpu,
        window: Window {
            warm_up: Duration::from_secs(args.warm_up),
            measured: Duration::from_secs(args.seconds),
            pid: args.pid,
        },
    })?;
    if args.json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Load(args) => load(&args),
    };
    if let Err(error) = result {
        eprintln!("stub: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
