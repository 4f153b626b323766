//! Values: mostly at an edge.

use arbitrary::Arbitrary;

/// A number: small, near a power of two, or any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Number {
    kind: u8,
    value: u64,
}

impl Number {
    pub(super) const fn get(self) -> u64 {
        match self.kind % 8 {
            0..3 => self.value % 33,
            3 | 4 => 1 << (self.value % 64),
            5 => (1 << (self.value % 64)) - 1,
            6 => (1 << (self.value % 64)) + 1,
            _ => self.value,
        }
    }

    pub(super) fn into_usize(self) -> usize {
        usize::try_from(self.get()).unwrap_or(usize::MAX)
    }

    pub(super) fn into_u32(self) -> u32 {
        u32::try_from(self.get()).unwrap_or(u32::MAX)
    }

    pub(super) fn into_u16(self) -> u16 {
        u16::try_from(self.get()).unwrap_or(u16::MAX)
    }

    #[expect(clippy::cast_possible_truncation, reason = "any value will do")]
    pub(super) const fn into_u8(self) -> u8 {
        self.get() as u8
    }
}

/// A name that mostly is an NQN.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Name {
    kind: u8,
    which: u8,
}

/// Names of subsystems and hosts that there may be.
pub(super) const NAMES: [&str; 3] = [
    "nqn.2026-11.org.example:a",
    "nqn.2026-11.org.example:b",
    "nqn.2026-11.org.example:c",
];

impl Name {
    pub(super) fn text(self) -> String {
        let name = NAMES[usize::from(self.which) % NAMES.len()];
        match self.kind {
            0xf8 => String::new(),
            0xf9 => "nqn".to_owned(),
            0xfa => format!("{name}\n"),
            0xfb => format!("{name}\u{e9}"),
            0xfc => format!("{name}{}", "x".repeat(usize::from(self.which))),
            0xfd => "nqn.2014-08.org.nvmexpress.discovery".to_owned(),
            0xfe => "nqn.2014-08.org.nvmexpress:uuid:0".to_owned(),
            0xff => format!("{name}\0"),
            _ => name.to_owned(),
        }
    }
}

/// Text for a field of a fixed size.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Text {
    len: u8,
    last: u8,
}

impl Text {
    pub(super) fn text(self) -> String {
        let mut text = "x".repeat(usize::from(self.len));
        match self.last {
            0xf0.. => text.push(char::from(self.last)),
            0xe0.. => text.push(char::from(self.last & 31)),
            _ => {}
        }
        text
    }

    /// Longer than any field.
    pub(super) fn long(self) -> String {
        self.text().repeat(2)
    }
}
