//! The family of possible curves of throughput over concurrency.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

/// Log throughput of every curve at one level.
pub(super) type Column = Arc<[f64]>;

/// Log throughput of every curve at `level`. Cached: the same levels recur, in this race and in others.
pub(super) fn at_level(level: usize) -> Column {
    static COLUMNS: Mutex<BTreeMap<usize, Column>> = Mutex::new(BTreeMap::new());
    let mut columns = COLUMNS.lock();
    columns.entry(level).or_insert_with(|| FAMILY.iter().map(|curve| curve.log(level as f64)).collect()).clone()
}

/// For each curve, the level at which it first comes within the tolerance of its best over `levels`,
/// and the log of that best. With `between`, interpolates between two levels. The first level at
/// which a request takes more than `slowest` times as long as alone is left out, as are all above it.
pub(super) fn picks(levels: &[usize], between: bool, tolerance: f64, slowest: Option<f64>) -> Vec<(f64, f64)> {
    let columns: Vec<(f64, Column)> = levels.iter().map(|&level| (level as f64, at_level(level))).collect();
    let (alone, slowest) = (at_level(1), slowest.map_or(f64::INFINITY, f64::ln));
    // Lowest log speedup over a single request at which a level is still fast enough.
    let allowed: Vec<f64> = columns.iter().map(|(n, _)| n.ln() - slowest).collect();
    let mut values: Vec<(f64, f64)> = Vec::new();
    let mut pick = |curve: usize| {
        let in_time = columns
            .iter()
            .zip(&allowed)
            .take_while(|((n, column), least)| *n <= 1.0 || column[curve] - alone[curve] >= **least);
        values.clear();
        values.extend(in_time.map(|((n, column), _)| (*n, column[curve])));
        let most = values.iter().map(|value| value.1).fold(f64::NEG_INFINITY, f64::max);
        let target = most + (1.0 - tolerance).ln();
        let at = values.iter().position(|value| value.1 >= target).unwrap_or_default();
        let Some(&(high, above)) = values.get(at) else { return (1.0, alone[curve]) };
        let below = values[..at].last().filter(|_| between);
        (below.map_or(high, |&(low, log)| low * (high / low).powf((target - log) / (above - log))), most)
    };
    (0..FAMILY.len()).map(&mut pick).collect()
}

/// One curve of the family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curve {
    knee: f64,
    shape: Shape,
    pub prior: f64,
}

/// How the straight line `n` changes at the knee.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `n / (1 + (n / knee)^hardness)^(1 / hardness)`: from the hyperbola of Amdahl's law to a sharp corner.
    Bend(f64),
    /// A bend of this hardness times `1 / (1 + (n / fall)^2)`, with `fall` in knees.
    Decline(f64, f64),
    /// The Universal Scalability Law (Gunther 2007): this is `sqrt(1 / kappa)` in knees, and the knee is `1 / sigma`.
    Usl(f64),
    /// Rises on at this smaller slope, up to this many knees, and is flat from there.
    Second(f64, f64),
    /// A bend of this hardness up to a break at this many knees. From there it falls with this power
    /// of the level, down to this share: caches overflow, and evicted entries are computed again.
    Break(f64, f64, f64, f64),
}

impl Curve {
    /// Log throughput at concurrency `n`.
    fn log(&self, n: f64) -> f64 {
        let x = n / self.knee;
        let bent = |n: f64, hardness: f64| {
            let x = n / self.knee;
            if hardness > 30.0 { n.ln() - x.max(1.0).ln() } else { n.ln() - x.powf(hardness).ln_1p() / hardness }
        };
        match self.shape {
            Shape::Bend(hardness) => bent(n, hardness),
            Shape::Decline(hardness, fall) => bent(n, hardness) - (x / fall).powi(2).ln_1p(),
            Shape::Usl(fall) => n.ln() - (x + (x / fall).powi(2)).ln_1p(),
            Shape::Break(hardness, at, power, least) => {
                bent(n.min(at * self.knee), hardness) - (power * (x / at).max(1.0).ln()).min(-least.ln())
            }
            Shape::Second(slope, end) => {
                (n.min(self.knee) + slope * (n.min(end * self.knee) - self.knee).max(0.0)).ln()
            }
        }
    }
}

/// All curves that are considered; their knees are 5 % apart.
pub(super) static FAMILY: LazyLock<Vec<Curve>> = LazyLock::new(|| {
    const BENDS: [f64; 5] = [1.0, 1.5, 2.5, 5.0, 64.0];
    let mut shapes: Vec<(Shape, f64)> = BENDS.iter().map(|&hardness| (Shape::Bend(hardness), 0.6)).collect();
    shapes.extend([8.0, 4.0, 2.6, 1.7, 1.1, 0.7, 0.4].map(|fall| (Shape::Usl(fall), 0.06)));
    for hardness in &BENDS[1..] {
        let hardness = *hardness;
        shapes.extend([6.0, 2.5, 1.2, 0.5].map(|fall| (Shape::Decline(hardness, fall), 0.1)));
    }
    for slope in [0.1, 0.25, 0.5] {
        shapes.extend([1.4, 2.0, 3.0].map(|end| (Shape::Second(slope, end), 0.1)));
    }
    for (hardness, at) in
        [(1.0, 0.2), (1.0, 0.4), (1.0, 0.8), (1.0, 1.6), (2.5, 0.5), (2.5, 0.9), (2.5, 1.4), (64.0, 1.0)]
    {
        const FALLS: [(f64, f64); 5] = [(1.0, 1.0), (0.5, 0.85), (0.5, 0.6), (2.0, 0.85), (2.0, 0.6)];
        shapes.extend(FALLS.map(|(power, least)| (Shape::Break(hardness, at, power, least), 0.1)));
    }
    let knees = (0..152).map(|step| 0.9 * 1.05_f64.powi(step));
    knees.flat_map(|knee| shapes.iter().map(move |&(shape, prior)| Curve { knee, shape, prior })).collect()
});
