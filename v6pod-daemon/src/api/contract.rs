//! The OpenAPI document is generated from the handlers and checked in; this test says when the two
//! part. `V6POD_BLESS=1 cargo test -p v6pod-daemon contract` writes it anew.

use utoipa::OpenApi;

use super::routes::OPENAPI;
use super::{handlers, page};

#[derive(OpenApi)]
#[openapi(
    info(title = "v6podd", description = "Routable IPv6 addresses for rootless containers"),
    paths(
        handlers::activate,
        handlers::deactivate,
        handlers::list,
        handlers::show,
        handlers::change,
        handlers::explain,
        handlers::status,
        handlers::capacity,
        handlers::prefix,
        handlers::put_prefix,
        handlers::events,
        handlers::healthz,
        handlers::metrics,
        handlers::openapi,
        page::page,
    )
)]
struct Contract;

#[test]
fn the_checked_in_contract_is_that_of_the_handlers() {
    let generated = Contract::openapi().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("V6POD_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/openapi.json");
        std::fs::write(path, &generated).unwrap();
        return;
    }
    assert!(generated == OPENAPI, "stale: run V6POD_BLESS=1 cargo test -p v6pod-daemon contract");
}
