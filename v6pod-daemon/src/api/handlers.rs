//! What each call does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use v6pod_proto::explain::{Explain, Explanation};
use v6pod_proto::{
    Activate, Attachment, AttachmentList, Capacity, Change, Code, Deactivate, Deactivated,
    PrefixOffer, PrefixView, Status, Uid,
};

use super::caller::{Caller, Via};
use super::problem::Failure;
use super::stream::{Inbox, Received, take};
use super::{body, events, metrics};
use crate::attachments::{Ask, Attachments, Changer, Lease, Refused, Viewer};
use crate::closer::Foreign;

/// What a request knows of its connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) caller: Caller,
    pub(crate) inbox: Inbox,
    /// The lease that this request has made of its connection.
    pub(crate) lease: Arc<Mutex<Option<Lease>>>,
    /// Whether its answer goes on until somebody ends it.
    pub(crate) watches: Arc<AtomicBool>,
}

impl Connection {
    fn viewer(&self) -> Viewer {
        if self.caller.sees_all() { Viewer::All } else { Viewer::Owner(self.caller.uid) }
    }
}

type Body = Result<Bytes, BytesRejection>;

/// `POST /api/activate`
#[cfg_attr(test, utoipa::path(post, path = "/api/activate", request_body(content((Activate = "application/json"), (Activate = "application/x-www-form-urlencoded"))), responses((status = 200, description = "The attachment, made, completed or found", body = Attachment), (status = 400, description = "Malformed", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 403, description = "A descriptor that is not yours, or no right to attach", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 404, description = "Unknown, or another's", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 409, description = "Something stands in the way", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 413, description = "Too large", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 415, description = "Neither JSON nor a form", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 422, description = "Understood and impossible", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 429, description = "Quota", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 500, description = "The kernel or the disk failed", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 503, description = "Try again", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 507, description = "No address or port left", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn activate(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Attachment>, Failure> {
    let standing = connection.caller.standing;
    if !standing.known {
        return Err(Failure::new(Code::NotReady, "the system does not say who you are; try again"));
    }
    if !standing.attaches {
        return Err(Failure::new(
            Code::Forbidden,
            "this host's operator lets others than you attach containers (limits.users)",
        ));
    }
    let request: Activate = read(&headers, body)?;
    match take(&connection.inbox) {
        Received::One(fd) => by_descriptor(&attachments, &connection, request, fd).await,
        Received::Nothing => by_id(&attachments, &connection.caller, request).await,
        Received::Lost => Err(Failure::new(
            Code::NotReady,
            "the kernel did not hand over your descriptor: Too many open files, or forbidden; try again",
        )),
        Received::Wrong => {
            Err(Failure::new(Code::Malformed, "send one descriptor, with the request's first byte"))
        }
    }
}

async fn by_descriptor(
    attachments: &Attachments,
    connection: &Connection,
    request: Activate,
    fd: Foreign,
) -> Result<Json<Attachment>, Failure> {
    let Via::Unix { pid } = connection.caller.via else {
        return Err(Failure::new(Code::Malformed, "a descriptor comes over the unix socket"));
    };
    if request.user.is_some() {
        return Err(Failure::new(
            Code::Malformed,
            "leave out `user`: the descriptor tells whose the namespace is",
        ));
    }
    let describes = !request.plug;
    let ask = Ask::by_descriptor(request, connection.caller.uid, pid)?;
    let ask = with_rights(attachments, ask).await;
    let asked = attachments.activate_descriptor(ask, fd).await;
    let (view, lease) = asked.map_err(|refused| match refused {
        // The hook's word on a container that nobody has plugged, or never will: most of them.
        Refused::Unknown if describes => Failure::from(refused).expected(),
        refused => Failure::from(refused),
    })?;
    *connection.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    Ok(Json(view))
}

async fn by_id(
    attachments: &Attachments,
    caller: &Caller,
    request: Activate,
) -> Result<Json<Attachment>, Failure> {
    let Some(owner) = request.user else {
        return Err(Failure::new(
            Code::Malformed,
            "say whose container it is with `user`, or send its network namespace's descriptor",
        ));
    };
    if request.id.is_none() {
        return Err(Failure::new(Code::Malformed, "say which container it is with `id`"));
    }
    if request.lease {
        return Err(Failure::new(Code::Malformed, "a lease wants the namespace's descriptor"));
    }
    if !caller.may(owner) {
        return Err(Failure::not_found());
    }
    let ask = Ask::by_id(request, owner, caller.uid)?;
    if (ask.opens() || ask.chooses()) && !matches!(caller.via, Via::Unix { .. }) {
        return Err(Failure::new(Code::Forbidden, OVER_UNIX));
    }
    let ask = with_rights(attachments, ask).await;
    Ok(Json(attachments.activate_by_id(ask).await?))
}

/// Who speaks over TCP may be a container with its user's uid.
const OVER_UNIX: &str =
    "ports are opened and closed, and addresses chosen, over the unix socket alone";

