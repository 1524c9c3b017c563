//! A chart as data, and its rendering as SVG. `page.js` only reads out values that are already in the page.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::words;

/// How the values of an axis are formatted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    #[default]
    Number,
    /// Formatted in ms below 1 s.
    Seconds,
    /// A fraction, formatted as a percentage.
    Percent,
}

impl Unit {
    /// Formats a value with its unit, to about three digits.
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
    /// Positions of the ticks; if empty, they are at round numbers.
    pub ticks: Vec<f64>,
    /// Names of the values 0, 1, 2, …, for an axis that is not numeric.
    pub names: Vec<String>,
}

impl Axis {
    /// An axis from 0 to slightly above the largest of `values`.
    pub fn from_zero(label: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let top = values.into_iter().fold(0.0, f64::max);
        let top = if top > 0.0 { top * 1.12 } else { 1.0 };
        Axis { label: label.to_owned(), unit, range: [0.0, top], ..Axis::default() }
    }

    /// The axis of concurrency levels (ascending): logarithmic if they span a wide range.
    pub fn of_levels(levels: &[f64]) -> Self {
        let (low, high) = (levels.first().copied().unwrap_or(1.0), levels.last().copied().unwrap_or(1.0));
        let log = high >= 64.0 * low;
        let range = if log { [low / 1.2, high * 1.2] } else { [low.min(1.0) - 1.0, high + 0.04 * high + 0.5] };
        Axis { label: "level: requests in flight".to_owned(), log, range, ticks: levels.to_vec(), ..Axis::default() }
    }

    /// Position of `value` as a share of the axis.
    fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.max(1e-9).ln() } else { v };
        let [low, high] = self.range.map(scale);
        (scale(value) - low) / (high - low)
    }

    fn write(&self, value: f64) -> String {
        self.names.get(value as usize).cloned().unwrap_or_else(|| self.unit.format(value))
    }

    /// Position and label of each tick.
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
    /// Horizontal lines, each from its point to the position of the next.
    Steps,
    /// Bars from the lower to the upper end of each entry of the band.
    Bars,
    Dots,
    Crosses,
}

/// What is drawn in one colour under one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub name: String,
    /// Shown at the end of the line, unless it is empty.
    pub label: String,
    /// Name of a colour in page.css (`--tone-…`).
    pub tone: &'static str,
    /// How far the colour is faded, from 0 to 1, to tell many series of one tone apart.
    pub faint: f64,
    pub style: Style,
    pub points: Vec<[f64; 2]>,
    /// x, lower and upper end.
    pub band: Vec<[f64; 3]>,
    /// Values read out at the chart's stops; empty if there is nothing to read out.
    pub values: Vec<Option<f64>>,
    /// Whether it is hidden until the reader selects it.
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
    /// Whether it is vertical, at a position of the x axis; otherwise it is horizontal, at one of the y axis.
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
    /// Description for those who cannot see the chart.
    pub label: String,
    /// Whether it is as wide as the page, rather than half as wide.
    pub wide: bool,
    pub x: Axis,
    pub y: Axis,
    /// Positions on the x axis at which values are read out, ascending.
    pub stops: Vec<f64>,
    pub series: Vec<Series>,
    pub marks: Vec<Mark>,
    pub zones: Vec<Zone>,
    /// Charts with the same name here are read out at the same position.
    pub sync: String,
    /// Whether the reader can select the series that are shown.
    pub choice: bool,
    /// Labels of points.
    pub names: Vec<([f64; 2], String)>,
    /// A ring around a point, and whether it is visible from the start.
    pub ring: Option<([f64; 2], bool)>,
}

/// Size of the plot in units of its own, which the page stretches. Whole coordinates keep the paths short.
const WIDTH: f64 = 4000.0;
const HEIGHT: f64 = 1000.0;
/// Width of the plot on a phone, in pixels; labels of the class `spare` are hidden there.
const NARROW: f64 = 200.0;
const TEXT: f64 = 13.0;
/// Height of the smallest plot, which is the printed one, in pixels.
const LOWEST: f64 = 110.0;

fn width_of(label: &str) -> f64 {
    7.0 * label.chars().count() as f64 + 8.0
}

