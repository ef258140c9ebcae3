//! Plots of a move over time.

use plotters::prelude::*;

use super::report::Bin;
use crate::CliError;
use crate::page::draw;

pub const READ: RGBColor = RGBColor(59, 130, 246);
pub const WRITE: RGBColor = RGBColor(217, 70, 39);
pub const MARK: RGBColor = RGBColor(128, 128, 128);

/// Names of the phases, and where they begin.
pub fn begins(marks: &[(String, f64)]) -> impl Iterator<Item = (f64, &str)> {
    marks.iter().filter(|(name, _)| name != "frozen").map(|(name, at)| (*at, name.as_str()))
}

/// 99th percentile of reads and writes over time, with the phases of the move.
pub fn latency(series: &[Bin], marks: &[(String, f64)]) -> Result<String, CliError> {
    let end = series.last().map_or(1.0, |bin| bin.at_s + 0.1);
    let largest =
        series.iter().map(|bin| bin.read_p99_us.max(bin.write_p99_us)).max().unwrap_or(1).max(100) as f64 * 2.0;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..end, (10.0..largest).log_scale())?;
        chart.configure_mesh().x_desc("seconds").y_desc("us").light_line_style(TRANSPARENT).draw()?;
        for (at, name) in begins(marks) {
            chart.draw_series([PathElement::new(vec![(at, 10.0), (at, largest)], MARK.stroke_width(1))])?;
            chart.draw_series([Text::new(
                name.to_string(),
                (at, largest * 0.8),
                ("sans-serif", 13).into_font().color(&MARK),
            )])?;
        }
        let line = |of: fn(&Bin) -> u64| series.iter().map(move |bin| (bin.at_s, (of(bin) as f64).max(10.0)));
        chart
            .draw_series(LineSeries::new(line(|bin| bin.write_p99_us), WRITE.stroke_width(2)))?
            .label("writes")
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], WRITE.stroke_width(2)));
        chart
            .draw_series(LineSeries::new(line(|bin| bin.read_p99_us), READ.stroke_width(2)))?
            .label("reads")
            .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], READ.stroke_width(2)));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(MARK)
            .background_style(TRANSPARENT)
            .draw()?;
        Ok(())
    })
}
