//! The reports of reconciliations: one file of JSON lines for each forced promotion.
//!
//! A conflict is in the file, durably, before it is settled. A conflict that is judged again behind a crash is not written
//! a second time; one that looks different by then is.

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use antumbra_engine::types::{AttemptId, PartitionId};

use crate::error::{Error, Result};
use crate::shadow::conflict::Conflict;

/// Where reports go.
#[derive(Clone, Debug)]
pub enum Reports {
    /// Files in this folder; it is created with the first.
    Folder(PathBuf),
    /// Kept for the simulation, as if on a device.
    #[cfg(feature = "sim")]
    Kept(std::sync::Arc<std::sync::Mutex<Vec<Conflict>>>),
}

/// The report of one reconciliation.
#[derive(Debug)]
pub(crate) struct Report {
    reports: Reports,
    path: PathBuf,
    known: HashSet<(String, u64, String)>,
}

impl Reports {
    /// The file of one forced promotion.
    #[must_use]
    pub fn path(&self, partition: PartitionId, attempt: AttemptId) -> PathBuf {
        let name = format!("partition-{partition}-attempt-{attempt}.jsonl");
        match self {
            Reports::Folder(folder) => folder.join(name),
            #[cfg(feature = "sim")]
            Reports::Kept(_) => name.into(),
        }
    }

    /// Opens a report, with the lines that are in it.
    ///
    /// # Errors
    /// [`Error::Report`].
    pub(crate) async fn open(&self, partition: PartitionId, attempt: AttemptId) -> Result<Report> {
        let path = self.path(partition, attempt);
        let lines = match self {
            Reports::Folder(_) => {
                let path = path.clone();
                off_the_plane(move || read_lines(&path)).await?
            }
            #[cfg(feature = "sim")]
            Reports::Kept(kept) => {
                let kept = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                kept.iter().filter(|line| (line.partition, line.attempt) == (partition.0, attempt.0)).cloned().collect()
            }
        };
        let known = lines.iter().map(Conflict::identity).collect();
        Ok(Report { reports: self.clone(), path, known })
    }
}

impl Report {
    /// Lines in it.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends what is not in it yet; durable on return.
    ///
    /// # Errors
    /// [`Error::Report`].
    pub async fn append(&mut self, lines: Vec<Conflict>) -> Result<()> {
        let fresh: Vec<Conflict> = lines.into_iter().filter(|line| self.known.insert(line.identity())).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        match &self.reports {
            Reports::Folder(_) => {
                let path = self.path.clone();
                off_the_plane(move || append_lines(&path, &fresh)).await
            }
            #[cfg(feature = "sim")]
            Reports::Kept(kept) => {
                kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(fresh);
                Ok(())
            }
        }
    }
}

/// Files may block: the plane goes on meanwhile.
async fn off_the_plane<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|cause| Err(Error::protocol(format!("the report's thread ended: {cause}"))))
}

fn read_lines(path: &Path) -> Result<Vec<Conflict>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(failed(path, &cause)),
    };
    // A line that a crash has torn is not one.
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn append_lines(path: &Path, lines: &[Conflict]) -> Result<()> {
    let append = || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let is_new = !path.exists();
        let mut file = std::fs::OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut bytes = Vec::new();
        if !is_new && !ends_in_newline(&mut file)? {
            bytes.push(b'\n');
        }
        for line in lines {
            serde_json::to_writer(&mut bytes, line)?;
            bytes.push(b'\n');
        }
        file.write_all(&bytes)?;
        file.sync_all()?;
        if is_new {
            std::fs::File::open(folder)?.sync_all()?;
            let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
            std::fs::File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    };
    append().map_err(|cause| failed(path, &cause))
}

fn ends_in_newline(file: &mut std::fs::File) -> std::io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn failed(path: &Path, cause: &std::io::Error) -> Error {
    Error::Report { path: path.to_path_buf(), what: cause.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::shadow::conflict::Side;

    fn conflict(key: &str, hlc: u64) -> Conflict {
        let returned = Side { lsn: 9, hlc, written_ms: hlc >> 16, value_hex: Some("00ff".into()), expires_at_ms: 0 };
        Conflict {
            partition: 1,
            attempt: 2,
            returned_from: 3,
            parted_at: 4,
            key: key.into(),
            key_hex: key.into(),
            policy: "lww".into(),
            decided: "kept".into(),
            here: None,
            returned,
            kept_at: None,
            merged_hex: None,
        }
    }

    #[tokio::test]
    async fn report_opened_again_takes_no_line_twice_and_survives_a_torn_one() {
        let dir = tempfile::tempdir().unwrap();
        let reports = Reports::Folder(dir.path().join("conflicts"));
        let (partition, attempt) = (PartitionId(1), AttemptId(2));
        let mut report = reports.open(partition, attempt).await.unwrap();
        report.append(vec![conflict("a", 1), conflict("b", 2), conflict("a", 1)]).await.unwrap();
        let path = reports.path(partition, attempt);
        let mut torn = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"partition\":1,\"atte").unwrap();
        let mut report = reports.open(partition, attempt).await.unwrap();
        assert_eq!(report.len(), 2);
        report.append(vec![conflict("b", 2), conflict("b", 3)]).await.unwrap();
        let lines = read_lines(&path).unwrap();
        assert_eq!(lines, [conflict("a", 1), conflict("b", 2), conflict("b", 3)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4, "the torn line stays apart");
    }
}
