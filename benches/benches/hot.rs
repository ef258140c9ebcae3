//! The pieces that run for every request or every window, timed.

mod pieces;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pieces::{PIECES, TIMED, Work};

fn hot(c: &mut Criterion) {
    for (name, make) in PIECES.iter().chain(TIMED) {
        let mut piece = make();
        let mut group = c.benchmark_group("hot");
        group.throughput(match piece.work {
            Work::Bytes(bytes) => Throughput::Bytes(bytes),
            Work::Elements(elements) => Throughput::Elements(elements),
        });
        group.bench_function(*name, |b| b.iter_custom(&mut piece.run));
        group.finish();
    }
}

criterion_group!(benches, hot);
criterion_main!(benches);
