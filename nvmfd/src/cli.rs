//! The command line: what it says, and nothing of what is done with it.

mod limits;
mod value;

use crate::Failure;
use crate::control::{Command, help};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};
use nvmf_target::TargetConfig;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
pub(crate) use value::{
    Bind, Device, DirectName, DiscoveryPort, EngineName, TransportName, one_line, quoted, shortened,
};

/// Most that `--buffers` takes, the most that a target takes.
const BUFFER_BYTES_MAX: u64 = 1 << 40;
use value::{host_nqn, number, own_nqn, power_of_two, printable, size, size_within};

fn after_help() -> String {
    format!(
        "\
Sizes are decimal, or hexadecimal after 0x, with k, m, g or t for powers of 1024.

Commands, of --command and --stdin-control; HOST is a host's NQN:

{}
Signals: SIGINT and SIGTERM stop accepting, finish and flush what is in flight for at most 10
seconds and exit with status 0, or 1 if that was not enough; a second one exits at once.

Exit status: 0 after a clean end, 1 if the system refuses something, 2 if the command line is wrong.
Nothing is served before all of it has been checked, all devices opened and all ports bound; the
line \"nvmfd: serving\" on standard output says that it is.",
        help()
    )
}

/// Serves RAM disks, files and block devices to NVMe/TCP hosts.
///
/// Each DEVICE becomes a namespace of one NVM subsystem: the first is NSID 1, and so on. It runs in
/// the foreground.
#[derive(Debug, Parser)]
#[command(
    name = "nvmfd",
    version,
    override_usage = "nvmfd [OPTIONS] DEVICE...",
    after_help = after_help(),
    args_override_self = true
)]
pub(crate) struct Cli {
    /// `ramdisk:SIZE`, or the path of a regular file or block device
    #[arg(
        value_name = "DEVICE",
        required_unless_present = "kernel",
        value_parser = OsStringValueParser::new().try_map(Device::parse),
    )]
    pub(crate) devices: Vec<Device>,

    /// Log debug messages too (RUST_LOG, if set, overrules this)
    #[arg(short, long)]
    pub(crate) debug: bool,

    /// Subsystem NQN [default: nqn.2014-08.org.nvmexpress:uuid:UUID, with a UUID that is derived
    /// from the machine's id]
    #[arg(short, long, value_name = "NQN", value_parser = own_nqn)]
    pub(crate) nqn: Option<String>,

    /// Serial number of the subsystem, at most 20 characters [default: derived like the NQN]
    #[arg(long, value_name = "TEXT", value_parser = printable(20))]
    pub(crate) serial: Option<String>,

    /// Model number of the subsystem, at most 40 characters [default: nvmf target]
    #[arg(long, value_name = "TEXT", value_parser = printable(40))]
    pub(crate) model: Option<String>,

    /// NQN of a host that may connect; may be given several times [default: any host may]
    #[arg(long, value_name = "NQN", value_parser = host_nqn)]
    pub(crate) host: Vec<String>,

    /// Own NQN of the discovery service, beside the well-known one
    #[arg(long, value_name = "NQN", value_parser = own_nqn)]
    pub(crate) discovery_nqn: Option<String>,

    /// TCP port for I/O (and discovery); 0: any free one
    #[arg(
        short,
        long,
        value_name = "PORT",
        default_value_t = 4420,
        value_parser = number(0_u16, 65535),
    )]
    pub(crate) port: u16,

    /// TCP port for discovery only; 0: any free one; none: no such port
    #[arg(short = 'P', long, value_name = "PORT", default_value = "8009")]
    pub(crate) discovery_port: DiscoveryPort,

    /// Local IP address to listen on, or ADDR:PORT for an I/O port of its own; may be given several
    /// times [default: all, IPv4 and IPv6]
    #[arg(long, value_name = "ADDR")]
    pub(crate) bind: Vec<Bind>,

    /// Transport
    #[arg(
        short,
        long,
        value_name = "NAME",
        value_enum,
        ignore_case = true,
        default_value = "tcp"
    )]
    pub(crate) transport: TransportName,

    /// Permit hosts to disable SQ flow control (the default)
    #[arg(short = 'F', long, overrides_with = "no_sq_flow_control_disable")]
    sq_flow_control_disable: bool,

    /// Require SQ flow control
    #[arg(long, overrides_with = "sq_flow_control_disable")]
    no_sq_flow_control_disable: bool,

    /// Permit data digests, used if the host asks for them (the default)
    #[arg(short = 'G', long, overrides_with = "no_data_digest")]
    data_digest: bool,

    /// Forbid data digests
    #[arg(long, overrides_with = "data_digest")]
    no_data_digest: bool,

    /// Permit header digests, used if the host asks for them (the default)
    #[arg(short = 'g', long, overrides_with = "no_header_digest")]
    header_digest: bool,

    /// Forbid header digests
    #[arg(long, overrides_with = "header_digest")]
    no_header_digest: bool,

    /// Most data that a host may send in one H2CData PDU (MAXH2CDATA): a multiple of 4, at least
    /// 4096 [default: 1m]
    #[arg(short = 'H', long, value_name = "SIZE", value_parser = size_within(4096, 1 << 30, 4))]
    pub(crate) maxh2cdata: Option<u32>,

    /// Most data of one command (MDTS): a power of two from 8k to 32m [default: 1m]
    #[arg(long, value_name = "SIZE", value_parser = power_of_two(8192, 32 << 20))]
    pub(crate) mdts: Option<u32>,

    /// Most data in a command capsule of an I/O queue: a multiple of 16, at most 64k
    /// [default: 16k]
    #[arg(long, value_name = "SIZE", value_parser = size_within(0, 64 << 10, 16))]
    pub(crate) in_capsule: Option<u32>,

    /// I/O queues that a host may have, 1 to 1024 [default: 64]
    #[arg(long, value_name = "N", value_parser = number(1_u16, 1024))]
    pub(crate) io_queues: Option<u16>,

    /// Entries of an I/O queue, 2 to 65536 [default: 1024]
    #[arg(long, value_name = "N", value_parser = number(2_u32, 65536))]
    pub(crate) queue_entries: Option<u32>,

    #[command(flatten)]
    limits: limits::Limits,

    /// Memory for data in flight, at most 1t; commands wait when it is lent out [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) buffers: Option<u64>,

    /// Logical block size of all namespaces: a power of two from 512 to 64k
    /// [default: a block device's own, else 512]
    #[arg(long, value_name = "SIZE", value_parser = power_of_two(512, 64 << 10))]
    pub(crate) block_size: Option<u32>,

    /// Let hosts reset the subsystem (NVM Subsystem Reset), which ends all hosts' controllers
    #[arg(long)]
    pub(crate) subsystem_reset: bool,

    /// Folder for what hosts want to outlive the daemon (reservations); made if it is missing
    /// [default: nothing outlives it]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Refuse writes to all namespaces
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Whether files and block devices bypass the page cache (O_DIRECT): auto, if all requests are
    /// aligned for it
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    pub(crate) direct: DirectName,

    /// How files and block devices are read and written: auto, by io_uring if the system lets the
    /// process use it, else by threads
    #[arg(long, value_name = "NAME", value_enum, default_value = "auto")]
    pub(crate) io_engine: EngineName,

    /// Threads that serve connections, 1 to 1024 [default: one per CPU, at most 16]
    #[arg(long, value_name = "N", value_parser = number(1_u32, 1024))]
    pub(crate) threads: Option<u32>,

    /// Most threads that read and write files and block devices where io_uring does not, 1 to 1024
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = number(1_u32, 1024),
    )]
    pub(crate) io_threads: u32,

    /// How long a thread that has just worked looks for more before it sleeps, in microseconds;
    /// 0: not at all [default: 50]
    #[arg(long, value_name = "USECS", value_parser = number(0_u64, 1_000_000))]
    pub(crate) busy_poll: Option<u64>,

    /// Carry out a command (below, all but stats and quit) before anything is served; may be given
    /// several times
    #[arg(
        long = "command",
        value_name = "COMMAND",
        value_parser = OsStringValueParser::new().try_map(first_command),
    )]
    pub(crate) commands: Vec<FirstCommand>,

    /// Take commands (below) on standard input, one per line. Each is answered by a line on standard
    /// output that begins with `ok` or `error`; after an error nothing has changed
    #[arg(long)]
    pub(crate) stdin_control: bool,

    /// Refused: hand-over of connections to the kernel is FreeBSD's only
    #[arg(short = 'K', long)]
    kernel: bool,
}

