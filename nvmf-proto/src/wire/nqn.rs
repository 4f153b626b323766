//! NVMe Qualified Names (NVMe Base 2.1, NVMe Qualified Names).
//!
//! Our own names follow the rules strictly ([`Nqn::new`]); a peer's name is taken as it comes as
//! long as it is text of a possible length ([`Nqn::from_field`]), because hosts in the field use
//! names that the rules would refuse. What is shown to people is always escaped.

use core::borrow::Borrow;
use core::fmt::{self, Write};

/// Most bytes of an NQN, without its terminating NUL.
pub const NQN_MAX: usize = 223;
/// Size of an NQN field on the wire.
pub const NQN_FIELD: usize = 256;
/// NQN of every discovery subsystem that has no unique one.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// A name of 1 to 223 bytes of UTF-8 without NUL. Compared byte by byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Box<str>);

/// Why a name is not an NQN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NqnError {
    /// No byte before the end or the NUL.
    Empty,
    /// More than 223 bytes.
    TooLong,
    /// No NUL within the 256 bytes of a field.
    NotTerminated,
    /// Not UTF-8.
    NotUtf8,
    /// A control character.
    Control,
    /// Does not begin with `nqn.yyyy-mm.`.
    Date,
    /// No well-formed reverse domain name after the date.
    Domain,
    /// No `:` and name after the domain.
    Name,
    /// What follows `nqn.2014-08.org.nvmexpress:uuid:` is not a UUID.
    Uuid,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the NQN is empty",
            Self::TooLong => "the NQN is longer than 223 bytes",
            Self::NotTerminated => "the NQN field holds no terminating NUL",
            Self::NotUtf8 => "the NQN is not UTF-8",
            Self::Control => "the NQN holds a control character",
            Self::Date => "the NQN does not begin with \"nqn.yyyy-mm.\"",
            Self::Domain => "the NQN has no reverse domain name after the date",
            Self::Name => "the NQN has no \":name\" after the domain",
            Self::Uuid => "the NQN has no UUID after \":uuid:\"",
        })
    }
}

impl core::error::Error for NqnError {}

impl Nqn {
    /// A name that follows the specification: `nqn.yyyy-mm.reverse.domain:name`,
    /// `nqn.2014-08.org.nvmexpress:uuid:UUID`, or the well-known discovery NQN.
    ///
    /// # Errors
    ///
    /// The first rule that the name breaks.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        check_length(name.len())?;
        if name.contains(char::is_control) {
            return Err(NqnError::Control);
        }
        if let Some(uuid) = name.strip_prefix(UUID_PREFIX) {
            if !is_uuid(uuid) {
                return Err(NqnError::Uuid);
            }
        } else if name != DISCOVERY_NQN {
            check_named(name)?;
        }
        Ok(Self(name.into()))
    }

    /// The discovery NQN.
    #[must_use]
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.into())
    }

    /// `nqn.2014-08.org.nvmexpress:uuid:UUID` for a UUID in RFC 4122 byte order.
    #[must_use]
    pub fn from_uuid(uuid: &[u8; 16]) -> Self {
        let mut name = String::from(UUID_PREFIX);
        for (i, byte) in uuid.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                name.push('-');
            }
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        Self(name.into())
    }

    /// A peer's name from a 256-byte field: any UTF-8 of 1 to 223 bytes before the first NUL.
    /// What follows the NUL is ignored.
    ///
    /// # Errors
    ///
    /// [`NqnError::NotTerminated`], [`NqnError::Empty`], [`NqnError::TooLong`] or
    /// [`NqnError::NotUtf8`].
    pub fn from_field(field: &[u8; NQN_FIELD]) -> Result<Self, NqnError> {
        // The terminator is required: a target that read on without one is CVE-2023-6121.
        let (name, _) = field
            .iter()
            .position(|&b| b == 0)
            .and_then(|end| field.split_at_checked(end))
            .ok_or(NqnError::NotTerminated)?;
        check_length(name.len())?;
        let name = core::str::from_utf8(name).map_err(|_| NqnError::NotUtf8)?;
        Ok(Self(name.into()))
    }

    /// The name as a 256-byte field, filled up with NULs.
    #[must_use]
    pub fn to_field(&self) -> [u8; NQN_FIELD] {
        let mut field = [0; NQN_FIELD];
        for (to, from) in field.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        field
    }

    /// The name, unescaped.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known discovery NQN.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        &*self.0 == DISCOVERY_NQN
    }
}

/// Lets a map with [`Nqn`] keys be asked with a `&str`.
impl Borrow<str> for Nqn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl core::str::FromStr for Nqn {
    type Err = NqnError;

    /// The strict rules of [`Nqn::new`].
    fn from_str(name: &str) -> Result<Self, NqnError> {
        Self::new(name)
    }
}

