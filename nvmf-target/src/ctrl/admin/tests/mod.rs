//! Tests of the admin commands, on controllers without a reactor.

mod ana;
mod conformance;
mod discovery;
mod feature;
mod identify;
mod log;
mod reservation;

use super::{Answer, Transfer, execute, transfer};
use crate::ctrl::Fault;
use crate::ctrl::testing::{HOST_ID, NN, Rig, nqn, nvm_subsystem, tcp_address};
use nvmf_proto::wire::log::ParameterLocation;
use nvmf_proto::wire::{AdminOpcode, Sqe, Status};
use proptest::prelude::*;

impl Rig {
    /// What a command answers: dword 0 and data, or why not. Both halves of it must agree, a field
    /// that is refused must be named, and every byte of the data must have been written: the
    /// command runs twice, over different rubbish. The host sends `sent`, and then zeroes.
    fn try_run(&self, sqe: &Sqe, sent: &[u8]) -> Result<(u64, Vec<u8>), Fault> {
        let run = |byte: u8| -> Result<(u64, Vec<u8>), Fault> {
            let mut data = match transfer(&self.cx(), sqe)? {
                Transfer::None => Vec::new(),
                Transfer::ToHost(len) => vec![byte; len as usize],
                Transfer::FromHost(len) => {
                    let mut data = sent.to_vec();
                    data.resize(len as usize, 0);
                    data
                }
            };
            let dw0 = match execute(&self.cx(), sqe, &mut data)? {
                Answer::Done(dw0) => dw0,
                // The rest is the reactor's.
                Answer::Settle(_) => 0,
            };
            Ok((u64::from(dw0), data))
        };
        let (first, second) = (run(0xa5), run(0x5a));
        match (&first, &second) {
            (Ok((dw0, data)), Ok((again, other))) => {
                assert_eq!((dw0, data.len()), (again, other.len()));
                let mut bytes = data.iter().zip(other);
                assert!(bytes.all(|pair| pair != (&0xa5, &0x5a)), "a byte was left");
            }
            (Err(fault), _) => {
                assert_eq!(second.as_ref(), Err(fault));
                let unnamed = fault.location == ParameterLocation::NONE;
                assert!(!unnamed || !fault.status.same_code(Status::INVALID_FIELD));
            }
            (Ok(_), Err(fault)) => panic!("{fault:?} at the second time"),
        }
        first
    }

    /// [`Rig::try_run`] of a command that takes no data, with the status of its failure.
    fn run(&self, sqe: &Sqe) -> Result<(u64, Vec<u8>), Status> {
        self.try_run(sqe, &[]).map_err(|fault| fault.status)
    }

    /// The status of a command.
    fn status(&self, sqe: &Sqe) -> Status {
        self.run(sqe).err().unwrap_or(Status::SUCCESS)
    }
}

#[test]
fn other_opcodes_are_invalid() {
    let known = [
        AdminOpcode::IDENTIFY.0,
        AdminOpcode::GET_LOG_PAGE.0,
        AdminOpcode::GET_FEATURES.0,
        AdminOpcode::SET_FEATURES.0,
    ];
    for rig in [Rig::nvm(), Rig::discovery()] {
        for opcode in (0..=u8::MAX).filter(|opcode| !known.contains(opcode)) {
            let status = rig.status(&Sqe::with_opcode(opcode));
            assert_eq!(status, Status::INVALID_OPCODE.dnr(), "{opcode:02x}h");
        }
    }
}

#[test]
fn a_buffer_that_is_too_short_is_no_panic() {
    let rig = Rig::nvm();
    for opcode in [AdminOpcode::IDENTIFY, AdminOpcode::GET_FEATURES] {
        let mut sqe = Sqe::with_opcode(opcode.0);
        let cdw10 = if opcode == AdminOpcode::IDENTIFY {
            1
        } else {
            0x81
        };
        sqe.set_cdw10_15([cdw10, 1, 0, 0, 0, 0]);
        let outcome = execute(&rig.cx(), &sqe, &mut [0; 15]);
        let expected = Fault::from(Status::DATA_SGL_LENGTH_INVALID.dnr());
        assert_eq!(outcome.err(), Some(expected));
    }
}

proptest! {
    /// Whatever a host sends: no panic, no byte of a buffer left unwritten, and what is refused
    /// for good says so.
    #[test]
    fn any_command_is_answered(
        discovery: bool,
        opcode in prop::sample::select(vec![0x02, 0x06, 0x09, 0x0a]),
        nsid in prop_oneof![0..5u32, NN - 1..NN + 2, u32::MAX - 2..=u32::MAX, any::<u32>()],
        // RAE is set: without it a log page changes by being read.
        cdw10 in prop_oneof![0..0x90u32, any::<u32>()],
        cdw11 in prop_oneof![0..0x10u32, any::<u32>()],
        cdw12 in prop_oneof![0..0x40u32, any::<u32>()],
        cdw13 in prop_oneof![Just(0u32), any::<u32>()],
        cdw14 in prop_oneof![Just(0u32), any::<u32>()],
    ) {
        let rig = if discovery { Rig::discovery() } else { Rig::nvm() };
        let mut sqe = Sqe::with_opcode(opcode);
        sqe.set_nsid(nsid);
        let mut cdw10 = if opcode == 0x02 { cdw10 | 0x8000 } else { cdw10 };
        if (opcode, cdw10 & 0xff) == (0x02, 0x0d) {
            // A reporting context can be established once.
            cdw10 &= !0x300;
        }
        sqe.set_cdw10_15([cdw10, cdw11, cdw12, cdw13, cdw14, 0]);
        if let Err(status) = rig.run(&sqe) {
            prop_assert!(status.is_dnr(), "{status}");
        }
    }
}
