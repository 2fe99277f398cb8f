//! Charts as SVG: axes with ticks that are round numbers, any number of named series, read-outs where a pointer is.
//!
//! A chart is drawn twice, for a wide and a narrow page, because letters shrink with a drawing; the style sheet shows one of
//! them. Values that an axis cannot show (none at all, or nothing above 0 on a logarithmic one) are gaps in a line. Colours
//! are classes (`s0`, `s1`, …) that the style sheet gives.

use std::fmt::Write;

use serde_json::{Value, json};

use super::escape;
use crate::report::units::{digits, duration, grouped};

/// Series have this many colours; those behind begin again.
const COLOUR_COUNT: usize = 6;

/// What a chart shows.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Its heading.
    pub title: String,
    /// A sentence for who reads it.
    pub caption: String,
    /// From left to right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What is drawn, the first above all others.
    pub series: Vec<Series>,
    /// Shaded parts of the x axis.
    pub bands: Vec<Band>,
}

/// What an axis measures, and how.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// In words; empty where ticks say it.
    pub label: &'static str,
    /// How values become places.
    pub scale: Scale,
    /// What values are.
    pub unit: Unit,
    /// Shown at least. Nothing: what there is, and 0 on an upward linear axis.
    pub range: Option<(f64, f64)>,
}

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far apart.
    Linear,
    /// Equal factors are equally far apart.
    Logarithmic,
    /// Percentiles: each further nine as far as the one before, log of 1 / (1 − q).
    Nines,
}

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds since something.
    Seconds,
    /// A number a second.
    PerSecond,
    /// A number.
    Count,
    /// Microseconds, told in the unit that fits.
    Microseconds,
    /// Of a hundred.
    Percentile,
}

/// One thing that is drawn.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// In the order of x. A y that is not finite is a gap.
    pub points: Vec<(f64, f64)>,
    /// How.
    pub form: Form,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line.
    Line,
    /// A line of dashes: what was asked for, as against what came.
    Dashes,
    /// A line, filled below.
    Area,
    /// A mark at each x; the value is a number that only the read-out tells.
    Marks,
}

/// A shaded part of the x axis.
#[derive(Clone, Debug)]
pub struct Band {
    /// From this value.
    pub from: f64,
    /// To this one.
    pub to: f64,
    /// What it is.
    pub label: String,
}

/// A drawing's measures.
struct Canvas {
    class: &'static str,
    width: f64,
    height: f64,
    left: f64,
    x_ticks_max: usize,
}

const TOP: f64 = 26.0;
const RIGHT: f64 = 28.0;
const BOTTOM: f64 = 40.0;
const CANVASES: [Canvas; 2] = [
    Canvas { class: "wide", width: 920.0, height: 300.0, left: 72.0, x_ticks_max: 11 },
    Canvas { class: "narrow", width: 400.0, height: 280.0, left: 62.0, x_ticks_max: 5 },
];

