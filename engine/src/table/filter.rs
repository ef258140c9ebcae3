//! Split-block Bloom filter over xxh3-64 of the keys.
//!
//! The filter is `n` blocks of 32 bytes (eight little-endian u32). A key picks its block by the upper half of its hash
//! and sets one bit in each of the eight words by the lower half times an odd constant.
//! Source: Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters", 2007; constants as in the
//! Apache Parquet format.

use crate::memory::AlignedBytes;

const BLOCK_BYTES: usize = 32;
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];
/// Bits a key; about 1 % false positives.
const BITS_PER_KEY: usize = 10;

/// Hash of a key as the filter wants it.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// Builds the filter of these key hashes.
pub(crate) fn build(hashes: &[u64]) -> Vec<u8> {
    let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(BLOCK_BYTES * 8).max(1);
    let mut bytes = vec![0; blocks * BLOCK_BYTES];
    for hash in hashes {
        let start = block_of(*hash, blocks) * BLOCK_BYTES;
        for (word, salt) in SALT.iter().enumerate() {
            let bit = bit_of(*hash, *salt);
            bytes[start + word * 4 + bit / 8] |= 1 << (bit % 8);
        }
    }
    bytes
}

/// The filter that says yes to every key.
pub(crate) fn of_everything() -> AlignedBytes {
    let mut filter = AlignedBytes::with_capacity(BLOCK_BYTES);
    filter.extend_from_slice(&[0xFF; BLOCK_BYTES]);
    filter
}

/// Whether the key may be among those the filter was built of. `filter` is a positive multiple of 32 bytes long.
pub(crate) fn may_contain(filter: &[u8], hash: u64) -> bool {
    let start = block_of(hash, filter.len() / BLOCK_BYTES) * BLOCK_BYTES;
    SALT.iter().enumerate().all(|(word, salt)| {
        let bit = bit_of(hash, *salt);
        filter[start + word * 4 + bit / 8] & (1 << (bit % 8)) != 0
    })
}

/// Whether the length can be a filter's.
pub(crate) fn is_valid_len(len: usize) -> bool {
    len > 0 && len.is_multiple_of(BLOCK_BYTES)
}

fn block_of(hash: u64, blocks: usize) -> usize {
    (((hash >> 32) * blocks as u64) >> 32) as usize
}

fn bit_of(hash: u64, salt: u32) -> usize {
    ((hash as u32).wrapping_mul(salt) >> 27) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn may_contain_inserted_keys_always_others_rarely() {
        let hash = |index: u64| key_hash(&index.to_le_bytes());
        let filter = build(&(0..10_000).map(hash).collect::<Vec<_>>());
        assert!((0..10_000).all(|index| may_contain(&filter, hash(index))));
        let false_positives = (10_000..110_000).filter(|index| may_contain(&filter, hash(*index))).count();
        assert!(false_positives < 2_000, "{false_positives} of 100,000");
    }

    #[test]
    fn build_golden_bytes_stay() {
        let filter = build(&[key_hash(b"a"), key_hash(b"b")]);
        assert_eq!(crc32c::crc32c(&filter), 0xf07b_c589, "the filter's format changed: raise the table's version");
    }
}
