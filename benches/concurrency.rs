//! `cargo bench`: every concurrency level a Criterion benchmark, then the recommendation.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    llm_concurrency::bench()
}
