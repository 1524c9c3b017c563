//! A chart as data, and its drawing as SVG. `page.js` only reads out what is written beside it.

use std::fmt::Write as _;

use minijinja::HtmlEscape;
use serde::{Serialize, Serializer};
use serde_json::json;

use super::words;

/// How figures of an axis are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    #[default]
    Number,
    /// Written as ms below one.
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

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    pub label: String,
    pub unit: Unit,
    pub log: bool,
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
        Axis { label: "level: requests in flight".to_owned(), log, range, ticks: levels.to_vec(), ..Axis::default() }
    }

    /// Share of the axis at which `value` lies.
    fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.max(1e-9).ln() } else { v };
        let [low, high] = self.range.map(scale);
        (scale(value) - low) / (high - low)
    }

    fn write(&self, value: f64) -> String {
        self.names.get(value as usize).cloned().unwrap_or_else(|| self.unit.format(value))
    }

    /// Place and name of each tick that is wanted.
    fn ticks(&self) -> Vec<(f64, String)> {
        let wanted = match (self.ticks.as_slice(), self.names.len()) {
            ([], 0) => round_numbers(self.range, 5),
            ([], names) => (0..names).map(|at| at as f64).collect(),
            (ticks, _) => ticks.to_vec(),
        };
        let named = wanted.into_iter().map(|tick| (self.place(tick), self.write(tick)));
        named.filter(|(place, _)| (0.0..=1.0).contains(place)).collect()
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// A line with a point at each value.
    #[default]
    Points,
    /// The same, dashed.
    Dashed,
    Line,
    /// A fitted line: dashed, without points.
    Curve,
    /// Each from its place to the next.
    Steps,
    /// One from the lower to the upper end of each entry of the band.
    Bars,
    Dots,
    Crosses,
}

/// What is drawn in one colour under one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub name: String,
    /// At the end of its line, if not empty.
    pub label: String,
    /// One of the names in page.css (`--tone-…`).
    pub tone: &'static str,
    /// Share of its strength that is taken away, to tell many series of one tone from each other.
    pub faint: f64,
    pub style: Style,
    pub points: Vec<[f64; 2]>,
    /// x, lower and upper end.
    pub band: Vec<[f64; 3]>,
    /// What is read out at each of the chart's stops; empty: nothing.
    pub values: Vec<Option<f64>>,
    /// Until the reader chooses it.
    pub hidden: bool,
}

impl Series {
    pub fn over(stops: &[f64], name: &str, tone: &'static str, style: Style, values: Vec<Option<f64>>) -> Self {
        let points = stops.iter().zip(&values).filter_map(|(&x, y)| Some([x, (*y)?])).collect();
        Series { name: name.to_owned(), tone, style, points, values, ..Series::default() }
    }
}

/// A line across the chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// At a place of the x axis; else level, at a place of the y axis.
    pub upright: bool,
    pub at: f64,
    pub label: String,
    pub tone: &'static str,
}

/// A part of the x axis: shaded if it has a tone, and with its name at the top.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    pub from: f64,
    pub to: f64,
    pub name: String,
    pub tone: Option<&'static str>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    pub id: String,
    /// What it is, for those who do not see it.
    pub label: String,
    /// As wide as the page, or half of it.
    pub wide: bool,
    pub x: Axis,
    pub y: Axis,
    /// Places of the x axis at which values are read out, ascending.
    pub stops: Vec<f64>,
    pub series: Vec<Series>,
    pub marks: Vec<Mark>,
    pub zones: Vec<Zone>,
    /// Charts with the same name are read at the same place.
    pub sync: String,
    /// The reader chooses the series shown.
    pub choice: bool,
    /// Names of points.
    pub names: Vec<([f64; 2], String)>,
    /// A ring around a point.
    pub ring: Option<[f64; 2]>,
}

/// The plot's own units, which the page stretches to its width. Whole numbers keep the paths short.
const WIDTH: f64 = 4000.0;
const HEIGHT: f64 = 1000.0;
/// Pixels between the axes on a phone, where labels of the class `spare` are hidden.
const NARROW: f64 = 200.0;
const TEXT: f64 = 13.0;
/// Pixels of the lowest plot, which is that on paper.
const LOWEST: f64 = 110.0;

