//! A chart as data, and its drawing as SVG. `page.js` only reads out what [`Chart::html`] has written down.

use std::fmt::Write as _;

/// How figures of an axis are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq)]
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

    /// Ticks with room for `label` pixels each on an axis of so many pixels, and whether also on one of `NARROW`.
    fn ticks(&self, pixels: f64, label: impl Fn(&str) -> f64) -> Vec<(f64, bool)> {
        let wanted = if !self.ticks.is_empty() {
            self.ticks.clone()
        } else if !self.names.is_empty() {
            (0..self.names.len()).map(|at| at as f64).collect()
        } else {
            round_numbers(self.range, 5)
        };
        let inside: Vec<f64> = wanted.into_iter().filter(|&tick| (0.0..=1.0).contains(&self.place(tick))).collect();
        let longest = inside.iter().map(|&tick| label(&self.name(tick))).fold(1.0, f64::max);
        let mut taken: Vec<(f64, bool)> = inside.first().map(|&tick| (tick, true)).into_iter().collect();
        for (pixels, narrow) in [(NARROW.min(pixels), true), (pixels, false)] {
            for &tick in inside.iter().skip(1).rev() {
                // The first and the last say most.
                let apart = |other: f64| (self.place(other) - self.place(tick)).abs() * pixels;
                if taken.iter().all(|(other, _)| apart(*other) >= longest) {
                    taken.push((tick, narrow));
                }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq)]
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
    pub band: Vec<Option<[f64; 2]>>,
    /// Drawn from the start; the reader may choose others.
    pub shown: bool,
}

/// Places that belong to no series: single measurements, a fitted curve, levels that failed.
#[derive(Clone, Debug, Default, PartialEq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// From here.
    pub from: f64,
    /// To here.
    pub to: f64,
}

/// A chart.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Charts with the same name are read at the same place.
    pub sync: Option<String>,
}

/// The plot's own units, which the page stretches to its width. Whole numbers keep the paths short.
const WIDTH: f64 = 4000.0;
const HEIGHT: f64 = 1000.0;
/// Pixels between the axes on a phone, where labels marked `spare` are hidden.
const NARROW: f64 = 230.0;

/// About how wide a label is, pixels.
fn width_of(label: &str) -> f64 {
    7.0 * label.chars().count() as f64 + 8.0
}

impl Chart {
    /// Pixels between the axes on a larger screen.
    fn pixels(&self) -> f64 {
        if self.wide { 560.0 } else { 310.0 }
    }

    /// Of a value on `x` and one on `y`, from the top left.
    fn point(&self, x: f64, y: f64) -> [i64; 2] {
        let (x, y) = (self.x.place(x), self.y.place(y));
        let (across, up) = if self.flipped { (y, x) } else { (x, y) };
        [(across * WIDTH).round() as i64, ((1.0 - up) * HEIGHT).round() as i64]
    }

    /// A command for each point.
    fn path(&self, points: impl IntoIterator<Item = [f64; 2]>) -> String {
        let (mut path, mut last) = (String::new(), None);
        for [x, y] in points {
            let [x, y] = self.point(x, y);
            let _ = match last.replace([x, y]).map(|[a, b]: [i64; 2]| [x - a, y - b]) {
                None => write!(path, "M{x} {y}"),
                Some([dx, 0]) => write!(path, "h{dx}"),
                Some([0, dy]) => write!(path, "v{dy}"),
                Some([dx, dy]) => write!(path, "l{dx}{}{dy}", if dy < 0 { "" } else { " " }),
            };
        }
        path
    }

    /// A dot each.
    fn dots(&self, points: &[[f64; 2]]) -> String {
        points.iter().fold(String::new(), |dots, &[x, y]| {
            let [x, y] = self.point(x, y);
            dots + &format!("M{x} {y}h0")
        })
    }

