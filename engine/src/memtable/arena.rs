//! Memory of a memtable: nodes that are laid down one after another and freed together.
//!
//! ```text
//! node, aligned to 8:   word 0          words 1..n         payload
//!                       sizes (arena's) the table's words   bytes, written once
//! ```
//!
//! - `INV-ARENA`: a [`NodeRef`] is used only with the arena that gave it. Words are read and written by value; payloads
//!   are written before their reference is known to anyone, never change, and stay where they are while the arena lives.
//!   So a payload may be lent for as long as the arena, while words change and nodes are added.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::memory::{HUGE_BYTES, Region, prefetch_lines};

const WORD: usize = size_of::<u64>();
/// Words of the largest shared chunk, a huge page; a node's place in its chunk has to fit [`PLACE_BITS`].
const CHUNK_WORDS_MAX: usize = 1 << PLACE_BITS;
const CHUNK_WORDS_MIN: usize = 512;
/// Chunks of this size and above are memory of their own, which goes back to the system with the table.
const CHUNK_WORDS_MAPPED: usize = (64 << 10) / WORD;
const PLACE_BITS: u32 = 18;
const _: () = assert!(CHUNK_WORDS_MAX * WORD == HUGE_BYTES);
/// A node above this gets a chunk of its own, so that little of a shared chunk is left over.
const SHARED_NODE_WORDS_MAX: usize = CHUNK_WORDS_MAX / 64;

/// Where a node lies: number of the chunk, and place in it in words. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRef(u32);

impl NodeRef {
    fn new(chunk: usize, place: usize) -> NodeRef {
        assert!(chunk < 1 << (u32::BITS - PLACE_BITS) && place < CHUNK_WORDS_MAX, "INV-ARENA: the arena is full");
        NodeRef((chunk as u32) << PLACE_BITS | place as u32)
    }

    /// The reference as a number; 0 means none.
    pub fn pack(node: Option<NodeRef>) -> u32 {
        node.map_or(0, |node| node.0)
    }

    /// What [`NodeRef::pack`] packed.
    pub fn unpack(packed: u32) -> Option<NodeRef> {
        (packed != 0).then_some(NodeRef(packed))
    }

    fn chunk(self) -> usize {
        (self.0 >> PLACE_BITS) as usize
    }

    fn place(self) -> usize {
        self.0 as usize & (CHUNK_WORDS_MAX - 1)
    }
}

/// A piece of initialised memory: zeros, or what an earlier table left.
#[derive(Debug)]
struct Chunk {
    words: NonNull<u64>,
    len: usize,
    /// Its memory, unless it is a leaked box.
    region: Option<Region>,
}

/// Chunks of memtables that are gone, for those to come: memory that the system gives anew has to be cleared, a page at a
/// time, while a writer waits.
#[derive(Debug)]
pub(crate) struct ChunkStock {
    chunks: RefCell<Vec<Chunk>>,
    bytes: Cell<usize>,
    bytes_max: usize,
    /// Whether anything was put in or taken since [`ChunkStock::clear_if_idle`] asked.
    in_use: Cell<bool>,
}

impl ChunkStock {
    /// An empty stock that keeps so many bytes at most.
    pub fn new(bytes_max: usize) -> ChunkStock {
        ChunkStock { chunks: RefCell::default(), bytes: Cell::new(0), bytes_max, in_use: Cell::new(false) }
    }

    /// Bytes kept.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Gives everything back to the system if nobody has put in or taken anything since the last call.
    pub fn clear_if_idle(&self) {
        if !self.in_use.replace(false) {
            self.chunks.borrow_mut().clear();
            self.bytes.set(0);
        }
    }

    /// Keeps a chunk, if it is of those that are mapped, and there is room.
    fn keep(&self, chunk: Chunk) {
        let bytes = chunk.len * WORD;
        if chunk.region.is_some() && chunk.len <= CHUNK_WORDS_MAX && self.bytes.get() + bytes <= self.bytes_max {
            self.bytes.update(|kept| kept + bytes);
            self.in_use.set(true);
            self.chunks.borrow_mut().push(chunk);
        }
    }

    /// The smallest chunk that has so many words.
    fn take(&self, len: usize) -> Option<Chunk> {
        let mut chunks = self.chunks.borrow_mut();
        let fitting = chunks.iter().enumerate().filter(|(_, chunk)| chunk.len >= len);
        let (place, _) = fitting.min_by_key(|(_, chunk)| chunk.len)?;
        let chunk = chunks.swap_remove(place);
        self.bytes.update(|kept| kept - chunk.len * WORD);
        self.in_use.set(true);
        Some(chunk)
    }
}

