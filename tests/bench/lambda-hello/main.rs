//! The least that a function in Rust can do, which `tests/bench/lambda` compares the handler to.

use lambda_http::{Error, Request, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lambda_http::run(service_fn(hello)).await
}

async fn hello(_request: Request) -> Result<&'static str, Error> {
    Ok("hello\n")
}
