//! Which vector units this processor has. The only unsafe code of the crate is the call of a function that was compiled
//! for such units, after this module said that they are there.

/// Whether AVX2 and fused multiply-add can be used. Cost: one load, the answer is kept by the standard library.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2_fma() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}