fn width_of(label: &str) -> f64 {
    7.0 * label.chars().count() as f64 + 8.0
}

/// Which labels, each with its place and the pixels it takes, have room: on a phone too (""), only on an axis of so
/// many pixels (`spare`), or nowhere. The first and the last say most.
fn fit(labels: &[(f64, f64)], pixels: f64) -> Vec<Option<&'static str>> {
    let mut fits = vec![None; labels.len()];
    for (pixels, class) in [(NARROW.min(pixels), ""), (pixels, "spare")] {
        for at in (0..labels.len().min(1)).chain((1..labels.len()).rev()) {
            let apart = |other: &(f64, f64)| (other.0 - labels[at].0).abs() * pixels >= other.1.max(labels[at].1);
            let mut taken = labels.iter().zip(&fits).filter(|(_, fits)| fits.is_some());
            if fits[at].is_none() && taken.all(|(other, _)| apart(other)) {
                fits[at] = Some(class);
            }
        }
    }
    fits
}

impl Chart {
    /// Pixels between the axes on a larger screen.
    fn pixels(&self) -> f64 {
        if self.wide { 560.0 } else { 310.0 }
    }

    /// Shares of the plot, from the top left.
    fn place(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [self.x.place(x), 1.0 - self.y.place(y)]
    }

    fn point(&self, at: [f64; 2]) -> [i64; 2] {
        let [x, y] = self.place(at);
        [(x * WIDTH).round() as i64, (y * HEIGHT).round() as i64]
    }

    fn path(&self, points: impl IntoIterator<Item = [f64; 2]>) -> String {
        let (mut path, mut last) = (String::new(), None);
        for [x, y] in points.into_iter().map(|at| self.point(at)) {
            let _ = match last.replace([x, y]).map(|[a, b]: [i64; 2]| [x - a, y - b]) {
                None => write!(path, "M{x} {y}"),
                Some([dx, 0]) => write!(path, "h{dx}"),
                Some([0, dy]) => write!(path, "v{dy}"),
                Some([dx, dy]) => write!(path, "l{dx}{}{dy}", if dy < 0 { "" } else { " " }),
            };
        }
        path
    }

