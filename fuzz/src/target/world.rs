//! What the commands are about: a subsystem with namespaces of several kinds.

use super::DATA_MAX;
use crate::device::{SlowDisk, SlowNamespace};
use crate::rig::{self, TestTarget};
use arbitrary::Arbitrary;
use nvmf_target::ns::{Caps, Inline, NsInfo, RamDisk, Support};
use nvmf_target::transport::MemConnector;
use nvmf_target::{AnaState, NamespaceConfig, Role, SubsystemConfig, TargetConfig};
use std::sync::Arc;

pub(super) const NQN: &str = "nqn.2026-11.org.example:fuzz";
const LISTENER: &str = "fuzz";
/// NSID of the slow namespace.
const SLOW: u32 = 3;
/// Bytes of each namespace.
const SIZE: u64 = 1 << 20;

/// What an administrator does meanwhile.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Manage {
    Remove(u8),
    Add(u8),
    Show(u8, bool),
    Group(u8, u8),
    Ana(u8, u8),
    /// The slow namespace is another one from now on.
    Resize(u16),
    ReadOnly(bool),
    Format(bool),
}

/// The target of one input.
pub(super) struct World {
    pub(super) rig: TestTarget,
    pub(super) connector: MemConnector,
    slow: Arc<SlowDisk>,
}

impl World {
    pub(super) fn new(tight: bool) -> Result<Self, nvmf_target::Error> {
        let mut config = TargetConfig::default();
        config.reactors = 1;
        config.max_transfer = u32::try_from(DATA_MAX).unwrap_or(u32::MAX);
        config.buffer_bytes = if tight { 2 * DATA_MAX } else { 4 << 20 };
        config.io_queue_entries = 64;
        let rig = TestTarget::new(config)?;
        let target = rig.target();
        let mut subsystem = SubsystemConfig::new(NQN);
        subsystem.max_namespaces = 8;
        subsystem.ana_groups = 4;
        subsystem.subsystem_reset = true;
        target.add_subsystem(subsystem)?;
        let slow = SlowDisk::new(
            NsInfo::new(512, SIZE / 512).with_volatile_cache(),
            rig.slow(),
        );
        let world = Self {
            connector: rig.listen(LISTENER, Role::Io),
            slow,
            rig,
        };
        for nsid in 1..=4 {
            world.attach(nsid)?;
        }
        rig::add_verify(world.rig.target(), 1 << 16)?;
        Ok(world)
    }

    fn attach(&self, nsid: u32) -> Result<(), nvmf_target::Error> {
        let target = self.rig.target();
        match nsid {
            2 => target.add_namespace(NQN, 2, Inline::new(RamDisk::new(SIZE, 4096)?)),
            SLOW => target.add_namespace(NQN, SLOW, SlowNamespace(Arc::clone(&self.slow))),
            4 => {
                let mut caps = Caps::default();
                for cap in [
                    &mut caps.write_zeroes,
                    &mut caps.compare,
                    &mut caps.compare_and_write,
                    &mut caps.verify,
                    &mut caps.copy,
                    &mut caps.write_uncorrectable,
                ] {
                    *cap = Support::None;
                }
                let info = NsInfo::new(512, SIZE / 512).with_caps(caps);
                let disk = SlowDisk::new(info, self.rig.slow());
                target.add_namespace(NQN, 4, SlowNamespace(disk))
            }
            _ => target.add_namespace(NQN, nsid, Inline::new(RamDisk::new(SIZE, 512)?)),
        }
    }

    /// What is refused is refused.
    pub(super) fn manage(&self, change: &Manage) -> Result<(), nvmf_target::Error> {
        let target = self.rig.target();
        let nsid = |nsid: u8| u32::from(nsid % 6);
        match *change {
            Manage::Remove(n) => target.remove_namespace(NQN, nsid(n)),
            Manage::Add(n) => {
                let nsid = nsid(n);
                if nsid == 5 {
                    let again = SlowNamespace(Arc::clone(&self.slow));
                    let mut config = NamespaceConfig::new(5);
                    config.anagrpid = 2;
                    target.add_namespace_with(NQN, config, Arc::new(again))
                } else {
                    self.attach(nsid)
                }
            }
            Manage::Show(n, all) => {
                let first = rig::options(None, 0).host.as_str().to_owned();
                target.set_namespace_hosts(NQN, nsid(n), (!all).then(|| vec![first]))
            }
            Manage::Group(n, group) => target.set_ana_group(NQN, nsid(n), u32::from(group % 6)),
            Manage::Ana(group, state) => {
                let states = [
                    AnaState::Optimized,
                    AnaState::NonOptimized,
                    AnaState::Inaccessible,
                    AnaState::PersistentLoss,
                    AnaState::Change,
                ];
                let state = states[usize::from(state) % states.len()];
                target.set_ana_state(NQN, LISTENER, u32::from(group % 6), state)
            }
            Manage::Resize(blocks) => {
                self.slow.change(|info| info.blocks = blocks.into());
                Ok(())
            }
            Manage::ReadOnly(read_only) => {
                self.slow.change(|info| info.read_only = read_only);
                Ok(())
            }
            Manage::Format(large) => {
                self.slow
                    .change(|info| info.lba_shift = if large { 12 } else { 9 });
                Ok(())
            }
        }
    }
}
