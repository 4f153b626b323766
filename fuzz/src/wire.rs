//! Any bytes into every wire structure: what is decoded, encoded and decoded again is the same.
//!
//! Input: the structures' bytes; what is missing is zero.

use nvmf_proto::wire::discovery::{DiscoveryLogEntry, DiscoveryLogHeader};
use nvmf_proto::wire::dsm::{DsmCommand, DsmRange};
use nvmf_proto::wire::fabrics::{
    ConnectCommand, ConnectData, ConnectResponse, InvalidParameter, PropertyGet, PropertySet,
};
use nvmf_proto::wire::feature::{GetFeatures, SetFeatures};
use nvmf_proto::wire::identify::{
    IdentifyCommand, IdentifyController, IdentifyControllerNvm, IdentifyNamespace,
    IdentifyNamespaceIndependent, IdentifyNamespaceNvm, NsIdDescriptors, PowerState,
};
use nvmf_proto::wire::log::{
    AsyncEvent, CommandEffectsLog, ErrorLogEntry, FirmwareSlotLog, GetLogPage, SmartLog,
    SupportedLogPages,
};
use nvmf_proto::wire::nqn::{Escaped, Nqn};
use nvmf_proto::wire::pdu::{
    CommonHeader, DataHeader, InitConnection, PduType, TermReq, capsule_cqe, capsule_sqe,
    encode_capsule_cmd, encode_capsule_resp,
};
use nvmf_proto::wire::{Cqe, SglDescriptor, Sqe, trimmed_text};

/// The first bytes of `data`, filled up with zeros.
fn take<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let n = data.len().min(N);
    bytes[..n].copy_from_slice(&data[..n]);
    bytes
}

/// Structures that encode into a buffer of their size.
macro_rules! structures {
    ($data:expr, $($name:ident)+) => {$({
        let decoded = $name::decode(&take($data));
        let mut bytes = [0xa5; $name::SIZE];
        decoded.encode(&mut bytes);
        assert_eq!($name::decode(&bytes), decoded);
    })+};
}

/// Commands that encode into an SQE.
macro_rules! commands {
    ($sqe:expr, $($name:ident)+) => {$({
        let decoded = $name::decode($sqe);
        let mut sqe = Sqe::default();
        decoded.encode(&mut sqe);
        assert_eq!($name::decode(&sqe), decoded);
    })+};
}

/// Runs one input.
///
/// # Panics
///
/// On a finding.
pub fn run(data: &[u8]) {
    structures!(data,
        ConnectData DiscoveryLogHeader DiscoveryLogEntry
        IdentifyController IdentifyControllerNvm PowerState
        IdentifyNamespace IdentifyNamespaceNvm IdentifyNamespaceIndependent
        SmartLog ErrorLogEntry FirmwareSlotLog CommandEffectsLog SupportedLogPages
    );
    let sqe = Sqe(take(data));
    commands!(&sqe, DsmCommand GetFeatures SetFeatures IdentifyCommand GetLogPage);
    assert_eq!(
        ConnectCommand::decode(&ConnectCommand::decode(&sqe).to_sqe()),
        ConnectCommand::decode(&sqe)
    );
    let get = PropertyGet::decode(&sqe);
    assert_eq!(PropertyGet::decode(&get.to_sqe()), get);
    let set = PropertySet::decode(&sqe);
    assert_eq!(PropertySet::decode(&set.to_sqe()), set);
    pdus(data);
    dwords(u32::from_le_bytes(take(data)));
    lists(data);
    names(data);
}

fn pdus(data: &[u8]) {
    let ch = CommonHeader::decode(&take(data));
    let mut bytes = [0; 8];
    ch.encode(&mut bytes);
    assert_eq!(bytes, take(data), "every bit of a common header is kept");
    let command: [u8; 72] = take(data);
    assert_eq!(
        encode_capsule_cmd(&ch, &capsule_sqe(&command)),
        command,
        "every bit of a command is kept"
    );
    // Bit 112 of a CQE is the phase tag, which has no place on a fabric.
    let cqe = capsule_cqe(&take(data));
    assert_eq!(capsule_cqe(&encode_capsule_resp(&ch, &cqe)), cqe);
    assert_eq!(Cqe::decode(&cqe.encode()), cqe);
    let header = DataHeader::decode(&take(data));
    assert_eq!(DataHeader::decode(&header.encode(&ch)), header);
    let ic = InitConnection::decode(&take(data));
    assert_eq!(InitConnection::decode(&ic.encode(PduType::IC_REQ)), ic);
    let term = TermReq::decode(&take(data));
    assert_eq!(
        TermReq::decode(&term.encode(PduType::H2C_TERM_REQ, 0)),
        term
    );
    let sgl = SglDescriptor::decode(&take(data));
    assert_eq!(SglDescriptor::decode(&sgl.encode()), sgl);
    let range = DsmRange::decode(&take(data));
    assert_eq!(DsmRange::decode(&range.encode()), range);
}

fn dwords(dw0: u32) {
    assert_eq!(ConnectResponse::from_dw0(dw0).dw0(), dw0);
    let invalid = InvalidParameter::from_dw0(dw0);
    assert_eq!(InvalidParameter::from_dw0(invalid.dw0()), invalid);
    let event = AsyncEvent::from_dw0(dw0);
    assert_eq!(AsyncEvent::from_dw0(event.dw0()), event);
}

fn lists(data: &[u8]) {
    assert_eq!(
        DsmRange::decode_all(data).count(),
        data.len() / DsmRange::SIZE
    );
    if let Ok(descriptors) = NsIdDescriptors::decode(&take(data)) {
        let mut bytes = [0xa5; 4096];
        descriptors.encode(&mut bytes);
        assert_eq!(NsIdDescriptors::decode(&bytes), Ok(descriptors));
    }
}

fn names(data: &[u8]) {
    let field = take(data);
    if let Ok(name) = Nqn::from_field(&field) {
        assert_eq!(Nqn::from_field(&name.to_field()), Ok(name.clone()));
        // A name that came from a peer ends up in logs.
        assert!(name.to_string().chars().all(|c| !c.is_control()), "{name}");
    }
    if let Ok(text) = core::str::from_utf8(data)
        && let Ok(name) = Nqn::new(text)
    {
        assert_eq!(name.as_str(), text);
    }
    assert!(Escaped(data).to_string().chars().all(|c| !c.is_control()));
    assert!(trimmed_text(data).len() <= 3 * data.len());
}
