//! Which vector units this processor has. The only unsafe code of the crate is the call of a function that was compiled
//! for such units, after this module said that they are there: [`for_each_level`] writes it.
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

impl Level {
    /// At most AVX2, whose use leaves the core's frequency alone.
    pub(crate) fn narrow(self) -> Level {
        #[cfg(target_arch = "x86_64")]
        return self.min(Level::Avx2);
        #[cfg(not(target_arch = "x86_64"))]
        self
    }
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

/// Defines a function that runs `body::<FUSED>` compiled for given vector units; `FUSED` says whether a fused
/// multiply-add is one instruction there. `body` must be `#[inline(always)]`, or it is compiled for the baseline.
macro_rules! for_each_level {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident(level $(, $argument:ident: $type:ty)* $(,)?) $(-> $out:ty)? = $body:ident) => {
        $(#[$meta])*
        $visibility fn $name(level: $crate::simd::Level $(, $argument: $type)*) $(-> $out)? {
            use $crate::simd::{BASELINE_FUSES, Level};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $out)? {
                $body::<true>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $out)? {
                $body::<true>($($argument),*)
            }
            debug_assert!(level <= $crate::simd::level());
            match level {
                Level::Baseline => $body::<BASELINE_FUSES>($($argument),*),
                // SAFETY: callers pass a level that the processor was found to have.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Level::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Level::Avx512 => unsafe { avx512($($argument),*) },
            }
        }
    };
}
pub(crate) use for_each_level;

/// `a * b + c`; fused only where that is one instruction, elsewhere it would be a library call.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
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
