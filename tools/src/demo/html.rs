//! `report.html`: the report as a page of its own, with plots as inline SVG.

use plotters::prelude::*;

use crate::CliError;
use crate::moving::plot::{self, MARK, WRITE};
use crate::moving::report::{PhaseLatency, Report};
use crate::page::{self, draw, escape, figure};

const OPS: RGBColor = RGBColor(13, 148, 136);
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
    let latency = figure(
        "99th percentile of read and write latency over time, with the phases of the move marked",
        &plot::latency(&report.series, &report.marks)?,
    );
    let throughput = figure("Finished requests per second over time", &throughput_plot(report)?);
    let orders = figure("Share of reads served against share of bytes copied, for each order", &order_plot(report)?);
    let verdict = if report.passed {
        "Passed: no read failed or was stale, no write was lost, both sides agree."
    } else {
        "Failed: see the figures."
    };
    let class = if report.passed { "good" } else { "bad" };
    let figures = table(report);
    let json = serde_json::to_string(report)?.replace('<', "\\u003c");
    let body = format!(
        r#"<h1>A partition moves while it is served</h1>
<p class="verdict {class}">{verdict}</p>
<p>Trace <b>{}</b>, {} keys, copy order <b>{}</b>, durability <b>{}</b>. Latency counts from the intended send time.</p>
{figures}
<h2>Latency over time (99th percentile per 100 ms, logarithmic)</h2>
{latency}
<h2>Throughput over time</h2>
{throughput}
<h2>What a copy order is worth</h2>
<p>Share of the reads during the move that the target could have served against the share of bytes copied. Area as sent:
<b>{:.3}</b>; guard (auto) {:.3}, GRU {:.3}, moving average {:.3}, key order {:.3}, oracle {:.3}.</p>
{orders}
<script type="application/json" id="report">{json}</script>"#,
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
    );
    Ok(page::document("Antumbra: a move under load", "", &body))
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
        for (at, name) in plot::begins(&report.marks) {
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
            .background_style(TRANSPARENT)
            .draw()?;
        Ok(())
    })
}
