//! The pieces that run for every request or every window.

use antumbra_engine::record::{Record, RecordKind};
use antumbra_engine::table::{TableBuilder, TableOptions, decode_records, encode_records, verify_image};
use antumbra_engine::types::{Hlc, Lsn};
use antumbra_predictor::model::Model;
use antumbra_predictor::scorer::{Gru, Scorer};
use antumbra_predictor::window::SegmentCounts;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn records(count: u64) -> Vec<Record> {
    (0..count)
        .map(|number| Record {
            key: format!("key-{number:08}").into_bytes().into(),
            lsn: Lsn(number + 1),
            hlc: Hlc(number),
            kind: RecordKind::Put,
            expires_at_ms: 0,
            value: vec![b'v'; 256].into(),
        })
        .collect()
}

fn tables(c: &mut Criterion) {
    let records = records(4_000);
    let bytes: usize = records.iter().map(|record| record.key.len() + record.value.len()).sum();
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Bytes(bytes as u64));
    let build = || {
        let mut builder = TableBuilder::new(TableOptions::default());
        records.iter().try_for_each(|record| builder.add(record.view())).and_then(|()| builder.finish())
    };
    group.bench_function("build 4000 records", |b| b.iter(build));
    if let Ok(built) = build() {
        group.bench_function("verify 4000 records", |b| {
            b.iter(|| futures_lite_block_on(verify_image(&built.bytes)));
        });
    }
    group.bench_function("mirror batch of 4000 records", |b| {
        b.iter_batched(
            || encode_records(records.iter().map(Record::view)).unwrap_or_default(),
            |bytes| decode_records(&bytes),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// The image is in memory, so its future never waits.
fn futures_lite_block_on<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

fn predictor(c: &mut Criterion) {
    let Ok(model) = Model::shipped() else {
        return;
    };
    let mut random = fastrand::Rng::with_seed(1);
    let counts: Vec<SegmentCounts> = (0..1_024)
        .map(|_| SegmentCounts {
            reads: random.u32(0..50),
            writes: random.u32(0..5),
            bytes: 4_000,
            ..SegmentCounts::default()
        })
        .collect();
    let mut gru = Gru::new(&model, counts.len());
    c.bench_function("gru pass over 1024 segments", |b| b.iter(|| gru.observe(&counts)));
}

criterion_group!(hot, tables, predictor);
criterion_main!(hot);
