//! The whole client against a scripted controller over TCP.

mod fake;

use fake::{BLOCK, BLOCKS, Behavior, CNTLID, NAMESPACES, serve};
use nvmf_host::nvmf_proto::tcp::Violation;
use nvmf_host::nvmf_proto::wire::dsm::{DsmAttributes, DsmRange};
use nvmf_host::nvmf_proto::wire::feature::{AsyncEventConfig, Fid, GetFeatures};
use nvmf_host::nvmf_proto::wire::identify::{Cns, Csi, IdentifyCommand};
use nvmf_host::nvmf_proto::wire::log::AsyncEvent;
use nvmf_host::nvmf_proto::wire::pdu::{Fes, PduType, TermReq};
use nvmf_host::nvmf_proto::wire::property::Vs;
use nvmf_host::nvmf_proto::wire::{AdminOpcode, NvmOpcode, Sqe, Status};
use nvmf_host::{ConnectOptions, Controller, Data, Error, IoQueue, Namespace, command, discover};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const NQN: &str = "nqn.2024-01.org.example:disks";

fn options(address: SocketAddr) -> ConnectOptions {
    ConnectOptions::new(address, NQN).unwrap()
}

fn connect(options: &ConnectOptions) -> (Controller, IoQueue, Namespace) {
    let mut controller = Controller::connect(options).unwrap();
    let queue = controller.io_queue(1).unwrap();
    let disk = controller.namespace(1).unwrap();
    (controller, queue, disk)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i * 7 + i / 256 + seed) % 251).try_into().unwrap())
        .collect()
}

#[test]
fn from_connect_to_disconnect() {
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)]
    {
        for disable_sq_flow_control in [false, true] {
            let address = serve(Behavior {
                c2h_data: 3000,
                ..Behavior::default()
            });
            let mut options = options(address);
            options.header_digest = header_digest;
            options.data_digest = data_digest;
            options.disable_sq_flow_control = disable_sq_flow_control;
            let (controller, mut queue, disk) = connect(&options);
            assert_eq!(controller.cntlid(), CNTLID);
            assert_eq!(controller.vs(), Vs::V2_1);
            assert_eq!(controller.max_transfer(), Some(32 << 10));
            assert_eq!(
                queue.queue().flow_control_disabled(),
                disable_sq_flow_control
            );
            assert_eq!(queue.queue().depth(), 127);
            assert_eq!(
                disk,
                Namespace {
                    nsid: 1,
                    blocks: BLOCKS as u64,
                    block_size: 512
                }
            );

            // In the capsule, by R2T, and in several commands.
            for (i, len) in [BLOCK, 4096, 4608, 100 * 1024].into_iter().enumerate() {
                let data = pattern(len, i);
                queue.write(&disk, 10, &data).unwrap();
                let mut back = vec![0; len];
                queue.read(&disk, 10, &mut back).unwrap();
                assert!(data == back, "{len} bytes");
            }
            queue.write_zeroes(&disk, 10, 1, true).unwrap();
            let mut block = [1; BLOCK];
            queue.read(&disk, 10, &mut block).unwrap();
            assert_eq!(block, [0; BLOCK]);
            let range = DsmRange {
                context: 0,
                length: 8,
                slba: 0,
            };
            queue
                .dsm(&disk, &[range; 3], DsmAttributes::DEALLOCATE)
                .unwrap();
            queue.flush(&disk).unwrap();
            queue.disconnect().unwrap();
            controller.disconnect().unwrap();
        }
    }
}

