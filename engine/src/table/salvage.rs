//! What a damaged table still holds.

use std::path::Path;

use crate::error::{Error, Result};

use super::builder::{BuiltTable, TableBuilder, TableMeta, TableOptions, meta_of};
use super::cache::NoCache;
use super::footer::{FOOTER_LEN, Footer};
use super::reader::TableReader;

/// Keys whose records of one table are gone: all above `after`, up to and with `through`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostKeys {
    /// The last key before the loss; `None` when the loss begins where the table does.
    pub after: Option<Vec<u8>>,
    /// The last key lost; `None` when the loss reaches to the table's end.
    pub through: Option<Vec<u8>>,
    /// What is wrong there.
    pub what: String,
}

/// The readable part of a damaged table.
#[derive(Debug)]
pub struct Salvaged {
    /// The records that could be read, as a new table; `None` if there was none.
    pub table: Option<BuiltTable>,
    /// What could not.
    pub lost: Vec<LostKeys>,
    /// How many records that was; `None` when the footer does not say.
    pub records_lost: Option<u64>,
}

/// Reads every block that can be read into a new table.
///
/// # Errors
/// [`Error::Invalid`] when the new table cannot be built. Damage is what the result is about.
pub async fn salvage(bytes: &[u8], path: &Path, options: TableOptions) -> Result<Salvaged> {
    let footer = footer_meta(bytes);
    let records = footer.as_ref().ok().map(|meta| meta.records);
    let reader = match TableReader::open_unfiltered(bytes, 0, bytes.len() as u64, path).await {
        Ok(reader) => reader,
        Err(cause) => {
            let lost = vec![LostKeys { after: None, through: None, what: cause.to_string() }];
            return Ok(Salvaged { table: None, lost, records_lost: records });
        }
    };
    let mut builder = TableBuilder::new(options);
    let (mut lost, mut kept, mut after) = (Vec::new(), 0, None);
    for block in 0..reader.blocks() {
        let (_, _, through) = reader.block_place(block);
        match reader.block(block, &NoCache).await {
            Ok(read) => {
                for index in 0..read.len() {
                    builder.add(read.record(index))?;
                    kept += 1;
                }
            }
            Err(cause) => {
                lost.push(LostKeys { after: after.clone(), through: Some(through.clone()), what: cause.to_string() })
            }
        }
        after = Some(through);
    }
    let table = if builder.is_empty() { None } else { Some(builder.finish()?) };
    Ok(Salvaged { table, lost, records_lost: records.map(|records| records.saturating_sub(kept)) })
}

/// What the footer at the end of a table's bytes says.
///
/// # Errors
/// [`Error::Corruption`] in `<image>`, [`Error::Version`].
pub fn footer_meta(bytes: &[u8]) -> Result<TableMeta> {
    let at = bytes.len().checked_sub(FOOTER_LEN);
    let at = at.ok_or_else(|| Error::corruption("<image>", 0, "shorter than a footer"))?;
    let footer = Footer::decode(&bytes[at..], bytes.len() as u64);
    footer.map(|footer| meta_of(&footer)).map_err(|what| Error::corruption("<image>", at as u64, what))
}

/// Offset and length of every table in a file, found by their footers.
#[must_use]
pub fn find_footers(bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(footer) = bytes.get(at..at + FOOTER_LEN) {
        match Footer::len_of_table(footer) {
            Some(len) if len <= (at + FOOTER_LEN) as u64 => {
                found.push(((at + FOOTER_LEN) as u64 - len, len));
                at += FOOTER_LEN;
            }
            _ => at += 1,
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_lite::future::block_on;
    use proptest::prelude::*;

    use super::*;
    use crate::record::Record;
    use crate::table::builder::tests::{arbitrary_records, build};
    use crate::table::verify_image;

    fn salvaged(bytes: &[u8]) -> Salvaged {
        block_on(salvage(bytes, Path::new("t"), TableOptions { block_bytes: 128, ..TableOptions::default() })).unwrap()
    }

    /// The records of a whole table.
    fn records_of(table: &BuiltTable) -> Vec<Record> {
        let reader = block_on(TableReader::open(&table.bytes[..], 0, table.meta.len, Path::new("t"))).unwrap();
        (0..reader.blocks())
            .flat_map(|block| {
                let read = block_on(reader.block(block, &NoCache)).unwrap();
                (0..read.len()).map(|index| read.record(index).to_record()).collect::<Vec<_>>()
            })
            .collect()
    }

    proptest! {
        #[test]
        fn salvage_any_bit_flip_keeps_true_records_and_names_the_rest(
            records in arbitrary_records(80), at in any::<prop::sample::Index>(), bit in 0..8u8
        ) {
            let table = build(&records, 128);
            let mut bytes = table.bytes.clone();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let salvaged = salvaged(&bytes);
            let kept = salvaged.table.as_ref().map(records_of).unwrap_or_default();
            for record in &records {
                let in_loss = salvaged.lost.iter().any(|lost| {
                    lost.after.as_ref().is_none_or(|after| record.key > *after)
                        && lost.through.as_ref().is_none_or(|through| record.key <= *through)
                });
                prop_assert_eq!(kept.contains(record), !in_loss, "{:?}", record);
            }
            prop_assert!(kept.iter().all(|record| records.contains(record)));
            if let Some(lost) = salvaged.records_lost {
                prop_assert_eq!(lost as usize, records.len() - kept.len());
            }
            if let Some(table) = &salvaged.table {
                prop_assert!(block_on(verify_image(&table.bytes)).is_ok());
            }
        }
    }

    #[test]
    fn find_footers_of_two_tables_gives_both() {
        let records = |start: u64| -> Vec<Record> {
            (start..start + 50)
                .map(|number| Record {
                    key: format!("{number:05}").into_bytes().into(),
                    lsn: crate::types::Lsn(number),
                    hlc: crate::types::Hlc(1),
                    kind: crate::record::RecordKind::Put,
                    expires_at_ms: 0,
                    value: vec![1; 100].into(),
                })
                .collect()
        };
        let (one, two) = (build(&records(1), 512), build(&records(100), 512));
        let mut bytes = one.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let second = bytes.len() as u64;
        bytes.extend(&two.bytes);
        assert_eq!(find_footers(&bytes), [(0, one.meta.len), (second, two.meta.len)]);
    }
}
