//! Turns the requests of a level's measurements into its [`LevelSummary`].

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::goodput::{Cost, Goodput, Prices, Slo};
use super::measurement::{ClientLoad, LeftOut, LevelState, Measurement, Sample, ServerLoad, Stage};
use super::outages::{Outage, without_outages};
use super::quantiles::{Distribution, Estimate, micros, p95_interval, seconds, wilson, with_interval};
use super::reasons::{EarlyEnd, Reason, Reasons};
use super::requests::{Micros, Request, Requests, sum};
use crate::client::outcome::{Failure, Phase, RateLimit};

/// The part of a level's cohort whose prompts have the same size label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SizeSummary {
    /// The label: `small`, `medium`, `large`, or one from the prompts file.
    pub size: String,
    pub requests: u64,
    pub succeeded: u64,
    pub latency_s: Option<Distribution>,
    pub mean_input_tokens: Option<f64>,
    pub mean_output_tokens: Option<f64>,
}

/// The figures of one level. Unknown figures are `None`, never 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LevelSummary {
    pub concurrency: usize,
    /// Size of the cohort: requests issued inside the measured window.
    pub requests: Option<u64>,
    pub succeeded: Option<u64>,
    /// Failures in the cohort by kind; kinds that did not occur are left out.
    #[serde(deserialize_with = "null_as_default")]
    pub failures: BTreeMap<String, u64>,
    pub main_failure: Option<Reason>,
    /// Failures / requests.
    pub error_rate: Option<f64>,
    /// Timeouts / requests.
    pub timeout_rate: Option<f64>,
    /// Total length of the measured windows, seconds.
    pub duration_s: Option<f64>,
    /// Successes per second over the measured window, each weighted by the share of its
    /// lifetime inside; for a visit, by Little's law.
    pub throughput_rps: Option<Estimate>,
    /// The windows, one per Criterion sample.
    pub samples: Option<Vec<Sample>>,
    /// Throughput of consecutive tenths of the cohort, from which the intervals are made: ten
    /// per measurement, in the order of the measurements.
    #[serde(deserialize_with = "null_as_default")]
    pub blocks_rps: Vec<f64>,
    /// Latency of the cohort's successes.
    pub latency_s: Option<Distribution>,
    /// The same with every timeout counted as `request_timeout`, for the latency gates.
    pub gate_latency_s: Option<Distribution>,
    /// The 95 % interval of that P95; null if there are too few requests.
    pub p95_interval_s: Option<[f64; 2]>,
    /// Time to first token of the cohort's successes.
    pub ttft_s: Option<Distribution>,
    pub ttft_p95_interval_s: Option<[f64; 2]>,
    /// Gaps between content chunks.
    pub itl_s: Option<Distribution>,
    /// Time per output token after the first.
    pub tpot_s: Option<Distribution>,
    pub tpot_p95_interval_s: Option<[f64; 2]>,
    /// Null without `policy.slo`, and if a time that it limits is unknown.
    pub goodput: Option<Goodput>,
    /// Null without prices, and if a figure that one of them needs is unknown.
    pub usd_per_1000: Option<Cost>,
    /// Output tokens per second over the measured window, weighted by the same shares.
    pub output_tps: Option<f64>,
    pub mean_output_tokens: Option<f64>,
    /// Mean prompt tokens of a success.
    pub mean_input_tokens: Option<f64>,
    /// Share of these tokens that came from the server's prefix cache; null if it does not report that.
    pub cached_rate: Option<f64>,
    /// Successes without content, whose first token ended the answer.
    pub ended_at_once: Option<u64>,
    /// The cohort by prompt size, if there is more than one.
    #[serde(deserialize_with = "null_as_default")]
    pub by_size: Vec<SizeSummary>,
    /// Requests in flight, averaged over the measured window; shows whether the level was reached.
    pub mean_in_flight: Option<f64>,
    /// Permits held back after failures, averaged over the measured window; null if there were none.
    pub mean_held: Option<f64>,
    /// Measurements of the level during which the server was gone.
    pub outage: Option<Outage>,
    /// The load on this client.
    pub client: Option<ClientLoad>,
    /// The load that the server reported, if it was queried.
    pub server: Option<ServerLoad>,
    /// The quota that the server reported last.
    pub rate_limit: Option<RateLimit>,
    /// Requests at the start of its measurements that were left out, since the engine was still getting faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
    /// Whether the level ended as planned.
    pub state: Option<LevelState>,
    pub reason: Option<EarlyEnd>,
    /// Keys of a results file that this version does not know.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

