//! Reports as pictures, PNG and SVG. The font comes with the program: no library or font of the system is needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use unisono_sim::Report;

use super::output::{Cost, cost, timing};

const SIZE: (u32, u32) = (900, 560);
const FONT: &str = "sans-serif";

type Drawing<'a, B> = DrawingArea<B, Shift>;

/// Curves by name, of points with positive coordinates.
type Curves = BTreeMap<String, Vec<(f64, f64)>>;

/// One picture.
enum Picture {
    /// Bars of phases, in groups of two.
    Bars { title: String, unit: &'static str, series: [(&'static str, Vec<f64>); 2], phases: Vec<&'static str> },
    /// Curves on logarithmic axes.
    Curves { title: String, x: &'static str, y: &'static str, curves: Curves },
}

fn use_font() -> anyhow::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
    result.map_err(|_| anyhow::anyhow!("the built-in font can't be read"))
}

/// Draws everything that the reports give, and says which files it wrote.
pub(super) fn draw(directory: &Path, reports: &[Report], swept: bool) -> anyhow::Result<Vec<PathBuf>> {
    use_font()?;
    std::fs::create_dir_all(directory)?;
    let mut pictures = Vec::new();
    if let Some(last) = reports.iter().rev().find(|report| !report.rounds.is_empty()) {
        pictures.extend(by_phase(last));
    }
    if swept {
        pictures.extend(against(reports));
    }
    let mut written = Vec::new();
    for (name, picture) in pictures {
        let png = directory.join(format!("{name}.png"));
        picture.draw(&BitMapBackend::new(&png, SIZE).into_drawing_area())?;
        let svg = directory.join(format!("{name}.svg"));
        picture.draw(&SVGBackend::new(&svg, SIZE).into_drawing_area())?;
        written.extend([png, svg]);
    }
    Ok(written)
}

fn label(report: &Report) -> String {
    let s = &report.settings;
    format!("n = {}, d = {}, k = {}, {} mode", s.clients, s.dimension, s.degree, s.mode)
}

/// Time and bytes by phase of a report's last round.
fn by_phase(report: &Report) -> Vec<(String, Picture)> {
    let Some(round) = report.rounds.last() else { return Vec::new() };
    let phases: Vec<&'static str> = round.phases.iter().map(|phase| phase.phase).collect();
    let times = (0..phases.len()).map(|i| timing(round, i));
    let (client, server) = times.map(|time| (time.client_seconds.mean, time.server_seconds)).unzip();
    let time = Picture::Bars {
        title: format!("Measured time by phase: {}", label(report)),
        unit: "seconds",
        series: [("one client (CPU)", client), ("coordinator", server)],
        phases: phases.clone(),
    };
    let bytes = Picture::Bars {
        title: format!("Bytes of one client by phase: {}", label(report)),
        unit: "bytes",
        series: [
            ("sent", round.phases.iter().map(|phase| phase.sent.mean).collect()),
            ("received", round.phases.iter().map(|phase| phase.received.mean).collect()),
        ],
        phases,
    };
    vec![("phase-time".into(), time), ("phase-bytes".into(), bytes)]
}

/// Client time, server time and bytes against n, d and k, where at least two values of these occur.
fn against(reports: &[Report]) -> Vec<(String, Picture)> {
    type Number = fn(&Report) -> f64;
    let axes: [(&str, &str, Number); 3] = [
        ("n", "clients, n", |report| report.settings.clients.into()),
        ("d", "elements of an update, d", |report| report.settings.dimension as f64),
        ("k", "neighbours of a client, k", |report| report.settings.degree.into()),
    ];
    type Amount = fn(&Cost) -> f64;
    let amounts: [(&str, &str, &str, Amount); 3] = [
        ("client-time", "CPU time of one client in a round", "seconds", |cost| cost.client),
        ("server-time", "Time of the coordinator in a round", "seconds", |cost| cost.server),
        ("client-bytes", "Bytes that one client sends and receives in a round", "bytes", |cost| {
            cost.sent + cost.received
        }),
    ];
    let mut pictures = Vec::new();
    for (axis, x, number) in axes {
        for (name, title, y, amount) in amounts {
            let mut curves = Curves::new();
            for report in reports {
                let Some(cost) = cost(report) else { continue };
                let s = &report.settings;
                // What is not on the axis tells curves apart. The degree follows from n, so k stands in for it.
                let rest = match axis {
                    "d" => format!("n = {}", s.clients),
                    _ => format!("d = {}", s.dimension),
                };
                let key = format!("{rest}, delta = {}, {} bits, {}", s.delta, s.quantiser_bits, s.mode);
                curves.entry(key).or_default().push((number(report), amount(&cost)));
            }
            curves.values_mut().for_each(|points| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
            curves.retain(|_, points| points.len() > 1 && points[0].0 < points[points.len() - 1].0);
            if !curves.is_empty() {
                let picture = Picture::Curves { title: title.to_owned(), x, y, curves };
                pictures.push((format!("{name}-{axis}"), picture));
            }
        }
    }
    pictures
}

impl Picture {
    fn draw<B: DrawingBackend>(&self, area: &Drawing<'_, B>) -> anyhow::Result<()>
    where
        B::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        match self {
            Self::Bars { title, unit, series, phases } => bars(area, title, unit, series, phases)?,
            Self::Curves { title, x, y, curves } => lines(area, title, x, y, curves)?,
        }
        area.present()?;
        Ok(())
    }
}

/// A value of an axis, short: 1k, 2.5M, 20m.
fn short(value: &f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "\u{b5}")];
    let found = units.into_iter().find(|(size, _)| value.abs() >= size * 0.9999);
    found.map_or_else(|| format!("{value}"), |(size, unit)| format!("{}{unit}", (value / size * 100.0).round() / 100.0))
}

fn bars<B: DrawingBackend>(
    area: &Drawing<'_, B>,
    title: &str,
    unit: &str,
    series: &[(&str, Vec<f64>); 2],
    phases: &[&str],
) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let top = series.iter().flat_map(|(_, values)| values).fold(0.0f64, |top, value| top.max(*value));
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
        let bar = |(i, value): (usize, &f64)| {
            let left = i as f64 + 0.12 + 0.38 * place as f64;
            Rectangle::new([(left, 0.0), (left + 0.36, *value)], style)
        };
        chart
            .draw_series(values.iter().enumerate().map(bar))?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], style));
    }
    let names = phases
        .iter()
        .enumerate()
        .map(|(i, phase)| Text::new((*phase).to_owned(), (i as f64 + 0.3, top * -0.015), (FONT, 15).into_font()));
    chart.draw_series(names)?;
    legend(&mut chart)
}

fn lines<B: DrawingBackend>(area: &Drawing<'_, B>, title: &str, x: &str, y: &str, curves: &Curves) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let points = || curves.values().flatten();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = points().map(of).fold(f64::INFINITY, f64::min).max(1e-9);
        let high = points().map(of).fold(0.0, f64::max).max(low);
        (low / 1.25)..(high * 1.25)
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(70)
        .build_cartesian_2d(range(|p| p.0).log_scale(), range(|p| p.1).log_scale())?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .label_style((FONT, 14))
        .draw()?;
    for (i, (name, points)) in curves.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(4))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
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
