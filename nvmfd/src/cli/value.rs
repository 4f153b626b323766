//! What stands behind options: read strictly, and refused with what would be accepted.

use clap::ValueEnum;
use nvmf_proto::wire::nqn::Nqn;
use nvmf_target::ns::{Direct, FileEngine};
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

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
            0 => Err("the size is 0; at least one block is wanted".to_owned()),
            bytes if bytes > Self::MAX_RAM_DISK => {
                Err("the size is over 16t; at most that is wanted".to_owned())
            }
            bytes => Ok(Self::RamDisk { bytes }),
        }
    }
}

/// As an operator would write it, in one line whatever is in a path.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RamDisk { bytes } => {
                let units = [(40, "t"), (30, "g"), (20, "m"), (10, "k"), (0, "")];
                let whole = units
                    .iter()
                    .find(|(shift, _)| bytes.is_multiple_of(1 << shift));
                let (shift, unit) = whole.copied().unwrap_or_default();
                write!(f, "ramdisk:{}{unit}", bytes >> shift)
            }
            Self::File(path) => f.write_str(&one_line(&path.to_string_lossy())),
        }
    }
}

/// The text with its control characters escaped: paths may hold any, and what is printed is read
/// line by line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Bytes of a value, roughly, that an error repeats.
const SHOWN_MAX: usize = 100;

/// A value as an error names it: in quotes, and no more of it than what tells which one it is.
pub(crate) fn quoted(text: &str) -> String {
    match &text[..boundary(text, SHOWN_MAX)] {
        whole if whole == text => format!("{whole:?}"),
        begin => format!("{begin:?}... ({} bytes)", text.len()),
    }
}

/// The text, if it has at most so many bytes, else its beginning and its end: what an error is about,
/// and what is wrong.
pub(crate) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let begin = &text[..boundary(text, most / 2)];
    let end = &text[boundary(text, text.len() - most / 2)..];
    format!("{begin} ... {end}").into()
}

/// Where the character begins or ends that is at or around this byte.
fn boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

/// `--bind`: an address to listen on, and the I/O port there if it is not `--port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) ip: IpAddr,
    pub(crate) port: Option<u16>,
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            "an IP address or one with a port, such as 192.0.2.7, 192.0.2.7:4421, 2001:db8::7 or \
             [2001:db8::7]:4421, is wanted"
                .to_owned()
        };
        let alone = text.parse().map(|ip| Self { ip, port: None });
        alone
            .or_else(|_| {
                text.parse().map(|address: SocketAddr| Self {
                    ip: address.ip(),
                    port: Some(address.port()),
                })
            })
            .map_err(|_| wanted())
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

/// `--io-engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineName {
    Auto,
    Uring,
    Threads,
}

impl From<EngineName> for FileEngine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Auto => Self::Auto,
            EngineName::Uring => Self::Uring,
            EngineName::Threads => Self::Threads,
        }
    }
}

/// An NQN of this target's own. Blanks are allowed in NQNs, but not here: the commands that are
/// printed for hosts would fall apart.
pub(super) fn own_nqn(text: &str) -> Result<String, String> {
    match Nqn::new(text) {
        Ok(nqn) if nqn.is_discovery() => Err("that is the discovery service's NQN".to_owned()),
        Ok(_) if text.contains(char::is_whitespace) => {
            Err("an NQN without blanks is wanted".to_owned())
        }
        Ok(_) => Ok(text.to_owned()),
        Err(err) => Err(err.to_string()),
    }
}

pub(super) fn host_nqn(text: &str) -> Result<String, String> {
    let nqn = Nqn::new(text).map_err(|err| err.to_string())?;
    Ok(nqn.as_str().to_owned())
}

/// A size in bytes: `4096`, `0x1000`, `4k`, `1g` (also `4K`, `4kb`, `4KiB`).
pub(super) fn size(text: &str) -> Result<u64, String> {
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
pub(super) fn size_within(
    least: u32,
    most: u32,
    unit: u32,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let bytes = size(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
        bytes
            .filter(|bytes| (least..=most).contains(bytes) && bytes.is_multiple_of(unit))
            .ok_or_else(|| format!("a multiple of {unit} from {least} to {most} is wanted"))
    }
}

/// Reads sizes from `least` to `most` that are powers of two.
pub(super) fn power_of_two(
    least: u32,
    most: u32,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let bytes = size(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
        bytes
            .filter(|bytes| (least..=most).contains(bytes) && bytes.is_power_of_two())
            .ok_or_else(|| format!("a power of two from {least} to {most} is wanted"))
    }
}

/// Reads numbers from `least` to `most`.
pub(super) fn number<T>(
    least: T,
    most: T,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Copy + fmt::Display + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok();
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("a number from {least} to {most} is wanted"))
    }
}

/// Reads a text of Identify Controller.
pub(super) fn printable(
    most: usize,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| {
        let good =
            (1..=most).contains(&text.len()) && text.bytes().all(|b| (0x20..=0x7e).contains(&b));
        good.then(|| text.to_owned())
            .ok_or_else(|| format!("1 to {most} printable ASCII characters are wanted"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn errors_repeat_so_much_of_a_value() {
        assert_eq!(quoted("1\n\0"), r#""1\n\0""#);
        let long = "\u{e4}".repeat(1 << 20);
        assert!(quoted(&long).starts_with("\"\u{e4}\u{e4}") && quoted(&long).len() < 130);
        assert_eq!(shortened("short", 5), "short");
        let text = format!("{long}: no such file");
        let short = shortened(&text, 101);
        assert!(
            short.ends_with(": no such file") && short.len() < 110,
            "{short}"
        );
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
    fn devices_are_shown_in_one_line() {
        for (text, shown) in [
            ("ramdisk:0x100000", "ramdisk:1m"),
            ("ramdisk:1000", "ramdisk:1000"),
            ("/srv/a b", "/srv/a b"),
            ("/srv/\u{e4}\nok\t\u{9b}", "/srv/\u{e4}\\nok\\t\\u{9b}"),
        ] {
            assert_eq!(Device::parse(text.into()).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn addresses_with_and_without_ports() {
        let bind = |text: &str| Bind::from_str(text).map(|bind| (bind.ip.to_string(), bind.port));
        assert_eq!(bind("192.0.2.7"), Ok(("192.0.2.7".to_owned(), None)));
        assert_eq!(bind("::1"), Ok(("::1".to_owned(), None)));
        assert_eq!(bind("[::1]:7"), Ok(("::1".to_owned(), Some(7))));
        assert_eq!(bind("0.0.0.0:0"), Ok(("0.0.0.0".to_owned(), Some(0))));
        for bad in ["", "localhost", "1.2.3.4:", "1.2.3.4:70000", "::1:x"] {
            assert!(bind(bad).unwrap_err().contains("192.0.2.7:4421"), "{bad}");
        }
    }
}