pub(crate) fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl LevelSummary {
    /// Makes every impossible figure (not finite, negative, a rate above 1) unknown. Foreign files may contain some.
    pub fn without_impossible(mut self) -> Self {
        let can_be = |figure: &f64| figure.is_finite() && *figure >= 0.0;
        let requests = self.requests.unwrap_or(u64::MAX);
        self.succeeded = self.succeeded.filter(|&n| n <= requests);
        self.failures.retain(|_, n| *n <= requests);
        for rate in [&mut self.error_rate, &mut self.timeout_rate, &mut self.cached_rate] {
            *rate = rate.filter(|r| (0.0..=1.0).contains(r));
        }
        for interval in [&mut self.p95_interval_s, &mut self.ttft_p95_interval_s, &mut self.tpot_p95_interval_s] {
            *interval = interval.filter(|[low, high]| *low >= 0.0 && low <= high && high.is_finite());
        }
        let whole = |e: &Estimate| [Some(e.estimate), e.lower, e.upper].iter().flatten().all(can_be);
        self.throughput_rps = self.throughput_rps.filter(|throughput| can_be(&throughput.estimate));
        self.goodput = self.goodput.filter(|Goodput { met, attainment, rps, blocks_rps, .. }| {
            *met <= requests && whole(attainment) && whole(rps) && blocks_rps.iter().all(can_be)
        });
        self.blocks_rps.retain(can_be);
        if let Some(samples) = &mut self.samples {
            samples.retain(|sample| can_be(&sample.duration_s) && sample.succeeded <= sample.completed);
        }
        let figures = [
            &mut self.duration_s,
            &mut self.output_tps,
            &mut self.mean_output_tokens,
            &mut self.mean_input_tokens,
            &mut self.mean_in_flight,
            &mut self.mean_held,
        ];
        let of_sizes = self.by_size.iter_mut().map(|of| {
            let SizeSummary { latency_s, mean_input_tokens, mean_output_tokens, .. } = of;
            (latency_s, [mean_input_tokens, mean_output_tokens])
        });
        let (of_sizes, tokens): (Vec<_>, Vec<_>) = of_sizes.unzip();
        let times =
            [&mut self.latency_s, &mut self.gate_latency_s, &mut self.ttft_s, &mut self.itl_s, &mut self.tpot_s];
        let times = times.into_iter().chain(of_sizes).flatten().flat_map(|time| {
            let Distribution { mean, p50, p90, p95, p99, max } = time;
            [mean, p50, p90, p95, p99, max]
        });
        let bounds = self.throughput_rps.iter_mut().flat_map(|of| [&mut of.lower, &mut of.upper]);
        let cost = self.usd_per_1000.iter_mut().flat_map(|of| [&mut of.tokens, &mut of.server]);
        let client = self.client.iter_mut().flat_map(|of| [&mut of.cpu, &mut of.timer_lag_p95_s]);
        let server = self.server.iter_mut().flat_map(|of| [&mut of.running, &mut of.waiting, &mut of.kv_cache]);
        let figures = figures
            .into_iter()
            .chain(tokens.into_iter().flatten())
            .chain(times)
            .chain(bounds)
            .chain(cost)
            .chain(client)
            .chain(server);
        figures.for_each(|figure| *figure = figure.filter(can_be));
        self
    }
}

