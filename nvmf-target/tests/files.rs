//! Files over the wire, by each engine.

mod common;

use common::*;
use nvmf_host::nvmf_proto::wire::Status;
use nvmf_target::ns::{
    Direct, FileBackend, FileEngine, FileNamespace, FileOptions, Namespace as _, WorkerPool,
};
use nvmf_target::{SubsystemConfig, Target};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tempfile::NamedTempFile;

const MIB: u64 = 1 << 20;
const ENGINES: [FileEngine; 3] = [FileEngine::Auto, FileEngine::Uring, FileEngine::Threads];

struct Served {
    file: NamedTempFile,
    backend: Arc<FileBackend>,
    target: Target,
    address: SocketAddr,
}

/// A target with `bytes` of a file as namespace 1; `None` where the system has no such engine.
fn serve(engine: FileEngine, direct: Direct, bytes: u64) -> Option<Served> {
    let _ = env_logger::builder().is_test(true).try_init();
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    let mut options = FileOptions::default();
    options.direct = direct;
    let backend = Arc::new(FileBackend::open(file.path(), &options).unwrap());
    let workers = Arc::new(WorkerPool::new(4));
    let namespace = FileNamespace::new(Arc::clone(&backend), engine, &workers);
    // A sandbox may forbid it.
    let namespace = namespace
        .inspect_err(|_| assert_eq!(engine, FileEngine::Uring))
        .ok()?;
    assert_eq!(namespace.info().bytes(), bytes);
    let target = Target::new(config()).unwrap();
    target.add_subsystem(SubsystemConfig::new(NQN)).unwrap();
    target.add_namespace(NQN, 1, namespace).unwrap();
    let address = target.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    Some(Served {
        file,
        backend,
        target,
        address,
    })
}

#[test]
fn hosts_read_what_they_have_written() {
    for engine in ENGINES {
        for direct in [Direct::Auto, Direct::Off] {
            let Some(served) = serve(engine, direct, 16 * MIB) else {
                continue;
            };
            std::thread::scope(|scope| {
                for host in 0..4 {
                    let address = served.address;
                    scope.spawn(move || works_on_its_part(address, host));
                }
            });
            let mut data = vec![0; 512];
            served.file.as_file().read_exact_at(&mut data, 0).unwrap();
            assert_eq!(data, pattern(0, 512));
            assert!(served.target.shutdown(PATIENCE));
        }
    }
}

/// Writes, reads back, zeroes and flushes in a quarter of the namespace.
fn works_on_its_part(address: SocketAddr, host: u64) {
    let mut controller = connect(address);
    let ns = controller.namespace(1).unwrap();
    controller.set_queue_count(1).unwrap();
    let mut queue = controller.io_queue(1).unwrap();
    let first = host * 8192;
    for (round, bytes) in (0..).zip([512, 4096, 64 << 10, 1 << 20, 512]) {
        let data = pattern(host * 1000 + round, bytes);
        queue.write(&ns, first + 64, &data).unwrap();
        let mut back = vec![0; bytes];
        queue.read(&ns, first + 64, &mut back).unwrap();
        assert!(back == data, "{host} {round}");
    }
    queue.write_zeroes(&ns, first + 64, 4, true).unwrap();
    queue.flush(&ns).unwrap();
    let mut back = vec![1; 4096];
    queue.read(&ns, first + 64, &mut back).unwrap();
    assert_eq!(back[..2048], [0; 2048]);
    queue.write(&ns, first, &pattern(host, 512)).unwrap();
}

#[test]
fn a_truncated_file_fails_reads_and_a_grown_one_is_larger() {
    for engine in ENGINES {
        let Some(served) = serve(engine, Direct::Auto, 4 * MIB) else {
            continue;
        };
        let mut controller = connect(served.address);
        let ns = controller.namespace(1).unwrap();
        controller.set_queue_count(1).unwrap();
        let mut queue = controller.io_queue(1).unwrap();
        served.file.as_file().set_len(MIB).unwrap();
        let err = queue.read(&ns, 4096, &mut [0; 4096]).unwrap_err();
        assert_eq!(err.status(), Some(Status::UNRECOVERED_READ_ERROR));
        queue.read(&ns, 0, &mut [0; 4096]).unwrap();

        served.file.as_file().set_len(8 * MIB).unwrap();
        assert!(served.backend.refresh().unwrap());
        let ns = controller.namespace(1).unwrap();
        assert_eq!(ns.blocks, 16384);
        queue.write(&ns, 16383, &[5; 512]).unwrap();
        let mut back = [0; 512];
        served
            .file
            .as_file()
            .read_exact_at(&mut back, 8 * MIB - 512)
            .unwrap();
        assert_eq!(back, [5; 512]);
    }
}

#[test]
fn a_removed_namespace_lets_go_of_its_file() {
    for engine in ENGINES {
        let Some(served) = serve(engine, Direct::Auto, 4 * MIB) else {
            continue;
        };
        verified_io(served.address, 7);
        served.target.remove_namespace(NQN, 1).unwrap();
        eventually("the file is free", || {
            Arc::strong_count(&served.backend) == 1
        });
    }
}
