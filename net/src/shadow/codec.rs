//! zstd for images and deltas. A delta is compressed against the image that the target holds.

use crate::error::{Error, Result};

const LEVEL: i32 = 1;

/// Compresses an image.
///
/// # Errors
/// [`Error::Protocol`] when zstd fails.
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL).map_err(|cause| Error::protocol(format!("zstd: {cause}")))
}

/// Decompresses an image of exactly `len` bytes.
///
/// # Errors
/// [`Error::Protocol`] for anything else.
pub fn decompress(bytes: &[u8], len: usize) -> Result<Vec<u8>> {
    let found = zstd::bulk::decompress(bytes, len).map_err(|cause| Error::protocol(format!("zstd: {cause}")))?;
    check_len(found, len)
}

/// Compresses a delta with `reference` as what the receiver holds.
///
/// # Errors
/// [`Error::Protocol`] when zstd fails.
pub fn compress_against(reference: &[u8], bytes: &[u8]) -> Result<Vec<u8>> {
    let result = zstd::bulk::Compressor::with_dictionary(LEVEL, reference).and_then(|mut zstd| zstd.compress(bytes));
    result.map_err(|cause| Error::protocol(format!("zstd: {cause}")))
}

/// Decompresses a delta of exactly `len` bytes.
///
/// # Errors
/// [`Error::Protocol`] for anything else, also when the reference is another one.
pub fn decompress_against(reference: &[u8], bytes: &[u8], len: usize) -> Result<Vec<u8>> {
    let result = zstd::bulk::Decompressor::with_dictionary(reference).and_then(|mut zstd| zstd.decompress(bytes, len));
    check_len(result.map_err(|cause| Error::protocol(format!("zstd: {cause}")))?, len)
}

fn check_len(bytes: Vec<u8>, len: usize) -> Result<Vec<u8>> {
    if bytes.len() == len { Ok(bytes) } else { Err(Error::protocol(format!("{} bytes, {len} announced", bytes.len()))) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(reference: Vec<u8>, bytes: Vec<u8>) {
            let wire = compress(&bytes).unwrap();
            prop_assert_eq!(&decompress(&wire, bytes.len()).unwrap(), &bytes);
            prop_assert!(decompress(&wire, bytes.len() + 1).is_err());
            let wire = compress_against(&reference, &bytes).unwrap();
            prop_assert_eq!(&decompress_against(&reference, &wire, bytes.len()).unwrap(), &bytes);
        }

        #[test]
        fn decompress_random_bytes_never_panics(bytes: Vec<u8>) {
            let _ = decompress(&bytes, 1000);
            let _ = decompress_against(b"reference", &bytes, 1000);
        }
    }

    #[test]
    fn compress_against_what_is_held_is_small() {
        let mut random = fastrand::Rng::with_seed(1);
        let image: Vec<u8> = (0..50_000).map(|_| random.u8(..)).collect();
        let mut delta = image[10_000..20_000].to_vec();
        delta[77] ^= 1;
        assert!(compress_against(&image, &delta).unwrap().len() < delta.len() / 10);
    }
}
