//! What goes wrong on a simulated machine beside power cuts.

use fastrand::Rng;

use super::disk::{Fate, InodeId};

/// Probabilities are out of [`Faults::WHOLE`]; all zero means a good disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Reads that fail with EIO.
    pub read_error: u32,
    /// Reads that return less than was asked for.
    pub short_read: u32,
    /// Writes that fail with EIO; part of them may be written.
    pub write_error: u32,
    /// Syncs of files and folders that fail with EIO.
    pub sync_error: u32,
    /// Writes to table files that are reported and not done.
    pub lost_write: u32,
    /// Writes to table files that go elsewhere in the file.
    pub misdirected_write: u32,
    /// How much longer than usual reads and writes take, in multiples; 0 = as usual.
    pub slower: u32,
    /// No space: whatever would grow a file fails with ENOSPC.
    pub full: bool,
}

impl Faults {
    /// Certainty.
    pub const WHOLE: u32 = 10_000;

    /// Factor on the time that reads and writes take.
    pub(super) fn times(&self) -> u64 {
        u64::from(self.slower) + 1
    }

    pub(super) fn happens(probability: u32, random: &mut Rng) -> bool {
        probability > 0 && random.u32(0..Faults::WHOLE) < probability
    }

    /// What becomes of a direct write to a file of this name.
    pub(super) fn fate(&self, name: &str, grows: bool, random: &mut Rng) -> Fate {
        let silent = is_table(name);
        if self.full && grows {
            Fate::Fails(libc::ENOSPC)
        } else if Faults::happens(self.write_error, random) {
            Fate::Fails(libc::EIO)
        } else if silent && Faults::happens(self.lost_write, random) {
            Fate::Lost
        } else if silent && Faults::happens(self.misdirected_write, random) {
            Fate::Misdirected
        } else {
            Fate::Lands
        }
    }
}

/// Whether a file of this name holds tables.
pub(crate) fn is_table(name: &str) -> bool {
    name.ends_with(".tab")
}

/// Damage that no operation has reported, and how to put it right.
#[derive(Clone, Debug)]
pub(crate) struct Silent {
    pub(super) inode: InodeId,
    /// Applied in order.
    pub(super) restore: Vec<(u64, Vec<u8>)>,
}
