//! Elementary functions that LLVM vectorises: straight-line, no table, no branch, no float-to-integer conversion.
//!
//! The standard library's calls are scalar and cost 4-8 ns each; one scoring pass needs some 50 of them a segment.
//! Source of the polynomials: Cephes `expf`, `logf`. Largest relative error over the range used: 2e-7.

use crate::simd::multiply_add;

/// Arguments beyond this make the functions constant within f32, and their products stay in range.
const FLAT: f32 = 30.0;

/// `e^x`; `x` is clamped to -87..=88, so the result is finite and positive. NaN stays NaN.
#[inline(always)]
#[must_use]
pub fn exp<const FUSED: bool>(x: f32) -> f32 {
    exp_within::<FUSED>(x.clamp(-87.0, 88.0))
}

/// `e^x` of an `x` in -87..=88.
#[inline(always)]
fn exp_within<const FUSED: bool>(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which then sits in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let fma = multiply_add::<FUSED>;
    let shifted = fma(x, std::f32::consts::LOG2_E, ROUND);
    let power = shifted - ROUND;
    // ln 2 in two parts, so that the remainder keeps its last bits
    let rest = fma(power, 2.121_944_4e-4, fma(power, -0.693_359_4, x));
    let mut poly = 1.987_569_1e-4;
    poly = fma(poly, rest, 1.398_2e-3);
    poly = fma(poly, rest, 8.333_452e-3);
    poly = fma(poly, rest, 4.166_579_6e-2);
    poly = fma(poly, rest, 1.666_666_5e-1);
    poly = fma(poly, rest, 0.5);
    let mantissa = fma(poly * rest, rest, rest) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    mantissa * f32::from_bits(exponent << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
#[must_use]
pub fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp_within::<FUSED>((-x).clamp(-FLAT, FLAT)))
}

/// Hyperbolic tangent, absolute error below 3e-7.
#[inline(always)]
#[must_use]
pub fn tanh<const FUSED: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp_within::<FUSED>((2.0 * x).clamp(-FLAT, FLAT)))
}

/// `tanh(x) + sigmoid(keep) * (old - tanh(x))`, with one division for both; absolute error below 4e-7 for an `old`
/// within -1..=1.
#[inline(always)]
#[must_use]
pub fn blend<const FUSED: bool>(x: f32, keep: f32, old: f32) -> f32 {
    let up = 1.0 + exp_within::<FUSED>((2.0 * x).clamp(-FLAT, FLAT));
    let down = 1.0 + exp_within::<FUSED>((-keep).clamp(-FLAT, FLAT));
    let both = 1.0 / (up * down);
    let (tanh, keep) = (multiply_add::<FUSED>(-2.0 * down, both, 1.0), up * both);
    multiply_add::<FUSED>(keep, old - tanh, tanh)
}

/// Natural logarithm of a positive, normal number; other inputs give some finite number or infinity.
#[inline(always)]
#[must_use]
pub fn ln<const FUSED: bool>(x: f32) -> f32 {
    let fma = multiply_add::<FUSED>;
    // x = 2^exponent * mantissa, the mantissa between the roots of 1/2 and 2
    let exponent = (x.to_bits() as i32).wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32) >> 23;
    let mantissa = f32::from_bits(x.to_bits().wrapping_sub((exponent << 23) as u32));
    let (exponent, rest) = (exponent as f32, mantissa - 1.0);
    let square = rest * rest;
    let mut poly = 7.037_683_6e-2;
    poly = fma(poly, rest, -1.151_461e-1);
    poly = fma(poly, rest, 1.167_699_9e-1);
    poly = fma(poly, rest, -1.242_014_1e-1);
    poly = fma(poly, rest, 1.424_932_3e-1);
    poly = fma(poly, rest, -1.666_805_8e-1);
    poly = fma(poly, rest, 2.000_071_5e-1);
    poly = fma(poly, rest, -2.499_999_4e-1);
    poly = fma(poly, rest, 3.333_333e-1);
    let tail = fma(poly * rest, square, fma(exponent, -2.121_944_4e-4, -0.5 * square));
    fma(exponent, 0.693_359_4, rest + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree_with_the_standard_library<const FUSED: bool>() {
        for step in -8700..=8800 {
            let x = step as f32 * 0.01;
            let wide = f64::from(x);
            assert!((f64::from(exp::<FUSED>(x)) / wide.exp() - 1.0).abs() < 3e-7, "exp {x}");
            assert!((f64::from(sigmoid::<FUSED>(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 2e-7, "sigmoid {x}");
            assert!((f64::from(tanh::<FUSED>(x)) - wide.tanh()).abs() < 3e-7, "tanh {x}");
            for (keep, old) in [(-50.0, 0.9), (-1.0, -1.0), (0.0, 0.25), (3.0, 1.0), (50.0, -0.5)] {
                let share = 1.0 / (1.0 + f64::exp(-f64::from(keep)));
                let wanted = wide.tanh() + share * (f64::from(old) - wide.tanh());
                assert!((f64::from(blend::<FUSED>(x, keep, old)) - wanted).abs() < 4e-7, "blend {x} {keep} {old}");
            }
        }
        let mut x = 1e-30f32;
        while x < 1e30 {
            let wanted = f64::from(x).ln();
            assert!((f64::from(ln::<FUSED>(x)) - wanted).abs() < 3e-7 * wanted.abs().max(1.0), "ln {x}");
            x *= 1.001;
        }
        assert_eq!(ln::<FUSED>(1.0), 0.0);
        for x in [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE] {
            assert!(exp::<FUSED>(x).is_finite() && exp::<FUSED>(x) > 0.0);
            assert!((0.0..=1.0).contains(&sigmoid::<FUSED>(x)));
            for keep in [x, -x] {
                assert!(blend::<FUSED>(x, keep, 0.5).abs() < 1.0 + 1e-6, "blend {x} {keep}");
            }
        }
        assert!(exp::<FUSED>(f32::NAN).is_nan());
    }

    #[test]
    fn functions_agree_with_the_standard_library() {
        agree_with_the_standard_library::<false>();
        agree_with_the_standard_library::<true>();
    }
}
