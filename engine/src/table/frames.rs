//! Memory of cached blocks: frames of one shard in slabs of huge pages.
//!
//! A slab belongs to one size class and is cut into equal frames; frames of a size that is rare lie among larger ones, so
//! that no slab is held for a few. A slab whose last frame is freed goes back to the system, but for one that is kept to be
//! used again.
//!
//! - `INV-FRAME`: a frame's memory belongs to one [`Frame`] from its allocation until that is dropped, and its slab is
//!   not unmapped before; the pool lives as long as any of its frames.

use std::cell::{Cell, RefCell};
use std::ops::RangeInclusive;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use crate::memory::{HUGE_BYTES, Region};

use super::cache::BlockSlots;

/// Size classes are multiples of this; half of it is lost per frame in the mean.
const CLASS_BYTES: usize = 128;
/// Larger frames get a region of their own.
const CLASS_MAX: usize = 64 << 10;
/// Slabs that a pool has at least, if they need not be smaller than the smallest for it.
const SLABS: usize = 32;
const SLAB_BYTES_MIN: usize = 4 * CLASS_MAX;
/// A frame may be larger than asked by one part in so many, where that saves a new slab.
const ROUNDING: usize = 8;
/// Frames of a rare size lie in slabs of larger ones, until one part in so many of a slab is lost by that.
const LOST_SHARE: usize = 4;
const WORD: usize = size_of::<u64>();

/// Who uses a frame: a table's slots and the place in them.
pub(super) type Owner = (Weak<BlockSlots>, u32);

#[derive(Debug)]
struct Slab {
    region: Region,
    class: usize,
    /// Frames that are free.
    free: Vec<u32>,
    live: u32,
    /// Who was last said to use each frame; may be out of date.
    owners: Vec<Owner>,
}

#[derive(Debug, Default)]
struct Slabs {
    slabs: Vec<Option<Slab>>,
    /// Places in `slabs` that are empty.
    vacant: Vec<u32>,
    /// For each class, its slabs that have a free frame.
    partial: Vec<Vec<u32>>,
    /// For each class, the bytes by which its frames are larger than asked because they lie in slabs of larger ones.
    lost: Vec<usize>,
    /// An empty slab's memory, kept.
    spare: Option<Region>,
}

/// The pool.
#[derive(Debug)]
pub(crate) struct FramePool {
    slab_bytes: usize,
    slabs: RefCell<Slabs>,
    mapped: Cell<usize>,
    used: Cell<usize>,
}

impl FramePool {
    /// A pool for about `capacity` bytes: slabs of huge pages where that is many of them.
    pub fn for_capacity(capacity: usize) -> FramePool {
        let slab_bytes = (capacity / SLABS).next_power_of_two().clamp(SLAB_BYTES_MIN, HUGE_BYTES);
        FramePool { slab_bytes, slabs: RefCell::default(), mapped: Cell::new(0), used: Cell::new(0) }
    }

    /// Size of a slab.
    pub fn slab_bytes(&self) -> usize {
        self.slab_bytes
    }

