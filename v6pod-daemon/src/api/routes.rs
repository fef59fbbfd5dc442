//! Which call is which, and what every call goes through.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use v6pod_proto::Code;

use super::caller::Via;
use super::handlers::{self, Connection};
use super::problem::{Failure, spell_out};
use super::{body, guard, page};
use crate::attachments::Attachments;

/// The contract, for programs.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

/// The one API of both listeners. Requests bear a [`Connection`] as extension.
pub fn router(attachments: Attachments) -> Router {
    Router::new()
        .route("/api/activate", post(handlers::activate))
        .route("/api/deactivate", post(handlers::deactivate))
        // The paths of 2019.
        .route("/activate", post(handlers::activate))
        .route("/deactivate", post(handlers::deactivate))
        .route("/api/attachments", get(handlers::list))
        .route("/api/attachments/{reference}", get(handlers::show).patch(handlers::change))
        .route("/api/explain", get(handlers::explain))
        .route("/api/status", get(handlers::status))
        .route("/api/capacity", get(handlers::capacity))
        .route("/api/prefix", get(handlers::prefix).put(handlers::put_prefix))
        .route("/api/events", get(handlers::events))
        .route("/api/openapi.json", get(handlers::openapi))
        .route("/metrics", get(handlers::metrics))
        .route("/healthz", get(handlers::healthz))
        .route("/", get(page::page))
        .fallback(async || Failure::not_found())
        .method_not_allowed_fallback(async || {
            Failure::new(Code::MethodNotAllowed, "this call knows no such method")
        })
        .layer(DefaultBodyLimit::max(body::LIMIT))
        .layer(from_fn(around))
        .with_state(attachments)
}

/// What goes on around every call: the browser guard before, the log and the error's body after.
async fn around(
    Extension(connection): Extension<Connection>,
    request: Request,
    next: Next,
) -> Response {
    let id = request_id();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let guarded = match connection.caller.via {
        Via::Tcp => guard::check(request.headers(), request.uri()),
        Via::Unix { .. } => Ok(()),
    };
    let response = match guarded {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    let uid = connection.caller.uid;
    let status = response.status().as_u16();
    match response.extensions().get::<Failure>() {
        Some(Failure { code: Code::Internal, detail, .. }) => {
            tracing::error!(%uid, %method, path, status, request = id, "{detail}");
        }
        Some(Failure { detail, expected: true, .. }) => {
            tracing::debug!(%uid, %method, path, status, request = id, "answered: {detail}");
        }
        Some(Failure { detail, .. }) => {
            tracing::info!(%uid, %method, path, status, request = id, "refused: {detail}");
        }
        None => tracing::debug!(%uid, %method, path, status, request = id, "answered"),
    }
    spell_out(response, &id)
}

/// An id that ties an error's answer to its line in the log. It need not be secret.
fn request_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("r{:08x}", NEXT.fetch_add(1, Ordering::Relaxed))
}