/// Which labels, each given as its position and width in pixels, have room: even on a phone (""), only
/// on an axis of `pixels` (`spare`), or nowhere (`None`). The first and the last take precedence.
fn fit(labels: &[(f64, f64)], pixels: f64) -> Vec<Option<&'static str>> {
    let mut fits = vec![None; labels.len()];
    for (pixels, class) in [(NARROW.min(pixels), ""), (pixels, "spare")] {
        for at in (0..labels.len().min(1)).chain((1..labels.len()).rev()) {
            let apart = |other: &(f64, f64)| {
                let [left, right] = if other.0 < labels[at].0 { [*other, labels[at]] } else { [labels[at], *other] };
                (right.0 - left.0) * pixels >= left.1
            };
            let mut taken = labels.iter().zip(&fits).filter(|(_, fits)| fits.is_some());
            if fits[at].is_none() && taken.all(|(other, _)| apart(other)) {
                fits[at] = Some(class);
            }
        }
    }
    fits
}

impl Chart {
    /// Width of the plot on a larger screen, in pixels.
    fn pixels(&self) -> f64 {
        if self.wide { 560.0 } else { 310.0 }
    }

    /// Position as shares of the plot, from the top left.
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

    /// Position as shares of the plot, formatted for an attribute.
    pub fn written_place(&self, at: [f64; 2]) -> [String; 2] {
        self.place(at).map(percent)
    }

    /// The labels that have room along the x axis, with their classes. Each comes with its position, pixels and text.
    fn labels<'a>(&self, labels: &[([f64; 2], f64, &'a str)]) -> Vec<(&'static str, [String; 2], &'a str)> {
        let widths: Vec<_> = labels.iter().map(|(place, width, _)| (place[0], *width)).collect();
        let fits = labels.iter().zip(fit(&widths, self.pixels()));
        fits.filter_map(|((place, _, name), fits)| {
            Some((fits.filter(|_| !name.is_empty())?, place.map(percent), *name))
        })
        .collect()
    }

    /// Classes and data of the paths that draw a series; `None` if it has no points.
    fn paths(&self, series: &Series) -> Option<Vec<(&'static str, String)>> {
        let Series { points, band, .. } = series;
        if points.is_empty() && band.is_empty() {
            return None;
        }
        let line = || self.path(points.iter().copied());
        let dots = || points.iter().map(|&at| self.point(at)).map(|[x, y]| format!("M{x} {y}h0")).collect();
        let mut paths = Vec::new();
        if series.style != Style::Bars && !band.is_empty() {
            let lower = band.iter().map(|&[x, low, _]| [x, low]);
            let upper = band.iter().rev().map(|&[x, _, high]| [x, high]);
            paths.push(("band", self.path(lower.chain(upper)) + "Z"));
        }
        match series.style {
            Style::Points => paths.extend([("line", line()), ("point", dots())]),
            Style::Dashed => paths.extend([("line dashed", line()), ("point", dots())]),
            Style::Line => paths.push(("line", line())),
            Style::Curve => paths.push(("curve", line())),
            Style::Steps => {
                let ends = points.iter().skip(1).chain(points.last()).map(|point| point[0]);
                let steps = points.iter().zip(ends).flat_map(|(&[x, y], end)| [[x, y], [end, y]]);
                paths.push(("line thin", self.path(steps)));
            }
            Style::Bars => paths.extend(band.iter().map(|&[x, low, high]| {
                let ([left, top], [right, bottom]) = (self.point([x - 0.32, high]), self.point([x + 0.32, low]));
                ("bar", format!("M{left} {top}H{right}V{bottom}H{left}Z"))
            })),
            Style::Dots => paths.push(("dot", dots())),
            // Drawn as text, which must not be stretched.
            Style::Crosses => {}
        }
        Some(paths)
    }

    /// The marks, each with the position of its label and the label's offset in pixels.
    fn marks(&self) -> Vec<Value> {
        // Labels of vertical marks are stacked above the axis, those of horizontal ones spread along the mark.
        let (mut up, mut along) = (-6, 0.0);
        let has_bars = self.has_bars();
        let mark = |Mark { upright, at, label, tone }: &Mark| {
            let share = if *upright { self.x.place(*at) } else { 1.0 - self.y.place(*at) };
            let (class, place, moved) = if *upright {
                let ends_there = share * NARROW + width_of(label) > NARROW;
                let (class, dx) = if ends_there { ("halo end", -6) } else { ("halo", 6) };
                (class, [share, 1.0], [dx, up])
            } else if has_bars {
                ("", [1.0, share], [6, 4])
            } else {
                ("halo", [along, share], [6, -5])
            };
            if !label.is_empty() {
                (up, along) = if *upright { (up - TEXT as i64 - 2, along) } else { (up, along + 0.5) };
            }
            let (at, place) = (percent(share), place.map(percent));
            json!({"upright": upright, "at": at, "class": class, "place": place, "moved": moved, "tone": tone, "label": label})
        };
        self.marks.iter().map(mark).collect()
    }

    fn has_bars(&self) -> bool {
        self.series.iter().any(|series| series.style == Style::Bars)
    }

    /// Width in pixels of the labels beside the plot: those of lines, and of limits that would otherwise cover bars.
    fn right(&self) -> Option<f64> {
        let limits = self.marks.iter().filter(|mark| self.has_bars() && !mark.upright).map(|mark| &mark.label);
        let names = self.series.iter().map(|series| &series.label).chain(limits).filter(|name| !name.is_empty());
        names.map(|name| width_of(name) + 8.0).reduce(f64::max)
    }

    /// Whether neither the labels at the line ends nor the axis tell which series is which.
    fn has_legend(&self) -> bool {
        let read = || self.series.iter().filter(|series| !series.values.is_empty() && !series.points.is_empty());
        self.has_bars() || read().count() > 1 && read().any(|series| series.label.is_empty())
    }

    /// The labels at the line ends, each with its series, moved apart where they would overlap.
    fn line_ends(&self) -> Vec<(usize, [String; 2], f64)> {
        let labelled = self.series.iter().enumerate().filter(|(_, series)| !series.label.is_empty());
        let mut ends: Vec<_> = labelled.filter_map(|(at, s)| Some((self.place(*s.points.last()?), at, s))).collect();
        ends.sort_by(|a, b| a.0[1].total_cmp(&b.0[1]));
        let mut free = f64::NEG_INFINITY;
        let end = |(place, at, series): ([f64; 2], usize, &Series)| {
            let own = place[1] * LOWEST;
            let moved = if series.hidden { own } else { own.max(free) };
            free = if series.hidden { free } else { moved + TEXT };
            (at, place.map(percent), (moved - own + 4.0).round_ties_even())
        };
        ends.into_iter().map(end).collect()
    }
}