    /// Stretches to any width; lines and text keep their size.
    fn svg(&self) -> String {
        let stretched =
            |parts: String| format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\">{parts}</svg>");
        let parts = [
            stretched(self.zones.iter().map(|zone| self.shade(zone)).collect()),
            self.axes(),
            stretched(self.series.iter().enumerate().map(|(at, series)| self.draw(at, series)).collect()),
            self.crosses(),
            self.draw_marks(),
            self.zone_names(),
            self.line_ends(),
            self.named_points(),
        ];
        format!("<svg class=\"frame\" aria-hidden=\"true\">{}</svg>", parts.concat())
    }

    fn axes(&self) -> String {
        let mut svg = String::new();
        let (across, up) = (self.x.ticks(), self.y.ticks());
        let heights: Vec<_> = up.iter().map(|(place, _)| (*place, 20.0)).collect();
        for ((place, name), _) in up.iter().zip(fit(&heights, 200.0)).filter(|(_, fits)| fits.is_some()) {
            let y = 1.0 - place;
            svg += &format!("{}{}", line(false, y, "grid", ""), text("end", [0.0, y], [-8.0, 4.0], "", name));
        }
        let longest = across.iter().map(|(_, name)| width_of(name)).fold(0.0, f64::max);
        let across = across.iter().map(|(place, name)| ([*place, 1.0], longest, name.as_str()));
        svg += &self.labels("mid", [0.0, 18.0], across.collect());
        svg += &line(false, 1.0, "axis", "");
        svg += &text("mid", [0.5, 1.0], [0.0, 38.0], "", &self.x.label);
        svg + &text("", [0.0, 0.0], [-58.0, -10.0], "", &self.y.label)
    }

    fn shade(&self, zone: &Zone) -> String {
        let Some(tone) = zone.tone.filter(|_| zone.to > zone.from) else { return String::new() };
        let [from, to] = [zone.from, zone.to].map(|x| self.x.place(x).clamp(0.0, 1.0) * WIDTH);
        format!(
            "<path class=\"zone\" style=\"fill:var(--zone-{tone})\" d=\"M{from:.0} 0H{to:.0}V{HEIGHT}H{from:.0}Z\"/>"
        )
    }

    fn draw(&self, at: usize, series: &Series) -> String {
        let points = &series.points;
        if points.is_empty() && series.band.is_empty() {
            return String::new();
        }
        let path = |class: &str, d: String| format!("<path class=\"{class}\" d=\"{d}\"/>");
        let lined = |class| path(class, self.path(points.iter().copied()));
        let dotted =
            |class| path(class, points.iter().map(|&at| self.point(at)).map(|[x, y]| format!("M{x} {y}h0")).collect());
        let bar = |&[x, low, high]: &[f64; 3]| {
            let ([left, top], [right, bottom]) = (self.point([x - 0.32, high]), self.point([x + 0.32, low]));
            path("bar", format!("M{left} {top}H{right}V{bottom}H{left}Z"))
        };
        let band = || {
            let lower = series.band.iter().map(|&[x, low, _]| [x, low]);
            let upper = series.band.iter().rev().map(|&[x, _, high]| [x, high]);
            path("band", self.path(lower.chain(upper)) + "Z")
        };
        let band = if series.style == Style::Bars || series.band.is_empty() { String::new() } else { band() };
        let drawn = match series.style {
            Style::Points => lined("line") + &dotted("point"),
            Style::Dashed => lined("line dashed") + &dotted("point"),
            Style::Line => lined("line"),
            Style::Curve => lined("curve"),
            Style::Steps => {
                let ends = points.iter().skip(1).chain(points.last()).map(|point| point[0]);
                let steps = points.iter().zip(ends).flat_map(|(&[x, y], end)| [[x, y], [end, y]]);
                path("line thin", self.path(steps))
            }
            Style::Bars => series.band.iter().map(bar).collect(),
            Style::Dots => dotted("dot"),
            Style::Crosses => String::new(),
        };
        let (tone, alpha) = (series.tone, 1.0 - series.faint);
        let style = format!(" style=\"color:var(--tone-{tone});opacity:{alpha:.2}\"");
        group(at, series, &style, &(band + &drawn))
    }

    /// Outside of the stretched part, which would make them flat.
    fn crosses(&self) -> String {
        let crossed = self.series.iter().filter(|series| series.style == Style::Crosses);
        let cross = |tone, at| text("mid cross", self.place(at), [0.0, 6.0], tone, "×");
        crossed.flat_map(|series| series.points.iter().map(move |&at| cross(series.tone, at))).collect()
    }

    fn draw_marks(&self) -> String {
        // Each label has a line of its own above the axis, or a place of its own along the mark.
        let (mut up, mut along) = (-6.0, 0.0);
        let mut svg = String::new();
        for Mark { upright, at, label, tone } in &self.marks {
            let share = if *upright { self.x.place(*at) } else { 1.0 - self.y.place(*at) };
            svg += &line(*upright, share, "mark", tone);
            if label.is_empty() {
                continue;
            }
            if *upright {
                let ends_there = share * NARROW + width_of(label) > NARROW;
                let (class, dx) = if ends_there { ("halo end", -6.0) } else { ("halo", 6.0) };
                svg += &text(class, [share, 1.0], [dx, up], tone, label);
                up -= TEXT + 2.0;
            } else {
                svg += &text("halo", [along, share], [6.0, -5.0], tone, label);
                along += 0.5;
            }
        }
        svg
    }

    fn zone_names(&self) -> String {
        let named = self.zones.iter().filter(|zone| !zone.name.is_empty());
        let place = |zone: &Zone| [self.x.place(zone.from).max(0.0), 0.0];
        let names = named.map(|zone| (place(zone), width_of(&zone.name), zone.name.as_str()));
        // At last the end of the axis, which no name may cross.
        self.labels("halo", [5.0, 10.0], names.chain([([1.0, 0.0], 0.0, "")]).collect())
    }

    fn named_points(&self) -> String {
        let names = self.names.iter().map(|(at, name)| (self.place(*at), width_of(name), name.as_str()));
        let svg = self.labels("halo", [7.0, -7.0], names.collect());
        let ring = self.ring.map(|at| self.written_place(at));
        svg + &ring.map_or_else(String::new, |[x, y]| format!("<circle class=\"pick\" cx=\"{x}\" cy=\"{y}\" r=\"8\"/>"))
    }

    /// Those for which there is room along the x axis, each with its place, the pixels that it takes, and its text.
    fn labels(&self, class: &str, moved: [f64; 2], labels: Vec<([f64; 2], f64, &str)>) -> String {
        let widths: Vec<_> = labels.iter().map(|(place, width, _)| (place[0], *width)).collect();
        let fits = labels.iter().zip(fit(&widths, self.pixels())).filter(|((.., name), _)| !name.is_empty());
        let label = |((place, _, name), fits): (&([f64; 2], f64, &str), Option<&str>)| {
            Some(text(&format!("{class} {}", fits?), *place, moved, "", name))
        };
        fits.filter_map(label).collect()
    }

    /// Shares of the plot, as an attribute has them.
    pub fn written_place(&self, at: [f64; 2]) -> [String; 2] {
        self.place(at).map(percent)
    }

    /// Names where the lines end, moved apart where they would stand on each other.
    fn line_ends(&self) -> String {
        let labelled = self.series.iter().enumerate().filter(|(_, series)| !series.label.is_empty());
        let mut ends: Vec<_> = labelled.filter_map(|(at, s)| Some((self.place(*s.points.last()?), at, s))).collect();
        ends.sort_by(|a, b| a.0[1].total_cmp(&b.0[1]));
        let (mut free, mut svg) = (f64::NEG_INFINITY, String::new());
        for (place, at, series) in ends {
            let own = place[1] * LOWEST;
            let moved = if series.hidden { own } else { own.max(free) };
            free = if series.hidden { free } else { moved + TEXT };
            let label = text("halo", place, [8.0, moved - own + 4.0], series.tone, &series.label);
            svg += &group(at, series, "", &label);
        }
        svg
    }
}

