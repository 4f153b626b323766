//! An I/O queue of a host that builds its PDUs itself: CIDs that are in use, data in capsules whose
//! data pointers say something else.

use super::command::Command;
use crate::rig;
use nvmf_host::Controller;
use nvmf_host::raw::{RawPdu, ReceivedPdu, Terms};
use nvmf_proto::wire::SglDescriptor;
use nvmf_proto::wire::fabrics::{ConnectCommand, ConnectData};
use nvmf_proto::wire::pdu::{COMMON_LEN, CommonHeader, InitConnection};
use nvmf_target::transport::{MemConnector, Stream};
use std::io::{IoSlice, IoSliceMut};

/// The queue that it is: the first is the other host's machine's.
const QID: u16 = 2;
/// Commands of a run at most: fewer than entries.
const COMMANDS: usize = 24;

/// Connects, sends everything, and checks that what comes back are PDUs of a controller.
pub(super) fn run(
    controller: &Controller,
    connector: &MemConnector,
    commands: &[Command],
    cids: u8,
) {
    let mut stream = connector.connect().expect("descriptors");
    let terms = Terms::default();
    let mut bytes = RawPdu::ic_req(&InitConnection::default()).bytes();
    bytes.extend(connect(controller));
    for (index, command) in commands.iter().take(COMMANDS).enumerate() {
        let (mut sqe, data) = command.capsule();
        let cid = index % (1 + usize::from(cids % 32));
        sqe.set_cid(u16::try_from(cid).unwrap_or(u16::MAX));
        bytes.extend(RawPdu::capsule(&sqe, &data, terms).bytes());
    }
    let mut sent = 0;
    let mut received = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        // Less is taken than there is, or an error, when the target does not read any more.
        let n = stream.writev(&[IoSlice::new(&bytes[sent..])]).unwrap_or(0);
        sent += n;
        rig::settle();
        match stream.readv(&mut [IoSliceMut::new(&mut buffer)]) {
            Ok(0) => break,
            Ok(n) => received.extend(&buffer[..n]),
            Err(_) if n == 0 => break,
            Err(_) => {}
        }
    }
    check(&received, terms);
}

fn connect(controller: &Controller) -> Vec<u8> {
    let options = controller.options();
    let mut sqe = ConnectCommand {
        qid: QID,
        sqsize: 31,
        ..ConnectCommand::default()
    }
    .to_sqe();
    sqe.set_sgl(SglDescriptor::in_capsule(1024));
    let mut data = [0; ConnectData::SIZE];
    ConnectData {
        hostid: options.host_id,
        cntlid: controller.cntlid(),
        subnqn: options.subsystem.to_field(),
        hostnqn: options.host.to_field(),
    }
    .encode(&mut data);
    RawPdu::capsule(&sqe, &data, Terms::default()).bytes()
}

/// Whole PDUs without a flaw, the last one perhaps not whole.
fn check(mut bytes: &[u8], terms: Terms) {
    while let Some(first) = bytes.first_chunk::<COMMON_LEN>() {
        let common = CommonHeader::decode(first);
        let Some((pdu, rest)) = bytes.split_at_checked(common.plen as usize) else {
            return;
        };
        assert!(!pdu.is_empty(), "{common:?}");
        let pdu = ReceivedPdu {
            common,
            bytes: pdu.to_vec(),
        };
        assert_eq!(pdu.flaw(terms), None, "{common:?}");
        bytes = rest;
    }
}
