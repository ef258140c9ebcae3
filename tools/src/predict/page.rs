//! The page of `antumbra predict eval --html`: one file, no script, nothing loaded.

use std::fmt::Write as _;

use antumbra_predictor::eval::Report;

use super::eval::{gaps, rows};

const STYLE: &str = "body{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}td,th{padding:.25rem .6rem;text-align:right;white-space:nowrap}\
td:first-child,th:first-child{text-align:left}tr.gru,tr.auto{font-weight:600}.bar{width:45%}\
.bar div{background:#4a7ab5;height:.8rem}.bar i{display:block;background:#1b3350;height:2px;margin-top:-7px}";

/// The report as an HTML page.
pub fn of_report(report: &Report) -> String {
    let title = escaped(&report.trace);
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p>Mapping {}, {} segments, {} positions. Share: requests of the horizon that hit a segment \
         already copied. The dark line is the 95 % interval.</p>\
         <table><tr><th>scorer<th>share<th>% of oracle<th>95 % interval<th class=bar>",
        report.mapping, report.segments, report.positions
    );
    for (name, scorer) in rows(report).into_iter().rev() {
        let [low, high] = scorer.ci95;
        let class = name.split(' ').next().unwrap_or_default();
        // writing to a string cannot fail
        let _ = write!(
            page,
            "<tr class={class}><td>{}<td>{:.4}<td>{:.2}<td>{low:.2} to {high:.2}<td class=bar>\
             <div style=width:{:.2}%></div><i style='margin-left:{:.2}%;width:{:.2}%'></i>",
            escaped(&name),
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
    page.push_str("</ul></html>");
    page
}

/// Text that HTML shows as it is.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_has_no_markup() {
        assert_eq!(escaped("<a href='x'>&"), "&lt;a href=&#39;x&#39;&gt;&amp;");
    }
}
