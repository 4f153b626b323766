use super::*;
use crate::TargetConfig;
use crate::ctrl::testing::{Described, Rig, apply, listen, nqn, nvm_subsystem, open, tcp_address};
use crate::ns::{NsInfo, NsSink};
use crate::{NamespaceConfig, Role};
use nvmf_proto::wire::Status;
use nvmf_proto::wire::feature::AsyncEventConfig;
use nvmf_proto::wire::log::AsyncEvent;
use std::sync::Mutex;

fn name(of: &str) -> String {
    nqn(of).as_str().to_owned()
}

fn disk(blocks: u64) -> Arc<dyn Namespace> {
    Arc::new(Described(NsInfo::new(512, blocks)))
}

fn add(nqn: &str, nsid: u32) -> Change {
    Change::AddNamespace {
        nqn: nqn.to_owned(),
        config: NamespaceConfig::new(nsid),
        namespace: disk(8),
    }
}

fn show(rig: &Rig, nsid: u32, hosts: Option<&[&str]>) {
    rig.apply(Change::SetNamespaceHosts {
        nqn: rig.nqn(),
        nsid,
        hosts: hosts.map(|hosts| hosts.iter().map(|host| name(host)).collect()),
    });
}

fn nsids(rig: &Rig) -> Vec<u32> {
    let view = rig.controller.view();
    view.iter().map(|seen| seen.entry.nsid).collect()
}

fn events(rig: &Rig) -> Vec<AsyncEvent> {
    std::iter::from_fn(|| rig.controller.next_event()).collect()
}

/// What a transaction could change.
fn picture(core: &Core) -> String {
    let topology = core.topology();
    let tables = core.subsystems().into_iter().map(|s| {
        let table = s.table();
        let entries = table
            .iter()
            .map(|e| (e.nsid, e.anagrpid, e.visibility.clone()));
        (
            s.generation(),
            entries.collect::<Vec<_>>(),
            s.snapshot().ana,
        )
    });
    format!("{:?} {:?}", topology, tables.collect::<Vec<_>>())
}

/// Changes of every kind that can be refused; none of these is.
fn good_changes() -> Vec<Change> {
    let mut listed = listed();
    listed.subsystems = Some(vec![name("new")]);
    vec![
        Change::AddSubsystem(SubsystemConfig::new(name("new"))),
        add(&name("new"), 1),
        add(&name("disks"), 2),
        Change::RemoveNamespace {
            nqn: name("disks"),
            nsid: 1,
        },
        Change::SetAnaGroup {
            nqn: name("disks"),
            nsid: 3,
            anagrpid: 128,
        },
        Change::SetNamespaceHosts {
            nqn: name("disks"),
            nsid: 3,
            hosts: Some(vec![name("host")]),
        },
        Change::AllowAnyHost {
            nqn: name("disks"),
            allow: false,
        },
        Change::AddHost {
            nqn: name("disks"),
            host: name("host"),
        },
        Change::AddListener(listed),
        Change::SetAnaState {
            nqn: name("new"),
            listener: "listed".to_owned(),
            anagrpid: 1,
            state: AnaState::NonOptimized,
        },
        Change::RemoveReferral(Referral::tcp(([192, 0, 2, 7], 8009).into())),
    ]
}

fn anywhere() -> ListenerConfig {
    ListenerConfig::tcp(([127, 0, 0, 1], 0).into())
}

/// With the listener of [`good_changes`] there is one of that name.
fn listed() -> ListenerConfig {
    let mut config = anywhere();
    config.name = Some("listed".to_owned());
    config
}