/// What a level's figures depend on besides its measurements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// What a timeout counts as in the latency gates, seconds.
    pub request_timeout_s: f64,
    /// A measurement is set aside if more than this share of its requests found no server.
    pub max_error_rate: f64,
    /// The engine was cold until then, seconds since the run began. Earlier measurements count
    /// only if a level has no others.
    pub warm_from_s: f64,
    pub slo: Option<Slo>,
    pub prices: Prices,
}

/// A measurement with its requests.
pub type Measured<'a> = (&'a Measurement, &'a Requests);

/// Derives the figures of a level from all its measurements in chronological order, each with a window of its own.
///
/// Counts, error rate and percentiles are those of the cohort (issued inside the window and drained).
/// Rates cover all requests, weighted by the share of their lifetime inside the window. Interrupted
/// measurements and those during which the server was gone count only if there are no others.
pub fn summarize(level: &[Measured], limits: Limits) -> LevelSummary {
    let is_usable = |(measurement, _): &Measured| measurement.state != LevelState::Cut;
    let mut usable: Vec<Measured> = level.iter().copied().filter(is_usable).collect();
    if usable.is_empty() {
        usable = level.to_vec();
    }
    let is_warm = |(of, _): &Measured| of.middle_s().is_none_or(|at| at >= limits.warm_from_s);
    if usable.iter().any(is_warm) {
        usable.retain(is_warm);
    }
    let (counted, outage) = without_outages(&usable, |(_, requests)| requests.reach, limits.max_error_rate);
    // A single measurement that was given up is enough to doubt the level.
    let doubted = counted.iter().find(|(measurement, _)| measurement.state != LevelState::Complete);
    let doubted = doubted.or(counted.first()).map(|(measurement, _)| measurement);
    let summary = pooled(&counted, limits);
    LevelSummary {
        outage,
        state: doubted.map(|measurement| measurement.state),
        reason: doubted.and_then(|measurement| measurement.reason.clone()),
        usd_per_1000: limits.prices.of_1000(&summary),
        ..summary
    }
}

