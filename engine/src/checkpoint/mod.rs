//! Checkpoints and backups of a running engine.
//!
//! A *checkpoint* is a data folder made of hard links: on the same file system, at once, without copying. A *backup
//! repository* may lie anywhere; it keeps each table file once, under a name made of the file's content digests, so that
//! a backup copies only what no backup before it had. Tables never change, which is what makes both cheap.
//!
//! Of each partition either holds one moment, with every batch whole; the moments of different partitions are close but
//! not the same.

mod backup;
pub(crate) mod catalogue;

use std::path::{Path, PathBuf};

use futures_util::future::try_join_all;

use crate::engine::{Engine, off_thread};
use crate::error::{Error, Result};
use crate::io::fs;
use crate::offline::{self, Verified};
use crate::types::ShardId;

pub use backup::{BackupInfo, BackupReport, list_backups, remove_backup, restore_backup};

impl Engine {
    /// Makes `dir` (which must not exist) a data folder that holds what this engine holds now, by hard links. Reads and
    /// writes go on meanwhile. It can be opened as it is, or be the source of any number of [`restore`]s.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `dir` exists; [`Error::Io`], also when it is on another file system: nothing is at `dir`
    /// then.
    /// Cancel: nothing is at `dir`; an unfinished folder `dir` + `.partial` may be left, which the next attempt removes.
    #[doc = example!(r#"engine.checkpoint(dir.path().join("copy")).await?;
assert!(dir.path().join("copy/shard-000").is_dir());"#)]
    pub async fn checkpoint(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref().to_path_buf();
        if dir.exists() {
            return Err(Error::Invalid { what: format!("{} exists already", dir.display()) });
        }
        let partial = partial_of(&dir);
        self.checkpoint_into(&partial).await?;
        off_thread(move || {
            fs::rename(&partial, &dir)?;
            dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), fs::sync_dir)
        })
        .await
    }

    /// Fills an unfinished folder; what is there already is removed first.
    async fn checkpoint_into(&self, partial: &Path) -> Result<()> {
        // No keyspace comes or goes meanwhile.
        let changing = self.keyspaces().change().await?;
        let root = partial.to_path_buf();
        off_thread(move || {
            remove_folder(&root)?;
            fs::create_dir(&root)
        })
        .await?;
        let shards = (0..self.shards()).map(|index| {
            let shard = ShardId(index as u16);
            let dir = crate::engine::shard_dir(partial, shard);
            async move { self.on_shard(shard, move |shard| async move { shard.checkpoint(dir).await }).await? }
        });
        try_join_all(shards).await?;
        let (catalogue, root) = (changing.catalogue(), partial.to_path_buf());
        off_thread(move || {
            catalogue.write(&root)?;
            fs::sync_dir(&root)
        })
        .await
    }
}

/// Makes a data folder at `dir` (which must not exist) from a checkpoint, by hard links where it can and by copies where
/// it cannot, and verifies every table. The checkpoint is left as it is.
///
/// # Errors
/// [`Error::Invalid`] when `dir` exists, [`Error::Corruption`] naming the damaged file, [`Error::Io`]; nothing is at `dir`
/// then.
#[doc = example!(r#"people.put("ada", "1815").await?;
engine.checkpoint(dir.path().join("copy")).await?;
let restored = antumbra_engine::checkpoint::restore(dir.path().join("copy"), dir.path().join("restored"))?;
assert_eq!(restored.records, 1);"#)]
pub fn restore(checkpoint: impl AsRef<Path>, dir: impl AsRef<Path>) -> Result<Verified> {
    let checkpoint = checkpoint.as_ref();
    install(dir.as_ref(), |partial| {
        for path in files_under(checkpoint)? {
            let to = partial.join(path.strip_prefix(checkpoint).unwrap_or(&path));
            if let Some(parent) = to.parent() {
                fs::create_dir(parent)?;
            }
            let is_table = path.extension().is_some_and(|extension| extension == "tab");
            if !is_table || fs::hard_link(&path, &to).is_err() {
                copy_file(&path, &to)?;
            }
        }
        Ok(())
    })
}

/// Fills a folder beside `dir`, verifies it, and gives it its name.
fn install(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Verified> {
    if dir.exists() {
        return Err(Error::Invalid { what: format!("{} exists already", dir.display()) });
    }
    let partial = partial_of(dir);
    remove_folder(&partial)?;
    fs::create_dir(&partial)?;
    fill(&partial)?;
    for path in files_under(&partial)? {
        if let Some(parent) = path.parent() {
            fs::sync_dir(parent)?;
        }
    }
    let verified = offline::verify(&partial, |_| {})?;
    fs::rename(&partial, dir)?;
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), fs::sync_dir)?;
    Ok(verified)
}

fn partial_of(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_os_string();
    name.push(".partial");
    PathBuf::from(name)
}

/// Every file of a checkpoint: those of the root and of its shards. Logs are not part of one.
fn files_under(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for name in fs::list_dir(dir)? {
        let path = dir.join(&name);
        if name.starts_with("shard-") {
            let names = fs::list_dir(&path)?.into_iter().filter(|name| name != "wal" && name != "PROBE");
            files.extend(names.map(|name| path.join(name)));
        } else if name == "KEYSPACES" {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::File::open(from)?.read_to_end()?;
    let mut file = fs::File::create(to)?;
    file.write_all(&bytes)?;
    file.sync()
}

fn remove_folder(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, cause)),
        _ => Ok(()),
    }
}