impl Cli {
    /// Reads the process's arguments; help and version are printed here.
    ///
    /// # Errors
    /// `Err(None)` after help or version, else what is wrong.
    pub(crate) fn read() -> Result<Self, Option<Failure>> {
        let cli = Self::parse_words(std::env::args_os()).map_err(|err| {
            if matches!(
                err.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) {
                // To nobody, if nobody listens.
                let _ = err.print();
                return None;
            }
            Some(Failure::Usage(summary(&err)))
        })?;
        cli.check()?;
        Ok(cli)
    }

    fn parse_words(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        // `--mdts -1` is a wrong size, not an unknown option `-1`.
        let command = Self::command().mut_args(|arg| {
            let valued = arg.get_action().takes_values() && !arg.is_positional();
            arg.allow_hyphen_values(valued)
        });
        let mut matches = command.try_get_matches_from(words)?;
        Self::from_arg_matches_mut(&mut matches)
    }

    /// What one option alone does not tell.
    fn check(&self) -> Result<(), Failure> {
        let fail = |text| Err(Failure::Usage(text));
        if self.kernel {
            return fail(
                "-K is refused: it hands accepted connections to FreeBSD's kernel target, and \
                 Linux's (nvmet) takes none, it can only listen for itself; set nvmet up with \
                 nvmetcli, or name the devices here without -K"
                    .to_owned(),
            );
        }
        for (index, bind) in self.bind.iter().enumerate() {
            let port = |bind: &Bind| bind.port.unwrap_or(self.port);
            let same =
                |other: &&Bind| other.ip == bind.ip && port(other) == port(bind) && port(bind) != 0;
            if self.bind[..index].iter().find(same).is_some() {
                let address = SocketAddr::new(bind.ip, port(bind));
                return fail(format!("--bind {address} is given twice; once is wanted"));
            }
        }
        let config = self.target_config();
        let least = TargetConfig::queue_bytes_min(config.admin_queue_entries);
        if config.queue_bytes < least {
            return fail(format!(
                "--queue-memory {}: at least {least}, for one admin queue, is wanted",
                config.queue_bytes
            ));
        }
        let TargetConfig {
            buffer_bytes,
            reactors,
            max_transfer,
            in_capsule,
            ..
        } = config;
        if buffer_bytes / reactors < max_transfer as usize {
            return fail(format!(
                "--buffers {buffer_bytes}: at least --mdts ({max_transfer}) for each of {reactors} \
                 --threads is wanted"
            ));
        }
        if buffer_bytes as u64 > BUFFER_BYTES_MAX {
            return fail(format!(
                "--buffers {buffer_bytes}: at most {BUFFER_BYTES_MAX} is wanted"
            ));
        }
        if in_capsule > max_transfer {
            return fail(format!(
                "--in-capsule {in_capsule}: at most --mdts ({max_transfer}) is wanted"
            ));
        }
        Ok(())
    }

