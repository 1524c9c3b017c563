//! A chart as data. [`Chart::svg`] draws it here, and `page.js` draws the same data where there is JavaScript.

use std::fmt::Write as _;

use serde::Serialize;

/// How figures of an axis are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A plain number.
    #[default]
    Number,
    /// Seconds, written as ms below one.
    Seconds,
    /// A fraction, written as per cent.
    Percent,
}

impl Unit {
    /// A figure with its unit, to about three digits.
    pub fn format(self, value: f64) -> String {
        match self {
            Unit::Number => number(value),
            Unit::Percent => format!("{} %", number(value * 100.0)),
            Unit::Seconds if value == 0.0 => "0".to_owned(),
            Unit::Seconds if value < 1.0 => format!("{} ms", number(value * 1000.0)),
            Unit::Seconds => format!("{} s", number(value)),
        }
    }
}

fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// One of a chart's two axes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Axis {
    /// What it shows, with its unit where `unit` does not write it.
    pub label: String,
    /// How its figures are written.
    pub unit: Unit,
    /// Logarithmic.
    pub log: bool,
    /// From where to where.
    pub range: [f64; 2],
    /// Where ticks should be; empty: at round numbers.
    pub ticks: Vec<f64>,
    /// Names of 0, 1, 2, …, for an axis that shows no quantity.
    pub names: Vec<String>,
}

impl Axis {
    /// From 0 to a little above the largest of `values`.
    pub fn from_zero(label: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let top = values.into_iter().fold(0.0, f64::max);
        let top = if top > 0.0 { top * 1.12 } else { 1.0 };
        Axis { label: label.to_owned(), unit, range: [0.0, top], ..Axis::default() }
    }

    /// Of concurrency levels (ascending): logarithmic where they span much.
    pub fn of_levels(levels: &[f64]) -> Self {
        let (low, high) = (levels.first().copied().unwrap_or(1.0), levels.last().copied().unwrap_or(1.0));
        let log = high >= 64.0 * low;
        let range = if log { [low / 1.2, high * 1.2] } else { [low.min(1.0) - 1.0, high + 0.04 * high + 0.5] };
        let label = "level: requests in flight".to_owned();
        Axis { label, log, range, ticks: levels.to_vec(), ..Axis::default() }
    }

    /// Share of the axis at which `value` lies.
    fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.max(1e-9).ln() } else { v };
        let [low, high] = self.range.map(scale);
        (scale(value) - low) / (high - low)
    }

    fn name(&self, tick: f64) -> String {
        self.names.get(tick as usize).cloned().unwrap_or_else(|| self.unit.format(tick))
    }

    /// Ticks that are at least `apart` (a share of the axis) from each other.
    fn ticks(&self, apart: f64) -> Vec<f64> {
        let wanted = if !self.ticks.is_empty() {
            self.ticks.clone()
        } else if !self.names.is_empty() {
            (0..self.names.len()).map(|at| at as f64).collect()
        } else {
            round_numbers(self.range, 5)
        };
        let inside: Vec<f64> = wanted.into_iter().filter(|&tick| (0.0..=1.0).contains(&self.place(tick))).collect();
        let mut taken: Vec<f64> = inside.first().copied().into_iter().collect();
        for &tick in inside.iter().skip(1).rev() {
            // The first and the last say most.
            if taken.iter().all(|other| (self.place(*other) - self.place(tick)).abs() >= apart) {
                taken.push(tick);
            }
        }
        taken
    }
}

/// About `n` multiples of 1, 2 or 5 times a power of ten.
fn round_numbers([low, high]: [f64; 2], n: usize) -> Vec<f64> {
    let rough = (high - low) / n as f64;
    if rough.is_nan() || rough <= 0.0 || !rough.is_finite() {
        return Vec::new();
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|&tick| tick <= high + 1e-9 * step).collect()
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// A line with a point at each value.
    #[default]
    Points,
    /// A dashed line with a point at each value.
    Dashed,
    /// A line without points.
    Line,
    /// Steps, each from its place to the next.
    Steps,
    /// Bars on top of the series before.
    Stacked,
    /// Not drawn: its values are only told.
    Told,
}

/// Values over the chart's `xs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    /// Its name in the key.
    pub name: String,
    /// The colour, one of the names in page.css (`--tone-…`).
    pub tone: &'static str,
    /// Opacity, to tell many series of one tone from each other.
    pub alpha: f64,
    /// How it is drawn.
    pub style: Style,
    /// A value for each of `xs`, or none.
    pub ys: Vec<Option<f64>>,
    /// Ends of an interval around each value, drawn as a band.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub band: Vec<Option<[f64; 2]>>,
    /// Drawn from the start; the reader may choose others.
    pub shown: bool,
}

