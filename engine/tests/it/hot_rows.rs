//! What is read again and again is what was written last, however it is written, flushed and compacted in between.

use std::collections::BTreeMap;
use std::rc::Rc;

use antumbra_engine::types::KeyRange;
use antumbra_engine::{Batch, Durability, Partition, Result, Write};
use bytes::Bytes;

use crate::common::{block_on, create, open};

const KEYS: u64 = 400;
const STEPS: u64 = 60_000;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:04}"))
}

/// Values of all lengths up to some that are too long for a hot row.
fn value(number: u64, step: u64) -> Bytes {
    let mut value = format!("{number}:{step}:").into_bytes();
    value.resize(20 + (number * 37 % 400) as usize, b'x');
    value.into()
}

async fn run(partition: Rc<Partition>, seed: u64) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    for step in 0..STEPS {
        // Some keys are read much more than others.
        let number = random.u64(0..KEYS).min(random.u64(0..KEYS));
        let key = key(number);
        match random.u32(0..1_000) {
            0..40 => {
                let value = value(number, step);
                partition.write(Write::put(key.clone(), value.clone()), Durability::Buffered).await?;
                model.insert(key, value);
            }
            40..50 => {
                partition.write(Write::delete(key.clone()), Durability::Buffered).await?;
                model.remove(&key);
            }
            50..54 => {
                // Has expired when it is written.
                let write = Write { key: key.clone(), value: Some(value(number, step)), expires_at_ms: 1 };
                partition.write(write, Durability::Buffered).await?;
                model.remove(&key);
            }
            54..57 => {
                let end = self::key(number + 20);
                let mut batch = Batch::new();
                batch.delete_range(KeyRange { start: key.to_vec(), end: Some(end.to_vec()) });
                batch.put(end.clone(), value(number + 20, step));
                partition.commit(batch, Durability::Buffered).await?;
                model.retain(|held, _| *held < key || *held >= end);
                model.insert(end, value(number + 20, step));
            }
            57..59 => partition.compact_all().await?,
            59 => {
                // A snapshot sees what was, whatever is at hand.
                let pin = partition.pin_latest();
                let before = model.get(&key).cloned();
                partition.write(Write::put(key.clone(), value(number, step)), Durability::Buffered).await?;
                model.insert(key.clone(), value(number, step));
                assert_eq!(partition.get_at(&key, &pin.moment()).await?, before);
            }
            _ => assert_eq!(partition.get(&key).await?, model.get(&key).cloned(), "step {step}, {key:?}"),
        }
    }
    Ok(())
}

#[test]
fn keys_read_again_and_again_are_what_was_written_last() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let handle = create(&engine);
    block_on(handle.with(async move |partition| run(partition, 7).await)).unwrap();
    block_on(engine.close()).unwrap();
}
