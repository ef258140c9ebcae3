//! Named places at which a test has this process die, as by kill -9.

/// The place to die at, if any.
#[derive(Clone, Debug, Default)]
pub struct Failpoint {
    name: Option<String>,
}

impl Failpoint {
    /// Dies at the place with this name; see [`Failpoint::NAMES`].
    ///
    /// # Errors
    /// The known names, when it is none of them.
    pub fn new(name: Option<String>) -> Result<Failpoint, String> {
        match name {
            Some(name) if !Self::NAMES.contains(&name.as_str()) => {
                Err(format!("no failpoint '{name}'; there are {}", Self::NAMES.join(", ")))
            }
            name => Ok(Failpoint { name }),
        }
    }

    /// All places: each step of a move, at the host that takes it; then those of a forced
    /// promotion, of a split and of a merge.
    pub const NAMES: [&'static str; 30] = [
        "source:begun",
        "source:send-segment",
        "source:set-synchronous",
        "source:freeze",
        "source:send-seal",
        "source:commit",
        "source:committed",
        "source:handed-over",
        "source:digest",
        "source:fetch",
        "source:complete",
        "target:opened",
        "target:installed",
        "target:ready",
        "target:promote",
        "target:promoted",
        "target:fetching",
        "coordinator:apply",
        "coordinator:applied",
        "target:forcing",
        "target:forced",
        "source:returning",
        "target:reconciling",
        "target:reconciled",
        "owner:splitting",
        "owner:split",
        "owner:divided",
        "owner:merging",
        "owner:merge",
        "owner:joined",
    ];

    /// The places of a split.
    pub const OF_A_SPLIT: [&'static str; 3] = ["owner:splitting", "owner:split", "owner:divided"];

    /// The places of a merge.
    pub const OF_A_MERGE: [&'static str; 3] = ["owner:merging", "owner:merge", "owner:joined"];

    /// The places of a move.
    pub fn of_a_move() -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(|place| {
            let others = [&Self::OF_A_PROMOTION[..], &Self::OF_A_SPLIT, &Self::OF_A_MERGE];
            !others.iter().any(|others| others.contains(place))
        })
    }

    /// The places of a forced promotion and of what follows.
    pub const OF_A_PROMOTION: [&'static str; 5] =
        ["target:forcing", "target:forced", "source:returning", "target:reconciling", "target:reconciled"];

    /// Dies if this is the place: no destructor runs, nothing is flushed.
    pub fn pass(&self, place: &str) {
        debug_assert!(Self::NAMES.contains(&place), "a failpoint without a name in the list");
        #[cfg(feature = "sim")]
        crate::sim::passed(place);
        if self.name.as_deref() == Some(place) {
            std::process::abort();
        }
    }
}