/// Places that belong to no series: single measurements, a fitted curve, levels that failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Extra {
    /// Its name in the key.
    pub name: String,
    /// The colour.
    pub tone: &'static str,
    /// What is drawn there.
    pub shape: Shape,
    /// x and y.
    pub points: Vec<[f64; 2]>,
}

/// See [`Extra`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// A small dot each.
    #[default]
    Dot,
    /// A cross each.
    Cross,
    /// A dashed line through all.
    Curve,
}

/// A line across the chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// Upright, at a place of the x axis; else level, at a place of the y axis.
    pub upright: bool,
    /// Where.
    pub at: f64,
    /// What stands beside it.
    pub label: String,
    /// The colour.
    pub tone: &'static str,
}

/// A shaded part of the x axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Span {
    /// From here.
    pub from: f64,
    /// To here.
    pub to: f64,
}

/// A chart.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Chart {
    /// Unique on the page.
    pub id: String,
    /// What it is, for those who do not see it.
    pub label: String,
    /// As wide as the page, or half of it.
    pub wide: bool,
    /// The axis of `xs`.
    pub x: Axis,
    /// The axis of the series.
    pub y: Axis,
    /// The x axis stands upright and the y axis lies.
    pub flipped: bool,
    /// Ascending.
    pub xs: Vec<f64>,
    /// The series.
    pub series: Vec<Series>,
    /// What belongs to none of them.
    pub extras: Vec<Extra>,
    /// Lines across.
    pub marks: Vec<Mark>,
    /// Shaded parts.
    pub spans: Vec<Span>,
    /// Charts with the same name show their values together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync: Option<String>,
}

/// Where a chart is drawn: size and margins, in the SVG's units.
struct Frame<'a> {
    chart: &'a Chart,
    width: f64,
    height: f64,
}

const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 46.0;

impl Frame<'_> {
    fn across(&self, share: f64) -> f64 {
        LEFT + share * (self.width - LEFT - RIGHT)
    }

    fn up(&self, share: f64) -> f64 {
        self.height - BOTTOM - share * (self.height - TOP - BOTTOM)
    }

    /// Of a value on `x` and one on `y`.
    fn point(&self, x: f64, y: f64) -> (f64, f64) {
        let (x, y) = (self.chart.x.place(x), self.chart.y.place(y));
        if self.chart.flipped { (self.across(y), self.up(x)) } else { (self.across(x), self.up(y)) }
    }

    fn path(&self, points: impl Iterator<Item = [f64; 2]>) -> String {
        let mut path = String::new();
        for [x, y] in points {
            let (x, y) = self.point(x, y);
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
        }
        path
    }
}

