//! The Asymmetric Namespace Access log page (NVMe Base 2.1, ANA log page).

use super::AdminCx;
use nvmf_proto::wire::log::encode_ana_log;

/// The whole page: groups without namespaces that this controller sees are not in it.
pub(super) fn log(cx: &AdminCx<'_>, groups_only: bool) -> Vec<u8> {
    let (chgcnt, mut groups) = cx.controller.ana_log();
    if groups_only {
        for group in &mut groups {
            group.nsids.clear();
        }
    }
    encode_ana_log(chgcnt, &groups)
}
