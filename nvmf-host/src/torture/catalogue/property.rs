//! Properties and other Fabrics commands of an admin queue.

use super::{ANY, At, Case, Command, Facts, INVALID_FIELD, OPCODE, Play, Want, byte, case};
use crate::torture::scene::{get_property, set_cc, with_sgl};
use nvmf_proto::wire::fabrics::{FabricsType, PropertyGet, PropertySet, PropertySize};
use nvmf_proto::wire::property::{Cc, PropertyOffset};
use nvmf_proto::wire::{SglDescriptor, Sqe};

const PROPERTY: &str = "NVMe Base 2.1, Property Get and Property Set commands";
const REGISTERS: &str = "NVMe Base 2.1, controller properties";
/// What may be believed without harm.
pub(super) const LENIENT: &[Want] = &[Want::Error, Want::End, Want::Success];

/// A command of an admin queue; of [`PROPERTY`], if it has no other source.
pub(super) const fn lie(
    name: &'static str,
    scenarios: &'static [u8],
    sends: &'static str,
    at: At,
    command: fn(&Facts) -> Command,
    conforms: &'static [Want],
) -> Case {
    case(name, scenarios, sends, at, Play::Command(command), conforms)
        .source(PROPERTY)
        .tolerates(ANY)
}

fn get(offset: u32, size: u8) -> Command {
    let (size, offset) = (PropertySize(size), PropertyOffset(offset));
    (PropertyGet { size, offset }.to_sqe(), Vec::new())
}

fn set(offset: u32, size: u8, value: u64) -> Command {
    let (size, offset) = (PropertySize(size), PropertyOffset(offset));
    (
        PropertySet {
            size,
            offset,
            value,
        }
        .to_sqe(),
        Vec::new(),
    )
}

fn cc(cc: Cc) -> Command {
    (set_cc(cc), Vec::new())
}

/// A command that reads, with an SGL of `length` bytes.
pub(super) fn to_host(sqe: Sqe, length: u32) -> Command {
    (with_sgl(sqe, SglDescriptor::transport(length)), Vec::new())
}

pub(super) const CASES: &[Case] = &[
    lie(
        "property/get-of-nothing",
        &[51],
        "Property Get of offset FFFCh",
        At::Admin,
        |_| get(0xfffc, 0),
        &[INVALID_FIELD],
    ),
    lie(
        "property/get-offset-max",
        &[51],
        "Property Get of offset FFFFFFFFh",
        At::Admin,
        |_| get(u32::MAX, 0),
        &[INVALID_FIELD],
    ),
    lie(
        "property/get-unaligned",
        &[51],
        "Property Get of offset 1",
        At::Admin,
        |_| get(1, 0),
        &[INVALID_FIELD],
    ),
    lie(
        "property/get-half",
        &[51],
        "Property Get of 4 bytes of CAP",
        At::Admin,
        |_| get(0, 0),
        &[INVALID_FIELD],
    )
    .tolerates(LENIENT),
    lie(
        "property/get-double",
        &[51],
        "Property Get of 8 bytes of VS",
        At::Admin,
        |_| get(8, 1),
        &[INVALID_FIELD],
    )
    .tolerates(LENIENT),
    lie(
        "property/get-size-reserved",
        &[51],
        "Property Get of size 7",
        At::Admin,
        |_| get(0, 7),
        &[INVALID_FIELD],
    )
    .tolerates(LENIENT),
    lie(
        "property/set-read-only",
        &[51],
        "Property Set of CAP",
        At::Admin,
        |_| set(0, 1, u64::MAX),
        &[INVALID_FIELD],
    ),
    lie(
        "property/set-csts",
        &[51],
        "Property Set of 1 to all bits of CSTS",
        At::Admin,
        |_| set(0x1c, 0, u64::MAX),
        &[INVALID_FIELD, Want::Success],
    ),
    lie(
        "property/set-of-nothing",
        &[51],
        "Property Set of offset FFFCh",
        At::Admin,
        |_| set(0xfffc, 0, 1),
        &[INVALID_FIELD],
    ),
    lie(
        "property/set-8-of-cc",
        &[51],
        "Property Set of 8 bytes at CC",
        At::Admin,
        |_| set(0x14, 1, u64::MAX),
        &[INVALID_FIELD],
    )
    .tolerates(LENIENT),
    lie(
        "property/with-data",
        &[51],
        "Property Get with data in its capsule",
        At::Admin,
        |_| (get_property(PropertyOffset::CAP, 8), vec![0; 64]),
        &[INVALID_FIELD, Want::Success],
    ),
    lie(
        "property/cc-all-ones",
        &[41, 51],
        "CC of all ones",
        At::Disabled,
        |_| cc(Cc(u32::MAX)),
        &[INVALID_FIELD],
    )
    .source(REGISTERS)
    .tolerates(LENIENT),
    lie(
        "property/cc-mps",
        &[41],
        "CC.EN with MPS 15",
        At::Disabled,
        |_| {
            cc(Cc(0)
                .with_en(true)
                .with_mps(15)
                .with_iosqes(6)
                .with_iocqes(4))
        },
        &[INVALID_FIELD],
    )
    .source(REGISTERS)
    .tolerates(LENIENT),
    lie(
        "property/cc-css",
        &[41],
        "CC.EN with a reserved CSS",
        At::Disabled,
        |_| {
            cc(Cc(0)
                .with_en(true)
                .with_css(3)
                .with_iosqes(6)
                .with_iocqes(4))
        },
        &[INVALID_FIELD],
    )
    .source(REGISTERS)
    .tolerates(LENIENT),
    lie(
        "property/cc-entry-sizes",
        &[41],
        "CC.EN with entries of 32 KiB",
        At::Disabled,
        |_| cc(Cc(0).with_en(true).with_iosqes(15).with_iocqes(15)),
        &[INVALID_FIELD],
    )
    .source(REGISTERS)
    .tolerates(LENIENT),
    lie(
        "property/cc-ams",
        &[41],
        "CC.EN with a vendor's arbitration",
        At::Disabled,
        |_| {
            cc(Cc(0)
                .with_en(true)
                .with_ams(7)
                .with_iosqes(6)
                .with_iocqes(4))
        },
        &[INVALID_FIELD],
    )
    .source(REGISTERS)
    .tolerates(LENIENT),
    lie(
        "fabrics/unknown",
        &[41],
        "Fabrics command of type 7Fh",
        At::Admin,
        |_| byte(FabricsType::PROPERTY_GET.sqe(), 4, 0x7f),
        OPCODE,
    ),
    lie(
        "fabrics/auth-receive",
        &[52],
        "Authentication Receive of 16 bytes though none is asked for",
        At::Admin,
        |_| to_host(FabricsType::AUTHENTICATION_RECEIVE.sqe(), 16),
        &[Want::Error],
    )
    .source("NVMe Base 2.1, in-band authentication"),
    lie(
        "fabrics/auth-send",
        &[52],
        "Authentication Send of 7 bytes though none is asked for",
        At::Admin,
        |_| {
            let sqe = FabricsType::AUTHENTICATION_SEND.sqe();
            (with_sgl(sqe, SglDescriptor::in_capsule(7)), vec![0xff; 7])
        },
        &[Want::Error],
    )
    .source("NVMe Base 2.1, in-band authentication"),
];
