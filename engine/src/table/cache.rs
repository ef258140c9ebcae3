//! The cache of verified blocks of one shard.

use std::cell::RefCell;
use std::rc::Rc;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use crate::types::FileId;

use super::block::VerifiedBlock;

/// Where readers look for blocks before they read the device.
pub trait BlockCache {
    /// The block at `offset` of `file`, if it is held.
    fn lookup(&self, file: FileId, offset: u64) -> Option<Rc<VerifiedBlock>>;
    /// Offers a block that was just read.
    fn insert(&self, file: FileId, offset: u64, block: Rc<VerifiedBlock>);
}

/// Holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl BlockCache for NoCache {
    fn lookup(&self, _file: FileId, _offset: u64) -> Option<Rc<VerifiedBlock>> {
        None
    }

    fn insert(&self, _file: FileId, _offset: u64, _block: Rc<VerifiedBlock>) {}
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<(FileId, u64), Rc<VerifiedBlock>> for ByBytes {
    fn weight(&self, _key: &(FileId, u64), block: &Rc<VerifiedBlock>) -> u64 {
        // The entry's own bookkeeping counts too.
        block.bytes() as u64 + 128
    }
}

/// Scan-resistant cache (Clock-PRO with ghost entries) bounded by bytes.
pub struct ShardBlockCache {
    cache: RefCell<Cache<(FileId, u64), Rc<VerifiedBlock>, ByBytes>>,
}

impl std::fmt::Debug for ShardBlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardBlockCache").field("blocks", &self.cache.borrow().len()).finish()
    }
}

impl ShardBlockCache {
    /// A cache of at most `bytes` bytes, for blocks of about `block_bytes`.
    #[must_use]
    pub fn new(bytes: usize, block_bytes: usize) -> ShardBlockCache {
        let items = (bytes / block_bytes.max(1)).max(16);
        ShardBlockCache { cache: RefCell::new(Cache::with_weighter(items, bytes as u64, ByBytes)) }
    }
}

impl BlockCache for ShardBlockCache {
    fn lookup(&self, file: FileId, offset: u64) -> Option<Rc<VerifiedBlock>> {
        self.cache.borrow_mut().get(&(file, offset)).cloned()
    }

    fn insert(&self, file: FileId, offset: u64, block: Rc<VerifiedBlock>) {
        self.cache.borrow_mut().insert((file, offset), block);
    }
}
