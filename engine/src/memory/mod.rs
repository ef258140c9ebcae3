//! Large pieces of memory that do not come from the general allocator, some of which the kernel is asked to back with
//! huge pages, and pieces of files that are kept in memory.
//!
//! Data that is read at random over hundreds of MiB misses the address translation cache on nearly every access, and on
//! a virtual machine each miss walks two page tables. Measured here: a dependent load from 320 MiB took 1.2 to 1.5 us on
//! 4 KiB pages and 0.55 us on 2 MiB pages (busy machine, same process). Many systems give huge pages only to those who
//! ask (`transparent_hugepage/enabled` = `madvise`), and the general allocator does not.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::path::Path;
use std::ptr::NonNull;

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use rkyv::util::AlignedVec;

pub(crate) use pages::Pages;

mod pages;

/// Size and alignment of a huge page.
pub(crate) const HUGE_BYTES: usize = 2 << 20;

/// Bytes of a line of the processor's caches.
const LINE_BYTES: usize = 64;

/// Asks the processor for the lines that these bytes lie in, `LINES` of them at most, and goes on without waiting. Loads of
/// which each waits for the one before take their time one after another; what is asked for early comes meanwhile.
#[inline]
pub(crate) fn prefetch<const LINES: usize>(bytes: &[u8]) {
    prefetch_lines(bytes.as_ptr(), LINES.min(bytes.len().div_ceil(LINE_BYTES)));
}

/// As [`prefetch`], for so many lines from an address on, which may be any.
#[inline]
pub(crate) fn prefetch_lines(first: *const u8, lines: usize) {
    for line in 0..lines {
        let address = first.wrapping_add(line * LINE_BYTES);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint that reads nothing and faults at no address; SSE is part of x86_64.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }
}

/// Zeroed memory of its own: pages are taken from the system when they are first written, and all go back at once when it
/// is dropped. (What the general allocator has once had, it mostly keeps.)
#[derive(Debug)]
pub(crate) struct Region {
    /// Owns the memory; never touched again but to unmap it.
    _map: MmapMut,
    first: NonNull<u8>,
    len: usize,
}

// SAFETY: a region owns its memory alone, and nothing of it is bound to a thread.
unsafe impl Send for Region {}

impl Region {
    /// `len` bytes, rounded up to whole pages.
    ///
    /// # Panics
    /// As [`Region::huge`].
    pub fn plain(len: usize) -> Region {
        let map = MmapOptions::new().len(len).map_anon();
        let mut map = map.unwrap_or_else(|cause| panic!("cannot map {len} bytes of memory: {cause}"));
        let first = NonNull::from(&mut map[..]).cast();
        Region { _map: map, first, len }
    }

    /// `len` bytes, rounded up to whole huge pages and aligned to one; the kernel is asked for huge pages.
    ///
    /// # Panics
    /// When the system has no address space left, as any allocation does.
    pub fn huge(len: usize) -> Region {
        let len = len.next_multiple_of(HUGE_BYTES);
        // One huge page more than needed, so that an aligned stretch lies within; what is never touched costs nothing.
        let map = MmapOptions::new().len(len + HUGE_BYTES).map_anon();
        let mut map = map.unwrap_or_else(|cause| panic!("cannot map {len} bytes of memory: {cause}"));
        let start = map.as_ptr().align_offset(HUGE_BYTES);
        // Refused where the kernel was built without huge pages; the memory then works as any other. Miri knows no advice.
        if !cfg!(miri) {
            let _ = map.advise_range(Advice::HugePage, start, len);
        }
        let first = NonNull::from(&mut map[start..start + len]).cast();
        Region { _map: map, first, len }
    }

    /// As [`Region::huge`], with all its pages there: whoever asks waits for them, and nobody later.
    pub fn huge_touched(len: usize) -> Region {
        let region = Region::huge(len);
        for offset in (0..region.len()).step_by(4096) {
            // SAFETY: the byte lies in the region.
            let byte = unsafe { region.as_ptr().add(offset) };
            // SAFETY: its memory is zeroed, and nobody else knows of it.
            unsafe { byte.write_volatile(0) };
        }
        region
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The first byte. The region is alive and in one place as long as `self`.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.first
    }
}

