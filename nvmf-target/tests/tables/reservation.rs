//! Reservations as the specification's tables have them (NVMe Base 2.1 §8.1.22), as data: walked by
//! the unit tests of the state machine and by hosts over a transport.

/// What a host is to a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Holder,
    Registrant,
    Stranger,
}

/// A group of commands: a column of [`ACCESS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Read,
    Write,
    Acquire,
    Preempt,
    PreemptAndAbort,
    Release,
    Register,
    Report,
}

pub(crate) const GROUPS: [Group; 8] = [
    Group::Read,
    Group::Write,
    Group::Acquire,
    Group::Preempt,
    Group::PreemptAndAbort,
    Group::Release,
    Group::Register,
    Group::Report,
];

/// Command Behavior in the Presence of a Reservation: RTYPE, who, and for each of [`GROUPS`] whether
/// it is allowed (A) or ends with Reservation Conflict (C). Acquire is of the same type as what is
/// held. With types 5h and 6h every registrant is a holder.
pub(crate) const ACCESS: [(u8, Role, &str); 16] = [
    (1, Role::Holder, "AAAAAAAA"),
    (1, Role::Registrant, "ACCAAAAA"),
    (1, Role::Stranger, "ACCCCCAA"),
    (2, Role::Holder, "AAAAAAAA"),
    (2, Role::Registrant, "CCCAAAAA"),
    (2, Role::Stranger, "CCCCCCAA"),
    (3, Role::Holder, "AAAAAAAA"),
    (3, Role::Registrant, "AACAAAAA"),
    (3, Role::Stranger, "ACCCCCAA"),
    (4, Role::Holder, "AAAAAAAA"),
    (4, Role::Registrant, "AACAAAAA"),
    (4, Role::Stranger, "CCCCCCAA"),
    (5, Role::Holder, "AAAAAAAA"),
    (5, Role::Stranger, "ACCCCCAA"),
    (6, Role::Holder, "AAAAAAAA"),
    (6, Role::Stranger, "CCCCCCAA"),
];

/// A status in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    Success,
    Conflict,
    InvalidField,
}

/// Which key a command gives as CRKEY or NRKEY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// The one that the host is registered with; if it is not, some key.
    Own,
    Other,
    Zero,
}

pub(crate) const KEYS: [Key; 3] = [Key::Own, Key::Other, Key::Zero];

/// A row of [`REGISTER`].
pub(crate) type RegisterRow = (
    Option<bool>,
    u8,
    Option<bool>,
    Option<Key>,
    Option<Key>,
    Is,
    After,
);

/// Reservation Register: whether the host is registered, RREGA, IEKEY, CRKEY, NRKEY (`None`:
/// whichever), the status, and the key that the host has then. Every combination is in one row.
#[rustfmt::skip]
pub(crate) const REGISTER: [RegisterRow; 21] = [
    (Some(false), 0, None, None, Some(Key::Own), Is::Success, After::New),
    (Some(false), 0, None, None, Some(Key::Other), Is::Success, After::New),
    (Some(true), 0, None, None, Some(Key::Own), Is::Success, After::Unchanged),
    (Some(true), 0, None, None, Some(Key::Other), Is::Conflict, After::Unchanged),
    (None, 0, None, None, Some(Key::Zero), Is::InvalidField, After::Unchanged),
    (Some(false), 1, None, None, None, Is::Conflict, After::Unchanged),
    (Some(true), 1, Some(true), None, None, Is::Success, After::Gone),
    (Some(true), 1, Some(false), Some(Key::Own), None, Is::Success, After::Gone),
    (Some(true), 1, Some(false), Some(Key::Other), None, Is::Conflict, After::Unchanged),
    (Some(true), 1, Some(false), Some(Key::Zero), None, Is::Conflict, After::Unchanged),
    (None, 2, Some(true), None, Some(Key::Own), Is::Success, After::New),
    (None, 2, Some(true), None, Some(Key::Other), Is::Success, After::New),
    (None, 2, None, None, Some(Key::Zero), Is::InvalidField, After::Unchanged),
    (Some(false), 2, Some(false), None, Some(Key::Own), Is::Conflict, After::Unchanged),
    (Some(false), 2, Some(false), None, Some(Key::Other), Is::Conflict, After::Unchanged),
    (Some(true), 2, Some(false), Some(Key::Own), Some(Key::Own), Is::Success, After::New),
    (Some(true), 2, Some(false), Some(Key::Own), Some(Key::Other), Is::Success, After::New),
    (Some(true), 2, Some(false), Some(Key::Other), Some(Key::Own), Is::Conflict, After::Unchanged),
    (Some(true), 2, Some(false), Some(Key::Other), Some(Key::Other), Is::Conflict, After::Unchanged),
    (Some(true), 2, Some(false), Some(Key::Zero), Some(Key::Own), Is::Conflict, After::Unchanged),
    (Some(true), 2, Some(false), Some(Key::Zero), Some(Key::Other), Is::Conflict, After::Unchanged),
];