fn bad_for_namespaces() -> Vec<(Change, &'static str)> {
    let (nowhere, ours) = (name("nowhere"), name("disks"));
    vec![
        (
            Change::AddSubsystem(SubsystemConfig::new(name("new"))),
            "already",
        ),
        (
            Change::AddSubsystem(SubsystemConfig::new("disk")),
            "\"disk\"",
        ),
        (
            Change::RemoveSubsystem {
                nqn: nowhere.clone(),
            },
            "no subsystem",
        ),
        (add(&ours, 2), "in use"),
        (add(&ours, 0), "NSID 0"),
        (add(&ours, 2001), "NSID 2001"),
        (add(&nowhere, 1), "no subsystem"),
        (
            Change::RemoveNamespace {
                nqn: ours.clone(),
                nsid: 1,
            },
            "no namespace 1",
        ),
        (
            Change::SetNamespaceHosts {
                nqn: ours.clone(),
                nsid: 3,
                hosts: Some(vec!["host".to_owned()]),
            },
            "\"host\"",
        ),
        (
            Change::SetAnaGroup {
                nqn: ours.clone(),
                nsid: 3,
                anagrpid: 129,
            },
            "ANA group 129",
        ),
    ]
}

fn bad_for_hosts() -> Vec<(Change, &'static str)> {
    let (nowhere, ours) = (name("nowhere"), name("disks"));
    vec![
        (
            Change::AllowAnyHost {
                nqn: nowhere.clone(),
                allow: true,
            },
            "no subsystem",
        ),
        (
            Change::AddHost {
                nqn: ours.clone(),
                host: String::new(),
            },
            "host NQN",
        ),
        (
            Change::RemoveHost {
                nqn: ours.clone(),
                host: name("other"),
            },
            "no host",
        ),
    ]
}

fn bad_for_ana() -> Vec<(Change, &'static str)> {
    let ours = name("disks");
    vec![
        (
            Change::SetAnaState {
                nqn: ours.clone(),
                listener: "nowhere".to_owned(),
                anagrpid: 1,
                state: AnaState::Change,
            },
            "no listener",
        ),
        (
            Change::SetAnaState {
                nqn: ours.clone(),
                listener: "192.0.2.1".to_owned(),
                anagrpid: 0,
                state: AnaState::Change,
            },
            "ANA group 0",
        ),
    ]
}

/// `taken` is a PORTID that is in use.
fn bad_for_ports(taken: u16) -> Vec<(Change, &'static str)> {
    let ours = name("disks");
    let mut port = anywhere();
    port.port_id = Some(taken);
    let mut unknown = anywhere();
    unknown.subsystems = Some(vec![name("nowhere")]);
    let foreign = ListenerConfig::tcp(([192, 0, 2, 1], 1).into());
    vec![
        (Change::AddListener(listed()), "already"),
        (Change::AddListener(port), "PORTID 1"),
        (Change::AddListener(unknown), "no subsystem"),
        (Change::AddListener(foreign), "cannot listen on 192.0.2.1:1"),
        (
            Change::RemoveListener {
                listener: "nowhere".to_owned(),
            },
            "no listener",
        ),
        (
            Change::Serve {
                listener: "192.0.2.1".to_owned(),
                nqn: ours.clone(),
            },
            "serves all",
        ),
        (
            Change::StopServing {
                listener: "listed".to_owned(),
                nqn: ours,
            },
            "does not serve",
        ),
        (
            Change::AddReferral(Referral::tcp(([0, 0, 0, 0], 8009).into())),
            "0.0.0.0",
        ),
        (
            Change::RemoveReferral(Referral::tcp(([192, 0, 2, 8], 8009).into())),
            "no referral",
        ),
    ]
}

/// Every kind of change that can be refused, behind changes of every kind that are not.
#[test]
fn one_refused_change_refuses_them_all() {
    let rig = Rig::nvm();
    let core = &rig.core;
    apply(
        core,
        Change::AddReferral(Referral::tcp(([192, 0, 2, 7], 8009).into())),
    );
    let before = picture(core);
    let disks = rig.nqn();
    let mut bad = bad_for_namespaces();
    bad.extend(bad_for_ana());
    bad.extend(bad_for_hosts());
    bad.extend(bad_for_ports(rig.controller.listener.port_id));
    for (change, expected) in bad {
        let what = change.to_string();
        let mut changes = good_changes();
        let last = changes.len();
        changes.push(change);
        let Err(err) = core.apply(changes) else {
            panic!("{what} is accepted");
        };
        let text = err.to_string();
        assert!(text.contains(expected) && text.contains(&what), "{text}");
        let Error::Change { index, .. } = err else {
            panic!("{text}");
        };
        assert_eq!(index, last, "{text}");
        assert_eq!(picture(core), before, "{text}");
    }
    // They are good indeed.
    let effects = core.apply(good_changes()).unwrap();
    assert_eq!((effects.opened.len(), effects.detached.len()), (1, 1));
    assert_ne!(picture(core), before);
    let snapshot = rig.subsystem.snapshot();
    assert_eq!(snapshot.table.get(3).unwrap().anagrpid, 128);
    assert!(disks.ends_with("disks"));
}

