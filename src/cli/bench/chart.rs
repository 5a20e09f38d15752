//! The seconds of a run as a picture: operations above, latencies below, on one time axis.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordu64;
use plotters::prelude::*;

use super::Second;

type Drawn = Result<(), Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (960, 640);
const OPERATIONS_HEIGHT: u32 = 400;
const MARGIN: u32 = 12;
const FONT: (&str, u32) = ("sans-serif", 14);
/// Distinguishable without telling red from green (Okabe and Ito).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// A line of the chart: its name and a value a second.
struct Line {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(u64, u64)>,
}

impl Line {
    fn new(
        name: &'static str,
        colour: RGBColor,
        seconds: &[Second],
        value: impl Fn(&Second) -> u64,
    ) -> Self {
        let points = seconds.iter().map(|second| (second.time, value(second))).collect();
        Self { name, colour, points }
    }

    fn peak(&self) -> u64 {
        self.points.iter().map(|&(_, value)| value).max().unwrap_or(0)
    }
}

/// Draws the seconds into an SVG file.
pub(super) fn draw(path: &Path, seconds: &[Second]) -> Drawn {
    let mut operations = vec![Line::new("all", COLOURS[0], seconds, |second| second.operations)];
    if let Some(first) = seconds.first() {
        for (column, &(kind, _)) in first.by_kind.iter().enumerate() {
            let colour = COLOURS[1 + column];
            operations
                .push(Line::new(kind.name(), colour, seconds, |second| second.by_kind[column].1));
        }
    }
    // A kind that was never asked would only hide the axis.
    operations.retain(|line| line.peak() > 0);
    let latencies = [
        Line::new("p50", COLOURS[1], seconds, |second| second.p50_micros),
        Line::new("p99", COLOURS[2], seconds, |second| second.p99_micros),
    ];

    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (above, below) = area.split_vertically(OPERATIONS_HEIGHT);
    let end = seconds.last().map_or(1, |second| second.time.max(2));
    panel(&above, "operations a second", end, &operations)?;
    panel(&below, "latency of a batch, us", end, &latencies)?;
    area.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    caption: &str,
    end: u64,
    lines: &[Line],
) -> Drawn {
    let peak = lines.iter().map(Line::peak).max().unwrap_or(0).max(1);
    // The room above the highest line is the legend's.
    let mut chart: ChartContext<'_, _, Cartesian2d<RangedCoordu64, RangedCoordu64>> =
        ChartBuilder::on(area)
            .caption(caption, FONT)
            .margin(MARGIN)
            .x_label_area_size(28)
            .y_label_area_size(80)
            .build_cartesian_2d(1..end, 0..peak + peak / 2 + 1)?;
    chart.configure_mesh().label_style(FONT).x_desc("seconds").light_line_style(WHITE).draw()?;
    for line in lines {
        let colour = line.colour;
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(FONT)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::load::requests::Kind;

    fn second(time: u64) -> Second {
        let by_kind = vec![(Kind::Get, 60), (Kind::Set, 40), (Kind::MultiPut, 0)];
        Second { time, operations: 100, by_kind, p50_micros: 7, p99_micros: 9, errors: 0 }
    }

    #[test]
    fn draws_what_was_asked_and_bears_short_runs() -> Drawn {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("seconds.svg");
        for seconds in [0, 1, 5] {
            let seconds: Vec<_> = (1..=seconds).map(second).collect();
            draw(&path, &seconds)?;
            let picture = std::fs::read_to_string(&path)?;
            assert!(picture.contains("operations a second") && picture.ends_with("</svg>\n"));
            assert_eq!(picture.contains("\nset\n"), !seconds.is_empty());
            assert!(!picture.contains("\nmultiput\n"), "nobody asked for it");
        }
        Ok(())
    }
}
