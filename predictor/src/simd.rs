//! Which vector units this processor has. The only unsafe code of the crate is the call of a function that was compiled
//! for such units, after this module said that they are there.
//!
//! The loops are plain Rust over [`LANES`](crate::features::LANES) values side by side, compiled once for each level; so
//! NEON, which every aarch64 processor has, needs no function of its own: the baseline there is built with it.

/// Vector units that the hot loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What the target promises: SSE2 on x86-64, NEON on aarch64.
    Baseline,
    /// AVX2 with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 (F, VL, BW, DQ).
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Whether a fused multiply-add is one instruction at the baseline; elsewhere it would be a library call.
pub(crate) const BASELINE_FUSES: bool = cfg!(target_arch = "aarch64");

/// The best level of this processor. Cost: a few loads, the answers are kept by the standard library.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let has_avx2 = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
        let has_avx512 = std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq");
        match (has_avx2, has_avx512) {
            (true, true) => Level::Avx512,
            (true, false) => Level::Avx2,
            (false, _) => Level::Baseline,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Level::Baseline
}

/// The levels of this processor, best last.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Level> {
    let all = [
        Level::Baseline,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512,
    ];
    all.into_iter().filter(|one| *one <= level()).collect()
}