/// Computes one column after another, since together they would take much memory.
fn pooled(level: &[Measured], Limits { request_timeout_s, slo, .. }: Limits) -> LevelSummary {
    let rates = Rates::of(level, Request::is_success);
    let blocks_rps = blocks(level, Request::is_success);
    let requests = cohort(level).count() as u64;
    let rate = |count: u64| (requests > 0).then(|| count as f64 / requests as f64);
    let failures = failures(level);
    let timeouts = failures.get(&Failure::Timeout).copied().unwrap_or_default();
    let succeeded = successes(level).count() as u64;
    let per_success = |sum: u64| (succeeded > 0).then(|| sum as f64 / succeeded as f64);
    let has_tokens = !rates.tokens_missing && succeeded > 0;
    let tokens = successes(level).map(|request| u64::from(request.output_tokens().unwrap_or_default())).sum();
    let input_unknown = level.iter().any(|(_, requests)| requests.input_unknown);
    let input_tokens = level.iter().map(|(_, requests)| requests.input_tokens.iter().sum::<u64>()).sum();
    let cached_tokens = level.iter().map(|(_, requests)| requests.cached_tokens).fold(None, sum);
    let cached_rate = cached_tokens.map(|cached| cached as f64 / input_tokens as f64);
    let measurements = || level.iter().map(|(measurement, _)| measurement);
    let mut latencies = Vec::with_capacity(succeeded as usize + timeouts as usize);
    latencies.extend(successes(level).map(Request::held_us));
    latencies.sort_unstable();
    let latency_s = Distribution::of_sorted(&latencies);
    latencies.extend(std::iter::repeat_n(micros(request_timeout_s), timeouts as usize));
    latencies.sort_unstable();
    let (gate_latency_s, p95_interval_s) = (Distribution::of_sorted(&latencies), p95_interval(&latencies));
    drop(latencies);
    let times = |time: fn(&Request) -> Micros| {
        Distribution::of(succeeded as usize, successes(level).filter_map(|request| time(request).get()))
    };
    let (ttft_s, ttft_p95_interval_s) = times(|request| request.ttft);
    let (tpot_s, tpot_p95_interval_s) = times(|request| request.tpot);
    let lacks = |slo: &Slo| (slo.ttft.is_some() && ttft_s.is_none()) || (slo.tpot.is_some() && tpot_s.is_none());
    let slo = slo.filter(|slo| succeeded == 0 || !lacks(slo));
    LevelSummary {
        concurrency: level.first().map_or(0, |(measurement, _)| measurement.concurrency),
        requests: Some(requests),
        succeeded: Some(succeeded),
        failures: failures.iter().map(|(kind, &count)| (kind.name().to_owned(), count)).collect(),
        main_failure: Reasons::of_all(level.iter().map(|(_, requests)| &requests.reasons)).most_frequent(),
        error_rate: rate(failures.values().sum()),
        timeout_rate: rate(timeouts),
        duration_s: Some(rates.duration_s),
        throughput_rps: rates.rps().map(|rps| with_interval(rps, &blocks_rps)),
        samples: Some(measurements().flat_map(|measurement| measurement.samples.iter().copied()).collect()),
        blocks_rps,
        latency_s,
        gate_latency_s,
        p95_interval_s,
        ttft_s,
        ttft_p95_interval_s,
        itl_s: gaps(level),
        tpot_s,
        tpot_p95_interval_s,
        goodput: slo.and_then(|slo| goodput(level, slo)),
        output_tps: rates.per_second(rates.tokens).filter(|_| has_tokens),
        mean_output_tokens: per_success(tokens).filter(|_| has_tokens),
        mean_input_tokens: per_success(input_tokens).filter(|_| !input_unknown),
        cached_rate: cached_rate.filter(|rate| !input_unknown && *rate <= 1.0),
        ended_at_once: Some(level.iter().map(|(_, requests)| requests.ended_at_once).sum()).filter(|&count| count > 0),
        by_size: by_size(level),
        mean_in_flight: rates.per_second(rates.in_flight_s),
        mean_held: rates.per_second(rates.held_back_s).filter(|&held| held > 0.0),
        client: client(level),
        rate_limit: measurements().filter_map(|measurement| measurement.rate_limit).reduce(RateLimit::updated),
        left_out: measurements().find_map(|measurement| measurement.left_out),
        server: measurements().filter_map(|measurement| measurement.server).reduce(ServerLoad::with),
        ..LevelSummary::default()
    }
}

/// Averaged by measured time: among many short visits, one is always disturbed.
fn client(level: &[Measured]) -> Option<ClientLoad> {
    let mean = |figure: fn(ClientLoad) -> Option<f64>| {
        let known = level.iter().filter_map(|(of, _)| Some((figure(of.client?)?, of.window_s?)));
        let (sum, seconds) = known
            .fold((0.0, 0.0), |(sum, seconds), (value, [from, to])| (sum + (to - from) * value, seconds + (to - from)));
        (seconds > 0.0).then(|| sum / seconds)
    };
    let load = ClientLoad { cpu: mean(|of| of.cpu), timer_lag_p95_s: mean(|of| of.timer_lag_p95_s) };
    Some(load).filter(|load| *load != ClientLoad::default())
}

fn cohort<'a>(level: &'a [Measured]) -> impl Iterator<Item = &'a Request> {
    level.iter().flat_map(|(_, requests)| requests.cohort())
}

fn successes<'a>(level: &'a [Measured]) -> impl Iterator<Item = &'a Request> {
    cohort(level).filter(|request| request.is_success())
}

