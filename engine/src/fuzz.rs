//! What the fuzzer (`cargo xtask fuzz`) does with arbitrary bytes, one target for each decoder. A target fails by a panic.
//!
//! The corpus in `engine/fuzz/corpus` is replayed by a unit test, so a finding that was added to it stays found.

use crate::{checkpoint, keyspace, manifest, table, wal};

/// A decoder and what is done with bytes given to it.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Tries the bytes.
    ///
    /// # Panics
    /// When it has found something.
    pub run: fn(&[u8]),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "wal-batch", run: wal::fuzz_batch },
    Target { name: "wal-recovery", run: wal::fuzz_recovery },
    Target { name: "manifest", run: manifest::fuzz },
    Target { name: "table-block", run: table::fuzz::block },
    Target { name: "table-index", run: table::fuzz::index },
    Target { name: "table-footer", run: table::fuzz::footer },
    Target { name: "table-filter", run: table::fuzz::filter },
    Target { name: "table-image", run: table::fuzz::image },
    Target { name: "records", run: table::fuzz::records },
    Target { name: "keyspaces", run: keyspace::catalogue::fuzz },
    Target { name: "backup", run: checkpoint::catalogue::fuzz },
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn corpus_of_every_target_replays() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for target in TARGETS {
            let mut inputs = 0;
            for entry in std::fs::read_dir(corpus.join(target.name)).unwrap() {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                let result = std::panic::catch_unwind(|| (target.run)(&bytes));
                assert!(result.is_ok(), "{} fails on {}", target.name, path.display());
                inputs += 1;
            }
            assert!(inputs > 0, "{} has a corpus", target.name);
        }
    }

    /// Writes inputs that the decoders accept, for a corpus to begin with.
    #[test]
    #[ignore = "writes to the source tree: run it after a change of a format"]
    fn write_first_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (target, name, bytes) in seeds() {
            let dir = corpus.join(target);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }

    fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let mut seeds: Vec<(&'static str, &'static str, Vec<u8>)> = Vec::new();
        seeds.extend(table::fuzz::tests::seeds());
        seeds.extend(wal::fuzz_seeds());
        seeds.push(("manifest", "seed-state", manifest::fuzz_seed()));
        // Their fuzzed part is the payload.
        let keyspaces = keyspace::catalogue::Catalogue::default().encode();
        seeds.push(("keyspaces", "seed-empty", keyspaces[20..].to_vec()));
        let backup = checkpoint::catalogue::BackupCatalogue::default().encode();
        seeds.push(("backup", "seed-empty", backup[20..].to_vec()));
        seeds
    }
}