impl Chart {
    /// The chart as an SVG picture that stands alone on the page, with a key of its series.
    pub fn svg(&self) -> String {
        let (width, height) = if self.wide { (760.0, 320.0) } else { (372.0, 250.0) };
        let frame = Frame { chart: self, width, height };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\"><title>{}</title>",
            escape(&self.label),
            escape(&self.label)
        );
        for span in &self.spans {
            let (from, _) = frame.point(span.from, self.y.range[0]);
            let (to, _) = frame.point(span.to, self.y.range[0]);
            let _ = write!(
                svg,
                "<rect class=\"span\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                (to - from).max(0.0),
                height - TOP - BOTTOM
            );
        }
        self.draw_axes(&frame, &mut svg);
        self.draw_bands(&frame, &mut svg);
        self.draw_extras(&frame, &mut svg);
        self.draw_series(&frame, &mut svg);
        self.draw_marks(&frame, &mut svg);
        svg.push_str("</svg>");
        svg + &self.key()
    }

    fn draw_axes(&self, frame: &Frame<'_>, svg: &mut String) {
        let (lying, upright) = if self.flipped { (&self.y, &self.x) } else { (&self.x, &self.y) };
        let (bottom, left, right) = (frame.up(0.0), frame.across(0.0), frame.across(1.0));
        for tick in upright.ticks(0.08) {
            let y = frame.up(upright.place(tick));
            let _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{left:.1} {y:.1}H{right:.1}\"/><text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left - 8.0,
                y + 4.0,
                escape(&upright.name(tick))
            );
        }
        let apart = if frame.chart.wide { 0.045 } else { 0.1 };
        let apart = if lying.unit == Unit::Seconds { 2.0 * apart } else { apart };
        for tick in lying.ticks(apart) {
            let x = frame.across(lying.place(tick));
            let _ = write!(
                svg,
                "<path class=\"tick\" d=\"M{x:.1} {bottom:.1}v5\"/><text class=\"mid\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                bottom + 18.0,
                escape(&lying.name(tick))
            );
        }
        let _ = write!(
            svg,
            "<path class=\"axis\" d=\"M{left:.1} {bottom:.1}H{right:.1}\"/><text class=\"mid label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <text class=\"label\" x=\"4\" y=\"11\">{}</text>",
            frame.across(0.5),
            frame.height - 8.0,
            escape(&lying.label),
            escape(&upright.label)
        );
    }

    fn draw_bands(&self, frame: &Frame<'_>, svg: &mut String) {
        for series in self.series.iter().filter(|series| series.shown && !series.band.is_empty()) {
            let known = || self.xs.iter().zip(&series.band).filter_map(|(&x, band)| Some((x, (*band)?)));
            let lower = known().map(|(x, [low, _])| [x, low]);
            let upper = known().rev().map(|(x, [_, high])| [x, high]);
            let path = frame.path(lower.chain(upper));
            let _ = write!(svg, "<path class=\"band\" style=\"fill:var(--tone-{})\" d=\"{path}Z\"/>", series.tone);
        }
    }

    fn draw_extras(&self, frame: &Frame<'_>, svg: &mut String) {
        for Extra { tone, shape, points, .. } in &self.extras {
            let path = match shape {
                Shape::Curve => frame.path(points.iter().copied()),
                Shape::Dot | Shape::Cross => points.iter().fold(String::new(), |path, &[x, y]| {
                    let (x, y) = frame.point(x, y);
                    let mark = if *shape == Shape::Dot { "h0" } else { "m-5 -5l10 10m0 -10l-10 10" };
                    path + &format!("M{x:.1} {y:.1}{mark}")
                }),
            };
            let class = match shape {
                Shape::Dot => "dot",
                Shape::Cross => "cross",
                Shape::Curve => "curve",
            };
            let _ = write!(svg, "<path class=\"{class}\" style=\"stroke:var(--tone-{tone})\" d=\"{path}\"/>");
        }
    }

    fn draw_series(&self, frame: &Frame<'_>, svg: &mut String) {
        let mut below = vec![0.0; self.xs.len()];
        for series in self.series.iter().filter(|series| series.shown) {
            let known: Vec<[f64; 2]> = self.known(series).collect();
            let style = format!("stroke:var(--tone-{});opacity:{}", series.tone, series.alpha);
            match series.style {
                Style::Told => {}
                Style::Stacked => {
                    for (at, y) in series.ys.iter().enumerate().filter_map(|(at, y)| Some((at, (*y)?))) {
                        let (left, top) = frame.point(self.xs[at] - 0.32, below[at] + y);
                        let (right, bottom) = frame.point(self.xs[at] + 0.32, below[at]);
                        below[at] += y;
                        let _ = write!(
                            svg,
                            "<rect style=\"fill:var(--tone-{})\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                            series.tone,
                            right - left,
                            bottom - top
                        );
                    }
                }
                Style::Steps => {
                    let ends = known.iter().skip(1).map(|p| p[0]).chain(known.last().map(|p| p[0]));
                    let steps = known.iter().zip(ends).flat_map(|(&[x, y], end)| [[x, y], [end, y]]);
                    let _ = write!(svg, "<path class=\"line thin\" style=\"{style}\" d=\"{}\"/>", frame.path(steps));
                }
                Style::Line | Style::Points | Style::Dashed => {
                    let class = if series.style == Style::Dashed { "line dashed" } else { "line" };
                    let path = frame.path(known.iter().copied());
                    let _ = write!(svg, "<path class=\"{class}\" style=\"{style}\" d=\"{path}\"/>");
                    if series.style != Style::Line {
                        let dots = known.iter().fold(String::new(), |dots, &[x, y]| {
                            let (x, y) = frame.point(x, y);
                            dots + &format!("M{x:.1} {y:.1}h0")
                        });
                        let _ = write!(svg, "<path class=\"point\" style=\"{style}\" d=\"{dots}\"/>");
                    }
                }
            }
        }
    }

    fn draw_marks(&self, frame: &Frame<'_>, svg: &mut String) {
        for mark in &self.marks {
            let (x, y, line) = if mark.upright {
                let (x, _) = frame.point(mark.at, self.y.range[0]);
                (x + 5.0, TOP + 10.0, format!("M{x:.1} {TOP}V{:.1}", frame.up(0.0)))
            } else {
                let (_, y) = frame.point(self.x.range[0], mark.at);
                (LEFT + 6.0, y - 5.0, format!("M{LEFT} {y:.1}H{:.1}", frame.across(1.0)))
            };
            let _ = write!(
                svg,
                "<path class=\"mark\" style=\"stroke:var(--tone-{tone})\" d=\"{line}\"/>\
                 <text class=\"said\" style=\"fill:var(--tone-{tone})\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
                escape(&mark.label),
                tone = mark.tone
            );
        }
    }

    fn known<'a>(&'a self, series: &'a Series) -> impl Iterator<Item = [f64; 2]> + 'a {
        self.xs.iter().zip(&series.ys).filter_map(|(&x, y)| Some([x, (*y)?]))
    }

    /// Points that the series and extras draw from the start, a figure that tests compare with what was drawn.
    pub fn points(&self) -> usize {
        let drawn = self.series.iter().filter(|series| series.shown && series.style != Style::Told);
        let extras: usize = self.extras.iter().map(|extra| extra.points.len()).sum();
        drawn.map(|series| series.ys.iter().flatten().count()).sum::<usize>() + extras
    }

    fn key(&self) -> String {
        let series = self.series.iter().filter(|series| series.shown && series.style != Style::Told);
        let series = series.map(|series| (series.tone, series.alpha, series.style == Style::Dashed, &series.name));
        let extras = self.extras.iter().filter(|extra| !extra.points.is_empty());
        let extras = extras.map(|extra| (extra.tone, 1.0, extra.shape != Shape::Cross, &extra.name));
        let items = series.chain(extras).fold(String::new(), |items, (tone, alpha, dashed, name)| {
            let line = if dashed { "dashed" } else { "solid" };
            items
                + &format!(
                    "<li><i style=\"border-top-style:{line};border-color:var(--tone-{tone});opacity:{alpha}\"></i>{}</li>",
                    escape(name)
                )
        });
        format!("<ul class=\"key\">{items}</ul>")
    }
}