#[test]
fn a_listener_for_discovery_has_no_ana_states() {
    let rig = Rig::nvm();
    let mut config = ListenerConfig::tcp(([127, 0, 0, 1], 0).into()).discovery_only();
    config.name = Some("discovery".to_owned());
    rig.core.apply(vec![Change::AddListener(config)]).unwrap();
    let change = Change::SetAnaState {
        nqn: rig.nqn(),
        listener: "discovery".to_owned(),
        anagrpid: 1,
        state: AnaState::Inaccessible,
    };
    let err = rig.core.apply(vec![change]).err().unwrap();
    assert!(err.to_string().contains("discovery only"), "{err}");
}

#[test]
fn referrals_are_named_with_their_ports() {
    let rig = Rig::nvm();
    for address in ["192.0.2.7:8009", "[2001:db8::7]:8009"] {
        let referral = Referral::tcp(address.parse().unwrap());
        let change = Change::RemoveReferral(referral.clone());
        assert!(change.to_string().ends_with(address), "{change}");
        let err = rig.core.apply(vec![change]).err().unwrap();
        assert!(err.to_string().ends_with(address), "{err}");
    }
}

#[test]
fn masks_concern_the_hosts_that_they_name() {
    let rig = Rig::nvm();
    let other = rig.other("other");
    let third = rig.other("third");
    let rigs = [&rig, &other, &third];
    let all = || {
        rigs.map(|rig| {
            (
                nsids(rig),
                events(rig),
                rig.controller.changed_namespaces(Some(9)),
            )
        })
    };
    for rig in rigs {
        rig.controller
            .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE);
    }
    let read = || {
        for rig in rigs {
            rig.controller
                .clear_event(nvmf_proto::wire::log::Lid::CHANGED_NAMESPACES);
        }
    };
    let told = |nsid| (vec![AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED], vec![nsid]);
    let (news, none) = (told(3), (vec![], vec![]));
    let state = |nsids: &[u32], (events, changed): &(Vec<AsyncEvent>, Vec<u32>)| {
        (nsids.to_vec(), events.clone(), changed.clone())
    };
    rig.controller.changed_namespaces(Some(9));
    show(&rig, 3, Some(&["other"]));
    assert_eq!(
        all(),
        [
            state(&[1], &news),
            state(&[1, 3], &none),
            state(&[1], &news)
        ]
    );
    read();
    show(&rig, 3, Some(&["other", "third"]));
    assert_eq!(
        all(),
        [
            state(&[1], &none),
            state(&[1, 3], &none),
            state(&[1, 3], &news)
        ]
    );
    read();
    // A namespace that is hidden from a host changes without its knowledge.
    let mut config = NamespaceConfig::new(7);
    config.hosts = Some(vec![name("third")]);
    rig.attach_with(config, NsInfo::new(512, 8));
    assert_eq!(
        all(),
        [
            state(&[1], &none),
            state(&[1, 3], &none),
            state(&[1, 3, 7], &told(7))
        ]
    );
    read();
    show(&rig, 3, None);
    show(&rig, 7, Some(&[]));
    assert_eq!(
        all(),
        [
            state(&[1, 3], &news),
            state(&[1, 3], &none),
            state(&[1, 3], &told(7))
        ]
    );
}