fn goodput(level: &[Measured], slo: Slo) -> Option<Goodput> {
    let is_met = |request: &Request| slo.is_met_by(request);
    let requests = cohort(level).count() as u64;
    let met = cohort(level).filter(|request| is_met(request)).count() as u64;
    let [lower, upper] = wilson(met, requests)?;
    let blocks_rps = blocks(level, is_met);
    Some(Goodput {
        slo,
        met,
        attainment: Estimate { estimate: met as f64 / requests as f64, lower: Some(lower), upper: Some(upper) },
        rps: with_interval(Rates::of(level, is_met).rps()?, &blocks_rps),
        blocks_rps,
    })
}

fn failures(level: &[Measured]) -> BTreeMap<Failure, u64> {
    let mut failures = BTreeMap::new();
    cohort(level).filter_map(|request| request.failure).for_each(|kind| *failures.entry(kind).or_default() += 1);
    failures
}

/// Sums over the measured windows, with each request weighted by the share of its lifetime inside.
#[derive(Debug, Default)]
struct Rates {
    duration_s: f64,
    successes: f64,
    tokens: f64,
    /// Whether the token count of a success is missing.
    tokens_missing: bool,
    in_flight_s: f64,
    held_back_s: f64,
}

impl Rates {
    /// `counts` decides what is a success.
    fn of(level: &[Measured], counts: impl Fn(&Request) -> bool) -> Self {
        let mut rates = Rates::default();
        for (measurement, requests) in level {
            let window = measurement.window_s.unwrap_or_default();
            if measurement.stage == Stage::Visit {
                // Permits held for failures before the window are not available to the cohort.
                let before = requests.rows.iter().filter(|request| request.phase != Phase::Measured);
                let held_s: f64 = before.map(|request| request.held_back_s(window)).sum();
                let seconds = window[1] - window[0];
                let held = if seconds > 0.0 { held_s / seconds } else { 0.0 };
                let permits = (measurement.concurrency as f64 - held).max(1.0);
                requests.cohort().for_each(|of| rates.add_whole(of, permits, counts(of)));
                continue;
            }
            rates.duration_s += window[1] - window[0];
            requests.rows.iter().for_each(|of| rates.add(of, window, counts(of)));
        }
        rates
    }

    /// A visit is too short for shares, which would credit it with requests from before it. By Little's
    /// law, its cohort took the total time that its permits were held, divided by their number.
    fn add_whole(&mut self, request: &Request, permits: f64, counts: bool) {
        let held_s = seconds(request.held_us());
        self.duration_s += held_s / permits;
        self.in_flight_s += held_s - request.held_s();
        self.held_back_s += request.held_s();
        self.count(request, f64::from(counts));
    }

    fn add(&mut self, request: &Request, window: [f64; 2], counts: bool) {
        self.in_flight_s += request.overlap_s(window);
        self.held_back_s += request.held_back_s(window);
        self.count(request, f64::from(counts) * request.share(window));
    }

    fn count(&mut self, request: &Request, share: f64) {
        self.successes += share;
        match request.output_tokens() {
            Some(tokens) => self.tokens += share * f64::from(tokens),
            None => self.tokens_missing |= share > 0.0,
        }
    }

    fn per_second(&self, amount: f64) -> Option<f64> {
        (self.duration_s > 0.0).then(|| amount / self.duration_s)
    }

    fn rps(&self) -> Option<f64> {
        self.per_second(self.successes)
    }
}

/// Blocks per measurement.
pub const BLOCKS: usize = 10;

/// Throughput of the requests that count, by consecutive blocks of each measurement's cohort in order of issue.
///
/// A closed loop holds `level` permits all the time, so a block's throughput is `level` x successes / total time its
/// permits were held (Little's law). Blocks of requests are as independent as their latencies, while time windows
/// share the requests that cross their borders. Consecutive blocks also reveal a server that changes its speed.
fn blocks(level: &[Measured], counts: impl Fn(&Request) -> bool) -> Vec<f64> {
    let of = |(measurement, requests): &Measured| blocks_of(measurement.concurrency, &requests.rows, &counts);
    level.iter().flat_map(of).collect()
}

