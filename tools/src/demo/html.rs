//! `report.html`: the report as a page of its own, with plots as inline SVG.

use plotters::prelude::*;

use crate::CliError;

use crate::moving::report::{PhaseLatency, Report};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 320;
const READ: RGBColor = RGBColor(37, 99, 235);
const WRITE: RGBColor = RGBColor(217, 70, 39);
const OPS: RGBColor = RGBColor(13, 148, 136);
const MARK: RGBColor = RGBColor(120, 120, 120);
const ORDERS: [(&str, RGBColor); 6] = [
    ("used", RGBColor(0, 0, 0)),
    ("auto", RGBColor(147, 51, 234)),
    ("gru", RGBColor(37, 99, 235)),
    ("ewma", RGBColor(217, 70, 39)),
    ("key", RGBColor(150, 150, 150)),
    ("oracle", RGBColor(13, 148, 136)),
];

/// The page.
pub fn page(report: &Report) -> Result<String, CliError> {
    let latency = latency_plot(report)?;
    let throughput = throughput_plot(report)?;
    let orders = order_plot(report)?;
    let verdict = if report.passed {
        "Passed: no read failed or was stale, no write was lost, both sides agree."
    } else {
        "Failed: see the figures."
    };
    let class = if report.passed { "good" } else { "bad" };
    let figures = table(report);
    let json = serde_json::to_string(report)?.replace('<', "\\u003c");
    Ok(format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Antumbra: a move under load</title>
<style>
:root {{ color-scheme: light dark; --back: #fff; --text: #1b1f24; --line: #d5d9df; --card: #f6f7f9; }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #14171b; --text: #e7e9ec; --line: #3a4048; --card: #1d2126; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 960px; padding: 1rem; background: var(--back); color: var(--text); }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.verdict {{ padding: .7rem 1rem; border-radius: 8px; font-weight: 600; color: #fff; }} .good {{ background: #15803d; }} .bad {{ background: #b91c1c; }}
figure {{ margin: .5rem 0; background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem; overflow-x: auto; }}
svg {{ width: 100%; height: auto; display: block; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }} th:first-child, td:first-child {{ text-align: left; }}
.scroll {{ overflow-x: auto; }}
</style></head><body>
<h1>A partition moves while it is served</h1>
<p class="verdict {class}">{verdict}</p>
<p>Trace <b>{}</b>, {} keys, copy order <b>{}</b>, durability <b>{}</b>. Latency counts from the intended send time.</p>
{figures}
<h2>Latency over time (99th percentile per 100 ms, logarithmic)</h2>
<figure role="img" aria-label="99th percentile of read and write latency over time, with the phases of the move marked">{latency}</figure>
<h2>Throughput over time</h2>
<figure role="img" aria-label="Finished requests per second over time">{throughput}</figure>
<h2>What a copy order is worth</h2>
<p>Share of the reads during the move that the target could have served against the share of bytes copied. Area as sent:
<b>{:.3}</b>; guard (auto) {:.3}, GRU {:.3}, moving average {:.3}, key order {:.3}, oracle {:.3}.</p>
<figure role="img" aria-label="Share of reads served against share of bytes copied, for each order">{orders}</figure>
<script type="application/json" id="report">{json}</script>
</body></html>
"#,
        escape(&report.trace),
        report.keys,
        escape(&report.order),
        report.durability,
        report.order_quality.used,
        report.order_quality.auto,
        report.order_quality.gru,
        report.order_quality.ewma,
        report.order_quality.key,
        report.order_quality.oracle,
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn table(report: &Report) -> String {
    let mut rows = String::new();
    let mut phase = |name: &str, of: &PhaseLatency| {
        for (kind, q) in [("reads", &of.read), ("writes", &of.write)] {
            rows.push_str(&format!(
                "<tr><td>{kind} {name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                q.count, q.p50, q.p99, q.p999, q.max
            ));
        }
    };
    phase("before", &report.latency_us.before);
    phase("during the copy", &report.latency_us.during);
    phase("at the switchover", &report.latency_us.switchover);
    phase("after", &report.latency_us.after);
    let shadow = &report.shadow;
    let steps: String = report
        .switchover
        .steps
        .iter()
        .map(|step| format!("<tr><td>{}</td><td>{}</td></tr>", escape(&step.name), step.us))
        .collect();
    let signal = match (report.signal.raised_at_s, report.signal.lead_s) {
        (Some(at), Some(lead)) => format!("raised at {at:.1} s, {lead:.1} s ahead of the expected crossing"),
        _ => "not raised; the move was started by the clock".into(),
    };
    format!(
        "<h2>Latency, microseconds</h2><div class=scroll><table><tr><th></th><th>count</th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th></tr>{rows}</table></div>\
         <h2>The move</h2><div class=scroll><table>\
         <tr><td>reads: failed, stale</td><td>{} of {}, {}</td></tr><tr><td>writes: failed, lost</td><td>{} of {}, {}</td></tr>\
         <tr><td>longest wait at the switchover: writes, reads</td><td>{} us, {} us</td></tr>\
         <tr><td>copied, on the wire</td><td>{:.1} MB, {:.1} MB in {} segments</td></tr>\
         <tr><td>rate, cap</td><td>{:.2} MB/s, {:.2} MB/s</td></tr>\
         <tr><td>deltas, token retries</td><td>{}, {}</td></tr>\
         <tr><td>epoch</td><td>{} to {}</td></tr>\
         <tr><td>verification</td><td>{} segments, {} records, equal: {}</td></tr>\
         <tr><td>signal</td><td>{signal}</td></tr></table></div>\
         <h2>Steps of the switchover, microseconds</h2><div class=scroll><table>{steps}</table></div>",
        report.reads.failed,
        report.reads.total,
        report.reads.stale,
        report.writes.failed,
        report.writes.total,
        report.writes.lost,
        report.write_pause_us,
        report.read_pause_us,
        shadow.bytes_copied as f64 / 1e6,
        shadow.bytes_on_wire as f64 / 1e6,
        shadow.segments,
        shadow.observed_mb_s,
        shadow.throttle_mb_s,
        shadow.deltas,
        shadow.token_retries,
        report.switchover.epoch_before,
        report.switchover.epoch_after,
        report.verify.segments,
        report.verify.records,
        report.verify.equal,
    )
}

/// Names of the phases where they begin.
fn marks(report: &Report) -> Vec<(f64, &str)> {
    report.marks.iter().filter(|(name, _)| name != "frozen").map(|(name, at)| (*at, name.as_str())).collect()
}

fn latency_plot(report: &Report) -> Result<String, CliError> {
    let end = report.series.last().map_or(1.0, |bin| bin.at_s + 0.1);
    let largest =
        report.series.iter().map(|bin| bin.read_p99_us.max(bin.write_p99_us)).max().unwrap_or(1).max(100) as f64 * 2.0;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..end, (10.0..largest).log_scale())?;
        chart.configure_mesh().x_desc("seconds").y_desc("us").light_line_style(TRANSPARENT).draw()?;
        for (at, name) in marks(report) {
            chart.draw_series([PathElement::new(vec![(at, 10.0), (at, largest)], MARK.stroke_width(1))])?;
            chart.draw_series([Text::new(
                name.to_string(),
                (at, largest * 0.8),
                ("sans-serif", 13).into_font().color(&MARK),
            )])?;
        }
        let line = |of: fn(&crate::moving::report::Bin) -> u64| {
            report.series.iter().map(move |bin| (bin.at_s, (of(bin) as f64).max(10.0)))
        };
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
            .background_style(WHITE)
            .draw()?;
        Ok(())
    })
}

fn throughput_plot(report: &Report) -> Result<String, CliError> {
    let end = report.series.last().map_or(1.0, |bin| bin.at_s + 0.1);
    let largest = report.series.iter().map(|bin| bin.ops_s).fold(1.0, f64::max) * 1.2;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..end, 0.0..largest)?;
        chart.configure_mesh().x_desc("seconds").y_desc("requests/s").light_line_style(TRANSPARENT).draw()?;
        for (at, name) in marks(report) {
            chart.draw_series([PathElement::new(vec![(at, 0.0), (at, largest)], MARK.stroke_width(1))])?;
            chart.draw_series([Text::new(
                name.to_string(),
                (at, largest * 0.98),
                ("sans-serif", 13).into_font().color(&MARK),
            )])?;
        }
        let threshold = report.signal.threshold_ops_s;
        if threshold < largest {
            chart.draw_series([PathElement::new(vec![(0.0, threshold), (end, threshold)], WRITE.stroke_width(1))])?;
        }
        chart
            .draw_series(LineSeries::new(report.series.iter().map(|bin| (bin.at_s, bin.ops_s)), OPS.stroke_width(2)))?;
        Ok(())
    })
}

fn order_plot(report: &Report) -> Result<String, CliError> {
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
        chart
            .configure_mesh()
            .x_desc("share of bytes copied")
            .y_desc("share of reads")
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (name, color) in ORDERS {
            let Some((_, curve)) = report.curves.iter().find(|(found, _)| found == name) else {
                continue;
            };
            chart
                .draw_series(LineSeries::new(curve.iter().copied(), color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(MARK)
            .background_style(WHITE)
            .draw()?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(with: impl FnOnce(&Area<'_>) -> Result<(), CliError>) -> Result<String, CliError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        area.fill(&WHITE).map_err(|cause| cause.to_string())?;
        with(&area)?;
        area.present().map_err(|cause| cause.to_string())?;
    }
    Ok(svg)
}
