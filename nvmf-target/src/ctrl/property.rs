//! Controller properties: CAP, VS, CC, CSTS, NSSR, CRTO (NVMe Base 2.1 §3.1.4).

use super::controller::Shutdown;
use super::{Controller, Fault, lock};
use crate::chatter::limited;
use nvmf_proto::tcp::Time;
use nvmf_proto::wire::fabrics::{PropertyGet, PropertySet, PropertySize};
use nvmf_proto::wire::property::{Cap, Cc, Crto, Csts, PropertyOffset, Vs};

/// CAP.TO: the worst time for CSTS.RDY to follow CC.EN, in 500 ms. A reset waits for what is in
/// the backends.
const TO: u64 = 60;

/// What NSSR.NSSRC is set to for a reset: "NVMe".
const NSSRC: u32 = 0x4e56_4d65;

/// Bits of CC that are reserved.
const RESERVED: u32 = 0xfe00_000e;

/// The version that the controllers follow.
pub(super) const VERSION: Vs = Vs::V2_1;

/// What is wrong with a property command: ATTRIB, OFST, or the value to be set.
const SIZE: Fault = Fault::field(40);
const OFFSET: Fault = Fault::field(44);
const VALUE: Fault = Fault::field(48);

impl Controller {
    /// Property Get.
    pub(crate) fn property_get(&self, get: &PropertyGet) -> Result<u64, Fault> {
        let (value, size) = match get.offset {
            PropertyOffset::CAP => (self.capabilities().0, PropertySize::BYTES_8),
            PropertyOffset::VS => (u64::from(VERSION.0), PropertySize::BYTES_4),
            PropertyOffset::CC => (u64::from(lock(&self.state).cc.0), PropertySize::BYTES_4),
            PropertyOffset::CSTS => (u64::from(lock(&self.state).csts.0), PropertySize::BYTES_4),
            PropertyOffset::NSSR => (0, PropertySize::BYTES_4),
            PropertyOffset::CRTO => {
                let timeout = u32::try_from(TO).unwrap_or(u32::MAX);
                (
                    u64::from(Crto::default().with_crwmt(timeout).0),
                    PropertySize::BYTES_4,
                )
            }
            _ => return Err(OFFSET),
        };
        if get.size == size {
            Ok(value)
        } else {
            Err(SIZE)
        }
    }

    fn capabilities(&self) -> Cap {
        Cap::default()
            .with_mqes(u64::from(self.limits.io_queue_entries - 1))
            .with_cqr(true)
            .with_to(TO)
            .with_nssrs(self.subsystem.resettable)
            .with_css(Cap::CSS_NVM)
            .with_crms(Cap::CRMS_WITH_MEDIA)
    }

    /// Property Set: of CC, and of what an NVM Subsystem Reset needs where there is one.
    pub(crate) fn property_set(&self, set: &PropertySet, now: Time) -> Result<(), Fault> {
        let value = u32::try_from(set.value & 0xffff_ffff).unwrap_or_default();
        match set.offset {
            _ if set.size != PropertySize::BYTES_4 => Err(SIZE),
            PropertyOffset::CC => self.configure(Cc(value), now),
            PropertyOffset::NSSR if self.subsystem.resettable => {
                // Other values have no effect.
                if value == NSSRC {
                    limited!(
                        Warn,
                        self.subsystem.chatter,
                        now,
                        "{:?} resets {:?} by controller {}",
                        self.hostnqn,
                        self.subsystem.nqn,
                        self.cntlid
                    );
                    self.subsystem.reset();
                }
                Ok(())
            }
            PropertyOffset::CSTS if self.subsystem.resettable => {
                // NSSRO is cleared by writing 1 to it; the other fields cannot be written.
                if Csts(value).nssro() {
                    let mut state = lock(&self.state);
                    state.csts = state.csts.with_nssro(false);
                }
                Ok(())
            }
            _ => Err(OFFSET),
        }
    }

    fn configure(&self, new: Cc, now: Time) -> Result<(), Fault> {
        let mut state = lock(&self.state);
        let old = state.cc;
        // A change of what may only be set while disabled, or a value that CAP does not offer.
        let frozen = old.en()
            && new.en()
            && (new.css() != old.css() || new.mps() != old.mps() || new.ams() != old.ams());
        let bad = new.ams() != 0
            || new.mps() != 0
            || new.css() != Cc::CSS_NVM
            || new.shn() == 0b11
            || new.crime()
            || new.0 & RESERVED != 0
            || !matches!(new.iosqes(), 0 | 6)
            || !matches!(new.iocqes(), 0 | 4);
        if frozen || bad {
            return Err(VALUE);
        }
        state.cc = new;
        let reset = old.en() && !new.en();
        let enable = new.en() && !old.en();
        let shutdown = new.shn() != Cc::SHN_NONE && old.shn() == Cc::SHN_NONE;
        if enable && !state.is_stopping() {
            // A controller that is enabled with SHN set remains shut down.
            let shst = match new.shn() {
                Cc::SHN_NONE => Csts::SHST_NORMAL,
                _ => Csts::SHST_COMPLETE,
            };
            let nssro = state.csts.nssro();
            state.csts = Csts::default()
                .with_rdy(true)
                .with_shst(shst)
                .with_nssro(nssro);
        }
        if shutdown && state.shutdown == Shutdown::None {
            state.shutdown = Shutdown::Ending;
            state.csts = state.csts.with_shst(Csts::SHST_OCCURRING);
        }
        // One that is under way goes on, even if the controller is enabled again.
        state.resetting |= reset;
        if reset || shutdown {
            state.unused_since = now;
            state.stop_queues();
            state.finish_reset();
        }
        drop(state);
        if new.en() && !old.en() {
            self.log_start();
        }
        Ok(())
    }
}