#[test]
fn hosts_that_may_not_stay_end_and_no_others() {
    let rig = Rig::nvm();
    let nqn_of = || rig.nqn();
    nvm_subsystem(&rig.core, "more");
    let more = Arc::clone(&rig.core.topology().subsystems[&nqn("more")].subsystem);
    let here = || Arc::clone(&rig.controller.listener);
    let open_all = || {
        [
            open(&rig.subsystem, "a", here(), None),
            open(&rig.subsystem, "b", here(), None),
            open(&more, "a", here(), None),
        ]
    };
    let ended = |all: &[Arc<Controller>; 3]| all.each_ref().map(|c| c.is_ending());
    let host = |of: &str| Change::AddHost {
        nqn: nqn_of(),
        host: name(of),
    };
    rig.apply(host("a"));
    let all = open_all();
    assert_eq!(ended(&all), [false; 3]);
    rig.apply(Change::AllowAnyHost {
        nqn: nqn_of(),
        allow: false,
    });
    assert_eq!(ended(&all), [false, true, false]);
    rig.apply(host("b"));
    let all = open_all();
    let remove = || Change::RemoveHost {
        nqn: nqn_of(),
        host: name("a"),
    };
    // Within one transaction a host may come and go.
    rig.core.apply(vec![remove(), host("a")]).unwrap();
    assert_eq!(ended(&all), [false; 3]);
    rig.apply(remove());
    assert_eq!(ended(&all), [true, false, false]);
    rig.apply(Change::RemoveSubsystem { nqn: name("more") });
    assert_eq!(ended(&all), [true, false, true]);
    rig.apply(Change::RemoveListener {
        listener: "192.0.2.1".to_owned(),
    });
    assert_eq!(ended(&all), [true; 3]);
}

#[test]
fn a_listener_with_a_list_serves_what_is_on_it() {
    let rig = Rig::nvm();
    nvm_subsystem(&rig.core, "more");
    let mut config = ListenerConfig::tcp(([127, 0, 0, 1], 0).into());
    config.subsystems = Some(vec![name("more")]);
    config.name = Some("listed".to_owned());
    let effects = rig.core.apply(vec![Change::AddListener(config)]).unwrap();
    let listener = Arc::clone(&effects.opened[0].1);
    let info = &effects.listeners[0];
    assert_eq!((&*info.name, info.port_id), ("listed", 2));
    assert_eq!(info.subsystems, Some(vec![name("more")]));
    let admitted = |subsystem: &str| {
        let topology = rig.core.topology();
        topology
            .admit(&nqn(subsystem), &nqn("host"), &listener)
            .is_ok()
    };
    let step = |subsystem: &str, add: bool| {
        let (listener, nqn) = ("listed".to_owned(), name(subsystem));
        rig.apply(if add {
            Change::Serve { listener, nqn }
        } else {
            Change::StopServing { listener, nqn }
        });
    };
    assert!(admitted("more") && !admitted("disks"));
    step("disks", true);
    assert!(admitted("more") && admitted("disks"));
    let controller = open(&rig.subsystem, "host", Arc::clone(&listener), None);
    step("more", false);
    assert!(!admitted("more") && !controller.is_ending());
    step("disks", false);
    assert!(controller.is_ending() && !rig.controller.is_ending());
    step("disks", true);
    rig.apply(Change::RemoveSubsystem { nqn: rig.nqn() });
    // Another subsystem of that name is not on the list.
    nvm_subsystem(&rig.core, "disks");
    assert!(!admitted("disks"));
}

#[test]
fn port_ids_are_stable_and_names_unique() {
    let core = Core::new(TargetConfig::default());
    let address = || tcp_address("192.0.2.1", 4420);
    let first = listen(&core, address(), Role::Io);
    let second = listen(&core, address(), Role::Discovery);
    assert_eq!((first.port_id, &*first.name), (1, "192.0.2.1"));
    assert_eq!((second.port_id, &*second.name), (2, "192.0.2.1#2"));
    apply(
        &core,
        Change::RemoveListener {
            listener: "192.0.2.1".to_owned(),
        },
    );
    // Not 1 again so soon: hosts may still think of it.
    assert_eq!(listen(&core, address(), Role::Io).port_id, 3);
    let mut config = ListenerConfig::tcp(([127, 0, 0, 1], 0).into());
    config.port_id = Some(4);
    let effects = core.apply(vec![Change::AddListener(config)]).unwrap();
    let socket = effects.listeners[0].socket.unwrap();
    assert_eq!(effects.listeners[0].name, socket.to_string());
    assert_eq!(listen(&core, address(), Role::Io).port_id, 5);
}