    /// The chart with a key of its series. Stretches to any width; lines and text keep their size.
    pub fn html(&self) -> String {
        let mut svg =
            format!("<svg class=\"frame\" aria-hidden=\"true\"{}>", if self.flipped { " data-flipped" } else { "" });
        self.draw_axes(&mut svg);
        let _ = write!(svg, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\">");
        for span in &self.spans {
            let ([from, _], [to, _]) = (self.point(span.from, 0.0), self.point(span.to, 0.0));
            let _ = write!(svg, "<path class=\"span\" d=\"M{from} 0H{to}V{HEIGHT}H{from}Z\"/>");
        }
        self.draw_bands(&mut svg);
        self.draw_extras(&mut svg);
        self.draw_series(&mut svg);
        svg.push_str("</svg>");
        self.draw_crosses(&mut svg);
        self.draw_marks(&mut svg);
        format!(
            "<div class=\"plot\" role=\"img\" aria-label=\"{}. The tables below hold the values.\">{svg}</svg></div>{}",
            escape(&self.label),
            self.key()
        )
    }

    fn draw_axes(&self, svg: &mut String) {
        let (lying, upright) = if self.flipped { (&self.y, &self.x) } else { (&self.x, &self.y) };
        for (tick, _) in upright.ticks(200.0, |_| 20.0) {
            let (y, name) = (percent(1.0 - upright.place(tick)), escape(&upright.name(tick)));
            let _ = write!(
                svg,
                "<line class=\"grid\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/><text class=\"end\" x=\"-8\" y=\"{y}\" dy=\"4\">{name}</text>"
            );
        }
        for (tick, narrow) in lying.ticks(self.pixels(), width_of) {
            let (x, name) = (percent(lying.place(tick)), escape(&lying.name(tick)));
            let spare = if narrow { "" } else { " class=\"spare\"" };
            let _ = write!(
                svg,
                "<g{spare}><svg class=\"tick\" x=\"{x}\" y=\"100%\"><path d=\"M0 0v5\"/></svg>\
                 <text class=\"mid\" x=\"{x}\" y=\"100%\" dy=\"18\">{name}</text></g>"
            );
        }
        let _ = write!(
            svg,
            "<line class=\"axis\" x2=\"100%\" y1=\"100%\" y2=\"100%\"/>\
             <text class=\"mid\" x=\"50%\" y=\"100%\" dy=\"38\">{}</text><text x=\"-58\" y=\"-10\">{}</text>",
            escape(&lying.label),
            escape(&upright.label)
        );
    }

    fn draw_bands(&self, svg: &mut String) {
        for series in self.series.iter().filter(|series| series.shown && !series.band.is_empty()) {
            let known = || self.xs.iter().zip(&series.band).filter_map(|(&x, band)| Some((x, (*band)?)));
            let lower = known().map(|(x, [low, _])| [x, low]);
            let upper = known().rev().map(|(x, [_, high])| [x, high]);
            let path = self.path(lower.chain(upper));
            let _ = write!(svg, "<path class=\"band\" style=\"fill:var(--tone-{})\" d=\"{path}Z\"/>", series.tone);
        }
    }

    fn draw_extras(&self, svg: &mut String) {
        for Extra { tone, shape, points, .. } in &self.extras {
            let (class, path) = match shape {
                Shape::Curve => ("curve", self.path(points.iter().copied())),
                Shape::Dot => ("dot", self.dots(points)),
                Shape::Cross => continue,
            };
            let _ = write!(svg, "<path class=\"{class}\" style=\"stroke:var(--tone-{tone})\" d=\"{path}\"/>");
        }
    }

    /// Outside of the stretched part, which would make them flat.
    fn draw_crosses(&self, svg: &mut String) {
        for Extra { tone, points, .. } in self.extras.iter().filter(|extra| extra.shape == Shape::Cross) {
            for &[x, y] in points {
                let (x, y) = (percent(self.x.place(x)), percent(1.0 - self.y.place(y)));
                let _ = write!(
                    svg,
                    "<svg class=\"cross\" x=\"{x}\" y=\"{y}\"><path style=\"stroke:var(--tone-{tone})\" d=\"M-5-5l10 10m0-10l-10 10\"/></svg>"
                );
            }
        }
    }