    /// Bytes of memory taken from the system.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped.get()
    }

    /// Bytes in frames that somebody uses.
    pub fn used_bytes(&self) -> usize {
        self.used.get()
    }

    /// The slab with the smallest part in use.
    pub fn sparsest(&self) -> Option<u32> {
        let slabs = self.slabs.borrow();
        let in_use = |slab: &Slab| slab.live as usize * slab.class;
        let held = slabs.slabs.iter().enumerate().filter_map(|(place, slab)| Some((place, slab.as_ref()?)));
        held.min_by_key(|(_, slab)| in_use(slab)).map(|(place, _)| place as u32)
    }

    /// The owners of a slab's frames, as far as they were told.
    pub fn take_owners(&self, slab: u32) -> Vec<Owner> {
        let mut slabs = self.slabs.borrow_mut();
        slabs.slabs[slab as usize].as_mut().map_or_else(Vec::new, |slab| std::mem::take(&mut slab.owners))
    }

    /// Gives the memory back that an empty slab left; false if there is none.
    pub fn give_back_spare(&self) -> bool {
        let spare = self.slabs.borrow_mut().spare.take();
        self.mapped.update(|mapped| mapped - spare.as_ref().map_or(0, Region::len));
        spare.is_some()
    }

    /// Whether the next slab will soon be needed, and its memory is not there: huge pages, which the system may have to make
    /// room for first. That took up to 10 ms: see [`FramePool::keep_spare`].
    pub fn wants_spare(&self) -> bool {
        let idle = self.mapped.get() - self.used.get();
        self.slab_bytes == HUGE_BYTES && idle < self.slab_bytes / 4 && self.slabs.borrow().spare.is_none()
    }

    /// Takes memory for the next slab, which was had and touched elsewhere.
    pub fn keep_spare(&self, region: Region) {
        let mut slabs = self.slabs.borrow_mut();
        if slabs.spare.is_none() && region.len() == self.slab_bytes {
            self.mapped.update(|mapped| mapped + region.len());
            slabs.spare = Some(region);
        }
    }

    /// Says who uses a frame, so that its slab can be emptied.
    pub fn set_owner(&self, frame: &Frame, owner: Owner) {
        let Place::Slab { slab, index, .. } = frame.place else {
            return;
        };
        if let Some(slab) = self.slabs.borrow_mut().slabs[slab as usize].as_mut() {
            let index = index as usize;
            if slab.owners.len() <= index {
                slab.owners.resize(index + 1, (Weak::new(), 0));
            }
            slab.owners[index] = owner;
        }
    }

    /// A frame of at least `len` bytes with undefined content.
    pub fn allocate(self: &Rc<FramePool>, len: usize) -> Frame {
        let class = class_of(len);
        let len = class * CLASS_BYTES;
        if len > CLASS_MAX {
            self.used.update(|used| used + len);
            let region = if len < HUGE_BYTES { Region::plain(len) } else { Region::huge(len) };
            self.mapped.update(|mapped| mapped + region.len());
            let memory = region.as_ptr().cast();
            return Frame { pool: Rc::clone(self), memory, len, place: Place::Alone(region) };
        }
        let mut slabs = self.slabs.borrow_mut();
        let (slab, mapped) = slabs.slab_with_room(class, self.slab_bytes);
        self.mapped.update(|bytes| bytes + mapped);
        let index = slabs.take_frame(slab);
        let Some(held) = slabs.slabs[slab as usize].as_ref() else {
            unreachable!("INV-FRAME: a slab with room exists");
        };
        let len = held.class * CLASS_BYTES;
        self.used.update(|used| used + len);
        // SAFETY: frame `index` of the slab lies within its region.
        let memory = unsafe { held.region.as_ptr().add(index as usize * len) }.cast();
        slabs.lost[class] += len - class * CLASS_BYTES;
        Frame { pool: Rc::clone(self), memory, len, place: Place::Slab { slab, index, asked: class as u16 } }
    }
}

/// The size class of frames of `len` bytes.
fn class_of(len: usize) -> usize {
    len.div_ceil(CLASS_BYTES).max(1)
}

impl Slabs {
    /// The fullest slab with a free frame, of the smallest class of these that has one.
    fn partial_slab(&self, mut classes: RangeInclusive<usize>) -> Option<u32> {
        let free = |place: &u32| self.slabs[*place as usize].as_ref().map_or(0, |slab| slab.free.len());
        classes.find_map(|class| self.partial.get(class)?.iter().min_by_key(|place| free(place)).copied())
    }

    /// The class above this one that most slabs have.
    fn commonest_above(&self, class: usize) -> Option<usize> {
        let mut slabs_of = vec![0; self.partial.len()];
        self.slabs.iter().flatten().for_each(|slab| slabs_of[slab.class] += 1);
        (class + 1..slabs_of.len()).filter(|class| slabs_of[*class] > 0).max_by_key(|class| slabs_of[*class])
    }

    /// A slab with a free frame for one of this class, and the bytes that had to be mapped for it.
    fn slab_with_room(&mut self, class: usize, slab_bytes: usize) -> (u32, usize) {
        if self.partial.len() <= class {
            self.partial.resize_with(class + 1, Vec::new);
            self.lost.resize(class + 1, 0);
        }
        if let Some(slab) = self.partial_slab(class..=class + class / ROUNDING) {
            return (slab, 0);
        }
        let is_rare = |by: usize| self.lost[class] + (by - class) * CLASS_BYTES <= slab_bytes / LOST_SHARE;
        let larger = self.partial_slab(class + 1..=self.partial.len());
        if let Some(place) = larger
            && self.slabs[place as usize].as_ref().is_some_and(|slab| is_rare(slab.class))
        {
            return (place, 0);
        }
        let class = self.commonest_above(class).filter(|larger| is_rare(*larger)).unwrap_or(class);
        let mapped = if self.spare.is_some() { 0 } else { slab_bytes };
        let region = self.spare.take().unwrap_or_else(|| match slab_bytes {
            HUGE_BYTES => Region::huge(HUGE_BYTES),
            _ => Region::plain(slab_bytes),
        });
        let frames = slab_bytes / (class * CLASS_BYTES);
        // Taken from the end: the first frames first.
        let free = (0..frames as u32).rev().collect();
        let slab = Slab { region, class, free, live: 0, owners: Vec::new() };
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.slabs.push(None);
            self.slabs.len() as u32 - 1
        });
        self.slabs[place as usize] = Some(slab);
        self.partial[class].push(place);
        (place, mapped)
    }

    fn take_frame(&mut self, place: u32) -> u32 {
        let Some((slab, index)) = self.slabs[place as usize].as_mut().and_then(|slab| {
            let index = slab.free.pop()?;
            Some((slab, index))
        }) else {
            unreachable!("INV-FRAME: a partial slab has a free frame");
        };
        slab.live += 1;
        if slab.free.is_empty() {
            self.partial[slab.class].retain(|other| *other != place);
        }
        index
    }

    /// Takes a frame back; returns the bytes unmapped.
    fn free_frame(&mut self, place: u32, index: u32) -> usize {
        let Some(slab) = self.slabs[place as usize].as_mut() else {
            unreachable!("INV-FRAME: a slab with live frames exists");
        };
        if slab.free.is_empty() {
            self.partial[slab.class].push(place);
        }
        slab.free.push(index);
        slab.live -= 1;
        if slab.live > 0 {
            return 0;
        }
        let class = slab.class;
        self.partial[class].retain(|other| *other != place);
        self.vacant.push(place);
        let emptied = self.slabs[place as usize].take().map(|slab| slab.region);
        if self.spare.is_none() {
            self.spare = emptied;
            return 0;
        }
        emptied.map_or(0, |region| region.len())
    }
}

