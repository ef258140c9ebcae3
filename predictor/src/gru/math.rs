//! Elementary functions that LLVM vectorises: straight-line, no table, no branch, no float-to-integer conversion.
//!
//! The standard library's calls are scalar and cost 4-8 ns each; one scoring pass needs some 50 of them a segment.
//! Source of the polynomials: Cephes `expf`, `logf`. Largest relative error over the range used: 2e-7.

/// `e^x`; `x` is clamped to -87..=88, so the result is finite and positive. NaN stays NaN.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which then sits in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    // ln 2 in two parts, so that the remainder keeps its last bits
    let rest = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let mut poly = 1.987_569_1e-4;
    poly = poly * rest + 1.398_2e-3;
    poly = poly * rest + 8.333_452e-3;
    poly = poly * rest + 4.166_579_6e-2;
    poly = poly * rest + 1.666_666_5e-1;
    poly = poly * rest + 0.5;
    let mantissa = poly * rest * rest + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    mantissa * f32::from_bits(exponent << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
#[must_use]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent, absolute error below 3e-7.
#[inline(always)]
#[must_use]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// Natural logarithm of a positive, normal number; other inputs give some finite number or infinity.
#[inline(always)]
#[must_use]
pub fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
    let above = mantissa > std::f32::consts::SQRT_2;
    let exponent = (exponent + i32::from(above)) as f32;
    let rest = if above { mantissa * 0.5 } else { mantissa } - 1.0;
    let square = rest * rest;
    let mut poly = 7.037_683_6e-2;
    poly = poly * rest - 1.151_461e-1;
    poly = poly * rest + 1.167_699_9e-1;
    poly = poly * rest - 1.242_014_1e-1;
    poly = poly * rest + 1.424_932_3e-1;
    poly = poly * rest - 1.666_805_8e-1;
    poly = poly * rest + 2.000_071_5e-1;
    poly = poly * rest - 2.499_999_4e-1;
    poly = poly * rest + 3.333_333e-1;
    let tail = poly * rest * square - exponent * 2.121_944_4e-4 - 0.5 * square;
    rest + tail + exponent * 0.693_359_4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_the_standard_library() {
        for step in -8700..=8800 {
            let x = step as f32 * 0.01;
            let wanted = f64::from(x).exp();
            assert!((f64::from(exp(x)) / wanted - 1.0).abs() < 3e-7, "exp {x}");
            assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + (-f64::from(x)).exp())).abs() < 2e-7, "sigmoid {x}");
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 3e-7, "tanh {x}");
        }
        let mut x = 1e-30f32;
        while x < 1e30 {
            let wanted = f64::from(x).ln();
            assert!((f64::from(ln(x)) - wanted).abs() < 3e-7 * wanted.abs().max(1.0), "ln {x}");
            x *= 1.001;
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn functions_of_extreme_inputs_stay_finite() {
        for x in [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE] {
            assert!(exp(x).is_finite() && exp(x) > 0.0);
            assert!((0.0..=1.0).contains(&sigmoid(x)));
            assert!((-1.0..=1.0).contains(&tanh(x)));
        }
        assert!(exp(f32::NAN).is_nan());
    }
}
