//! Redis Cluster's slots: CRC16 (XMODEM) of the key, or of what stands between the first braces, mod 16384.

use antumbra_engine::types::KeyRange;

/// Number of slots.
pub const SLOTS: u16 = 16_384;

/// The slot of a key.
///
/// # Example
/// ```
/// use antumbra_net::resp::slot::{range_of, routing_key, slot_at, slot_of};
/// assert_eq!(slot_of(b"{user}.name"), slot_of(b"{user}.mail")); // a hash tag
/// let routing = routing_key(b"key");
/// assert_eq!(slot_at(&routing), slot_of(b"key"));
/// let beside = antumbra_net::resp::slot::key_beside(&routing, b"!copy").expect("it can be tagged");
/// assert_eq!((slot_at(&beside), &beside[2..]), (slot_of(b"key"), &b"{key}!copy"[..]));
/// assert!(range_of((0, 16_383)).contains(&routing));
/// ```
#[must_use]
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % SLOTS
}

/// The routing key of a key: its slot, big-endian, then the key.
#[must_use]
pub fn routing_key(key: &[u8]) -> Vec<u8> {
    let mut routing = Vec::with_capacity(key.len() + 2);
    routing.extend_from_slice(&slot_of(key).to_be_bytes());
    routing.extend_from_slice(key);
    routing
}

/// The slot that a range of routing keys starts in; the first where it starts before all of them.
#[must_use]
pub fn slot_at(start: &[u8]) -> u16 {
    start.first_chunk().map_or(0, |slot| u16::from_be_bytes(*slot))
}

/// The routing keys of the slots `first..=last`.
#[must_use]
pub fn range_of((first, last): (u16, u16)) -> KeyRange {
    let end = last.checked_add(1).map(|next| next.to_be_bytes().to_vec());
    KeyRange { start: first.to_be_bytes().to_vec(), end }
}

/// The routing key of a key with `suffix` that lies in the slot of `routing`, by its hash tag or by one made of the whole
/// key; `None` where no tag does that.
#[must_use]
pub fn key_beside(routing: &[u8], suffix: &[u8]) -> Option<Vec<u8>> {
    let (slot, key) = routing.split_at_checked(2)?;
    let tagged = if hash_tag(key).len() < key.len() { key.to_vec() } else { [b"{", key, b"}"].concat() };
    let beside = routing_key(&[&tagged, suffix].concat());
    beside.starts_with(slot).then_some(beside)
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    match key[open + 1..].iter().position(|byte| *byte == b'}') {
        Some(len) if len > 0 => &key[open + 1..open + 1 + len],
        _ => key,
    }
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn slot_of_known_keys() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"{foo}bar"), 12_182);
        assert_eq!(slot_of(b"{}foo"), crc16(b"{}foo") % SLOTS);
    }

    #[test]
    fn key_beside_lies_in_the_same_slot() {
        let beside = |key: &[u8]| key_beside(&routing_key(key), b"!1").map(|routing| routing[2..].to_vec());
        assert_eq!(beside(b"foo").unwrap(), b"{foo}!1");
        assert_eq!(beside(b"user{7}name").unwrap(), b"user{7}name!1");
        assert_eq!(beside(b"a{b").unwrap(), b"{a{b}!1");
        assert_eq!(beside(b"x}y"), None, "no tag names it");
        for key in [&b"foo"[..], b"user{7}name", b"a{b", b"{}z"] {
            let routing = routing_key(key);
            assert!(key_beside(&routing, b"!1").is_none_or(|beside| beside[..2] == routing[..2]));
        }
    }

    #[test]
    fn range_of_holds_exactly_its_slots() {
        let range = range_of((12_182, 12_182));
        assert!(range.contains(&routing_key(b"foo")));
        assert!(!range.contains(&12_183_u16.to_be_bytes()));
        assert!(range_of((0, SLOTS - 1)).contains(&(SLOTS - 1).to_be_bytes()));
    }
}
