//! `antumbra predict plot`: what came beside what was expected, as two heat maps in one SVG.

use std::path::PathBuf;

use antumbra_predictor::eval::{EvalConfig, Heat, Mapping, Requests, heat};
use antumbra_predictor::model::Model;
use antumbra_predictor::online::OnlineConfig;
use antumbra_predictor::scorer::ScorerKind;
use antumbra_predictor::trace;
use clap::Args;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::trace_name;
use crate::CliError;

#[derive(Args)]
pub struct PlotOptions {
    /// Trace file (zstd CSV `ts_us,op,key,size`).
    #[arg(long)]
    trace: PathBuf,
    /// How keys lie in the key order: range, arrival or hash.
    #[arg(long, default_value = "range")]
    mapping: Mapping,
    /// Segments of the partition.
    #[arg(long, default_value_t = 256)]
    segments: usize,
    /// Whose expectation is drawn.
    #[arg(long, default_value = "gru")]
    scorer: ScorerKind,
    /// Weights; without it the shipped ones.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where the picture goes.
    #[arg(long, default_value = "heat.svg")]
    out: PathBuf,
}

/// Cells of one map, each way; more would only make the file large.
const CELLS: usize = 96;
const WIDTH: u32 = 1280;
const HEIGHT: u32 = 640;

/// Runs `antumbra predict plot`.
pub fn run(options: &PlotOptions) -> Result<(), CliError> {
    let requests = Requests { trace: trace_name(&options.trace), requests: trace::read_all(&options.trace)? };
    let config = EvalConfig {
        segments: options.segments,
        model: options.model.as_deref().map(Model::load).transpose()?,
        online: Some(OnlineConfig::default()),
        ..EvalConfig::new(options.mapping)
    };
    let heat = heat(&requests, &config, options.scorer)?;
    let svg = picture(&heat, &requests.trace, options.scorer)?;
    std::fs::write(&options.out, svg).map_err(|cause| format!("write {}: {cause}", options.out.display()))?;
    println!("wrote {}", options.out.display());
    Ok(())
}

fn picture(heat: &Heat, trace: &str, scorer: ScorerKind) -> Result<String, CliError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        area.fill(&WHITE).map_err(|cause| cause.to_string())?;
        let (left, right) = area.split_horizontally(WIDTH / 2);
        // both maps share one scale, or they could not be compared
        let cells = [&heat.observed, &heat.expected].map(|shares| shrunk(shares, heat.positions, heat.segments));
        let highest = cells.iter().flatten().copied().fold(f32::MIN_POSITIVE, f32::max);
        map(&left, &format!("{trace}: observed in the horizon"), heat, &cells[0], highest)?;
        map(&right, &format!("{trace}: expected by {scorer}"), heat, &cells[1], highest)?;
        area.present().map_err(|cause| cause.to_string())?;
    }
    Ok(svg)
}

/// Means over at most `CELLS` by `CELLS` cells, by position, then segment.
fn shrunk(shares: &[f32], positions: usize, segments: usize) -> Vec<f32> {
    let (wide, high) = (positions.min(CELLS), segments.min(CELLS));
    let (mut sums, mut counts) = (vec![0.0f32; wide * high], vec![0u32; wide * high]);
    for (at, share) in shares.iter().enumerate() {
        let cell = (at / segments * wide / positions) * high + at % segments * high / segments;
        sums[cell] += share;
        counts[cell] += 1;
    }
    sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum /= count.max(1) as f32);
    sums
}

fn map(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    heat: &Heat,
    cells: &[f32],
    highest: f32,
) -> Result<(), CliError> {
    let failed = |cause: &dyn std::fmt::Display| CliError::from(cause.to_string());
    let (wide, high) = (heat.positions.min(CELLS), heat.segments.min(CELLS));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..heat.positions as f64, 0.0..heat.segments as f64)
        .map_err(|cause| failed(&cause))?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("window of the evaluated part")
        .y_desc("segment")
        .draw()
        .map_err(|cause| failed(&cause))?;
    let (step_x, step_y) = (heat.positions as f64 / wide as f64, heat.segments as f64 / high as f64);
    let rectangles = cells.iter().enumerate().filter(|(_, share)| **share > highest * 1e-4).map(|(at, share)| {
        let (x, y) = ((at / high) as f64 * step_x, (at % high) as f64 * step_y);
        Rectangle::new([(x, y), (x + step_x, y + step_y)], color(share / highest).filled())
    });
    chart.draw_series(rectangles).map_err(|cause| failed(&cause))?;
    Ok(())
}

/// From light to dark, by the root of the value: small shares stay visible.
fn color(value: f32) -> RGBColor {
    let strength = value.clamp(0.0, 1.0).sqrt();
    let mix = |from: f32, to: f32| (from + (to - from) * strength) as u8;
    RGBColor(mix(236.0, 24.0), mix(240.0, 32.0), mix(246.0, 92.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_has_both_maps_and_stays_small() {
        let segments = 200;
        let positions = 150;
        let observed: Vec<f32> = (0..positions * segments).map(|at| if at % 7 == 0 { 0.05 } else { 0.0 }).collect();
        let heat = Heat { segments, positions, expected: observed.clone(), observed };
        let svg = picture(&heat, "a trace", ScorerKind::Gru).map_err(|cause| cause.to_string());
        assert!(
            svg.as_ref().is_ok_and(|svg| svg.contains("expected by gru") && svg.len() < 4 << 20),
            "{:?}",
            svg.err()
        );
    }

    #[test]
    fn shrinking_keeps_the_mean() {
        let shares: Vec<f32> = (0..300 * 250).map(|at| (at % 11) as f32).collect();
        let cells = shrunk(&shares, 300, 250);
        let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean(&shares) - mean(&cells)).abs() < 0.05);
    }
}