#[derive(Debug)]
enum Place {
    /// In a slab of the class `asked` for, or of a larger one.
    Slab {
        slab: u32,
        index: u32,
        asked: u16,
    },
    Alone(Region),
}

/// A piece of memory of the pool, aligned to 128 bytes.
#[derive(Debug)]
pub(crate) struct Frame {
    pool: Rc<FramePool>,
    memory: NonNull<u64>,
    len: usize,
    place: Place,
}

impl Frame {
    /// The slab that it lies in; `None` if it has memory of its own.
    pub fn slab(&self) -> Option<u32> {
        match self.place {
            Place::Slab { slab, .. } => Some(slab),
            Place::Alone(_) => None,
        }
    }

    /// The frame as words.
    pub fn words(&self) -> &[u64] {
        // SAFETY: `len` bytes, a multiple of 8, of initialised (mapped: zeroed) memory that this frame owns (INV-FRAME).
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len / WORD) }
    }

    /// The frame as words that can be changed.
    pub fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `words`; `self` is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len / WORD) }
    }

    /// The frame as bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as in `words`; any byte is a valid `u8`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }

    /// The frame as bytes that can be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `words_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().cast(), self.len) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.pool.used.update(|used| used - self.len);
        let unmapped = match &self.place {
            Place::Slab { slab, index, asked } => {
                let mut slabs = self.pool.slabs.borrow_mut();
                slabs.lost[usize::from(*asked)] -= self.len - usize::from(*asked) * CLASS_BYTES;
                slabs.free_frame(*slab, *index)
            }
            Place::Alone(region) => region.len(),
        };
        self.pool.mapped.update(|mapped| mapped - unmapped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_mixed_sizes_never_overlap_and_all_memory_goes_back() {
        let pool = Rc::new(FramePool::for_capacity(64 << 20));
        let mut random = fastrand::Rng::with_seed(3);
        let mut held: Vec<(Frame, u64)> = Vec::new();
        for mark in 1..4_000_u64 {
            let mut frame = pool.allocate(random.usize(1..90_000));
            assert!(frame.bytes().as_ptr().addr().is_multiple_of(CLASS_BYTES));
            frame.words_mut().fill(mark);
            held.push((frame, mark));
            if held.len() > 200 || random.bool() {
                let (frame, mark) = held.swap_remove(random.usize(..held.len()));
                assert!(frame.words().iter().all(|word| *word == mark), "another frame wrote here");
            }
            let used: usize = held.iter().map(|(frame, _)| frame.len).sum();
            assert_eq!(pool.used_bytes(), used);
            assert!(pool.mapped_bytes() >= used);
        }
        held.clear();
        assert_eq!((pool.used_bytes(), pool.mapped_bytes()), (0, HUGE_BYTES), "but for the spare slab");
    }

    #[test]
    fn frames_of_rare_sizes_lie_among_those_of_the_common_one() {
        let pool = Rc::new(FramePool::for_capacity(64 << 20));
        let common: Vec<Frame> = (0..2_000).map(|_| pool.allocate(8 << 10)).collect();
        let mapped = pool.mapped_bytes();
        let rare: Vec<Frame> = (1..64).map(|quarters| pool.allocate(quarters * 128)).collect();
        assert!(pool.mapped_bytes() <= mapped + HUGE_BYTES, "{} bytes more", pool.mapped_bytes() - mapped);
        // What is no longer rare gets slabs of its own.
        let many: Vec<Frame> = (0..4_000).map(|_| pool.allocate(1 << 10)).collect();
        let lost = pool.used_bytes() - (2_000 * (8 << 10) + 4_000 * (1 << 10));
        assert!(lost <= 2 << 20, "{lost} bytes more than asked");
        drop((common, rare, many));
        assert_eq!(pool.used_bytes(), 0);
    }
}