/// An axis with its ends known.
struct Extent {
    axis: Axis,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Chart {
    /// The chart as a `<figure>`.
    pub fn figure(&self) -> String {
        let mut html = String::new();
        let drawn = |series: &Series| series.form != Form::Marks;
        let xs = || self.series.iter().flat_map(|series| series.points.iter().map(|point| point.0));
        let ys =
            || self.series.iter().filter(|s| drawn(s)).flat_map(|s| s.points.iter().map(|point| point.1));
        let is_empty = !ys().any(|y| self.y.shows(y));
        let title = escape(&self.title);
        if is_empty {
            let _ = write!(
                html,
                "<figure><figcaption><h3>{title}</h3></figcaption><p class=\"nothing\">Nothing was measured.</p></figure>"
            );
            return html;
        }
        let y = Extent::new(self.y, ys(), 6, true);
        let x = Extent::new(self.x, xs(), CANVASES[0].x_ticks_max, false);
        let _ = write!(
            html,
            "<figure data-read='{}'><figcaption><h3>{title}</h3><p>{}</p></figcaption>{}",
            escape(&self.read_out(&x, &y).to_string()).replace("&quot;", "\""),
            escape(&self.caption),
            self.legend()
        );
        for canvas in &CANVASES {
            let x = Extent::new(self.x, xs(), canvas.x_ticks_max, false);
            canvas.draw(&mut html, self, &x, &y);
        }
        html.push_str("</figure>\n");
        html
    }

    fn legend(&self) -> String {
        let mut html = "<div class=\"legend\">".to_owned();
        for (index, series) in self.series.iter().enumerate() {
            let _ = write!(
                html,
                "<span class=\"{}\"><i></i>{}</span>",
                class(index, series),
                escape(&series.name)
            );
        }
        html + "</div>"
    }

    /// For the script: names and classes of the series; for each x its place, its name, and each series' place and value.
    /// Places are parts of the plot, so that they hold for every drawing.
    fn read_out(&self, x: &Extent, y: &Extent) -> Value {
        let mut places: Vec<f64> = self
            .series
            .iter()
            .flat_map(|series| &series.points)
            .map(|point| point.0)
            .filter(|at| x.contains(*at))
            .collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let rows = places.iter().map(|&at| {
            let cells = self.series.iter().map(|series| {
                let start = series.points.partition_point(|point| point.0 < at);
                match series.points.get(start).filter(|point| point.0 == at) {
                    Some(&(_, value)) if series.form == Form::Marks => json!([0, Unit::Count.name(value)]),
                    Some(&(_, value)) if self.y.shows(value) => {
                        json!([rounded(1.0 - y.part(value)), self.y.unit.name(value)])
                    }
                    _ => json!(0),
                }
            });
            json!([rounded(x.part(at)), self.x.unit.name(at), cells.collect::<Vec<_>>()])
        });
        let names =
            self.series.iter().enumerate().map(|(index, series)| json!([class(index, series), series.name]));
        json!({ "series": names.collect::<Vec<_>>(), "rows": rows.collect::<Vec<_>>() })
    }
}

impl Canvas {
    fn draw(&self, html: &mut String, chart: &Chart, x: &Extent, y: &Extent) {
        let Canvas { class: size, width, height, left, .. } = *self;
        let (plot_width, plot_height) = (width - left - RIGHT, height - TOP - BOTTOM);
        let (right, bottom) = (left + plot_width, TOP + plot_height);
        let at_x = |value: f64| left + plot_width * x.part(value);
        let at_y = |value: f64| bottom - plot_height * y.part(value);
        let _ = write!(
            html,
            "<svg class=\"{size}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\" \
             data-plot=\"{left} {TOP} {plot_width} {plot_height}\">",
            escape(&chart.title)
        );
        for band in &chart.bands {
            let (from, to) = (at_x(band.from.max(x.from)), at_x(band.to.min(x.to)));
            if to <= from {
                continue;
            }
            let _ = write!(
                html,
                "<rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{plot_height}\"/>",
                to - from
            );
        }
        for &tick in &y.ticks {
            let place = at_y(tick);
            let _ = write!(
                html,
                "<path class=\"grid\" d=\"M{left} {place:.1}H{right}\"/><text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>",
                left - 8.0,
                place + 4.0,
                y.tick_name(tick)
            );
        }
        for &tick in &x.ticks {
            let place = at_x(tick);
            let _ = write!(
                html,
                "<path class=\"grid\" d=\"M{place:.1} {TOP}V{bottom}\"/><text class=\"x\" x=\"{place:.1}\" y=\"{}\">{}</text>",
                bottom + 17.0,
                x.tick_name(tick)
            );
        }
        let _ = write!(
            html,
            "<path class=\"axis\" d=\"M{left} {bottom}H{right}\"/><text class=\"label\" x=\"4\" y=\"13\">{}</text>\
             <text class=\"label end\" x=\"{right}\" y=\"{}\">{}</text>",
            escape(chart.y.label),
            bottom + 34.0,
            escape(chart.x.label)
        );
        for (index, series) in chart.series.iter().enumerate().rev() {
            let class = class(index, series);
            let mut line = String::new();
            for part in series.points.split(|point| !chart.y.shows(point.1)) {
                let part: Vec<(f64, f64)> =
                    part.iter().copied().filter(|point| x.contains(point.0)).collect();
                if series.form == Form::Marks {
                    for (at, _) in part {
                        let at = at_x(at);
                        let _ = write!(line, "M{at:.1} {bottom}V{TOP}m-4 -7h8l-4 7z");
                    }
                    continue;
                }
                for (i, &(at, value)) in part.iter().enumerate() {
                    let letter = if i == 0 { 'M' } else { 'L' };
                    let _ = write!(line, "{letter}{:.1} {:.1}", at_x(at), at_y(value));
                }
                if let [_] = part.as_slice() {
                    // A line of no length is a dot, its ends being round.
                    line.push_str("h0");
                }
                if let [first, .., last] = part.as_slice()
                    && series.form == Form::Area
                {
                    let mut area = format!("M{:.1} {bottom}", at_x(first.0));
                    for &(at, value) in &part {
                        let _ = write!(area, "L{:.1} {:.1}", at_x(at), at_y(value));
                    }
                    let _ = write!(area, "L{:.1} {bottom}z", at_x(last.0));
                    let _ = write!(html, "<path class=\"area {class}\" d=\"{area}\"/>");
                }
            }
            let _ = write!(html, "<path class=\"line {class}\" d=\"{line}\"/>");
        }
        for band in chart.bands.iter().filter(|band| band.to > x.from && band.from < x.to) {
            let _ = write!(
                html,
                "<text class=\"band\" x=\"{:.1}\" y=\"{}\">{}</text>",
                at_x(band.from.max(x.from)) + 5.0,
                bottom - 7.0,
                escape(&band.label)
            );
        }
        html.push_str("</svg>");
    }
}

impl Axis {
    fn shows(&self, value: f64) -> bool {
        match self.scale {
            Scale::Linear => value.is_finite(),
            Scale::Logarithmic => value.is_finite() && value > 0.0,
            Scale::Nines => (0.0..100.0).contains(&value),
        }
    }

    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.log10(),
            Scale::Nines => -(1.0 - value / 100.0).log10(),
        }
    }
}