/// The escaped form of [`Escaped`].
impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(self.0.as_bytes()).fmt(f)
    }
}

/// The same in quotes.
impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Escaped(self.0.as_bytes()), f)
    }
}

fn check_length(length: usize) -> Result<(), NqnError> {
    match length {
        0 => Err(NqnError::Empty),
        1..=NQN_MAX => Ok(()),
        _ => Err(NqnError::TooLong),
    }
}

/// `nqn.yyyy-mm.domain:name`.
fn check_named(name: &str) -> Result<(), NqnError> {
    let dated = name.strip_prefix("nqn.").ok_or(NqnError::Date)?;
    let (date, rest) = dated.split_once('.').ok_or(NqnError::Date)?;
    let (year, month) = date.split_once('-').ok_or(NqnError::Date)?;
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    let is_month = digits(month, 2) && ("01"..="12").contains(&month);
    if !digits(year, 4) || !is_month {
        return Err(NqnError::Date);
    }
    let (domain, name) = rest.split_once(':').unwrap_or((rest, ""));
    if !domain.split('.').all(is_label) {
        return Err(NqnError::Domain);
    }
    if name.is_empty() {
        return Err(NqnError::Name);
    }
    Ok(())
}

/// A label of a domain name, RFC 1035 as relaxed by RFC 1123.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    let mut groups = text.split('-');
    let well_formed = [8, 4, 4, 4, 12].into_iter().all(|length| {
        groups.next().is_some_and(|group| {
            group.len() == length && group.bytes().all(|b| b.is_ascii_hexdigit())
        })
    });
    well_formed && groups.next().is_none()
}

/// Shows bytes from a peer so that they cannot disturb a log or a terminal: control characters,
/// characters that hide or reorder text, backslashes, and bytes that are not UTF-8 are escaped.
///
/// In a line among other words it wants its `Debug` form, which is in quotes: what is in them is the
/// peer's, however many blanks it has, and nothing is seen to be nothing.
#[derive(Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl Escaped<'_> {
    fn write(&self, f: &mut fmt::Formatter<'_>, quoted: bool) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '\\' || (quoted && c == '"') {
                    write!(f, "\\{c}")?;
                } else if c.is_control() || is_invisible(c) {
                    write!(f, "{}", c.escape_unicode())?;
                } else {
                    f.write_char(c)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        self.write(f, true)?;
        f.write_char('"')
    }
}