#[test]
fn admin_helpers() {
    let mut controller = Controller::connect(&options(serve(Behavior::default()))).unwrap();
    assert_eq!(controller.set_queue_count(2).unwrap(), 4);
    assert_eq!(
        controller.active_namespaces().unwrap(),
        (1..=1500).collect::<Vec<_>>()
    );
    let ids = controller.namespace_descriptors(1).unwrap();
    assert_eq!((ids.uuid, ids.csi), (Some([3; 16]), Some(Csi::NVM)));
    let feature = GetFeatures::new(Fid::VOLATILE_WRITE_CACHE);
    assert_eq!(controller.get_features(0, &feature).unwrap(), 0x1234);
    assert_eq!(controller.smart_log().unwrap().host_read_commands, 0);
    let error = controller.changed_namespaces().unwrap_err();
    assert_eq!(error.to_string(), "Get Log Page: Invalid Log Page (1/09h)");

    controller
        .set_event_config(AsyncEventConfig::NAMESPACE_ATTRIBUTE)
        .unwrap();
    controller.submit_event_request().unwrap();
    assert_eq!(controller.poll_event(Duration::ZERO).unwrap(), None);
    controller.keep_alive().unwrap();
    let event = controller.poll_event(Duration::from_secs(10)).unwrap();
    assert_eq!(event, Some(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED));

    let unknown = controller.raw(Sqe::with_opcode(0xc0), Data::None).unwrap();
    assert_eq!(unknown.cqe.status, Status::INVALID_OPCODE);
    controller.reset().unwrap();
    assert!(!controller.csts().unwrap().rdy());
    controller.enable().unwrap();
    assert!(controller.csts().unwrap().rdy());
}

/// A controller that says something else than it should in Identify.
fn identify_tampered(tamper: impl Fn(Cns, &Sqe, &mut [u8]) + Send + Sync + 'static) -> SocketAddr {
    /// Bytes of the C2HData PDU before the data.
    const HEAD: usize = 24;
    serve(Behavior {
        tamper: Arc::new(move |sqe, bytes| {
            if sqe.opcode() == AdminOpcode::IDENTIFY.0 && bytes.len() > HEAD + 4096 {
                let cns = IdentifyCommand::decode(sqe).cns;
                tamper(cns, sqe, &mut bytes[HEAD..HEAD + 4096]);
            }
        }),
        ..Behavior::default()
    })
}

