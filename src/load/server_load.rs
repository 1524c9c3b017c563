//! The server's own report of its load during a run: `/metrics`, read once a second on a separate thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::client::Transport;
use crate::figures::ServerLoad;

const EVERY: Duration = Duration::from_secs(1);

const RUNNING: [&str; 4] = [
    "vllm:num_requests_running",
    "llamacpp:requests_processing",
    "sglang:num_running_reqs",
    "simulator_num_requests_running",
];
const WAITING: [&str; 4] = [
    "vllm:num_requests_waiting",
    "llamacpp:requests_deferred",
    "sglang:num_queue_reqs",
    "simulator_num_requests_waiting",
];
const KV_CACHE: [&str; 4] =
    ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio", "sglang:token_usage"];

/// The known gauges in a text in Prometheus format; `None` if there are none.
fn parse(text: &str) -> Option<ServerLoad> {
    let values = |names: &[&str]| -> Vec<f64> {
        let of = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let name = series.split('{').next()?;
            names.contains(&name.trim()).then(|| value.parse::<f64>().ok().filter(|value| value.is_finite()))?
        };
        text.lines().filter_map(of).collect()
    };
    // Parallel engines have one series each: requests add up, and the fullest cache is the one that counts.
    let sum = |values: Vec<f64>| values.into_iter().reduce(|a, b| a + b);
    let load = ServerLoad {
        readings: 1,
        running: sum(values(&RUNNING)),
        waiting: sum(values(&WAITING)),
        kv_cache: values(&KV_CACHE).into_iter().reduce(f64::max),
    };
    (load.running.is_some() || load.waiting.is_some()).then_some(load)
}

/// Reads the server's metrics until dropped.
#[derive(Debug)]
pub struct ServerWatch {
    readings: Arc<Mutex<Vec<(Instant, ServerLoad)>>>,
    _until_dropped: oneshot::Sender<()>,
}

impl ServerWatch {
    /// Starts reading, over connections of `transport` that nothing else uses. Calls `unknown` if the server has no
    /// metrics that we know.
    ///
    /// # Errors
    /// If the thread or its runtime cannot be created.
    pub fn start(transport: Transport, unknown: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let readings: Arc<Mutex<Vec<_>>> = Arc::default();
        let (until_dropped, dropped) = oneshot::channel::<()>();
        let (runtime, seen) = (tokio::runtime::Builder::new_current_thread().enable_all().build()?, readings.clone());
        let watch = async move {
            tokio::select! {
                () = read_metrics(&transport, &seen) => unknown(),
                _ = dropped => {}
            }
        };
        std::thread::Builder::new().name("server-metrics".to_owned()).spawn(move || runtime.block_on(watch))?;
        Ok(ServerWatch { readings, _until_dropped: until_dropped })
    }

    /// Mean of the readings in this period; `None` if there are none.
    pub fn between(&self, from: Instant, to: Instant) -> Option<ServerLoad> {
        let readings = self.readings.lock();
        readings.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, load)| *load).reduce(ServerLoad::with)
    }
}

/// Until it is given up.
async fn read_metrics(transport: &Transport, seen: &Mutex<Vec<(Instant, ServerLoad)>>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_known = false;
    loop {
        ticks.tick().await;
        let load = transport.metrics().await.as_deref().and_then(parse);
        match load {
            Some(load) => seen.lock().push((Instant::now(), load)),
            // A server that has metrics may be too busy for a moment; one that has none is not asked again.
            None if is_known => {}
            None => return,
        }
        is_known = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(running: Option<f64>, waiting: Option<f64>, kv_cache: Option<f64>) -> Option<ServerLoad> {
        Some(ServerLoad { readings: 1, running, waiting, kv_cache })
    }

    #[test]
    fn the_gauges_of_several_servers_are_known() {
        let vllm = "# TYPE vllm:num_requests_running gauge\n\
                    vllm:num_requests_running{engine=\"0\",model_name=\"a b\"} 12.0\n\
                    vllm:num_requests_running{engine=\"1\",model_name=\"a b\"} 11.0\n\
                    vllm:num_requests_waiting{engine=\"0\"} 3.0\n\
                    vllm:num_requests_waiting_by_reason{engine=\"0\"} 99.0\n\
                    vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.5\n";
        assert_eq!(parse(vllm), load(Some(23.0), Some(3.0), Some(0.5)));
        let llama = "llamacpp:requests_processing 4\nllamacpp:requests_deferred 6\nllamacpp:tokens_predicted_total 9\n";
        assert_eq!(parse(llama), load(Some(4.0), Some(6.0), None));
        assert_eq!(parse("<html>not found 1</html>\nup 1\nvllm:num_requests_running{} NaN\n"), None);
    }
}
