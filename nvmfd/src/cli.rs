//! The command line: what it says, and nothing of what is done with it.

use crate::Failure;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use nvmf_proto::wire::nqn::Nqn;
use nvmf_target::TargetConfig;
use nvmf_target::ns::Direct;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const AFTER_HELP: &str = "\
Sizes are decimal, or hexadecimal after 0x, with k, m, g or t for powers of 1024.

Signals: SIGINT and SIGTERM stop accepting, finish and flush what is in flight for at most 10
seconds and exit with status 0, or 1 if that was not enough; a second one exits at once.

Exit status: 0 after a clean end, 1 if the system refuses something, 2 if the command line is wrong.
Nothing is served before all of it has been checked, all devices opened and all ports bound; the
line \"nvmfd: serving\" on standard output says that it is.";

/// Serves RAM disks, files and block devices to NVMe/TCP hosts.
///
/// Each DEVICE becomes a namespace of one NVM subsystem: the first is NSID 1, and so on. It runs in
/// the foreground.
#[derive(Debug, Parser)]
#[command(
    name = "nvmfd",
    version,
    override_usage = "nvmfd [OPTIONS] DEVICE...",
    after_help = AFTER_HELP,
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
    #[arg(short, long, value_name = "NQN", value_parser = subsystem_nqn)]
    pub(crate) nqn: Option<String>,

    /// TCP port for I/O (and discovery); 0: any free one
    #[arg(short, long, value_name = "PORT", default_value_t = 4420)]
    pub(crate) port: u16,

    /// TCP port for discovery only; 0: any free one; none: no such port
    #[arg(short = 'P', long, value_name = "PORT", default_value = "8009")]
    pub(crate) discovery_port: DiscoveryPort,

    /// Local IP address to listen on; may be given several times [default: all, IPv4 and IPv6]
    #[arg(long, value_name = "ADDR")]
    pub(crate) bind: Vec<IpAddr>,

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
    #[arg(long, value_name = "SIZE", value_parser = mdts)]
    pub(crate) mdts: Option<u32>,

    /// Most data in a command capsule of an I/O queue: a multiple of 16, at most 64k
    /// [default: 16k]
    #[arg(long, value_name = "SIZE", value_parser = size_within(0, 64 << 10, 16))]
    pub(crate) in_capsule: Option<u32>,

    /// Memory for data in flight; commands wait when it is lent out [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) buffers: Option<u64>,

    /// Logical block size of all namespaces: a power of two from 512 to 64k
    /// [default: a block device's own, else 512]
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    pub(crate) block_size: Option<u32>,

    /// Refuse writes to all namespaces
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Whether files and block devices bypass the page cache (O_DIRECT): auto, if all requests are
    /// aligned for it
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    pub(crate) direct: DirectName,

    /// Threads that serve connections, 1 to 1024 [default: one per CPU, at most 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,

    /// Most threads that read and write files and block devices, 1 to 1024
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=1024),
    )]
    pub(crate) io_threads: u32,

    /// How long a thread that has just worked looks for more before it sleeps, in microseconds;
    /// 0: not at all [default: 50]
    #[arg(long, value_name = "USECS", value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub(crate) busy_poll: Option<u64>,

    /// Take commands on standard input, one per line: `add NSID DEVICE`, `remove NSID`,
    /// `resize NSID` (look at the size of a file or device again), `quit`. Each is answered by a
    /// line on standard output that begins with `ok` or `error`
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
        let cli = Self::try_parse().map_err(|err| {
            if matches!(
                err.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) {
                // To nobody, if nobody listens.
                let _ = err.print();
                return None;
            }
            Some(Failure::Usage(one_line(&err)))
        })?;
        cli.check()?;
        Ok(cli)
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
        let TargetConfig {
            buffer_bytes,
            reactors,
            max_transfer,
            in_capsule,
            ..
        } = self.target_config();
        if buffer_bytes / reactors < max_transfer as usize {
            return fail(format!(
                "--buffers {buffer_bytes}: at least --mdts ({max_transfer}) for each of {reactors} \
                 --threads is wanted"
            ));
        }
        if in_capsule > max_transfer {
            return fail(format!(
                "--in-capsule {in_capsule}: at most --mdts ({max_transfer}) is wanted"
            ));
        }
        Ok(())
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
        config.header_digest = self.header_digest || !self.no_header_digest;
        config.data_digest = self.data_digest || !self.no_data_digest;
        config.sq_flow_control_disable =
            self.sq_flow_control_disable || !self.no_sq_flow_control_disable;
        config
    }
}

/// Clap's message without its advice: up to the first empty line, joined.
fn one_line(err: &clap::Error) -> String {
    let text = err.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    format!("{} (see nvmfd --help)", lines.join(" "))
}

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A RAM disk of so many bytes.
    RamDisk {
        /// Size in bytes.
        bytes: u64,
    },
    /// A regular file or block device.
    File(PathBuf),
}

impl Device {
    /// The largest RAM disk: a bound for the tables that even an empty one needs.
    const MAX_RAM_DISK: u64 = 16 << 40;

