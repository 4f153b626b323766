//! Hosts that reserve namespaces.

use super::{PATIENCE, options};
use nvmf_host::nvmf_proto::wire::log::{AsyncEvent, GetLogPage, Lid};
use nvmf_host::nvmf_proto::wire::reservation::{
    AcquireAction, AcquireCommand, AcquireData, ChangePtpl, RegisterAction, RegisterCommand,
    RegisterData, ReleaseAction, ReleaseCommand, ReleaseData, ReservationNotificationLog,
    ReservationType,
};
use nvmf_host::nvmf_proto::wire::{Sqe, Status};
use nvmf_host::{Controller, Data, IoQueue, Namespace, ReservationReport, command};
use std::net::SocketAddr;

pub const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
pub const INVALID: Status = Status::INVALID_FIELD.dnr();
pub const WRITE_EXCLUSIVE: ReservationType = ReservationType::WRITE_EXCLUSIVE;
pub const EXCLUSIVE_ACCESS: ReservationType = ReservationType::EXCLUSIVE_ACCESS;
pub const REGISTRANTS: ReservationType = ReservationType::WRITE_EXCLUSIVE_REGISTRANTS;

/// A host with a controller and one I/O queue. Its key is made of its number.
pub struct Host {
    pub controller: Controller,
    pub queue: IoQueue,
    pub ns: Namespace,
    pub id: [u8; 16],
    pub key: u64,
}

impl Host {
    pub fn new(address: SocketAddr, number: u8) -> Self {
        let mut options = options(address);
        options.host_id = [number; 16];
        let mut controller = Controller::connect(&options).unwrap();
        controller.set_queue_count(4).unwrap();
        let queue = controller.io_queue(1).unwrap();
        let ns = controller.namespace(1).unwrap();
        Self {
            controller,
            queue,
            ns,
            id: [number; 16],
            key: 0x1000 + u64::from(number),
        }
    }

    pub fn register_with(&mut self, action: RegisterAction, cptpl: ChangePtpl) -> Status {
        let iekey = true;
        let command = RegisterCommand {
            action,
            iekey,
            cptpl,
        };
        let data = RegisterData {
            crkey: 0,
            nrkey: self.key,
        };
        let nsid = self.ns.nsid;
        self.queue
            .reservation_register(nsid, &command, &data)
            .unwrap()
    }

    pub fn register(&mut self) {
        let status = self.register_with(RegisterAction::REPLACE, ChangePtpl::NONE);
        assert_eq!(status, Status::SUCCESS);
    }

    pub fn acquire_with(
        &mut self,
        action: AcquireAction,
        rtype: ReservationType,
        key: u64,
    ) -> Status {
        let iekey = false;
        let command = AcquireCommand {
            action,
            iekey,
            rtype,
        };
        let data = AcquireData {
            crkey: self.key,
            prkey: key,
        };
        let nsid = self.ns.nsid;
        self.queue
            .reservation_acquire(nsid, &command, &data)
            .unwrap()
    }

    pub fn acquire(&mut self, rtype: ReservationType) -> Status {
        self.acquire_with(AcquireAction::ACQUIRE, rtype, 0)
    }

    pub fn release(&mut self, action: ReleaseAction, rtype: ReservationType) -> Status {
        let iekey = false;
        let command = ReleaseCommand {
            action,
            iekey,
            rtype,
        };
        let data = ReleaseData { crkey: self.key };
        let nsid = self.ns.nsid;
        self.queue
            .reservation_release(nsid, &command, &data)
            .unwrap()
    }

    pub fn report(&mut self) -> ReservationReport {
        self.queue.reservation_report(self.ns.nsid, 8).unwrap()
    }

    /// Runs a command; its status.
    pub fn run(&mut self, sqe: Sqe, data: Data) -> Status {
        self.queue.raw(sqe, data).unwrap().status()
    }

    pub fn write(&mut self) -> Status {
        let sqe = command::write(self.ns.nsid, 0, 1);
        self.run(sqe, Data::Write(vec![0; 512]))
    }

    pub fn read(&mut self) -> Status {
        let sqe = command::read(self.ns.nsid, 0, 1);
        self.run(sqe, Data::Read(vec![0; 512]))
    }

    /// The next event, and the notification behind it.
    pub fn notification(&mut self) -> ReservationNotificationLog {
        let event = self.controller.poll_event(PATIENCE).unwrap();
        assert_eq!(event, Some(AsyncEvent::RESERVATION_LOG));
        self.notice()
    }

    /// The oldest notification.
    pub fn notice(&mut self) -> ReservationNotificationLog {
        let get = GetLogPage::new(Lid::RESERVATION_NOTIFICATION, 64);
        let page = self.controller.log_page(0, &get, 64).unwrap();
        ReservationNotificationLog::decode(page.first_chunk().unwrap())
    }
}

/// Queues a Preempt and Abort of another host.
pub fn preempt_and_abort(host: &mut Host, key: u64) {
    let command = AcquireCommand {
        action: AcquireAction::PREEMPT_AND_ABORT,
        iekey: false,
        rtype: EXCLUSIVE_ACCESS,
    };
    let mut data = [0; AcquireData::SIZE];
    AcquireData {
        crkey: host.key,
        prkey: key,
    }
    .encode(&mut data);
    let sqe = command::reservation_acquire(1, &command);
    let queue = host.queue.queue();
    queue
        .submit_tagged(sqe, Data::Write(data.to_vec()), 99)
        .unwrap();
    queue.flush().unwrap();
}

/// The tags and statuses of `count` completions.
pub fn completions(host: &mut Host, count: usize) -> Vec<(u64, Status)> {
    let mut all = Vec::new();
    while all.len() < count {
        let done = host.queue.poll(PATIENCE).unwrap();
        all.extend(done.map(|done| (done.tag, done.status())));
    }
    all.sort_by_key(|(tag, _)| *tag);
    all
}
