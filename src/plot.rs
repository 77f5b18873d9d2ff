//! Pictures, PNG and SVG. The font comes with the program: no library or font of the system is needed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Once;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

const SIZE: (u32, u32) = (900, 560);
const FONT: &str = "sans-serif";

type Drawing<'a, B> = DrawingArea<B, Shift>;

/// Curves by name. On a logarithmic axis coordinates are positive.
pub type Curves = BTreeMap<String, Vec<(f64, f64)>>;

/// Error bars of the curves of these names: place on the level axis, lower and upper end.
pub type Intervals = BTreeMap<String, Vec<(f64, f64, f64)>>;

/// The value of a bar, and the ends of its error bar if it has one.
pub type Value = (f64, Option<(f64, f64)>);

/// How an axis maps values to places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Equal factors.
    Logarithmic,
}

/// One picture.
#[derive(Debug, Clone)]
pub enum Picture {
    /// Bars of phases, in groups of two.
    Bars {
        /// Heading.
        title: String,
        /// Name of the upright axis.
        unit: &'static str,
        /// Names and values, one value a phase.
        series: [(&'static str, Vec<Value>); 2],
        /// Names under the groups.
        phases: Vec<&'static str>,
    },
    /// Curves.
    Curves {
        /// Heading.
        title: String,
        /// Name and scale of the level axis.
        x: (&'static str, Scale),
        /// Name and scale of the upright axis.
        y: (&'static str, Scale),
        /// What was measured, as lines.
        curves: Curves,
        /// What was computed from a model, as dashed lines.
        modelled: Curves,
        /// How well the values of `curves` are known.
        intervals: Intervals,
    },
}

fn use_font() -> anyhow::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
    result.map_err(|_| anyhow::anyhow!("the built-in font can't be read"))
}

/// Draws every picture as `NAME.png` and `NAME.svg` into a folder, which is made if missing, with the caption below it; the
/// files' paths.
///
/// # Errors
/// When a file can't be written, or a picture not be drawn.
pub fn draw(directory: &Path, pictures: &[(String, Picture)], caption: &str) -> anyhow::Result<Vec<PathBuf>> {
    use_font()?;
    std::fs::create_dir_all(directory)?;
    let mut written = Vec::new();
    for (name, picture) in pictures {
        let png = directory.join(format!("{name}.png"));
        picture.draw(&BitMapBackend::new(&png, SIZE).into_drawing_area(), caption)?;
        let svg = directory.join(format!("{name}.svg"));
        picture.draw(&SVGBackend::new(&svg, SIZE).into_drawing_area(), caption)?;
        written.extend([png, svg]);
    }
    Ok(written)
}

/// Characters in a line of a caption.
const CAPTION_WIDTH: usize = 140;
/// Pixels from one line of a caption to the next.
const CAPTION_LINE: u32 = 15;

/// A text in lines of at most `width` characters, broken at spaces; a longer word has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

impl Picture {
    fn draw<B: DrawingBackend>(&self, area: &Drawing<'_, B>, caption: &str) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let caption = wrapped(caption, CAPTION_WIDTH);
        let (upper, lower) = area.split_vertically(SIZE.1 - CAPTION_LINE * caption.len() as u32 - 8);
        for (i, line) in caption.into_iter().enumerate() {
            let place = (14, i as i32 * CAPTION_LINE as i32);
            lower.draw(&Text::new(line, place, (FONT, 12).into_font().color(&BLACK.mix(0.7))))?;
        }
        let area = &upper;
        match self {
            Self::Bars { title, unit, series, phases } => bars(area, title, unit, series, phases)?,
            Self::Curves { title, x, y, curves, modelled, intervals } => {
                let points = || curves.values().chain(modelled.values()).flatten().copied();
                let ends = || intervals.values().flatten().flat_map(|(x, low, high)| [(*x, *low), (*x, *high)]);
                let all = || points().chain(ends().filter(|(_, end)| y.1 == Scale::Linear || *end > 0.0));
                let curves = [curves, modelled];
                let (across, mut up) = (range(all().map(|p| p.0), x.1), range(all().map(|p| p.1), y.1));
                if !modelled.is_empty() || y.1 == Scale::Linear {
                    // The names of models are long, and what is drawn on a linear axis is high early: names would hide the curves.
                    let names = (20 * (curves[0].len() + modelled.len()) + 20) as f64 / f64::from(SIZE.1 - 100);
                    up = headroom(up, names.min(0.6), y.1);
                }
                use Scale::{Linear, Logarithmic};
                match (x.1, y.1) {
                    (Linear, Linear) => lines(area, title, (x.0, across), (y.0, up), curves, intervals)?,
                    (Linear, Logarithmic) => {
                        lines(area, title, (x.0, across), (y.0, up.log_scale()), curves, intervals)?
                    }
                    (Logarithmic, Linear) => {
                        lines(area, title, (x.0, across.log_scale()), (y.0, up), curves, intervals)?
                    }
                    (Logarithmic, Logarithmic) => {
                        lines(area, title, (x.0, across.log_scale()), (y.0, up.log_scale()), curves, intervals)?;
                    }
                }
            }
        }
        area.present()?;
        Ok(())
    }
}

/// A value of an axis, short: 1k, 2.5M, 0.25, 2m.
fn short(value: &f64) -> String {
    if (0.01..1.0).contains(&value.abs()) {
        return format!("{}", (value * 1000.0).round() / 1000.0);
    }
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "\u{b5}")];
    let found = units.into_iter().find(|(size, _)| value.abs() >= size * 0.9999);
    found.map_or_else(|| format!("{value}"), |(size, unit)| format!("{}{unit}", (value / size * 100.0).round() / 100.0))
}

fn bars<B: DrawingBackend>(
    area: &Drawing<'_, B>,
    title: &str,
    unit: &str,
    series: &[(&str, Vec<Value>); 2],
    phases: &[&str],
) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let ends = series.iter().flat_map(|(_, values)| values).map(|(value, ends)| ends.map_or(*value, |(_, high)| high));
    let top = ends.fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..phases.len() as f64, 0.0..(top * 1.1).max(f64::MIN_POSITIVE))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc(unit)
        .y_label_formatter(&short)
        .label_style((FONT, 14))
        .draw()?;
    for (place, (name, values)) in series.iter().enumerate() {
        let style = Palette99::pick(place).filled();
        let left = |i: usize| i as f64 + 0.12 + 0.38 * place as f64;
        let bar = |(i, (value, _)): (usize, &Value)| Rectangle::new([(left(i), 0.0), (left(i) + 0.36, *value)], style);
        chart
            .draw_series(values.iter().enumerate().map(bar))?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], style));
        let known = values.iter().enumerate().filter_map(|(i, (value, ends))| Some((i, *value, (*ends)?)));
        chart.draw_series(known.map(|(i, value, (low, high))| {
            ErrorBar::new_vertical(left(i) + 0.18, low.max(0.0), value, high, BLACK.filled(), 8)
        }))?;
    }
    let names = phases
        .iter()
        .enumerate()
        .map(|(i, phase)| Text::new((*phase).to_owned(), (i as f64 + 0.3, top * -0.015), (FONT, 15).into_font()));
    chart.draw_series(names)?;
    legend(&mut chart)
}

