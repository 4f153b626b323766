//! Get Log Page of the persistent event log (NVMe Base 2.1, Persistent Event log page): reporting
//! contexts.

use super::{AdminCx, Fault};
use crate::ctrl::persistent::Identity;
use nvmf_proto::wire::log::{
    GetLogPage, PersistentEventAction, PersistentEventLogHeader, ReportingContext,
};
use nvmf_proto::wire::{Status, padded_ascii};

/// What an action moves.
pub(super) enum Window {
    /// Nothing, whatever NUMD and LPO say.
    Nothing,
    /// The header, whatever they say.
    Header,
    /// What they say of a page of this size in bytes.
    Of(u64),
}

/// What there is to be read, or why the context does not fit the action.
pub(super) fn asked(cx: &AdminCx<'_>, get: &GetLogPage) -> Result<Window, Fault> {
    let context = cx.controller.reporting_context();
    let sequence_error = Err(Status::COMMAND_SEQUENCE_ERROR.dnr().into());
    match (PersistentEventAction::of(get.lsp), context) {
        // It is no error if there is no context.
        (PersistentEventAction::RELEASE, _) => Ok(Window::Nothing),
        (PersistentEventAction::READ, Some(page)) => Ok(Window::Of(page.len() as u64)),
        (PersistentEventAction::READ, None) | (_, Some(_)) => sequence_error,
        (PersistentEventAction::ESTABLISH_HEADER, None) => Ok(Window::Header),
        (_, None) => Ok(Window::Of(length(cx) as u64)),
    }
}

/// The length of a page that is made now.
pub(super) fn length(cx: &AdminCx<'_>) -> usize {
    cx.subsystem().persistent.length(&cx.controller.hostnqn)
}

/// Carries out the action and returns the page to read from.
pub(super) fn page(cx: &AdminCx<'_>, get: &GetLogPage) -> Vec<u8> {
    let controller = cx.controller;
    match PersistentEventAction::of(get.lsp) {
        PersistentEventAction::RELEASE => {
            controller.set_reporting_context(None);
            Vec::new()
        }
        PersistentEventAction::READ => controller
            .reporting_context()
            .map(|page| page.to_vec())
            .unwrap_or_default(),
        _ => establish(cx),
    }
}

fn establish(cx: &AdminCx<'_>) -> Vec<u8> {
    let subsystem = cx.subsystem();
    let identity = Identity {
        vid: subsystem.vendor.0,
        ssvid: subsystem.vendor.1,
        sn: padded_ascii(&subsystem.serial),
        mn: padded_ascii(&subsystem.model),
        subnqn: subsystem.nqn.to_field(),
    };
    let context = ReportingContext::default();
    let page = subsystem
        .persistent
        .report(&cx.controller.hostnqn, &identity, context);
    let mut kept = page.clone();
    // Whoever reads it later finds that there is a context, and by which port it came about.
    if let Some(bytes) = kept.first_chunk_mut() {
        let mut header = PersistentEventLogHeader::decode(bytes);
        header.context = ReportingContext::of_port(cx.controller.listener.port_id);
        header.encode(bytes);
    }
    cx.controller.set_reporting_context(Some(kept.into()));
    page
}