impl Extent {
    /// Of an axis that shows all `values` it can. An upward one ends at ticks, and a linear one of those begins at 0.
    fn new(axis: Axis, values: impl Iterator<Item = f64>, ticks_max: usize, is_upward: bool) -> Self {
        let (mut from, mut to) = axis.range.unwrap_or((f64::INFINITY, f64::NEG_INFINITY));
        for value in values.filter(|value| axis.shows(*value) && (is_upward || axis.range.is_none())) {
            from = from.min(value);
            to = to.max(value);
        }
        let ticks: Vec<f64>;
        match axis.scale {
            Scale::Nines => {
                // Half and three quarters stand too close to each other for a narrow drawing.
                let is_shown = |tick: &f64| *tick != 75.0 || ticks_max > 5;
                ticks =
                    [0.0, 50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 99.999].into_iter().filter(is_shown).collect();
            }
            Scale::Linear => {
                if is_upward {
                    from = from.min(0.0);
                }
                if to <= from {
                    to = from + 1.0;
                }
                let step = step((to - from) / ticks_max as f64, axis.unit);
                if is_upward {
                    to = (to / step).ceil() * step;
                }
                let first = (from / step).ceil() as i64;
                ticks = (first..)
                    .map(|n| n as f64 * step)
                    .take_while(|tick| *tick <= to * (1.0 + 1e-9))
                    .collect();
            }
            Scale::Logarithmic => {
                let rungs =
                    || (-6..=12).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade)));
                from = rungs().rfind(|rung| *rung <= from).unwrap_or(from);
                to = rungs().find(|rung| *rung >= to && *rung > from).unwrap_or(to);
                let within = || rungs().filter(|rung| *rung >= from && *rung <= to);
                let is_decade = |rung: &f64| (rung.log10() - rung.log10().round()).abs() < 1e-9;
                ticks = match within().count() > ticks_max + 2 {
                    true => within().filter(is_decade).collect(),
                    false => within().collect(),
                };
            }
        }
        let ticks = ticks.into_iter().filter(|tick| *tick >= from && *tick <= to * (1.0 + 1e-9)).collect();
        Extent { axis, from, to, ticks }
    }

    fn contains(&self, value: f64) -> bool {
        self.axis.shows(value) && value >= self.from && value <= self.to
    }

    /// Where a value lies, 0 to 1.
    fn part(&self, value: f64) -> f64 {
        let place = |value| self.axis.place(value);
        (place(value) - place(self.from)) / (place(self.to) - place(self.from))
    }

    fn tick_name(&self, tick: f64) -> String {
        let short = |text: String| match text.split_once(' ') {
            Some((number, unit)) if number.contains('.') => {
                format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
            }
            _ => text,
        };
        match self.axis.unit {
            Unit::Microseconds => short(duration(tick).to_string()),
            Unit::Seconds if tick > 0.0 && self.to >= 7200.0 => format!("{} h", tick / 3600.0),
            Unit::Seconds if tick > 0.0 && self.to >= 180.0 => format!("{} min", tick / 60.0),
            Unit::Seconds => format!("{} s", round_dust(tick)),
            Unit::Percentile => format!("{tick} %"),
            Unit::PerSecond | Unit::Count if tick >= 1000.0 => grouped(tick.round() as u64),
            Unit::PerSecond | Unit::Count => round_dust(tick).to_string(),
        }
    }
}