/// A range of which the given part at the top is free.
fn headroom(range: Range<f64>, part: f64, scale: Scale) -> Range<f64> {
    let stretch = 1.0 / (1.0 - part);
    match scale {
        Scale::Linear => range.start..range.start + (range.end - range.start) * stretch,
        Scale::Logarithmic => range.start..range.start * (range.end / range.start).powf(stretch),
    }
}

/// From a little below the smallest value to a little above the largest.
fn range(values: impl Iterator<Item = f64> + Clone, scale: Scale) -> Range<f64> {
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.fold(f64::NEG_INFINITY, f64::max);
    match scale {
        Scale::Linear => {
            let room = ((high - low) * 0.05).max(1e-9);
            low - room..high + room
        }
        Scale::Logarithmic => low.max(1e-9) / 1.25..high.max(1e-9) * 1.25,
    }
}

fn lines<B: DrawingBackend, X, Y>(
    area: &Drawing<'_, B>,
    title: &str,
    (x, across): (&str, X),
    (y, up): (&str, Y),
    [measured, modelled]: [&Curves; 2],
    intervals: &Intervals,
) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(across, up)?;
    let bottom = chart.y_range().start;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .label_style((FONT, 14))
        .draw()?;
    for (i, (name, points)) in measured.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(4))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        for (x, low, high) in intervals.get(name).into_iter().flatten() {
            // On a logarithmic axis an interval that reaches down to 0 or below ends at the lower edge.
            let bar = |value| ErrorBar::new_vertical(*x, low.max(bottom), value, *high, color.stroke_width(1), 9);
            chart.draw_series(points.iter().filter(|point| point.0 == *x).map(|point| bar(point.1)))?;
        }
    }
    for (i, (name, points)) in (measured.len()..).zip(modelled) {
        let style = Palette99::pick(i).to_rgba().stroke_width(2);
        chart
            .draw_series(DashedLineSeries::new(points.iter().copied(), 7, 5, style))?
            .label(name)
            .legend(move |(x, y)| DashedPathElement::new([(x, y), (x + 16, y)], 5, 3, style));
    }
    legend(&mut chart)
}

