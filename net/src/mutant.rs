//! Defects that can be planted in a simulated host, to see that the simulation finds them. No other host has any.

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "sim"), allow(dead_code))]
pub enum Mutant {
    /// The target serves as soon as it has read the commit: the source may still serve reads.
    WriteBeforeHandOver,
    /// A source whose commit is not known serves again when it has waited for long enough.
    FreezeLeftByTimer,
    /// The target takes segments and mirrored records of an attempt that is over.
    StaleAttempt,
    /// A host that starts serves what it owned before it has read the record.
    ServeUnread,
    /// A frozen source serves reads for as long as it does not know the outcome.
    EndlessLease,
    /// A host whose history has parted drops its copy without handing out what it wrote alone.
    DropParted,
    /// The target acknowledges what is not on its device, and says that it is ready.
    MirrorUnsynced,
    /// A roll-back leaves out what changed between the base and the request.
    DeltaFromNow,
    /// A split or a merge leaves out what was written meanwhile.
    ReshapeUnflushed,
    /// What has become a part of another partition in the records is dropped before the engine has made one of the two.
    DropUnmerged,
}

/// Whether this host has the defect.
#[inline(always)]
pub(crate) fn planted(mutant: Mutant) -> bool {
    #[cfg(feature = "sim")]
    return crate::sim::has(mutant);
    #[cfg(not(feature = "sim"))]
    {
        let _ = mutant;
        false
    }
}