/// What the template makes the picture, its key and the read-out of.
impl Serialize for Chart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = |value: &Option<f64>| words::or_unknown(*value, |value| self.y.write(value));
        let series = self.series.iter().map(|series| {
            json!({
                "name": series.name,
                "tone": series.tone,
                "alpha": format!("{:.2}", 1.0 - series.faint),
                "line": match series.style {
                    Style::Dashed | Style::Curve => "dashed",
                    Style::Dots | Style::Crosses => "dotted",
                    _ => "solid",
                },
                "values": series.values.iter().map(written).collect::<Vec<_>>().join("|"),
                "shown": !series.hidden,
            })
        });
        let place = |&x: &f64| format!("{:.0}", self.x.place(x) * 1000.0);
        let chart = json!({
            "id": self.id,
            "label": self.label,
            "wide": self.wide,
            "labelled": self.series.iter().any(|series| !series.label.is_empty()),
            "reads": self.x.label.split(':').next(),
            "at": self.stops.iter().map(place).collect::<Vec<_>>().join(" "),
            "stops": self.stops.iter().map(|&x| self.x.write(x)).collect::<Vec<_>>().join("|"),
            "sync": self.sync,
            "choice": self.choice,
            "svg": self.svg(),
            "series": series.collect::<Vec<_>>(),
        });
        chart.serialize(serializer)
    }
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

/// What the reader shows or hides with the series.
fn group(at: usize, series: &Series, style: &str, parts: &str) -> String {
    let hidden = if series.hidden { " class=\"hidden\"" } else { "" };
    format!("<g{hidden} data-series=\"{at}\"{style}>{parts}</g>")
}

fn tinted(property: &str, tone: &str) -> String {
    if tone.is_empty() { String::new() } else { format!(" style=\"{property}:var(--tone-{tone})\"") }
}