fn legend<'a, B: DrawingBackend + 'a, C: CoordTranslate>(chart: &mut ChartContext<'a, B, C>) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.4))
        .label_font((FONT, 14))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headroom_leaves_the_asked_part_of_an_axis_free() {
        let linear = headroom(2.0..4.0, 0.5, Scale::Linear);
        assert_eq!((linear.start, linear.end), (2.0, 6.0));
        let logarithmic = headroom(1.0..10.0, 0.5, Scale::Logarithmic);
        assert!((logarithmic.end - 100.0).abs() < 1e-9);
    }

    #[test]
    fn curves_error_bars_models_and_the_caption_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let curves = |name: &str| Curves::from([(name.to_owned(), vec![(1.0, 2.0), (10.0, 30.0)])]);
        let svg = |intervals: Intervals| {
            let (x, y) = (("n", Scale::Logarithmic), ("seconds", Scale::Logarithmic));
            let (curves, modelled) = (curves("measured here"), curves("a model"));
            let picture = Picture::Curves { title: "Costs".into(), x, y, curves, modelled, intervals };
            let files = draw(folder.path(), &[("costs".into(), picture)], "seeds 0 to 4").unwrap();
            std::fs::read_to_string(&files[1]).unwrap()
        };
        let bare = svg(Intervals::new());
        for words in ["measured here", "a model", "seeds 0 to 4"] {
            assert!(bare.contains(words), "{words}");
        }
        // The lower end is below 0, where a logarithmic axis has no place.
        let with_bars = svg(Intervals::from([("measured here".into(), vec![(1.0, -1.0, 3.0), (10.0, 20.0, 40.0)])]));
        // Each error bar has a mark at the mean.
        assert_eq!(with_bars.matches("<circle").count(), bare.matches("<circle").count() + 2);
        assert!(!with_bars.contains("NaN") && !with_bars.contains("inf"));
    }

    #[test]
    fn bars_have_error_bars_where_the_value_has_an_interval() {
        let folder = tempfile::tempdir().unwrap();
        let svg = |ends| {
            let series = [("sent", vec![(2.0, ends)]), ("received", vec![(3.0, None)])];
            let picture = Picture::Bars { title: "Bytes".into(), unit: "bytes", series, phases: vec!["mask"] };
            let files = draw(folder.path(), &[("bytes".into(), picture)], "").unwrap();
            std::fs::read_to_string(&files[1]).unwrap()
        };
        assert!(svg(Some((1.0, 4.0))).matches("<circle").count() > svg(None).matches("<circle").count());
    }

    #[test]
    fn captions_are_broken_at_spaces() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("indivisible", 3), ["indivisible"]);
        assert!(wrapped("", 10).is_empty());
    }
}
