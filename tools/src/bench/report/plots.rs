//! Bars of figures, one group a phase, one colour a name, with whiskers from the least round to the most.

use plotters::prelude::*;

use super::html::digits;
use super::model::Figure;
use crate::CliError;
use crate::moving::plot::MARK;
use crate::page::draw;

/// Legible on light and on dark.
const COLORS: [RGBColor; 8] = [
    RGBColor(59, 130, 246),
    RGBColor(217, 70, 39),
    RGBColor(13, 148, 136),
    RGBColor(147, 51, 234),
    RGBColor(202, 138, 4),
    RGBColor(219, 39, 119),
    RGBColor(101, 163, 13),
    RGBColor(120, 113, 108),
];

/// How high a bar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// By the largest of its group.
    OfTheBest,
    /// By its magnitude.
    Logarithmic,
    /// As it is, up to 100.
    Percent,
}

/// The different values of a field, in order.
fn distinct<'a>(figures: &[&'a Figure], field: fn(&Figure) -> &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for figure in figures {
        let value = field(figure);
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Whether all figures are of one name: nothing to compare with.
pub fn alone(figures: &[&Figure]) -> bool {
    distinct(figures, |figure| &figure.name).len() == 1
}

/// Whether a plot would say more than a number or two, and no more than eyes can tell apart.
pub fn worth(figures: &[&Figure]) -> bool {
    let (groups, names) = (distinct(figures, |figure| &figure.group), distinct(figures, |figure| &figure.name));
    (2..=12).contains(&(groups.len() * names.len()).min(12)) && names.len() <= 12 && groups.len() <= 12
}

/// The bars.
pub fn bars(figures: &[&Figure], scale: Scale, label: &str) -> Result<String, CliError> {
    let (groups, names) = (distinct(figures, |figure| &figure.group), distinct(figures, |figure| &figure.name));
    let best = |group: &str| {
        figures
            .iter()
            .filter(|figure| figure.group == group)
            .map(|figure| figure.median)
            .fold(f64::MIN_POSITIVE, f64::max)
    };
    let height = |figure: &Figure, value: f64| match scale {
        Scale::OfTheBest => value / best(&figure.group),
        Scale::Logarithmic => value.max(0.01).log10(),
        Scale::Percent => value,
    };
    let highest = figures.iter().map(|figure| height(figure, figure.high.max(figure.median))).fold(0.0, f64::max);
    let lowest = figures.iter().map(|figure| height(figure, figure.low)).fold(f64::INFINITY, f64::min);
    // The legend stands above the bars.
    let (floor, top) = match scale {
        Scale::Logarithmic => (lowest.floor() - 1.0, highest.ceil() + 1.0),
        Scale::OfTheBest | Scale::Percent => (0.0, highest * 1.3),
    };
    let wide = 0.9 / names.len() as f64;
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..groups.len() as f64, floor..top)?;
        let mark = |value: &f64| match scale {
            Scale::Logarithmic => digits(10_f64.powf(*value)),
            Scale::OfTheBest => format!("{value:.1}"),
            Scale::Percent => format!("{value:.0}"),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(0)
            .y_labels(6)
            .y_label_formatter(&mark)
            .y_desc(label)
            .draw()?;
        for (at, name) in names.iter().enumerate() {
            let color = COLORS[at % COLORS.len()];
            let own = figures.iter().filter(|figure| figure.name == *name);
            let place = |figure: &Figure| {
                let group = groups.iter().position(|group| *group == figure.group).unwrap_or_default();
                group as f64 + 0.05 + wide * at as f64
            };
            let bar = |figure: &&Figure| {
                let left = place(figure);
                Rectangle::new([(left, floor), (left + wide * 0.92, height(figure, figure.median))], color.filled())
            };
            chart
                .draw_series(own.clone().map(bar))?
                .label(*name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
            let whisker = |figure: &&Figure| {
                let middle = place(figure) + wide * 0.46;
                let ends = [figure.low, figure.high].map(|value| (middle, height(figure, value).max(floor)));
                PathElement::new(ends.to_vec(), BLACK.stroke_width(1))
            };
            chart.draw_series(own.map(whisker))?;
        }
        // The names stand below their groups.
        for (at, group) in groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(at as f64 + 0.05, floor));
            area.draw(&Text::new((*group).to_string(), (x, y + 8), ("sans-serif", 13).into_font().color(&BLACK)))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .border_style(MARK)
            .background_style(TRANSPARENT)
            .draw()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::unit;
    use super::*;

    #[test]
    fn bars_name_their_groups_and_every_series() -> Result<(), CliError> {
        let figures = [
            Figure::of("C", "antumbra", unit::OPERATIONS, &[4.0, 5.0, 6.0]),
            Figure::of("C", "lmdb", unit::OPERATIONS, &[3.0]),
            Figure::of("A", "antumbra", unit::OPERATIONS, &[1.0]),
        ];
        let figures: Vec<&Figure> = figures.iter().collect();
        assert!(worth(&figures));
        for scale in [Scale::OfTheBest, Scale::Logarithmic, Scale::Percent] {
            let svg = bars(&figures, scale, "operations")?;
            for text in ["\nC\n", "\nA\n", "\nantumbra\n", "\nlmdb\n", "operations"] {
                assert!(svg.contains(text), "{scale:?}: {text:?} in {svg}");
            }
            assert_eq!(svg.matches("<rect").count(), 3 + 2 + 1, "a bar each, two legends and its frame: {svg}");
        }
        Ok(())
    }
}
