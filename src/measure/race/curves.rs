//! The family of curves that throughput over concurrency may be.

/// One curve of the family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curve {
    knee: f64,
    shape: Shape,
    pub prior: f64,
}

/// What becomes of the straight line `n` at the knee.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// `n / (1 + (n / knee)^hardness)^(1 / hardness)`: from the hyperbola of Amdahl's law to a corner.
    Bend(f64),
    /// A bend that declines as `1 / (1 + (n / fall)^2)`, `fall` in knees.
    Decline(f64, f64),
    /// The Universal Scalability Law (Gunther 2007), with the root of 1 / kappa in knees of 1 / sigma.
    Usl(f64),
    /// It rises on with a smaller slope, up to so many knees.
    Second(f64, f64),
}

impl Curve {
    /// The logarithm of throughput.
    pub fn log(&self, n: f64) -> f64 {
        let x = n / self.knee;
        let bent = |hardness: f64| {
            if hardness > 30.0 { n.ln() - x.max(1.0).ln() } else { n.ln() - x.powf(hardness).ln_1p() / hardness }
        };
        match self.shape {
            Shape::Bend(hardness) => bent(hardness),
            Shape::Decline(hardness, fall) => bent(hardness) - (x / fall).powi(2).ln_1p(),
            Shape::Usl(fall) => n.ln() - (x + (x / fall).powi(2)).ln_1p(),
            Shape::Second(slope, end) => {
                (n.min(self.knee) + slope * (n.min(end * self.knee) - self.knee).max(0.0)).ln()
            }
        }
    }

    /// Where it first reaches the tolerance of its best of these levels, and the logarithm of that best; `between` two of
    /// them, where that counts. From the first level on that takes `slowest` times as long as one request alone, none
    /// counts.
    pub fn pick(&self, levels: &[f64], between: bool, tolerance: f64, slowest: Option<f64>) -> (f64, f64) {
        let one = self.log(1.0);
        let late = |n: f64, log: f64| slowest.is_some_and(|most| n.ln() - log + one > most.ln());
        let values = levels.iter().map(|&n| (n, self.log(n))).take_while(|&(n, log)| n <= 1.0 || !late(n, log));
        let values: Vec<(f64, f64)> = values.collect();
        let most = values.iter().map(|value| value.1).fold(f64::NEG_INFINITY, f64::max);
        let target = most + (1.0 - tolerance).ln();
        let at = values.iter().position(|value| value.1 >= target).unwrap_or_default();
        let Some(&(high, above)) = values.get(at) else { return (1.0, one) };
        let below = values[..at].last().filter(|_| between);
        (below.map_or(high, |&(low, log)| low * (high / low).powf((target - log) / (above - log))), most)
    }
}

/// All curves that are thought of, with knees a twentieth apart.
pub(super) fn family() -> Vec<Curve> {
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
    let knees = (0..152).map(|step| 0.9 * 1.05_f64.powi(step));
    knees.flat_map(|knee| shapes.iter().map(move |&(shape, prior)| Curve { knee, shape, prior })).collect()
}