/// Text for HTML and SVG, in elements and in quoted attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_about_three_digits_and_a_unit() {
        for (unit, value, text) in [
            (Unit::Seconds, 0.0, "0"),
            (Unit::Seconds, 0.004_321, "4.32 ms"),
            (Unit::Seconds, 0.397, "397 ms"),
            (Unit::Seconds, 1.5, "1.5 s"),
            (Unit::Percent, 0.05, "5 %"),
            (Unit::Percent, 0.109_34, "10.9 %"),
            (Unit::Number, 65.07, "65.1"),
            (Unit::Number, 100.0, "100"),
            (Unit::Number, 1234.5, "1234"),
        ] {
            assert_eq!(unit.format(value), text);
        }
    }

    #[test]
    fn round_numbers_are_round_and_inside() {
        assert_eq!(round_numbers([0.0, 70.0], 5), [0.0, 20.0, 40.0, 60.0]);
        assert_eq!(round_numbers([0.0, 1.0], 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(round_numbers([3.0, 3.0], 5), Vec::<f64>::new());
        assert_eq!(round_numbers([f64::NAN, 3.0], 5), Vec::<f64>::new());
    }

    #[test]
    fn ticks_keep_their_distance_and_the_first_and_last_level() {
        let axis = Axis::of_levels(&[1.0, 2.0, 5.0, 10.0, 50.0]);
        assert!(!axis.log);
        assert_eq!(axis.ticks(0.05), [1.0, 50.0, 10.0, 5.0]);
        assert!(Axis::of_levels(&[1.0, 64.0]).log);
    }

    fn chart() -> Chart {
        Chart {
            label: "a <b> & \"c\"".to_owned(),
            wide: true,
            x: Axis::of_levels(&[1.0, 2.0]),
            y: Axis::from_zero("requests/s", Unit::Number, [4.0]),
            xs: vec![1.0, 2.0],
            series: vec![
                Series {
                    name: "<s>".to_owned(),
                    tone: "accent",
                    alpha: 1.0,
                    ys: vec![Some(3.0), None],
                    shown: true,
                    ..Series::default()
                },
                Series { name: "hidden".to_owned(), ys: vec![Some(1.0); 2], ..Series::default() },
            ],
            extras: vec![Extra { points: vec![[1.0, 2.0], [1.0, 4.0]], tone: "ink", ..Extra::default() }],
            ..Chart::default()
        }
    }

    #[test]
    fn only_what_is_known_and_shown_is_drawn_and_counted() {
        let chart = chart();
        assert_eq!(chart.points(), 1 + 2);
        let svg = chart.svg();
        assert!(!svg.contains("hidden") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn text_stays_text() {
        let svg = chart().svg();
        assert!(svg.contains("a &lt;b&gt; &amp; &quot;c&quot;") && svg.contains("&lt;s&gt;"), "{svg}");
        assert!(!svg.contains("<b>") && !svg.contains("<s>"));
    }
}