    /// AERL + 1 of the subsystem, if it is said.
    pub(crate) const fn event_requests(&self) -> Option<u16> {
        self.limits.event_requests
    }

    /// The target's configuration: its defaults, and what the command line changes.
    pub(crate) fn target_config(&self) -> TargetConfig {
        let mut config = TargetConfig::default();
        let set = |to: &mut u32, from: Option<u32>| *to = from.unwrap_or(*to);
        set(&mut config.max_transfer, self.mdts);
        // What is not said follows what is said.
        let in_capsule = config.in_capsule.min(config.max_transfer);
        config.in_capsule = self.in_capsule.unwrap_or(in_capsule);
        set(&mut config.maxh2cdata, self.maxh2cdata);
        if let Some(threads) = self.threads {
            config.reactors = threads as usize;
        }
        let least = config.reactors * config.max_transfer as usize;
        config.buffer_bytes = match self.buffers {
            Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            None => config.buffer_bytes.max(least),
        };
        if let Some(micros) = self.busy_poll {
            config.busy_poll = Duration::from_micros(micros);
        }
        set(&mut config.io_queue_entries, self.queue_entries);
        config.io_queues = self.io_queues.unwrap_or(config.io_queues);
        config.discovery_nqn.clone_from(&self.discovery_nqn);
        self.limits.apply(&mut config);
        config.header_digest = self.header_digest || !self.no_header_digest;
        config.data_digest = self.data_digest || !self.no_data_digest;
        config.sq_flow_control_disable =
            self.sq_flow_control_disable || !self.no_sq_flow_control_disable;
        config
    }
}