/// Asks what the asker may open, if anything is to be opened, and which addresses he may ask for.
async fn with_rights(attachments: &Attachments, ask: Ask) -> Ask {
    // Of a container that was spoken of before, more may be known than this says.
    let rights = attachments.rights(ask.asker()).await;
    let places = attachments.may_place(ask.asker()).await;
    ask.with_rights(rights, places)
}

/// `POST /api/deactivate`
#[cfg_attr(test, utoipa::path(post, path = "/api/deactivate", request_body(content((Deactivate = "application/json"), (Deactivate = "application/x-www-form-urlencoded"))), responses((status = 200, description = "Whether anything was removed", body = Deactivated), (status = 400, description = "Malformed", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn deactivate(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Deactivated>, Failure> {
    let request: Deactivate = read(&headers, body)?;
    let owner = request.user.unwrap_or(connection.caller.uid);
    // Another's is answered like one that is not there: nothing was removed.
    let may = connection.caller.may(owner);
    if may && request.hint {
        attachments.rumour_of_end(owner, &request.id).await;
    }
    let removed = may && !request.hint && attachments.deactivate(owner, &request.id);
    Ok(Json(Deactivated { removed }))
}

/// The query of `GET /api/attachments`.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    /// Whose.
    owner: Option<Uid>,
    /// The engine's name, or one that it is registered by.
    name: Option<String>,
}

/// `GET /api/attachments`
#[cfg_attr(test, utoipa::path(get, path = "/api/attachments", params(Filter), responses((status = 200, description = "What the caller may see", body = AttachmentList), (status = 400, description = "Malformed", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn list(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<AttachmentList>, Failure> {
    let Query(filter) = filter.map_err(|error| Failure::new(Code::Malformed, error.body_text()))?;
    let mut list = attachments.list(connection.viewer());
    list.retain(|a| filter.owner.is_none_or(|owner| a.owner == owner));
    if let Some(name) = filter.name {
        let borne = |a: &Attachment| a.names.iter().any(|n| n.name == name);
        list.retain(|a| a.name.as_deref() == Some(&name) || borne(a));
    }
    Ok(Json(AttachmentList { attachments: list }))
}

/// `GET /api/attachments/{reference}`
#[cfg_attr(test, utoipa::path(get, path = "/api/attachments/{reference}", params(("reference" = String, Path, description = "Id, prefix of an id, name or address")), responses((status = 200, description = "The attachment", body = Attachment), (status = 404, description = "Unknown, or another's", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 409, description = "It means several", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn show(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
    reference: Result<Path<String>, PathRejection>,
) -> Result<Json<Attachment>, Failure> {
    // What is no UTF-8 refers to nothing.
    let Path(reference) = reference.map_err(|_| Failure::not_found())?;
    let caller = connection.caller.counted_as();
    Ok(Json(attachments.show(connection.viewer(), caller, &reference).await?))
}

/// `PATCH /api/attachments/{reference}`
#[cfg_attr(test, utoipa::path(patch, path = "/api/attachments/{reference}", params(("reference" = String, Path, description = "Id, prefix of an id, name or address")), request_body(content((Change = "application/json"), (Change = "application/x-www-form-urlencoded"))), responses((status = 200, description = "The attachment as it is now; the firewall has it, and flows that are not let in any more have ended", body = Attachment), (status = 400, description = "Malformed, or no change", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 403, description = "Not yours to open, or over TCP", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 404, description = "Unknown, or another's", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 409, description = "It means several, or something is open to more addresses than it is to be closed for", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 413, description = "Too large", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 415, description = "Neither JSON nor a form", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 422, description = "More than a container can have open", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 500, description = "The kernel or the disk failed", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 503, description = "Try again", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn change(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
    reference: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Attachment>, Failure> {
    let caller = connection.caller;
    if !matches!(caller.via, Via::Unix { .. }) {
        return Err(Failure::new(Code::Forbidden, OVER_UNIX));
    }
    let Path(reference) = reference.map_err(|_| Failure::not_found())?;
    let change: Change = read(&headers, body)?;
    let rights = attachments.rights(caller.uid).await;
    let changer = Changer { caller: caller.counted_as(), viewer: connection.viewer(), rights };
    Ok(Json(attachments.change(changer, reference, change).await?))
}

/// `GET /api/explain`
#[cfg_attr(test, utoipa::path(get, path = "/api/explain", params(Explain), responses((status = 200, description = "Which rule decides, and whether the kernel has what that depends on", body = Explanation), (status = 400, description = "Malformed", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 404, description = "Neither end is a container of yours, or one is unknown, or another's", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 409, description = "A reference means several", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 500, description = "The kernel failed", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 503, description = "Try again", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn explain(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
    asked: Result<Query<Explain>, QueryRejection>,
) -> Result<Json<Explanation>, Failure> {
    let Query(asked) = asked.map_err(|error| Failure::new(Code::Malformed, error.body_text()))?;
    let Caller { uid, .. } = connection.caller;
    let turn = connection.caller.counted_as();
    Ok(Json(attachments.explain(connection.viewer(), uid, turn, asked).await?))
}