    fn draw_series(&self, svg: &mut String) {
        let mut below = vec![0.0; self.xs.len()];
        for (at, series) in self.series.iter().enumerate().filter(|(_, series)| series.style != Style::Told) {
            let known: Vec<[f64; 2]> = self.known(series).collect();
            let hidden = if series.shown { "" } else { " class=\"hidden\"" };
            let _ = write!(
                svg,
                "<g{hidden} data-series=\"{at}\" style=\"color:var(--tone-{});opacity:{:.2}\">",
                series.tone, series.alpha
            );
            match series.style {
                Style::Told => {}
                Style::Stacked => {
                    for (at, y) in series.ys.iter().enumerate().filter_map(|(at, y)| Some((at, (*y)?))) {
                        let [left, top] = self.point(self.xs[at] - 0.32, below[at] + y);
                        let [right, bottom] = self.point(self.xs[at] + 0.32, below[at]);
                        below[at] += y;
                        let _ = write!(svg, "<path class=\"bar\" d=\"M{left} {top}H{right}V{bottom}H{left}Z\"/>");
                    }
                }
                Style::Steps => {
                    let ends = known.iter().skip(1).chain(known.last()).map(|p| p[0]);
                    let steps = known.iter().zip(ends).flat_map(|(&[x, y], end)| [[x, y], [end, y]]);
                    let _ = write!(svg, "<path class=\"line thin\" d=\"{}\"/>", self.path(steps));
                }
                Style::Line | Style::Points | Style::Dashed => {
                    let class = if series.style == Style::Dashed { "line dashed" } else { "line" };
                    let _ = write!(svg, "<path class=\"{class}\" d=\"{}\"/>", self.path(known.iter().copied()));
                    if series.style != Style::Line {
                        let _ = write!(svg, "<path class=\"point\" d=\"{}\"/>", self.dots(&known));
                    }
                }
            }
            svg.push_str("</g>");
        }
    }

    fn draw_marks(&self, svg: &mut String) {
        // Up to where names of levels stand, on a phone and on a larger screen.
        let mut taken = [0.0; 2];
        for Mark { upright, at, label, tone } in &self.marks {
            let share = if *upright { self.x.place(*at) } else { 1.0 - self.y.place(*at) };
            let (at, wide) = (percent(share), width_of(label));
            let _ = match upright {
                true => write!(
                    svg,
                    "<line class=\"mark\" style=\"stroke:var(--tone-{tone})\" x1=\"{at}\" x2=\"{at}\" y2=\"100%\"/>"
                ),
                false => write!(
                    svg,
                    "<line class=\"mark\" style=\"stroke:var(--tone-{tone})\" x2=\"100%\" y1=\"{at}\" y2=\"{at}\"/>"
                ),
            };
            let swap = *upright && share * NARROW + wide > NARROW;
            let starts = [NARROW, self.pixels()].map(|pixels| share * pixels - if swap { wide } else { 0.0 });
            let fits = [0, 1].map(|size| *tone != "faint" || starts[size] >= taken[size]);
            if label.is_empty() || !fits[1] {
                continue;
            }
            for size in [0, 1].into_iter().filter(|&size| fits[size]) {
                taken[size] = starts[size] + wide;
            }
            let (class, dx) = if swap { (" end", -6) } else { ("", 6) };
            let spare = if fits[0] { "" } else { " spare" };
            let place = match (upright, *tone) {
                (false, _) => format!("dx=\"6\" y=\"{at}\" dy=\"-5\""),
                (true, "ink") => format!("x=\"{at}\" dx=\"{dx}\" y=\"25\""),
                (true, _) => format!("x=\"{at}\" dx=\"{dx}\" y=\"10\""),
            };
            let _ = write!(
                svg,
                "<text class=\"said{class}{spare}\" style=\"fill:var(--tone-{tone})\" {place}>{}</text>",
                escape(label)
            );
        }
    }

