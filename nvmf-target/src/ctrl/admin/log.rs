//! Get Log Page (NVMe Base 2.1, Get Log Page command).

use super::discovery::DiscoveryLog;
use super::persistent::Window;
use super::{AdminCx, Fault, Kind, Transfer, ana, feature, persistent, reservation};
use crate::ctrl::controller::ErrorLog;
use nvmf_proto::wire::discovery::DiscoveryLsp;
use nvmf_proto::wire::identify::{Csi, IDENTIFY_SIZE, NSID_BROADCAST};
use nvmf_proto::wire::log::{
    AnaLsp, CommandEffects, CommandEffectsLog, FirmwareSlotLog, GetLogPage, Lid, LidSupport,
    ParameterLocation, SmartLog, SupportedLogPages, encode_changed_namespaces,
};
use nvmf_proto::wire::reservation::ReservationNotificationLog;
use nvmf_proto::wire::{AdminOpcode, NvmOpcode, Sqe, Status};

/// Bytes of the Feature Identifiers Supported and Effects log page.
const FEATURE_EFFECTS_SIZE: usize = 1024;

/// Bytes of the NVMe-MI Commands Supported and Effects log page.
const NVME_MI_EFFECTS_SIZE: usize = 4096;

pub(super) fn transfer(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<Transfer, Fault> {
    asked(cx, sqe).map(|(_, transfer)| transfer)
}

/// The command, once everything about it is found to be right, and what it moves.
fn asked(cx: &AdminCx<'_>, sqe: &Sqe) -> Result<(GetLogPage, Transfer), Fault> {
    let get = GetLogPage::decode(sqe);
    let mut size = size(cx, get.lid).ok_or(Status::INVALID_LOG_PAGE.dnr())?;
    // Pages are of the controller or the subsystem, but for SMART, which namespaces have, too.
    match (get.lid, sqe.nsid()) {
        (_, 0 | NSID_BROADCAST) => {}
        (Lid::SMART, nsid) => {
            cx.namespace(nsid)?.ok_or(Fault::nsid())?;
        }
        _ => return Err(Fault::nsid()),
    }
    // No page has an index for offsets of that type.
    if get.ot {
        return Err(Fault::cdw(14, 23));
    }
    if get.lid == Lid::COMMAND_EFFECTS && get.csi != Csi::NVM {
        let status = Status::INVALID_IO_COMMAND_SET.dnr();
        return Err(Fault::new(status, ParameterLocation::cdw(14, 24)));
    }
    if get.lid == Lid::PERSISTENT_EVENT {
        let first = GetLogPage { lpo: 0, ..get };
        match persistent::asked(cx, &get)? {
            Window::Nothing => return Ok((first, nothing(cx, &get, sqe))),
            Window::Header => return Ok((first, Transfer::ToHost(512))),
            Window::Of(bytes) => size = bytes,
        }
    }
    // Offsets are dwords up to the end of the page.
    if !get.lpo.is_multiple_of(4) || get.lpo > size {
        return Err(Fault::cdw(12, 0));
    }
    // Lengths that are not whole structures are as good as others.
    let length = u32::try_from(get.length())
        .ok()
        .filter(|&length| length <= cx.controller.limits.max_transfer)
        .ok_or(Fault::cdw(10, 16))?;
    Ok((get, Transfer::ToHost(length)))
}

/// A page without contents: zeroes, if the host has room for them. One that offers room for data may
/// not take it well if none comes.
fn nothing(cx: &AdminCx<'_>, get: &GetLogPage, sqe: &Sqe) -> Transfer {
    let asked = u32::try_from(get.length()).unwrap_or(u32::MAX);
    let most = asked.min(cx.controller.limits.max_transfer);
    match most.min(sqe.sgl().length) {
        0 => Transfer::None,
        length => Transfer::ToHost(length),
    }
}

/// The size of a log page in bytes, if the controller has it.
fn size(cx: &AdminCx<'_>, lid: Lid) -> Option<u64> {
    let size = match (cx.kind(), lid) {
        (_, Lid::SUPPORTED_LOG_PAGES) => SupportedLogPages::SIZE,
        (_, Lid::ERROR_INFORMATION) => ErrorLog::SIZE,
        (Kind::Nvm, Lid::SMART) => SmartLog::SIZE,
        (Kind::Nvm, Lid::FIRMWARE_SLOT) => FirmwareSlotLog::SIZE,
        (Kind::Nvm, Lid::CHANGED_NAMESPACES) => IDENTIFY_SIZE,
        (Kind::Nvm, Lid::ANA) => return u64::try_from(ana::log(cx, false).len()).ok(),
        (Kind::Nvm, Lid::COMMAND_EFFECTS) => CommandEffectsLog::SIZE,
        (Kind::Nvm, Lid::PERSISTENT_EVENT) => persistent::length(cx),
        (Kind::Nvm, Lid::FEATURE_EFFECTS) => FEATURE_EFFECTS_SIZE,
        (Kind::Nvm, Lid::RESERVATION_NOTIFICATION) => ReservationNotificationLog::SIZE,
        (Kind::Nvm, Lid::NVME_MI_EFFECTS) => NVME_MI_EFFECTS_SIZE,
        (Kind::Discovery, Lid::DISCOVERY) => {
            return Some(DiscoveryLog::new(cx, DiscoveryLsp::empty()).size());
        }
        _ => return None,
    };
    u64::try_from(size).ok()
}

pub(super) fn read(cx: &AdminCx<'_>, sqe: &Sqe, out: &mut [u8]) -> Result<(), Fault> {
    let (get, _) = asked(cx, sqe)?;
    if !get.rae {
        // Before the page is made: what happens from now on raises the event again, whether this
        // read shows it or not.
        cx.controller.clear_event(get.lid);
    }
    match get.lid {
        Lid::DISCOVERY => {
            let lsp = DiscoveryLsp::from_bits_retain(get.lsp);
            DiscoveryLog::new(cx, lsp).read(get.lpo, out);
        }
        Lid::SUPPORTED_LOG_PAGES => {
            let mut page = [0; SupportedLogPages::SIZE];
            supported(cx).encode(&mut page);
            copy(&page, get.lpo, out);
        }
        Lid::ERROR_INFORMATION => copy(&cx.controller.errors.page(), get.lpo, out),
        Lid::SMART => {
            let mut page = [0; SmartLog::SIZE];
            let smart = match cx.namespace(sqe.nsid()) {
                Ok(Some(entry)) => cx.controller.smart_of(&entry),
                _ => cx.controller.smart(),
            };
            smart.encode(&mut page);
            copy(&page, get.lpo, out);
        }
        Lid::FIRMWARE_SLOT => {
            let mut page = [0; FirmwareSlotLog::SIZE];
            firmware(cx).encode(&mut page);
            copy(&page, get.lpo, out);
        }
        Lid::CHANGED_NAMESPACES => {
            let mut page = [0; IDENTIFY_SIZE];
            changed_namespaces(cx, &get, &mut page);
            copy(&page, get.lpo, out);
        }
        Lid::ANA => {
            let groups_only = AnaLsp::from_bits_retain(get.lsp).contains(AnaLsp::GROUPS_ONLY);
            copy(&ana::log(cx, groups_only), get.lpo, out);
        }
        Lid::COMMAND_EFFECTS => {
            let mut page = [0; CommandEffectsLog::SIZE];
            effects().encode(&mut page);
            copy(&page, get.lpo, out);
        }
        Lid::PERSISTENT_EVENT => copy(&persistent::page(cx, &get), get.lpo, out),
        Lid::FEATURE_EFFECTS => copy(&feature_effects(cx), get.lpo, out),
        Lid::RESERVATION_NOTIFICATION => copy(&reservation::notification(cx), get.lpo, out),
        // No NVMe-MI command is supported.
        _ => out.fill(0),
    }
    Ok(())
}

/// The part of a page from an offset on, and zeroes beyond its end.
fn copy(page: &[u8], lpo: u64, out: &mut [u8]) {
    let rest = usize::try_from(lpo)
        .ok()
        .and_then(|at| page.get(at..))
        .unwrap_or_default();
    let (head, beyond) = out.split_at_mut(rest.len().min(out.len()));
    head.copy_from_slice(&rest[..head.len()]);
    beyond.fill(0);
}

fn supported(cx: &AdminCx<'_>) -> SupportedLogPages {
    let mut pages = SupportedLogPages::default();
    for lid in (0..=u8::MAX)
        .map(Lid)
        .filter(|lid| size(cx, *lid).is_some())
    {
        pages.set(lid, LidSupport::SUPPORTED);
    }
    if size(cx, Lid::PERSISTENT_EVENT).is_some() {
        let support = LidSupport::SUPPORTED | LidSupport::ESTABLISH_HEADER;
        pages.set(Lid::PERSISTENT_EVENT, support);
    }
    if size(cx, Lid::DISCOVERY).is_some() {
        let support = LidSupport::SUPPORTED | LidSupport::PORT_LOCAL_ENTRIES;
        pages.set(Lid::DISCOVERY, support);
    }
    pages
}

fn firmware(cx: &AdminCx<'_>) -> FirmwareSlotLog {
    let mut log = FirmwareSlotLog {
        afi: 1,
        ..FirmwareSlotLog::default()
    };
    log.revisions[0] = cx.subsystem().firmware();
    log
}

/// With RAE cleared the list starts anew, but only by a read that reaches its last NSID: a host
/// that reads in parts without setting RAE would otherwise lose the rest.
fn changed_namespaces(cx: &AdminCx<'_>, get: &GetLogPage, page: &mut [u8; IDENTIFY_SIZE]) {
    let reached = get.lpo.saturating_add(get.length()) / 4;
    let release = usize::try_from(reached).ok().filter(|_| !get.rae);
    encode_changed_namespaces(cx.controller.changed_namespaces(release), page);
}

fn effects() -> CommandEffectsLog {
    let controller = CommandEffects::SUPPORTED | CommandEffects::SCOPE_CONTROLLER;
    // Without a scope: Linux calls I/O commands that state one unusual, and their scope is plain.
    let io = CommandEffects::SUPPORTED;
    let mut log = CommandEffectsLog::default();
    for opcode in [
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::IDENTIFY,
        AdminOpcode::ABORT,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNC_EVENT_REQUEST,
        AdminOpcode::KEEP_ALIVE,
        AdminOpcode::FABRICS,
    ] {
        log.set_admin(opcode, controller);
    }
    for opcode in [
        NvmOpcode::FLUSH,
        NvmOpcode::READ,
        NvmOpcode::COMPARE,
        NvmOpcode::VERIFY,
        NvmOpcode::RESERVATION_REGISTER,
        NvmOpcode::RESERVATION_REPORT,
        NvmOpcode::RESERVATION_ACQUIRE,
        NvmOpcode::RESERVATION_RELEASE,
    ] {
        log.set_io(opcode, io);
    }
    for opcode in [
        NvmOpcode::WRITE,
        NvmOpcode::WRITE_UNCORRECTABLE,
        NvmOpcode::WRITE_ZEROES,
        NvmOpcode::COPY,
        NvmOpcode::DATASET_MANAGEMENT,
    ] {
        log.set_io(opcode, io | CommandEffects::LOGICAL_BLOCK_CHANGE);
    }
    log.set_io(NvmOpcode::FABRICS, io);
    log
}

/// One dword per FID, with the bits of [`CommandEffects`].
fn feature_effects(cx: &AdminCx<'_>) -> [u8; FEATURE_EFFECTS_SIZE] {
    let mut page = [0; FEATURE_EFFECTS_SIZE];
    for (fid, dword) in (0..=u8::MAX).zip(page.chunks_exact_mut(4)) {
        dword.copy_from_slice(&feature::effects(cx, fid).bits().to_le_bytes());
    }
    page
}