/// `GET /api/status`
#[cfg_attr(test, utoipa::path(get, path = "/api/status", responses((status = 200, description = "The daemon's state", body = Status))))]
pub(crate) async fn status(State(attachments): State<Attachments>) -> Json<Status> {
    Json(attachments.status())
}

/// `GET /api/capacity`
#[cfg_attr(test, utoipa::path(get, path = "/api/capacity", responses((status = 200, description = "How many more fit", body = Capacity))))]
pub(crate) async fn capacity(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
) -> Json<Capacity> {
    Json(attachments.capacity(connection.caller.uid))
}

/// `GET /api/prefix`
#[cfg_attr(test, utoipa::path(get, path = "/api/prefix", responses((status = 200, description = "The prefix", body = PrefixView))))]
pub(crate) async fn prefix(State(attachments): State<Attachments>) -> Json<PrefixView> {
    Json(attachments.status().prefix)
}

/// `PUT /api/prefix`
#[cfg_attr(test, utoipa::path(put, path = "/api/prefix", request_body(content((PrefixOffer = "application/json"), (PrefixOffer = "application/x-www-form-urlencoded"))), responses((status = 200, description = "Heard: the prefix that is in force, and the one that is to be", body = PrefixView), (status = 400, description = "Malformed", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 403, description = "Not root or an operator, or over TCP", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 413, description = "Too large", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 415, description = "Neither JSON nor a form", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 422, description = "No range that containers could be in, or something of this host's is in its way", body = v6pod_proto::Problem, content_type = "application/problem+json"), (status = 500, description = "The kernel failed", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn put_prefix(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PrefixView>, Failure> {
    if !connection.caller.sees_all() {
        let who = "the prefix is root's and operators' to change, over the unix socket";
        return Err(Failure::new(Code::Forbidden, who));
    }
    let said: PrefixOffer = read(&headers, body)?;
    Ok(Json(attachments.hear_prefix(said).await?))
}

/// `GET /api/events`
#[cfg_attr(test, utoipa::path(get, path = "/api/events", responses((status = 200, description = "Server-sent events, from now on: of the caller's own attachments, or of all if he may see them. Each is named by what happened and has an Event as data; `missed`, with a number, stands for as many that were lost on one who reads too slowly", body = v6pod_proto::Event, content_type = "text/event-stream"), (status = 429, description = "The caller watches often enough, or too many do", body = v6pod_proto::Problem, content_type = "application/problem+json"))))]
pub(crate) async fn events(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
) -> Result<Response, Failure> {
    let watching = attachments.watch(connection.viewer(), connection.caller.counted_as())?;
    connection.watches.store(true, Ordering::Relaxed);
    let kind = HeaderValue::from_static("text/event-stream");
    let never = HeaderValue::from_static("no-store");
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, never)];
    Ok((headers, events::body(watching)).into_response())
}

/// `GET /healthz`
#[cfg_attr(test, utoipa::path(get, path = "/healthz", responses((status = 200, description = "Alive", body = String, content_type = "text/plain"))))]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /metrics`
#[cfg_attr(test, utoipa::path(get, path = "/metrics", responses((status = 200, description = "OpenMetrics: totals, and the counters of the attachments that the caller may see", body = String, content_type = "application/openmetrics-text"))))]
pub(crate) async fn metrics(
    State(attachments): State<Attachments>,
    Extension(connection): Extension<Connection>,
) -> Response {
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    let text = metrics::text(&attachments, connection.viewer()).await;
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// `GET /api/openapi.json`
#[cfg_attr(test, utoipa::path(get, path = "/api/openapi.json", responses((status = 200, description = "This document", body = serde_json::Value))))]
pub(crate) async fn openapi() -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], super::routes::OPENAPI).into_response()
}

fn read<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Failure> {
    let bytes = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let most = body::LIMIT;
            Failure::new(Code::TooLarge, format!("a request has at most {most} bytes"))
        } else {
            Failure::new(Code::Malformed, "the request's body broke off")
        }
    })?;
    body::parse(headers, &bytes)
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let code = match &refused {
            Refused::Unknown => return Self::not_found(),
            Refused::NotYours => Code::NotYours,
            Refused::WrongKind(_) | Refused::Wish(_) => Code::Impossible,
            Refused::Unclear(_) => Code::Malformed,
            Refused::Forbidden(_) => Code::Forbidden,
            Refused::Declined => Code::Declined,
            Refused::Wider(_) | Refused::Taken(_) => Code::Conflict,
            Refused::Ambiguous(_) => Code::Ambiguous,
            Refused::Quota(_) => Code::Quota,
            Refused::Full(_) => Code::Full,
            Refused::NotReady(_) => Code::NotReady,
            Refused::Failed(_) => Code::Internal,
        };
        Self::new(code, refused.to_string())
    }
}
