//! A shadow whose source may be lost for good: what it could serve, and how it becomes the owner without the source.
//!
//! - `INV-PREFIX`: a shadow is promoted by force only where it holds all of the history up to one LSN: no segment is missing,
//!   and the mirror has passed everything that the copies brought. What lies behind that LSN is the old owner's alone.

use crate::error::{Error, Result};
use crate::manifest::{ManifestEdit, Role};
use crate::types::{AttemptId, Epoch, Hlc, Lsn};

use super::{Partition, Serving};

/// What a shadow holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standby {
    /// The attempt that fills it.
    pub attempt: AttemptId,
    /// The last LSN of the mirror that is durable here.
    pub last: Lsn,
    /// Largest timestamp seen; `None` after a restart.
    pub newest: Option<Hlc>,
    /// Segments whose copy has not come.
    pub missing: usize,
    /// Whether it holds all of the history up to `last` (`INV-PREFIX`).
    pub whole: bool,
}

impl Partition {
    /// What this shadow holds.
    ///
    /// # Errors
    /// [`Error::Stale`] when it is no shadow.
    pub fn standby(&self) -> Result<Standby> {
        let Serving::Shadow { attempt } = self.serving() else {
            return Err(self.stale("it is no shadow"));
        };
        let shadow = self.shadow.borrow();
        let shadow = shadow.as_ref();
        // After a restart the log and the manifest have brought it as far as the mirror was durable.
        let last = shadow.map_or_else(|| self.visible(), |shadow| shadow.chain.last());
        Ok(Standby {
            attempt,
            last,
            newest: shadow.map(|shadow| shadow.clock).filter(|clock| *clock > Hlc(0)),
            missing: self.missing_segments().len(),
            whole: self.is_whole_at(last),
        })
    }

    fn is_whole_at(&self, last: Lsn) -> bool {
        !self.lacks_any() && self.layout.borrow().segments.iter().all(|segment| segment.version.get() <= last)
    }

    /// Makes durable, once, that the shadow holds all of the history up to where its mirror is: elided LSNs are in no log,
    /// so that a restart would not know of them.
    pub(super) async fn note_whole(&self) -> Result<()> {
        let Serving::Shadow { attempt } = self.serving() else {
            return Ok(());
        };
        let last = match self.shadow.borrow_mut().as_mut() {
            Some(shadow) if !shadow.noted_whole && self.is_whole_at(shadow.chain.last()) => {
                shadow.noted_whole = true;
                shadow.chain.last()
            }
            _ => return Ok(()),
        };
        self.shard.wal().wait_durable(self.shard.wal().collecting()).await?;
        self.log_shadow(attempt, last).await
    }

    /// Makes durable how far the shadow has come.
    pub(super) async fn log_shadow(&self, attempt: AttemptId, last: Lsn) -> Result<()> {
        let role = Role::Shadow { attempt };
        let edit = ManifestEdit::SetRole { partition: self.id, role, epoch: self.epoch(), last_lsn: last };
        self.shard.log_edits(vec![edit]).await
    }

    /// Takes nothing more of the mirror, whatever the source still sends; what was taken is durable on return.
    ///
    /// # Errors
    /// [`Error::Stale`] for another attempt; [`Error::Invalid`] when the shadow may not be promoted (`INV-PREFIX`), and then
    /// the mirror goes on; [`Error::ReadOnly`].
    pub async fn stop_mirror(&self, attempt: AttemptId) -> Result<Standby> {
        let standby = self.standby()?;
        if standby.attempt != attempt {
            return Err(self.stale(format!("attempt {attempt}")));
        }
        if standby.missing > 0 {
            let what = format!(
                "partition {}: {} segments are not here and would be lost; the standby can be promoted once all are",
                self.id, standby.missing
            );
            return Err(Error::Invalid { what });
        }
        if !standby.whole {
            let what = format!(
                "partition {}: the copies here are newer than the mirror, which ends at LSN {}; what lies between is not \
                 here, so that the standby cannot be promoted",
                self.id, standby.last
            );
            return Err(Error::Invalid { what });
        }
        if let Some(shadow) = self.shadow.borrow_mut().as_mut() {
            shadow.stopped = true;
        }
        self.shard.wal().wait_durable(self.shard.wal().collecting()).await?;
        self.standby()
    }

    /// Becomes the owner in `epoch` by a forced promotion that the coordinator has recorded with the last LSN held here.
    /// Nothing behind `lsn` is forgotten until [`Partition::keep_changes_since`] says so.
    ///
    /// # Errors
    /// [`Error::Stale`] when this is no shadow of the attempt, or one of another LSN; [`Error::Io`].
    pub async fn promote_forced(&self, attempt: AttemptId, epoch: Epoch, lsn: Lsn) -> Result<()> {
        let standby = self.standby()?;
        if (standby.attempt, standby.last, standby.missing) != (attempt, lsn, 0) {
            return Err(self.stale(format!("forced promotion of attempt {attempt} at LSN {lsn}: {standby:?} is here")));
        }
        self.keep_changes_since(Some(lsn));
        self.promote(attempt, epoch, lsn, Hlc(0), 0).await?;
        self.unpin_final(attempt);
        Ok(())
    }

    /// Keeps of everything behind `lsn` that it was deleted or has expired, so that it can be compared with what another
    /// host has written meanwhile; `None` = no more. Not durable: a partition that is suspended, as after a restart,
    /// forgets nothing.
    pub fn keep_changes_since(&self, lsn: Option<Lsn>) {
        self.keep_since.set(lsn);
    }

    /// Deletions above this LSN are not to be forgotten, if there is one.
    pub(super) fn kept_since(&self) -> Option<Lsn> {
        match self.serving() {
            Serving::Suspended => Some(Lsn(0)),
            _ => self.keep_since.get().into_iter().chain(self.kept_base()).min(),
        }
    }
}