#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: RefCell<Vec<Chunk>>,
    stock: Option<Rc<ChunkStock>>,
    /// The shared chunk being filled, and its words in use.
    open: Cell<Option<(usize, usize)>>,
    bytes: Cell<usize>,
}

impl Arena {
    /// An arena that takes its larger chunks from a stock, and leaves them there.
    pub fn with_stock(stock: Rc<ChunkStock>) -> Arena {
        Arena { stock: Some(stock), ..Arena::default() }
    }

    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Frees one piece of memory; false if none is left. No reference is of use afterwards.
    pub fn shed(&mut self) -> bool {
        self.open.set(None);
        let chunk = self.chunks.get_mut().pop();
        let any = chunk.is_some();
        if let (Some(stock), Some(chunk)) = (&self.stock, chunk) {
            stock.keep(chunk);
        }
        any
    }

    /// Lays down a node with these words and this payload.
    pub fn add<const WORDS: usize>(&self, words: [u64; WORDS], payload: &[u8]) -> NodeRef {
        let header = 1 + WORDS;
        let len = header + payload.len().div_ceil(WORD);
        let node = self.reserve(len);
        self.word_ptr(node, 0).set((payload.len() as u64) << 8 | header as u64);
        for (index, word) in words.into_iter().enumerate() {
            self.word_ptr(node, 1 + index).set(word);
        }
        let target = self.word_ptr(node, header).as_ptr().cast::<u8>();
        // SAFETY: the node's words behind its header hold at least `payload.len()` bytes, and nobody knows of them yet;
        // `payload` is lent by the caller and cannot lie in memory that was just reserved.
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), target, payload.len()) };
        node
    }

    /// Word `index` of a node, from 0.
    pub fn word(&self, node: NodeRef, index: usize) -> u64 {
        self.checked_word(node, index).get()
    }

    /// Changes a word of a node.
    pub fn set_word(&self, node: NodeRef, index: usize, value: u64) {
        self.checked_word(node, index).set(value);
    }

    /// The node's payload.
    pub fn payload(&self, node: NodeRef) -> &[u8] {
        let sizes = self.word_ptr(node, 0).get();
        let (header, len) = ((sizes & 0xff) as usize, (sizes >> 8) as usize);
        let start = self.word_ptr(node, header).as_ptr().cast::<u8>();
        // SAFETY: `add` wrote `len` bytes there; by INV-ARENA they never change and live as long as the arena.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Asks the processor for the first `lines` lines of a node: somebody will read them soon.
    pub fn prefetch(&self, node: NodeRef, lines: usize) {
        prefetch_lines(self.word_ptr(node, 0).as_ptr().cast(), lines);
    }

    fn checked_word(&self, node: NodeRef, index: usize) -> WordPtr {
        let header = (self.word_ptr(node, 0).get() & 0xff) as usize;
        assert!(1 + index < header, "INV-ARENA: word {index} of a node with {}", header - 1);
        self.word_ptr(node, 1 + index)
    }

    /// Pointer to a word of a node's chunk. One past the end is given too (an empty payload may lie there).
    fn word_ptr(&self, node: NodeRef, index: usize) -> WordPtr {
        let chunks = self.chunks.borrow();
        let chunk = &chunks[node.chunk()];
        let at = node.place() + index;
        assert!(at <= chunk.len, "INV-ARENA: nodes lie within their chunk");
        // SAFETY: at most one past the end of the chunk's allocation.
        WordPtr(unsafe { chunk.words.add(at) })
    }

    fn reserve(&self, len: usize) -> NodeRef {
        if len > SHARED_NODE_WORDS_MAX {
            // The first word stays unused in each chunk, so that no reference is 0.
            return NodeRef::new(self.add_chunk(len + 1), 1);
        }
        let open = self.open.get().filter(|(chunk, used)| used + len <= self.chunks.borrow()[*chunk].len);
        let (chunk, place) = open.unwrap_or_else(|| {
            // A quarter of what is there, so that little is idle in a small table.
            let size = (self.bytes.get() / WORD / 4).next_power_of_two();
            let size = size.clamp(CHUNK_WORDS_MIN, CHUNK_WORDS_MAX).max((len + 1).next_power_of_two());
            (self.add_chunk(size), 1)
        });
        self.open.set(Some((chunk, place + len)));
        NodeRef::new(chunk, place)
    }

    fn add_chunk(&self, len: usize) -> usize {
        let from_stock =
            || self.stock.as_ref().filter(|_| (CHUNK_WORDS_MAPPED..=CHUNK_WORDS_MAX).contains(&len))?.take(len);
        let chunk = from_stock().unwrap_or_else(|| Chunk::new(len));
        self.bytes.set(self.bytes.get() + chunk.len * WORD + size_of::<Chunk>());
        let mut chunks = self.chunks.borrow_mut();
        chunks.push(chunk);
        chunks.len() - 1
    }
}

