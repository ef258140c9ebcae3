//! What all pages of the program have in common: one file, no script, nothing loaded, light and dark; plots as inline SVG.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::CliError;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 320;
const STYLE: &str = "\
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --line: #d5d9df; --card: #f6f7f9; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --text: #e7e9ec; --line: #3a4048; --card: #1d2126; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 960px; padding: 1rem; background: var(--back); color: var(--text); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { padding: .7rem 1rem; border-radius: 8px; font-weight: 600; color: #fff; } .good { background: var(--good); } .bad { background: var(--bad); }
figure { margin: .5rem 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem; overflow-x: auto; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
";

/// A page around its body; `style` is what it needs beside the common one.
pub fn document(title: &str, style: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>\n{STYLE}{style}</style>\
         </head><body>\n{body}\n</body></html>\n",
        escape(title)
    )
}

/// Text that HTML shows as it is, in attributes too.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// A plot and what it shows, in words.
pub fn figure(label: &str, svg: &str) -> String {
    format!("<figure role=\"img\" aria-label=\"{}\">{svg}</figure>", escape(label))
}

/// Where a plot is drawn.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a plot. What is black in it takes the colour of the page's text; what lies behind it shows.
pub fn draw(with: impl FnOnce(&Area<'_>) -> Result<(), CliError>) -> Result<String, CliError> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        with(&area)?;
        area.present().map_err(|cause| cause.to_string())?;
    }
    Ok(svg.replace("#000000", "currentColor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_has_no_markup() {
        assert_eq!(escape("<a href='x'>&"), "&lt;a href=&#39;x&#39;&gt;&amp;");
    }

    #[test]
    fn plots_follow_the_colour_of_the_page() -> Result<(), CliError> {
        let svg = draw(|area| {
            let mut chart = ChartBuilder::on(area).x_label_area_size(35).build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
            chart.configure_mesh().x_desc("seconds").draw()?;
            Ok(())
        })?;
        assert!(svg.contains("currentColor") && svg.contains("seconds") && !svg.contains("#000000"), "{svg}");
        Ok(())
    }
}