#[test]
fn as_many_namespaces_as_a_subsystem_has_nsids() {
    let core = Core::new(TargetConfig::default());
    apply(
        &core,
        Change::AddSubsystem(SubsystemConfig::new(name("many"))),
    );
    let changes = (1..=4096).map(|nsid| add(&name("many"), nsid)).collect();
    assert_eq!(core.apply(changes).unwrap().attached.len(), 4096);
    let subsystem = Arc::clone(&core.topology().subsystems[&nqn("many")].subsystem);
    let table = subsystem.table();
    assert!((1..=4096).all(|nsid| table.get(nsid).is_some_and(|e| e.nsid == nsid)));
    assert!(table.get(0).is_none() && table.get(4097).is_none());
    // One after the other, for a part of them.
    for nsid in (3585..=4096).rev() {
        let nqn = name("many");
        apply(&core, Change::RemoveNamespace { nqn, nsid });
    }
    assert_eq!(subsystem.table().iter().count(), 3584);
    for nsid in 3585..=4096 {
        apply(&core, add(&name("many"), nsid));
    }
    assert_eq!(subsystem.table().iter().count(), 4096);
}

/// Tells of a change by each sink that it was given.
#[derive(Default)]
struct Shared {
    blocks: Mutex<u64>,
    sinks: Mutex<Vec<NsSink>>,
}

impl Namespace for Shared {
    fn info(&self) -> NsInfo {
        NsInfo::new(512, *self.blocks.lock().unwrap())
    }

    fn open_lane(&self, _: &crate::ns::LaneCx) -> Result<Box<dyn crate::ns::Lane>, Error> {
        Err(Error::NotFound("no lane".to_owned()))
    }

    fn subscribe(&self, sink: NsSink) {
        self.sinks.lock().unwrap().push(sink);
    }
}

#[test]
fn a_backend_may_be_attached_to_several_subsystems() {
    let core = Core::new(TargetConfig::default());
    let backend = Arc::new(Shared::default());
    *backend.blocks.lock().unwrap() = 8;
    let subsystems = ["a", "b"].map(|of| nvm_subsystem(&core, of));
    for (of, nsid) in [("a", 1), ("b", 5), ("b", 6)] {
        let effects = core.apply(vec![Change::AddNamespace {
            nqn: name(of),
            config: NamespaceConfig::new(nsid),
            namespace: Arc::clone(&backend) as _,
        }]);
        for (namespace, sink) in effects.unwrap().attached {
            namespace.subscribe(sink);
        }
    }
    let entry = |n: usize, nsid| Arc::clone(subsystems[n].table().get(nsid).unwrap());
    let entries = || [entry(0, 1), entry(1, 5), entry(1, 6)];
    let [a, b, c] = entries();
    assert!(
        Arc::ptr_eq(&a.shared.gate, &b.shared.gate) && Arc::ptr_eq(&b.shared.gate, &c.shared.gate)
    );
    assert!(a.uid != b.uid && b.uid != c.uid && a.info.uuid != b.info.uuid);
    *backend.blocks.lock().unwrap() = 16;
    for sink in &*backend.sinks.lock().unwrap() {
        sink.changed();
    }
    assert_eq!(entries().map(|e| e.info.blocks), [16; 3]);
    apply(
        &core,
        Change::RemoveNamespace {
            nqn: name("b"),
            nsid: 5,
        },
    );
    drop((a, b, c));
    let sinks = backend.sinks.lock().unwrap();
    assert_eq!(
        sinks.iter().map(NsSink::is_of_use).collect::<Vec<_>>(),
        [true, false, true]
    );
}