/// Zero-width, line-separating and bidirectional formatting characters.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &[u8]) -> [u8; NQN_FIELD] {
        let mut field = [0; NQN_FIELD];
        field[..name.len()].copy_from_slice(name);
        field
    }

    #[test]
    fn strict_names() {
        let longest = format!("nqn.2024-01.com.example:{}", "x".repeat(199));
        assert_eq!(longest.len(), NQN_MAX);
        let too_long = format!("{longest}x");
        let label_63 = format!("nqn.2024-01.com.{}:a", "d".repeat(63));
        let label_64 = format!("nqn.2024-01.com.{}:a", "d".repeat(64));
        let good = [
            DISCOVERY_NQN,
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2014-08.org.nvmexpress:uuid:F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6",
            "nqn.2014-08.com.example:nvme.host.sys.xyz",
            "nqn.2016-12.io.spdk:cnode1",
            "nqn.2024-01.org.3com.a-b:disk: \u{fc}\\",
            &label_63,
            &longest,
        ];
        for name in good {
            assert_eq!(Nqn::new(name).as_ref().map(Nqn::as_str), Ok(name));
        }
        let bad = [
            ("", NqnError::Empty),
            (&too_long, NqnError::TooLong),
            ("nqn.2024-01.com.example:a\nb", NqnError::Control),
            ("nqn.2024-01.com.example:\0", NqnError::Control),
            ("iqn.2024-01.com.example:a", NqnError::Date),
            ("NQN.2024-01.com.example:a", NqnError::Date),
            ("nqn.2024-1.com.example:a", NqnError::Date),
            ("nqn.2024-13.com.example:a", NqnError::Date),
            ("nqn.2024-00.com.example:a", NqnError::Date),
            ("nqn.24-01.com.example:a", NqnError::Date),
            ("nqn.+024-01.com.example:a", NqnError::Date),
            ("nqn.2024-01", NqnError::Date),
            ("nqn.2024-01.:a", NqnError::Domain),
            ("nqn.2024-01.com..example:a", NqnError::Domain),
            ("nqn.2024-01.com.-example:a", NqnError::Domain),
            ("nqn.2024-01.com.example-:a", NqnError::Domain),
            ("nqn.2024-01.com.ex_ample:a", NqnError::Domain),
            (&label_64, NqnError::Domain),
            ("nqn.2024-01.com.example", NqnError::Name),
            ("nqn.2024-01.com.example:", NqnError::Name),
            ("nqn.2014-08.org.nvmexpress:uuid:", NqnError::Uuid),
            (
                "nqn.2014-08.org.nvmexpress:uuid:f81d4fae7dec11d0a76500a0c91e6bf6",
                NqnError::Uuid,
            ),
            (
                "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bfg",
                NqnError::Uuid,
            ),
            (
                "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6-",
                NqnError::Uuid,
            ),
            ("nqn.2014-08.org.nvmexpress.discovery2", NqnError::Name),
        ];
        for (name, error) in bad {
            assert_eq!(Nqn::new(name), Err(error), "{name}");
        }
    }

    #[test]
    fn uuid_names_are_strict_names() {
        let nqn = Nqn::from_uuid(&[
            0xf8, 0x1d, 0x4f, 0xae, 0x7d, 0xec, 0x11, 0xd0, 0xa7, 0x65, 0x00, 0xa0, 0xc9, 0x1e,
            0x6b, 0xf6,
        ]);
        let text = "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
        assert_eq!(nqn.as_str(), text);
        assert_eq!(Nqn::new(text), Ok(nqn));
    }

    #[test]
    fn fields_of_peers() {
        assert_eq!(Nqn::from_field(&[0; 256]), Err(NqnError::Empty));
        assert_eq!(Nqn::from_field(&[b'a'; 256]), Err(NqnError::NotTerminated));
        assert_eq!(
            Nqn::from_field(&field(&[b'a'; 255])),
            Err(NqnError::TooLong)
        );
        assert_eq!(
            Nqn::from_field(&field(&[b'a'; 224])),
            Err(NqnError::TooLong)
        );
        assert_eq!(Nqn::from_field(&field(b"nqn.\xff")), Err(NqnError::NotUtf8));
        let longest = Nqn::from_field(&field(&[b'a'; 223]));
        assert_eq!(longest.map(|nqn| nqn.as_str().len()), Ok(NQN_MAX));

        // Liberal: not a strict NQN, and rubbish behind the NUL.
        let mut raw = field(b"my host");
        raw[10] = b'x';
        let nqn = Nqn::from_field(&raw).expect("a name");
        assert_eq!(nqn.as_str(), "my host");
        assert_eq!(nqn.to_field(), field(b"my host"));
    }

    #[test]
    fn discovery_name() {
        let nqn = Nqn::from_field(&Nqn::discovery().to_field()).expect("a name");
        assert!(nqn.is_discovery());
        assert_eq!(Nqn::new(DISCOVERY_NQN), Ok(nqn));
    }

    #[test]
    fn hostile_names_are_shown_escaped() {
        let nqn = Nqn::from_field(&field(b"a\nb\x1b[2J\\")).expect("a name");
        assert_eq!(nqn.to_string(), "a\\u{a}b\\u{1b}[2J\\\\");
        assert_eq!(format!("{nqn:?}"), format!("\"{nqn}\""));
        let rtl = "a\u{202e}b\u{fc}";
        assert_eq!(Escaped(rtl.as_bytes()).to_string(), "a\\u{202e}b\u{fc}");
        assert_eq!(Escaped(b"a\xff\xfeb").to_string(), "a\\xff\\xfeb");
        assert_eq!(format!("{:?}", Escaped(b"")), "\"\"");
        let forged = Escaped(br#"x" closed by "y\"#);
        assert_eq!(format!("{forged:?}"), r#""x\" closed by \"y\\""#);
        assert_eq!(forged.to_string(), r#"x" closed by "y\\"#);
    }

    proptest::proptest! {
        #[test]
        fn any_field_is_judged_and_shown_safely(bytes: Vec<u8>) {
            let bytes = &bytes[..bytes.len().min(NQN_FIELD)];
            if let Ok(nqn) = Nqn::from_field(&field(bytes)) {
                assert!(bytes.starts_with(nqn.as_str().as_bytes()));
                assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
            }
            assert!(!Escaped(bytes).to_string().contains(char::is_control));
        }

        #[test]
        fn strict_names_survive_the_wire(name in "nqn\\.20[0-9]{2}-0[1-9]\\.[a-z]{1,9}:\\PC{1,40}") {
            let nqn = Nqn::new(&name).expect("a strict name");
            assert_eq!(Nqn::from_field(&nqn.to_field()), Ok(nqn));
        }
    }

    #[test]
    fn maps_are_asked_with_str() {
        let map = std::collections::HashMap::from([(Nqn::discovery(), 1)]);
        assert_eq!(map.get(DISCOVERY_NQN), Some(&1));
    }
}