/// The data from which the template makes the picture, its legend and the read-out.
impl Serialize for Chart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = |value: &Option<f64>| words::or_unknown(*value, |value| self.y.write(value));
        let series = self.series.iter().map(|series| {
            json!({
                "name": series.name,
                "label": series.label,
                "tone": series.tone,
                "alpha": format!("{:.2}", 1.0 - series.faint),
                "line": match series.style {
                    Style::Dashed | Style::Curve => "dashed",
                    Style::Bars => "bars",
                    _ => "solid",
                },
                "values": series.values.iter().map(written).collect::<Vec<_>>().join("|"),
                "shown": !series.hidden,
                "paths": self.paths(series),
            })
        });
        let crossed = self.series.iter().filter(|series| series.style == Style::Crosses);
        let crosses = crossed.flat_map(|series| series.points.iter().map(|at| (series.tone, self.written_place(*at))));
        let zones = self.zones.iter().filter(|zone| zone.tone.is_some() && zone.to > zone.from).map(|zone| {
            let [from, to] = [zone.from, zone.to].map(|x| self.x.place(x).clamp(0.0, 1.0) * WIDTH);
            (zone.tone, format!("M{from:.0} 0H{to:.0}V{HEIGHT}H{from:.0}Z"))
        });
        let zone_names = self.zones.iter().filter(|zone| !zone.name.is_empty());
        let zone_names = zone_names.map(|zone| {
            let width = width_of(&zone.name);
            let place = self.x.place(zone.from).min(1.0 - width / self.pixels()).max(0.0);
            ([place, 0.0], width, zone.name.as_str())
        });
        // Last comes the end of the axis, which no name may cross.
        let zone_names: Vec<_> = zone_names.chain([([1.0, 0.0], 0.0, "")]).collect();
        let names: Vec<_> =
            self.names.iter().map(|(at, name)| (self.place(*at), width_of(name), name.as_str())).collect();
        let above = self.labels(&names);
        let rest: Vec<_> = names.into_iter().filter(|name| above.iter().all(|(.., other)| *other != name.2)).collect();
        let (across, up) = (self.x.ticks(), self.y.ticks());
        let heights: Vec<_> = up.iter().map(|(place, _)| (*place, 20.0)).collect();
        let up = up.iter().zip(fit(&heights, 200.0)).filter(|(_, fits)| fits.is_some());
        let longest = across.iter().map(|(_, name)| width_of(name)).fold(0.0, f64::max);
        let across: Vec<_> = across.iter().map(|(place, name)| ([*place, 1.0], longest, name.as_str())).collect();
        let stop = |&x: &f64| format!("{:.0}", self.x.place(x) * 1000.0);
        let chart = json!({
            "id": self.id,
            "label": self.label,
            "wide": self.wide,
            "legend": self.has_legend(),
            "right": self.right(),
            "reads": self.x.label.split(':').next(),
            "at": self.stops.iter().map(stop).collect::<Vec<_>>().join(" "),
            "stops": self.stops.iter().map(|&x| self.x.write(x)).collect::<Vec<_>>().join("|"),
            "sync": self.sync,
            "choice": self.choice,
            "size": [WIDTH, HEIGHT],
            "axes": [self.x.label, self.y.label],
            "up": up.map(|((place, name), _)| (percent(1.0 - place), name)).collect::<Vec<_>>(),
            "across": self.labels(&across),
            "zones": zones.collect::<Vec<_>>(),
            "series": series.collect::<Vec<_>>(),
            "crosses": crosses.collect::<Vec<_>>(),
            "marks": self.marks(),
            "zone_names": self.labels(&zone_names),
            "ends": self.line_ends(),
            "names": above,
            "names_below": self.labels(&rest),
            "ring": self.ring.map(|(at, seen)| (self.place(at).map(percent), seen)),
        });
        chart.serialize(serializer)
    }
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
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
        assert_eq!(ends.iter().map(|(.., moved)| *moved).collect::<Vec<_>>(), [4.0, 17.0]);
    }

    fn chart() -> Chart {
        let xs = [1.0, 2.0];
        let hidden = Series::over(&xs, "hidden", "ink", Style::Line, vec![Some(1.0); 2]);
        let dots = Series { style: Style::Dots, points: vec![[1.0, 2.0], [1.0, 4.0]], ..Series::default() };
        Chart {
            wide: true,
            x: Axis::of_levels(&xs),
            y: Axis::from_zero("requests", Unit::Number, [4.0]),
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
    fn only_what_is_known_and_shown_is_drawn() {
        let chart = json!(chart());
        assert!(!chart.to_string().contains("NaN"), "{chart}");
        assert_eq!((&chart["series"][0]["values"], &chart["series"][1]["shown"]), (&json!("3|–"), &json!(false)));
    }

    #[test]
    fn names_beside_the_plot_take_room_there_and_spare_a_legend() {
        let named = |label: &str, style| {
            let series = Series::over(&[1.0, 2.0], "P95", "ink", style, vec![Some(1.0); 2]);
            Series { label: label.to_owned(), ..series }
        };
        let drawn = |series: &[Series]| {
            let limit = Mark { upright: false, at: 0.5, label: "limit".to_owned(), tone: "bad" };
            let chart = json!(Chart { series: series.to_vec(), marks: vec![limit], ..chart() });
            (chart["legend"].clone(), chart["right"].clone(), chart["marks"][0]["place"][0].clone())
        };
        let (points, bars) = (Style::Points, Style::Bars);
        let named_ones = drawn(&[named("P50", points), named("P95", points)]);
        assert_eq!(named_ones, (json!(false), json!(width_of("P95") + 8.0), json!("0.00%")));
        assert_eq!(drawn(&[named("", points), named("P95", points)]).0, json!(true));
        assert_eq!(drawn(&[named("", points)]), (json!(false), json!(null), json!("0.00%")), "the axis says it");
        assert_eq!(drawn(&[named("", bars)]), (json!(true), json!(width_of("limit") + 8.0), json!("100.00%")));
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