/// Connections are closed by their reactors, in their time. A command that comes before that finds
/// that its controller has no rights any more.
#[test]
fn a_controller_that_has_to_end_takes_no_command() {
    let rig = Rig::nvm();
    let stays = rig.other("stays");
    for of in ["host", "stays"] {
        rig.apply(Change::AddHost {
            nqn: rig.nqn(),
            host: name(of),
        });
    }
    let listener = || "192.0.2.1".to_owned();
    let inaccessible = Change::SetAnaState {
        nqn: rig.nqn(),
        listener: listener(),
        anagrpid: 2,
        state: AnaState::Inaccessible,
    };
    let move_it = Change::SetAnaGroup {
        nqn: rig.nqn(),
        nsid: 3,
        anagrpid: 2,
    };
    rig.core.apply(vec![inaccessible, move_it]).unwrap();
    let queue = |rig: &Rig| {
        let (mut view, mut generation) = (Arc::default(), 0);
        rig.controller.refresh(&mut view, &mut generation);
        (view, generation)
    };
    let refused = |rig: &Rig, (view, generation): &mut (_, u64)| {
        rig.controller.refresh(view, generation);
        [1, 3].map(|nsid| view.get(nsid).unwrap().ana)
    };
    let (mut mine, mut theirs) = (queue(&rig), queue(&stays));
    let usual = [None, Some(Status::ANA_INACCESSIBLE)];
    assert_eq!(refused(&rig, &mut mine), usual);
    let deny = Change::AllowAnyHost {
        nqn: rig.nqn(),
        allow: false,
    };
    let remove = Change::RemoveHost {
        nqn: rig.nqn(),
        host: name("host"),
    };
    rig.core.apply(vec![deny, remove]).unwrap();
    let over = [Some(Status::ABORTED_SQ_DELETION); 2];
    assert_eq!(refused(&rig, &mut mine), over);
    assert_eq!(refused(&stays, &mut theirs), usual);
    // With a listener the ANA states of its port are forgotten.
    rig.apply(Change::RemoveListener {
        listener: listener(),
    });
    assert_eq!(refused(&stays, &mut theirs), over);
}

/// A backend that needs what the target needs, too, to say what it is.
#[derive(Default)]
struct Entangled(Mutex<Option<Arc<Subsystem>>>, Mutex<Option<NsSink>>);

impl Namespace for Entangled {
    fn info(&self) -> NsInfo {
        let subsystem = self.0.lock().unwrap();
        let others = subsystem.as_ref().map_or(0, |s| s.table().iter().count());
        NsInfo::new(512, 8 + others as u64)
    }

    fn open_lane(&self, _: &crate::ns::LaneCx) -> Result<Box<dyn crate::ns::Lane>, Error> {
        Err(Error::NotFound("no lane".to_owned()))
    }

    fn subscribe(&self, sink: NsSink) {
        *self.1.lock().unwrap() = Some(sink);
    }
}

#[test]
fn a_backend_is_asked_while_no_reactor_waits_and_for_nothing_no_view_is_made() {
    let rig = Rig::nvm();
    let backend = Arc::new(Entangled::default());
    let effects = rig.core.apply(vec![Change::AddNamespace {
        nqn: rig.nqn(),
        config: NamespaceConfig::new(9),
        namespace: Arc::clone(&backend) as _,
    }]);
    for (namespace, sink) in effects.unwrap().attached {
        namespace.subscribe(sink);
    }
    let sink = backend.1.lock().unwrap().clone().unwrap();
    let generation = rig.subsystem.generation();
    sink.changed();
    assert_eq!(rig.subsystem.generation(), generation);
    *backend.0.lock().unwrap() = Some(Arc::clone(&rig.subsystem));
    sink.changed();
    assert_eq!(rig.subsystem.table().get(9).unwrap().info.blocks, 8 + 3);
    assert!(rig.subsystem.generation() > generation);
    *backend.0.lock().unwrap() = None;
}

#[test]
fn namespaces_of_a_subsystem_have_different_uuids() {
    let rig = Rig::nvm();
    let with_uuid = |nsid| Change::AddNamespace {
        nqn: rig.nqn(),
        config: NamespaceConfig::new(nsid),
        namespace: Arc::new(Described(NsInfo::new(512, 8).with_uuid([9; 16]))),
    };
    let remove = |nsid| Change::RemoveNamespace {
        nqn: rig.nqn(),
        nsid,
    };
    rig.apply(with_uuid(10));
    let error = rig.core.apply(vec![with_uuid(11)]).err().unwrap();
    assert!(error.to_string().contains("UUID of 10"), "{error}");
    rig.core.apply(vec![remove(10), with_uuid(11)]).unwrap();
}