#[test]
fn a_list_of_namespaces_without_an_end_is_not_believed() {
    let put = |bytes: &mut [u8], nsids: &mut dyn Iterator<Item = u32>| {
        for (entry, nsid) in bytes.chunks_exact_mut(4).zip(nsids) {
            entry.copy_from_slice(&nsid.to_le_bytes());
        }
    };
    let beyond = move |cns, sqe: &Sqe, bytes: &mut [u8]| {
        if cns == Cns::ACTIVE_NSID_LIST && sqe.nsid() != 0 {
            put(bytes, &mut (NAMESPACES + 1..));
        }
    };
    let endless = move |cns, sqe: &Sqe, bytes: &mut [u8]| match cns {
        // NN
        Cns::CONTROLLER => bytes[516..520].fill(0xff),
        Cns::ACTIVE_NSID_LIST => put(bytes, &mut (sqe.nsid() + 1..)),
        _ => {}
    };
    for (address, why) in [
        (identify_tampered(beyond), "beyond NN"),
        (identify_tampered(endless), "absurdly many"),
    ] {
        let mut controller = Controller::connect(&options(address)).unwrap();
        let error = controller.active_namespaces().unwrap_err();
        assert!(matches!(error, Error::BadAnswer(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

/// However quickly each command is answered.
#[test]
fn what_takes_many_commands_has_a_time_for_all_of_them() {
    let mut controller = Controller::connect(&options(serve(Behavior::default()))).unwrap();
    controller.admin_queue().set_timeout(Duration::ZERO);
    let errors = [
        controller.active_namespaces().unwrap_err(),
        controller.smart_log().unwrap_err(),
        controller.discovery_log().unwrap_err(),
    ];
    let ends = errors.map(|error| match error {
        Error::Timeout { what, .. } => what,
        other => panic!("{other}"),
    });
    let page = "end of the log page";
    assert_eq!(ends, ["end of the active namespaces", page, page]);
    // A time that no clock reaches is one as well.
    controller.admin_queue().set_timeout(Duration::MAX);
    controller.smart_log().unwrap();
    assert_eq!(controller.active_namespaces().unwrap().len(), 1500);
}

#[test]
fn discovery_reads_again_when_the_log_changes() {
    let entries = discover(serve(Behavior::default())).unwrap();
    let services: Vec<_> = entries.iter().map(|entry| entry.service()).collect();
    assert_eq!(services, ["4420", "4421", "4422", "4423", "4424", "4425"]);
}

#[test]
fn a_status_is_an_error_of_the_command_only() {
    let (_controller, mut queue, disk) = connect(&options(serve(Behavior::default())));
    let error = queue.read(&disk, disk.blocks, &mut [0; BLOCK]).unwrap_err();
    assert_eq!(error.status(), Some(Status::LBA_OUT_OF_RANGE.dnr()));
    assert_eq!(error.to_string(), "Read: LBA Out of Range (0/80h, DNR)");
    queue.read(&disk, 0, &mut [0; BLOCK]).unwrap();
    let error = queue.read(&disk, 0, &mut [0; BLOCK + 1]).unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
}

#[test]
fn pipelined_commands_come_back_with_their_buffers() {
    let (_controller, mut queue, disk) = connect(&options(serve(Behavior::default())));
    for lba in 0..64 {
        queue
            .submit_write(
                &disk,
                lba,
                pattern(BLOCK, usize::try_from(lba).unwrap()),
                lba,
            )
            .unwrap();
    }
    let mut left = 64;
    while left > 0 {
        for done in queue.poll(Duration::from_secs(10)).unwrap() {
            assert_eq!(done.success("Write").unwrap().buffer.len(), BLOCK);
            left -= 1;
        }
    }
    for lba in 0..127 {
        queue.submit_read(&disk, lba, vec![0; BLOCK], lba).unwrap();
    }
    let refused = queue.submit_read(&disk, 0, vec![5; BLOCK], 0).unwrap_err();
    assert!(matches!(refused.error, Error::QueueFull));
    assert_eq!(refused.data.into_buffer(), vec![5; BLOCK]);
    let mut seen = [false; 127];
    while seen.contains(&false) {
        for done in queue.poll(Duration::from_secs(10)).unwrap() {
            let tag = usize::try_from(done.tag).unwrap();
            assert!(!std::mem::replace(&mut seen[tag], true));
            let want = if tag < 64 {
                pattern(BLOCK, tag)
            } else {
                vec![0; BLOCK]
            };
            assert!(done.success("Read").unwrap().buffer == want);
        }
    }
    assert_eq!(queue.queue().outstanding(), 0);
}

/// A controller that answers Reads with what `tamper` makes of the right answer.
fn spoil_reads(tamper: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> SocketAddr {
    serve(Behavior {
        tamper: Arc::new(move |sqe, bytes| {
            if sqe.opcode() == NvmOpcode::READ.0 && sqe.cdw12() == 7 {
                tamper(bytes);
            }
        }),
        ..Behavior::default()
    })
}

/// What a read of 8 blocks ends with, twice: a connection that is over stays so.
fn read_error(address: SocketAddr, adjust: impl Fn(&mut ConnectOptions)) -> Error {
    let mut options = options(address);
    adjust(&mut options);
    let (_controller, mut queue, disk) = connect(&options);
    let first = queue.read(&disk, 0, &mut [0; 8 * BLOCK]).unwrap_err();
    let second = queue.read(&disk, 0, &mut [0; 8 * BLOCK]).unwrap_err();
    if !matches!(first, Error::DataDigest { .. }) {
        assert_eq!(first.to_string(), second.to_string());
    }
    first
}

#[test]
fn a_target_that_lies_is_named() {
    let error = read_error(spoil_reads(|pdu| pdu[12] = 1), |_| {});
    let Error::Violation(Violation(term)) = error else {
        panic!("{error}")
    };
    assert_eq!(
        term,
        TermReq {
            fes: Fes::DATA_OUT_OF_RANGE,
            fei: 0
        }
    );
    assert_eq!(
        error.to_string(),
        "the target broke NVMe/TCP: data transfer out of range (FES 4, FEI 0x0)"
    );
}

#[test]
fn a_target_that_terminates_is_quoted() {
    let term = TermReq {
        fes: Fes::INVALID_HEADER_FIELD,
        fei: 4,
    };
    let address = spoil_reads(move |pdu| *pdu = term.encode(PduType::C2H_TERM_REQ, 0).to_vec());
    let error = read_error(address, |_| {});
    assert!(
        matches!(error, Error::Terminated(t) if t == term),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "the target ended the connection: invalid PDU header field (FES 1, FEI 0x4)"
    );
}

#[test]
fn a_wrong_data_digest_fails_the_read() {
    let address = spoil_reads(|pdu| pdu[24] ^= 1);
    let error = read_error(address, |options| options.data_digest = true);
    assert!(
        matches!(error, Error::DataDigest { command: "Read" }),
        "{error}"
    );
}

#[test]
fn a_silent_target_is_not_waited_for_forever() {
    let (_controller, mut queue, disk) = connect(&options(spoil_reads(Vec::clear)));
    queue.queue().set_timeout(Duration::from_millis(20));
    let error = queue.read(&disk, 0, &mut [0; 8 * BLOCK]).unwrap_err();
    assert!(
        matches!(error, Error::Timeout { what: "Read", .. }),
        "{error}"
    );
}

#[test]
fn a_timeout_may_be_as_long_as_it_takes() {
    let mut options = options(serve(Behavior::default()));
    options.timeout = Duration::MAX;
    let (_controller, mut queue, disk) = connect(&options);
    queue.read(&disk, 0, &mut [0; BLOCK]).unwrap();
}

#[test]
fn an_answer_that_comes_too_late_is_dropped() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let address = spoil_reads(move |_| held.lock().unwrap().recv().unwrap());
    let (_controller, mut queue, disk) = connect(&options(address));
    queue.queue().set_timeout(Duration::from_millis(20));
    let error = queue.read(&disk, 0, &mut [0; 8 * BLOCK]).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    release.send(()).unwrap();
    let mut queue = queue.into_queue();
    while queue.outstanding() > 0 {
        assert_eq!(queue.poll(Duration::from_millis(1)).unwrap().count(), 0);
    }
    let token = queue.submit(command::flush(disk.nsid), Data::None).unwrap();
    let done = queue.poll(Duration::from_secs(10)).unwrap().next().unwrap();
    assert_eq!(done.token, token);
}

#[test]
fn what_connect_is_told_is_checked() {
    let address = serve(Behavior {
        tamper: Arc::new(|sqe, bytes| {
            // The ICResp: other digests than asked for.
            if *sqe == Sqe::default() {
                bytes[11] = 0;
            }
        }),
        ..Behavior::default()
    });
    let mut options = options(address);
    options.header_digest = true;
    let error = Controller::connect(&options).unwrap_err();
    assert!(matches!(error, Error::BadAnswer(_)), "{error}");

    let error = ConnectOptions::new(address, "disks").unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"disks\": the NQN does not begin with \"nqn.yyyy-mm.\""
    );
}

#[test]
fn nobody_listens() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Controller::connect(&options(address)).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(
        error.to_string().starts_with("connecting to the target: "),
        "{error}"
    );
}

#[test]
fn a_target_that_closes() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let closer = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::io::Read::read_exact(&mut stream, &mut [0; 128]).unwrap();
    });
    let error = Controller::connect(&options(address)).unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
    closer.join().unwrap();
}

#[test]
fn a_target_that_never_answers_the_ic_req() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = options(listener.local_addr().unwrap());
    options.timeout = Duration::from_millis(50);
    let error = Controller::connect(&options).unwrap_err();
    assert!(
        matches!(error, Error::Timeout { what: "ICResp", .. }),
        "{error}"
    );
}
