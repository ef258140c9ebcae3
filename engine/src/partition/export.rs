//! Live records with all that has to be kept of them elsewhere: for dumps.

use bytes::Bytes;

use crate::clock;
use crate::error::Result;
use crate::merge::Retain;
use crate::types::KeyRange;

use super::Partition;
use super::page::Direction;

/// A live record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Routing key.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
    /// Deadline in milliseconds since the Unix epoch; 0 means none.
    pub expires_at_ms: u64,
}

/// Some live records (or none, though more follow), and where the next ones begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPage {
    /// Ascending by key.
    pub records: Vec<Exported>,
    /// `None` at the end of the partition.
    pub next: Option<Bytes>,
}

impl Partition {
    /// Live records from `start` on, until they take `bytes_max` bytes. Each page is of one moment; without writes in
    /// between, all pages together are.
    ///
    /// Errors: as [`Partition::scan`]. Cancel: no effect. Cost: a scan; two copies a record.
    pub async fn export(&self, start: &[u8], bytes_max: usize) -> Result<ExportPage> {
        self.wait_readable().await?;
        let (start, end) = self.clamp(&KeyRange { start: start.to_vec(), end: None });
        let (start, to) = self.held_stretch(&start, end.as_ref(), Direction::Forward).await?;
        let view = self.view_latest();
        let mut page = ExportPage { next: to.clone().filter(|to| Some(to) != end.as_ref()), ..ExportPage::default() };
        let mut iter = self.iterate(&view, start, to, Retain::visible_at(view.pin.lsn(), clock::wall_ms()));
        let mut bytes = 0;
        while iter.advance().await? {
            let record = iter.current();
            if bytes >= bytes_max {
                page.next = Some(Bytes::copy_from_slice(record.key));
                break;
            }
            bytes += record.key.len() + record.value.len();
            page.records.push(Exported {
                key: Bytes::copy_from_slice(record.key),
                value: Bytes::copy_from_slice(record.value),
                expires_at_ms: record.expires_at_ms,
            });
        }
        Ok(page)
    }
}