/// The one row of [`REGISTER`] that a command is in; actions that do not exist have none.
pub(crate) fn register_row(
    registered: bool,
    action: u8,
    iekey: bool,
    crkey: Key,
    nrkey: Key,
) -> (Is, After) {
    let fits = |row: &&RegisterRow| {
        row.0.is_none_or(|r| r == registered)
            && row.1 == action
            && row.2.is_none_or(|i| i == iekey)
            && row.3.is_none_or(|c| c == crkey)
            && row.4.is_none_or(|n| n == nrkey)
    };
    let rows: Vec<_> = REGISTER.iter().filter(fits).collect();
    match rows[..] {
        [(.., is, after)] => (*is, *after),
        [] if action > 2 => (Is::InvalidField, After::Unchanged),
        _ => panic!("rows for {registered} {action} {iekey} {crkey:?} {nrkey:?}"),
    }
}

/// What a Reservation Register leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Unchanged,
    /// NRKEY.
    New,
    Gone,
}

/// What is held, as seen by the host that sends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    Nothing,
    /// The host holds type 1h.
    Own,
    /// Another host holds type 1h.
    Others,
    /// All registrants hold type 5h.
    All,
}

pub(crate) const HOLDINGS: [Holding; 4] = [
    Holding::Nothing,
    Holding::Own,
    Holding::Others,
    Holding::All,
];

/// Reservation Acquire with RACQA 0h by a registrant with its key: what is held, RTYPE, the status.
pub(crate) const ACQUIRE: [(Holding, u8, Is); 12] = [
    (Holding::Nothing, 1, Is::Success),
    (Holding::Nothing, 5, Is::Success),
    (Holding::Nothing, 6, Is::Success),
    (Holding::Own, 1, Is::Success),
    (Holding::Own, 5, Is::Conflict),
    (Holding::Own, 6, Is::Conflict),
    (Holding::Others, 1, Is::Conflict),
    (Holding::Others, 5, Is::Conflict),
    (Holding::Others, 6, Is::Conflict),
    (Holding::All, 1, Is::Conflict),
    (Holding::All, 5, Is::Success),
    (Holding::All, 6, Is::Conflict),
];

/// Whose key PRKEY of a Preempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prkey {
    Own,
    /// Of the other host, which is the holder with [`Holding::Others`].
    Other,
    /// Of a third registrant, which is never the only holder.
    Third,
    Nobody,
    Zero,
}

/// What a Preempt, or a Preempt and Abort, with RTYPE 2h leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preempted {
    /// Registered afterwards: the host itself, the other, the third.
    pub(crate) registered: [bool; 3],
    /// The host holds a reservation of type 2h; else what was held is held.
    pub(crate) taken: bool,
}

const fn left(own: bool, other: bool, third: bool, taken: bool) -> Preempted {
    Preempted {
        registered: [own, other, third],
        taken,
    }
}

/// Preempt by a registrant with its key, where two others are registered: what is held, PRKEY, the
/// status, what is left.
pub(crate) const PREEMPT: [(Holding, Prkey, Is, Preempted); 20] = {
    use Is::{Conflict, InvalidField, Success};
    let all = left(true, true, true, false);
    [
        (
            Holding::Nothing,
            Prkey::Own,
            Success,
            left(false, true, true, false),
        ),
        (
            Holding::Nothing,
            Prkey::Other,
            Success,
            left(true, false, true, false),
        ),
        (
            Holding::Nothing,
            Prkey::Third,
            Success,
            left(true, true, false, false),
        ),
        (Holding::Nothing, Prkey::Nobody, Success, all),
        (Holding::Nothing, Prkey::Zero, Success, all),
        (
            Holding::Own,
            Prkey::Own,
            Success,
            left(true, true, true, true),
        ),
        (
            Holding::Own,
            Prkey::Other,
            Success,
            left(true, false, true, false),
        ),
        (
            Holding::Own,
            Prkey::Third,
            Success,
            left(true, true, false, false),
        ),
        (Holding::Own, Prkey::Nobody, Success, all),
        (Holding::Own, Prkey::Zero, InvalidField, all),
        (
            Holding::Others,
            Prkey::Own,
            Success,
            left(false, true, true, false),
        ),
        (
            Holding::Others,
            Prkey::Other,
            Success,
            left(true, false, true, true),
        ),
        (
            Holding::Others,
            Prkey::Third,
            Success,
            left(true, true, false, false),
        ),
        (Holding::Others, Prkey::Nobody, Success, all),
        (Holding::Others, Prkey::Zero, InvalidField, all),
        (
            Holding::All,
            Prkey::Own,
            Success,
            left(false, true, true, false),
        ),
        (
            Holding::All,
            Prkey::Other,
            Success,
            left(true, false, true, false),
        ),
        (
            Holding::All,
            Prkey::Third,
            Success,
            left(true, true, false, false),
        ),
        (Holding::All, Prkey::Nobody, Conflict, all),
        (
            Holding::All,
            Prkey::Zero,
            Success,
            left(true, false, false, true),
        ),
    ]
};

/// Reservation Release with RRELA 0h by a registrant with its key: what is held, RTYPE, the status,
/// and whether anything is held afterwards.
pub(crate) const RELEASE: [(Holding, u8, Is, bool); 8] = [
    (Holding::Nothing, 1, Is::Success, false),
    (Holding::Nothing, 5, Is::Success, false),
    (Holding::Own, 1, Is::Success, false),
    (Holding::Own, 5, Is::InvalidField, true),
    (Holding::Others, 1, Is::Success, true),
    (Holding::Others, 5, Is::Success, true),
    (Holding::All, 1, Is::InvalidField, true),
    (Holding::All, 5, Is::Success, false),
];
