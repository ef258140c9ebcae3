//! RocksDB, by its tuning guide: block cache with index and filter blocks in it, full Bloom filters of 10 bits,
//! dynamic level sizes, no compression (the values do not compress).

use std::path::Path;
use std::sync::Arc;

use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, WaitForCompactOptions, WriteOptions};

use crate::client::{ClientRecord, Plan};
use crate::data::{Key, Seen};
use crate::error::{Error, Result};
use crate::spec::{Class, Spec};
use crate::store::{Candidate, Session, Store, drive_threads};

use super::line;

/// Reads past the page cache, so that the budget is the budget.
pub const DIRECT: Candidate = Candidate { name: "rocksdb", open: |dir, spec| open("rocksdb", dir, spec, true) };
/// Reads through the page cache, as is its default: memory beyond the budget helps it.
pub const PAGE_CACHE: Candidate =
    Candidate { name: "rocksdb-pagecache", open: |dir, spec| open("rocksdb-pagecache", dir, spec, false) };

struct RocksDb {
    name: &'static str,
    db: DB,
    configuration: Vec<(String, String)>,
}

fn open(name: &'static str, dir: &Path, spec: &Spec, direct: bool) -> Result<Box<dyn Store>> {
    // A quarter for two memtables, the rest for blocks.
    let write_buffer_bytes = spec.memory_bytes / 8;
    let cache_bytes = spec.memory_bytes - 2 * write_buffer_bytes;
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_hyper_clock_cache(cache_bytes, 0));
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    table.set_block_size(4 << 10);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(write_buffer_bytes);
    options.set_max_write_buffer_number(2);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.increase_parallelism(std::thread::available_parallelism().map_or(2, |cores| cores.get() as i32));
    options.set_bytes_per_sync(1 << 20);
    options.set_use_direct_reads(direct);
    options.set_use_direct_io_for_flush_and_compaction(direct);
    let db = DB::open(&options, dir).map_err(|cause| Error::store(name, cause))?;
    let configuration = vec![
        line("crate", "rocksdb 0.25.0"),
        line("block cache", format!("{} MiB hyper clock, index and filter blocks in it", cache_bytes >> 20)),
        line("memtables", format!("2 of {} MiB", write_buffer_bytes >> 20)),
        line("Bloom", "10 bits a key"),
        line("block", "4 KiB"),
        line("compression", "none"),
        line("device access", if direct { "O_DIRECT" } else { "page cache, beyond the budget" }),
        line("durable", "WriteOptions::sync before the acknowledgement"),
        line("buffered", "write-ahead log in the page cache"),
    ];
    Ok(Box::new(RocksDb { name, db, configuration }))
}

impl Store for RocksDb {
    fn configuration(&self) -> Vec<(String, String)> {
        self.configuration.clone()
    }

    fn drive(&self, plan: &Arc<Plan>) -> Result<Vec<ClientRecord>> {
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        let writes = [durable, WriteOptions::default()];
        let writes = &writes;
        drive_threads(plan, || Ok(RocksDbSession { name: self.name, db: &self.db, writes }))
    }

    fn settle(&self) -> Result<()> {
        self.db.flush().map_err(|cause| Error::store(self.name, cause))?;
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        let waited = self.db.wait_for_compact(&WaitForCompactOptions::default());
        waited.map_err(|cause| Error::store(self.name, cause))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.cancel_all_background_work(true);
        Ok(())
    }
}

struct RocksDbSession<'a> {
    name: &'static str,
    db: &'a DB,
    writes: &'a [WriteOptions; 2],
}

impl Session for RocksDbSession<'_> {
    async fn get(&mut self, key: &Key) -> Result<Option<Seen>> {
        let found = self.db.get_pinned(key.bytes).map_err(|cause| Error::store(self.name, cause))?;
        Ok(found.map(|value| Seen::of(&value)))
    }

    async fn put(&mut self, key: &Key, value: &[u8], class: Class) -> Result<()> {
        let options = match class {
            Class::Durable => &self.writes[0],
            Class::Buffered => &self.writes[1],
        };
        self.db.put_opt(key.bytes, value, options).map_err(|cause| Error::store(self.name, cause))
    }

    async fn scan(&mut self, start: &Key, rows: usize) -> Result<usize> {
        let mut cursor = self.db.raw_iterator();
        cursor.seek(start.bytes);
        let mut found = 0;
        while found < rows
            && let Some((key, value)) = cursor.item()
        {
            std::hint::black_box((key, Seen::of(value)));
            found += 1;
            cursor.next();
        }
        cursor.status().map_err(|cause| Error::store(self.name, cause))?;
        Ok(found)
    }
}
