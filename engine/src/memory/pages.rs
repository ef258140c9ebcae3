//! Whole pages for one request to the device: past the page cache it takes only aligned memory.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

use super::{LARGE_BYTES, Lent};

/// Size and alignment of a page.
const PAGE_BYTES: usize = 4096;
/// One more than the pages of the largest below [`LARGE_BYTES`].
const SIZES: usize = LARGE_BYTES / PAGE_BYTES + 1;
/// Bytes of one size that a thread keeps between two uses: those of a full queue of the device.
const SPARE_BYTES_MAX: usize = 512 << 10;

thread_local! {
    static SPARE: RefCell<[Vec<Small>; SIZES]> = const { RefCell::new([const { Vec::new() }; SIZES]) };
}

/// Pages whose content is undefined at first; the thread that drops them keeps some for the next who asks.
#[derive(Debug)]
pub(crate) struct Pages(Memory);

#[derive(Debug)]
enum Memory {
    /// `None` only while it is dropped.
    Small(Option<Small>),
    Large(Lent),
}

impl Pages {
    /// At least `len` bytes.
    pub fn new(len: usize) -> Pages {
        if len >= LARGE_BYTES {
            return Pages(Memory::Large(Lent::new(len)));
        }
        let pages = len.max(1).div_ceil(PAGE_BYTES);
        let spare = SPARE.with_borrow_mut(|spare| spare.get_mut(pages).and_then(Vec::pop));
        Pages(Memory::Small(Some(spare.unwrap_or_else(|| Small::new(pages)))))
    }

    /// The first byte; the pages stay there as long as `self` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.0 {
            Memory::Small(Some(small)) => small.first.as_ptr(),
            Memory::Small(None) => unreachable!("it is being dropped"),
            Memory::Large(lent) => lent.region().as_ptr().as_ptr(),
        }
    }

    /// Bytes there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Memory::Small(Some(small)) => small.layout.size(),
            Memory::Small(None) => unreachable!("it is being dropped"),
            Memory::Large(lent) => lent.region().len(),
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let Memory::Small(small) = &mut self.0 else {
            return;
        };
        let Some(small) = small.take() else {
            return;
        };
        // Where the thread is ending the memory goes back.
        let _ = SPARE.try_with(|spare| {
            let (size, mut spare) = (small.layout.size(), spare.borrow_mut());
            if let Some(kept) = spare.get_mut(size / PAGE_BYTES)
                && (kept.len() + 1) * size <= SPARE_BYTES_MAX
            {
                kept.push(small);
            }
        });
    }
}

/// Pages from the general allocator.
#[derive(Debug)]
struct Small {
    first: NonNull<u8>,
    layout: Layout,
}

impl Small {
    fn new(pages: usize) -> Small {
        let Ok(layout) = Layout::from_size_align(pages * PAGE_BYTES, PAGE_BYTES) else {
            unreachable!("less than {LARGE_BYTES} bytes, aligned to a page");
        };
        // SAFETY: the size is not zero.
        let first = unsafe { alloc(layout) };
        match NonNull::new(first) {
            Some(first) => Small { first, layout },
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody else's.
        unsafe { dealloc(self.first.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_and_used_again() {
        for len in [0, 1, PAGE_BYTES, PAGE_BYTES + 1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES * 3 + 1] {
            let pages = Pages::new(len);
            assert!(pages.len() >= len);
            assert!(pages.as_ptr().addr().is_multiple_of(PAGE_BYTES), "{len}");
            let place = pages.as_ptr();
            drop(pages);
            assert_eq!(Pages::new(len).as_ptr(), place, "{len}");
        }
    }

    #[test]
    fn a_thread_keeps_a_bounded_number_of_each_size() {
        drop((0..1000).map(|_| Pages::new(2 * PAGE_BYTES)).collect::<Vec<_>>());
        SPARE.with_borrow(|spare| assert_eq!(spare[2].len(), SPARE_BYTES_MAX / (2 * PAGE_BYTES)));
    }
}