impl Unit {
    /// A value in full, for a read-out.
    fn name(self, value: f64) -> String {
        match self {
            Unit::Seconds => format!("{value:.2} s"),
            Unit::PerSecond => format!("{}/s", digits(value)),
            Unit::Count => digits(value),
            Unit::Microseconds => duration(value).to_string(),
            Unit::Percentile => format!("{} %", round_dust(value)),
        }
    }
}

/// The least round number not below `least`; of seconds those that clocks go by.
fn step(least: f64, unit: Unit) -> f64 {
    const CLOCK: [f64; 12] =
        [10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 21_600.0];
    if unit == Unit::Seconds && least > 5.0 {
        return CLOCK.into_iter().find(|step| *step >= least).unwrap_or((least / 86_400.0).ceil() * 86_400.0);
    }
    let decade = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * decade).into_iter().find(|step| *step >= least).unwrap_or(least)
}

fn class(index: usize, series: &Series) -> String {
    match series.form {
        Form::Marks => "mark".to_owned(),
        Form::Dashes => "dashes".to_owned(),
        Form::Line | Form::Area => format!("s{}", index % COLOUR_COUNT),
    }
}

fn rounded(part: f64) -> f64 {
    (part * 1e4).round() / 1e4
}

fn round_dust(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, scale: Scale) -> Chart {
        Chart {
            title: "a < b".to_owned(),
            caption: String::new(),
            x: Axis { label: "time", scale: Scale::Linear, unit: Unit::Seconds, range: None },
            y: Axis { label: "latency", scale, unit: Unit::Microseconds, range: None },
            series: vec![Series { name: "it's </script>".to_owned(), points, form: Form::Area }],
            bands: Vec::new(),
        }
    }

    #[test]
    fn nothing_and_one_point_and_gaps_are_drawn_without_numbers_that_are_none() {
        let cases: [&[(f64, f64)]; 5] = [
            &[],
            &[(0.0, 0.0)],
            &[(1.0, 5.0)],
            &[(0.0, 5.0), (1.0, f64::NAN), (2.0, 7.0)],
            &[(0.0, f64::INFINITY), (1.0, 5.0), (2.0, 5.0)],
        ];
        for points in cases {
            for scale in [Scale::Linear, Scale::Logarithmic] {
                let html = chart(points.to_vec(), scale).figure();
                assert!(!html.contains("NaN") && !html.contains("inf"), "{points:?} {scale:?}: {html}");
                assert!(!html.contains("</script>") && html.contains("a &lt; b"), "{html}");
            }
        }
        assert!(chart(Vec::new(), Scale::Linear).figure().contains("Nothing was measured"));
        assert!(chart(vec![(1.0, 5.0)], Scale::Linear).figure().contains("h0"));
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        let axis = |scale, unit| Axis { label: "", scale, unit, range: None };
        let names = |axis: Axis, values: &[f64], is_upward| {
            let extent = Extent::new(axis, values.iter().copied(), 6, is_upward);
            extent.ticks.iter().map(|tick| extent.tick_name(*tick)).collect::<Vec<_>>().join(" | ")
        };
        let cases = [
            (Scale::Linear, Unit::PerSecond, vec![31_234.0], true, "0 | 10,000 | 20,000 | 30,000 | 40,000"),
            (Scale::Linear, Unit::Seconds, vec![0.1, 10.9], false, "2 s | 4 s | 6 s | 8 s | 10 s"),
            (
                Scale::Linear,
                Unit::Seconds,
                vec![0.0, 600.0],
                false,
                "0 s | 2 min | 4 min | 6 min | 8 min | 10 min",
            ),
            (
                Scale::Logarithmic,
                Unit::Microseconds,
                vec![150.0, 900.0],
                true,
                "100 µs | 200 µs | 500 µs | 1 ms",
            ),
            (
                Scale::Logarithmic,
                Unit::Microseconds,
                vec![90.0, 2e6],
                true,
                "100 µs | 1 ms | 10 ms | 100 ms | 1 s",
            ),
            (Scale::Nines, Unit::Percentile, vec![50.0, 99.95], false, "50 % | 75 % | 90 % | 99 % | 99.9 %"),
        ];
        for (scale, unit, values, is_upward, expected) in cases {
            assert_eq!(names(axis(scale, unit), &values, is_upward), expected);
        }
    }
}
