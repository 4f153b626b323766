//! Namespace Write Protection Config (NVMe Base 2.1, FID 84h and Namespace Write Protection).

use crate::ctrl::Fault;
use crate::ctrl::admin::{AdminCx, Answer, Settle};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::feature::WriteProtectState;
use nvmf_proto::wire::identify::NSID_BROADCAST;

/// NWPC of Identify Controller: Write Protect, and Write Protect Until Power Cycle. That ends with
/// the target, which is all that a target can promise: Permanent Write Protect is not offered.
pub(in crate::ctrl::admin) const NWPC: u8 = 0b011;

/// The state of a namespace, 0 if it is gone.
pub(super) fn current(cx: &AdminCx<'_>, nsid: u32) -> u32 {
    let view = cx.controller.view();
    let state = view.get(nsid).map(|seen| seen.entry.write_protect);
    u32::from(state.unwrap_or_default().0)
}

/// Protects a namespace, or all that the controller sees. Nothing passes the checks of writes from
/// then on; the command ends when what has passed them before is done and flushed.
pub(super) fn set(cx: &AdminCx<'_>, nsid: u32, cdw11: u32) -> Result<Answer, Fault> {
    let wanted = u8::try_from(cdw11).map(WriteProtectState);
    let wanted = wanted.map_err(|_| Fault::cdw(11, 0))?;
    if wanted.0 > WriteProtectState::UNTIL_POWER_CYCLE.0 {
        return Err(Fault::cdw(11, 0));
    }
    let view = cx.controller.view();
    let nsids: Vec<u32> = view
        .iter()
        .map(|seen| seen.entry.nsid)
        .filter(|&visible| nsid == visible || nsid == NSID_BROADCAST)
        .collect();
    let changed = cx
        .subsystem()
        .set_write_protect(cx.controller.cntlid, &nsids, wanted)
        .ok_or(Status::FEATURE_NOT_CHANGEABLE.dnr())?;
    if wanted == WriteProtectState::NONE {
        return Ok(Answer::Done(0));
    }
    // A flush that fails fails the command; the namespace stays protected, where nothing is lost.
    Ok(Answer::Settle(Settle {
        namespaces: changed,
        fence: true,
    }))
}