fn blocks_of(level: usize, rows: &[Request], counts: impl Fn(&Request) -> bool) -> Vec<f64> {
    let mut issued = Vec::with_capacity(rows.len());
    issued.extend((0..rows.len() as u32).filter(|&at| rows[at as usize].phase == Phase::Measured));
    issued.sort_unstable_by_key(|&at| (rows[at as usize].seq, at));
    let n = issued.len();
    if n < BLOCKS {
        return Vec::new();
    }
    let block = |at: usize| {
        let block = issued[at * n / BLOCKS..(at + 1) * n / BLOCKS].iter().map(|&at| &rows[at as usize]);
        let held: f64 = block.clone().map(|request| seconds(request.held_us())).sum();
        let succeeded = block.filter(|request| counts(request)).count();
        if held > 0.0 { level as f64 * succeeded as f64 / held } else { 0.0 }
    };
    (0..BLOCKS).map(block).collect()
}

fn gaps(level: &[Measured]) -> Option<Distribution> {
    let mut gaps: BTreeMap<u64, u64> = BTreeMap::new();
    for (us, count) in level.iter().flat_map(|(measurement, _)| &measurement.itl_histogram) {
        *gaps.entry(*us).or_default() += count;
    }
    Distribution::of_binned(&gaps.into_iter().map(|(us, count)| (us as f64 / 1e6, count)).collect::<Vec<_>>())
}

/// The usual labels from small to large, then others by name. Requests without a label are left out.
fn by_size(level: &[Measured]) -> Vec<SizeSummary> {
    const USUAL: [&str; 3] = ["small", "medium", "large"];
    let mut sizes: BTreeMap<(usize, &str), (SizeSummary, Vec<u32>)> = BTreeMap::new();
    let input_unknown = level.iter().any(|(_, requests)| requests.input_unknown);
    let of_label = |label: &str| -> u64 {
        let all = level.iter().flat_map(|(_, requests)| requests.sizes.iter().zip(&requests.input_tokens));
        all.filter(|(size, _)| size.as_deref() == Some(label)).map(|(_, tokens)| tokens).sum()
    };
    for (_, requests) in level {
        for request in requests.cohort() {
            let Some(Some(label)) = requests.sizes.get(usize::from(request.size)) else { continue };
            let rank = USUAL.iter().position(|&usual| usual == &**label).unwrap_or(USUAL.len());
            // Holds the sum of the tokens at first; unknown once a count is missing.
            let new =
                || SizeSummary { size: label.to_string(), mean_output_tokens: Some(0.0), ..SizeSummary::default() };
            let (size, latencies) = sizes.entry((rank, label)).or_insert_with(|| (new(), Vec::new()));
            size.requests += 1;
            if request.is_success() {
                size.succeeded += 1;
                let tokens = size.mean_output_tokens.zip(request.output_tokens());
                size.mean_output_tokens = tokens.map(|(sum, more)| sum + f64::from(more));
                latencies.push(request.held_us());
            }
        }
    }
    if sizes.len() < 2 {
        return Vec::new();
    }
    let per_success = |size: &SizeSummary, sum: f64| (size.succeeded > 0).then(|| sum / size.succeeded as f64);
    let summary = |(size, latencies): (SizeSummary, Vec<u32>)| SizeSummary {
        mean_input_tokens: per_success(&size, of_label(&size.size) as f64).filter(|_| !input_unknown),
        mean_output_tokens: size.mean_output_tokens.and_then(|sum| per_success(&size, sum)),
        latency_s: Distribution::of(latencies.len(), latencies.into_iter()).0,
        ..size
    };
    sizes.into_values().map(summary).collect()
}