/// A command that is carried out before anything is served.
#[derive(Clone, Debug)]
pub(crate) struct FirstCommand {
    /// As it was given.
    pub(crate) text: String,
    /// What it says.
    pub(crate) command: Command,
}

fn first_command(text: OsString) -> Result<FirstCommand, String> {
    Ok(FirstCommand {
        command: Command::parse_first(text.as_bytes())?,
        text: text.to_string_lossy().into_owned(),
    })
}

/// Clap's message without its advice: up to the first empty line, joined.
fn summary(err: &clap::Error) -> String {
    let text = err.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    format!("{} (see nvmfd --help)", lines.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, String> {
        let words = std::iter::once("nvmfd")
            .chain(line.split_whitespace())
            .map(OsString::from);
        let cli = Cli::parse_words(words).map_err(|err| summary(&err))?;
        cli.check().map_err(|err| err.to_string())?;
        Ok(cli)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_the_target_s() {
        let config = parse("ramdisk:1m").unwrap().target_config();
        assert_eq!(
            format!("{config:?}"),
            format!("{:?}", TargetConfig::default())
        );
    }

    #[test]
    fn options_reach_the_target() {
        let cli = parse(
            "-d -F -G -g -H 8k -n nqn.2014-08.org.example:a -p 0 -P 9009 -t TCP --bind 127.0.0.1 \
             --bind ::1 --block-size 4k --read-only --threads 3 --busy-poll 0 --mdts 64k \
             --in-capsule 8k --buffers 16m --stdin-control --direct off ramdisk:1m /dev/sda",
        )
        .unwrap();
        let config = cli.target_config();
        assert!(config.header_digest && config.data_digest && config.sq_flow_control_disable);
        assert_eq!(
            (config.maxh2cdata, config.max_transfer, config.in_capsule),
            (8192, 65536, 8192)
        );
        assert_eq!((config.reactors, config.buffer_bytes), (3, 16 << 20));
        assert_eq!(config.busy_poll, Duration::ZERO);
        assert_eq!(
            (cli.port, cli.discovery_port),
            (0, DiscoveryPort::Port(9009))
        );
        assert_eq!((cli.bind.len(), cli.devices.len()), (2, 2));
    }

    #[test]
    fn limits_reach_the_target() {
        let cli = parse(
            "--connections 10 --connections-per-address 9 --connections-per-host 8 \
             --controllers-per-host 7 --discovery-controllers 11 --unconnected 6 --silent-per-address 5 \
             --queue-memory 4m --admin-queue-entries 33 --event-requests 2 --icreq-timeout 1 \
             --connect-timeout 2 --association-timeout 3 --stall-timeout 4 x",
        )
        .unwrap();
        assert_eq!(cli.event_requests(), Some(2));
        let config = cli.target_config();
        assert_eq!(config.max_connections, 10);
        assert_eq!(config.max_connections_per_address, Some(9));
        assert_eq!(config.max_connections_per_host, 8);
        assert_eq!(config.max_controllers_per_host, 7);
        assert_eq!(config.max_discovery_controllers, 11);
        assert_eq!(config.max_unconnected, 6);
        assert_eq!(config.max_silent_per_address, 5);
        assert_eq!(
            (config.queue_bytes, config.admin_queue_entries),
            (4 << 20, 33)
        );
        let times = [
            config.icreq_timeout,
            config.connect_timeout,
            config.association_timeout,
            config.stall_timeout,
        ];
        assert_eq!(times, [1, 2, 3, 4].map(Duration::from_secs));
    }

    #[test]
    fn what_is_not_said_follows_what_is_said() {
        let config = parse("--mdts 8k x").unwrap().target_config();
        assert_eq!(config.in_capsule, 8192);
        let config = parse("--threads 100 --mdts 32m x").unwrap().target_config();
        assert_eq!(config.buffer_bytes, 100 * (32 << 20));
    }

    #[test]
    fn the_last_word_on_a_switch_counts() {
        let config = parse("--no-data-digest --no-header-digest --no-sq-flow-control-disable x");
        let config = config.unwrap().target_config();
        assert!(!config.header_digest && !config.data_digest && !config.sq_flow_control_disable);
        assert!(
            parse("--no-data-digest -G x")
                .unwrap()
                .target_config()
                .data_digest
        );
        assert!(
            !parse("-G --no-data-digest x")
                .unwrap()
                .target_config()
                .data_digest
        );
        assert_eq!(parse("-p 1 -p 2 x").unwrap().port, 2);
    }

    #[test]
    fn a_wrong_line_is_answered_by_one() {
        let wrong = [
            ("", "DEVICE"),
            ("--frobnicate x", "--frobnicate"),
            ("-p 70000 x", "70000"),
            ("-p http x", "--port"),
            ("-P x x", "a number from 0 to 65535 or \"none\""),
            ("-t rdma x", "[possible values: tcp]"),
            ("-n disk x", "does not begin with"),
            (
                "-n nqn.2014-08.org.nvmexpress.discovery x",
                "discovery service's NQN",
            ),
            ("-K", "nvmet"),
            ("-K x", "nvmet"),
            ("--bind localhost x", "--bind"),
            ("--block-size 1000 x", "a power of two from 512 to 65536"),
            ("--block-size 128k x", "a power of two from 512 to 65536"),
            ("--mdts 5000 x", "a power of two from 8192"),
            ("--in-capsule 17 x", "a multiple of 16"),
            ("-H 2048 x", "a multiple of 4 from 4096"),
            ("--threads 0 x", "a number from 1 to 1024"),
            ("--io-threads many x", "--io-threads"),
            ("--busy-poll 2000000 x", "a number from 0 to 1000000"),
            (
                "-p -1 x",
                "'-1' for '--port <PORT>': a number from 0 to 65535",
            ),
            ("--mdts -4k x", "'-4k' for '--mdts <SIZE>': a power of two"),
            (
                "--threads -2 x",
                "'-2' for '--threads <N>': a number from 1",
            ),
            (
                "--queue-entries --read-only x",
                "'--read-only' for '--queue-entries",
            ),
            ("--io-queues 0 x", "a number from 1 to 1024"),
            ("--connections 0 x", "'0' for '--connections <N>': a number"),
            ("--unconnected 0 x", "--unconnected <N>': a number from 1"),
            ("--controllers-per-host 65520 x", "a number from 1 to 65519"),
            (
                "--connect-timeout 0 x",
                "--connect-timeout <SECS>': a number from 1 to 86400",
            ),
            ("--admin-queue-entries 31 x", "a number from 32 to 4096"),
            ("--event-requests 257 x", "a number from 1 to 256"),
            ("--queue-memory 64k x", "--queue-memory 65536: at least"),
            ("--serial 123456789012345678901 x", "1 to 20 printable"),
            (
                "--bind ::1 --bind ::1 x",
                "--bind [::1]:4420 is given twice",
            ),
            ("--bind ::1 -p 7 --bind [::1]:7 x", "[::1]:7 is given twice"),
            (
                "--buffers 2t x",
                "--buffers 2199023255552: at most 1099511627776 is wanted",
            ),
            (
                "--threads 2 --buffers 1m x",
                "--buffers 1048576: at least --mdts",
            ),
            (
                "--mdts 8k --in-capsule 16k x",
                "--in-capsule 16384: at most --mdts",
            ),
            ("ramdisk:12q", "a size such as"),
            ("ramdisk:0", "the size is 0"),
        ];
        for (line, says) in wrong {
            let text = parse(line).unwrap_err();
            assert!(
                text.contains(says) && !text.contains('\n'),
                "{line}: {text}"
            );
        }
    }
}
