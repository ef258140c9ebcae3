//! Keys and values: the same bytes for every store, checkable when read.

use std::sync::LazyLock;

/// Bytes of a key.
pub const KEY_BYTES: usize = 24;
/// Smallest value: it carries the key's number, a version and a last byte that goes with the number.
pub const VALUE_BYTES_MIN: usize = 17;
/// Bytes that values are cut from.
const POOL_BYTES: usize = 1 << 20;
const POOL_SEED: u64 = 1;

/// A key. Its number is mixed, so that keys of neighbouring numbers lie far apart in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The bytes.
    pub bytes: [u8; KEY_BYTES],
    /// Where in the key space it lies, as a fraction of 2^64.
    pub place: u64,
}

impl Key {
    /// The key of a number that is mixed.
    #[must_use]
    pub fn of(number: u64) -> Key {
        Key::at(Placing::Mixed.place(number))
    }

    /// The key at a place; ascends with it.
    #[must_use]
    pub fn at(place: u64) -> Key {
        let mut bytes = *b"user0000................";
        for (digit, byte) in bytes[8..].iter_mut().enumerate() {
            let nibble = (place >> (60 - digit * 4)) & 15;
            *byte = b"0123456789abcdef"[nibble as usize];
        }
        Key { bytes, place }
    }
}

/// A bijection of u64 that leaves no pattern (the finaliser of SplitMix64, Steele et al. 2014).
#[must_use]
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The number whose [`mix`] this is.
fn unmix(mixed: u64) -> u64 {
    let unshift = |value: u64, by: u32| value ^ (value >> by) ^ (value >> (2 * by));
    // The inverses of the two odd factors modulo 2^64.
    let second = unshift(mixed, 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let first = unshift(second, 27).wrapping_mul(0x96de_1b17_3f11_9089);
    unshift(first, 30).wrapping_sub(0x9e37_79b9_7f4a_7c15)
}

/// Where in the key space numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// Neighbouring numbers far apart, without a pattern.
    Mixed,
    /// Ascending, at equal distances: so many numbers in all.
    Ordered(u64),
}

impl Placing {
    /// The place of a number.
    #[must_use]
    pub fn place(self, number: u64) -> u64 {
        match self {
            Placing::Mixed => mix(number),
            Placing::Ordered(keys) => part_start(number as usize, keys as usize),
        }
    }

    /// The number at a place.
    #[must_use]
    pub fn number(self, place: u64) -> u64 {
        match self {
            Placing::Mixed => unmix(place),
            Placing::Ordered(keys) => part_of(place, keys as usize) as u64,
        }
    }

    /// The key of a number.
    #[must_use]
    pub fn key(self, number: u64) -> Key {
        Key::at(self.place(number))
    }
}

/// Which of `parts` equal parts of the key space a place lies in.
#[must_use]
pub fn part_of(place: u64, parts: usize) -> usize {
    ((u128::from(place) * parts as u128) >> 64) as usize
}

/// The first place of a part.
#[must_use]
pub fn part_start(part: usize, parts: usize) -> u64 {
    ((part as u128) << 64).div_ceil(parts as u128) as u64
}

/// Random bytes, the same for all clients and in every run: one pool each took more memory of a store's process than some budgets.
static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut pool = vec![0; POOL_BYTES];
    fastrand::Rng::with_seed(POOL_SEED).fill(&mut pool);
    pool
});

/// Makes values of random bytes that do not compress.
#[derive(Clone, Debug)]
pub struct Values {
    pool: &'static [u8],
    value: Vec<u8>,
}

impl Values {
    /// Values of `len` bytes, at least [`VALUE_BYTES_MIN`].
    #[must_use]
    pub fn new(len: usize) -> Values {
        Values { pool: &POOL, value: vec![0; len.max(VALUE_BYTES_MIN)] }
    }

    /// The value of a key's number at a version.
    pub fn make(&mut self, number: u64, version: u64) -> &[u8] {
        let len = self.value.len();
        let mut from = mix(number ^ version.rotate_left(32)) as usize % POOL_BYTES;
        let mut rest = &mut self.value[16..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min(POOL_BYTES - from));
            now.copy_from_slice(&self.pool[from..from + now.len()]);
            (rest, from) = (later, 0);
        }
        self.value[..8].copy_from_slice(&number.to_le_bytes());
        self.value[8..16].copy_from_slice(&version.to_le_bytes());
        self.value[len - 1] = number as u8;
        &self.value
    }
}

/// What a reader saw of a value: enough to know that it belongs to the key. Looks at both ends, as a user would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of the key that it was written for.
    pub number: u64,
    /// Its last byte.
    pub last: u8,
    /// Its length.
    pub len: usize,
}

impl Seen {
    /// Looks at a value.
    #[must_use]
    pub fn of(value: &[u8]) -> Seen {
        let number = value.first_chunk().map_or(u64::MAX, |stamp| u64::from_le_bytes(*stamp));
        Seen { number, last: value.last().copied().unwrap_or(0), len: value.len() }
    }

    /// What a reader of this key has to see.
    #[must_use]
    pub fn expected(number: u64, len: usize) -> Seen {
        Seen { number, last: number as u8, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_ascend_with_their_place_and_differ() {
        let places = [0, 1, 15, 16, 1 << 40, u64::MAX];
        for pair in places.windows(2) {
            assert!(Key::at(pair[0]).bytes < Key::at(pair[1]).bytes);
        }
        assert_ne!(Key::of(1), Key::of(2));
    }

    #[test]
    fn placing_gives_back_the_number_and_keeps_the_order_where_it_is_to() {
        for number in (0..1_000).chain([u64::MAX, 1 << 40]) {
            assert_eq!(Placing::Mixed.number(Placing::Mixed.place(number)), number);
        }
        let ordered = Placing::Ordered(1_000);
        for number in 0..1_000 {
            assert_eq!(ordered.number(ordered.place(number)), number);
            assert!(number == 0 || ordered.key(number - 1).bytes < ordered.key(number).bytes);
        }
    }

    #[test]
    fn parts_cover_the_key_space_and_are_alike() {
        for parts in [1, 2, 3, 7] {
            let mut counts = vec![0_u32; parts];
            for number in 0..10_000 {
                counts[part_of(mix(number), parts)] += 1;
            }
            assert!(counts.iter().all(|count| count.abs_diff(10_000 / parts as u32) < 300), "{counts:?}");
            for part in 0..parts {
                assert_eq!(part_of(part_start(part, parts), parts), part);
                assert!(part == 0 || part_of(part_start(part, parts) - 1, parts) == part - 1);
            }
        }
    }

    #[test]
    fn seen_value_tells_its_key() {
        let mut values = Values::new(100);
        assert_eq!(Seen::of(values.make(7, 0)), Seen::expected(7, 100));
        assert_ne!(values.make(7, 0).to_vec(), values.make(7, 1).to_vec());
        assert_ne!(Seen::of(b"short").number, 7);
    }

    #[test]
    fn value_longer_than_the_pool_goes_on_at_its_beginning() {
        let len = POOL_BYTES + 100;
        let value = Values::new(len).make(7, 0).to_vec();
        assert_eq!(Seen::of(&value), Seen::expected(7, len));
        assert_eq!(value[16..99], value[16 + POOL_BYTES..99 + POOL_BYTES]);
        assert_ne!(value[16..99], value[100..183]);
    }
}
