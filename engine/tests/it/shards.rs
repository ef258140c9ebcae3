//! A data folder opened with another number of threads.

use antumbra_engine::types::{PartitionId, ShardId};
use antumbra_engine::{Engine, Error, PartitionHandle, PartitionSpec};
use bytes::Bytes;

use crate::common::block_on;

fn open_with(dir: &std::path::Path, threads: usize) -> Engine {
    let mut config = crate::common::config(dir);
    config.shards = threads;
    config.memory_budget_bytes = 64 << 20;
    Engine::open(config).unwrap()
}

fn value(partition: u64, round: u64) -> Bytes {
    Bytes::from(format!("partition {partition}, round {round}"))
}

#[test]
fn open_with_other_numbers_of_threads_keeps_all_data_and_places_new_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let mut partitions = 0_u64;
    for (round, (threads, shards)) in [(3, 3), (1, 3), (2, 3), (5, 5), (2, 5), (1, 5)].into_iter().enumerate() {
        let round = round as u64;
        let engine = open_with(dir.path(), threads);
        assert_eq!(engine.shards(), shards);
        for partition in 0..partitions {
            let handle = engine.partition(PartitionId(partition)).unwrap();
            let found = block_on(handle.get("key")).unwrap();
            assert_eq!(found, Some(value(partition, round - 1)));
        }
        for shard in 0..shards as u64 {
            let spec = PartitionSpec { id: PartitionId(partitions + shard), ..crate::common::spec() };
            block_on(engine.create_partition(ShardId(shard as u16), spec)).unwrap();
        }
        partitions += shards as u64;
        for partition in 0..partitions {
            let handle = engine.partition(PartitionId(partition)).unwrap();
            block_on(handle.put("key", value(partition, round))).unwrap();
        }
        block_on(engine.close()).unwrap();
    }
}

/// Files below `dir` that this process has open.
fn open_files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// An engine with a key, in a partition of its last shard.
fn open_with_a_key(dir: &std::path::Path, threads: u16) -> (Engine, PartitionHandle) {
    let engine = open_with(dir, threads.into());
    let partition = block_on(engine.create_partition(ShardId(threads - 1), crate::common::spec())).unwrap();
    block_on(partition.put("key", "value")).unwrap();
    (engine, partition)
}

#[test]
fn closed_engine_has_no_file_open() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, partition) = open_with_a_key(dir.path(), 2);
    block_on(partition.compact()).unwrap();
    assert!(open_files(dir.path()).len() > 4, "the check sees files of an open engine");
    drop(partition);
    block_on(engine.close()).unwrap();
    assert_eq!(open_files(dir.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn open_with_a_shard_folder_missing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    block_on(open_with(dir.path(), 3).close()).unwrap();
    std::fs::rename(dir.path().join("shard-001"), dir.path().join("elsewhere")).unwrap();
    let mut config = crate::common::config(dir.path());
    config.memory_budget_bytes = 64 << 20;
    match Engine::open(config) {
        Err(Error::Invalid { what }) => assert!(what.contains("shard-001"), "{what}"),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn drop_last_handle_inside_a_task_of_a_shard_ends_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), 1);
    let inside = engine.clone();
    let (go, wait) = async_channel::bounded::<()>(1);
    block_on(engine.spawn_on_shard(ShardId(0), move |_| async move {
        let _ = wait.recv().await;
        drop(inside);
    }))
    .unwrap();
    drop(engine);
    go.send_blocking(()).unwrap();
    // The folder is free as soon as the shard has ended.
    block_on(open_with(dir.path(), 1).close()).unwrap();
}

#[test]
fn foreground_waits_only_where_requests_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, partition) = open_with_a_key(dir.path(), 1);
    let look = |gets: u32| {
        block_on(partition.with(move |partition| async move {
            for _ in 0..gets {
                partition.get(b"key").await?;
            }
            antumbra_engine::runtime::sleep(std::time::Duration::from_millis(150)).await;
            Ok(partition.foreground_p99())
        }))
        .unwrap()
    };
    assert_eq!(look(0), None, "the first call only asks");
    look(0);
    assert_eq!(look(0), Some(std::time::Duration::ZERO), "nobody could have waited");
    assert!(look(100).unwrap() > std::time::Duration::ZERO);
}