/// Memory of this size and above is taken from the system, not from the general allocator: what lives longer would settle
/// in the holes that it leaves there.
pub(crate) const LARGE_BYTES: usize = 64 << 10;
/// Large memory that a thread keeps to use again, unless [`keep_idle`] says otherwise.
const IDLE_BYTES: usize = 2 << 20;

thread_local! {
    static IDLE: RefCell<Vec<Region>> = const { RefCell::new(Vec::new()) };
    static IDLE_BYTES_MAX: Cell<usize> = const { Cell::new(IDLE_BYTES) };
}

/// Has this thread keep so much large memory to use again: what is given back costs a page fault a page when it is wanted
/// anew.
pub(crate) fn keep_idle(bytes: usize) {
    IDLE_BYTES_MAX.set(bytes);
}

/// Large memory for short use, content undefined; the thread that drops it keeps some for the next who asks.
#[derive(Debug)]
struct Lent(Option<Region>);

impl Lent {
    /// At least `len` bytes.
    fn new(len: usize) -> Lent {
        let idle = IDLE.with_borrow_mut(|idle| {
            let fits = |region: &Region| (len..=len * 2).contains(&region.len());
            idle.iter().position(fits).map(|place| idle.swap_remove(place))
        });
        Lent(Some(idle.unwrap_or_else(|| Region::plain(len.next_multiple_of(LARGE_BYTES)))))
    }

    fn region(&self) -> &Region {
        self.0.as_ref().unwrap_or_else(|| unreachable!("lent memory goes back when it is dropped"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(region) = self.0.take() else {
            return;
        };
        // Where the thread is ending the memory goes back to the system.
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.iter().map(Region::len).sum::<usize>() + region.len() <= IDLE_BYTES_MAX.get() {
                idle.push(region);
            }
        });
    }
}

/// What archives in memory are aligned to.
const ALIGN: usize = 16;

/// Bytes in memory that archives may lie in: aligned to 16.
#[derive(Debug)]
pub struct AlignedBytes(Held);

#[derive(Debug)]
enum Held {
    Small(AlignedVec<ALIGN>),
    Large {
        memory: Lent,
        len: usize,
    },
    /// As the device gave them.
    Read {
        pages: Pages,
        start: usize,
        len: usize,
    },
}

impl AlignedBytes {
    /// None yet, with room for `capacity`.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> AlignedBytes {
        AlignedBytes(if capacity < LARGE_BYTES {
            Held::Small(AlignedVec::with_capacity(capacity))
        } else {
            Held::Large { memory: Lent::new(capacity), len: 0 }
        })
    }

    /// The bytes at `range` of pages that the device has filled; they are moved if archives may not begin there.
    ///
    /// # Safety
    /// The first `range.end` bytes of `pages` were written.
    pub(crate) unsafe fn of_pages(pages: Pages, range: std::ops::Range<usize>) -> AlignedBytes {
        assert!(range.start <= range.end && range.end <= pages.len(), "INV-PAGES: what was read lies in the pages");
        let read = AlignedBytes(Held::Read { pages, start: range.start, len: range.len() });
        if range.start.is_multiple_of(ALIGN) {
            return read;
        }
        let mut moved = AlignedBytes::with_capacity(range.len());
        moved.extend_from_slice(&read);
        moved
    }

    /// Appends bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Held::Small(held) if held.len() + bytes.len() < LARGE_BYTES => held.extend_from_slice(bytes),
            Held::Large { memory, len } if *len + bytes.len() <= memory.region().len() => {
                // SAFETY: the region reaches beyond its first `len` bytes, or ends there.
                let end = unsafe { memory.region().as_ptr().add(*len) };
                // SAFETY: there is room for the bytes behind the first `len`, and nobody else knows of that memory.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), end.as_ptr(), bytes.len()) };
                *len += bytes.len();
            }
            Held::Small(_) | Held::Large { .. } | Held::Read { .. } => {
                let needed = (self.len() + bytes.len()).max(LARGE_BYTES);
                let mut grown = AlignedBytes::with_capacity(needed.max(self.len() * 2));
                grown.extend_from_slice(self);
                grown.extend_from_slice(bytes);
                *self = grown;
            }
        }
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Small(held) => held,
            // SAFETY: the first `len` bytes of the region were written (it was zeroed before), and are borrowed with `self`.
            Held::Large { memory, len } => unsafe {
                std::slice::from_raw_parts(memory.region().as_ptr().as_ptr(), *len)
            },
            // SAFETY: these bytes were written before ([`AlignedBytes::of_pages`]), and are borrowed with `self`.
            Held::Read { pages, start, len } => unsafe {
                std::slice::from_raw_parts(pages.as_ptr().wrapping_add(*start), *len)
            },
        }
    }
}

