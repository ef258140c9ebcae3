//! The engine on this machine's device.

use std::time::Instant;

use antumbra_engine::types::{Epoch, KeyRange, PartitionId, ShardId};
use antumbra_engine::{Engine, EngineConfig, PartitionOptions, PartitionSpec};

/// Polls a future on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::park();
    }
}

/// A lone durable put against a plain O_DSYNC write of one block: shown, and bounded generously, since machines vary.
#[test]
fn lone_durable_put_costs_little_more_than_a_device_write() {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    const ROUNDS: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(EngineConfig::new(dir.path().join("data"))).unwrap();
    let spec = PartitionSpec {
        id: PartitionId(1),
        keyspace: "hw".into(),
        range: KeyRange::all(),
        epoch: Epoch(1),
        options: PartitionOptions::default(),
    };
    let partition = block_on(engine.create_partition(ShardId(0), spec)).unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, vec![0; ROUNDS * 4096]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).custom_flags(0o10000).open(&plain).unwrap();
    let (mut puts, mut writes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let start = Instant::now();
        block_on(partition.put(format!("key-{round}"), vec![7; 256])).unwrap();
        puts.push(start.elapsed());
        let start = Instant::now();
        file.write_all_at(&[1; 4096], (round * 4096) as u64).unwrap();
        writes.push(start.elapsed());
    }
    puts.sort_unstable();
    writes.sort_unstable();
    let (put, write) = (puts[ROUNDS / 2], writes[ROUNDS / 2]);
    println!(
        "durable put p50 {put:?}, O_DSYNC write of 4 KiB p50 {write:?}, ratio {:.2}",
        put.as_secs_f64() / write.as_secs_f64()
    );
    assert!(put < write * 20 + std::time::Duration::from_millis(5));
    block_on(engine.close()).unwrap();
}
