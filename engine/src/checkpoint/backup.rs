//! The backup repository.
//!
//! ```text
//! repository/LOCK             held while it is changed
//! repository/tables/HASH.tab  table files; HASH is xxh3-128 over the footers of the tables in it, each of which carries
//!                             the digest of its records and the checksums of its parts
//! repository/backups/N.bak    see `catalogue`; written last, so that a backup is there whole or not at all
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3Default;

use crate::clock;
use crate::engine::{Engine, off_thread};
use crate::error::{Error, Result};
use crate::io::fs;
use crate::io::lock::DataLock;
use crate::manifest::{self, TableRef};
use crate::offline::Verified;
use crate::shard::files::parse_table_name;
use crate::table::FOOTER_LEN;
use crate::types::FileId;

use super::catalogue::{BackupCatalogue, StoredTable};

/// The hard links that a backup copies from, in the data folder; removed when it has been made, or by the next.
const LINKS: &str = "backup.partial";
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// What a backup cost.
#[doc = example!(r#"let repository = dir.path().join("backups");
assert_eq!(engine.backup(&repository).await?.number, 1);"#)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupReport {
    /// Its number in the repository.
    pub number: u64,
    /// Table files that were copied.
    pub files_copied: u64,
    /// Bytes of them.
    pub bytes_copied: u64,
    /// Table files that the repository had already.
    pub files_shared: u64,
}

/// A backup in a repository.
#[doc = example!(r#"let repository = dir.path().join("backups");
engine.backup(&repository).await?;
assert_eq!(antumbra_engine::checkpoint::list_backups(&repository)?.len(), 1);"#)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// Its number.
    pub number: u64,
    /// When it was taken, in milliseconds since the Unix epoch.
    pub taken_ms: u64,
    /// Table files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Engine {
    /// Adds a backup of what this engine holds now to the repository at `repository` (created when missing), copying only
    /// the table files that it does not have. Reads and writes go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process changes the repository, [`Error::Corruption`] when a file of the
    /// repository is not what it should be, [`Error::Io`]; the backups that were there are untouched.
    /// Cancel: the copying goes on; there is a new backup or not.
    #[doc = example!(r#"let report = engine.backup(dir.path().join("backups")).await?;
assert_eq!((report.number, report.files_shared), (1, 0));"#)]
    pub async fn backup(&self, repository: impl AsRef<Path>) -> Result<BackupReport> {
        let links = self.dir().join(LINKS);
        self.checkpoint_into(&links).await?;
        let repository = repository.as_ref().to_path_buf();
        off_thread(move || {
            let stored = store(&links, &repository);
            super::remove_folder(&links)?;
            stored
        })
        .await
    }
}

fn tables_dir(repository: &Path) -> PathBuf {
    repository.join("tables")
}

fn backups_dir(repository: &Path) -> PathBuf {
    repository.join("backups")
}

fn backup_path(repository: &Path, number: u64) -> PathBuf {
    backups_dir(repository).join(format!("{number:06}.bak"))
}

/// Copies a checkpoint into the repository.
fn store(checkpoint: &Path, repository: &Path) -> Result<BackupReport> {
    for dir in [repository.to_path_buf(), tables_dir(repository), backups_dir(repository)] {
        fs::create_dir(&dir)?;
    }
    let _lock = DataLock::acquire(repository, LOCK_TIMEOUT)?;
    let number = numbers(repository)?.last().map_or(1, |last| last + 1);
    let mut catalogue = BackupCatalogue { taken_ms: clock::wall_ms(), ..BackupCatalogue::default() };
    let mut report = BackupReport { number, files_copied: 0, bytes_copied: 0, files_shared: 0 };
    let mut footers = Footers::default();
    for path in super::files_under(checkpoint)? {
        let relative = path.strip_prefix(checkpoint).unwrap_or(&path).to_string_lossy().into_owned();
        let Some(file) = path.file_name().and_then(|name| parse_table_name(&name.to_string_lossy())) else {
            catalogue.small.push((relative, fs::File::open(&path)?.read_to_end()?));
            continue;
        };
        let bytes = fs::File::open(&path)?.read_to_end()?;
        let name = format!("{:032x}.tab", footers.identity(&path, file, &bytes)?);
        let to = tables_dir(repository).join(&name);
        if fs::File::open(&to).is_ok() {
            report.files_shared += 1;
        } else {
            fs::write_file_atomic(&to, &bytes)?;
            report.files_copied += 1;
            report.bytes_copied += bytes.len() as u64;
        }
        catalogue.tables.push(StoredTable { path: relative, name, len: bytes.len() as u64 });
    }
    fs::write_file_atomic(&backup_path(repository, number), &catalogue.encode())?;
    Ok(report)
}

/// Which tables lie in which file, by shard folder.
#[derive(Default)]
struct Footers {
    shards: BTreeMap<PathBuf, BTreeMap<FileId, BTreeSet<(u64, u64)>>>,
}

