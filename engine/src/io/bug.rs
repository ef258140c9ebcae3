//! Defects that can be planted on a simulated machine, to see that the simulator finds them. No other machine has any.

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(any(test, feature = "sim")), allow(dead_code))]
pub enum Bug {
    /// Log files are opened without O_DSYNC: a batch is acknowledged before it is on the device.
    DropWalSync,
    /// A data block is taken for good whatever its checksum says.
    SkipChecksum,
    /// The manifest's edit goes first: it names a table file whose own name is not durable yet.
    ReorderManifest,
    /// A shadow waits for its device neither before it acknowledges the mirror nor before it says that it is ready.
    MirrorUnsynced,
    /// What changed between a base and the moment at which its segment was asked for is not sent.
    DeltaFromNow,
    /// What is written to a partition while it is being split or merged is in no table of what takes its place.
    ReshapeUnflushed,
}

/// Whether this thread's machine has the defect.
#[inline(always)]
pub(crate) fn planted(bug: Bug) -> bool {
    #[cfg(any(test, feature = "sim"))]
    if super::sim::current().is_some_and(|machine| machine.has_bug(bug)) {
        return true;
    }
    let _ = bug;
    false
}