impl Chunk {
    fn new(len: usize) -> Chunk {
        let region = match len {
            CHUNK_WORDS_MAX => Some(Region::huge(HUGE_BYTES)),
            CHUNK_WORDS_MAPPED.. => Some(Region::plain(len * WORD)),
            _ => None,
        };
        let words = match &region {
            Some(region) => region.as_ptr().cast(),
            None => NonNull::from(Box::leak(vec![0_u64; len].into_boxed_slice())).cast(),
        };
        Chunk { words, len, region }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.region.is_none() {
            let words = NonNull::slice_from_raw_parts(self.words, self.len);
            // SAFETY: `Chunk::new` leaked exactly this box, and nothing that borrows from the arena is left.
            drop(unsafe { Box::from_raw(words.as_ptr()) });
        }
    }
}

/// A word of a chunk, read and written by value.
#[derive(Clone, Copy)]
struct WordPtr(NonNull<u64>);

impl WordPtr {
    fn get(self) -> u64 {
        // SAFETY: callers ask only for words of a node's header, in initialised memory that its arena owns; no reference
        // to them exists.
        unsafe { self.0.read() }
    }

    fn set(self, value: u64) {
        // SAFETY: as for `get`.
        unsafe { self.0.write(value) };
    }

    fn as_ptr(self) -> *mut u64 {
        self.0.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_lent_while_nodes_are_added_stays() {
        let arena = Arena::default();
        let first = arena.add([7, 8], b"payload");
        let lent = arena.payload(first);
        let mut nodes = Vec::new();
        for index in 0..20_000_u64 {
            let payload = vec![index as u8; (index % 700) as usize];
            nodes.push((arena.add([index], &payload), payload, index));
            arena.set_word(first, 0, index);
        }
        assert_eq!(lent, b"payload");
        assert_eq!((arena.word(first, 0), arena.word(first, 1)), (19_999, 8));
        for (node, payload, index) in nodes {
            assert_eq!((arena.payload(node), arena.word(node, 0)), (payload.as_slice(), index));
        }
    }

    #[test]
    fn chunks_of_a_table_that_is_gone_serve_the_next_one() {
        let stock = Rc::new(ChunkStock::new(1 << 20));
        let fill = |arena: &Arena| {
            let nodes: Vec<NodeRef> = (0..2_000_u64).map(|index| arena.add([index], &[index as u8; 300])).collect();
            let right = |(index, node): (usize, &NodeRef)| {
                arena.word(*node, 0) == index as u64 && arena.payload(*node) == [index as u8; 300]
            };
            assert!(nodes.iter().enumerate().all(right));
        };
        let mut first = Arena::with_stock(Rc::clone(&stock));
        fill(&first);
        while first.shed() {}
        let kept = stock.bytes();
        assert!(kept > 0 && kept <= 1 << 20, "{kept}");
        let mut second = Arena::with_stock(Rc::clone(&stock));
        fill(&second);
        assert!(stock.bytes() < kept, "nothing of {kept} bytes was taken");
        while second.shed() {}
        stock.clear_if_idle();
        assert!(stock.bytes() > 0, "it was just in use");
        stock.clear_if_idle();
        assert_eq!(stock.bytes(), 0);
    }

    #[test]
    fn large_nodes_get_chunks_of_their_own() {
        let arena = Arena::default();
        let small = arena.add([1], b"a");
        let before = arena.bytes();
        let large = arena.add([2], &vec![9; 1 << 20]);
        assert!(arena.bytes() - before < (1 << 20) + 256);
        let next = arena.add([3], b"b");
        assert_eq!(small.chunk(), next.chunk());
        assert_eq!(arena.payload(large).len(), 1 << 20);
        assert_eq!(arena.payload(arena.add([], b"")), b"");
    }

    #[test]
    #[should_panic(expected = "INV-ARENA")]
    fn word_behind_the_header_is_refused() {
        let arena = Arena::default();
        let node = arena.add([1], b"payload");
        arena.word(node, 1);
    }
}
