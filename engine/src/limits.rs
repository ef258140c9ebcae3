//! Limits of keys, values and batches, checked at the edge.

use crate::error::Error;
use crate::types::KeyRange;

/// Longest key, in bytes.
pub const KEY_LEN_MAX: usize = 32 * 1024;
/// Longest value, in bytes.
pub const VALUE_LEN_MAX: usize = 16 * 1024 * 1024;
/// Largest batch of one partition, in bytes of keys and values.
pub const BATCH_LEN_MAX: usize = 64 * 1024 * 1024;

/// How far ahead of this host's clock a timestamp of a returned history may be, in milliseconds: as much as Kerberos lets
/// clocks differ.
pub const HLC_AHEAD_MAX_MS: u64 = 5 * 60 * 1000;

/// Checks a key's length.
///
/// # Errors
/// [`Error::KeyLength`] when it is empty or longer than [`KEY_LEN_MAX`].
pub fn check_key(key: &[u8]) -> Result<(), Error> {
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        return Err(Error::KeyLength { len: key.len(), max: KEY_LEN_MAX });
    }
    Ok(())
}

/// Checks a value's length.
///
/// # Errors
/// [`Error::ValueLength`] when it is longer than [`VALUE_LEN_MAX`].
pub fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > VALUE_LEN_MAX {
        return Err(Error::ValueLength { len: value.len(), max: VALUE_LEN_MAX });
    }
    Ok(())
}

/// Checks the summed length of a batch.
///
/// # Errors
/// [`Error::BatchLength`] when it exceeds [`BATCH_LEN_MAX`].
pub fn check_batch(len: usize) -> Result<(), Error> {
    if len > BATCH_LEN_MAX {
        return Err(Error::BatchLength { len, max: BATCH_LEN_MAX });
    }
    Ok(())
}

/// Checks the bounds of a range; either may be empty or open.
///
/// # Errors
/// [`Error::KeyLength`] when a bound is longer than [`KEY_LEN_MAX`].
pub fn check_range(range: &KeyRange) -> Result<(), Error> {
    let longest = range.start.len().max(range.end.as_ref().map_or(0, Vec::len));
    if longest > KEY_LEN_MAX {
        return Err(Error::KeyLength { len: longest, max: KEY_LEN_MAX });
    }
    Ok(())
}
