//! Changes of a target's subsystems, namespaces, hosts and listeners.

use crate::ctrl::AnaState;
use crate::ns::Namespace;
use crate::{ListenerConfig, NamespaceConfig, Referral, SubsystemConfig};
use std::fmt;
use std::sync::Arc;

/// One step of [`Target::apply`](crate::Target::apply). Each has a method of
/// [`Target`](crate::Target) that makes this one change and says what it does.
///
/// `nqn` is the NQN of a subsystem, `listener` the name of a listener.
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are the arguments of the methods")]
pub enum Change {
    /// [`Target::add_subsystem`](crate::Target::add_subsystem).
    AddSubsystem(SubsystemConfig),
    /// [`Target::remove_subsystem`](crate::Target::remove_subsystem).
    RemoveSubsystem { nqn: String },
    /// [`Target::add_namespace_with`](crate::Target::add_namespace_with).
    AddNamespace {
        nqn: String,
        config: NamespaceConfig,
        namespace: Arc<dyn Namespace>,
    },
    /// [`Target::remove_namespace`](crate::Target::remove_namespace).
    RemoveNamespace { nqn: String, nsid: u32 },
    /// [`Target::set_namespace_hosts`](crate::Target::set_namespace_hosts).
    SetNamespaceHosts {
        nqn: String,
        nsid: u32,
        hosts: Option<Vec<String>>,
    },
    /// [`Target::set_ana_group`](crate::Target::set_ana_group).
    SetAnaGroup {
        nqn: String,
        nsid: u32,
        anagrpid: u32,
    },
    /// [`Target::set_ana_state`](crate::Target::set_ana_state).
    SetAnaState {
        nqn: String,
        listener: String,
        anagrpid: u32,
        state: AnaState,
    },
    /// [`Target::allow_any_host`](crate::Target::allow_any_host).
    AllowAnyHost { nqn: String, allow: bool },
    /// [`Target::add_host`](crate::Target::add_host).
    AddHost { nqn: String, host: String },
    /// [`Target::remove_host`](crate::Target::remove_host).
    RemoveHost { nqn: String, host: String },
    /// [`Target::listen_with`](crate::Target::listen_with).
    AddListener(ListenerConfig),
    /// [`Target::remove_listener`](crate::Target::remove_listener).
    RemoveListener { listener: String },
    /// [`Target::serve`](crate::Target::serve).
    Serve { listener: String, nqn: String },
    /// [`Target::stop_serving`](crate::Target::stop_serving).
    StopServing { listener: String, nqn: String },
    /// [`Target::add_referral`](crate::Target::add_referral).
    AddReferral(Referral),
    /// [`Target::remove_referral`](crate::Target::remove_referral).
    RemoveReferral(Referral),
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Change({self})")
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddSubsystem(config) => write!(f, "add subsystem {}", config.nqn),
            Self::RemoveSubsystem { nqn } => write!(f, "remove subsystem {nqn}"),
            Self::AddNamespace { nqn, config, .. } => {
                write!(f, "add namespace {} to {nqn}", config.nsid)
            }
            Self::RemoveNamespace { nqn, nsid } => write!(f, "remove namespace {nsid} of {nqn}"),
            Self::SetNamespaceHosts { nqn, nsid, .. } => {
                write!(f, "set the hosts of namespace {nsid} of {nqn}")
            }
            Self::SetAnaGroup {
                nqn,
                nsid,
                anagrpid,
            } => write!(f, "move namespace {nsid} of {nqn} to ANA group {anagrpid}"),
            Self::SetAnaState {
                nqn,
                listener,
                anagrpid,
                state,
            } => write!(
                f,
                "make ANA group {anagrpid} of {nqn} {state} at {listener}"
            ),
            Self::AllowAnyHost { nqn, allow: true } => write!(f, "allow any host at {nqn}"),
            Self::AllowAnyHost { nqn, allow: false } => {
                write!(f, "allow only listed hosts at {nqn}")
            }
            Self::AddHost { nqn, host } => write!(f, "add host {host} to {nqn}"),
            Self::RemoveHost { nqn, host } => write!(f, "remove host {host} of {nqn}"),
            Self::AddListener(config) => write!(f, "add listener {config:?}"),
            Self::RemoveListener { listener } => write!(f, "remove listener {listener}"),
            Self::Serve { listener, nqn } => write!(f, "serve {nqn} at {listener}"),
            Self::StopServing { listener, nqn } => write!(f, "stop serving {nqn} at {listener}"),
            Self::AddReferral(referral) => {
                write!(f, "add a referral to {}", referral.address)
            }
            Self::RemoveReferral(referral) => {
                write!(f, "remove the referral to {}", referral.address)
            }
        }
    }
}