impl Footers {
    /// Hash of the footers of the tables in a file.
    fn identity(&mut self, path: &Path, file: FileId, bytes: &[u8]) -> Result<u128> {
        let shard = path.parent().unwrap_or(path).to_path_buf();
        if !self.shards.contains_key(&shard) {
            let state = manifest::read_current(&shard)?;
            let mut files: BTreeMap<FileId, BTreeSet<(u64, u64)>> = BTreeMap::new();
            for TableRef { file, offset, len, .. } in state.tables() {
                files.entry(*file).or_default().insert((*offset, *len));
            }
            self.shards.insert(shard.clone(), files);
        }
        let mut state = Xxh3Default::new();
        state.update(&(bytes.len() as u64).to_le_bytes());
        let tables = self.shards.get(&shard).and_then(|files| files.get(&file)).into_iter().flatten();
        for (offset, len) in tables {
            let footer = (offset + len).checked_sub(FOOTER_LEN as u64).and_then(|at| usize::try_from(at).ok());
            let footer = footer.and_then(|at| bytes.get(at..at + FOOTER_LEN));
            state
                .update(footer.ok_or_else(|| Error::corruption(path, *offset, "the file ends before the table does"))?);
            state.update(&offset.to_le_bytes());
        }
        Ok(state.digest128())
    }
}

fn numbers(repository: &Path) -> Result<Vec<u64>> {
    let names = fs::list_dir(&backups_dir(repository))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.strip_suffix(".bak")?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn read(repository: &Path, number: u64) -> Result<BackupCatalogue> {
    let path = backup_path(repository, number);
    let bytes = fs::File::open(&path)?.read_to_end()?;
    BackupCatalogue::decode(&bytes).map_err(|(offset, what)| Error::corruption(path, offset, what))
}

/// The backups in a repository, oldest first.
///
/// # Errors
/// [`Error::Corruption`], [`Error::Io`].
#[doc = example!(r#"let repository = dir.path().join("backups");
engine.backup(&repository).await?;
assert_eq!(antumbra_engine::checkpoint::list_backups(&repository)?[0].number, 1);"#)]
pub fn list_backups(repository: impl AsRef<Path>) -> Result<Vec<BackupInfo>> {
    let repository = repository.as_ref();
    let infos = numbers(repository)?.into_iter().map(|number| {
        let catalogue = read(repository, number)?;
        Ok(BackupInfo {
            number,
            taken_ms: catalogue.taken_ms,
            files: catalogue.tables.len() as u64,
            bytes: catalogue.tables.iter().map(|table| table.len).sum(),
        })
    });
    infos.collect()
}

/// Makes a data folder at `dir` (which must not exist) from a backup, and verifies every table.
///
/// # Errors
/// [`Error::Invalid`] when `dir` exists, [`Error::Corruption`] naming the damaged file, [`Error::Io`]; nothing is at `dir`
/// then.
#[doc = example!(r#"let repository = dir.path().join("backups");
people.put("ada", "1815").await?;
engine.backup(&repository).await?;
let restored = antumbra_engine::checkpoint::restore_backup(&repository, 1, dir.path().join("restored"))?;
assert_eq!(restored.records, 1);"#)]
pub fn restore_backup(repository: impl AsRef<Path>, number: u64, dir: impl AsRef<Path>) -> Result<Verified> {
    let repository = repository.as_ref();
    let catalogue = read(repository, number)?;
    super::install(dir.as_ref(), |partial| {
        let place = |path: &str| -> Result<PathBuf> {
            let to = partial.join(path);
            to.parent().map_or(Ok(()), fs::create_dir)?;
            Ok(to)
        };
        for (path, content) in &catalogue.small {
            fs::write_file_atomic(&place(path)?, content)?;
        }
        for table in &catalogue.tables {
            let from = tables_dir(repository).join(&table.name);
            let bytes = fs::File::open(&from)?.read_to_end()?;
            if bytes.len() as u64 != table.len {
                let what = format!("{} bytes, the backup's list says {}", bytes.len(), table.len);
                return Err(Error::corruption(from, 0, what));
            }
            let mut file = fs::File::create(&place(&table.path)?)?;
            file.write_all(&bytes)?;
            file.sync()?;
        }
        Ok(())
    })
}

/// Removes a backup and the table files that no other backup names.
///
/// # Errors
/// [`Error::Locked`], [`Error::Corruption`] when another backup's list cannot be read (no table is removed then),
/// [`Error::Io`]. After a crash in between, the next removal removes what is left.
#[doc = example!(r#"let repository = dir.path().join("backups");
engine.backup(&repository).await?;
antumbra_engine::checkpoint::remove_backup(&repository, 1)?;
assert!(antumbra_engine::checkpoint::list_backups(&repository)?.is_empty());"#)]
pub fn remove_backup(repository: impl AsRef<Path>, number: u64) -> Result<()> {
    let repository = repository.as_ref();
    let _lock = DataLock::acquire(repository, LOCK_TIMEOUT)?;
    let kept = numbers(repository)?.into_iter().filter(|other| *other != number);
    let mut named = BTreeSet::new();
    for other in kept {
        named.extend(read(repository, other)?.tables.into_iter().map(|table| table.name));
    }
    fs::remove_file(&backup_path(repository, number))?;
    fs::sync_dir(&backups_dir(repository))?;
    for name in fs::list_dir(&tables_dir(repository))? {
        if !named.contains(&name) {
            fs::remove_file(&tables_dir(repository).join(name))?;
        }
    }
    Ok(())
}