/// Across the whole plot at a share of it.
fn line(upright: bool, share: f64, class: &str, tone: &str) -> String {
    let (at, style) = (percent(share), tinted("stroke", tone));
    match upright {
        true => format!("<line class=\"{class}\"{style} x1=\"{at}\" x2=\"{at}\" y2=\"100%\"/>"),
        false => format!("<line class=\"{class}\"{style} x2=\"100%\" y1=\"{at}\" y2=\"{at}\"/>"),
    }
}

/// At shares of the plot, moved by pixels.
fn text(class: &str, [x, y]: [f64; 2], [dx, dy]: [f64; 2], tone: &str, text: &str) -> String {
    let (x, y, class, style) = (percent(x), percent(y), class.trim_end(), tinted("fill", tone));
    format!(
        "<text class=\"{class}\"{style} x=\"{x}\" y=\"{y}\" dx=\"{dx:.0}\" dy=\"{dy:.0}\">{}</text>",
        HtmlEscape(text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_about_three_digits_and_a_unit() {
        for (unit, value, text) in [
            (Unit::Seconds, 0.0, "0"),
            (Unit::Seconds, 0.004_321, "4.32 ms"),
            (Unit::Seconds, 1.5, "1.5 s"),
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
    fn labels_keep_their_distance_and_the_first_and_last_stay() {
        let axis = Axis::of_levels(&[1.0, 2.0, 5.0, 10.0, 50.0]);
        let labels: Vec<_> = axis.ticks().into_iter().map(|(place, _)| (place, 30.0)).collect();
        let expected = [Some(""), None, Some("spare"), Some(""), Some("")];
        assert_eq!(fit(&labels, 560.0), expected, "5 has no room on a phone, 2 nowhere");
        assert!(!axis.log && Axis::of_levels(&[1.0, 64.0]).log);
        let close =
            [2.99, 3.0].map(|y| Series { label: "end".to_owned(), points: vec![[2.0, y]], ..Series::default() });
        let ends = Chart { series: close.to_vec(), ..chart() }.line_ends();
        assert!(ends.contains("dy=\"4\"") && ends.contains("dy=\"17\""), "{ends}");
    }

    fn chart() -> Chart {
        let xs = [1.0, 2.0];
        let hidden = Series::over(&xs, "hidden", "ink", Style::Line, vec![Some(1.0); 2]);
        let dots = Series { style: Style::Dots, points: vec![[1.0, 2.0], [1.0, 4.0]], ..Series::default() };
        Chart {
            wide: true,
            x: Axis::of_levels(&xs),
            y: Axis::from_zero("a <u> & \"c\"", Unit::Number, [4.0]),
            stops: xs.to_vec(),
            series: vec![
                Series::over(&xs, "shown", "accent", Style::Points, vec![Some(3.0), None]),
                Series { hidden: true, ..hidden },
                dots,
            ],
            ..Chart::default()
        }
    }

    #[test]
    fn only_what_is_known_and_shown_is_drawn_and_text_stays_text() {
        let chart = chart();
        let svg = chart.svg();
        assert!(!svg.contains("NaN") && svg.contains("<g class=\"hidden\" data-series=\"1\""), "{svg}");
        assert!(svg.contains("a &lt;u&gt; &amp; &quot;c&quot;") && !svg.contains("<u>"), "{svg}");
        assert_eq!(json!(chart)["series"][0]["values"], "3|–");
    }

    #[test]
    fn a_path_has_a_command_for_each_point_and_does_not_drift() {
        let axis = |high| Axis { range: [0.0, high], ..Axis::default() };
        let chart = Chart { x: axis(300.0), y: axis(3.0), ..Chart::default() };
        let path = chart.path((0..=300).map(|x| [f64::from(x), f64::from(x) / 100.0]));
        let steps = path.split('l').skip(1).map(|step| step.split_once('-').expect("up"));
        let sum = steps.fold([0, 0], |[x, y], (dx, dy)| {
            [x + dx.parse::<i64>().expect("whole"), y + dy.parse::<i64>().expect("whole")]
        });
        assert_eq!(sum, [4000, 1000]);
        assert_eq!(path.matches(char::is_alphabetic).count(), 301);
    }
}
