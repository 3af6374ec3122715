//! The least that a function in Rust can do, as the documentation of `lambda_http` writes it, which
//! `tests/bench/lambda` compares the handler to.

use lambda_http::{Error, Request, service_fn};

#[tokio::main]
async fn main() -> Result<(), Error> {
    lambda_http::run(service_fn(hello)).await
}

async fn hello(_request: Request) -> Result<&'static str, Error> {
    Ok("hello\n")
}
