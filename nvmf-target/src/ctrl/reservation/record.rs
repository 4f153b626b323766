//! Registrants and reservation of a namespace as a [`ReservationStore`](super::ReservationStore)
//! keeps them: lines of text, so that people can read them, with a checksum at the end.
//!
//! ```text
//! nvmf-reservations 1
//! subsystem nqn.2026-11.org.example:disks
//! namespace 8d4bfa75-2b04-4e7c-94a5-3f5c2b1b9a11
//! generation 7
//! reservation 3 0123456789abcdef0123456789abcdef
//! registrant 0123456789abcdef0123456789abcdef 00000000000000aa
//! crc32c 1c291ca3
//! ```

use super::state::{Held, HostId, REGISTRANTS_MAX, State};
use super::store::ReservationScope;
use nvmf_proto::wire::reservation::ReservationType;
use std::fmt::Write;
use std::str::FromStr;
use uuid::Uuid;

const HEADING: &str = "nvmf-reservations 1";

/// The record of a state that outlives a power loss.
pub(super) fn encode(scope: &ReservationScope, state: &State) -> Vec<u8> {
    let mut text = format!(
        "{HEADING}\nsubsystem {}\nnamespace {}\ngeneration {}\n",
        scope.subsystem,
        Uuid::from_bytes(scope.uuid),
        state.generation
    );
    // Writing to a String cannot fail.
    let _ = match &state.held {
        None => writeln!(text, "reservation none"),
        Some(Held::One(rtype, host)) => {
            writeln!(text, "reservation {} {:032x}", rtype.0, number(host))
        }
        Some(Held::All(rtype)) => writeln!(text, "reservation {} all", rtype.0),
    };
    for (host, key) in &state.registrants {
        let _ = writeln!(text, "registrant {:032x} {key:016x}", number(host));
    }
    let sum = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "crc32c {sum:08x}");
    text.into_bytes()
}

/// The bytes of an identifier, in their order, as one number.
const fn number(host: &HostId) -> u128 {
    u128::from_be_bytes(*host)
}

/// The state that a record describes.
///
/// # Errors
///
/// What is wrong with it, in words.
pub(super) fn decode(scope: &ReservationScope, record: &[u8]) -> Result<State, String> {
    let text = std::str::from_utf8(record).map_err(|_| "it is not text")?;
    let first = text.lines().next().unwrap_or_default();
    if first != HEADING {
        return Err(format!("it does not begin with {HEADING:?}"));
    }
    let body = checked(text).ok_or("its checksum is wrong, or it is cut short")?;
    let mut lines = body.lines().skip(1);
    let mut next = |name: &str| {
        let line = lines.next().and_then(|line| line.strip_prefix(name));
        line.and_then(|line| line.strip_prefix(' '))
            .ok_or_else(|| format!("a line {name:?} is missing"))
    };
    let uuid = Uuid::from_bytes(scope.uuid).to_string();
    if next("subsystem")? != scope.subsystem || next("namespace")? != uuid {
        return Err(format!("it is not about {scope}"));
    }
    let generation = parsed(next("generation")?)?;
    let held = held(next("reservation")?)?;
    let mut state = State {
        generation,
        ptpl: true,
        held,
        ..State::default()
    };
    for line in lines {
        let (host, key) = registrant(line).ok_or_else(|| format!("{line:?} is no registrant"))?;
        if state.registrants.insert(host, key).is_some() {
            return Err(format!("{line:?} is the second of its host"));
        }
    }
    let stray = match &state.held {
        None => false,
        Some(Held::One(_, host)) => !state.registrants.contains_key(host),
        Some(Held::All(_)) => state.registrants.is_empty(),
    };
    if stray {
        return Err("the holder of the reservation is no registrant".to_owned());
    }
    if state.registrants.len() > REGISTRANTS_MAX {
        return Err(format!("there are more than {REGISTRANTS_MAX} registrants"));
    }
    Ok(state)
}

/// What stands before the last line, if that is the checksum of it.
fn checked(text: &str) -> Option<&str> {
    let at = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let (body, last) = text.split_at_checked(at)?;
    let sum = last.strip_suffix('\n')?.strip_prefix("crc32c ")?;
    (hex(sum, 8)? == u128::from(crc32c::crc32c(body.as_bytes()))).then_some(body)
}

fn parsed<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} makes no sense"))
}

/// A number of exactly so many hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let fits = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| fits)
}

fn host_id(text: &str) -> Option<HostId> {
    let host = hex(text, 32)?.to_be_bytes();
    (host != HostId::default()).then_some(host)
}

fn registrant(line: &str) -> Option<(HostId, u64)> {
    let (host, key) = line.strip_prefix("registrant ")?.split_once(' ')?;
    let key = u64::try_from(hex(key, 16)?).ok().filter(|&key| key != 0)?;
    Some((host_id(host)?, key))
}

fn held(text: &str) -> Result<Option<Held>, String> {
    if text == "none" {
        return Ok(None);
    }
    let parse = || {
        let (rtype, holder) = text.split_once(' ')?;
        let rtype = ReservationType(rtype.parse().ok()?);
        match (rtype.is_all_registrants(), holder) {
            _ if !rtype.is_defined() => None,
            (true, "all") => Some(Held::All(rtype)),
            (true, _) => None,
            (false, host) => Some(Held::One(rtype, host_id(host)?)),
        }
    };
    let held = parse().ok_or_else(|| format!("{text:?} is no reservation"))?;
    Ok(Some(held))
}
