//! `cargo bench`: runs every concurrency level as a Criterion benchmark, then prints the recommendation.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    llm_concurrency::bench()
}