impl From<AlignedVec<ALIGN>> for AlignedBytes {
    fn from(held: AlignedVec<ALIGN>) -> AlignedBytes {
        AlignedBytes(Held::Small(held))
    }
}

/// Zeroed words in memory of their own where they are many.
#[derive(Debug)]
pub(crate) enum Words {
    Small(Box<[u64]>),
    Large { memory: Region, len: usize },
}

impl Words {
    /// So many zeros.
    pub fn zeroed(len: usize) -> Words {
        if len * size_of::<u64>() < LARGE_BYTES {
            Words::Small(vec![0; len].into())
        } else {
            Words::Large { memory: Region::plain(len * size_of::<u64>()), len }
        }
    }
}

impl Default for Words {
    fn default() -> Words {
        Words::zeroed(0)
    }
}

impl std::ops::Deref for Words {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        match self {
            Words::Small(words) => words,
            // SAFETY: the region holds `len` words, aligned to a page and zeroed, and belongs to `self`.
            Words::Large { memory, len } => unsafe {
                std::slice::from_raw_parts(memory.as_ptr().cast().as_ptr(), *len)
            },
        }
    }
}

impl std::ops::DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u64] {
        match self {
            Words::Small(words) => words,
            // SAFETY: as above, borrowed for writing.
            Words::Large { memory, len } => unsafe {
                std::slice::from_raw_parts_mut(memory.as_ptr().cast().as_ptr(), *len)
            },
        }
    }
}

/// A piece of an immutable file, mapped and locked: reading it never faults.
#[derive(Debug)]
pub(crate) struct LockedMap {
    map: Mmap,
}

impl LockedMap {
    /// Maps, reads and locks `len` bytes at `offset` (a multiple of the page size). Blocks for as long as the device takes.
    ///
    /// Errors: the system's; `EPERM` or `ENOMEM` when the process may not lock so much memory.
    pub fn new(path: &Path, offset: u64, len: usize) -> std::io::Result<LockedMap> {
        let file = File::open(path)?;
        // SAFETY: table files are never changed once they are named, and their folder belongs to this process alone
        // (its lock is held); they are removed but not truncated, which leaves the map as it is.
        let map = unsafe { MmapOptions::new().offset(offset).len(len).map(&file) }?;
        // Locking populates the map.
        map.lock()?;
        Ok(LockedMap { map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn aligned_bytes_of_any_growth_hold_what_was_added(
            capacity in 0..200_000usize, pieces in prop::collection::vec(0..90_000usize, 0..6)
        ) {
            let mut bytes = AlignedBytes::with_capacity(capacity);
            let mut expected = Vec::new();
            for (mark, len) in pieces.into_iter().enumerate() {
                let piece = vec![mark as u8 + 1; len];
                bytes.extend_from_slice(&piece);
                expected.extend_from_slice(&piece);
            }
            prop_assert!(bytes.as_ptr().addr().is_multiple_of(16));
            prop_assert!(*bytes == *expected);
        }
    }

    #[test]
    fn words_many_or_few_are_zero_and_keep_what_is_written() {
        for len in [0, 1, 100, LARGE_BYTES / 8, 100_000] {
            let mut words = Words::zeroed(len);
            assert_eq!(words.len(), len);
            assert!(words.iter().all(|word| *word == 0));
            words.iter_mut().enumerate().for_each(|(index, word)| *word = index as u64);
            assert!(words.iter().enumerate().all(|(index, word)| *word == index as u64));
        }
    }

    #[test]
    fn lent_memory_is_used_again_up_to_a_bound() {
        let first = Lent::new(LARGE_BYTES * 2);
        let place = first.region().as_ptr();
        drop(first);
        let again = Lent::new(LARGE_BYTES + 1);
        assert_eq!(again.region().as_ptr(), place);
        let many: Vec<Lent> = (0..100).map(|_| Lent::new(LARGE_BYTES)).collect();
        drop((again, many));
        IDLE.with_borrow(|idle| assert!(idle.iter().map(Region::len).sum::<usize>() <= IDLE_BYTES));
    }
}
