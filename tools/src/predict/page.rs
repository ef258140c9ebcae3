//! The page of `antumbra predict eval --html`: one file, no script, nothing loaded.

use std::fmt::Write as _;

use antumbra_predictor::eval::Report;

use super::eval::{gaps, rows};
use crate::page::{document, escape};

const STYLE: &str = "\
tr.gru, tr.auto { font-weight: 600; } td, th { white-space: nowrap; }
.bar { width: 45%; } .bar div { background: #4a7ab5; height: .8rem; }
.bar i { display: block; background: currentColor; height: 2px; margin-top: -7px; }
";

/// The report as an HTML page.
pub fn of_report(report: &Report) -> String {
    let mut page = format!(
        "<h1>{}</h1><p>Mapping {}, {} segments, {} positions. Share: requests of the horizon that hit a segment already copied. \
         The thin line is the 95 % interval.</p><table><tr><th>scorer<th>share<th>% of oracle<th>95 % interval<th class=bar>",
        escape(&report.trace),
        report.mapping,
        report.segments,
        report.positions
    );
    for (name, scorer) in rows(report).into_iter().rev() {
        let [low, high] = scorer.ci95;
        let class = name.split(' ').next().unwrap_or_default();
        // writing to a string cannot fail
        let _ = write!(
            page,
            "<tr class={class}><td>{}<td>{:.4}<td>{:.2}<td>{low:.2} to {high:.2}<td class=bar>\
             <div style=width:{:.2}%></div><i style='margin-left:{:.2}%;width:{:.2}%'></i>",
            escape(&name),
            scorer.share,
            scorer.pct_of_oracle,
            scorer.pct_of_oracle.clamp(0.0, 100.0),
            low.clamp(0.0, 100.0),
            (high - low).clamp(0.0, 100.0),
        );
    }
    page.push_str("</table><p>Gap to the oracle that <b>gru</b> closes:</p><ul>");
    for (rival, gap) in gaps(report) {
        let _ = write!(page, "<li>against {rival}: {gap}");
    }
    page.push_str("</ul>");
    document(&report.trace, STYLE, &page)
}
