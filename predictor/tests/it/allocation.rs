//! Between two changes of the segment structure nothing allocates (INV-P2).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use antumbra_predictor::scorer::{ScorerKind, build};
use antumbra_predictor::signal::{Signal, SignalConfig};
use antumbra_predictor::{AccessWindows, Model};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: both functions pass their arguments on to the system allocator unchanged; counting does not allocate, since
// the thread-local is constant-initialised and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: `layout` is the caller's, who keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` with this `layout`, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn counter_counts() {
    assert!(allocations_of(|| drop(std::hint::black_box(vec![1u8; 10]))) > 0);
}

#[test]
fn windows_and_every_scorer_allocate_nothing() {
    let segments = 300;
    let model = Model::random(16, 8, 1);
    let mut windows = AccessWindows::new(segments);
    let mut scorers: Vec<_> =
        ScorerKind::ALL.into_iter().map(|kind| build(kind, Some(&model), segments).expect("a scorer")).collect();
    let mut signal = Signal::new(SignalConfig::new(100.0, 10.0)).expect("good settings");
    let count = allocations_of(|| {
        for window in 0..200usize {
            for request in 0..100 {
                windows.record_read((window + request) % segments, 100);
                windows.record_write((window * 7 + request) % segments, 100);
            }
            let counts = windows.close();
            for scorer in &mut scorers {
                scorer.begin(counts);
                while !scorer.step(64) {}
            }
            signal.observe(window as f64);
        }
    });
    assert_eq!(count, 0);
}