    /// Reads a DEVICE argument.
    ///
    /// # Errors
    /// What is wrong with the size of a RAM disk.
    pub(crate) fn parse(text: OsString) -> Result<Self, String> {
        let Some(bytes) = text.to_str().and_then(|text| text.strip_prefix("ramdisk:")) else {
            return Ok(Self::File(text.into()));
        };
        match size(bytes)? {
            0 => Err("the size is 0".to_owned()),
            bytes if bytes > Self::MAX_RAM_DISK => Err("the size is over 16t".to_owned()),
            bytes => Ok(Self::RamDisk { bytes }),
        }
    }
}

/// `-P`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiscoveryPort {
    /// Discovery on the I/O port only.
    None,
    /// On a port of its own as well.
    Port(u16),
}

impl FromStr for DiscoveryPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(port) => Ok(Self::Port(port)),
            Err(_) if text == "none" => Ok(Self::None),
            Err(_) => Err("a number from 0 to 65535 or \"none\" is wanted".to_owned()),
        }
    }
}

/// `-t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportName {
    /// NVMe/TCP
    Tcp,
}

/// `--direct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DirectName {
    Auto,
    On,
    Off,
}

impl From<DirectName> for Direct {
    fn from(name: DirectName) -> Self {
        match name {
            DirectName::Auto => Self::Auto,
            DirectName::On => Self::On,
            DirectName::Off => Self::Off,
        }
    }
}

fn subsystem_nqn(text: &str) -> Result<String, String> {
    match Nqn::new(text) {
        Ok(nqn) if nqn.is_discovery() => Err("that is the discovery service's NQN".to_owned()),
        Ok(_) => Ok(text.to_owned()),
        Err(err) => Err(err.to_string()),
    }
}

/// A size in bytes: `4096`, `0x1000`, `4k`, `1g` (also `4K`, `4kb`, `4KiB`).
fn size(text: &str) -> Result<u64, String> {
    let wanted = || "a size such as 4096, 0x1000, 64k, 512m, 1g or 2t is wanted".to_owned();
    let lower = text.to_ascii_lowercase();
    let (radix, digits) = match lower.strip_prefix("0x") {
        Some(digits) => (16, digits),
        None => (10, lower.as_str()),
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let unit = suffix
        .strip_suffix("ib")
        .filter(|unit| !unit.is_empty())
        .unwrap_or(suffix);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        "p" | "pb" => 50,
        "e" | "eb" => 60,
        _ => return Err(wanted()),
    };
    let number = u64::from_str_radix(number, radix).map_err(|_| wanted())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "the size is over 64 bits".to_owned())
}

/// Reads sizes from `least` to `most` that are multiples of `unit`.
fn size_within(
    least: u32,
    most: u32,
    unit: u32,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let bytes = u32::try_from(size(text)?).ok();
        bytes
            .filter(|bytes| (least..=most).contains(bytes) && bytes.is_multiple_of(unit))
            .ok_or_else(|| format!("a multiple of {unit} from {least} to {most} is wanted"))
    }
}

fn mdts(text: &str) -> Result<u32, String> {
    power_of_two(text, 8192, 32 << 20)
}

fn block_size(text: &str) -> Result<u32, String> {
    power_of_two(text, 512, 64 << 10)
}

fn power_of_two(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let bytes = u32::try_from(size(text)?).ok();
    bytes
        .filter(|bytes| (least..=most).contains(bytes) && bytes.is_power_of_two())
        .ok_or_else(|| format!("a power of two from {least} to {most} is wanted"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, String> {
        let words = std::iter::once("nvmfd")
            .chain(line.split_whitespace())
            .map(OsString::from);
        let cli = Cli::try_parse_from(words).map_err(|err| one_line(&err))?;
        cli.check().map_err(|err| err.to_string())?;
        Ok(cli)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("0xb", 11),
            ("64k", 65536),
            ("64K", 65536),
            ("1MiB", 1 << 20),
            ("2gb", 2 << 30),
            ("3t", 3 << 40),
            ("15e", 15 << 60),
            ("512b", 512),
        ];
        for (text, bytes) in good {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "k",
            "-1",
            "1kk",
            "1x",
            "1 k",
            "0x",
            "1.5g",
            "16e",
            "ib",
            "1ib",
            "99999999999999999999",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn devices() {
        let device = |text: &str| Device::parse(text.into());
        assert_eq!(device("ramdisk:1g"), Ok(Device::RamDisk { bytes: 1 << 30 }));
        assert_eq!(device("/dev/sda"), Ok(Device::File("/dev/sda".into())));
        assert_eq!(
            device("./ramdisk:x"),
            Ok(Device::File("./ramdisk:x".into()))
        );
        for bad in ["ramdisk:", "ramdisk:0", "ramdisk:x", "ramdisk:1e"] {
            device(bad).unwrap_err();
        }
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
            ("--threads 0 x", "1..=1024"),
            ("--io-threads many x", "--io-threads"),
            ("--busy-poll 2000000 x", "0..=1000000"),
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