    /// Where the values of `xs` stand, in thousandths of the plot, and how they are written.
    pub fn stops(&self) -> [String; 2] {
        let at = self.xs.iter().map(|&x| format!("{:.0}", self.x.place(x) * 1000.0));
        let written = self.xs.iter().map(|&x| self.x.name(x));
        [at.collect::<Vec<_>>().join(" "), escape(&written.collect::<Vec<_>>().join("|"))]
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

    /// A list of what is drawn, which the script fills with the values at the pointer. Series may be chosen from many.
    fn key(&self) -> String {
        let choice = self.flipped;
        let mut key = format!(
            "<ul class=\"key\"><li class=\"x\">{} <b></b></li>",
            escape(self.x.label.split(':').next().unwrap_or_default())
        );
        let mut chooser = String::new();
        let mut item = |attributes: &str, tone: &str, alpha: f64, dashed: bool, name: &str| {
            let line = if dashed { "dashed" } else { "solid" };
            let value = if attributes.is_empty() { "" } else { " <b></b>" };
            let _ = write!(
                key,
                "<li{attributes}><i style=\"border-top-style:{line};border-color:var(--tone-{tone});opacity:{alpha:.2}\"></i>{}{value}</li>",
                escape(name)
            );
        };
        for (at, series) in self.series.iter().enumerate() {
            let values = series.ys.iter().map(|y| y.map_or_else(|| "–".to_owned(), |y| self.y.name(y)));
            let values = escape(&values.collect::<Vec<_>>().join("|"));
            let hidden = if series.shown { "" } else { " class=\"hidden\"" };
            let dashed = matches!(series.style, Style::Dashed | Style::Told);
            let attributes = format!(
                "{hidden} data-series=\"{at}\" data-name=\"{}\" data-values=\"{values}\"",
                escape(&series.name)
            );
            item(&attributes, series.tone, series.alpha, dashed, &series.name);
            if choice {
                let checked = if series.shown { " checked" } else { "" };
                let name = escape(series.name.trim_start_matches("level "));
                let _ = write!(
                    chooser,
                    "<label><input type=\"checkbox\" value=\"{at}\"{checked}><span>{name}</span></label>"
                );
            }
        }
        // A fitted curve stands in the key by its values.
        for extra in self.extras.iter().filter(|extra| !extra.points.is_empty() && extra.shape != Shape::Curve) {
            item("", extra.tone, 1.0, extra.shape == Shape::Dot, &extra.name);
        }
        let chooser = match choice {
            true => format!("<fieldset class=\"chooser\"><legend>Levels shown</legend>{chooser}</fieldset>"),
            false => chooser,
        };
        format!("{key}</ul>{chooser}")
    }
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
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
        let wide = [(1.0, true), (50.0, true), (10.0, true), (5.0, false)];
        assert_eq!(axis.ticks(560.0, |_| 30.0), wide, "5 has no room on a phone, 2 nowhere");
        assert!(Axis::of_levels(&[1.0, 64.0]).log);
    }

    fn chart() -> Chart {
        Chart {
            label: "a <u> & \"c\"".to_owned(),
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
        let html = chart.html();
        assert!(!html.contains("NaN") && html.contains("<g class=\"hidden\" data-series=\"1\""), "{html}");
        assert!(html.contains("data-series=\"0\" data-name=\"&lt;s&gt;\" data-values=\"3|–\""), "{html}");
    }

    #[test]
    fn a_path_has_a_command_for_each_point_and_does_not_drift() {
        let chart = Chart {
            x: Axis { range: [0.0, 300.0], ..Axis::default() },
            y: Axis { range: [0.0, 3.0], ..Axis::default() },
            ..Chart::default()
        };
        let thirds = (0..=300).map(|x| [f64::from(x), f64::from(x) / 100.0]);
        let path = chart.path(thirds);
        let steps = path.split('l').skip(1).map(|step| step.split_once('-').expect("up"));
        let sum = steps.fold([0, 0], |[x, y], (dx, dy)| {
            [x + dx.parse::<i64>().expect("whole"), y + dy.parse::<i64>().expect("whole")]
        });
        assert_eq!(sum, [4000, 1000]);
        assert_eq!(path.matches(char::is_alphabetic).count(), 301);
    }

    #[test]
    fn text_stays_text() {
        let svg = chart().html();
        assert!(svg.contains("a &lt;u&gt; &amp; &quot;c&quot;") && svg.contains("&lt;s&gt;"), "{svg}");
        assert!(!svg.contains("<u>") && !svg.contains("<s>"));
    }
}
